//! One daemon per instance: a lock on a file in the run directory, which names its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Held for the daemon's life; the kernel lets go of it even after `kill -9`.
#[derive(Debug)]
pub struct InstanceLock {
    file: File,
}

#[derive(Debug, Error)]
pub enum LockError {
    #[error(
        "instance {instance:?} is already served by process {pid}; stop it, or choose another \
         instance with --instance"
    )]
    Held { instance: String, pid: String },
    #[error("cannot lock {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl InstanceLock {
    /// # Errors
    /// [`LockError::Held`] with the other daemon's process id; I/O errors.
    pub fn acquire(path: &Path, instance: &str) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(io)?;
                let pid = match pid.trim() {
                    "" => "(unknown)".to_owned(),
                    known => known.to_owned(),
                };
                return Err(LockError::Held { instance: instance.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        Self::sign(file).map_err(io)
    }

    /// The lock of a daemon that has handed it over: nobody else could have had it in between.
    ///
    /// # Errors
    /// When it is the lock of something else; I/O errors.
    pub fn inherit(path: &Path, fd: OwnedFd) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let file = File::from(fd);
        let (ours, theirs) = (path.metadata().map_err(io)?, file.metadata().map_err(io)?);
        if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            return Err(io(io::Error::other("another file was handed over for it")));
        }
        // It is locked already, by the same open file.
        match file.try_lock() {
            Ok(()) => Self::sign(file).map_err(io),
            Err(TryLockError::WouldBlock) => Err(io(io::ErrorKind::ResourceBusy.into())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    fn sign(mut file: File) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { file })
    }
}

impl AsFd for InstanceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        let first = InstanceLock::acquire(&path, "t").expect("first");
        let error = InstanceLock::acquire(&path, "t").expect_err("second");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        InstanceLock::acquire(&path, "t").expect("after the first is gone");
    }
}
