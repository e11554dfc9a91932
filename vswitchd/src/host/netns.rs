//! Network namespaces: naming them, and running code inside one.
//!
//! A thread that has entered a namespace never goes back to a pool: every piece of work gets a
//! short-lived thread of its own, so no other task can find itself in the wrong namespace. Work
//! that has begun runs to its end even when the caller stops waiting.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::error::{Doing, Error, Result};

/// Identity of a namespace for as long as anything refers to it (device and inode of nsfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    dev: u64,
    ino: u64,
}

impl NetnsId {
    fn of(fd: impl AsFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// Identity of what a path names now.
    pub(super) fn of_path(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// Directory of the namespaces that `ip netns` makes.
pub(super) const NAMED: &str = "/run/netns";

/// `f_type` of every namespace file (linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// The file behind a user's word: a name below [`NAMED`], or a path when it contains a slash.
pub(super) fn path_of(netns: &str) -> PathBuf {
    if netns.contains('/') { PathBuf::from(netns) } else { Path::new(NAMED).join(netns) }
}

/// An open network namespace. Holding it keeps the namespace alive, so it is held only while
/// work is done there (the daemon's own aside).
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    fd: Arc<OwnedFd>,
    id: NetnsId,
    label: String,
}

impl Namespace {
    /// The calling thread's namespace.
    pub(super) fn current() -> Result<Self> {
        Self::open_path(Path::new("/proc/thread-self/ns/net"), "of the daemon")
    }

    /// A namespace by name or path.
    pub(super) fn open(netns: &str) -> Result<Self> {
        let invalid = netns.is_empty() || netns == "." || netns == ".." || netns.contains('\0');
        if invalid {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(Error::NoSuchNamespace { netns: netns.to_owned(), source });
        }
        Self::open_path(&path_of(netns), netns)
    }

    fn open_path(path: &Path, label: &str) -> Result<Self> {
        let missing = |e: rustix::io::Errno| Error::NoSuchNamespace {
            netns: label.to_owned(),
            source: e.into(),
        };
        // Looked at before it is opened: opening a device or a FIFO has effects of its own.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(missing)?;
        if rustix::fs::fstatfs(&handle).map_err(missing)?.f_type != NSFS_MAGIC {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace");
            return Err(Error::EnterNamespace { netns: label.to_owned(), source });
        }
        let through = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(through, flags, Mode::empty()).map_err(missing)?;
        let id = NetnsId::of(&fd).map_err(missing)?;
        Ok(Self { fd: Arc::new(fd), id, label: label.to_owned() })
    }

    pub(super) fn id(&self) -> NetnsId {
        self.id
    }

    /// Moves the calling thread in, unless it is there already.
    pub(super) fn enter(&self) -> Result<()> {
        let here = NetnsId::of_path(Path::new("/proc/thread-self/ns/net"));
        if here.is_ok_and(|here| here == self.id) {
            return Ok(());
        }
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::EnterNamespace { netns: self.label.clone(), source: e.into() })
    }

    /// Runs `work` inside, on a thread of its own.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let namespace = self.clone();
        std::thread::Builder::new()
            .name("netloom-netns".into())
            .spawn(move || {
                let result = namespace.enter().and_then(|()| work());
                // The caller may have stopped waiting.
                let _ = reply.send(result);
            })
            .doing(|| "start a thread".into())?;
        answer.await.unwrap_or_else(|_| {
            Err(Error::System {
                action: format!("finish work in network namespace {}", self.label),
                source: io::Error::other("its thread panicked"),
            })
        })
    }
}
