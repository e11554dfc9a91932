//! What is taken and completed of a ring but not published, and what a later process needs to go on after this one was
//! killed at any instant.
//!
//! A split ring's used index is in guest memory, and its store is the publication. A packed ring has no index, and
//! its publication is many stores: every used descriptor but the first, then the first. The driver sees nothing before the last of
//! them, but what it wrote there is gone after the first of them. So a publication is noted before it begins, with
//! all that it writes, and again when it is over: whoever finds it noted and not visible writes it once more.
//!
//! A kill does not undo stores that the processor has made, and the next process sees them in the same file; so only the
//! compiler must keep their order. Power failures are no matter: the guest's memory is gone then, too.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::RingConfig;

/// Bytes of a ring's record in the file: room for the largest ring, of which only what is used takes memory.
const STRIDE: usize = 324 * 1024;
const HEAD: usize = size_of::<Head>();
/// Says that a record is whole, and of this form.
const MAGIC: u32 = 0x6e72_0002;

/// What a record begins with. Behind it are the descriptors of each chain taken (16 bits), then the used entries (64 bits).
#[derive(Debug)]
#[repr(C, align(64))]
struct Head {
    magic: AtomicU32,
    size: AtomicU32,
    desc: AtomicU64,
    avail: AtomicU64,
    used: AtomicU64,
    /// A [`Publication`].
    publication: AtomicU64,
    /// The device's event suppression area as it was before its last change and as it is since.
    area: [AtomicU32; 2],
    /// The lower half of SET_VRING_BASE.
    base: AtomicU32,
}

/// A publication that has begun: `count` chains between two positions. When it is over, the positions are the same and
/// nothing is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) count: u16,
}

/// One mapping, of a file or of none.
#[derive(Debug)]
struct Store {
    base: NonNull<u8>,
    len: usize,
    file: Option<File>,
}

// SAFETY: the mapping belongs to the process, and is accessed by atomic operations only.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    fn of_file(file: File, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(core::ptr::null_mut(), len, prot, flags, &file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, file: Some(file) })
    }

    fn anonymous(len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let base = unsafe { mmap_anonymous(core::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, file: None })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever uses it holds a reference to it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The resume records of one port's rings.
#[derive(Clone, Debug)]
pub struct ResumeFile(Arc<Store>);

impl ResumeFile {
    /// Opens or makes the file, which should be on a tmpfs. One process at a time may use it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path, rings: usize) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let len = rings.max(1) * STRIDE;
        if file.metadata()?.len() != len as u64 {
            ftruncate(&file, len as u64)?;
        }
        Ok(Self(Arc::new(Store::of_file(file, len)?)))
    }

    /// The record of one ring, with its memory allocated.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for a ring that the file has no place for.
    pub fn record(&self, ring: usize, size: u16) -> io::Result<ResumeRecord> {
        let offset = self.offset(ring)?;
        if let Some(file) = &self.0.file {
            // A page that cannot be had must not be found out by a signal.
            fallocate(file, FallocateFlags::empty(), offset as u64, record_len(size) as u64)?;
        }
        Ok(ResumeRecord { mapping: Arc::clone(&self.0), offset })
    }

    /// The ring has ended in order: its record means nothing any more.
    pub fn forget(&self, ring: usize) {
        if let Ok(offset) = self.offset(ring) {
            let record = ResumeRecord { mapping: Arc::clone(&self.0), offset };
            record.head().magic.store(0, Ordering::Release);
        }
    }

    fn offset(&self, ring: usize) -> io::Result<usize> {
        let offset = ring.checked_mul(STRIDE).filter(|offset| offset + STRIDE <= self.0.len);
        offset.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// One ring's record. Only one ring may use it at a time.
#[derive(Clone, Debug)]
pub struct ResumeRecord {
    mapping: Arc<Store>,
    offset: usize,
}

impl ResumeRecord {
    fn head(&self) -> &Head {
        // SAFETY: a record lies in its mapping as a whole, page aligned; all bit patterns are valid, and every field is atomic.
        unsafe { self.mapping.base.add(self.offset).cast::<Head>().as_ref() }
    }
}

fn record_len(size: u16) -> usize {
    done_offset(size) + 8 * usize::from(size)
}

fn done_offset(size: u16) -> usize {
    HEAD + (2 * usize::from(size)).next_multiple_of(8)
}

/// A ring's record in use, or memory of the same form.
///
/// Invariant: `slots` and `done` point to `size` elements inside the record's mapping.
#[derive(Debug)]
pub(crate) struct Journal {
    record: ResumeRecord,
    slots: NonNull<u16>,
    done: NonNull<u64>,
    size: u16,
}

// SAFETY: the pointers lead into the mapping that `record` keeps, not into anything of a thread.
unsafe impl Send for Journal {}

impl Journal {
    /// `size` is at most 32,768.
    pub(crate) fn new(record: Option<&ResumeRecord>, size: u16) -> io::Result<Self> {
        let record = match record {
            Some(record) => record.clone(),
            None => {
                let mapping = Arc::new(Store::anonymous(record_len(size))?);
                ResumeRecord { mapping, offset: 0 }
            }
        };
        // SAFETY: the mapping has at least `record_len(size)` bytes behind the offset, which for 32,768 is less than STRIDE.
        let (slots, done) = unsafe {
            let base = record.mapping.base.add(record.offset);
            (base.add(HEAD).cast(), base.add(done_offset(size)).cast())
        };
        Ok(Self { record, slots, done, size })
    }

    /// Descriptors of each chain taken since the last publication.
    #[inline(always)]
    pub(crate) fn slots(&self) -> &[u16] {
        // SAFETY: by the invariant. Only one ring at a time uses a record, and who has it has the journal.
        unsafe { core::slice::from_raw_parts(self.slots.as_ptr(), usize::from(self.size)) }
    }

    #[inline(always)]
    pub(crate) fn slots_mut(&mut self) -> &mut [u16] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.slots.as_ptr(), usize::from(self.size)) }
    }

    /// Used entries as split rings have them: the chain's head, and above it the bytes written.
    #[inline(always)]
    pub(crate) fn done(&self) -> &[u64] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts(self.done.as_ptr(), usize::from(self.size)) }
    }

    #[inline(always)]
    pub(crate) fn done_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.done.as_ptr(), usize::from(self.size)) }
    }

    /// Notes that a publication begins, or is over.
    #[inline(always)]
    pub(crate) fn note(&self, publication: Publication) {
        let Publication { from, to, count } = publication;
        let word = u64::from(from) | u64::from(to) << 16 | u64::from(count) << 32;
        // Before it are the stores that it sums up, behind it those that it announces.
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        self.record.head().publication.store(word, Ordering::Release);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    /// The last publication of this ring that an earlier process noted.
    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    pub(crate) fn last(&self, config: &RingConfig) -> Option<Publication> {
        let head = self.record.head();
        let same = head.magic.load(Ordering::Acquire) == MAGIC
            && head.size.load(Ordering::Relaxed) == u32::from(config.size)
            && head.desc.load(Ordering::Relaxed) == config.desc
            && head.avail.load(Ordering::Relaxed) == config.avail
            && head.used.load(Ordering::Relaxed) == config.used;
        let word = head.publication.load(Ordering::Relaxed);
        let last =
            Publication { from: word as u16, to: (word >> 16) as u16, count: (word >> 32) as u16 };
        (same && last.count <= self.size).then_some(last)
    }

    /// Begins a record of another ring, or of the same that was set up anew. It counts from the first [`set_area`](Self::set_area) on.
    pub(crate) fn begin(&self, config: &RingConfig, position: u16) {
        let head = self.record.head();
        head.magic.store(0, Ordering::Release);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        head.size.store(u32::from(config.size), Ordering::Relaxed);
        head.desc.store(config.desc, Ordering::Relaxed);
        head.avail.store(config.avail, Ordering::Relaxed);
        head.used.store(config.used, Ordering::Relaxed);
        head.area.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        head.base.store(config.base & 0xffff, Ordering::Relaxed);
        self.note(Publication { from: position, to: position, count: 0 });
        head.magic.store(MAGIC, Ordering::Release);
    }

    /// What the frontend said last of where the ring begins, as far as it is accounted for.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(crate) fn base(&self) -> u16 {
        self.record.head().base.load(Ordering::Relaxed) as u16
    }

    pub(crate) fn set_base(&self, base: u16) {
        self.record.head().base.store(u32::from(base), Ordering::Release);
    }

    /// The device's event suppression area, as it may be.
    pub(crate) fn area(&self) -> [u32; 2] {
        self.record.head().area.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// Notes that the device's area is about to change.
    pub(crate) fn set_area(&self, value: u32) {
        let [before, now] = &self.record.head().area;
        before.store(now.load(Ordering::Relaxed), Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        now.store(value, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// Whether a used entry tells of bytes in the chain's buffers.
#[inline(always)]
pub(crate) fn was_written(entry: &u64) -> bool {
    u64::from_le(*entry) >> 32 > 0
}
