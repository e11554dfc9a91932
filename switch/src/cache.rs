//! What a worker remembers of decisions, so that a conversation's next frame costs one look instead of many.
//!
//! An exact match on what the bridge reads of the second layer: the port and the frame's first 16 bytes (addresses, EtherType, and
//! the tag if there is one). An entry holds the two words of the forwarding table that the decision came from; it counts only while
//! both are still there, so a station that moves, ages out or is flushed is noticed at once, and a guest that floods
//! the table with new addresses costs others nothing. A new configuration makes the worker forget everything.
//!
//! ```text
//!   port, 16 bytes ──128-bit product──► one of two entries: key │ source's word, destination's word │ output
//!                                                                   ▲ still in the table? (looked at after a change of it)
//! ```

use std::hash::{BuildHasher, RandomState};

use wire::ipv4;

use crate::decision::Egress;
use crate::fdb::{Fdb, Key, Pair};
use crate::{PortIndex, Seconds, TagOp};

const INDEX_BITS: u32 = 14;

/// Decisions of one worker: 16,384 of them, 1 MiB. See the module's documentation.
pub struct DecisionCache {
    entries: Box<[Entry; 1 << INDEX_BITS]>,
    /// Secret, so that nobody can choose addresses that displace others'.
    secret: [u64; 2],
    /// Entries of another one are forgotten.
    generation: u32,
    /// Counts decisions that found live entries in both places.
    displaced: u32,
}

/// Of the decisions that find both places taken, one in so many takes it: with more conversations than places
/// most would only be written and never read.
const DISPLACE: u32 = 8;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Entry {
    key: FlowKey,
    pair: Pair,
    egress: Egress,
    /// Where the IPv4 header would begin; 0 when frames of the flow are never trapped.
    trap_at: u8,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// Port and first bytes, in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FlowKey {
    first: u64,
    second: u64,
    /// The port, and above it the generation.
    origin: u64,
}

impl FlowKey {
    /// `None` for a frame that is shorter than what the key reads.
    #[inline(always)]
    fn new(ingress: PortIndex, generation: u32, window: &[u8]) -> Option<Self> {
        let head: &[u8; 16] = window.first_chunk()?;
        let (first, second) = (*head.first_chunk()?, *head.last_chunk()?);
        Some(Self {
            first: u64::from_ne_bytes(first),
            second: u64::from_ne_bytes(second),
            origin: u64::from(generation) << 32 | u64::from(ingress.0),
        })
    }

    fn generation(&self) -> u64 {
        self.origin >> 32
    }
}

impl Default for DecisionCache {
    fn default() -> Self {
        let nothing = Entry {
            key: FlowKey { first: 0, second: 0, origin: 0 },
            pair: Pair::NOTHING,
            egress: Egress { port: PortIndex(0), tag: TagOp::Keep },
            trap_at: 0,
        };
        let random = RandomState::new();
        Self {
            entries: boxed(vec![nothing; 1 << INDEX_BITS]),
            secret: std::array::from_fn(|part| random.hash_one(part)),
            generation: 1,
            displaced: 0,
        }
    }
}

/// Made on the heap: an array of this size is too large for a stack.
fn boxed<const N: usize>(entries: Vec<Entry>) -> Box<[Entry; N]> {
    match entries.into_boxed_slice().try_into() {
        Ok(entries) => entries,
        Err(_) => unreachable!("a vector of N entries"),
    }
}

impl DecisionCache {
    /// Forgets everything: the configuration is another one.
    pub fn forget(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            *self = Self::default();
        }
    }

    /// The two places of a key, by different bits of one product: of 2,048 conversations, one in 200 finds both taken.
    #[inline(always)]
    fn places(&self, key: &FlowKey) -> [usize; 2] {
        let [first, second] = self.secret;
        // The port goes where no address is.
        let rest = key.second ^ key.origin.rotate_right(16);
        let product = u128::from(key.first ^ first) * u128::from(rest ^ second);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let mixed = (product >> 64) as u64 ^ product as u64;
        [mixed, mixed >> 32].map(|bits| (bits & ((1 << INDEX_BITS) - 1)) as usize)
    }

    /// The output of a frame like one that was decided before, and whose source and destination are where they were. Its source
    /// counts as heard.
    #[inline(always)]
    pub(crate) fn recall(
        &mut self,
        fdb: &Fdb,
        ingress: PortIndex,
        window: &[u8],
        now: Seconds,
    ) -> Option<Egress> {
        let key = FlowKey::new(ingress, self.generation, window)?;
        let [place, other] = self.places(&key);
        let place = if self.entries[place].key == key { place } else { other };
        let entry = &mut self.entries[place];
        if entry.key != key {
            return None;
        }
        if entry.trap_at != 0 && may_ask_dhcp4(window, usize::from(entry.trap_at)) {
            return None;
        }
        fdb.is_still(&mut entry.pair, now).then_some(entry.egress)
    }

    /// Keeps a decision: frames of `source` that come in through `ingress` for `destination` leave by `egress`, and in
    /// between are looked at for DHCP if there is a `trap`.
    #[inline(never)]
    pub(crate) fn keep(
        &mut self,
        fdb: &Fdb,
        (ingress, source): (PortIndex, Key),
        (egress, destination): (Egress, Key),
        trap_at: Option<usize>,
        window: &[u8],
        now: Seconds,
    ) {
        let Some(key) = FlowKey::new(ingress, self.generation, window) else { return };
        let free = |place: &usize| {
            let there = &self.entries[*place].key;
            *there == key || there.generation() != key.generation()
        };
        let places = self.places(&key);
        let place = places.into_iter().find(free).unwrap_or(places[0]);
        let entry = &mut self.entries[place];
        if entry.key.generation() == key.generation() && entry.key != key {
            self.displaced = self.displaced.wrapping_add(1);
            if !self.displaced.is_multiple_of(DISPLACE) {
                return;
            }
        }
        // The source may not have been learned: the table was busy, or the port's share is used up.
        let pair = fdb.pair((source, ingress), (destination, egress.port), now);
        let Some(pair) = pair else { return };
        let trap_at = trap_at.and_then(|at| u8::try_from(at).ok()).unwrap_or(0);
        *entry = Entry { key, pair, egress, trap_at };
    }
}

impl std::fmt::Debug for DecisionCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecisionCache")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Whether a frame with an IPv4 header at `at`, if it has one, may be for port 67 of UDP.
#[inline(always)]
fn may_ask_dhcp4(window: &[u8], at: usize) -> bool {
    const NO_OPTIONS: u8 = 5;
    const SERVER_PORT: [u8; 2] = 67_u16.to_be_bytes();
    let Some(header) = window.get(at..).and_then(<[u8]>::first_chunk::<24>) else {
        // Too short for a header and ports: not of a kind to be fast with.
        return true;
    };
    header[9] == ipv4::PROTOCOL_UDP
        && (header[0] & 15 != NO_OPTIONS || [header[22], header[23]] == SERVER_PORT)
}
