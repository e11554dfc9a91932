//! The dirty log: which pages of a guest the device wrote, for a frontend that migrates it.
//!
//! A bitmap in memory of the frontend, one bit for each 4 KiB of guest addresses from 0 on (vhost-user specification,
//! "Migration"). The frontend fetches and clears it while we set bits. A bit is set after the bytes are written, so that whoever
//! clears it and then reads the page has them, or finds the bit set again.

use core::sync::atomic::{AtomicU8, Ordering};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::mapping::{MapError, Mapping};
use crate::{GuestMemory, GuestSlice};

/// Bytes for which one bit stands (`VHOST_LOG_PAGE`).
pub const LOG_PAGE: u64 = 4096;

/// A frontend's log, mapped. Unmapped on drop.
///
/// Invariant: `size` bytes of the mapping are the log.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    size: u64,
}

impl DirtyLog {
    /// Maps `size` bytes from `offset` on. The file must be of the same kinds as a memory region's.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(fd: BorrowedFd<'_>, offset: u64, size: u64) -> Result<Self, MapError> {
        Ok(Self { mapping: Mapping::new(fd, offset, size)?, size })
    }

    /// The file behind the log was cut short: what was noted since is lost.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }

    /// Notes a write of `len` bytes at a guest address. What lies beyond the log's end is not noted.
    pub fn mark(&self, addr: u64, len: u64) {
        let last = len.checked_sub(1).and_then(|more| addr.checked_add(more));
        let (Some(last), Some(end)) = (last, self.size.checked_mul(8)) else { return };
        for page in addr / LOG_PAGE..(last / LOG_PAGE + 1).min(end) {
            // Not truncated: below the size of a mapping.
            let byte = self.mapping.host().wrapping_add((page / 8) as usize);
            // SAFETY: `page / 8` is below `size`, so the byte is mapped; others access it as one unit or a larger one.
            // WHY UNSAFE: no Rust reference may point into memory that another process writes.
            unsafe { AtomicU8::from_ptr(byte) }.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    /// Notes a write of `len` bytes to slices of `memory`, from the first on.
    #[cold]
    #[inline(never)]
    pub fn mark_slices(&self, memory: &GuestMemory, slices: &[GuestSlice<'_>], mut len: usize) {
        for slice in slices {
            let part = slice.first(len);
            if let Some(addr) = memory.guest_addr(part.as_ptr()) {
                self.mark(addr, part.len() as u64);
            }
            len -= part.len();
        }
    }
}

/// A log, and where a part of a ring that the device writes is noted in it.
#[derive(Clone, Debug)]
pub(crate) struct PartLog {
    log: Arc<DirtyLog>,
    /// Guest address of the part's first byte.
    start: u64,
}

impl PartLog {
    /// `None` for a part that lies outside of the memory.
    pub(crate) fn new(log: &Arc<DirtyLog>, memory: &GuestMemory, part: *const u8) -> Option<Self> {
        memory.guest_addr(part).map(|start| Self::at(log, start))
    }

    pub(crate) fn at(log: &Arc<DirtyLog>, start: u64) -> Self {
        Self { log: Arc::clone(log), start }
    }

    /// Notes a write of `len` bytes at `offset` of the part. Out of line: the rings' code is as without it.
    #[cold]
    #[inline(never)]
    pub(crate) fn mark(&self, offset: usize, len: usize) {
        if let Some(addr) = self.start.checked_add(offset as u64) {
            self.log.mark(addr, len as u64);
        }
    }
}
