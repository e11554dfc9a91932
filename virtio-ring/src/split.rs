//! The split layout (virtio 1.3 §2.7).

use core::sync::atomic::{AtomicU16, Ordering, fence};
use std::sync::Arc;

use crate::chain::MAX_BURST;
use crate::descriptor::{DESC_LEN, Descriptor, F_INDIRECT, F_NEXT, Plain, Walk, index};
use crate::journal::was_written;
use crate::log::PartLog;
use crate::memory::Hint;
use crate::ring::{Limit, RingConfig, RingError};
use crate::{ChainBuf, ChainError, Direction, DirtyLog, GuestMemory, copy};

/// The device side of a split ring: what is known of its indices. Chains that were taken or completed since the last
/// publication are counted by [`Ring`](crate::Ring), which passes `taken`.
///
/// Invariant: `desc`, `avail` and `used` point to `size` elements (and the fields around them) inside regions that `memory` keeps
/// mapped, aligned to 16, 2 and 4 bytes; `size` is a power of two, and every index is masked by `size - 1`.
#[derive(Debug)]
pub(crate) struct SplitRing {
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
    resumed: bool,
    /// The avail index as last read.
    avail_idx: u16,
    /// The used index as published.
    used_idx: u16,
    /// Whether the driver was asked about signals before: the first time always signals.
    signalled: bool,
    hint: Hint,
    base: u16,
    /// Notes what is written to the used ring.
    log: Option<PartLog>,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into mappings of the process that `memory` keeps, not into anything of a thread.
unsafe impl Send for SplitRing {}

const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

impl SplitRing {
    pub(crate) fn new(memory: &Arc<GuestMemory>, config: &RingConfig) -> Result<Self, RingError> {
        let RingConfig { size, desc, avail, used, base, event_idx, indirect, in_order, .. } =
            *config;
        if !size.is_power_of_two() || size > 32_768 {
            return Err(RingError::Size(size));
        }
        let n = u64::from(size);
        let find = |part, addr, len, align| {
            memory.user_range(addr, len, align).ok_or(RingError::Address { part, addr })
        };
        // The index has 16 bits, which the session has checked.
        let base = u16::try_from(base).unwrap_or(0);
        Ok(Self {
            desc: find("descriptor table", desc, 16 * n, 16)?,
            avail: find("avail ring", avail, 6 + 2 * n, 2)?,
            used: find("used ring", used, 6 + 8 * n, 4)?,
            size,
            event_idx,
            indirect,
            in_order,
            resumed: false,
            avail_idx: base,
            used_idx: base,
            signalled: false,
            hint: Hint::default(),
            base,
            log: None,
            memory: Arc::clone(memory),
        })
    }

    /// Goes on where `before` has published.
    pub(crate) fn follow(&mut self, before: &Self) {
        if before.resumed {
            self.resumed = true;
            self.signalled = before.signalled;
            self.used_idx = before.used_idx;
            self.avail_idx = before.used_idx;
        }
    }

    pub(crate) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>, used: Option<u64>) {
        self.log = log.and_then(|log| match used {
            Some(start) => Some(PartLog::at(log, start)),
            None => PartLog::new(log, &self.memory, self.used),
        });
    }

    pub(crate) fn next_index(&self) -> u16 {
        self.used_idx
    }

    pub(crate) fn is_drained(&self, taken: u16) -> bool {
        self.avail_idx == self.used_idx.wrapping_add(taken)
    }

    #[inline]
    pub(crate) fn gather(
        &mut self,
        taken: &mut u16,
        memory: &GuestMemory,
        direction: Direction,
        limit: Limit,
        buf: &mut ChainBuf,
    ) -> Result<(), RingError> {
        let wanted = limit.chains.min(MAX_BURST);
        let n = usize::from(self.available(*taken, wanted)?).min(wanted);
        let next = self.used_idx.wrapping_add(*taken);
        let mut heads = [0_u16; MAX_BURST];
        let heads = self.heads(next, &mut heads[..n])?;
        *taken += match direction {
            Direction::Readable => self.take::<true>(memory, direction, heads, limit.bytes, buf),
            Direction::Writable => self.take::<false>(memory, direction, heads, limit.bytes, buf),
            Direction::Both => self.take_lists(memory, direction, heads, limit.bytes, buf),
        };
        Ok(())
    }

    /// Reads the avail entries from `next` on, as far as they are good.
    #[inline(always)]
    fn heads<'h>(&self, next: u16, places: &'h mut [u16]) -> Result<&'h [u16], RingError> {
        for i in 0..places.len() {
            let head = self.avail_entry(next.wrapping_add(index(i)));
            if head >= self.size {
                if i == 0 {
                    return Err(RingError::Head(head));
                }
                return Ok(&places[..i]); // The good ones first; the next burst begins with this one.
            }
            copy::prefetch_read(self.desc.wrapping_add(usize::from(head) * DESC_LEN));
            places[i] = head;
        }
        Ok(places)
    }

    /// Takes chains until they hold `limit` bytes; returns how many.
    #[inline(always)]
    fn take<const READABLE: bool>(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
        heads: &[u16],
        limit: u64,
        buf: &mut ChainBuf,
    ) -> u16 {
        let mut bytes = 0_u64;
        let mut taken = 0;
        let mut plain = Plain::<READABLE>::new(memory, self.hint);
        let table = self.desc;
        while taken < heads.len() && !buf.is_full() && bytes < limit {
            let mut rest = heads[taken..].iter();
            // A chain that is not plain ends the run.
            let mut other = None;
            taken += buf.fill::<READABLE>(|| {
                let &head = rest.next().filter(|_| bytes < limit)?;
                // SAFETY: the table is mapped as a whole and aligned, and `heads` compared all with its size.
                let desc =
                    unsafe { Descriptor::read_aligned(table.add(usize::from(head) * DESC_LEN)) };
                let [flags, _] = desc.words;
                let Some(slice) = plain.slice(&desc, flags) else {
                    other = Some((head, desc));
                    return None;
                };
                bytes += slice.len() as u64;
                Some((head, slice))
            });
            if let Some((head, desc)) = other {
                bytes += u64::from(self.take_list(memory, direction, head, desc, buf));
                taken += 1;
            }
        }
        self.hint = plain.hint;
        index(taken)
    }

    /// As [`take`](Self::take), for chains of several descriptors.
    fn take_lists(
        &self,
        memory: &GuestMemory,
        direction: Direction,
        heads: &[u16],
        limit: u64,
        buf: &mut ChainBuf,
    ) -> u16 {
        let (mut bytes, mut taken) = (0_u64, 0);
        for &head in heads {
            if buf.is_full() || bytes >= limit {
                break;
            }
            bytes += u64::from(self.take_list(memory, direction, head, self.entry(head), buf));
            taken += 1;
        }
        taken
    }

    /// Writes the used entries, then the index: the one place where that happens. True when the driver wants a signal.
    ///
    /// A driver that uses its chains in order (VIRTIO_F_IN_ORDER) and has nothing to learn but that they are used gets
    /// one entry for all, at the first one's place and with the last one's head (virtio 1.3 §2.7.9).
    #[inline]
    pub(crate) fn publish(&mut self, done: &[u64]) -> bool {
        let (old, new) = (self.used_idx, self.used_idx.wrapping_add(index(done.len())));
        let start = usize::from(old & (self.size - 1));
        let written = match done {
            [.., last] if self.in_order && !done.iter().any(was_written) => {
                core::slice::from_ref(last)
            }
            all => all,
        };
        let (first, rest) = written.split_at(written.len().min(usize::from(self.size) - start));
        // SAFETY: there are at most `size` entries and they go to places below `size`: up to the ring's end, then from
        // its beginning.
        unsafe {
            let ring = self.used.add(4);
            copy::copy(ring.add(start * 8), first.as_ptr().cast(), size_of_val(first));
            copy::copy(ring, rest.as_ptr().cast(), size_of_val(rest));
        }
        self.used_word(1).store(new.to_le(), Ordering::Release);
        if let Some(log) = &self.log {
            log.mark(4 + start * 8, size_of_val(first));
            log.mark(4, size_of_val(rest));
            log.mark(2, 2);
        }
        self.used_idx = new;
        self.wants_signal(old, new)
    }

    #[inline]
    pub(crate) fn suppress_kicks(&mut self) {
        // With EVENT_IDX nothing has to be written: the index of the last `arm` has passed, and is met again only after 65,536 entries.
        if !self.event_idx {
            self.set_used_word(0, USED_F_NO_NOTIFY);
        }
    }

    pub(crate) fn arm(&mut self, taken: u16) -> Result<bool, RingError> {
        self.resume()?;
        let next = self.used_idx.wrapping_add(taken);
        if self.event_idx {
            self.set_used_word(2 + 4 * usize::from(self.size), next);
        } else {
            self.set_used_word(0, 0);
        }
        // The request must be visible before the index is read: the driver writes and reads them in the other order.
        fence(Ordering::SeqCst);
        self.read_avail_index(taken)?;
        Ok(self.avail_idx != next)
    }

    /// How many chains can be taken. Reads the driver's index only when fewer than `wanted` are known.
    #[inline]
    fn available(&mut self, taken: u16, wanted: usize) -> Result<u16, RingError> {
        self.resume()?;
        let next = self.used_idx.wrapping_add(taken);
        if usize::from(self.avail_idx.wrapping_sub(next)) < wanted {
            self.read_avail_index(taken)?;
        }
        Ok(self.avail_idx.wrapping_sub(next))
    }

    #[inline]
    fn read_avail_index(&mut self, taken: u16) -> Result<(), RingError> {
        let avail = u16::from_le(self.avail_word(1).load(Ordering::Acquire));
        // A driver has at most `size` chains outstanding, and never fewer than we took.
        let outstanding = avail.wrapping_sub(self.used_idx);
        if outstanding > self.size || outstanding < taken {
            return Err(RingError::AvailIndex { avail, used: self.used_idx, size: self.size });
        }
        self.avail_idx = avail;
        Ok(())
    }

    pub(crate) fn resume_at(&mut self, position: u32) {
        // An index that no split ring has is left to the memory.
        if let Ok(index) = u16::try_from(position) {
            (self.used_idx, self.avail_idx) = (index, index);
            self.resumed = true;
        }
    }

    pub(crate) fn position(&self) -> Option<u32> {
        self.resumed.then_some(u32::from(self.used_idx))
    }

    #[inline]
    fn resume(&mut self) -> Result<(), RingError> {
        if self.resumed { Ok(()) } else { self.resume_now() }
    }

    #[cold]
    fn resume_now(&mut self) -> Result<(), RingError> {
        let used = u16::from_le(self.used_word(1).load(Ordering::Acquire));
        let avail = u16::from_le(self.avail_word(1).load(Ordering::Acquire));
        let plausible = |start: &u16| avail.wrapping_sub(*start) <= self.size;
        let Some(start) = [used, self.base].into_iter().find(plausible) else {
            return Err(RingError::AvailIndex { avail, used, size: self.size });
        };
        self.used_idx = start;
        self.avail_idx = start;
        self.resumed = true;
        Ok(())
    }

    #[inline]
    fn wants_signal(&mut self, old: u16, new: u16) -> bool {
        // The index must be visible before the driver's wish is read: it writes and reads them in the other order.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = u16::from_le(self.avail_word(0).load(Ordering::Relaxed));
            return flags & AVAIL_F_NO_INTERRUPT == 0;
        }
        let event = self.avail_word(2 + usize::from(self.size));
        let event = u16::from_le(event.load(Ordering::Relaxed));
        let passed = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        !core::mem::replace(&mut self.signalled, true) || passed
    }

    /// Takes the chain at `head` into `buf`; returns its bytes.
    #[cold]
    fn take_list(
        &self,
        memory: &GuestMemory,
        direction: Direction,
        head: u16,
        desc: Descriptor,
        buf: &mut ChainBuf,
    ) -> u32 {
        let mut hint = self.hint;
        let mut walk = Walk::new(memory, &mut hint, direction, self.size, buf);
        let result = self.walk(desc, &mut walk);
        walk.finish(head, result)
    }

    fn walk(&self, mut desc: Descriptor, walk: &mut Walk<'_>) -> Result<(), ChainError> {
        let [flags, _] = desc.words;
        // The table that `next` counts in: the ring's, or an indirect one.
        let table = if flags & F_INDIRECT == 0 {
            None
        } else {
            let table = walk.table(&desc, flags, self.indirect)?;
            desc = Descriptor::of_table(table.0, 0);
            Some(table)
        };
        loop {
            let [flags, next] = desc.words;
            walk.add(desc.addr, desc.len, flags)?;
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            desc = match table {
                Some((table, entries)) if next < entries => Descriptor::of_table(table, next),
                None if next < self.size => self.entry(next),
                _ => return Err(ChainError::Next),
            };
        }
    }

    /// Reads a descriptor of the ring's table, below its size.
    #[inline(always)]
    fn entry(&self, at: u16) -> Descriptor {
        // SAFETY: the table is mapped as a whole and aligned, and the callers compared `at` with its size.
        unsafe { Descriptor::read_aligned(self.desc.wrapping_add(usize::from(at) * DESC_LEN)) }
    }

    #[inline(always)]
    fn avail_entry(&self, at: u16) -> u16 {
        let place = usize::from(at & (self.size - 1));
        u16::from_le(self.avail_word(2 + place).load(Ordering::Relaxed))
    }

    /// The 16-bit word at a position of the avail ring: 0 flags, 1 index, then `size` entries and the used event.
    #[inline(always)]
    fn avail_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is at most `size + 2`, which is mapped and aligned by the invariant; other processes access the
        // word as one unit too.
        unsafe { AtomicU16::from_ptr(self.avail.cast::<u16>().add(at)) }
    }

    #[inline(always)]
    fn set_used_word(&self, at: usize, value: u16) {
        self.used_word(at).store(value.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.mark(2 * at, 2);
        }
    }

    /// The 16-bit word at a position of the used ring: 0 flags, 1 index, behind `size` entries of four words the avail event.
    #[inline(always)]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as for the avail ring: `at` is 0, 1 or `2 + 4 * size`.
        unsafe { AtomicU16::from_ptr(self.used.cast::<u16>().add(at)) }
    }
}
