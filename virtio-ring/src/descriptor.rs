//! Descriptors, and what both layouts check of the chains that they form.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::chain::MAX_CHAIN;
use crate::memory::{Hint, Place};
use crate::{Chain, ChainBuf, ChainError, Direction, GuestMemory, GuestSlice, copy};

pub(crate) const DESC_LEN: usize = 16;
pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

/// A descriptor's fields. The last one is `next` or the buffer ID, its place and that of the flags differ between the layouts.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// The third and the fourth 16-bit word behind the address.
    pub(crate) words: [u16; 2],
}

impl Descriptor {
    /// Reads 16 bytes once.
    ///
    /// # Safety
    /// `ptr..ptr+16` must be mapped.
    #[inline(always)]
    pub(crate) unsafe fn read(ptr: *const u8) -> Self {
        let mut raw = [0_u64; 2];
        // SAFETY: the caller's promise for the source; the destination is a local of 16 bytes.
        unsafe { copy::copy_16(raw.as_mut_ptr().cast(), ptr) };
        let [addr, rest] = raw.map(u64::from_le);
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        Self { addr, len: rest as u32, words: [(rest >> 32) as u16, (rest >> 48) as u16] }
    }

    /// Reads 16 bytes, each once, as two words.
    ///
    /// # Safety
    /// `ptr..ptr+16` must be mapped, and aligned to 8 bytes.
    #[inline(always)]
    pub(crate) unsafe fn read_aligned(ptr: *const u8) -> Self {
        let words = ptr.cast_mut().cast::<u64>();
        // SAFETY: the caller's promise; others write the words while they are read, which is what atomics are for. A relaxed
        // load is done once.
        let [addr, rest] =
            unsafe { [AtomicU64::from_ptr(words), AtomicU64::from_ptr(words.add(1))] }
                .map(|word| u64::from_le(word.load(Ordering::Relaxed)));
        #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        Self { addr, len: rest as u32, words: [(rest >> 32) as u16, (rest >> 48) as u16] }
    }

    /// Reads an entry of an indirect table; all zero behind the table's end.
    pub(crate) fn of_table(table: GuestSlice<'_>, at: u16) -> Self {
        let entry = table.skip(usize::from(at) * DESC_LEN).first(DESC_LEN);
        if entry.len() < DESC_LEN {
            return Self { addr: 0, len: 0, words: [0; 2] };
        }
        // SAFETY: the slice is mapped, and 16 bytes long.
        unsafe { Self::read(entry.as_ptr()) }
    }
}

/// Chains of one descriptor, as nearly all are: what tells them apart, at hand for a burst.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'m, const READABLE: bool> {
    memory: &'m GuestMemory,
    /// Where the last one was, and where the next burst is to look first.
    pub(crate) hint: Hint,
    place: Place,
}

impl<'m, const READABLE: bool> Plain<'m, READABLE> {
    /// Flags of such a chain's descriptor, apart from those that say that it is available.
    pub(crate) const FLAGS: u16 = if READABLE { 0 } else { F_WRITE };

    #[inline(always)]
    pub(crate) fn new(memory: &'m GuestMemory, hint: Hint) -> Self {
        Self { memory, hint, place: memory.place(hint) }
    }

    /// The bytes of a chain of this descriptor alone, asked for from memory; `None` when it is not alone, or not right.
    #[inline(always)]
    pub(crate) fn slice(&mut self, desc: &Descriptor, flags: u16) -> Option<GuestSlice<'m>> {
        if flags != Self::FLAGS || desc.len == 0 {
            return None;
        }
        let slice = match self.memory.slice_of(&self.place, desc.addr, desc.len) {
            Some(slice) => slice,
            None => {
                (self.hint, self.place) = self.memory.find(desc.addr)?;
                self.memory.slice_of(&self.place, desc.addr, desc.len)?
            }
        };
        if READABLE {
            slice.prefetch_read();
        } else {
            slice.prefetch_write();
        }
        Some(slice)
    }
}

/// A chain that is being taken, descriptor by descriptor.
pub(crate) struct Walk<'w> {
    memory: &'w GuestMemory,
    hint: &'w mut Hint,
    buf: &'w mut ChainBuf,
    direction: Direction,
    /// Buffers that it may have.
    pub(crate) longest: usize,
    chain: Chain,
}

impl<'w> Walk<'w> {
    pub(crate) fn new(
        memory: &'w GuestMemory,
        hint: &'w mut Hint,
        direction: Direction,
        size: u16,
        buf: &'w mut ChainBuf,
    ) -> Self {
        let longest = MAX_CHAIN.min(usize::from(size));
        let first = index(buf.n_slices());
        let chain = Chain { head: 0, first, readable: 0, count: 0, len: 0, error: None };
        Self { memory, hint, buf, direction, longest, chain }
    }

    /// Adds a buffer.
    pub(crate) fn add(&mut self, addr: u64, len: u32, flags: u16) -> Result<(), ChainError> {
        let chain = &mut self.chain;
        if usize::from(chain.count) == self.longest {
            return Err(ChainError::TooLong);
        }
        if flags & F_INDIRECT != 0 {
            return Err(ChainError::Indirect);
        }
        let writable = flags & F_WRITE != 0;
        let right = match self.direction {
            Direction::Readable => !writable,
            Direction::Writable => writable,
            Direction::Both => writable || chain.readable == chain.count,
        };
        if !right {
            return Err(ChainError::Direction);
        }
        if len == 0 {
            return Err(ChainError::Empty);
        }
        let slice = self.memory.slice(addr, len, self.hint).ok_or(ChainError::Memory)?;
        if writable {
            slice.prefetch_write();
        } else {
            slice.prefetch_read();
            chain.readable += 1;
        }
        self.buf.push_slice(slice);
        chain.count += 1;
        chain.len = chain.len.checked_add(len).ok_or(ChainError::TooLarge)?;
        Ok(())
    }

    /// The indirect table that a descriptor names, and its entries.
    pub(crate) fn table(
        &mut self,
        desc: &Descriptor,
        flags: u16,
        negotiated: bool,
    ) -> Result<(GuestSlice<'w>, u16), ChainError> {
        let len = usize::try_from(desc.len).unwrap_or(usize::MAX);
        let n = len / DESC_LEN;
        if !negotiated
            || flags & F_NEXT != 0
            || !len.is_multiple_of(DESC_LEN)
            || n == 0
            || n > self.longest
        {
            return Err(ChainError::Indirect);
        }
        let slice = self.memory.slice(desc.addr, desc.len, self.hint).ok_or(ChainError::Memory)?;
        Ok((slice, index(n)))
    }

    /// Ends the chain, which goes back to the driver as `head`. Returns its bytes.
    pub(crate) fn finish(self, head: u16, result: Result<(), ChainError>) -> u32 {
        let mut chain = Chain { head, ..self.chain };
        if let Err(error) = result {
            self.buf.truncate_slices(usize::from(chain.first));
            chain = Chain { head, first: 0, readable: 0, count: 0, len: 0, error: Some(error) };
        }
        self.buf.push_chain(chain);
        chain.len
    }
}

/// Positions in a burst are below 1024.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "see above")]
pub(crate) fn index(n: usize) -> u16 {
    n as u16
}
