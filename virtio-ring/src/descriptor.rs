//! Descriptors, and what both layouts check of the chains that they form.

use crate::chain::MAX_CHAIN;
use crate::memory::Hint;
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

/// The flags of the only descriptor of most chains.
#[inline(always)]
pub(crate) fn plain_flags(direction: Direction) -> u16 {
    match direction {
        Direction::Readable => 0,
        Direction::Writable => F_WRITE,
        Direction::Both => u16::MAX,
    }
}

/// A chain of one descriptor with [`plain_flags`], if it is right.
#[inline(always)]
pub(crate) fn take_plain(
    memory: &GuestMemory,
    hint: &mut Hint,
    plain: u16,
    head: u16,
    desc: &Descriptor,
    buf: &mut ChainBuf,
) -> bool {
    let Some(slice) = memory.slice(desc.addr, desc.len, hint).filter(|_| desc.len > 0) else {
        return false;
    };
    if plain == 0 {
        slice.prefetch_read();
    } else {
        slice.prefetch_write();
    }
    let first = index(buf.n_slices());
    buf.push_slice(slice);
    let readable = u16::from(plain == 0);
    buf.push_chain(Chain { head, first, readable, count: 1, len: desc.len, error: None });
    true
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
