//! Guest memory of a frontend: a memfd mapped here and, by the backend, there.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use anyhow::Context;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Guest address of the first byte.
pub const GUEST_BASE: u64 = 1 << 30;

/// Shared memory; every access is checked against its size. The backend reads and writes it at the
/// same time, so nothing is ever borrowed from it.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the mapping belongs to the value and all access goes by raw copies and atomics.
unsafe impl Send for Memory {}
// SAFETY: as above; races are part of what virtio is.
unsafe impl Sync for Memory {}

impl Memory {
    /// Ordinary pages.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(len: usize) -> anyhow::Result<Memory> {
        Memory::map(memfd_create("guest", MemfdFlags::CLOEXEC)?, len)
    }

    /// 2 MiB pages where the machine has some left, else ordinary ones.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn huge(len: usize) -> anyhow::Result<Memory> {
        let len = len.next_multiple_of(2 << 20);
        memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
            .map_err(anyhow::Error::from)
            .and_then(|fd| Memory::map(fd, len))
            .or_else(|_| Memory::new(len))
    }

    /// Any file of any size: what is beyond its end is there to be tripped over.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn over(fd: OwnedFd, len: usize) -> anyhow::Result<Memory> {
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing of ours.
        let base = unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0).context("mmap")?
        };
        let base = NonNull::new(base.cast()).context("mmap gave null")?;
        Ok(Memory { base, len, fd })
    }

    fn map(fd: OwnedFd, len: usize) -> anyhow::Result<Memory> {
        ftruncate(&fd, len as u64)?;
        Memory::over(fd, len)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address in this process, which ring addresses are given in.
    #[must_use]
    pub fn user_addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Pointer to the first byte, for code that must be fast.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.check(at, bytes.len());
        // SAFETY: the range was checked and the source is a Rust slice elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.check(at, bytes.len());
        // SAFETY: the range was checked and the destination is a Rust slice elsewhere.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// # Panics
    /// When the place is outside or not aligned.
    #[must_use]
    pub fn load_u16(&self, at: usize) -> u16 {
        self.atomic_u16(at).load(Ordering::Acquire)
    }

    /// # Panics
    /// When the place is outside or not aligned.
    pub fn store_u16(&self, at: usize, value: u16) {
        self.atomic_u16(at).store(value, Ordering::Release);
    }

    /// # Panics
    /// When the place is outside or not aligned.
    #[must_use]
    pub fn load_u32(&self, at: usize) -> u32 {
        assert!(at.is_multiple_of(4));
        // SAFETY: in range, aligned, and only accessed atomically or by copies that may be torn.
        unsafe { AtomicU32::from_ptr(self.check(at, 4).cast()) }.load(Ordering::Acquire)
    }

    /// # Panics
    /// When the place is outside or not aligned.
    pub fn store_u64(&self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8));
        // SAFETY: in range, aligned, and only accessed atomically or by copies that may be torn.
        unsafe { AtomicU64::from_ptr(self.check(at, 8).cast()) }.store(value, Ordering::Release);
    }

    fn atomic_u16(&self, at: usize) -> &AtomicU16 {
        assert!(at.is_multiple_of(2));
        // SAFETY: in range, aligned, and only accessed atomically or by copies that may be torn.
        unsafe { AtomicU16::from_ptr(self.check(at, 2).cast()) }
    }

    fn check(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{at}+{len} is outside");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}
