//! A checked run of bytes in guest memory.

use core::marker::PhantomData;

use crate::{GuestMemory, copy};

/// A run of bytes in guest memory that was checked against a mapped region as a whole. It borrows the mapping.
///
/// Others write these bytes at any time: what is read twice may differ. Every access is clipped to the run.
///
/// Invariant: `ptr..ptr+len` lies inside a region of a [`GuestMemory`] that lives for `'m`, or `len` is 0.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'m> {
    ptr: *mut u8,
    len: usize,
    memory: PhantomData<&'m GuestMemory>,
}

impl<'m> GuestSlice<'m> {
    pub const EMPTY: Self = Self { ptr: core::ptr::null_mut(), len: 0, memory: PhantomData };

    /// # Safety
    /// The invariant: the range is mapped shared, readable and writable for `'m`.
    #[inline]
    pub(crate) unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, memory: PhantomData }
    }

    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Without the first `n` bytes; empty when there are no more.
    #[must_use]
    #[inline]
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        Self { ptr: self.ptr.wrapping_add(n), len: self.len - n, memory: PhantomData }
    }

    /// At most the first `n` bytes.
    #[must_use]
    #[inline]
    pub fn first(self, n: usize) -> Self {
        Self { len: self.len.min(n), ..self }
    }

    /// Copies as many bytes as both have, and returns how many.
    #[inline(always)]
    pub fn read(self, dst: &mut [u8]) -> usize {
        let n = self.len.min(dst.len());
        // SAFETY: by the invariant the source is mapped for `len >= n` bytes; `dst` is private memory of at least `n`.
        unsafe { copy::copy(dst.as_mut_ptr(), self.ptr, n) };
        n
    }

    /// Copies as many bytes as both have, and returns how many.
    #[inline(always)]
    pub fn write(self, src: &[u8]) -> usize {
        let n = self.len.min(src.len());
        // SAFETY: by the invariant the destination is mapped for `len >= n` bytes; `src` has at least `n`.
        unsafe { copy::copy(self.ptr, src.as_ptr(), n) };
        n
    }

    /// Copies as many bytes as both have from one guest's memory into another's, and returns how many. The two may
    /// overlap, which makes the bytes arbitrary.
    #[inline(always)]
    pub fn copy_from(self, src: GuestSlice<'_>) -> usize {
        let n = self.len.min(src.len);
        // SAFETY: by the invariant both are mapped for at least `n` bytes, and the copy tolerates overlap.
        unsafe { copy::copy(self.ptr, src.ptr, n) };
        n
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *const u8 {
        self.ptr
    }

    /// For a gathering write: mapped for `'m`, and a fault the process survives.
    #[must_use]
    #[inline]
    pub fn as_iovec(self) -> libc::iovec {
        libc::iovec { iov_base: self.ptr.cast(), iov_len: self.len }
    }

    /// Asks for the first two cache lines for reading.
    #[inline(always)]
    pub fn prefetch_read(self) {
        copy::prefetch_read(self.ptr);
        copy::prefetch_read(self.ptr.wrapping_add(64));
    }

    /// Asks for the first two cache lines for writing.
    #[inline(always)]
    pub fn prefetch_write(self) {
        copy::prefetch_write(self.ptr);
        copy::prefetch_write(self.ptr.wrapping_add(64));
    }
}
