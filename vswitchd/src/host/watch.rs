//! What changes behind our back: interfaces that vanish, namespaces that are deleted, our
//! firewall table altered.
//!
//! One thread in the daemon's namespace listens to the kernel's notifications (route netlink,
//! nfnetlink, inotify) and sleeps otherwise. It ends when the receiver of events is dropped.
//!
//! A namespace counts as gone when its path does, or names another one. Our own TAP queues keep
//! a deleted namespace alive in the kernel, so nothing on the TAP tells; closing them on
//! [`HostEvent::NetnsGone`] frees it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::Host;
use super::directories::Directories;
use super::error::{Doing, Error, Result};
use super::firewall::{Applied, Monitor};
use super::link::{self, Link};
use super::netns::{NetnsId, path_of};

/// Something changed without our doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface left the daemon's namespace (also when we deleted it ourselves).
    LinkGone {
        ifindex: u32,
        name: String,
        /// The object of this instance that it belonged to.
        object: Option<Uuid>,
    },
    /// A watched namespace was deleted. Reported once; it is not watched any more.
    NetnsGone { netns: String },
    /// Somebody changed or flushed our nftables table; it is back.
    FirewallRepaired,
    /// Somebody changed or flushed our nftables table, and it could not be put back.
    FirewallBroken { reason: String },
}

/// The namespaces to watch, by the caller's name for them.
#[derive(Debug, Default)]
pub(super) struct Watched {
    paths: Mutex<HashMap<String, NetnsId>>,
    changed: Notify,
}

impl Watched {
    fn paths(&self) -> MutexGuard<'_, HashMap<String, NetnsId>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out and returns the namespaces that are gone.
    fn take_gone(&self) -> Vec<String> {
        let mut paths = self.paths();
        let gone: Vec<String> = paths
            .iter()
            .filter(|(netns, id)| !NetnsId::of_path(&path_of(netns)).is_ok_and(|now| now == **id))
            .map(|(netns, _)| netns.clone())
            .collect();
        for netns in &gone {
            paths.remove(netns);
        }
        gone
    }

    fn directories(&self) -> Vec<PathBuf> {
        self.paths().keys().filter_map(|netns| Some(path_of(netns).parent()?.to_owned())).collect()
    }
}

impl Host {
    /// Starts the watcher.
    ///
    /// # Errors
    /// When a notification socket cannot be opened.
    pub fn events(&self) -> Result<mpsc::UnboundedReceiver<HostEvent>> {
        let (events, receiver) = mpsc::unbounded_channel();
        let home = self.home().clone();
        let watcher = Watcher {
            events,
            instance: self.instance().clone(),
            applied: Arc::clone(&self.shared.applied),
            watched: Arc::clone(&self.shared.watched),
        };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("netloom-watch".into())
            .spawn(move || {
                let runtime = home.enter().and_then(|()| {
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .doing(|| "start the host watcher".into())
                });
                match runtime {
                    Ok(runtime) => runtime.block_on(watcher.run(&ready)),
                    Err(e) => drop(ready.send(Err(e))),
                }
            })
            .doing(|| "start a thread".into())?;
        started.recv().unwrap_or_else(|_| {
            Err(Error::System {
                action: "start the host watcher".into(),
                source: io::Error::other("its thread ended"),
            })
        })?;
        Ok(receiver)
    }

    /// Reports [`HostEvent::NetnsGone`] once when the name or path ceases to lead to that
    /// namespace.
    pub fn watch_netns(&self, netns: &str, id: NetnsId) {
        self.shared.watched.paths().insert(netns.to_owned(), id);
        self.shared.watched.changed.notify_one();
    }

    /// Ends [`Host::watch_netns`].
    pub fn unwatch_netns(&self, netns: &str) {
        self.shared.watched.paths().remove(netns);
    }
}

struct Watcher {
    events: mpsc::UnboundedSender<HostEvent>,
    instance: api::Instance,
    applied: Arc<Applied>,
    watched: Arc<Watched>,
}

/// Namespaces below /proc send no inotify events: they are looked at this often.
const LOOK: Duration = Duration::from_secs(2);
/// A foreign tool changes many things in a row: repair once it has finished.
const SETTLE: Duration = Duration::from_millis(100);

impl Watcher {
    async fn run(self, ready: &std::sync::mpsc::SyncSender<Result<()>>) {
        let opened = links().and_then(|links| {
            let rules = Monitor::open(&self.instance.nft_table())
                .doing(|| "listen to nftables changes".into())?;
            let directories = Directories::new().doing(|| "watch directories".into())?;
            Ok((links, rules, directories))
        });
        let (mut links, rules, directories) = match opened {
            Ok(sources) => {
                let _ = ready.send(Ok(()));
                sources
            }
            Err(e) => return drop(ready.send(Err(e))),
        };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut repair_at: Option<Instant> = None;
        loop {
            let watching = !self.watched.paths().is_empty();
            tokio::select! {
                () = self.events.closed() => return,
                payload = links.next() => match payload {
                    Some(payload) => self.link_message(payload),
                    // The socket overflowed; what was lost shows when the ports are next looked at.
                    None => match self::links() {
                        Ok(again) => links = again,
                        Err(_) => return,
                    },
                },
                ours = rules.changed() => {
                    if ours && repair_at.is_none() {
                        repair_at = Some(Instant::now() + SETTLE);
                    }
                }
                () = wait_until(repair_at) => {
                    repair_at = None;
                    self.repair();
                }
                () = directories.changed() => self.look(),
                () = self.watched.changed.notified() => {
                    directories.watch(&self.watched.directories());
                    self.look();
                }
                _ = look.tick(), if watching => self.look(),
            }
        }
    }

    fn send(&self, event: HostEvent) {
        // Nobody listens any more: the loop ends by itself.
        let _ = self.events.send(event);
    }

    fn look(&self) {
        for netns in self.watched.take_gone() {
            self.send(HostEvent::NetnsGone { netns });
        }
    }

    fn repair(&self) {
        match self.applied.repair(&self.instance.nft_table()) {
            Ok(false) => {}
            Ok(true) => self.send(HostEvent::FirewallRepaired),
            Err(e) => self.send(HostEvent::FirewallBroken { reason: e.to_string() }),
        }
    }

    fn link_message(&self, payload: NetlinkPayload<RouteNetlinkMessage>) {
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) = payload else {
            return;
        };
        if link::is_bridge_message(&message) {
            return;
        }
        let link = Link::from(message);
        let object = link.object(&self.instance);
        self.send(HostEvent::LinkGone { ifindex: link.index, name: link.name, object });
    }
}

/// Notifications about interfaces, of the calling thread's namespace.
fn links() -> Result<impl Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Unpin> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .doing(|| "listen to interface changes".into())?;
    tokio::spawn(connection);
    Ok(messages.map(|(message, _)| message.payload))
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
