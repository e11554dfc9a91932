//! Which descriptors of a peer can be held without waiting for anybody.
//!
//! Nearly every call on a file is a request to its file system, `close` included, and a peer may be that file system
//! itself: a FUSE server that never answers holds whoever asks. A TCP socket with `SO_LINGER` holds whoever closes it last.
//! What frontends need is none of these: memory files, eventfds, pipes and Unix sockets. They are told apart by calls
//! that ask nobody.

use std::fs::read_link;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::fcntl_get_seals;
use rustix::net::{AddressFamily, sockopt::socket_domain};

/// Descriptors of one message, of which one is none that a frontend needs.
///
/// Dropping it closes them, which may take as long as the peer likes: do it where nobody waits.
#[derive(Debug)]
pub struct Foreign {
    /// What `/proc` calls the one that gave it away.
    pub what: String,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Foreign {
    /// How many descriptors it holds.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fds.len()
    }
}

/// All of them when each can be held without waiting.
pub(crate) fn check(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Foreign> {
    use std::os::fd::AsFd;
    match fds.iter().find_map(|fd| foreign(fd.as_fd())) {
        None => Ok(fds),
        Some(what) => Err(Foreign { what, fds }),
    }
}

/// What the descriptor is, unless it is one that a frontend needs.
fn foreign(fd: BorrowedFd<'_>) -> Option<String> {
    // Only files of tmpfs and hugetlbfs, memfds among them, have seals; for others the kernel says so by itself.
    if fcntl_get_seals(fd).is_ok() {
        return None;
    }
    // The kernel's own names: a file in a directory has a path.
    let name = match read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(target) => target.to_string_lossy().into_owned(),
        Err(error) => format!("unknown ({error})"),
    };
    let tame = match name.split_once(':') {
        Some(("anon_inode", "[eventfd]")) | Some(("pipe", _)) => true,
        Some(("socket", _)) => matches!(socket_domain(fd), Ok(AddressFamily::UNIX)),
        _ => false,
    };
    (!tame).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_frontends_need_is_told_from_what_they_do_not() {
        let memfd = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        let (socket, _peer) = UnixStream::pair().unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let good = vec![memfd, socket.into(), pipe, event];
        assert_eq!(check(good).unwrap().len(), 4);

        let file = File::open("/proc/self/exe").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What it watches may be anything.
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (bad, name) in [
            (OwnedFd::from(file), "/"),
            (listener.into(), "socket:"),
            (epoll, "anon_inode:[eventpoll]"),
        ] {
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let foreign = check(vec![event, bad]).unwrap_err();
            assert!(foreign.what.starts_with(name), "{}", foreign.what);
            assert_eq!(foreign.count(), 2);
        }
    }

    #[test]
    fn a_file_with_a_misleading_name_is_a_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = File::create(dir.path().join("anon_inode:[eventfd]")).unwrap();
        assert!(check(vec![file.into()]).is_err());
    }
}
