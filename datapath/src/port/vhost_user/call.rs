//! The descriptor that tells a driver to look at its ring. It is of the guest's choice, so it must neither block nor
//! end anyone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::net::{SendFlags, send};

/// An eventfd (QEMU, DPDK, netloom-vmm) or a socket (User-mode Linux). Nothing else is accepted: a write to a file takes
/// as long as its owner likes.
///
/// The frontend shares an eventfd's flags and can make it block again behind our back; the vhost-user thread
/// notices a worker that hangs in it, and frees it by [`unblock`](Self::unblock).
#[derive(Clone, Debug)]
pub(crate) struct Call {
    fd: Arc<OwnedFd>,
    socket: bool,
}

impl Call {
    /// Checks the descriptor and makes it non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` for a descriptor of another kind, or the kernel's.
    pub(super) fn new(fd: &Arc<OwnedFd>) -> io::Result<Self> {
        let kind = kind(fd.as_fd())?;
        let flags = fcntl_getfl(fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd: Arc::clone(fd), socket: kind == Kind::Socket })
    }

    /// Ends a write that hangs, if one can: the counter is full. It is emptied, and the descriptor made non-blocking again.
    pub(super) fn unblock(&self) -> bool {
        let mut place = [PollFd::new(&*self.fd, PollFlags::OUT)];
        let full = !self.socket && matches!(poll(&mut place, Some(&Timespec::default())), Ok(0));
        if full && let Ok(flags) = fcntl_getfl(&self.fd) {
            let _ = fcntl_setfl(&self.fd, flags | OFlags::NONBLOCK);
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        }
        full
    }

    /// Full means that the driver has been told already, and other errors are its own.
    #[inline]
    pub(crate) fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        let _ = if self.socket {
            send(&self.fd, &one, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        } else {
            rustix::io::write(&self.fd, &one)
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Eventfd,
    Socket,
}

fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Socket {
        return Ok(Kind::Socket);
    }
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if target.as_os_str() == "anon_inode:[eventfd]" {
        Ok(Kind::Eventfd)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is neither an eventfd nor a socket", target.display()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_blocking_eventfd_at_its_limit_does_not_block() {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let call = Call::new(&fd).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        call.signal();
        let mut value = [0; 8];
        rustix::io::read(&fd, &mut value).unwrap();
        assert_eq!(u64::from_ne_bytes(value), u64::MAX - 1);
    }

    #[test]
    fn a_socket_without_a_reader_does_not_block_and_one_without_a_peer_does_not_kill() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let call = Call::new(&Arc::new(OwnedFd::from(ours))).unwrap();
        for _ in 0..100_000 {
            call.signal();
        }
        drop(theirs);
        call.signal();
    }

    #[test]
    fn only_a_full_eventfd_can_hold_a_writer() {
        let fd = Arc::new(eventfd(7, EventfdFlags::CLOEXEC).unwrap());
        let call = Call::new(&fd).unwrap();
        assert!(!call.unblock());
        let mut value = [0; 8];
        rustix::io::read(&fd, &mut value).unwrap();
        assert_eq!(u64::from_ne_bytes(value), 7, "signals of a good driver were taken away");
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(call.unblock());
        assert!(!call.unblock());
    }

    #[test]
    fn a_file_is_refused() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = Call::new(&Arc::new(OwnedFd::from(file))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
