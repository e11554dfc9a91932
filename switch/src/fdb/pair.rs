//! Both ends of a conversation as they were found once, and whether they still are.
//!
//! Looking at two entries costs two cache lines for each frame. So the table counts the changes of what was in it, and a pair
//! that was looked at is good until that count moves on or a second is over, when its source has to be noted as heard. A new
//! address changes nothing that was there: who floods the table with new ones costs others nothing.
//!
//! The count is read before the entries, and goes up after an entry has changed: a pair that was looked at meanwhile has the old
//! count, and is looked at again.

use super::table::{Slot, Word};
use super::{Fdb, Key};
use crate::{PortIndex, Seconds};

/// An entry as it was once: place, key and port.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))] // So that a pair leaves room in a cache line.
struct Held {
    slot: Slot,
    word: Word,
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Pair {
    src: Held,
    dst: Held,
    checked: Stamp,
}

/// Count of changes, and the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64);

impl Pair {
    /// In no table.
    pub(crate) const NOTHING: Self = {
        let nothing = Held { slot: Slot(u32::MAX), word: Word::EMPTY };
        Self { src: nothing, dst: nothing, checked: Stamp(0) }
    };
}

impl Fdb {
    /// The entries of two keys, if they are at these ports.
    pub(crate) fn pair(
        &self,
        (source, ingress): (Key, PortIndex),
        (destination, egress): (Key, PortIndex),
        now: Seconds,
    ) -> Option<Pair> {
        let checked = self.stamp(now);
        let hold = |key, port| {
            let (slot, word) = self.table.find(key).filter(|(_, word)| word.port() == port)?;
            Some(Held { slot, word })
        };
        Some(Pair { src: hold(source, ingress)?, dst: hold(destination, egress)?, checked })
    }

    /// Whether both entries are still there; then the source counts as heard now.
    #[inline(always)]
    pub(crate) fn is_still(&self, pair: &mut Pair, now: Seconds) -> bool {
        let stamp = self.stamp(now);
        pair.checked == stamp || self.look_again(pair, stamp, now)
    }

    #[inline(never)]
    fn look_again(&self, pair: &mut Pair, stamp: Stamp, now: Seconds) -> bool {
        let (Held { slot, word }, src) = (pair.dst, pair.src);
        if self.table.word(slot) != word || !self.table.touch_if(src.slot, src.word, now.0) {
            return false;
        }
        pair.checked = stamp;
        true
    }

    #[inline(always)]
    fn stamp(&self, now: Seconds) -> Stamp {
        Stamp(u64::from(self.table.changes()) << 32 | u64::from(now.0))
    }
}
