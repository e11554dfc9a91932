//! A guest with one pair of rings whose descriptors never change. All access is by system calls on the memory's file.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend, message::VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_ring::{GuestMemory, MappedRegion, RegionSpec, RingConfig};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Frames of a burst, and descriptors of each ring: a burst is a turn of the ring.
pub(crate) const BURST: usize = DESCRIPTORS as usize;
const DESCRIPTORS: u16 = 64;
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;

const HDR: usize = 12;
/// Each ring has a stretch of its own; parts of it, and its buffers.
const RING: u64 = 1 << 20;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const BUFFER: u64 = 2048;
const SIZE: u64 = 2 * RING;
const GUEST: u64 = 1 << 30;
const USER: u64 = 0x7f00_0000_0000;

const WRITE: u16 = 2;
const VERSION_1: u64 = 1 << 32;
const RING_PACKED: u64 = 1 << 34;
const MRG_RXBUF: u64 = 1 << 15;
const PROTOCOL: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Split,
    Packed,
}

pub(crate) struct Guest {
    kind: Kind,
    bytes: usize,
    file: File,
    /// Bursts offered, by ring.
    turns: [u16; 2],
    kept: Option<(Frontend, Vec<EventFd>)>,
}

impl Guest {
    pub(crate) fn new(kind: Kind, bytes: usize) -> anyhow::Result<Guest> {
        let fd = memfd_create("hot-path", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, SIZE)?;
        let guest = Guest { kind, bytes, file: File::from(fd), turns: [0; 2], kept: None };
        for ring in [RX, TX] {
            let base = ring as u64 * RING;
            for slot in 0..BURST as u64 {
                let (len, flags) = guest.shape(ring);
                let mut desc = (GUEST + base + BUFFERS + slot * BUFFER).to_le_bytes().to_vec();
                desc.extend(len.to_le_bytes());
                if kind == Kind::Split {
                    desc.extend(flags.to_le_bytes());
                    desc.extend(0_u16.to_le_bytes());
                    let entry = u16::try_from(slot)?.to_le_bytes();
                    guest.file.write_all_at(&entry, base + AVAIL + 4 + 2 * slot)?;
                }
                guest.file.write_all_at(&desc, base + 16 * slot)?;
            }
            // No signals: flags of the avail ring, or of the driver's event suppression area.
            let place = if kind == Kind::Split { 0 } else { 2 };
            guest.file.write_all_at(&1_u16.to_le_bytes(), base + AVAIL + place)?;
        }
        Ok(guest)
    }

    /// Length and flags of a ring's descriptors.
    fn shape(&self, ring: usize) -> (u32, u16) {
        let frame = u32::try_from(HDR + self.bytes).unwrap_or(0);
        if ring == RX { (2048, WRITE) } else { (frame, 0) }
    }

    /// Writes the frames of one side.
    pub(crate) fn fill(&mut self, side: u8) -> anyhow::Result<()> {
        for slot in 0..BURST as u64 {
            let at = RING + BUFFERS + slot * BUFFER + HDR as u64;
            self.file.write_all_at(&frame(self.bytes, side), at)?;
        }
        Ok(())
    }

    pub(crate) fn map(&self) -> anyhow::Result<Arc<GuestMemory>> {
        let spec = RegionSpec { guest_addr: GUEST, size: SIZE, user_addr: USER, mmap_offset: 0 };
        let region = MappedRegion::map(spec, self.file.as_fd())?;
        Ok(Arc::new(GuestMemory::new(vec![Arc::new(region)])?))
    }

    pub(crate) fn config(&self, ring: usize) -> RingConfig {
        let base = USER + ring as u64 * RING;
        RingConfig {
            packed: self.kind == Kind::Packed,
            size: 64,
            desc: base,
            avail: base + AVAIL,
            used: base + USED,
            base: self.base(),
            event_idx: false,
            indirect: false,
            in_order: false,
        }
    }

    /// Where the rings begin: with a packed ring the wrap counter is set.
    fn base(&self) -> u32 {
        if self.kind == Kind::Packed { 1 << 15 } else { 0 }
    }

    /// Offers a whole ring once more.
    pub(crate) fn offer(&mut self, ring: usize) -> anyhow::Result<()> {
        let base = ring as u64 * RING;
        let turn = &mut self.turns[ring];
        *turn = turn.wrapping_add(1);
        let turn = *turn;
        if self.kind == Kind::Split {
            let index = turn.wrapping_mul(DESCRIPTORS);
            self.file.write_all_at(&index.to_le_bytes(), base + AVAIL + 2)?;
            return Ok(());
        }
        let (len, flags) = self.shape(ring);
        // AVAIL in odd turns, USED in even ones (virtio 1.3 §2.8.1).
        let flags = flags | if turn % 2 == 1 { 1 << 7 } else { 1 << 15 };
        for slot in 0..BURST as u64 {
            let mut half = len.to_le_bytes().to_vec();
            half.extend(u16::try_from(slot)?.to_le_bytes());
            half.extend(flags.to_le_bytes());
            self.file.write_all_at(&half, base + 16 * slot + 8)?;
        }
        Ok(())
    }

    /// Everything offered has been given back.
    pub(crate) fn is_used(&self, ring: usize) -> anyhow::Result<bool> {
        let base = ring as u64 * RING;
        let turn = self.turns[ring];
        if self.kind == Kind::Split {
            return Ok(self.word(base + USED + 2)? == turn.wrapping_mul(DESCRIPTORS));
        }
        let both = 1 << 7 | 1 << 15;
        let flags = self.word(base + 16 * (BURST as u64 - 1) + 14)? & both;
        Ok(flags == if turn % 2 == 1 { both } else { 0 })
    }

    /// Waits until the worker wants to be kicked.
    pub(crate) fn wait_armed(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let place = if self.kind == Kind::Split { 0 } else { 2 };
        while self.word(RING + USED + place)? & 1 != 0 {
            ensure!(Instant::now() < deadline, "the worker does not come to rest");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn word(&self, at: u64) -> anyhow::Result<u16> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Hands memory and rings to a backend.
    pub(crate) fn attach(&mut self, stream: UnixStream) -> anyhow::Result<()> {
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner()?;
        let mut features = VERSION_1 | PROTOCOL | MRG_RXBUF;
        if self.kind == Kind::Packed {
            features |= RING_PACKED;
        }
        let missing = features & !frontend.get_features()?;
        ensure!(missing == 0, "features {missing:#x} are not offered");
        frontend.set_features(features)?;
        frontend.get_protocol_features()?;
        frontend.set_protocol_features(VhostUserProtocolFeatures::empty())?;
        frontend.set_features(features)?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: SIZE,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }])?;
        // Not armed yet, so that `wait_armed` waits.
        let place = if self.kind == Kind::Split { 0 } else { 2 };
        self.file.write_all_at(&1_u16.to_le_bytes(), RING + USED + place)?;
        let mut kept = Vec::new();
        for ring in [RX, TX] {
            let base = USER + ring as u64 * RING;
            let addresses = VringConfigData {
                queue_max_size: 64,
                queue_size: 64,
                flags: 0,
                desc_table_addr: base,
                used_ring_addr: base + USED,
                avail_ring_addr: base + AVAIL,
                log_addr: None,
            };
            frontend.set_vring_num(ring, 64)?;
            frontend.set_vring_base(ring, u16::try_from(self.base())?)?;
            frontend.set_vring_addr(ring, &addresses)?;
            let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
            frontend.set_vring_call(ring, &call)?;
            frontend.set_vring_kick(ring, &kick)?;
            frontend.set_vring_enable(ring, true)?;
            kept.extend([kick, call]);
        }
        // A question is answered only after all of the above was done.
        frontend.get_features()?;
        self.kept = Some((frontend, kept));
        Ok(())
    }
}

/// A UDP frame from one of two stations to the other.
pub(crate) fn frame(bytes: usize, side: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2 - side, 2, 0, 0, 0, 0, 1 + side, 8, 0, 0x45];
    frame.resize(bytes, 0);
    frame
}
