//! Where a packed ring goes on that was in use before: by this process in other memory, by one that handed it over, or by one
//! that was killed.

use core::sync::atomic::Ordering;

use super::PackedRing;
use crate::RingConfig;
use crate::journal::{Journal, Publication};
use crate::position::{F_USED, Position, WRAP};

/// Why the position may not be what it seems.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doubt {
    /// The frontend said 0, which is the first place in every other turn; also what one says that knows split rings only and
    /// means a new ring (User-mode Linux). The first descriptor tells.
    Turn,
    /// The frontend has used these descriptors itself.
    Taken { from: Position, to: Position },
}

impl PackedRing {
    /// Goes on where `before` has published.
    pub(crate) fn follow(&mut self, before: &Self) {
        if before.used.at() < self.size {
            (self.used, self.next) = (before.used, before.used);
            self.signalled = before.signalled;
            self.doubt = before.doubt;
        }
    }

    /// Goes on where an earlier process left this ring, if the journal is of this ring as it is: ends the
    /// publication that was under way. False when it is not.
    pub(crate) fn resume(&mut self, config: &RingConfig, journal: &Journal) -> bool {
        let Some(last) = journal.last(config) else { return false };
        let (Some(from), Some(to)) =
            (Position::new(last.from, self.size), Position::new(last.to, self.size))
        else {
            return false;
        };
        if !self.was_used(journal) {
            return false;
        }
        let said = self.used;
        if last.count > 0 && self.owner(from) == from.offered() {
            self.used = from;
            self.write_used(last.count, journal);
        }
        let taken = self.taken_by_frontend(to, said, journal);
        let next = if let Some((from, end)) = taken
            && from == to
        {
            end
        } else {
            to
        };
        // Nobody can have used what is taken next.
        if self.owner(next) == next.used() {
            self.used = said;
            return false;
        }
        self.go_to(to, journal);
        self.doubt = taken.map(|(from, to)| Doubt::Taken { from, to });
        if self.doubt.is_some() {
            self.settle(journal);
        } else {
            journal.set_base(said.bits());
        }
        true
    }

    /// What the frontend has used of the ring at `position`, if it did.
    ///
    /// QEMU takes a TX ring over from a backend that is gone, and drops what it finds there. It finds it where it knows that
    /// the ring began, which is anywhere in what the driver has offered, or nothing; SET_VRING_BASE says how far it came.
    fn taken_by_frontend(
        &self,
        position: Position,
        said: Position,
        journal: &Journal,
    ) -> Option<(Position, Position)> {
        let (base, size) = (Position::new(journal.base(), self.size)?, self.size);
        let (len, ahead) = (said.distance(base, size), said.distance(position, size));
        // It may begin within what was published last.
        let from = if len < ahead { base } else { position };
        let taken = base != said && (1..=u32::from(size)).contains(&ahead) && len <= size.into();
        (taken && self.owner(from) != from.offered()).then_some((from, said))
    }

    fn go_to(&mut self, at: Position, journal: &Journal) {
        (self.used, self.next) = (at, at);
        journal.note(Publication { from: at.bits(), to: at.bits(), count: 0 });
    }

    /// The ring is the one that the journal is of, not one that was set up anew in its place: such a ring is all zero but for
    /// what the driver offers in its first turn.
    ///
    /// One sign is enough: what the device said last in its area, or a descriptor with USED, which the device sets
    /// in the first turn and the driver in the second. QEMU says other things in the area while it has no backend; and
    /// there is no USED where only the end of a chain lies at the beginning of a later turn.
    fn was_used(&self, journal: &Journal) -> bool {
        let area = u32::from_le(self.device_area().load(Ordering::Acquire));
        let kept = area != 0 && journal.area().contains(&area);
        kept || (0..self.size).any(|at| self.owner(Position(at)) & F_USED != 0)
    }

    /// Goes on at a position that another process has given; one that the ring does not have is left out of account.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(crate) fn resume_at(&mut self, position: u32, journal: &Journal) {
        if let Some(at) = Position::new(position as u16, self.size) {
            self.go_to(at, journal);
            if at.bits() != 0 {
                self.doubt = self.doubt.filter(|doubt| matches!(doubt, Doubt::Taken { .. }));
            }
        }
    }

    /// Looks whether the doubt is over.
    #[cold]
    pub(super) fn settle(&mut self, journal: &Journal) {
        match self.doubt {
            // In the turn that 0 names, the first descriptor was used in the turn before, or is offered again; in a new ring it
            // was never used, or is offered for the first time.
            Some(Doubt::Turn) => {
                let first = Position(WRAP);
                let owner = self.owner(first);
                if owner == 0 || owner == first.offered() {
                    self.go_to(first, journal);
                }
                // Until something was offered the memory may still be set up.
                self.doubt = (owner == 0).then_some(Doubt::Turn);
            }
            Some(Doubt::Taken { from, to }) if self.open == 0 && self.next == from => {
                self.go_to(to, journal);
                journal.set_base(to.bits());
                self.doubt = None;
            }
            Some(Doubt::Taken { .. }) | None => {}
        }
    }

    /// Begins the record of the ring at its position.
    pub(crate) fn record(&self, config: &RingConfig, journal: &Journal) {
        journal.begin(config, self.used.bits());
    }
}
