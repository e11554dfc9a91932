//! Descriptors beside a state that names them by their place in a list.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Descriptors on their way to another process.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// Those that arrived, in the order in which they were put.
    pub fn new(fds: impl IntoIterator<Item = OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Adds a copy of a descriptor; returns its place.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn put(&mut self, fd: impl AsFd) -> io::Result<u32> {
        let place = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        self.0.push(Some(fd.as_fd().try_clone_to_owned()?));
        Ok(place)
    }

    /// Takes the descriptor from its place, where it is no more then.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn take(&mut self, place: u32) -> io::Result<OwnedFd> {
        let slot = usize::try_from(place).ok().and_then(|place| self.0.get_mut(place));
        slot.and_then(Option::take).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no descriptor {place}"))
        })
    }

    /// Those that were not taken.
    pub fn into_vec(self) -> Vec<OwnedFd> {
        self.0.into_iter().flatten().collect()
    }
}
