//! How each port is, for who asks and for who listens.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use uuid::Uuid;

use crate::{Event, PortState, PortStatus};

#[derive(Debug)]
struct Board {
    ports: HashMap<Uuid, PortStatus>,
    /// Gone when the datapath stops.
    events: Option<Sender<Event>>,
}

/// Written by the control plane when ports come and go, and by the vhost-user thread.
#[derive(Debug)]
pub(crate) struct StatusBoard(Mutex<Board>);

impl StatusBoard {
    pub(crate) fn new(events: Sender<Event>) -> Self {
        Self(Mutex::new(Board { ports: HashMap::new(), events: Some(events) }))
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new port.
    pub(super) fn add(&self, id: Uuid, state: PortState) {
        let status = PortStatus { state, reason: None, features: 0, queue_pairs: 0 };
        self.lock().ports.insert(id, status);
    }

    pub(super) fn remove(&self, id: Uuid) {
        self.lock().ports.remove(&id);
    }

    pub(super) fn get(&self, id: Uuid) -> Option<PortStatus> {
        self.lock().ports.get(&id).cloned()
    }

    /// Nobody listens any more: receivers of events learn that there will be none.
    pub(super) fn close(&self) {
        self.lock().events = None;
    }

    /// The port has no features and queues now.
    pub(crate) fn set(&self, id: Uuid, state: PortState, reason: Option<String>) {
        self.put(id, PortStatus { state, reason, features: 0, queue_pairs: 0 });
    }

    /// Tells listeners when state or reason differ from before. Ports that were removed are ignored.
    pub(crate) fn put(&self, id: Uuid, status: PortStatus) {
        let mut board = self.lock();
        let Some(before) = board.ports.get_mut(&id) else { return };
        let same = before.state == status.state && before.reason == status.reason;
        let (state, reason) = (status.state, status.reason.clone());
        *before = status;
        if !same && let Some(events) = &board.events {
            let _ = events.send(Event::PortState { id, state, reason });
        }
    }
}
