//! The dirty log of one connection.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vhost_user::Device as Told;
use virtio_ring::{DirtyLog, MapError};

/// The log as mapped, with the file that it came from.
#[derive(Clone, Debug, Default)]
pub(super) struct Logging(Option<(Arc<OwnedFd>, Arc<DirtyLog>)>);

/// What rings have to do.
pub(super) enum Need<'l> {
    /// Run without a log.
    Nothing,
    Log(&'l Arc<DirtyLog>),
    /// Wait: they must log, and the log is still to come.
    Wait,
}

impl Logging {
    /// The log that the frontend names now.
    pub(super) fn map(told: &Told) -> Result<Self, MapError> {
        let Some(vhost_user::Log { size, offset, fd }) = &told.log else { return Ok(Self(None)) };
        let log = DirtyLog::map(fd.as_fd(), *offset, *size)?;
        Ok(Self(Some((Arc::clone(fd), Arc::new(log)))))
    }

    /// Unmaps a log that the frontend does not name any more.
    pub(super) fn forget(&mut self, told: &Told) {
        let named = told.log.as_ref().map(|log| &log.fd);
        self.0.take_if(|(file, _)| named.is_none_or(|named| !Arc::ptr_eq(named, file)));
    }

    pub(super) fn need(&self, told: &Told) -> Need<'_> {
        match &self.0 {
            _ if !told.is_logging() => Need::Nothing,
            Some((_, log)) => Need::Log(log),
            None => Need::Wait,
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, log)| log.is_poisoned())
    }
}
