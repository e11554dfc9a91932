//! `events`: what happens, as it happens.

use std::time::Duration;

use api::{Event, EventKind};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::Context;
use super::ports::state_word;
use crate::cli;
use crate::failure::{Failure, Lead as _};
use crate::output::clean;

/// Until the count or the time is reached; as with virsh, seeing nothing is a failure.
pub(super) async fn events(
    context: &mut Context<'_>,
    options: &cli::Events,
) -> Result<(), Failure> {
    let lead = "Failed to watch events";
    let mut stream = context.client.events(options.since).await.lead(lead)?;
    let end = options.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut received = 0;
    while options.count.is_none_or(|count| received < count) {
        let next = match end {
            Some(end) => timeout_at(end, stream.next()).await,
            None => Ok(stream.next().await),
        };
        let Ok(next) = next else {
            if !context.output.is_json() {
                context.output.message("event loop timed out")?;
            }
            break;
        };
        let Some(event) = next.lead(lead)? else {
            return Err(Failure::local(lead).remedy("the daemon has stopped"));
        };
        received += 1;
        if context.output.is_json() {
            context.output.json_line(&event)?;
        } else {
            context.output.line(&line(&event))?;
        }
    }
    if !context.output.is_json() {
        context.output.message(&format!("events received: {received}"))?;
    }
    if received == 0 { Err(Failure::local("no events received")) } else { Ok(()) }
}

fn line(event: &Event) -> String {
    let what = match &event.kind {
        EventKind::NetworkDefined { network, .. } => format!("network {network}: Defined"),
        EventKind::NetworkUndefined { network, .. } => format!("network {network}: Undefined"),
        EventKind::NetworkStarted { network, .. } => format!("network {network}: Started"),
        EventKind::NetworkStopped { network, .. } => format!("network {network}: Stopped"),
        EventKind::NetworkAutostart { network, autostart, .. } => {
            format!("network {network}: autostart {}", if *autostart { "on" } else { "off" })
        }
        EventKind::PortAdded { network, port, .. } => {
            format!("network {network}: port {port} added")
        }
        EventKind::PortChanged { network, port, .. } => {
            format!("network {network}: port {port} changed")
        }
        EventKind::PortDeleted { network, port, .. } => {
            format!("network {network}: port {port} deleted")
        }
        EventKind::PortState { network, port, state, reason, .. } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("network {network}: port {port} {}{reason}", state_word(*state))
        }
        EventKind::LeaseAdded { network, lease } => {
            let name = lease.hostname.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            format!("network {network}: lease {} for {}{name}", lease.ip, lease.mac)
        }
        EventKind::LeaseRemoved { network, lease } => {
            format!("network {network}: lease {} of {} ended", lease.ip, lease.mac)
        }
        EventKind::FirewallRepaired => {
            "firewall: the rules had been changed and are back".to_owned()
        }
        EventKind::FirewallBroken { reason } => {
            format!("firewall: the rules were changed and cannot be put back ({reason})")
        }
        EventKind::Gap { missed } => format!("{missed} events were missed"),
    };
    format!("{} {}: {}", time(event.time), event.seq, clean(&what, false))
}

/// virsh's form of event times, in UTC.
fn time(milliseconds: u64) -> String {
    let timestamp =
        i64::try_from(milliseconds).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match timestamp {
        Some(timestamp) => timestamp.strftime("%Y-%m-%d %H:%M:%S%.3f+0000").to_string(),
        None => milliseconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn event(kind: EventKind) -> Event {
        Event { seq: 7, time: 1_795_253_372_654, revision: 1, kind }
    }

    #[test]
    fn events_are_one_line_each() {
        let network = || "default".to_owned();
        let uuid = Uuid::nil();
        assert_eq!(
            line(&event(EventKind::NetworkStarted { network: network(), uuid })),
            "2026-11-21 09:29:32.654+0000 7: network default: Started"
        );
        let gone = EventKind::PortState {
            network: network(),
            port: "c1".to_owned(),
            uuid,
            state: api::PortState::Gone,
            reason: Some("namespace was\ndeleted".to_owned()),
        };
        assert_eq!(
            line(&event(gone)),
            "2026-11-21 09:29:32.654+0000 7: network default: port c1 gone (namespace was\\x0adeleted)"
        );
        assert!(line(&event(EventKind::Gap { missed: 3 })).ends_with(": 3 events were missed"));
    }
}
