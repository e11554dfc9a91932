//! One region of a frontend's memory, mapped.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::poison::Registration;

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
    #[error(
        "region at {guest_addr:#x}: size {size:#x} with offset {mmap_offset:#x} is empty or overflows"
    )]
    Size { guest_addr: u64, size: u64, mmap_offset: u64 },
    #[error("region at {guest_addr:#x}: needs {needed:#x} bytes of its file, which has {file:#x}")]
    FileTooSmall { guest_addr: u64, needed: u64, file: u64 },
    #[error(
        "region at {guest_addr:#x}: its file is not on tmpfs, a memfd or hugetlbfs (file system type {kind:#x}); use memory-backend-memfd or a file below /dev/shm or /dev/hugepages"
    )]
    FileSystem { guest_addr: u64, kind: u64 },
    #[error("region at {guest_addr:#x}: {call} failed")]
    System { guest_addr: u64, call: &'static str, source: io::Error },
    #[error("regions at {first:#x} and {second:#x} overlap")]
    Overlap { first: u64, second: u64 },
    #[error("too many memory regions are mapped")]
    TooMany,
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A shared mapping of one region. Unmapped on drop.
///
/// Invariant: `host..host+size` lies inside `base..base+length`, which stays mapped readable and writable: from the
/// file, or, after a fault, anonymously in the same place.
#[derive(Debug)]
pub struct MappedRegion {
    spec: RegionSpec,
    host: *mut u8,
    base: *mut u8,
    length: usize,
    registration: Option<Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread; bytes are touched only through routines that tolerate
// racing writers, and the other fields are immutable.
unsafe impl Send for MappedRegion {}
// SAFETY: as above.
unsafe impl Sync for MappedRegion {}

impl MappedRegion {
    /// Maps a region. The file must be on tmpfs (memfd) or hugetlbfs: on others a page fault could block or fail in
    /// ways that the frontend controls (a FUSE file can block for ever).
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn map(spec: RegionSpec, fd: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let RegionSpec { guest_addr, size, user_addr, mmap_offset } = spec;
        let system = |call| {
            move |source: rustix::io::Errno| MemoryError::System {
                guest_addr,
                call,
                source: source.into(),
            }
        };
        let bad_size = || MemoryError::Size { guest_addr, size, mmap_offset };
        let end = mmap_offset.checked_add(size).filter(|_| size > 0).ok_or_else(bad_size)?;
        if guest_addr.checked_add(size).is_none() || user_addr.checked_add(size).is_none() {
            return Err(bad_size());
        }
        let kind = fstatfs(fd).map_err(system("fstatfs"))?;
        // The field's type differs between targets; only 32 bits are the magic.
        let magic = u64::try_from(kind.f_type).unwrap_or(0);
        if magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC {
            return Err(MemoryError::FileSystem { guest_addr, kind: magic });
        }
        let file = u64::try_from(fstat(fd).map_err(system("fstat"))?.st_size).unwrap_or(0);
        if end > file {
            return Err(MemoryError::FileTooSmall { guest_addr, needed: end, file });
        }
        // Huge pages are mapped and unmapped whole.
        let page = u64::try_from(kind.f_bsize).ok().filter(|page| page.is_power_of_two());
        let page = page.unwrap_or(4096).max(4096);
        let start = mmap_offset & !(page - 1);
        let length = end.checked_next_multiple_of(page).ok_or_else(bad_size)? - start;
        let length = usize::try_from(length).map_err(|_| bad_size())?;
        let into = usize::try_from(mmap_offset - start).map_err(|_| bad_size())?;
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
        let mut region =
            Self { spec, host: base.wrapping_add(into), base, length, registration: None };
        // SAFETY: the range is this region's own mapping, which only its Drop removes, after the registration.
        region.registration = unsafe { Registration::new(base.expose_provenance(), length) };
        if region.registration.is_none() {
            return Err(MemoryError::TooMany);
        }
        Ok(region)
    }

    #[must_use]
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// The file behind the region was cut short, and its memory is not the guest's any more.
    #[must_use]
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::is_poisoned)
    }

    pub(crate) fn poison(&self) {
        if let Some(registration) = &self.registration {
            registration.poison();
        }
    }

    /// The first byte; `spec().size` bytes are mapped from there.
    #[inline]
    pub(crate) fn host(&self) -> *mut u8 {
        self.host
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        self.registration = None; // The handler forgets the range before others may get it.
        // SAFETY: the range is this region's own mapping; slices and rings into it borrow or share the region, so none is
        // left. Unmapping whole pages that are mapped does not fail.
        let _ = unsafe { munmap(self.base.cast(), self.length) };
    }
}
