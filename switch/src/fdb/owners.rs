//! The writers' books: how many entries each port owns, and in which order they came.
//!
//! One list per port, threaded through arrays by slot. Only dynamic entries are listed. A port's victim is found by
//! second chance: an entry that has been heard since it was put in line goes to the end once more, so that finding a
//! victim takes a bounded number of steps however large the table is.

use super::table::{Slot, Table};
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
    links: Box<[Link]>,
    lines: Box<[Line; MAX_PORTS]>,
    /// Dynamic entries of all ports.
    pub(super) dynamic: usize,
    pub(super) statics: usize,
}

impl Owners {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            links: vec![Link { next: NIL, previous: NIL, heard: 0 }; slots].into_boxed_slice(),
            lines: Box::new([Line { first: NIL, last: NIL, len: 0 }; MAX_PORTS]),
            dynamic: 0,
            statics: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.dynamic + self.statics
    }

    pub(super) fn owned(&self, port: PortIndex) -> usize {
        self.lines[usize::from(port.0)].len as usize
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
        let line = &mut self.lines[usize::from(port.0)];
        self.links[slot.0 as usize] = Link { next: NIL, previous: line.last, heard };
        if line.last == NIL {
            line.first = slot.0;
        } else {
            self.links[line.last as usize].next = slot.0;
        }
        line.last = slot.0;
        line.len += 1;
        self.dynamic += 1;
    }

    /// Takes a dynamic entry out of its port's line.
    pub(super) fn remove(&mut self, port: PortIndex, slot: Slot) {
        let line = &mut self.lines[usize::from(port.0)];
        let Link { next, previous, .. } = self.links[slot.0 as usize];
        if previous == NIL {
            line.first = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next == NIL {
            line.last = previous;
        } else {
            self.links[next as usize].previous = previous;
        }
        line.len -= 1;
        self.dynamic -= 1;
    }

    /// The entry of the port that gives way to a new one: one of those silent for longest.
    pub(super) fn victim(&mut self, port: PortIndex, table: &Table) -> Option<Slot> {
        const CHANCES: usize = 32;
        let mut quietest: Option<(u32, Slot)> = None;
        for _ in 0..CHANCES {
            let first = self.lines[usize::from(port.0)].first;
            if first == NIL {
                return None;
            }
            let slot = Slot(first);
            let seen = table.seen(slot);
            if seen == self.links[first as usize].heard {
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
