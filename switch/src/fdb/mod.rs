//! The forwarding database: which port an address of a VLAN was last heard on.
//!
//! Workers look up and refresh without locks; what changes the table's shape (a new address, a station that moved,
//! static entries, ageing, flushes) goes through one lock. Workers only try that lock: a frame whose source cannot be
//! learned at that moment is forwarded all the same, and the station's next frame teaches it.
//!
//! ```text
//!   (MAC, VLAN) ──hash──► two buckets of one cache line: 5 × [key rest | port | static]  5 × last heard
//!                                        ▲ one atomic load                      ▲ relaxed, once a second
//!   lock: per-port lines of entries, counts, limits ──► who gives way when the table or a port's share is full
//! ```
//!
//! Invariants: a key is in at most one slot; a reader gets the port that some writer stored for exactly that key; every
//! dynamic entry is in the line of the port in its word. Memory grows with the entries, and stays.
//!
//! A full table is shared out as Open vSwitch does it: a new address takes the place of one of the port that owns most,
//! of those silent for longest. So a port that has few keeps them, whatever the others send.

mod key;
mod owners;
mod pair;
mod removal;
mod table;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, TryLockError};

use wire::{MacAddr, Vid};

pub(crate) use self::key::Key;
use self::owners::Owners;
pub(crate) use self::pair::Pair;
use self::table::{Slot, Table, Word};
use crate::port::MAX_PORTS;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::{PortIndex, Seconds};

/// See the module's documentation.
pub struct Fdb {
    table: Table,
    max: usize,
    counters: Counters,
    owners: Mutex<Owners>,
    /// The bucket at which the search for silent entries goes on.
    hand: AtomicUsize,
}

#[derive(Default)]
struct Counters {
    learned: AtomicU64,
    moved: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
    skipped: AtomicU64,
    static_conflicts: AtomicU64,
}

/// What came of learning a frame's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Known at this port.
    Refreshed,
    New,
    /// It was at this port before.
    Moved(PortIndex),
    /// A static entry holds the address, at this or another port.
    Static,
    /// Another thread was writing; the next frame will do.
    Skipped,
    /// No room: the port may own none, or static entries fill the table.
    Refused,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    pub mac: MacAddr,
    pub vlan: Vid,
    pub port: PortIndex,
    /// When the address last sent; `None` for a static entry.
    pub last_seen: Option<Seconds>,
}

/// Sizes and events of a table since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FdbStats {
    pub entries: usize,
    pub max_entries: usize,
    pub static_entries: usize,
    pub learned: u64,
    /// Stations heard on another port than before.
    pub moved: u64,
    pub expired: u64,
    /// Entries that gave way to others because the table or a port's share was full.
    pub evicted: u64,
    /// Sources not learned because another thread was writing.
    pub skipped: u64,
    /// Frames whose source address belongs to a static entry of another port.
    pub static_conflicts: u64,
}

/// A static entry could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaticError {
    /// The address is a group address or all zero.
    NotAStation,
    /// Static entries fill the table.
    TableFull,
}

impl fmt::Display for StaticError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAStation => "a group address or the zero address cannot have an entry",
            Self::TableFull => "the forwarding table is full of static entries",
        })
    }
}

impl std::error::Error for StaticError {}

impl Fdb {
    /// Entries of a table unless configured otherwise.
    pub const DEFAULT_MAX_ENTRIES: usize = 131_072;
    /// Entries that a table can be made for.
    pub const MAX_ENTRIES: usize = 1_000_000;

    /// A table for at most `max` entries, kept within 10 to [`MAX_ENTRIES`](Self::MAX_ENTRIES), with a random seed.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let random = RandomState::new();
        Self::with_seed(max, std::array::from_fn(|part| random.hash_one(part)))
    }

    /// As [`Fdb::new`] with a seed of one's own. Who knows the seed can choose addresses that displace each other.
    #[must_use]
    pub fn with_seed(max: usize, seed: [u64; 4]) -> Self {
        let max = max.clamp(10, Self::MAX_ENTRIES);
        let table = Table::new(max, seed);
        let owners = Mutex::new(Owners::new());
        Self { table, max, counters: Counters::default(), owners, hand: AtomicUsize::new(0) }
    }

    /// The port of an address. Never blocks.
    #[must_use]
    #[inline]
    pub fn lookup(&self, mac: MacAddr, vlan: Vid) -> Option<PortIndex> {
        self.find(Key::new(mac, vlan))
    }

    #[inline]
    pub(crate) fn find(&self, key: Key) -> Option<PortIndex> {
        self.table.find(key).map(|(_, word)| word.port())
    }

    /// Notes that a frame from `mac` came in through `port`, which may own `limit` learned entries. Never blocks.
    ///
    /// When the port's share is full, one of its own entries that have been silent for longest gives way; when the
    /// table is full, one of the port that owns most.
    #[inline]
    pub fn learn(
        &self,
        mac: MacAddr,
        vlan: Vid,
        port: PortIndex,
        limit: usize,
        now: Seconds,
    ) -> Learned {
        self.hear(Key::new(mac, vlan), port, limit, now)
    }

    /// [`Fdb::learn`]
    #[inline]
    pub(crate) fn hear(&self, key: Key, port: PortIndex, limit: usize, now: Seconds) -> Learned {
        if let Some((slot, word)) = self.table.find(key)
            && word.port() == port
        {
            if word.is_static() {
                return Learned::Static;
            }
            self.table.touch(slot, now.0);
            return Learned::Refreshed;
        }
        self.learn_locked(key, port, limit, now)
    }

    #[cold]
    fn learn_locked(&self, key: Key, port: PortIndex, limit: usize, now: Seconds) -> Learned {
        if usize::from(port.0) >= MAX_PORTS || limit == 0 {
            return Learned::Refused;
        }
        // Static entries are told apart before the lock: a guest that uses the gateway's address must not be able to
        // keep others from learning.
        if let Some((_, word)) = self.table.find(key)
            && word.is_static()
        {
            count(&self.counters.static_conflicts);
            return Learned::Static;
        }
        let mut owners = match self.owners.try_lock() {
            Ok(owners) => owners,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                count(&self.counters.skipped);
                return Learned::Skipped;
            }
        };
        match self.table.find(key) {
            Some((_, word)) if word.is_static() => Learned::Static,
            Some((slot, word)) if word.port() == port => {
                self.table.touch(slot, now.0);
                Learned::Refreshed
            }
            Some((slot, word)) => {
                let before = word.port();
                owners.remove(before, slot);
                if owners.owned(port) >= limit {
                    self.evict_from(&mut owners, port);
                }
                self.table.touch(slot, now.0);
                self.table.put(slot, word.with_port(port, false));
                owners.push(port, slot, now.0);
                count(&self.counters.moved);
                Learned::Moved(before)
            }
            None => {
                if owners.owned(port) >= limit {
                    self.evict_from(&mut owners, port);
                }
                if self.insert(&mut owners, key, port, Some(now)) {
                    count(&self.counters.learned);
                    Learned::New
                } else {
                    Learned::Refused
                }
            }
        }
    }

    /// Puts an entry into the table that stays until it is removed, is not refreshed and not moved by frames. Returns
    /// the port of the entry that it replaced, learned or static.
    ///
    /// # Errors
    /// [`StaticError`]
    ///
    /// # Panics
    /// When `port` is not below [`MAX_PORTS`].
    pub fn add_static(
        &self,
        mac: MacAddr,
        vlan: Vid,
        port: PortIndex,
    ) -> Result<Option<PortIndex>, StaticError> {
        assert!(usize::from(port.0) < MAX_PORTS, "port index {} out of range", port.0);
        if !mac.is_station() {
            return Err(StaticError::NotAStation);
        }
        let key = Key::new(mac, vlan);
        let mut owners = self.lock();
        if let Some((slot, word)) = self.table.find(key) {
            if !word.is_static() {
                owners.remove(word.port(), slot);
                owners.statics += 1;
            }
            self.table.put(slot, word.with_port(port, true));
            return Ok(Some(word.port()));
        }
        if self.insert(&mut owners, key, port, None) {
            Ok(None)
        } else {
            Err(StaticError::TableFull)
        }
    }

    /// All entries, ordered by VLAN and address. One that makes room for another meanwhile may be missed.
    #[must_use]
    pub fn entries(&self) -> Vec<FdbEntry> {
        let mut entries = Vec::with_capacity(self.lock().len());
        let mut at = 0;
        // Growing moves entries towards the end, which is looked at again each time.
        while at < self.table.count() {
            for slot in Table::slots(at..at + 1) {
                let word = self.table.word(slot);
                if word.is_occupied() {
                    let key = self.table.key(slot, word);
                    let last_seen = (!word.is_static()).then(|| Seconds(self.table.seen(slot)));
                    let (mac, vlan, port) = (key.mac(), key.vid(), word.port());
                    entries.push(FdbEntry { mac, vlan, port, last_seen });
                }
            }
            at += 1;
        }
        entries.sort_unstable_by_key(|entry| (entry.vlan, entry.mac));
        // One that moved meanwhile may have been seen in both places.
        entries.dedup_by_key(|entry| (entry.vlan, entry.mac));
        entries
    }

    #[must_use]
    pub fn stats(&self) -> FdbStats {
        let (entries, static_entries) = {
            let owners = self.lock();
            (owners.len(), owners.statics)
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FdbStats {
            entries,
            max_entries: self.max,
            static_entries,
            learned: read(&self.counters.learned),
            moved: read(&self.counters.moved),
            expired: read(&self.counters.expired),
            evicted: read(&self.counters.evicted),
            skipped: read(&self.counters.skipped),
            static_conflicts: read(&self.counters.static_conflicts),
        }
    }

    /// A writer that panicked cannot have left a torn entry: every step of a change leaves the table usable.
    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key that is not in the table; `heard` is `None` for a static entry. False when there is no room.
    fn insert(
        &self,
        owners: &mut Owners,
        key: Key,
        port: PortIndex,
        heard: Option<Seconds>,
    ) -> bool {
        if owners.len() >= self.max
            && !owners.largest(port).is_some_and(|largest| self.evict_from(owners, largest))
        {
            return false;
        }
        if let Some((from, to)) = self.table.displace(key) {
            owners.moved(self.table.word(to).port(), from, to);
        }
        let Some((slot, word)) = self.table.room(key, port, heard.is_none()) else { return false };
        let occupant = self.table.word(slot);
        if occupant.is_occupied() {
            self.evict(owners, slot, occupant);
        }
        if let Some(now) = heard {
            self.table.touch(slot, now.0);
            owners.push(port, slot, now.0);
        } else {
            owners.statics += 1;
        }
        self.table.put(slot, word);
        for (from, to) in self.table.grow(owners.len()).into_iter().flatten() {
            let word = self.table.word(to);
            if !word.is_static() {
                owners.moved(word.port(), from, to);
            }
        }
        true
    }

    /// Makes one learned entry of the port give way. False when it has none.
    fn evict_from(&self, owners: &mut Owners, port: PortIndex) -> bool {
        let Some(slot) = owners.victim(port, &self.table) else { return false };
        self.evict(owners, slot, self.table.word(slot));
        true
    }

    fn evict(&self, owners: &mut Owners, slot: Slot, word: Word) {
        self.take_out(owners, slot, word);
        count(&self.counters.evicted);
    }
}

impl fmt::Debug for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the seed.
        f.debug_struct("Fdb").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
