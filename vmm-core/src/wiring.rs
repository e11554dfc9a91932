//! What devices need of the hypervisor: interrupts that an event raises, and addresses whose
//! write signals an event, neither with a detour through user space.
//!
//! [`crate::kvm::KvmWiring`] implements it with irqfd, ioeventfd and GSI routing; tests use a
//! recorder. Everything here is called on control paths only.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::lock;

/// A message-signalled interrupt: the address and data that the device would write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    pub address: u64,
    pub data: u32,
}

/// Connections that the hypervisor keeps by itself.
pub trait Wiring: Send + Sync {
    /// Reserves an interrupt number for one MSI-X vector.
    ///
    /// # Errors
    /// When there are no more.
    fn allocate_gsi(&self) -> io::Result<u32>;
    /// Makes `gsi` deliver `message` from now on.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn route_msi(&self, gsi: u32, message: MsiMessage) -> io::Result<()>;
    /// Makes `event` raise `gsi`; one that is signalled already raises it at once.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn connect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
    /// Undoes [`Wiring::connect_interrupt`].
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
    /// Makes a write of any width to guest physical `address` signal `event`.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Undoes [`Wiring::connect_doorbell`].
    ///
    /// # Errors
    /// The hypervisor's refusal.
    fn disconnect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// One source of interrupts: the event that a backend signals.
///
/// Exactly one party consumes the event: the hypervisor while it is connected to an interrupt;
/// nobody while its vector is masked (the counter is then the pending bit); the idle port while
/// the driver polls, having given the source no vector.
pub struct InterruptSource {
    event: EventFd,
    polled: AtomicBool,
}

impl fmt::Debug for InterruptSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptSource")
            .field("event", &self.event.as_raw_fd())
            .field("polled", &self.polled)
            .finish()
    }
}

impl InterruptSource {
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: event()?, polled: AtomicBool::new(true) })
    }

    /// What the backend signals.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether it was signalled and nobody consumed that yet.
    #[must_use]
    pub fn pending(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(borrow(&self.event), PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))
            .is_ok_and(|ready| ready > 0)
    }

    /// Says that the driver gave this source no vector (`true`) or gave it one.
    pub fn set_polled(&self, polled: bool) {
        self.polled.store(polled, Ordering::Release);
    }
}

/// A non-blocking event.
///
/// # Errors
/// When the process has no file descriptor left.
pub fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the EventFd owns the descriptor and outlives the borrow by the signature.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Lets a vCPU of a polling guest sleep until a device has news.
#[derive(Debug, Default)]
pub struct WakeUps {
    sources: Mutex<Vec<Arc<InterruptSource>>>,
}

impl WakeUps {
    /// Makes `source` end [`WakeUps::sleep`] whenever its driver polls.
    pub fn add(&self, source: Arc<InterruptSource>) {
        lock(&self.sources).push(source);
    }

    /// Sleeps until a polled source is signalled (and consumes that), `stop` is, or `timeout`
    /// has passed. A signal that came before the call ends it at once, so a driver that looks
    /// at its ring, finds it empty and sleeps misses nothing.
    pub fn sleep(&self, timeout: Duration, stop: &EventFd) {
        let sources: Vec<_> = lock(&self.sources)
            .iter()
            .filter(|source| source.polled.load(Ordering::Acquire))
            .cloned()
            .collect();
        let mut fds: Vec<_> = sources
            .iter()
            .map(|source| PollFd::from_borrowed_fd(borrow(&source.event), PollFlags::IN))
            .collect();
        fds.push(PollFd::from_borrowed_fd(borrow(stop), PollFlags::IN));
        let Ok(timeout) = rustix::time::Timespec::try_from(timeout) else { return };
        // An error (a signal that stops the vCPU) is a short sleep.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        for (source, fd) in sources.iter().zip(&fds) {
            if fd.revents().contains(PollFlags::IN) {
                // WouldBlock: another vCPU was first.
                let _ = source.event.read();
            }
        }
    }
}

/// A [`Wiring`] that notes what it is asked, for tests of devices.
#[derive(Debug, Default)]
pub struct RecordedWiring {
    state: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    gsis: u32,
    routes: Vec<(u32, MsiMessage)>,
    interrupts: BTreeSet<(u32, i32)>,
    doorbells: BTreeSet<(u64, i32)>,
}

impl RecordedWiring {
    /// Every route that was set, in order.
    #[must_use]
    pub fn routes(&self) -> Vec<(u32, MsiMessage)> {
        lock(&self.state).routes.clone()
    }

    /// The GSI that `event` raises now.
    #[must_use]
    pub fn interrupt_of(&self, event: &EventFd) -> Option<u32> {
        let state = lock(&self.state);
        state.interrupts.iter().find(|(_, fd)| *fd == event.as_raw_fd()).map(|(gsi, _)| *gsi)
    }

    /// Addresses that signal an event now, in order.
    #[must_use]
    pub fn doorbells(&self) -> Vec<u64> {
        lock(&self.state).doorbells.iter().map(|(address, _)| *address).collect()
    }
}

fn changed(done: bool) -> io::Result<()> {
    if done { Ok(()) } else { Err(io::Error::other("connected twice or not connected")) }
}

impl Wiring for RecordedWiring {
    fn allocate_gsi(&self) -> io::Result<u32> {
        let mut state = lock(&self.state);
        state.gsis += 1;
        Ok(state.gsis)
    }
    fn route_msi(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        lock(&self.state).routes.push((gsi, message));
        Ok(())
    }
    fn connect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        changed(lock(&self.state).interrupts.insert((gsi, event.as_raw_fd())))
    }
    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        changed(lock(&self.state).interrupts.remove(&(gsi, event.as_raw_fd())))
    }
    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        changed(lock(&self.state).doorbells.insert((address, event.as_raw_fd())))
    }
    fn disconnect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        changed(lock(&self.state).doorbells.remove(&(address, event.as_raw_fd())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn sleep_ends_at_once_for_what_was_signalled_before_and_consumes_it() {
        let (wakeups, stop) = (WakeUps::default(), event().unwrap());
        let source = Arc::new(InterruptSource::new().unwrap());
        wakeups.add(source.clone());
        source.event().write(1).unwrap();
        let start = Instant::now();
        wakeups.sleep(Duration::from_secs(60), &stop);
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(!source.pending());
        wakeups.sleep(Duration::from_millis(1), &stop);
    }

    #[test]
    fn a_source_with_a_vector_neither_wakes_nor_is_consumed() {
        let (wakeups, stop) = (WakeUps::default(), event().unwrap());
        let source = Arc::new(InterruptSource::new().unwrap());
        wakeups.add(source.clone());
        source.set_polled(false);
        source.event().write(1).unwrap();
        let start = Instant::now();
        wakeups.sleep(Duration::from_millis(20), &stop);
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(source.pending());
    }

    #[test]
    fn stop_ends_a_sleep() {
        let (wakeups, stop) = (WakeUps::default(), event().unwrap());
        stop.write(1).unwrap();
        let start = Instant::now();
        wakeups.sleep(Duration::from_secs(60), &stop);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
