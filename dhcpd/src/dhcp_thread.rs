//! The thread that owns a network's DHCP engine and lease file.
//!
//! One round: take all frames that are queued, let the engine decide on each, write what it
//! decided with one `fdatasync`, then send the answers. So an answer that promises a lease leaves
//! after the lease is on disk, and a crowd of clients shares one disk write.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use crate::dhcp4::{self, Actions, Counters, DropReason, Engine, IngressId};
use crate::dns::names::Names;
use crate::event::LeaseEvent;
use crate::frame_io::{Egress, FrameIo, Ingress};
use crate::lease::{Change, Lease, LeaseState, Store};
use crate::time::Now;

/// How soon a lease file that could not be written is tried again without a client's request.
const RETRY: Duration = Duration::from_secs(5);

/// What other threads may ask for.
pub(crate) enum Command {
    Reload(Box<dhcp4::Config>, Sender<Result<(), dhcp4::ConfigError>>),
    PortRemoved(Uuid),
    Stop,
}

/// What other threads may look at.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    leases: Mutex<BTreeMap<Ipv4Addr, Lease>>,
    counters: Mutex<Counters>,
}

impl Shared {
    pub(crate) fn leases(&self) -> Vec<Lease> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.values().cloned().collect()
    }

    pub(crate) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct DhcpThread {
    pub(crate) network: String,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) io: Box<dyn FrameIo>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) names: Arc<Names>,
    pub(crate) events: Box<dyn Fn(LeaseEvent) + Send>,
    /// Told when what they say is on disk.
    pub(crate) untold: Vec<LeaseEvent>,
}

impl DhcpThread {
    /// Makes the leases that the store had known to the other threads.
    pub(crate) fn publish_loaded(&self) {
        for lease in self.engine.leases(Now::read()) {
            self.publish(&Change::Put(lease));
        }
    }

    pub(crate) fn run(mut self) {
        let mut frames: Vec<Ingress> = Vec::new();
        let mut actions = Actions::default();
        loop {
            if let Err(error) = self.io.recv(&mut frames, self.timeout()) {
                tracing::error!(network = self.network, %error, "DHCP stops: no frames any more");
                return;
            }
            let now = Now::read();
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return,
                    Command::PortRemoved(port) => {
                        self.engine.port_removed(port, now, &mut actions);
                    }
                    Command::Reload(config, done) => {
                        let result = self.engine.reload(*config, now, &mut actions);
                        // The caller may have given up waiting.
                        let _ = done.send(result);
                    }
                }
            }
            for Ingress { port, vlan, frame } in frames.drain(..) {
                self.engine.handle(now, IngressId { port, vlan }, &frame, &mut actions);
            }
            self.engine.expire(now, &mut actions);
            self.settle(&mut actions);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let timer = self.engine.next_timer();
        let timer = timer.map(|timer| timer.saturating_sub(Now::read().mono));
        if self.store.is_failed() {
            Some(timer.map_or(RETRY, |timer| timer.min(RETRY)))
        } else {
            timer
        }
    }

    /// Writes, then sends and tells.
    fn settle(&mut self, actions: &mut Actions) {
        for change in &actions.changes {
            self.publish(change);
        }
        self.store.append(actions.changes.drain(..));
        self.untold.append(&mut actions.events);
        let was_failed = self.store.is_failed();
        let committed = self.store.commit();
        match &committed {
            Ok(()) if was_failed => {
                tracing::info!(network = self.network, "the lease file is written again");
                (self.events)(LeaseEvent::StoreRecovered);
            }
            Err(error) if !was_failed => {
                let text = chain(error);
                tracing::error!(network = self.network, "no lease is acknowledged: {text}");
                (self.events)(LeaseEvent::StoreFailed(text));
            }
            _ => {}
        }
        for reply in actions.replies.drain(..) {
            if reply.durable && committed.is_err() {
                self.engine.count_drop(DropReason::Store);
                continue;
            }
            let IngressId { port, vlan } = reply.to;
            if let Err(error) = self.io.send(Egress { port, vlan, frame: reply.frame }) {
                tracing::debug!(network = self.network, %port, %error, "DHCP answer not sent");
                self.engine.count_drop(DropReason::Send);
            }
        }
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) =
            *self.engine.counters();
        if committed.is_ok() {
            for event in self.untold.drain(..) {
                (self.events)(event);
            }
        }
    }

    fn publish(&self, change: &Change) {
        let mut leases = self.shared.leases.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Put(lease) if lease.state == LeaseState::Bound => {
                let name = lease.hostname.as_deref();
                let known = leases.get(&lease.ip).is_some_and(|l| l.hostname == lease.hostname);
                leases.insert(lease.ip, lease.clone());
                if !self.names.set_client(lease.ip, name)
                    && !known
                    && let Some(name) = name
                {
                    (self.events)(LeaseEvent::NameTaken { ip: lease.ip, name: name.to_owned() });
                }
            }
            Change::Put(Lease { ip, .. }) | Change::Remove(ip) => {
                leases.remove(ip);
                self.names.set_client(*ip, None);
            }
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
