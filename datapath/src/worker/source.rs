//! What a worker takes frames from, and how it waits for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use switch::PortIndex;

use crate::balance::Duty;

/// A source's name, stable while the source exists; also what epoll reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    /// The worker's own wake-up.
    pub(crate) const WAKE: Self = Self(u64::MAX);

    pub(crate) fn new(port: PortIndex, queue: usize) -> Self {
        Self(u64::from(port.0) << 32 | queue as u64 & 0xffff_ffff)
    }
}

/// How a guest's TX ring is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Polled every round.
    Polled,
    /// The driver will kick.
    Armed,
    /// Looked at every millisecond: the driver does not kick, or kicks without need.
    Timed,
}

/// A guest's TX ring.
#[derive(Debug)]
pub(crate) struct RingSource {
    pub(crate) token: Token,
    pub(crate) port: PortIndex,
    pub(crate) pair: usize,
    pub(crate) duties: Arc<[Duty]>,
    pub(crate) generation: u64,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    /// The kick is in the worker's epoll set.
    pub(crate) watched: bool,
    pub(crate) state: State,
    /// Since when it has been empty; `None` while it is not.
    pub(crate) idle_since: Option<Instant>,
    /// Kicks without frames in this second.
    pub(crate) empty_kicks: u32,
}

/// A TAP queue or packet socket.
#[derive(Debug)]
pub(crate) struct KernelSource {
    pub(crate) token: Token,
    pub(crate) port: PortIndex,
    pub(crate) queue: usize,
    pub(crate) duties: Arc<[Duty]>,
    /// A descriptor of our own for epoll, which goes when the worker has let go of the port.
    pub(crate) fd: OwnedFd,
}

impl RingSource {
    pub(crate) fn duty(&self) -> &Duty {
        &self.duties[self.pair]
    }
}

impl KernelSource {
    pub(crate) fn duty(&self) -> &Duty {
        &self.duties[self.queue]
    }
}
