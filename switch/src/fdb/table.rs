//! The buckets: what readers see.

use super::key::{Hash, Key, REST_BITS};
use crate::PortIndex;
use crate::port::MAX_PORTS;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

    const fn parts(self) -> (usize, usize) {
        (self.0 as usize >> WAY_BITS, self.0 as usize & ((1 << WAY_BITS) - 1))
    }
}

pub(super) struct Table {
    hash: Hash,
    buckets: Box<[Bucket]>,
}

impl Table {
    /// Room for `max` entries at a load of at most 40 %, where a key whose two buckets are both full is rare.
    pub(super) fn new(max: usize, seed: [u64; 4]) -> Self {
        let bits = (max * 5 / 2 / WAYS).next_power_of_two().ilog2();
        let hash = Hash::new(seed, bits);
        let buckets = (0..hash.buckets()).map(|_| Bucket::default()).collect();
        Self { hash, buckets }
    }

    /// Above every slot's number.
    pub(super) fn slots(&self) -> usize {
        self.buckets.len() << WAY_BITS
    }

    /// Finds a key without locking.
    #[inline(always)]
    pub(super) fn find(&self, key: Key) -> Option<(Slot, Word)> {
        let place = self.hash.place(key);
        for (bucket, second) in place.buckets.into_iter().zip([false, true]) {
            let wanted = Word::wanted(place.rest, second);
            for (way, word) in self.buckets[bucket].words.iter().enumerate() {
                let word = word.load(Ordering::Relaxed);
                if word & KEY_MASK == wanted {
                    return Some((Slot::new(bucket, way), Word(word)));
                }
            }
        }
        None
    }

    #[inline]
    pub(super) fn seen(&self, slot: Slot) -> u32 {
        let (bucket, way) = slot.parts();
        self.buckets[bucket].seen[way].load(Ordering::Relaxed)
    }

    /// Writes only what changed: most frames come in the same second as the one before.
    #[inline]
    pub(super) fn touch(&self, slot: Slot, now: u32) {
        let (bucket, way) = slot.parts();
        let seen = &self.buckets[bucket].seen[way];
        if seen.load(Ordering::Relaxed) != now {
            seen.store(now, Ordering::Relaxed);
        }
    }

    /// An empty one behind the table's end.
    #[inline]
    pub(super) fn word(&self, slot: Slot) -> Word {
        let (bucket, way) = slot.parts();
        let word = self.buckets.get(bucket).and_then(|bucket| bucket.words.get(way));
        word.map_or(Word::EMPTY, |word| Word(word.load(Ordering::Relaxed)))
    }

    /// [`touch`](Self::touch), if this word is in the slot.
    #[inline(always)]
    pub(super) fn touch_if(&self, slot: Slot, word: Word, now: u32) -> bool {
        let (bucket, way) = slot.parts();
        let Some(bucket) = self.buckets.get(bucket) else { return false };
        let (Some(there), Some(seen)) = (bucket.words.get(way), bucket.seen.get(way)) else {
            return false;
        };
        if there.load(Ordering::Relaxed) != word.0 {
            return false;
        }
        if seen.load(Ordering::Relaxed) != now {
            seen.store(now, Ordering::Relaxed);
        }
        true
    }

    /// The key of the word in the slot.
    pub(super) fn key(&self, slot: Slot, word: Word) -> Key {
        let (bucket, _) = slot.parts();
        self.hash.key(bucket, word.0 >> REST_SHIFT, word.0 & SECOND != 0)
    }

    /// Only with the writers' lock.
    pub(super) fn put(&self, slot: Slot, word: Word) {
        let (bucket, way) = slot.parts();
        self.buckets[bucket].words[way].store(word.0, Ordering::Relaxed);
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
        let choices = place.buckets.into_iter().zip([false, true]);
        let free = |bucket: usize| {
            let words = self.buckets[bucket].words.iter();
            words.filter(|word| !Word(word.load(Ordering::Relaxed)).is_occupied()).count()
        };
        let slots = |bucket: usize| (0..WAYS).map(move |way| Slot::new(bucket, way));
        let second = free(place.buckets[1]) > free(place.buckets[0]);
        let emptier = place.buckets[usize::from(second)];
        if let Some(slot) = slots(emptier).find(|&slot| !self.word(slot).is_occupied()) {
            return Some((slot, Word::new(place.rest, second, port, is_static)));
        }
        let (slot, second) = choices
            .flat_map(|(bucket, second)| slots(bucket).map(move |slot| (slot, second)))
            .filter(|&(slot, _)| !self.word(slot).is_static())
            .min_by_key(|&(slot, _)| self.seen(slot))?;
        Some((slot, Word::new(place.rest, second, port, is_static)))
    }

    /// Every slot, in pieces small enough to be looked through under a lock that workers only try.
    pub(super) fn pieces(&self) -> impl Iterator<Item = impl Iterator<Item = Slot>> {
        const BUCKETS_PER_PIECE: usize = 256;
        let buckets = self.buckets.len();
        (0..buckets).step_by(BUCKETS_PER_PIECE).map(move |first| {
            let piece = first..(first + BUCKETS_PER_PIECE).min(buckets);
            piece.flat_map(|bucket| (0..WAYS).map(move |way| Slot::new(bucket, way)))
        })
    }
}
