//! Where a port's packed rings are, for the process after this one.
//!
//! The file is made with the first packed ring and goes with the port. A record counts until the frontend stops its ring in order;
//! then GET_VRING_BASE has told the frontend.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use virtio_ring::{ResumeFile, ResumeRecord, RingConfig};

#[derive(Debug, Default)]
pub(crate) struct ResumeRecords {
    path: Option<PathBuf>,
    rings: usize,
    file: Mutex<Option<ResumeFile>>,
}

impl ResumeRecords {
    /// Without a path nothing is kept.
    pub(crate) fn new(path: Option<PathBuf>, rings: usize) -> Self {
        Self { path, rings, file: Mutex::default() }
    }

    /// The record of a ring; `None` for one that needs none.
    pub(super) fn record(&self, at: usize, config: &RingConfig) -> Option<ResumeRecord> {
        let path = self.path.as_ref().filter(|_| config.packed)?;
        let found = self.open(path).and_then(|file| file.record(at, config.size));
        found
            .inspect_err(|error| {
                let path = path.display();
                tracing::warn!(
                    %path, ring = at, %error,
                    "a packed ring without a resume record cannot go on after a crash of the daemon"
                );
            })
            .ok()
    }

    /// The frontend knows where the ring is.
    pub(super) fn forget(&self, at: usize) {
        if let Some(path) = self.path.as_ref().filter(|path| path.exists())
            && let Ok(file) = self.open(path)
        {
            file.forget(at);
        }
    }

    /// The port is no more.
    pub(crate) fn remove(&self) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }

    fn open(&self, path: &std::path::Path) -> io::Result<ResumeFile> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        Ok(file.insert(ResumeFile::open(path, self.rings)?).clone())
    }
}
