//! Change notifications for the directories that hold namespaces (inotify).

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Tells that something in one of the directories was removed, replaced or moved; not what.
#[derive(Debug)]
pub(super) struct Directories {
    inotify: AsyncFd<OwnedFd>,
    watched: Mutex<HashSet<PathBuf>>,
}

impl Directories {
    pub(super) fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: an OwnedFd stays open and the same until it is dropped with its AsyncFd.
        let inotify = unsafe { AsyncFd::register(fd)? };
        Ok(Self { inotify, watched: Mutex::default() })
    }

    /// Adds directories. One that cannot be watched (it is gone, or in /proc) is left to the
    /// caller's own looking.
    pub(super) fn watch(&self, directories: &[PathBuf]) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for directory in directories {
            if watched.contains(directory) {
                continue;
            }
            let flags = WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::CREATE
                | WatchFlags::ONLYDIR;
            if inotify::add_watch(self.inotify.get_ref(), directory, flags).is_ok() {
                watched.insert(directory.clone());
            }
        }
    }

    /// Waits for a change, and takes every notification that has come.
    pub(super) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else {
                return std::future::pending().await;
            };
            let mut any = false;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
            while reader.next().is_ok() {
                any = true;
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }
}
