//! One region of a frontend's memory, mapped.

use std::os::fd::BorrowedFd;

use crate::mapping::{MapError, Mapping};

/// Where a region lies for the guest, for the frontend, and in its file. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address: what descriptors use.
    pub guest_addr: u64,
    pub size: u64,
    /// Address in the frontend's process: what ring addresses use.
    pub user_addr: u64,
    /// Where the region begins in the file.
    pub mmap_offset: u64,
}

/// Why memory could not be mapped, or a table of regions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("region at {guest_addr:#x}: {error}")]
    Region { guest_addr: u64, error: MapError },
    #[error("regions at {first:#x} and {second:#x} overlap")]
    Overlap { first: u64, second: u64 },
}

/// A shared mapping of one region. Unmapped on drop.
///
/// Invariant: `size` bytes of the mapping belong to the region, and no address of it overflows.
#[derive(Debug)]
pub struct MappedRegion {
    spec: RegionSpec,
    mapping: Mapping,
}

impl MappedRegion {
    /// Maps a region.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn map(spec: RegionSpec, fd: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let RegionSpec { guest_addr, size, user_addr, mmap_offset } = spec;
        let failed = |error| MemoryError::Region { guest_addr, error };
        if guest_addr.checked_add(size).is_none() || user_addr.checked_add(size).is_none() {
            return Err(failed(MapError::Size { size, offset: mmap_offset }));
        }
        let mapping = Mapping::new(fd, mmap_offset, size).map_err(failed)?;
        Ok(Self { spec, mapping })
    }

    #[must_use]
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// The file behind the region was cut short, and its memory is not the guest's any more.
    #[must_use]
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }

    pub(crate) fn poison(&self) {
        self.mapping.poison();
    }

    /// The first byte; `spec().size` bytes are mapped from there.
    #[inline]
    pub(crate) fn host(&self) -> *mut u8 {
        self.mapping.host()
    }
}
