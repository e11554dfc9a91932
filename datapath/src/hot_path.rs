//! One burst on the caller's thread, for `examples/hot_path`, which counts its instructions.

use std::sync::Arc;

use switch::Seconds;
use uuid::Uuid;

use crate::Datapath;
use crate::snapshot::{Device, Snapshot};
use crate::worker::{Buffers, Context, Shared};

/// Does a worker's work while the worker itself sleeps: none of its rings may be kicked.
pub struct HotPath {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    buffers: Buffers,
}

impl std::fmt::Debug for HotPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotPath").finish_non_exhaustive()
    }
}

impl HotPath {
    /// With the ports that there are now.
    #[must_use]
    pub fn new(datapath: &Datapath) -> Self {
        let shared = Arc::clone(datapath.shared());
        let snapshot = shared.current.load_full();
        Self { shared, snapshot, buffers: Buffers::new() }
    }

    /// Takes a burst from the first TX ring of a vhost-user port. Returns how many frames it had.
    pub fn burst(&mut self, port: Uuid) -> usize {
        let Self { shared, snapshot, buffers } = self;
        let context = Context { worker: 0, snapshot, shared, now: Seconds(0) };
        let Some(port) = snapshot.port_by_id(port) else { return 0 };
        let Device::Vhost(vhost) = &port.device else { return 0 };
        buffers.take_vhost(&context, port, vhost, 0).frames
    }
}
