//! A guest's memory, and a driver that writes anything into it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_ring::{GuestMemory, MappedRegion, RegionSpec, ResumeFile, ResumeRecord, RingConfig};

use crate::input::Input;

/// Descriptors of the ring.
pub(crate) const SIZE: u16 = 16;
/// Two regions of this size, with a hole between them in the guest's addresses. The ring is in the first.
pub(crate) const REGION: u64 = 8192;
const GUEST: u64 = 0x1_0000_0000;
const USER: u64 = 0x7f00_0000_0000;
const DESC: u64 = 0;
/// Of a packed ring, the driver's event suppression area.
const AVAIL: u64 = 0x400;
/// Of a packed ring, the device's.
const USED: u64 = 0x800;
/// Bytes of both regions that may be written as buffers.
const BUFFERS: u64 = 0x1000;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

/// How the ring lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Split,
    Packed,
}

/// A descriptor's place in a packed ring, of the two turns that have different wrap counters; the first has 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place(u16);

impl Place {
    pub(crate) fn new(number: u8) -> Self {
        Self(u16::from(number) % (2 * SIZE))
    }

    /// Of the lower half of what GET_VRING_BASE answers.
    pub(crate) fn from_bits(bits: u32) -> Self {
        let [low, high, ..] = bits.to_le_bytes();
        let bits = u16::from_le_bytes([low, high]);
        Self(bits % SIZE + if bits & WRAP == 0 { SIZE } else { 0 })
    }

    pub(crate) fn bits(self) -> u16 {
        (self.0 % SIZE) | if self.0 < SIZE { WRAP } else { 0 }
    }

    fn next(self) -> Self {
        Self((self.0 + 1) % (2 * SIZE))
    }

    fn at(self) -> u64 {
        DESC + 16 * u64::from(self.0 % SIZE)
    }

    /// AVAIL and USED of what is offered here.
    fn offered(self) -> u16 {
        if self.0 < SIZE { F_AVAIL } else { F_USED }
    }

    /// AVAIL and USED of what was used here.
    fn used(self) -> u16 {
        if self.0 < SIZE { F_AVAIL | F_USED } else { 0 }
    }
}

/// Memory that is written by system calls, so that the mapping under test is nobody else's.
pub(crate) struct Guest {
    file: File,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) layout: Layout,
    /// A split ring's available index.
    avail: u16,
    /// Where a packed ring's next descriptor goes.
    place: Place,
    /// The device's own, of packed rings.
    records: Option<ResumeFile>,
}

impl Guest {
    pub(crate) fn new(layout: Layout) -> Self {
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
        let records = (layout == Layout::Packed).then(|| {
            let file = memfd_create("records", MemfdFlags::CLOEXEC).expect("a memfd");
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            ResumeFile::open(&path, 1).expect("a file of records")
        });
        let (memory, place) = (Arc::new(memory), Place::default());
        Self { file, memory, layout, avail: 0, place, records }
    }

    /// The record of a packed ring.
    pub(crate) fn record(&self) -> Option<ResumeRecord> {
        self.records.as_ref().map(|file| file.record(0, SIZE).expect("room for one ring"))
    }

    pub(crate) fn config(&self, event_idx: bool, in_order: bool, base: u32) -> RingConfig {
        RingConfig {
            packed: self.layout == Layout::Packed,
            in_order,
            size: SIZE,
            desc: USER + DESC,
            avail: USER + AVAIL,
            used: USER + USED,
            base,
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

    /// Where the chain that begins here ends in a packed ring.
    pub(crate) fn behind(&self, place: Place) -> Place {
        let mut at = place;
        for _ in 0..SIZE {
            let flags = u16::from_le_bytes(self.read(at.at() + 14));
            at = at.next();
            if flags & F_NEXT == 0 {
                return at;
            }
        }
        panic!("a chain that does not end was taken");
    }

    /// Buffer ID and length of a descriptor that the device has used.
    pub(crate) fn used_descriptor(&self, place: Place) -> Option<(u16, u32)> {
        let entry: [u8; 16] = self.read(place.at());
        let [.., a, b, c, d, e, f, g, h] = entry;
        let flags = u16::from_le_bytes([g, h]);
        let len = u32::from_le_bytes([a, b, c, d]);
        assert_eq!(flags & F_WRITE != 0, len != 0, "a length without WRITE means nothing");
        let used = flags & (F_AVAIL | F_USED) == place.used();
        used.then_some((u16::from_le_bytes([e, f]), len))
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
                let descriptor = self.descriptor(input, step >> 4);
                self.write(table + index * 16, &descriptor);
            }
            3 | 4 if self.layout == Layout::Packed => {
                let owner = self.place.offered();
                let mut descriptor = self.descriptor(input, 0);
                let [.., low, high] = &mut descriptor;
                let flags = u16::from_le_bytes([*low, *high]) | owner;
                [*low, *high] = flags.to_le_bytes();
                self.write(self.place.at(), &descriptor);
                self.place = self.place.next();
            }
            5 if self.layout == Layout::Packed => {
                if step & 64 != 0 {
                    self.place = Place::new(input.u8());
                }
                let area = if step & 128 == 0 { AVAIL } else { USED };
                self.write(area, &input.array::<4>());
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
    /// Sixteen bytes that are nearly a descriptor; the lowest bits of `owner` say whose it is in a packed ring.
    fn descriptor(&self, input: &mut Input<'_>, owner: u8) -> [u8; 16] {
        let (addr, len, flags, index) = fields(input);
        let (third, fourth) = match self.layout {
            Layout::Split => (flags, index),
            Layout::Packed => {
                let bits = [0, F_AVAIL, F_USED, F_AVAIL | F_USED];
                (index, flags | bits[usize::from(owner & 3)])
            }
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&third.to_le_bytes());
        bytes[14..].copy_from_slice(&fourth.to_le_bytes());
        bytes
    }
}

/// Address, length, flags and next index or buffer ID of what is nearly a descriptor.
fn fields(input: &mut Input<'_>) -> (u64, u32, u16, u16) {
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
    (addr, len, u16::from(shape & 15), u16::from(input.u8() % 20))
}
