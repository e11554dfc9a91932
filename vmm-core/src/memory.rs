//! Guest RAM: one memfd, mapped shared, so that a vhost-user backend can map it too.
//!
//! RAM lies below [`layout::HOLE_START`] and, if there is more, goes on at
//! [`layout::HOLE_END`]; both parts come from the same file, sealed against resizing.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use crate::layout;

/// The guest's memory as the rest of the crate passes it around: cheap to clone.
pub type GuestMemory = GuestMemoryMmap<()>;

const MIB: u64 = 1 << 20;
/// Room for the boot data and a small kernel.
pub const MIN_SIZE: u64 = 2 * MIB;
/// The boot page tables and the guest physical addresses in use stop well above this.
pub const MAX_SIZE: u64 = 1 << 40;

/// Why the guest cannot have this memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("guest memory must be a whole number of MiB from 2 MiB to 1 TiB, not {0} bytes")]
    Size(u64),
    #[error("cannot create a memory file of {size} bytes for the guest")]
    File { size: u64, source: io::Error },
    #[error("cannot map {size} bytes of guest memory")]
    Map { size: u64, source: vm_memory::mmap::FromRangesError },
}

/// Creates `size` bytes of guest RAM.
///
/// # Errors
/// A size that is not a whole number of MiB between [`MIN_SIZE`] and [`MAX_SIZE`], or the
/// kernel's refusal.
pub fn allocate(size: u64) -> Result<GuestMemory, MemoryError> {
    if !size.is_multiple_of(MIB) || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(MemoryError::Size(size));
    }
    let file = memory_file(size).map_err(|source| MemoryError::File { size, source })?;
    let low = size.min(layout::HOLE_START);
    let mut ranges = vec![(0, 0, low)];
    if size > low {
        ranges.push((layout::HOLE_END, low, size - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (address, offset, len) in ranges {
        let clone = file.try_clone().map_err(|source| MemoryError::File { size, source })?;
        let len = usize::try_from(len).map_err(|_| MemoryError::Size(size))?;
        regions.push((GuestAddress(address), len, Some(FileOffset::new(clone, offset))));
    }
    GuestMemory::from_ranges_with_files(regions).map_err(|source| MemoryError::Map { size, source })
}

fn memory_file(size: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("netloom-vmm", flags)?;
    rustix::fs::ftruncate(&fd, size)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

/// Size of the part of RAM below the hole, in bytes.
#[must_use]
pub fn low_size(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, vm_memory::GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestMemoryRegion as _};

    use super::*;

    #[test]
    fn memory_is_one_sealed_file_shared_with_whoever_maps_it() {
        let memory = allocate(4 * MIB).unwrap();
        memory.write_obj(0x1234_5678_u32, GuestAddress(0x1000)).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        let mut seen = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut seen, 0x1000).unwrap();
        assert_eq!(u32::from_ne_bytes(seen), 0x1234_5678);
        assert!(file.file().set_len(MIB).is_err(), "a backend would get SIGBUS");
        assert_eq!(low_size(&memory), 4 * MIB);
    }

    #[test]
    fn memory_beyond_the_hole_goes_on_above_4_gib_in_the_same_file() {
        let memory = allocate(layout::HOLE_START + 64 * MIB).unwrap();
        let regions: Vec<_> = memory.iter().collect();
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[0].len(), layout::HOLE_START);
        assert_eq!(regions[1].start_addr().0, layout::HOLE_END);
        assert_eq!(regions[1].len(), 64 * MIB);
        assert_eq!(regions[1].file_offset().unwrap().start(), layout::HOLE_START);
        assert_eq!(low_size(&memory), layout::HOLE_START);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [0, MIB, 2 * MIB + 1, MAX_SIZE + MIB] {
            assert!(matches!(allocate(size), Err(MemoryError::Size(s)) if s == size));
        }
    }
}
