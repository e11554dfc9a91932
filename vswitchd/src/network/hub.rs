//! A network's hub socket: every VMM that connects gets a port of its own, which goes with the
//! connection.
//!
//! These ports are never on disk. They are added and removed under the operation lock like all
//! others, one after the other and no faster than [`INTERVAL`] once [`BURST`] came at a time, so a
//! flood of connections costs the others little.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::{EventKind, HubInfo, PortKind, PortProfile, PortState, Problem, SocketAccess};
use datapath::VhostSocket;
use netdef::model;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Manager;
use super::peer::{self, Peer};
use super::problem::inner;
use super::tables::{Port, Tables};
use super::undo::Undo;
use crate::store::PortDocument;

/// Connections that are taken without a pause.
const BURST: u32 = 32;
/// Between two connections, when there were many.
const INTERVAL: Duration = Duration::from_millis(50);
/// After accept(2) failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The hub of an active network.
#[derive(Debug)]
pub(super) struct Hub {
    network: Uuid,
    /// What is served, for who takes over.
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    limit: usize,
    /// Connections that were closed because there were too many.
    refused: AtomicU64,
    stop: CancellationToken,
}

impl Hub {
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// What takes it away.
    pub(super) fn undo(self: &Arc<Self>) -> [Undo; 2] {
        [Undo::Socket(self.path.clone()), Undo::Hub(Arc::clone(self))]
    }

    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    pub(super) fn info(&self, tables: &Tables) -> HubInfo {
        HubInfo {
            socket: self.path.clone(),
            guests: guests(tables, self.network),
            limit: self.limit,
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

fn guests(tables: &Tables, network: Uuid) -> usize {
    tables.ports_of(network).filter(|port| is_transient(port)).count()
}

/// A port that lives as long as its connection.
pub(super) fn is_transient(port: &Port) -> bool {
    matches!(port.document.port, PortKind::Hub { .. })
}

impl Manager {
    /// The network's hub, unless it is to have none.
    ///
    /// # Errors
    /// When there can be no socket.
    pub(super) fn raise_hub(
        &self,
        network: Uuid,
        definition: &model::Network,
    ) -> Result<Option<Arc<Hub>>, Problem> {
        let limit = self.config.hub_guests;
        if limit == 0 || definition.switch.hub_socket == Some(false) {
            return Ok(None);
        }
        let path = Self::fitting(
            &definition.name,
            self.store.instance().hub_socket(&definition.name),
            "the network's name",
        )?;
        let listener = match self.inherited_hub(&path)? {
            Some(listener) => listener,
            None => self.listen(&path, &SocketAccess::default())?,
        };
        let copy = listener.try_clone().map_err(|error| inner(&error))?;
        let listener = UnixListener::from_std(listener).map_err(|error| inner(&error))?;
        let hub = Arc::new(Hub {
            listener: copy,
            network,
            path,
            limit,
            refused: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        let (manager, served) = (self.this.clone(), Arc::clone(&hub));
        tokio::spawn(async move {
            let stop = served.stop.clone();
            let serve = async {
                let mut pace = Pace::new(Instant::now());
                loop {
                    tokio::time::sleep(pace.take(Instant::now())).await;
                    let stream = match listener.accept().await {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(socket = %served.path.display(), "hub: {error}");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let Some(manager) = manager.upgrade() else { return };
                    if let Err(error) = manager.attach(&served, stream).await {
                        tracing::warn!(socket = %served.path.display(), "hub: {error}");
                    }
                }
            };
            // Whoever stops it has the operation lock: no port is half made then.
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve => {}
            }
        });
        Ok(Some(hub))
    }

    /// Makes a port for a connection.
    async fn attach(&self, hub: &Arc<Hub>, stream: UnixStream) -> Result<(), Problem> {
        let peer = Peer::of(stream.peer_cred().ok().and_then(|peer| peer.pid()));
        let stream = stream.into_std().map_err(|error| inner(&error))?;
        let _operation = self.operation.lock().await;
        let (definition, name, uuid) = {
            let tables = self.tables();
            let live = tables.networks.get(&hub.network).and_then(|network| network.live.as_ref());
            // The network may have been destroyed, and started again, meanwhile.
            let ours = live.filter(|live| live.hub.as_ref().is_some_and(|h| Arc::ptr_eq(h, hub)));
            let Some(live) = ours else { return Ok(()) };
            let found = guests(&tables, hub.network);
            if found >= hub.limit {
                let refused = hub.refused.fetch_add(1, Ordering::Relaxed) + 1;
                // The first time, and then less and less often.
                if refused.is_power_of_two() {
                    tracing::warn!(
                        network = %live.definition.name, limit = hub.limit, refused,
                        "refused a guest on the hub socket: there are as many as hub.guests allows"
                    );
                }
                return Ok(());
            }
            let (name, uuid) = peer.identity(hub.network, |name, uuid| {
                tables.port_named(name).is_none() && !tables.ports.contains_key(&uuid)
            });
            (Arc::clone(&live.definition), name, uuid)
        };
        let mac = peer::mac(uuid);
        let mac = if self.is_free_mac(mac) { mac } else { self.free_mac()? };
        let queue_pairs = self.config.hub_queue_pairs;
        let document = PortDocument::new(
            uuid,
            name.clone(),
            hub.network,
            peer.kind(queue_pairs),
            mac,
            PortProfile::default(),
        );
        let settings = Self::settings(&document, &definition)?;
        let socket = VhostSocket::Connected(stream);
        self.dataplane.add_vhost_user(settings, socket, queue_pairs).await?;
        let (network, port) = (definition.name.clone(), name.clone());
        tracing::info!(%network, %port, %mac, %uuid, "a guest came by the hub socket");
        self.change(|tables| {
            let undo = vec![Undo::DataplanePort(uuid)];
            let state = PortState::Connected;
            tables.ports.insert(uuid, Port { document, state, reason: None, undo });
            vec![EventKind::PortAdded { network, port, uuid }]
        });
        // It may have left already.
        self.settle_state(uuid);
        Ok(())
    }

    /// Removes the ports whose connections have ended, whenever there are some.
    pub(super) async fn remove_departed(&self) {
        loop {
            self.departed.notified().await;
            let _operation = self.operation.lock().await;
            let gone: Vec<Uuid> = {
                let tables = self.tables();
                let gone = tables.ports.values().filter(|port| port.state == PortState::Gone);
                gone.filter(|port| is_transient(port)).map(|port| port.document.uuid).collect()
            };
            for uuid in gone {
                let mut undo = Vec::new();
                let mut reason = None;
                self.note(|tables| {
                    let port = tables.ports.get_mut(&uuid)?;
                    undo = std::mem::take(&mut port.undo);
                    reason = port.reason.take();
                    None
                });
                self.undo(undo).await;
                let reason = reason.as_deref().unwrap_or("-");
                self.change(|tables| forget_port(tables, uuid, reason).into_iter().collect());
            }
        }
    }
}

/// Takes transient ports out of the tables whose connection nobody has handed over.
pub(super) fn forget_lost(tables: &mut Tables) -> Vec<EventKind> {
    let lost = tables.ports.values().filter(|port| is_transient(port) && port.undo.is_empty());
    let lost: Vec<Uuid> = lost.map(|port| port.document.uuid).collect();
    let forget = |uuid| forget_port(tables, uuid, "its connection was lost in a restart");
    lost.into_iter().filter_map(forget).collect()
}

/// Takes a transient port out of the tables.
fn forget_port(tables: &mut Tables, uuid: Uuid, reason: &str) -> Option<EventKind> {
    let port = tables.ports.remove(&uuid)?.document;
    let network = tables.networks.get(&port.network)?.name.clone();
    tracing::info!(%network, port = %port.name, reason, "a guest left the hub socket");
    Some(EventKind::PortDeleted { network, port: port.name, uuid })
}

/// Takes all transient ports of a network, which are down, out of the tables.
pub(super) fn forget_guests(tables: &mut Tables, network: Uuid) -> Vec<EventKind> {
    let transient = tables.ports_of(network).filter(|port| is_transient(port));
    let guests: Vec<Uuid> = transient.map(|port| port.document.uuid).collect();
    let forget = |uuid| forget_port(tables, uuid, "the network was stopped");
    guests.into_iter().filter_map(forget).collect()
}

/// How fast connections are taken: [`BURST`] at once, then one each [`INTERVAL`].
#[derive(Debug)]
struct Pace {
    /// When the burst will be whole again.
    whole: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { whole: now }
    }

    /// How long to wait before the next one.
    fn take(&mut self, now: Instant) -> Duration {
        let earliest = self.whole.checked_sub(INTERVAL * BURST).unwrap_or(now);
        self.whole = self.whole.max(now) + INTERVAL;
        earliest.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_at_once_and_a_flood_at_its_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        let mut taken = 0;
        while now < start + Duration::from_secs(1) {
            now += pace.take(now);
            taken += 1;
        }
        assert!((50..=54).contains(&taken), "{taken}: the burst of 32, then 20 in a second");
        // Who comes after a quiet while does not wait.
        assert_eq!(pace.take(now + Duration::from_secs(1)), Duration::ZERO);
    }
}
