//! A part of a frontend's file, mapped shared.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::poison::Registration;

/// Why a file of the frontend cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("size {size:#x} with offset {offset:#x} is empty or overflows")]
    Size { size: u64, offset: u64 },
    #[error("needs {needed:#x} bytes of its file, which has {file:#x}")]
    FileTooSmall { needed: u64, file: u64 },
    #[error(
        "its file is not on tmpfs, a memfd or hugetlbfs (file system type {kind:#x}); use memory-backend-memfd or a file below /dev/shm or /dev/hugepages"
    )]
    FileSystem { kind: u64 },
    #[error("{call} failed: {source}")]
    System { call: &'static str, source: io::Error },
    #[error("too many files are mapped")]
    TooMany,
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Unmapped on drop.
///
/// Invariant: the bytes asked for, from `host` on, lie inside `base..base+length`, which stays mapped readable and writable: from
/// the file, or, after a fault, anonymously in the same place.
#[derive(Debug)]
pub(crate) struct Mapping {
    host: *mut u8,
    base: *mut u8,
    length: usize,
    registration: Option<Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread; bytes are touched only through routines that tolerate
// racing writers, and the other fields are immutable.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes from `offset` on. The file must be on tmpfs (memfd) or hugetlbfs: on others a page fault could
    /// block or fail in ways that the frontend controls (a FUSE file can block for ever).
    ///
    /// # Errors
    /// See [`MapError`].
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, size: u64) -> Result<Self, MapError> {
        let system = |call| {
            move |source: rustix::io::Errno| MapError::System { call, source: source.into() }
        };
        let bad_size = || MapError::Size { size, offset };
        let end = offset.checked_add(size).filter(|_| size > 0).ok_or_else(bad_size)?;
        let kind = fstatfs(fd).map_err(system("fstatfs"))?;
        // The field's type differs between targets; only 32 bits are the magic.
        let magic = u64::try_from(kind.f_type).unwrap_or(0);
        if magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC {
            return Err(MapError::FileSystem { kind: magic });
        }
        let file = u64::try_from(fstat(fd).map_err(system("fstat"))?.st_size).unwrap_or(0);
        if end > file {
            return Err(MapError::FileTooSmall { needed: end, file });
        }
        // Huge pages are mapped and unmapped whole.
        let page = u64::try_from(kind.f_bsize).ok().filter(|page| page.is_power_of_two());
        let page = page.unwrap_or(4096).max(4096);
        let start = offset & !(page - 1);
        let length = end.checked_next_multiple_of(page).ok_or_else(bad_size)? - start;
        let length = usize::try_from(length).map_err(|_| bad_size())?;
        let into = usize::try_from(offset - start).map_err(|_| bad_size())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap(
                core::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                start,
            )
        }
        .map_err(system("mmap"))?;
        // SAFETY: the range was mapped just now; keeping it out of core dumps changes no contents. Its failure costs
        // nothing but a larger dump.
        let _ = unsafe { madvise(base, length, Advice::LinuxDontDump) };
        let base = base.cast::<u8>();
        let mut mapping = Self { host: base.wrapping_add(into), base, length, registration: None };
        // SAFETY: the range is this mapping's own, which only its Drop removes, after the registration.
        mapping.registration = unsafe { Registration::new(base.expose_provenance(), length) };
        if mapping.registration.is_none() {
            return Err(MapError::TooMany);
        }
        Ok(mapping)
    }

    /// The first byte that was asked for.
    #[inline]
    pub(crate) fn host(&self) -> *mut u8 {
        self.host
    }

    /// The file was cut short, and the memory is not the frontend's any more.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::is_poisoned)
    }

    pub(crate) fn poison(&self) {
        if let Some(registration) = &self.registration {
            registration.poison();
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.registration = None; // The handler forgets the range before others may get it.
        // SAFETY: the range is this mapping's own; what points into it borrows or shares the owner, so nothing is left.
        // Unmapping whole pages that are mapped does not fail.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}
