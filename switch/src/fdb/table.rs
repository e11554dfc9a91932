//! The buckets: what readers see.
//!
//! A table begins small and gets one bucket more for every two entries beyond, in memory that is made for 512 of them
//! at a time. No step of that is long, so the worker that learns does it. A reader with the old number of buckets may miss an
//! entry that moves: its frame is flooded.

use std::sync::OnceLock;

use super::key::{Hash, Key, MAX_BUCKETS, MIN_BUCKETS, REST_BITS, parent};
use crate::PortIndex;
use crate::port::MAX_PORTS;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Entries in a bucket: as many as a cache line holds.
pub(super) const WAYS: usize = 5;

const WAY_BITS: u32 = 3;
const _: () = assert!(WAYS <= 1 << WAY_BITS);

const PORT_MASK: u64 = 0x3ff;
const STATIC: u64 = 1 << 10;
const SECOND: u64 = 1 << 11;
const OCCUPIED: u64 = 1 << 12;
const REST_SHIFT: u32 = 13;
/// What a key decides of a word.
const KEY_MASK: u64 = !(PORT_MASK | STATIC);

const _: () = assert!(MAX_PORTS as u64 == PORT_MASK + 1);
const _: () = assert!(REST_BITS + REST_SHIFT <= 64);
const _: () = assert!(crate::sync::MODELLED || size_of::<Bucket>() == 64);

/// One entry: stored part of the key, occupied, which of its two buckets this is, static, port. Zero is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) const EMPTY: Self = Self(0);

    pub(super) fn new(rest: u64, second: bool, port: PortIndex, is_static: bool) -> Self {
        Self(
            Self::wanted(rest, second)
                | if is_static { STATIC } else { 0 }
                | u64::from(port.0) & PORT_MASK,
        )
    }

    #[inline]
    const fn wanted(rest: u64, second: bool) -> u64 {
        rest << REST_SHIFT | OCCUPIED | if second { SECOND } else { 0 }
    }

    #[inline]
    pub(super) const fn is_occupied(self) -> bool {
        self.0 & OCCUPIED != 0
    }

    #[inline]
    pub(super) const fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }

    /// Which of its key's buckets it is in.
    fn choice(self) -> usize {
        usize::from(self.0 & SECOND != 0)
    }

    #[inline]
    pub(super) const fn port(self) -> PortIndex {
        let [low, high, ..] = (self.0 & PORT_MASK).to_le_bytes();
        PortIndex(u16::from_le_bytes([low, high]))
    }

    /// The same key at another port.
    pub(super) fn with_port(self, port: PortIndex, is_static: bool) -> Self {
        Self(self.0 & KEY_MASK | if is_static { STATIC } else { 0 } | u64::from(port.0) & PORT_MASK)
    }
}

#[derive(Default)]
#[repr(C, align(64))]
struct Bucket {
    words: [AtomicU64; WAYS],
    /// When each entry's address last sent, in seconds. Not tied to the word: at worst an entry that replaces another
    /// at that moment looks as fresh as that one.
    seen: [AtomicU32; WAYS],
}

/// The place of an entry: the bucket's number, and the way in the lowest three bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^24 buckets")]
    const fn new(bucket: usize, way: usize) -> Self {
        Self((bucket << WAY_BITS | way) as u32)
    }

    pub(super) const fn parts(self) -> (usize, usize) {
        (self.0 as usize >> WAY_BITS, self.0 as usize & ((1 << WAY_BITS) - 1))
    }
}

/// Buckets whose memory is made at once: 32 KiB.
pub(super) const CHUNK: usize = 512;
/// Buckets to begin with: 128 KiB, 4,096 entries.
const FIRST: usize = 2048;
/// At this load, 40 %, a key whose two buckets are both full is rare.
const ENTRIES_PER_BUCKET: usize = 2;

pub(super) struct Table {
    hash: Hash,
    /// In use.
    count: AtomicUsize,
    /// How often an entry that was there changed or went.
    changes: AtomicU32,
    /// Those that are always there.
    first: Box<[Bucket]>,
    /// Those behind them.
    more: Box<[OnceLock<Box<[Bucket]>>]>,
}

fn buckets(count: usize) -> Box<[Bucket]> {
    (0..count).map(|_| Bucket::default()).collect()
}

impl Table {
    /// For at most `max` entries.
    pub(super) fn new(max: usize, seed: [u64; 4]) -> Self {
        let most = (max / ENTRIES_PER_BUCKET).next_power_of_two().clamp(MIN_BUCKETS, MAX_BUCKETS);
        let first = most.min(FIRST);
        let more = (first..most).step_by(CHUNK).map(|_| OnceLock::new()).collect();
        let (hash, count) = (Hash::new(seed), AtomicUsize::new(first));
        Self { hash, count, changes: AtomicU32::new(0), first: buckets(first), more }
    }

    /// Buckets in use.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Moves on after each change of an entry that was there: what is read after this is at least as new.
    #[inline(always)]
    pub(super) fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn bucket(&self, at: usize) -> Option<&Bucket> {
        match self.first.get(at) {
            None => self.behind(at.wrapping_sub(self.first.len())),
            first => first,
        }
    }

    #[inline]
    fn behind(&self, at: usize) -> Option<&Bucket> {
        self.more.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    /// Finds a key without locking.
    #[inline(always)]
    pub(super) fn find(&self, key: Key) -> Option<(Slot, Word)> {
        let (place, count) = (self.hash.place(key), self.count());
        for choice in [0, 1] {
            let at = place.bucket(choice, count);
            let wanted = Word::wanted(place.rest, choice == 1);
            let Some(bucket) = self.bucket(at) else { continue };
            for (way, word) in bucket.words.iter().enumerate() {
                let word = word.load(Ordering::Relaxed);
                if word & KEY_MASK == wanted {
                    return Some((Slot::new(at, way), Word(word)));
                }
            }
        }
        None
    }

    #[inline]
    pub(super) fn seen(&self, slot: Slot) -> u32 {
        let (bucket, way) = slot.parts();
        let seen = self.bucket(bucket).and_then(|bucket| bucket.seen.get(way));
        seen.map_or(0, |seen| seen.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn touch(&self, slot: Slot, now: u32) {
        let (bucket, way) = slot.parts();
        if let Some(seen) = self.bucket(bucket).and_then(|bucket| bucket.seen.get(way)) {
            note(seen, now);
        }
    }

    /// An empty one behind the table's end.
    #[inline]
    pub(super) fn word(&self, slot: Slot) -> Word {
        let (bucket, way) = slot.parts();
        let word = self.bucket(bucket).and_then(|bucket| bucket.words.get(way));
        word.map_or(Word::EMPTY, |word| Word(word.load(Ordering::Relaxed)))
    }

    /// [`touch`](Self::touch), if this word is in the slot.
    #[inline(always)]
    pub(super) fn touch_if(&self, slot: Slot, word: Word, now: u32) -> bool {
        let (bucket, way) = slot.parts();
        let Some(bucket) = self.bucket(bucket) else { return false };
        let (Some(there), Some(seen)) = (bucket.words.get(way), bucket.seen.get(way)) else {
            return false;
        };
        if there.load(Ordering::Relaxed) != word.0 {
            return false;
        }
        note(seen, now);
        true
    }

    /// The key of the word in the slot.
    pub(super) fn key(&self, slot: Slot, word: Word) -> Key {
        let (bucket, _) = slot.parts();
        self.hash.key(bucket, word.0 >> REST_SHIFT, word.choice())
    }

    /// Only with the writers' lock.
    pub(super) fn put(&self, slot: Slot, word: Word) {
        let (bucket, way) = slot.parts();
        if let Some(there) = self.bucket(bucket).and_then(|bucket| bucket.words.get(way)) {
            let before = Word(there.load(Ordering::Relaxed));
            there.store(word.0, Ordering::Relaxed);
            if before.is_occupied() {
                self.changes.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Only with the writers' lock.
    pub(super) fn clear(&self, slot: Slot) {
        self.put(slot, Word::EMPTY);
    }

    /// A free slot for a key that is not in the table, in the emptier of its buckets, and the word to put there. When
    /// both are full, the dynamic entry in them that has been silent for longest is in the slot; `None` when all
    /// entries are static.
    pub(super) fn room(&self, key: Key, port: PortIndex, is_static: bool) -> Option<(Slot, Word)> {
        let place = self.hash.place(key);
        let buckets = place.buckets(self.count());
        let slots = |bucket: usize| (0..WAYS).map(move |way| Slot::new(bucket, way));
        let free = |bucket: usize| slots(bucket).filter(|&slot| !self.word(slot).is_occupied());
        let second = free(buckets[1]).count() > free(buckets[0]).count();
        if let Some(slot) = free(buckets[usize::from(second)]).next() {
            return Some((slot, Word::new(place.rest, second, port, is_static)));
        }
        let choices = buckets.into_iter().zip([false, true]);
        let (slot, second) = choices
            .flat_map(|(bucket, second)| slots(bucket).map(move |slot| (slot, second)))
            .filter(|&(slot, _)| !self.word(slot).is_static())
            .min_by_key(|&(slot, _)| self.seen(slot))?;
        Some((slot, Word::new(place.rest, second, port, is_static)))
    }

    /// Makes room in the buckets of a key, if they are full, by moving an entry of theirs to its other bucket. Returns
    /// what moved: from, to. Only with the writers' lock.
    pub(super) fn displace(&self, key: Key) -> Option<(Slot, Slot)> {
        let count = self.count();
        let slots = |bucket: usize| (0..WAYS).map(move |way| Slot::new(bucket, way));
        let free = |bucket: usize| slots(bucket).find(|&slot| !self.word(slot).is_occupied());
        let buckets = self.hash.place(key).buckets(count);
        if buckets.into_iter().any(|bucket| free(bucket).is_some()) {
            return None;
        }
        let (from, to) = buckets.into_iter().flat_map(slots).find_map(|from| {
            let word = self.word(from);
            let other = self.hash.place(self.key(from, word)).bucket(1 - word.choice(), count);
            let to = free(other)?;
            (!word.is_static()).then_some((from, to))
        })?;
        self.touch(to, self.seen(from));
        self.put(to, Word(self.word(from).0 ^ SECOND));
        self.clear(from);
        Some((from, to))
    }

    /// Takes one more bucket into use, if `entries` are too many for those that are. Returns what moved there: from, to.
    /// Only with the writers' lock.
    pub(super) fn grow(&self, entries: usize) -> [Option<(Slot, Slot)>; WAYS] {
        let mut moved = [None; WAYS];
        let last = self.count();
        let room = self.first.len() + self.more.len() * CHUNK;
        if entries <= last * ENTRIES_PER_BUCKET || last >= room {
            return moved;
        }
        if let Some(chunk) = self.more.get((last - self.first.len()) / CHUNK) {
            chunk.get_or_init(|| buckets(CHUNK));
        }
        let old = parent(last);
        for (way, moved) in moved.iter_mut().enumerate() {
            let (from, to) = (Slot::new(old, way), Slot::new(last, way));
            let word = self.word(from);
            let place = self.hash.place(self.key(from, word));
            if word.is_occupied() && place.bucket(word.choice(), last + 1) == last {
                self.touch(to, self.seen(from));
                self.put(to, word);
                *moved = Some((from, to));
            }
        }
        // Entries are in both buckets here: who reads the one number or the other finds them.
        self.count.store(last + 1, Ordering::Release);
        moved.iter().flatten().for_each(|&(from, _)| self.clear(from));
        moved
    }

    /// The slots of some buckets.
    pub(super) fn slots(buckets: std::ops::Range<usize>) -> impl Iterator<Item = Slot> {
        buckets.flat_map(|bucket| (0..WAYS).map(move |way| Slot::new(bucket, way)))
    }
}

/// Writes only what changed: most frames come in the same second as the one before.
#[inline(always)]
fn note(seen: &AtomicU32, now: u32) {
    if seen.load(Ordering::Relaxed) != now {
        seen.store(now, Ordering::Relaxed);
    }
}
