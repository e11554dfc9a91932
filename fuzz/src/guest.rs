//! A guest's memory, and a driver that writes anything into it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_ring::{GuestMemory, MappedRegion, RegionSpec, RingConfig};

use crate::input::Input;

/// Descriptors of the ring.
pub(crate) const SIZE: u16 = 16;
/// Two regions of this size, with a hole between them in the guest's addresses. The ring is in the first.
pub(crate) const REGION: u64 = 8192;
const GUEST: u64 = 0x1_0000_0000;
const USER: u64 = 0x7f00_0000_0000;
const DESC: u64 = 0;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Bytes of both regions that may be written as buffers.
const BUFFERS: u64 = 0x1000;

/// Memory that is written by system calls, so that the mapping under test is nobody else's.
pub(crate) struct Guest {
    file: File,
    pub(crate) memory: Arc<GuestMemory>,
    avail: u16,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, 2 * REGION).expect("a small file");
        let file = File::from(fd);
        let map = |at: u64| {
            let spec = RegionSpec {
                guest_addr: GUEST + 2 * at * REGION,
                size: REGION,
                user_addr: USER + at * REGION,
                mmap_offset: at * REGION,
            };
            Arc::new(MappedRegion::map(spec, file.as_fd()).expect("a good region"))
        };
        let memory = GuestMemory::new(vec![map(0), map(1)]).expect("regions apart");
        Self { file, memory: Arc::new(memory), avail: 0 }
    }

    pub(crate) fn config(&self, event_idx: bool) -> RingConfig {
        RingConfig {
            packed: false,
            in_order: false,
            size: SIZE,
            desc: USER + DESC,
            avail: USER + AVAIL,
            used: USER + USED,
            base: 0,
            event_idx,
            indirect: true,
        }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let len = usize::try_from((2 * REGION).saturating_sub(at)).unwrap_or(0).min(bytes.len());
        self.file.write_all_at(&bytes[..len], at).expect("within the file");
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).expect("within the file");
        bytes
    }

    /// The used index as the driver sees it.
    pub(crate) fn used(&self) -> u16 {
        u16::from_le_bytes(self.read(USED + 2))
    }

    /// A used entry: head and length.
    pub(crate) fn used_entry(&self, index: u16) -> (u32, u32) {
        let entry: [u8; 8] = self.read(USED + 4 + 8 * u64::from(index % SIZE));
        let [a, b, c, d, e, f, g, h] = entry;
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    /// Does what the input says: writes anywhere, descriptors that are nearly right, heads, indices.
    pub(crate) fn scribble(&mut self, input: &mut Input<'_>) {
        let step = input.u8();
        match step % 6 {
            0 => {
                let at = u64::from(input.u16()) % (2 * REGION);
                self.write(at, input.sized());
            }
            1 | 2 => {
                // In the table, or in a table for indirect descriptors.
                let index = u64::from(input.u8() % 24);
                let table = if step & 8 != 0 { BUFFERS } else { DESC };
                let descriptor = descriptor(input);
                self.write(table + index * 16, &descriptor);
            }
            3 | 4 => {
                let head = u16::from(input.u8() % 20);
                self.write(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), &head.to_le_bytes());
                self.avail = self.avail.wrapping_add(1);
                self.write(AVAIL + 2, &self.avail.to_le_bytes());
            }
            _ => {
                self.avail = match step >> 4 {
                    0 => input.u16(),
                    jump => self.used().wrapping_add(u16::from(jump)),
                };
                self.write(AVAIL + 2, &self.avail.to_le_bytes());
                let event = input.u16();
                self.write(AVAIL + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
            }
        }
    }
}

/// Sixteen bytes that are nearly a descriptor.
fn descriptor(input: &mut Input<'_>) -> [u8; 16] {
    let shape = input.u8();
    let offset = u64::from(input.u16());
    let addr = match shape >> 6 {
        0 => GUEST + BUFFERS + offset % (REGION - BUFFERS),
        1 => GUEST + 2 * REGION + offset % REGION,
        2 => GUEST + offset,
        _ => u64::MAX - offset,
    };
    let len = match shape >> 4 & 3 {
        0 => u32::from(input.u8()),
        1 => u32::from(input.u16()),
        2 => 16 * u32::from(input.u8()),
        _ => input.u32(),
    };
    let flags = u16::from(shape & 15);
    let next = u16::from(input.u8() % 20);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
