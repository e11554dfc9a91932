//! Frames of a burst by the port that they leave on, in order.

use switch::{MAX_PORTS, PortIndex, TagOp};

/// One copy of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    /// The frame's position in the burst.
    pub(crate) frame: u16,
    next: u16,
    pub(crate) tag: TagOp,
}

impl Job {
    pub(crate) const NONE: Self = Self { frame: 0, next: NONE, tag: TagOp::Keep };

    /// The only copy of the only frame, as it is.
    pub(crate) const SINGLE: Self = Self::NONE;

    /// One copy, as it is.
    pub(crate) const fn keep(frame: u16) -> Self {
        Self { frame, ..Self::NONE }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) port: PortIndex,
    first: u16,
    last: u16,
}

/// Copies that are collected before they are made.
const MAX_JOBS: usize = 1024;
const NONE: u16 = u16::MAX;

#[derive(Debug)]
pub(crate) struct Outputs {
    jobs: Vec<Job>,
    groups: Vec<Group>,
    /// Each port's group, or `NONE`.
    place: Box<[u16]>,
    /// One group's jobs, one behind the other.
    run: Vec<Job>,
}

impl Outputs {
    pub(crate) fn new() -> Self {
        Self {
            jobs: Vec::with_capacity(MAX_JOBS),
            groups: Vec::with_capacity(MAX_JOBS),
            place: vec![NONE; MAX_PORTS].into(),
            run: Vec::with_capacity(MAX_JOBS),
        }
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.jobs.len() >= MAX_JOBS
    }

    /// Adds a copy. The caller has asked `is_full`.
    #[inline]
    pub(crate) fn push(&mut self, port: PortIndex, frame: u16, tag: TagOp) {
        let Some(place) = self.place.get_mut(usize::from(port.0)) else { return };
        let Ok(at) = u16::try_from(self.jobs.len()) else { return };
        match self.groups.get_mut(usize::from(*place)) {
            Some(group) => {
                self.jobs[usize::from(group.last)].next = at;
                group.last = at;
            }
            None => {
                *place = u16::try_from(self.groups.len()).unwrap_or(NONE);
                self.groups.push(Group { port, first: at, last: at });
            }
        }
        self.jobs.push(Job { frame, next: NONE, tag });
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// A group's port, and its jobs in the order in which they were added.
    #[inline]
    pub(crate) fn group(&mut self, at: usize) -> (PortIndex, &[Job]) {
        let group = self.groups[at];
        if self.groups.len() == 1 {
            return (group.port, &self.jobs);
        }
        self.run.clear();
        let mut next = group.first;
        while let Some(job) = self.jobs.get(usize::from(next)) {
            self.run.push(*job);
            next = job.next;
        }
        (group.port, &self.run)
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        for group in &self.groups {
            self.place[usize::from(group.port.0)] = NONE;
        }
        self.groups.clear();
        self.jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_keep_their_order_in_each_group() {
        let mut outputs = Outputs::new();
        for round in 0..2 {
            for frame in 0..60 {
                outputs.push(PortIndex(frame % 3 + round), frame, TagOp::Keep);
            }
            assert_eq!(outputs.groups(), 3);
            for at in 0..3 {
                let (port, jobs) = outputs.group(at);
                let frames: Vec<_> = jobs.iter().map(|job| job.frame).collect();
                let expected: Vec<_> = (0..60).filter(|f| f % 3 + round == port.0).collect();
                assert_eq!(frames, expected);
            }
            outputs.clear();
            assert_eq!(outputs.groups(), 0);
        }
    }
}
