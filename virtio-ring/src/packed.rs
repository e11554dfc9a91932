//! The packed layout (virtio 1.3 §2.8).

mod resume;

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::Arc;

use crate::chain::MAX_BURST;
use crate::descriptor::{DESC_LEN, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, Plain, Walk, index};
use crate::journal::{Journal, Publication, was_written};
use crate::log::PartLog;
use crate::memory::Hint;
use crate::position::{F_OWNER, Position};
use crate::ring::{Limit, RingConfig, RingError};
use crate::{ChainBuf, ChainError, Direction, DirtyLog, GuestMemory};
use resume::Doubt;

const F_KIND: u16 = F_NEXT | F_WRITE | F_INDIRECT;

/// Event suppression (virtio 1.3 §2.8.10): what the flags of an area say.
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;
/// An offset that means nothing where the flags do not name a descriptor, and is not zero: an area that is all zero was set up anew.
const NO_OFFSET: u16 = 0x7fff;

/// The device side of a packed ring. Chains are used in the order in which they were offered, so that one position says how far both
/// sides are; see [`Ring`](crate::Ring).
///
/// Invariant: `desc` points to `size` descriptors, `driver` and `device` to an event suppression structure each, inside
/// regions that `memory` keeps mapped, aligned to 16 and 4 bytes; every place is below `size`.
#[derive(Debug)]
pub(crate) struct PackedRing {
    desc: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
    /// Whether the driver was asked about signals before: the first time always signals.
    signalled: bool,
    /// At the last look there was nothing to take any more.
    drained: bool,
    /// Looked at before anything is taken.
    doubt: Option<Doubt>,
    /// Up to here the driver knows that its chains are used.
    used: Position,
    /// The next descriptor to take, and how many there are from `used` to it.
    next: Position,
    open: u16,
    hint: Hint,
    /// Notes what is written to the descriptors.
    log: Option<PartLog>,
    /// Notes what is written to the device's area.
    area_log: Option<PartLog>,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into mappings of the process that `memory` keeps, not into anything of a thread.
unsafe impl Send for PackedRing {}

impl PackedRing {
    pub(crate) fn new(memory: &Arc<GuestMemory>, config: &RingConfig) -> Result<Self, RingError> {
        let RingConfig { size, desc, avail, used, base, .. } = *config;
        if size == 0 || size > 32_768 {
            return Err(RingError::Size(size));
        }
        let find = |part, addr, len, align| {
            memory.user_range(addr, len, align).ok_or(RingError::Address { part, addr })
        };
        // The upper half is where the device's used descriptors end. Some frontends leave it 0 (DPDK), and the two
        // are the same wherever nothing was in flight.
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let start = Position::new(base as u16, size).ok_or(RingError::Base { base, size })?;
        Ok(Self {
            desc: find("descriptor ring", desc, 16 * u64::from(size), 16)?,
            driver: find("driver event suppression area", avail, 4, 4)?,
            device: find("device event suppression area", used, 4, 4)?,
            size,
            event_idx: config.event_idx,
            indirect: config.indirect,
            in_order: config.in_order,
            signalled: false,
            drained: false,
            doubt: (base == 0).then_some(Doubt::Turn),
            used: start,
            next: start,
            open: 0,
            hint: Hint::default(),
            log: None,
            area_log: None,
            memory: Arc::clone(memory),
        })
    }

    /// An address given with VHOST_VRING_F_LOG is of no use here: it can only be that of one of the two parts.
    pub(crate) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>) {
        self.log = log.and_then(|log| PartLog::new(log, &self.memory, self.desc));
        self.area_log = log.and_then(|log| PartLog::new(log, &self.memory, self.device));
    }

    /// Where both sides are, for GET_VRING_BASE.
    pub(crate) fn next_index(&self) -> u32 {
        let position = u32::from(self.used.bits());
        position | position << 16
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    #[inline]
    pub(crate) fn gather(
        &mut self,
        taken: &mut u16,
        journal: &mut Journal,
        memory: &GuestMemory,
        direction: Direction,
        limit: Limit,
        buf: &mut ChainBuf,
    ) -> Result<(), RingError> {
        if self.doubt.is_some() {
            self.settle(journal);
        }
        let slots = journal.slots_mut().get_mut(usize::from(*taken)..).unwrap_or(&mut []);
        *taken += match direction {
            Direction::Readable => self.take::<true>(slots, memory, direction, limit, buf),
            Direction::Writable => self.take::<false>(slots, memory, direction, limit, buf),
            Direction::Both => self.take_lists(slots, memory, limit, buf),
        }?;
        Ok(())
    }

    /// Takes chains, and notes how many descriptors each has. Returns how many.
    #[inline(always)]
    fn take<const READABLE: bool>(
        &mut self,
        slots: &mut [u16],
        memory: &GuestMemory,
        direction: Direction,
        limit: Limit,
        buf: &mut ChainBuf,
    ) -> Result<u16, RingError> {
        let wanted = limit.chains.min(MAX_BURST);
        let (mut bytes, mut taken) = (0_u64, 0);
        let mut plain = Plain::<READABLE>::new(memory, self.hint);
        self.drained = false;
        while taken < wanted && !buf.is_full() && bytes < limit.bytes {
            // Descriptors side by side, in one turn of the ring.
            let (start, offered) = (self.next, self.next.offered());
            let room = (self.size - self.open).min(self.size - start.at());
            let run = index(wanted - taken).min(room);
            let mut i = 0;
            // What ends the run beside its length: there is no more, or a chain that is not plain.
            let mut other = None;
            let mut drained = room == 0;
            let n = buf.fill::<READABLE>(|| {
                if i == run || bytes >= limit.bytes {
                    return None;
                }
                let at = Position(start.0 + i);
                if self.owner(at) != offered {
                    drained = true;
                    return None;
                }
                let desc = self.entry(at);
                let [id, flags] = desc.words;
                let Some(slice) = plain.slice(&desc, flags & F_KIND) else {
                    other = Some(desc);
                    return None;
                };
                bytes += slice.len() as u64;
                i += 1;
                Some((id, slice))
            });
            slots.iter_mut().skip(taken).take(n).for_each(|place| *place = 1);
            self.advance(index(n));
            taken += n;
            if let Some(desc) = other {
                match self.take_list(memory, direction, desc, buf) {
                    Ok((len, n)) => {
                        bytes += u64::from(len);
                        note_slots(slots, taken, n);
                        self.advance(n);
                        taken += 1;
                    }
                    Err(error) if taken == 0 => return Err(error),
                    Err(_) => break, // The good ones first; the next burst begins with this one.
                }
            } else if drained {
                self.drained = true;
                break;
            }
        }
        self.hint = plain.hint;
        Ok(index(taken))
    }

    /// As [`take`](Self::take), for chains of several descriptors.
    fn take_lists(
        &mut self,
        slots: &mut [u16],
        memory: &GuestMemory,
        limit: Limit,
        buf: &mut ChainBuf,
    ) -> Result<u16, RingError> {
        let (mut bytes, mut taken) = (0_u64, 0);
        self.drained = false;
        while taken < limit.chains.min(MAX_BURST) && !buf.is_full() && bytes < limit.bytes {
            if !self.is_offered() {
                self.drained = true;
                break;
            }
            match self.take_list(memory, Direction::Both, self.entry(self.next), buf) {
                Ok((len, n)) => {
                    bytes += u64::from(len);
                    note_slots(slots, taken, n);
                    self.advance(n);
                    taken += 1;
                }
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(index(taken))
    }

    #[inline(always)]
    fn advance(&mut self, n: u16) {
        self.next = self.next.plus(n, self.size);
        self.open += n;
    }

    /// There is a descriptor to take.
    fn is_offered(&self) -> bool {
        self.open < self.size && self.owner(self.next) == self.next.offered()
    }

    /// Of the chains taken since the last publication, the first `kept` stay so.
    #[inline]
    pub(crate) fn keep(&mut self, kept: u16, taken: u16, journal: &Journal) {
        if kept < taken {
            let n = sum(journal.slots(), kept.into(), taken.into());
            self.next = self.next.minus(n, self.size);
            self.open -= n;
            self.drained = false;
        }
    }

    /// Writes the used descriptors of the first `count` chains taken; `taken` is before the publication. True when the driver
    /// wants a signal.
    #[inline]
    pub(crate) fn publish(&mut self, count: u16, taken: u16, journal: &mut Journal) -> bool {
        let n = if count == taken { self.open } else { sum(journal.slots(), 0, count.into()) };
        let (from, to) = (self.used, self.used.plus(n, self.size));
        journal.note(Publication { from: from.bits(), to: to.bits(), count });
        self.write_used(count, journal);
        journal.note(Publication { from: to.bits(), to: to.bits(), count: 0 });
        if count < taken {
            journal.slots_mut().copy_within(usize::from(count)..usize::from(taken), 0);
        }
        self.used = to;
        self.open -= n;
        self.wants_signal(from, n)
    }

    /// The one place where used descriptors are written: the first last, because the driver looks at that first.
    ///
    /// A driver that uses its chains in order (VIRTIO_F_IN_ORDER) and has nothing to learn but that they are used gets
    /// one descriptor for all, at the first one's place and with the last one's ID.
    #[inline]
    fn write_used(&mut self, count: u16, journal: &Journal) {
        let count = usize::from(count);
        let (done, slots) = (&journal.done()[..count], &journal.slots()[..count]);
        let Some((first, rest)) = done.split_first() else { return };
        let mut word = used_word(*first, self.used);
        if self.in_order && !rest.is_empty() && !done.iter().any(was_written) {
            word = used_word(rest[rest.len() - 1], self.used);
        } else {
            let mut at = self.used;
            for (entry, n) in rest.iter().zip(slots) {
                at = at.plus((*n).min(self.size), self.size);
                self.tail(at).store(used_word(*entry, at).to_le(), Ordering::Relaxed);
            }
        }
        self.tail(self.used).store(word.to_le(), Ordering::Release);
        if let Some(log) = &self.log {
            let n = usize::from(sum(slots, 0, slots.len()).min(self.size));
            let first = usize::from(self.used.at());
            let (to_end, rest) = (n.min(usize::from(self.size) - first), first + n);
            log.mark(first * DESC_LEN, to_end * DESC_LEN);
            log.mark(0, rest.saturating_sub(usize::from(self.size)) * DESC_LEN);
        }
    }

    #[inline]
    pub(crate) fn suppress_kicks(&mut self, journal: &Journal) {
        self.set_area(EVENT_DISABLE, NO_OFFSET, journal);
    }

    pub(crate) fn arm(&mut self, journal: &Journal) -> bool {
        if self.doubt.is_some() {
            self.settle(journal);
        }
        if self.event_idx {
            self.set_area(EVENT_DESC, self.next.bits(), journal);
        } else {
            self.set_area(EVENT_ENABLE, NO_OFFSET, journal);
        }
        // The request must be visible before the descriptor is read: the driver writes and reads them in the other order.
        fence(Ordering::SeqCst);
        self.is_offered()
    }

    fn set_area(&self, flags: u16, offset: u16, journal: &Journal) {
        let value = u32::from(offset) | u32::from(flags) << 16;
        journal.set_area(value);
        self.device_area().store(value.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.area_log {
            log.mark(0, size_of::<u32>());
        }
    }

    /// Whether the driver wants a signal after `n` descriptors from `from` on.
    #[inline]
    fn wants_signal(&mut self, from: Position, n: u16) -> bool {
        // The descriptors must be visible before the driver's wish is read: it writes and reads them in the other order.
        fence(Ordering::SeqCst);
        // SAFETY: by the invariant four aligned bytes are mapped there; the driver writes them in one or two units.
        let area = unsafe { AtomicU32::from_ptr(self.driver.cast()) };
        let area = u32::from_le(area.load(Ordering::Relaxed));
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (offset, flags) = (area as u16, (area >> 16) as u16 & 3);
        if flags != EVENT_DESC || !self.event_idx {
            return flags != EVENT_DISABLE;
        }
        let ahead = Position(offset).distance(from, self.size);
        !core::mem::replace(&mut self.signalled, true) || ahead < u32::from(n)
    }

    /// Takes the chain that begins with `desc`, which is at `next`; returns its bytes and its descriptors.
    #[cold]
    fn take_list(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
        mut desc: Descriptor,
        buf: &mut ChainBuf,
    ) -> Result<(u32, u16), RingError> {
        let mut hint = self.hint;
        let mut walk = Walk::new(memory, &mut hint, direction, self.size, buf);
        let mut result = self.add(&desc, &mut walk);
        let mut n = 1;
        // The ID is in the last descriptor: a bad chain is followed to its end, too.
        while desc.words[1] & F_NEXT != 0 {
            if n == self.size - self.open {
                return Err(RingError::Endless);
            }
            desc = self.entry(self.next.plus(n, self.size));
            n += 1;
            if result.is_ok() {
                result = walk.add(desc.addr, desc.len, desc.words[1]);
            }
        }
        let len = walk.finish(desc.words[0], result);
        self.hint = hint;
        Ok((len, n))
    }

    /// Adds the first descriptor of a chain: a buffer, or a table of buffers.
    fn add(&self, desc: &Descriptor, walk: &mut Walk<'_>) -> Result<(), ChainError> {
        let [_, flags] = desc.words;
        if flags & F_INDIRECT == 0 {
            return walk.add(desc.addr, desc.len, flags);
        }
        let (table, entries) = walk.table(desc, flags, self.indirect)?;
        for at in 0..entries {
            let entry = Descriptor::of_table(table, at);
            // Entries follow each other; NEXT means nothing here (virtio 1.3 §2.8.7).
            walk.add(entry.addr, entry.len, entry.words[1])?;
        }
        Ok(())
    }

    /// Reads a descriptor.
    #[inline(always)]
    fn entry(&self, at: Position) -> Descriptor {
        // SAFETY: the ring is mapped as a whole, and places are below its size.
        unsafe { Descriptor::read_aligned(self.place(at)) }
    }

    /// Whose a descriptor is: AVAIL and USED of its flags. What the driver wrote before them is visible afterwards.
    #[inline(always)]
    fn owner(&self, at: Position) -> u16 {
        // SAFETY: as above, and aligned; other processes access the word as one unit too.
        let flags = unsafe { AtomicU16::from_ptr(self.place(at).wrapping_add(14).cast()) };
        u16::from_le(flags.load(Ordering::Acquire)) & F_OWNER
    }

    /// The second half of a descriptor: length, ID and flags.
    #[inline(always)]
    fn tail(&self, at: Position) -> &AtomicU64 {
        // SAFETY: as above: the ring is aligned to 16 bytes.
        unsafe { AtomicU64::from_ptr(self.place(at).wrapping_add(8).cast()) }
    }

    #[inline(always)]
    fn place(&self, at: Position) -> *mut u8 {
        self.desc.wrapping_add(usize::from(at.at()) * DESC_LEN)
    }

    fn device_area(&self) -> &AtomicU32 {
        // SAFETY: by the invariant four aligned bytes are mapped there.
        unsafe { AtomicU32::from_ptr(self.device.cast()) }
    }
}

/// The second half of a used descriptor from a used entry: the length stays, the head becomes the ID.
#[inline(always)]
fn used_word(entry: u64, at: Position) -> u64 {
    let entry = u64::from_le(entry);
    let (id, len) = (entry & 0xffff, entry >> 32);
    // Without WRITE the length means nothing (virtio 1.3 §2.8.5).
    let flags = at.used() | if len > 0 { F_WRITE } else { 0 };
    len | id << 32 | u64::from(flags) << 48
}

/// Descriptors of the chains from one to another.
fn sum(slots: &[u16], from: usize, to: usize) -> u16 {
    slots.get(from..to).unwrap_or(&[]).iter().fold(0, |sum, n| sum.saturating_add(*n))
}

fn note_slots(slots: &mut [u16], chain: usize, n: u16) {
    if let Some(place) = slots.get_mut(chain) {
        *place = n;
    }
}
