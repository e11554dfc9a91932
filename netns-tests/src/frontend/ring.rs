//! Driver side of a split ring (virtio 1.3 §2.7), written to notice a backend that breaks its rules.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{bail, ensure};

use super::memory::{GUEST_BASE, Memory};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

/// Bytes to set aside for one ring of up to 1024 descriptors.
pub(crate) const RING_BYTES: usize = 0x1_0000;

/// Offsets of a ring's parts in its memory.
#[derive(Clone, Copy, Debug)]
pub struct RingLayout {
    pub num: u16,
    pub desc: usize,
    pub avail: usize,
    pub used: usize,
}

impl RingLayout {
    /// A ring of up to 1024 descriptors at a page boundary.
    #[must_use]
    pub fn at(start: usize, num: u16) -> RingLayout {
        assert!(num <= 1024 && start.is_multiple_of(4096));
        RingLayout { num, desc: start, avail: start + 0x6000, used: start + 0x8000 }
    }

    /// Offset of one descriptor.
    #[must_use]
    pub fn desc_at(&self, index: u16) -> usize {
        self.desc + usize::from(index) * 16
    }

    /// Offset of one entry of the available ring, at the wrapped index.
    #[must_use]
    pub fn avail_at(&self, index: u16) -> usize {
        self.avail + 4 + usize::from(index % self.num) * 2
    }
}

/// Tells anybody how full a ring is.
#[derive(Clone, Debug)]
pub struct Gauge {
    memory: Arc<Memory>,
    layout: RingLayout,
}

impl Gauge {
    /// Chains that the device has not used: of a receiving ring, buffers that it can still fill.
    #[must_use]
    pub fn open(&self) -> u16 {
        let avail = self.memory.load_u16(self.layout.avail + 2);
        avail.wrapping_sub(self.memory.load_u16(self.layout.used + 2))
    }

    /// Descriptors of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.layout.num
    }
}

/// One stretch of guest memory in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Offset in the memory (not yet a guest address).
    pub at: usize,
    pub len: usize,
    /// The device writes it.
    pub writable: bool,
}

/// The driver's end.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    layout: RingLayout,
    event_idx: bool,
    free: Vec<u16>,
    /// By head: descriptors of the chain, the caller's token and its writable bytes.
    chains: Vec<Option<(Vec<u16>, usize, usize)>>,
    avail: u16,
    used: u16,
    fewest_open: u16,
}

impl Ring {
    #[must_use]
    pub fn new(memory: Arc<Memory>, layout: RingLayout, event_idx: bool) -> Ring {
        let ring = Ring {
            memory,
            layout,
            event_idx,
            free: (0..layout.num).rev().collect(),
            chains: vec![None; usize::from(layout.num)],
            avail: 0,
            used: 0,
            fewest_open: layout.num,
        };
        ring.set_interrupts(false);
        ring
    }

    #[must_use]
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Fewest chains that the device had left when [`Ring::pop`] looked. A device that has run out stays so until then,
    /// so 0 is never missed.
    #[must_use]
    pub fn fewest_open(&self) -> u16 {
        self.fewest_open
    }

    /// For others to see how full the ring is.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge { memory: Arc::clone(&self.memory), layout: self.layout }
    }

    /// Chains that the device has not given back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.avail.wrapping_sub(self.used)
    }

    /// Where a backend that connects anew goes on: after what it has given back, in order.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.memory.load_u16(self.layout.used + 2)
    }

    /// Puts a chain on offer. `table`: offset for an indirect table. `Ok(None)`: no descriptor free.
    /// Returns whether the device wants a kick.
    pub fn push(&mut self, pieces: &[Piece], table: Option<usize>, token: usize) -> Option<bool> {
        let wanted = if table.is_some() { 1 } else { pieces.len() };
        if self.free.len() < wanted || wanted == 0 {
            return None;
        }
        let mine = self.free.split_off(self.free.len() - wanted);
        match table {
            None => {
                for (n, piece) in pieces.iter().enumerate() {
                    let next = mine.get(n + 1).copied();
                    self.write_desc(self.layout.desc_at(mine[n]), *piece, next);
                }
            }
            Some(table) => {
                for (n, piece) in pieces.iter().enumerate() {
                    let next = u16::try_from(n + 1).ok().filter(|_| n + 1 < pieces.len());
                    self.write_desc(table + n * 16, *piece, next);
                }
                let len = pieces.len() * 16;
                let at = self.layout.desc_at(mine[0]);
                self.write_raw(at, guest(table), len, INDIRECT, 0);
            }
        }
        let head = mine[0];
        let writable = pieces.iter().filter(|piece| piece.writable).map(|piece| piece.len).sum();
        self.chains[usize::from(head)] = Some((mine, token, writable));
        self.memory.store_u16(self.layout.avail_at(self.avail), head);
        let old = self.avail;
        self.avail = self.avail.wrapping_add(1);
        self.memory.store_u16(self.layout.avail + 2, self.avail);
        fence(Ordering::SeqCst);
        Some(self.kick_wanted(old))
    }

    /// The next chain that the device gave back: the caller's token and the bytes written.
    ///
    /// # Errors
    /// When the device gives back what it does not have, or says that it wrote more than there is room.
    pub fn pop(&mut self) -> anyhow::Result<Option<(usize, usize)>> {
        let used = self.memory.load_u16(self.layout.used + 2);
        let ready = used.wrapping_sub(self.used);
        if ready == 0 {
            return Ok(None);
        }
        ensure!(
            ready <= self.in_flight(),
            "the device gave back {ready} chains of {}",
            self.in_flight()
        );
        self.fewest_open = self.fewest_open.min(self.in_flight() - ready);
        let entry = self.layout.used + 4 + usize::from(self.used % self.layout.num) * 8;
        let head = self.memory.load_u32(entry) as usize;
        let len = self.memory.load_u32(entry + 4) as usize;
        let Some((mine, token, writable)) = self.chains.get_mut(head).and_then(Option::take) else {
            bail!("the device gave back chain {head}, which it does not have");
        };
        ensure!(len <= writable, "the device wrote {len} bytes into room for {writable}");
        self.free.extend(mine);
        self.used = self.used.wrapping_add(1);
        Ok(Some((token, len)))
    }

    /// Asks for an interrupt at the next chain given back; `true` if one is there already.
    pub fn arm(&self) -> bool {
        self.set_interrupts(true);
        fence(Ordering::SeqCst);
        self.memory.load_u16(self.layout.used + 2) != self.used
    }

    fn set_interrupts(&self, wanted: bool) {
        if self.event_idx {
            // An event index just behind is the farthest away.
            let event = if wanted { self.used } else { self.used.wrapping_sub(1) };
            self.memory.store_u16(self.layout.avail + 4 + usize::from(self.layout.num) * 2, event);
        } else {
            self.memory.store_u16(self.layout.avail, if wanted { 0 } else { NO_INTERRUPT });
        }
    }

    fn kick_wanted(&self, old: u16) -> bool {
        if self.event_idx {
            let at = self.layout.used + 4 + usize::from(self.layout.num) * 8;
            let event = self.memory.load_u16(at);
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            self.memory.load_u16(self.layout.used) & NO_NOTIFY == 0
        }
    }

    fn write_desc(&self, at: usize, piece: Piece, next: Option<u16>) {
        let flags = if piece.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        self.write_raw(at, guest(piece.at), piece.len, flags, next.unwrap_or(0));
    }

    fn write_raw(&self, at: usize, addr: u64, len: usize, flags: u16, next: u16) {
        self.memory.write(at, &desc(addr, u32::try_from(len).unwrap_or(u32::MAX), flags, next));
    }
}

/// The bytes of one descriptor.
pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&addr.to_le_bytes());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    out[12..14].copy_from_slice(&flags.to_le_bytes());
    out[14..].copy_from_slice(&next.to_le_bytes());
    out
}

/// Guest address of an offset.
fn guest(at: usize) -> u64 {
    GUEST_BASE + at as u64
}
