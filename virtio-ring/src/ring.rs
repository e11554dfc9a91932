//! A split virtqueue, seen from the device (virtio 1.3 §2.7).

use core::sync::atomic::{AtomicU16, Ordering, fence};
use std::sync::Arc;

use crate::chain::{MAX_BURST, MAX_CHAIN};
use crate::memory::Hint;
use crate::{Chain, ChainBuf, ChainError, Chains, Direction, GuestMemory, GuestSlice, copy};

/// What a frontend says about a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Descriptors: a power of two up to 32,768.
    pub size: u16,
    /// Addresses of the three parts in the frontend's process.
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// SET_VRING_BASE, used only when the ring's own index makes no sense; see [`SplitRing`].
    pub base: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// Why a ring cannot be used (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("ring size {0} is not a power of two up to 32768")]
    Size(u16),
    #[error("the {part} at {addr:#x} is misaligned or not inside one memory region")]
    Address { part: &'static str, addr: u64 },
    #[error("avail index {avail} is impossible with {used} used and {size} descriptors")]
    AvailIndex { avail: u16, used: u16, size: u16 },
    #[error("avail entry {0} is not a descriptor")]
    Head(u16),
}

/// How much a burst takes.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// At most [`MAX_BURST`].
    pub chains: usize,
    /// The burst ends with the chain that reaches this.
    pub bytes: u64,
}

/// A position that [`SplitRing::reset`] returns to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    last_avail: u16,
    pending: u16,
}

/// The device side of a split ring.
///
/// Chains are taken with [`gather`](Self::gather), completed in the order in which they were taken, and published together.
/// Nothing is in flight after `publish`, so one index describes the ring: the used index in guest memory. It is
/// read when the ring is first used (not when the addresses arrive, when the driver may not have set them up) and is
/// the point to resume from, whatever SET_VRING_BASE said: a frontend whose backend vanished may not know how far that came. Only
/// when the driver's avail index contradicts it, SET_VRING_BASE counts.
///
/// Invariant: `desc`, `avail` and `used` point to `size` elements (and the fields around them) inside regions that `_memory` keeps
/// mapped, aligned to 16, 2 and 4 bytes; `size` is a power of two, and every index is masked by `size - 1`.
#[derive(Debug)]
pub struct SplitRing {
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    resumed: bool,
    /// The next avail entry to take.
    last_avail: u16,
    /// The avail index as last read.
    avail_idx: u16,
    /// The used index as published.
    used_idx: u16,
    /// Whether the driver was asked about signals before: the first time always signals.
    signalled: bool,
    /// Completed, not published: entries of `shadow`.
    pending: u16,
    shadow: Box<[u64]>,
    hint: Hint,
    base: u16,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into mappings of the process that `_memory` keeps, not into anything of a thread.
unsafe impl Send for SplitRing {}

const DESC_LEN: usize = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Reads 16 bytes once.
    ///
    /// # Safety
    /// `ptr..ptr+16` must be mapped.
    #[inline(always)]
    unsafe fn read(ptr: *const u8) -> Self {
        let mut raw = [0_u64; 2];
        // SAFETY: the caller's promise for the source; the destination is a local of 16 bytes.
        unsafe { copy::copy_16(raw.as_mut_ptr().cast(), ptr) };
        let [addr, rest] = raw.map(u64::from_le);
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

impl SplitRing {
    /// Finds the ring in the frontend's memory. Reads and writes nothing there yet.
    ///
    /// # Errors
    /// [`RingError::Size`], [`RingError::Address`].
    pub fn new(memory: &Arc<GuestMemory>, config: &RingConfig) -> Result<Self, RingError> {
        let RingConfig { size, desc, avail, used, base, event_idx, indirect } = *config;
        if !size.is_power_of_two() || size > 32_768 {
            return Err(RingError::Size(size));
        }
        let n = u64::from(size);
        let find = |part, addr, len, align| {
            memory.user_range(addr, len, align).ok_or(RingError::Address { part, addr })
        };
        Ok(Self {
            desc: find("descriptor table", desc, 16 * n, 16)?,
            avail: find("avail ring", avail, 6 + 2 * n, 2)?,
            used: find("used ring", used, 6 + 8 * n, 4)?,
            size,
            event_idx,
            indirect,
            resumed: false,
            last_avail: base,
            avail_idx: base,
            used_idx: base,
            signalled: false,
            pending: 0,
            shadow: vec![0; usize::from(size)].into(),
            hint: Hint::default(),
            base,
            _memory: Arc::clone(memory),
        })
    }

    /// The same ring in another memory table, with the indices of this one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rebuild(
        &self,
        memory: &Arc<GuestMemory>,
        config: &RingConfig,
    ) -> Result<Self, RingError> {
        let mut ring = Self::new(memory, config)?;
        if self.resumed {
            ring.resumed = true;
            ring.signalled = self.signalled;
            ring.used_idx = self.used_idx;
            ring.last_avail = self.used_idx;
            ring.avail_idx = self.used_idx;
        }
        Ok(ring)
    }

    /// The index to report for GET_VRING_BASE: everything before it is complete.
    #[must_use]
    pub fn next_index(&self) -> u16 {
        self.used_idx
    }

    /// Takes up to `limit` chains, in ring order. Chains that were taken before and neither completed nor given back stay taken.
    ///
    /// # Errors
    /// The ring is broken beyond what one chain's return can mend and must be taken out of service.
    #[inline]
    pub fn gather<'b, 'm>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        limit: Limit,
        buf: &'b mut ChainBuf,
    ) -> Result<Chains<'b, 'm>, RingError> {
        buf.clear();
        let wanted = limit.chains.min(MAX_BURST);
        let n = usize::from(self.available(wanted)?).min(wanted);
        if n == 0 {
            return Ok(Chains::EMPTY);
        }
        let mut heads = [0_u16; MAX_BURST];
        let mut valid = 0;
        #[expect(clippy::cast_possible_truncation, reason = "below MAX_BURST")]
        for (i, place) in heads[..n].iter_mut().enumerate() {
            let head = self.avail_entry(self.last_avail.wrapping_add(i as u16));
            if head >= self.size {
                if i == 0 {
                    return Err(RingError::Head(head));
                }
                break; // The good ones first; the next burst begins with this one.
            }
            copy::prefetch_read(self.desc.wrapping_add(usize::from(head) * DESC_LEN));
            *place = head;
            valid = i + 1;
        }
        let mut bytes = 0_u64;
        for &head in &heads[..valid] {
            if buf.is_full() || bytes >= limit.bytes {
                break;
            }
            bytes += u64::from(self.take(memory, direction, head, buf));
        }
        // SAFETY: every slice since `clear` was cut from `memory`, which is borrowed for 'm.
        Ok(unsafe { buf.finish() })
    }

    /// Gives back the last `n` chains that were taken: the next `gather` begins with them.
    #[inline]
    pub fn unread(&mut self, n: usize) {
        let taken = self.last_avail.wrapping_sub(self.used_idx.wrapping_add(self.pending));
        #[expect(clippy::cast_possible_truncation, reason = "below taken")]
        let n = n.min(usize::from(taken)) as u16;
        self.last_avail = self.last_avail.wrapping_sub(n);
    }

    /// Notes that the oldest chain that was taken and not completed is done, with `len` bytes written into it. The driver learns it from
    /// the next `publish`.
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let taken = self.last_avail.wrapping_sub(self.used_idx);
        if self.pending < taken
            && let Some(entry) = self.shadow.get_mut(usize::from(self.pending))
        {
            *entry = (u64::from(head) | u64::from(len) << 32).to_le();
            self.pending += 1;
        }
    }

    /// Everything that the driver was known to offer has been taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.avail_idx == self.last_avail
    }

    #[must_use]
    #[inline]
    pub fn mark(&self) -> Mark {
        Mark { last_avail: self.last_avail, pending: self.pending }
    }

    /// Undoes what was taken and completed since `mark`. Nothing may have been published in between.
    #[inline]
    pub fn reset(&mut self, mark: Mark) {
        self.last_avail = mark.last_avail;
        self.pending = mark.pending;
    }

    /// Forgets what was taken and completed since the last `publish`.
    #[inline]
    pub fn rollback(&mut self) {
        self.last_avail = self.used_idx;
        self.pending = 0;
    }

    /// Tells the driver of everything completed since the last time, with one store of the index. True when the
    /// driver wants a signal.
    #[inline]
    #[must_use = "the driver waits for the signal"]
    pub fn publish(&mut self) -> bool {
        if self.pending == 0 {
            return false;
        }
        let (old, new) = (self.used_idx, self.used_idx.wrapping_add(self.pending));
        let start = old & (self.size - 1);
        let first = self.pending.min(self.size - start);
        let (first, pending) = (usize::from(first), usize::from(self.pending));
        // SAFETY: `pending` is at most `size` and the entries go to places below `size`: up to the ring's end,
        // then from its beginning. The shadow holds `size` entries.
        unsafe {
            let ring = self.used.add(4);
            copy::copy(ring.add(usize::from(start) * 8), self.shadow.as_ptr().cast(), first * 8);
            copy::copy(ring, self.shadow.as_ptr().add(first).cast(), (pending - first) * 8);
        }
        self.used_word(1).store(new.to_le(), Ordering::Release);
        self.used_idx = new;
        self.pending = 0;
        self.wants_signal(old, new)
    }

    /// The driver need not kick: the ring is polled.
    #[inline]
    pub fn suppress_kicks(&mut self) {
        // With EVENT_IDX nothing has to be written: the index of the last `arm` has passed, and is met again only after 65,536 entries.
        if !self.event_idx {
            self.used_word(0).store(USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// The driver must kick for the next entry. True when there is one already, which it may not kick for.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.resume()?;
        if self.event_idx {
            let event = self.used_word(2 + 4 * usize::from(self.size));
            event.store(self.last_avail.to_le(), Ordering::Relaxed);
        } else {
            self.used_word(0).store(0, Ordering::Relaxed);
        }
        // The request must be visible before the index is read: the driver writes and reads them in the other order.
        fence(Ordering::SeqCst);
        self.read_avail_index()?;
        Ok(self.avail_idx != self.last_avail)
    }

    /// How many chains can be taken. Reads the driver's index only when fewer than `wanted` are known.
    #[inline]
    fn available(&mut self, wanted: usize) -> Result<u16, RingError> {
        self.resume()?;
        if usize::from(self.avail_idx.wrapping_sub(self.last_avail)) < wanted {
            self.read_avail_index()?;
        }
        Ok(self.avail_idx.wrapping_sub(self.last_avail))
    }

    #[inline]
    fn read_avail_index(&mut self) -> Result<(), RingError> {
        let avail = u16::from_le(self.avail_word(1).load(Ordering::Acquire));
        // A driver has at most `size` chains outstanding, and never fewer than we took.
        let outstanding = avail.wrapping_sub(self.used_idx);
        if outstanding > self.size || outstanding < self.last_avail.wrapping_sub(self.used_idx) {
            return Err(RingError::AvailIndex { avail, used: self.used_idx, size: self.size });
        }
        self.avail_idx = avail;
        Ok(())
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
        self.last_avail = start;
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
    #[inline(always)]
    fn take(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
        head: u16,
        buf: &mut ChainBuf,
    ) -> u32 {
        self.last_avail = self.last_avail.wrapping_add(1);
        // SAFETY: `head` is below `size`, and the table has `size` descriptors.
        let desc = unsafe { Descriptor::read(self.desc.add(usize::from(head) * DESC_LEN)) };
        let plain = match direction {
            Direction::Readable => 0,
            Direction::Writable => F_WRITE,
            Direction::Both => u16::MAX,
        };
        // Nearly every chain is one descriptor.
        if desc.flags == plain
            && desc.len > 0
            && let Some(slice) = memory.slice(desc.addr, desc.len, &mut self.hint)
        {
            if plain == 0 {
                slice.prefetch_read();
            } else {
                slice.prefetch_write();
            }
            let first = index(buf.n_slices());
            buf.push_slice(slice);
            let readable = u16::from(plain == 0);
            buf.push_chain(Chain { head, first, readable, count: 1, len: desc.len, error: None });
            return desc.len;
        }
        self.take_list(memory, direction, head, desc, buf)
    }

    #[cold]
    fn take_list(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
        head: u16,
        desc: Descriptor,
        buf: &mut ChainBuf,
    ) -> u32 {
        let first = buf.n_slices();
        let mut chain =
            Chain { head, first: index(first), readable: 0, count: 0, len: 0, error: None };
        if let Err(error) = self.walk(memory, direction, desc, buf, &mut chain) {
            buf.truncate_slices(first);
            chain = Chain { head, first: 0, readable: 0, count: 0, len: 0, error: Some(error) };
        }
        buf.push_chain(chain);
        chain.len
    }

    fn walk(
        &mut self,
        memory: &GuestMemory,
        direction: Direction,
        mut desc: Descriptor,
        buf: &mut ChainBuf,
        chain: &mut Chain,
    ) -> Result<(), ChainError> {
        // The table that `next` counts in: the ring's, or an indirect one.
        let mut table: Option<GuestSlice<'_>> = None;
        let mut entries = self.size;
        let longest = MAX_CHAIN.min(usize::from(self.size));
        if desc.flags & F_INDIRECT != 0 {
            let len = usize::try_from(desc.len).unwrap_or(usize::MAX);
            let n = len / DESC_LEN;
            if !self.indirect
                || desc.flags & F_NEXT != 0
                || !len.is_multiple_of(DESC_LEN)
                || n == 0
                || n > longest
            {
                return Err(ChainError::Indirect);
            }
            let slice = memory.slice(desc.addr, desc.len, &mut self.hint);
            table = Some(slice.ok_or(ChainError::Memory)?);
            entries = index(n);
            desc = self.entry(table, 0);
        }
        loop {
            if usize::from(chain.count) == longest {
                return Err(ChainError::TooLong);
            }
            if desc.flags & F_INDIRECT != 0 {
                return Err(ChainError::Indirect);
            }
            let writable = desc.flags & F_WRITE != 0;
            let right = match direction {
                Direction::Readable => !writable,
                Direction::Writable => writable,
                Direction::Both => writable || chain.readable == chain.count,
            };
            if !right {
                return Err(ChainError::Direction);
            }
            if desc.len == 0 {
                return Err(ChainError::Empty);
            }
            let slice = memory.slice(desc.addr, desc.len, &mut self.hint);
            let slice = slice.ok_or(ChainError::Memory)?;
            if writable {
                slice.prefetch_write();
            } else {
                slice.prefetch_read();
                chain.readable += 1;
            }
            buf.push_slice(slice);
            chain.count += 1;
            chain.len = chain.len.checked_add(desc.len).ok_or(ChainError::TooLarge)?;
            if desc.flags & F_NEXT == 0 {
                return Ok(());
            }
            if desc.next >= entries {
                return Err(ChainError::Next);
            }
            desc = self.entry(table, desc.next);
        }
    }

    /// Reads a descriptor of the ring's table or of an indirect one, below the number of its entries.
    fn entry(&self, table: Option<GuestSlice<'_>>, at: u16) -> Descriptor {
        let offset = usize::from(at) * DESC_LEN;
        let ptr = match table {
            Some(table) => table.skip(offset).first(DESC_LEN).as_ptr(),
            None => self.desc.wrapping_add(offset),
        };
        // SAFETY: both tables are mapped as a whole, and the callers compared `at` with the number of entries.
        unsafe { Descriptor::read(ptr) }
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

    /// The 16-bit word at a position of the used ring: 0 flags, 1 index, behind `size` entries of four words the avail event.
    #[inline(always)]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as for the avail ring: `at` is 0, 1 or `2 + 4 * size`.
        unsafe { AtomicU16::from_ptr(self.used.cast::<u16>().add(at)) }
    }
}

/// Positions in a burst are below 1024.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "see above")]
fn index(n: usize) -> u16 {
    n as u16
}
