//! How entries go: one by one, port by port, by age.

use std::ops::Range;
use std::time::Duration;

use wire::{MacAddr, Vid};

use super::Fdb;
use super::key::Key;
use super::owners::Owners;
use super::table::{Slot, Table, Word};
use crate::port::MAX_PORTS;
use crate::sync::atomic::Ordering;
use crate::{PortIndex, Seconds};

/// Buckets that are looked through, or entries that are removed, under a lock that workers only try.
const PIECE: usize = 256;

impl Fdb {
    /// Whether there was such a static entry.
    pub fn remove_static(&self, mac: MacAddr, vlan: Vid) -> bool {
        self.remove_if(mac, vlan, Word::is_static)
    }

    /// Removes an entry, learned or static. Whether there was one.
    pub fn remove(&self, mac: MacAddr, vlan: Vid) -> bool {
        self.remove_if(mac, vlan, |_| true)
    }

    /// Removes every learned entry. Returns how many.
    pub fn flush(&self) -> usize {
        (0u16..).take(MAX_PORTS).map(|port| self.flush_port(PortIndex(port))).sum()
    }

    /// Removes what was learned on a port. Returns how many.
    pub fn flush_port(&self, port: PortIndex) -> usize {
        let (mut removed, mut left) = (0, self.lock().owned(port));
        while left > 0 {
            // The lock is let go between pieces, so that workers go on learning.
            let mut owners = self.lock();
            for _ in 0..left.min(PIECE) {
                let Some(slot) = owners.first(port) else { return removed };
                self.take_out(&mut owners, slot, self.table.word(slot));
                removed += 1;
            }
            left = left.saturating_sub(PIECE);
        }
        removed
    }

    /// Removes everything of a port, static entries too. Returns how many. For a port that goes away, when no worker
    /// can learn on it any more.
    pub fn remove_port(&self, port: PortIndex) -> usize {
        let (mut removed, mut at) = (self.flush_port(port), 0);
        // Static entries move with the table's growth only, which is towards the end.
        while at < self.table.count() {
            let mut owners = self.lock();
            let piece = at..(at + PIECE).min(self.table.count());
            at = piece.end;
            let of_port = |word: Word, _| word.is_static() && word.port() == port;
            removed += self.take_out_where(&mut owners, piece, of_port);
        }
        removed
    }

    /// Calls of [`expire`](Self::expire) that look at all of a table.
    pub const EXPIRE_PARTS: usize = 32;

    /// Removes what has been silent for `ageing` or longer, in that part of the table that comes next: one of
    /// [`EXPIRE_PARTS`](Self::EXPIRE_PARTS), and at least 512 buckets. Returns how many.
    pub fn expire(&self, now: Seconds, ageing: Duration) -> usize {
        const LEAST: usize = 512;
        let is_old = |word: Word, slot| {
            let silent = now.0.saturating_sub(self.table.seen(slot));
            !word.is_static() && u64::from(silent) >= ageing.as_secs()
        };
        let mut expired = 0;
        let mut left = self.table.count().div_ceil(Self::EXPIRE_PARTS).max(LEAST);
        while left > 0 {
            let (count, hand) = (self.table.count(), self.hand.load(Ordering::Relaxed));
            let first = if hand < count { hand } else { 0 };
            let piece = first..(first + PIECE.min(left)).min(count);
            left -= piece.len();
            self.hand.store(piece.end, Ordering::Relaxed);
            // Workers learn nothing while somebody has the lock: only for what has to go.
            let any_old = Table::slots(piece.clone()).any(|slot| {
                let word = self.table.word(slot);
                word.is_occupied() && is_old(word, slot)
            });
            if any_old {
                expired += self.take_out_where(&mut self.lock(), piece, is_old);
            }
        }
        self.counters.expired.fetch_add(expired as u64, Ordering::Relaxed);
        expired
    }

    pub(super) fn take_out(&self, owners: &mut Owners, slot: Slot, word: Word) {
        self.table.clear(slot);
        if word.is_static() {
            owners.statics -= 1;
        } else {
            owners.remove(word.port(), slot);
        }
    }

    fn remove_if(&self, mac: MacAddr, vlan: Vid, condition: fn(Word) -> bool) -> bool {
        let mut owners = self.lock();
        match self.table.find(Key::new(mac, vlan)) {
            Some((slot, word)) if condition(word) => {
                self.take_out(&mut owners, slot, word);
                true
            }
            _ => false,
        }
    }

    fn take_out_where(
        &self,
        owners: &mut Owners,
        piece: Range<usize>,
        condition: impl Fn(Word, Slot) -> bool,
    ) -> usize {
        let mut removed = 0;
        for slot in Table::slots(piece) {
            let word = self.table.word(slot);
            if word.is_occupied() && condition(word, slot) {
                self.take_out(owners, slot, word);
                removed += 1;
            }
        }
        removed
    }
}
