//! How a port comes by its connections.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dialer;
use crate::{PortState, VhostSocket};

pub(super) enum Origin {
    /// VMMs connect to us; one is served, the next waits in the listener's queue.
    Listener { listener: UnixListener, paused: Option<Instant> },
    /// The VMM listens, and is connected to whenever it does.
    Dialer { path: Arc<Path>, delay: Duration },
    /// A hub has accepted the one connection that the port lives for.
    Hub,
}

impl Origin {
    /// With the connection that is there already.
    pub(super) fn new(socket: VhostSocket) -> (Self, Option<UnixStream>) {
        match socket {
            VhostSocket::Listen(listener) => (Self::Listener { listener, paused: None }, None),
            VhostSocket::Connect(path) => {
                (Self::Dialer { path: path.into(), delay: Duration::ZERO }, None)
            }
            VhostSocket::Connected(stream) => (Self::Hub, Some(stream)),
        }
    }

    /// The port's state while it has no connection.
    pub(super) fn idle(&self) -> PortState {
        match self {
            Self::Listener { .. } => PortState::Listening,
            Self::Dialer { .. } => PortState::Connecting,
            Self::Hub => PortState::Gone,
        }
    }

    /// A connection has ended. One that was of use is made again soon, others after longer and longer.
    pub(super) fn ended(&mut self, was_up: bool) {
        if let Self::Dialer { delay, .. } = self {
            *delay = if was_up { dialer::FIRST } else { dialer::longer(*delay) };
        }
    }
}
