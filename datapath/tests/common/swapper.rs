//! A VMM that replaces the call descriptor of a ring while its guest's driver sleeps.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Nic;

/// Passes the device's signals on to the driver, which waits for nothing else. A descriptor that was replaced is closed
/// with what is in it.
pub(crate) struct Swapper {
    /// Counts replacements that are asked for.
    orders: EventFd,
    thread: Option<JoinHandle<()>>,
}

const STOP: u64 = 1 << 32;

impl Swapper {
    /// Between the device and ring `at`.
    pub(crate) fn new(nic: &Nic, at: usize) -> Self {
        let orders = EventFd::new(EFD_NONBLOCK).unwrap();
        let ordered = orders.try_clone().unwrap();
        let (frontend, line) = (nic.frontend.clone(), nic.rings[at].call.try_clone().unwrap());
        let mut call = replacement(&frontend, at);
        let thread = std::thread::spawn(move || {
            let mut moments = 0_u32;
            loop {
                wait(&[&call, &ordered]);
                if call.read().is_ok() {
                    line.write(1).unwrap();
                }
                match ordered.read() {
                    Ok(order) if order >= STOP => break,
                    Ok(_) => {
                        moments = (moments + 101) % 3000;
                        (0..moments).for_each(|_| std::hint::spin_loop());
                        call = replacement(&frontend, at);
                    }
                    Err(_) => {}
                }
            }
        });
        Self { orders, thread: Some(thread) }
    }

    /// Has the descriptor replaced once from now on, soon.
    pub(crate) fn swap(&self, seed: u32) {
        self.orders.write(1).unwrap();
        (0..seed.wrapping_mul(37) % 4000).for_each(|_| std::hint::spin_loop());
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        let _ = self.orders.write(STOP);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking());
    }
}

/// The device has it when this returns.
fn replacement(frontend: &Frontend, at: usize) -> EventFd {
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_vring_call(at, &call).unwrap();
    call
}

fn wait(fds: &[&EventFd]) {
    // SAFETY: the descriptors are open as long as they are borrowed.
    let borrow = |fd: &&EventFd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(borrow).collect();
    let mut fds: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    poll(&mut fds, None).unwrap();
}
