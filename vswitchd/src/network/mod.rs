//! The life of networks and ports: what they are, whether they are active, and every change.
//!
//! `control` calls [`Manager`]; nothing else does. Changes run one at a time ([`Operation`]); reads
//! never wait for them. A change is written to disk, then visible to readers, then told as an
//! event, all by one function ([`Manager::commit`]), so the three cannot disagree.
//!
//! Invariants:
//! - what a network has made on the host and in the datapath is a list of [`undo::Undo`]: a start
//!   that fails runs it backwards, and so does `net-destroy`; stopping the daemon does not;
//! - an active network has a run-state document, an inactive one has none;
//! - ports refer to networks by UUID; a network that ceases to exist takes its ports with it;
//! - the ports of guests on a hub socket live as long as their connections, and are never on disk.

mod commit;
mod dataplane;
mod definition;
mod fdb;
mod hub;
mod inheritance;
mod lifecycle;
mod peer;
mod ports;
mod problem;
mod profile;
mod query;
mod raise;
mod restore;
mod services;
mod start;
mod tables;
mod undo;
mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};

use api::{Code, Problem};
use tokio::sync::MutexGuard;

use crate::config::Config;
use crate::events::EventBus;
use crate::host::Host;
use crate::store::Store;
use dataplane::Dataplane;
use inheritance::Inheritance;
use tables::Tables;

pub use inheritance::Legacy;
pub use restore::{Restored, check};

/// Everything that the daemon knows about its networks and ports.
#[derive(Debug)]
pub struct Manager {
    /// Itself, for threads that outlive a call.
    this: Weak<Self>,
    config: Config,
    store: Store,
    host: Host,
    dataplane: Dataplane,
    bus: Arc<EventBus>,
    tables: RwLock<Tables>,
    operation: tokio::sync::Mutex<()>,
    /// A guest has left a hub socket.
    departed: tokio::sync::Notify,
    /// The networks of an earlier daemon are coming back one by one, and the rules stay as they
    /// are until all are there.
    restoring: AtomicBool,
    /// Addresses on which our DNS servers listen, of all networks.
    own_addresses: dhcpd::dns::OwnAddresses,
    inheritance: Inheritance,
    /// Another daemon serves the instance now.
    relieved: AtomicBool,
}

/// The right to change something. One at a time, so that no two starts race for an address.
#[derive(Debug)]
pub struct Operation<'a> {
    _guard: MutexGuard<'a, ()>,
}

impl Manager {
    #[must_use]
    pub fn new(
        config: Config,
        store: Store,
        host: Host,
        datapath: datapath::Datapath,
        bus: Arc<EventBus>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            config,
            store,
            host,
            dataplane: Dataplane::new(datapath),
            bus,
            tables: RwLock::default(),
            operation: tokio::sync::Mutex::new(()),
            departed: tokio::sync::Notify::new(),
            restoring: AtomicBool::new(false),
            own_addresses: dhcpd::dns::OwnAddresses::default(),
            inheritance: Inheritance::default(),
            relieved: AtomicBool::new(false),
        })
    }

    #[must_use]
    pub fn events(&self) -> &Arc<EventBus> {
        &self.bus
    }

    /// Waits for the change before this one. `expected` is the revision from If-Match.
    ///
    /// # Errors
    /// [`Code::RevisionMismatch`] when the state has changed since; [`Code::Restarting`].
    pub async fn begin(&self, expected: Option<u64>) -> Result<Operation<'_>, Problem> {
        let guard = self.operation.lock().await;
        if self.relieved.load(Ordering::Relaxed) {
            return Err(Problem {
                remedy: Some("repeat the request".to_owned()),
                ..Problem::new(Code::Restarting, "another daemon has just taken over")
            });
        }
        let revision = self.bus.revision();
        match expected {
            Some(expected) if expected != revision => Err(Problem {
                remedy: Some("read the object again and repeat the change".to_owned()),
                ..Problem::new(
                    Code::RevisionMismatch,
                    format!("the state is at revision {revision}, not {expected}"),
                )
            }),
            _ => Ok(Operation { _guard: guard }),
        }
    }

    /// Nothing is changed any more: another daemon serves the instance.
    pub fn relieve(&self) {
        self.relieved.store(true, Ordering::Relaxed);
    }

    fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        // Writers change one entry at a time and cannot leave it half changed.
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }
}
