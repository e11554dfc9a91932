//! The writers' books: how many entries each port owns, and in which order they came.
//!
//! One list per port, threaded through arrays by slot, which grow with the table. Only dynamic entries are listed. A port's victim is found by
//! second chance: an entry that has been heard since it was put in line goes to the end once more, so that finding a
//! victim takes a bounded number of steps however large the table is.

use super::table::{CHUNK, Slot, Table, WAYS};
use crate::PortIndex;
use crate::port::MAX_PORTS;

const NIL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// `seen` when the entry was put in line.
    heard: u32,
}

#[derive(Clone, Copy)]
struct Line {
    first: u32,
    last: u32,
    len: u32,
}

pub(super) struct Owners {
    /// Of a chunk of buckets each.
    links: Vec<Box<[Link]>>,
    lines: Box<[Line; MAX_PORTS]>,
    /// Dynamic entries of all ports.
    pub(super) dynamic: usize,
    pub(super) statics: usize,
}

impl Owners {
    pub(super) fn new() -> Self {
        Self {
            links: Vec::new(),
            lines: Box::new([Line { first: NIL, last: NIL, len: 0 }; MAX_PORTS]),
            dynamic: 0,
            statics: 0,
        }
    }

    fn link(&mut self, slot: u32) -> &mut Link {
        let (bucket, way) = Slot(slot).parts();
        let chunk = bucket / CHUNK;
        while self.links.len() <= chunk {
            let nowhere = Link { next: NIL, previous: NIL, heard: 0 };
            self.links.push(vec![nowhere; CHUNK * WAYS].into());
        }
        &mut self.links[chunk][bucket % CHUNK * WAYS + way]
    }

    pub(super) fn len(&self) -> usize {
        self.dynamic + self.statics
    }

    pub(super) fn owned(&self, port: PortIndex) -> usize {
        self.lines.get(usize::from(port.0)).map_or(0, |line| line.len as usize)
    }

    /// The port's first in line.
    pub(super) fn first(&self, port: PortIndex) -> Option<Slot> {
        let line = self.lines.get(usize::from(port.0))?;
        (line.first != NIL).then_some(Slot(line.first))
    }

    /// The port with the most dynamic entries; among equals another than `other_than`.
    pub(super) fn largest(&self, other_than: PortIndex) -> Option<PortIndex> {
        let ports = (0u16..).map(PortIndex).zip(self.lines.iter());
        let (port, _) = ports
            .filter(|(_, line)| line.len > 0)
            .max_by_key(|&(port, line)| (line.len, port != other_than))?;
        Some(port)
    }

    /// Puts a new dynamic entry at the end of its port's line.
    pub(super) fn push(&mut self, port: PortIndex, slot: Slot, heard: u32) {
        let Line { first, last, len } = self.lines[usize::from(port.0)];
        *self.link(slot.0) = Link { next: NIL, previous: last, heard };
        let first = if last == NIL { slot.0 } else { first };
        if last != NIL {
            self.link(last).next = slot.0;
        }
        self.lines[usize::from(port.0)] = Line { first, last: slot.0, len: len + 1 };
        self.dynamic += 1;
    }

    /// Takes a dynamic entry out of its port's line.
    pub(super) fn remove(&mut self, port: PortIndex, slot: Slot) {
        let Link { next, previous, .. } = *self.link(slot.0);
        self.join(port, previous, next);
        self.lines[usize::from(port.0)].len -= 1;
        self.dynamic -= 1;
    }

    /// A dynamic entry is in another slot, at the same place of its port's line.
    pub(super) fn moved(&mut self, port: PortIndex, from: Slot, to: Slot) {
        let link = *self.link(from.0);
        *self.link(to.0) = link;
        self.join(port, link.previous, to.0);
        self.join(port, to.0, link.next);
    }

    /// Makes neighbours of two places of a line; nothing is before the first and behind the last.
    fn join(&mut self, port: PortIndex, one: u32, other: u32) {
        match one {
            NIL => self.lines[usize::from(port.0)].first = other,
            one => self.link(one).next = other,
        }
        match other {
            NIL => self.lines[usize::from(port.0)].last = one,
            other => self.link(other).previous = one,
        }
    }

    /// The entry of the port that gives way to a new one: one of those silent for longest.
    pub(super) fn victim(&mut self, port: PortIndex, table: &Table) -> Option<Slot> {
        const CHANCES: usize = 32;
        let mut quietest: Option<(u32, Slot)> = None;
        for _ in 0..CHANCES {
            let slot = self.first(port)?;
            let seen = table.seen(slot);
            if seen == self.link(slot.0).heard {
                return Some(slot);
            }
            if quietest.is_none_or(|(least, _)| seen < least) {
                quietest = Some((seen, slot));
            }
            self.remove(port, slot);
            self.push(port, slot, seen);
        }
        quietest.map(|(_, slot)| slot)
    }
}
