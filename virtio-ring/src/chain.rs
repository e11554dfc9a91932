//! What a burst takes out of a ring: chains of slices in storage that the caller keeps.

use crate::GuestSlice;
use crate::descriptor::index;

/// Chains in one burst at most.
pub const MAX_BURST: usize = 64;
/// Descriptors in one chain at most. A 64 KiB frame in 4 KiB pages needs 18; DPDK's mbufs chain up to 255.
pub const MAX_CHAIN: usize = 256;
/// Descriptors after which a burst takes no further chain.
pub(crate) const MAX_DESCRIPTORS: usize = 512;
/// A last chain may begin just below the limit.
const SLICES: usize = MAX_DESCRIPTORS + MAX_CHAIN;

/// Which descriptors a ring's chains must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver sends: only device-readable ones.
    Readable,
    /// The driver receives: only device-writable ones.
    Writable,
    /// Requests and answers: readable ones, then writable ones.
    Both,
}

/// What is wrong with a chain. Its head is valid, so it can be returned to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("the chain loops or is longer than the ring or 256 descriptors")]
    TooLong,
    #[error("a descriptor's next index is outside the table")]
    Next,
    #[error("a descriptor is empty")]
    Empty,
    #[error("a descriptor lies outside the guest's memory")]
    Memory,
    #[error("a descriptor has the wrong direction, or a readable one follows a writable one")]
    Direction,
    #[error(
        "an indirect table is not negotiated, nested, chained, empty, misaligned or not a multiple of 16 bytes"
    )]
    Indirect,
    #[error("the chain holds 4 GiB or more")]
    TooLarge,
}

/// One chain: its head, its slices (by position in the burst) and how many bytes they hold.
#[derive(Clone, Copy, Debug)]
#[repr(C)] // What is the same in most chains is one word.
pub struct Chain {
    /// What goes back to the driver in the used entry.
    pub head: u16,
    pub(crate) first: u16,
    /// Bytes of all slices.
    pub len: u32,
    pub(crate) readable: u16,
    pub(crate) count: u16,
    /// Set when the chain cannot be used; it has no slices then.
    pub error: Option<ChainError>,
}

const NO_CHAIN: Chain = Chain { head: 0, first: 0, readable: 0, count: 0, len: 0, error: None };

/// Storage for one burst, used again and again.
#[derive(Debug)]
pub struct ChainBuf {
    chains: Box<[Chain; MAX_BURST]>,
    /// `'static` only while nobody looks: [`ChainBuf::finish`] hands them out with the lifetime of the memory.
    slices: Box<[GuestSlice<'static>]>,
    n_chains: usize,
    n_slices: usize,
    /// Every chain has one slice.
    all_plain: bool,
}

// SAFETY: the slices are unreachable except through `finish`, whose result borrows the buffer and the memory; between bursts they
// are stale values that nobody reads.
unsafe impl Send for ChainBuf {}

impl Default for ChainBuf {
    fn default() -> Self {
        Self {
            chains: Box::new([NO_CHAIN; MAX_BURST]),
            slices: vec![GuestSlice::EMPTY; SLICES].into(),
            n_chains: 0,
            n_slices: 0,
            all_plain: true,
        }
    }
}

impl ChainBuf {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.n_chains = 0;
        self.n_slices = 0;
        self.all_plain = true;
    }

    #[inline]
    pub(crate) fn n_slices(&self) -> usize {
        self.n_slices
    }

    #[inline]
    pub(crate) fn truncate_slices(&mut self, n: usize) {
        self.n_slices = n;
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.n_chains == MAX_BURST || self.n_slices >= MAX_DESCRIPTORS
    }

    /// Adds a slice of the chain being gathered. A chain has at most [`MAX_CHAIN`], so there is always room.
    #[inline(always)]
    pub(crate) fn push_slice(&mut self, slice: GuestSlice<'_>) {
        if let Some(place) = self.slices.get_mut(self.n_slices) {
            // SAFETY: only the lifetime changes; see the field and `finish`.
            *place = unsafe { core::mem::transmute::<GuestSlice<'_>, GuestSlice<'static>>(slice) };
            self.n_slices += 1;
        }
    }

    /// Adds chains of one slice each, as long as there is room and `next` gives a head and its slice. Returns how many.
    #[inline(always)]
    pub(crate) fn fill<'m, const READABLE: bool>(
        &mut self,
        mut next: impl FnMut() -> Option<(u16, GuestSlice<'m>)>,
    ) -> usize {
        let room = MAX_DESCRIPTORS.saturating_sub(self.n_slices).min(MAX_BURST - self.n_chains);
        let chains = &mut self.chains[self.n_chains..][..room];
        let slices = &mut self.slices[self.n_slices..][..room];
        let mut n = 0;
        while n < room {
            let Some((head, slice)) = next() else { break };
            // SAFETY: only the lifetime changes; see the field and `finish`.
            slices[n] =
                unsafe { core::mem::transmute::<GuestSlice<'_>, GuestSlice<'static>>(slice) };
            #[expect(clippy::cast_possible_truncation, reason = "cut from a descriptor's 32 bits")]
            let len = slice.len() as u32;
            let first = index(self.n_slices + n);
            let readable = u16::from(READABLE);
            chains[n] = Chain { head, first, len, readable, count: 1, error: None };
            n += 1;
        }
        self.n_chains += n;
        self.n_slices += n;
        n
    }

    /// Adds a chain whose slices, none or many, have been added.
    #[inline]
    pub(crate) fn push_chain(&mut self, chain: Chain) {
        self.all_plain = false;
        if let Some(place) = self.chains.get_mut(self.n_chains) {
            *place = chain;
            self.n_chains += 1;
        }
    }

    /// What was gathered since `clear`.
    ///
    /// # Safety
    /// Every slice pushed since `clear` must be of memory that lives for `'m`.
    #[inline]
    pub(crate) unsafe fn finish<'b, 'm>(&'b self) -> Chains<'b, 'm> {
        let slices: &'b [GuestSlice<'static>] = &self.slices[..self.n_slices];
        Chains { chains: &self.chains[..self.n_chains], slices, all_plain: self.all_plain }
    }
}

/// The chains of a burst, in ring order.
#[derive(Clone, Copy, Debug)]
pub struct Chains<'b, 'm> {
    chains: &'b [Chain],
    slices: &'b [GuestSlice<'m>],
    all_plain: bool,
}

impl<'b, 'm> Chains<'b, 'm> {
    pub const EMPTY: Self = Self { chains: &[], slices: &[], all_plain: true };

    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &'b [Chain] {
        self.chains
    }

    /// The chain at a position below `len()`; an empty one elsewhere.
    #[must_use]
    #[inline]
    pub fn chain(&self, at: usize) -> Chain {
        self.chains.get(at).copied().unwrap_or(NO_CHAIN)
    }

    /// The slices of all chains, when every chain has exactly one.
    #[must_use]
    #[inline(always)]
    pub fn plain(&self) -> Option<&'b [GuestSlice<'m>]> {
        (self.all_plain && self.slices.len() == self.chains.len()).then_some(self.slices)
    }

    /// All slices of a chain of this burst.
    #[must_use]
    #[inline]
    pub fn slices(&self, chain: &Chain) -> &'b [GuestSlice<'m>] {
        let first = usize::from(chain.first);
        self.slices.get(first..first + usize::from(chain.count)).unwrap_or(&[])
    }

    /// The slices of consecutive chains, from `at` on, `n` of them, as one list.
    #[must_use]
    #[inline]
    pub fn slices_of(&self, at: usize, n: usize) -> &'b [GuestSlice<'m>] {
        let (Some(first), Some(last)) =
            (self.chains.get(at), self.chains.get((at + n).wrapping_sub(1)))
        else {
            return &[];
        };
        let range = usize::from(first.first)..usize::from(last.first) + usize::from(last.count);
        self.slices.get(range).unwrap_or(&[])
    }

    /// The readable and the writable slices of a chain of this burst.
    #[must_use]
    pub fn split(&self, chain: &Chain) -> (&'b [GuestSlice<'m>], &'b [GuestSlice<'m>]) {
        let slices = self.slices(chain);
        slices.split_at_checked(usize::from(chain.readable)).unwrap_or((slices, &[]))
    }
}
