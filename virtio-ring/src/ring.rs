//! A virtqueue, seen from the device, whatever its layout.

use std::sync::Arc;

use crate::descriptor::index;
use crate::journal::{Journal, ResumeRecord};
use crate::packed::PackedRing;
use crate::split::SplitRing;
use crate::{Chain, ChainBuf, Chains, Direction, DirtyLog, GuestMemory};

/// What a frontend says about a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// VIRTIO_F_RING_PACKED was negotiated.
    pub packed: bool,
    /// Descriptors: up to 32,768, of a split ring a power of two.
    pub size: u16,
    /// Addresses of the three parts in the frontend's process. A packed ring has the event suppression areas of driver and device
    /// in place of avail and used ring.
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// SET_VRING_BASE, used only when nothing else tells how far the ring is; see [`Ring`].
    pub base: u32,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// VIRTIO_F_IN_ORDER was negotiated.
    pub in_order: bool,
}

/// Why a ring cannot be used (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("ring size {0} is 0, above 32768, or for a split ring not a power of two")]
    Size(u16),
    #[error("memory for a ring of {0} descriptors cannot be had")]
    Storage(u16),
    #[error("the index to start from, {base:#x}, is not in a ring of {size} descriptors")]
    Base { base: u32, size: u16 },
    #[error("the {part} at {addr:#x} is misaligned or not inside one memory region")]
    Address { part: &'static str, addr: u64 },
    #[error("avail index {avail} is impossible with {used} used and {size} descriptors")]
    AvailIndex { avail: u16, used: u16, size: u16 },
    #[error("avail entry {0} is not a descriptor")]
    Head(u16),
    #[error("a chain is as long as the ring and does not end")]
    Endless,
}

/// How much a burst takes.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// At most [`MAX_BURST`](crate::MAX_BURST).
    pub chains: usize,
    /// The burst ends with the chain that reaches this.
    pub bytes: u64,
}

/// The device side of a ring.
///
/// Chains are taken with [`gather`](Self::gather), completed in the order in which they were taken, and published together.
/// Nothing is in flight after `publish`, so one index describes the ring.
///
/// For a split ring that is the used index in guest memory. It is read when the ring is first used (not when the
/// addresses arrive, when the driver may not have set them up) and is the point to resume from, whatever SET_VRING_BASE said: a
/// frontend whose backend vanished may not know how far that came. Only when the driver's avail index
/// contradicts it, SET_VRING_BASE counts.
///
/// A packed ring has no index in memory. Its [`ResumeRecord`] tells how far it is, if it is of the same ring; otherwise SET_VRING_BASE
/// counts.
#[derive(Debug)]
pub struct Ring {
    layout: Layout,
    /// Chains taken since the last publication.
    taken: u16,
    /// Chains of those that are completed: so many used entries of the journal.
    pending: u16,
    journal: Journal,
    record: Option<ResumeRecord>,
    resumed: bool,
}

#[derive(Debug)]
enum Layout {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// Finds the ring in the frontend's memory. Writes nothing there unless an earlier process was killed while it
    /// published.
    ///
    /// # Errors
    /// [`RingError::Size`], [`RingError::Address`], [`RingError::Base`], [`RingError::Storage`].
    pub fn new(
        memory: &Arc<GuestMemory>,
        config: &RingConfig,
        record: Option<ResumeRecord>,
    ) -> Result<Self, RingError> {
        let mut ring = Self::at_base(memory, config, record)?;
        if let Layout::Packed(packed) = &mut ring.layout {
            ring.resumed = packed.resume(config, &ring.journal);
            if !ring.resumed {
                packed.record(config, &ring.journal);
            }
        }
        Ok(ring)
    }

    fn at_base(
        memory: &Arc<GuestMemory>,
        config: &RingConfig,
        record: Option<ResumeRecord>,
    ) -> Result<Self, RingError> {
        let layout = if config.packed {
            Layout::Packed(PackedRing::new(memory, config)?)
        } else {
            Layout::Split(SplitRing::new(memory, config)?)
        };
        let journal = Journal::new(record.as_ref(), config.size);
        let journal = journal.map_err(|_| RingError::Storage(config.size))?;
        Ok(Self { layout, taken: 0, pending: 0, journal, record, resumed: false })
    }

    /// The same ring in another memory table, at the point that this one has published. This one must not be used any more.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn rebuild(
        &self,
        memory: &Arc<GuestMemory>,
        config: &RingConfig,
    ) -> Result<Self, RingError> {
        let mut ring = Self::at_base(memory, config, self.record.clone())?;
        match (&mut ring.layout, &self.layout) {
            (Layout::Split(ring), Layout::Split(before)) => ring.follow(before),
            (Layout::Packed(packed), Layout::Packed(before)) => packed.follow(before),
            _ => {}
        }
        if let Layout::Packed(packed) = &ring.layout
            && ring.journal.last(config).is_none()
        {
            packed.record(config, &ring.journal);
        }
        Ok(ring)
    }

    /// From now on writes to the ring itself are noted in `log`: those to a used ring at `used`, which a frontend may give
    /// with VHOST_VRING_F_LOG, or else where they lie for the guest. Writes to buffers are the caller's to note.
    pub fn set_log(&mut self, log: Option<&Arc<DirtyLog>>, used: Option<u64>) {
        match &mut self.layout {
            Layout::Split(ring) => ring.set_log(log, used),
            Layout::Packed(ring) => ring.set_log(log),
        }
    }

    /// Goes on at the [`position`](Self::position) of a ring that another process has served, whatever the memory says.
    pub fn resume_at(&mut self, position: u32) {
        match &mut self.layout {
            Layout::Split(ring) => ring.resume_at(position),
            Layout::Packed(ring) => ring.resume_at(position, &self.journal),
        }
    }

    /// Where a process goes on that serves the ring next: everything before it is complete. `None` while the ring has
    /// not been used.
    #[must_use]
    pub fn position(&self) -> Option<u32> {
        match &self.layout {
            Layout::Split(ring) => ring.position(),
            Layout::Packed(ring) => Some(ring.next_index()),
        }
    }

    /// The ring goes on where an earlier process was killed: the driver may have missed its last signal.
    #[must_use]
    pub fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// The index to report for GET_VRING_BASE: everything before it is complete. A ring that is built with it as its
    /// base goes on from here.
    #[must_use]
    pub fn next_index(&self) -> u32 {
        match &self.layout {
            Layout::Split(ring) => u32::from(ring.next_index()),
            Layout::Packed(ring) => ring.next_index(),
        }
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
        let Self { layout, taken, journal, .. } = self;
        match layout {
            Layout::Split(ring) => ring.gather(taken, memory, direction, limit, buf)?,
            Layout::Packed(ring) => ring.gather(taken, journal, memory, direction, limit, buf)?,
        }
        // SAFETY: every slice since `clear` was cut from `memory`, which is borrowed for 'm.
        Ok(unsafe { buf.finish() })
    }

    /// Gives back the last `n` chains that were taken: the next `gather` begins with them. Completed ones stay.
    #[inline]
    pub fn unread(&mut self, n: usize) {
        let open = self.taken - self.pending;
        self.keep(self.taken - u16::try_from(n).map_or(open, |n| n.min(open)));
    }

    /// Notes that the oldest chain that was taken and not completed is done, with `len` bytes written into it. The driver learns it from
    /// the next `publish`.
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        if self.pending < self.taken
            && let Some(entry) = self.journal.done_mut().get_mut(usize::from(self.pending))
        {
            *entry = (u64::from(head) | u64::from(len) << 32).to_le();
            self.pending += 1;
        }
    }

    /// Notes the same of as many chains as are given, the oldest ones, in which nothing was written.
    #[inline]
    pub fn complete_read(&mut self, chains: &[Chain]) {
        let pending = usize::from(self.pending);
        let open = usize::from(self.taken - self.pending);
        let entries = self.journal.done_mut().get_mut(pending..).unwrap_or(&mut []);
        let n = chains.len().min(open).min(entries.len());
        for (entry, chain) in entries[..n].iter_mut().zip(chains) {
            *entry = u64::from(chain.head).to_le();
        }
        self.pending += index(n);
    }

    /// [`complete`](Self::complete)s `chains`, the oldest ones, as long as `write` says how many bytes it wrote into each; it is also
    /// given the chain's position. Returns how many.
    #[inline(always)]
    pub fn complete_while(
        &mut self,
        chains: &[Chain],
        mut write: impl FnMut(usize, &Chain) -> Option<u32>,
    ) -> usize {
        let open = usize::from(self.taken - self.pending);
        let pending = usize::from(self.pending);
        let entries = self.journal.done_mut().get_mut(pending..).unwrap_or(&mut []);
        let mut n = 0;
        for (entry, chain) in entries.iter_mut().take(open).zip(chains) {
            let Some(len) = write(n, chain) else { break };
            *entry = (u64::from(chain.head) | u64::from(len) << 32).to_le();
            n += 1;
        }
        self.pending += index(n);
        n
    }

    /// Everything that the driver was known to offer has been taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.layout {
            Layout::Split(ring) => ring.is_drained(self.taken),
            Layout::Packed(ring) => ring.is_drained(),
        }
    }

    /// Forgets what was taken and completed since the last `publish`.
    #[inline]
    pub fn rollback(&mut self) {
        self.pending = 0;
        self.keep(0);
    }

    /// Tells the driver of everything completed since the last time, with one store that it waits for. True when the
    /// driver wants a signal.
    #[inline]
    #[must_use = "the driver waits for the signal"]
    pub fn publish(&mut self) -> bool {
        if self.pending == 0 {
            return false;
        }
        let (count, taken) = (self.pending, self.taken);
        self.taken -= count;
        self.pending = 0;
        match &mut self.layout {
            Layout::Split(ring) => {
                let done = self.journal.done();
                ring.publish(done.get(..usize::from(count)).unwrap_or(&[]))
            }
            Layout::Packed(ring) => ring.publish(count, taken, &mut self.journal),
        }
    }

    /// The driver need not kick: the ring is polled.
    #[inline]
    pub fn suppress_kicks(&mut self) {
        match &mut self.layout {
            Layout::Split(ring) => ring.suppress_kicks(),
            Layout::Packed(ring) => ring.suppress_kicks(&self.journal),
        }
    }

    /// The driver must kick for the next entry. True when there is one already, which it may not kick for.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        match &mut self.layout {
            Layout::Split(ring) => ring.arm(self.taken),
            Layout::Packed(ring) => Ok(ring.arm(&self.journal)),
        }
    }

    /// Of the chains taken since the last publication, the first `kept` stay so.
    #[inline]
    fn keep(&mut self, kept: u16) {
        match &mut self.layout {
            // Its chains are counted, not their descriptors.
            Layout::Split(_) => {}
            Layout::Packed(ring) => ring.keep(kept, self.taken, &self.journal),
        }
        self.taken = kept;
    }
}
