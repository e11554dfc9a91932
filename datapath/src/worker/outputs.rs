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
    jobs: Box<[Job; MAX_JOBS]>,
    n_jobs: usize,
    groups: Vec<Group>,
    /// Each port's group, or `NONE`.
    place: Box<[u16]>,
    /// One group's jobs, one behind the other.
    run: Vec<Job>,
}

impl Outputs {
    pub(crate) fn new() -> Self {
        Self {
            jobs: Box::new([Job::NONE; MAX_JOBS]),
            n_jobs: 0,
            groups: Vec::with_capacity(MAX_JOBS),
            place: vec![NONE; MAX_PORTS].into(),
            run: Vec::with_capacity(MAX_JOBS),
        }
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.n_jobs >= MAX_JOBS
    }

    /// Adds a copy. The caller has asked `is_full`.
    #[inline(always)]
    pub(crate) fn push(&mut self, port: PortIndex, frame: u16, tag: TagOp) {
        #[expect(clippy::cast_possible_truncation, reason = "up to MAX_JOBS")]
        let at = self.n_jobs as u16;
        let Some(job) = self.jobs.get_mut(self.n_jobs) else { return };
        *job = Job { frame, next: NONE, tag };
        // A burst mostly goes to one port.
        if let Some(group) = self.groups.last_mut().filter(|group| group.port == port) {
            let last = usize::from(core::mem::replace(&mut group.last, at));
            if let Some(last) = self.jobs.get_mut(last) {
                last.next = at;
            }
            self.n_jobs += 1;
        } else {
            self.push_elsewhere(port, at);
        }
    }

    /// Gives the newest job to a group that is not the last one.
    #[inline(never)]
    fn push_elsewhere(&mut self, port: PortIndex, at: u16) {
        let Some(place) = self.place.get_mut(usize::from(port.0)) else { return };
        if let Some(group) = self.groups.get_mut(usize::from(*place)) {
            self.jobs[usize::from(group.last)].next = at;
            group.last = at;
        } else {
            *place = u16::try_from(self.groups.len()).unwrap_or(NONE);
            self.groups.push(Group { port, first: at, last: at });
        }
        self.n_jobs += 1;
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// A group's port, and its jobs in the order in which they were added.
    #[inline]
    pub(crate) fn group(&mut self, at: usize) -> (PortIndex, &[Job]) {
        let group = self.groups[at];
        if self.groups.len() == 1 {
            return (group.port, &self.jobs[..self.n_jobs]);
        }
        self.run.clear();
        let mut next = group.first;
        while let Some(job) = self.jobs[..self.n_jobs].get(usize::from(next)) {
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
        self.n_jobs = 0;
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
