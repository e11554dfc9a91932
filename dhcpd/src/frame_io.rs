//! The door between an engine's thread and whatever carries its frames: the switch's internal
//! port in vswitchd, a packet socket in `netloom-dhcpd`, a queue in tests.

use std::io;
use std::time::Duration;

use uuid::Uuid;

/// A frame that was trapped from a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    pub port: Uuid,
    /// VLAN in which the switch put the frame; 0 is untagged.
    pub vlan: u16,
    /// Whole Ethernet frame without FCS, as it came in on the port. A VLAN tag, if the guest sent
    /// one, is still there.
    pub frame: Vec<u8>,
}

/// A frame to send out of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    pub port: Uuid,
    /// VLAN of the request that this answers.
    pub vlan: u16,
    /// Whole Ethernet frame without FCS, checksums complete. It carries a VLAN tag exactly when
    /// the request did, so it can leave through the port as it is.
    pub frame: Vec<u8>,
}

/// Wakes a [`FrameIo::recv`] that blocks in another thread; never blocks itself.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// Carries frames for one engine thread.
pub trait FrameIo: Send {
    /// Appends what has arrived to `out`: all that is queued, up to a bound of the
    /// implementation's choice. Waits at most `timeout` (for ever when `None`) for the first
    /// frame, and returns with nothing when woken.
    ///
    /// # Errors
    /// When no frame can come any more; the engine's thread ends.
    fn recv(&mut self, out: &mut Vec<Ingress>, timeout: Option<Duration>) -> io::Result<()>;

    /// Sends one frame without blocking.
    ///
    /// # Errors
    /// When the frame was not taken; the caller counts it, and the client's retry mends it.
    fn send(&mut self, egress: Egress) -> io::Result<()>;

    fn waker(&self) -> Waker;
}
