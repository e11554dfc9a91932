//! The configuration as workers see it: immutable, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use switch::{Bridge, PortIndex};
use uuid::Uuid;

use crate::counters::Counters;
use crate::port::internal::Internal;
use crate::port::kernel::KernelPort;
use crate::port::vhost_user::VhostPort;

/// Every port, by index.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    ports: Box<[Option<Arc<Port>>]>,
    by_id: HashMap<Uuid, PortIndex>,
}

impl Snapshot {
    pub(crate) fn new(ports: impl IntoIterator<Item = Arc<Port>>) -> Self {
        let mut places: Vec<Option<Arc<Port>>> = Vec::new();
        let mut by_id = HashMap::new();
        for port in ports {
            let at = usize::from(port.index.0);
            if places.len() <= at {
                places.resize(at + 1, None);
            }
            by_id.insert(port.id, port.index);
            places[at] = Some(port);
        }
        Self { ports: places.into(), by_id }
    }

    #[inline(always)]
    pub(crate) fn port(&self, index: PortIndex) -> Option<&Port> {
        self.ports.get(usize::from(index.0))?.as_deref()
    }

    pub(crate) fn port_by_id(&self, id: Uuid) -> Option<&Port> {
        self.port(*self.by_id.get(&id)?)
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.ports.iter().flatten()
    }
}

/// One port in one configuration.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) index: PortIndex,
    pub(crate) id: Uuid,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) device: Device,
    /// Bytes of the longest frame that may leave on the port, unless it is to be segmented.
    pub(crate) longest: usize,
    /// By worker. The same in every snapshot.
    pub(crate) counters: Arc<[Counters]>,
}

/// What frames come from and go to. The same in every snapshot while the port exists.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    Vhost(Arc<VhostPort>),
    Kernel(Arc<KernelPort>),
    Internal(Arc<Internal>),
}

/// Where the newest snapshot is.
pub(crate) type Current = ArcSwap<Snapshot>;
