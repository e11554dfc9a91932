//! The worker's loop: which sources are looked at, and when the worker sleeps.
//!
//! A ring with frames is polled every round. After [`Shared::spin`] without any it is armed (the driver is asked to kick, then the ring
//! is read once more) and leaves the poll set. A worker without polled rings sleeps in epoll; with some it looks at epoll
//! every few rounds. Kick descriptors are edge-triggered and never read. A driver that kicks without frames too
//! often is looked at every millisecond instead, for the rest of the second.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use switch::{PortIndex, Seconds};

use super::burst::Buffers;
use super::meter::Meter;
use super::source::{KernelSource, RingSource, State, Token};
use super::to_vhost::Fault;
use super::{Context, Shared};
use crate::port::vhost_user::VhostPort;
use crate::snapshot::{Device, Snapshot};

/// Rounds between two looks at epoll while rings are polled.
const ROUNDS: u32 = 8;
/// Rounds between two looks at the clock while there is work.
const CLOCK_ROUNDS: u32 = 64;
/// Kicks without frames that one ring may make in a second.
const MAX_EMPTY_KICKS: u32 = 1000;
/// How often rings are looked at that cannot or must not wake the worker.
const TICK: Duration = Duration::from_millis(1);

/// One worker.
pub(crate) struct Poller {
    pub(super) id: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) epoll: std::os::fd::OwnedFd,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) epoch: u64,
    pub(super) rings: Vec<RingSource>,
    pub(super) kernels: Vec<KernelSource>,
    /// Position in `rings`, or in `kernels` behind those.
    pub(super) by_token: HashMap<Token, usize>,
    /// Engines whose frames this worker sends.
    pub(super) engines: Vec<PortIndex>,
    /// Positions of the rings that are polled.
    pub(super) polled: Vec<usize>,
    pub(super) timed: usize,
    /// When those were last looked at.
    timed_last: Instant,
    pub(super) buffers: Buffers,
    pub(super) meter: Meter,
    start: Instant,
    pub(super) clock: Instant,
    now: Seconds,
}

impl Poller {
    /// # Errors
    /// When the process is out of descriptors.
    pub(crate) fn new(id: usize, shared: Arc<Shared>, start: Instant) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = epoll::EventData::new_u64(Token::WAKE.0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, shared.epochs.wake_fd(id), wake, flags)?;
        Ok(Self {
            id,
            shared,
            epoll,
            snapshot: Arc::default(),
            epoch: 0,
            rings: Vec::new(),
            kernels: Vec::new(),
            by_token: HashMap::new(),
            engines: Vec::new(),
            polled: Vec::new(),
            timed: 0,
            timed_last: start,
            buffers: Buffers::new(),
            meter: Meter::default(),
            start,
            clock: start,
            now: Seconds(0),
        })
    }

    /// Works until the datapath stops.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _ended = Ended(&shared, self.id);
        let mut events = Vec::with_capacity(64);
        let mut round = 0_u32;
        self.tick();
        while !shared.workers_stopped() {
            let epoch = shared.epochs.current();
            if epoch != self.epoch {
                self.adopt(epoch);
            }
            round = round.wrapping_add(1);
            let busy = self.poll_rings();
            self.poll_engines();
            if !busy || round.is_multiple_of(CLOCK_ROUNDS) {
                self.tick();
                self.retire();
            }
            let watched = self.polled.len() < self.rings.len() || !self.kernels.is_empty();
            if self.polled.is_empty() {
                let timeout = if self.timed > 0 { Some(TICK) } else { None };
                self.wait(&mut events, timeout);
                self.tick();
                if self.timed > 0 {
                    self.poll_timed();
                }
            } else if watched && round.is_multiple_of(ROUNDS) {
                self.wait(&mut events, Some(Duration::ZERO));
                if self.timed > 0 && self.clock.duration_since(self.timed_last) >= TICK {
                    self.poll_timed();
                }
            }
        }
    }

    /// Looks at every polled ring once. True when there were frames.
    #[inline]
    fn poll_rings(&mut self) -> bool {
        let Self { snapshot, shared, rings, polled, buffers, meter, .. } = self;
        let context = Context { worker: self.id, snapshot, shared, now: self.now };
        let mut busy = false;
        for &at in polled.iter() {
            let ring = &mut rings[at];
            if take(&context, at, ring, buffers, meter) > 0 {
                ring.idle_since = None;
                busy = true;
            }
        }
        busy
    }

    /// Arms the rings that have been empty for long enough.
    fn retire(&mut self) {
        let mut at = 0;
        while let Some(&ring) = self.polled.get(at) {
            let since = *self.rings[ring].idle_since.get_or_insert(self.clock);
            let idle = self.clock.saturating_duration_since(since);
            if idle >= self.shared.spin && self.arm(ring) {
                self.polled.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Asks the driver to kick. False when there are frames already, or the ring is busy elsewhere.
    fn arm(&mut self, at: usize) -> bool {
        let source = &mut self.rings[at];
        let Some(port) = self.snapshot.port(source.port) else { return true };
        let Device::Vhost(vhost) = &port.device else { return true };
        if !source.watched {
            source.state = State::Timed;
            self.timed += 1;
            return true;
        }
        let Some(mut guard) = vhost.tx(source.pair).and_then(|queue| queue.try_lock()) else {
            return false;
        };
        if let Some(live) = guard.as_mut().filter(|_| !vhost.is_quarantined()) {
            let fault = match live.ring.arm() {
                // A ring whose memory is gone is empty or makes no sense.
                _ if live.memory.is_poisoned() => Some(Fault::Memory),
                Ok(false) => None,
                Ok(true) => {
                    live.ring.suppress_kicks();
                    return false;
                }
                Err(error) => Some(Fault::Ring(error)),
            };
            drop(guard);
            if let Some(fault) = fault {
                let Self { snapshot, shared, .. } = &*self;
                let context = Context { worker: self.id, snapshot, shared, now: self.now };
                context.quarantine(port, vhost, &fault);
            }
        }
        self.rings[at].state = State::Armed;
        true
    }

    /// Looks at a ring whose driver has kicked, or whose time has come.
    fn wake_ring(&mut self, at: usize, kicked: bool) {
        let Self { snapshot, shared, rings, buffers, meter, .. } = self;
        let context = Context { worker: self.id, snapshot, shared, now: self.now };
        let ring = &mut rings[at];
        if ring.state == State::Polled {
            return;
        }
        if take(&context, at, ring, buffers, meter) > 0 {
            if ring.state == State::Timed {
                self.timed -= 1;
            }
            ring.state = State::Polled;
            ring.idle_since = None;
            if let Some(Device::Vhost(vhost)) = snapshot.port(ring.port).map(|port| &port.device) {
                suppress_kicks(vhost, ring.pair);
            }
            self.polled.push(at);
            return;
        }
        if !kicked {
            return;
        }
        ring.empty_kicks += 1;
        if ring.empty_kicks > MAX_EMPTY_KICKS && ring.state == State::Armed {
            ring.state = State::Timed;
            self.timed += 1;
            self.unwatch(at);
            return;
        }
        // The driver may have asked nothing of the kind, or the kick was for what a burst took before.
        if !self.arm(at) {
            self.rings[at].state = State::Polled;
            self.rings[at].idle_since = None;
            self.polled.push(at);
        }
    }

    fn poll_timed(&mut self) {
        self.timed_last = self.clock;
        for at in 0..self.rings.len() {
            if self.rings[at].state == State::Timed {
                self.wake_ring(at, false);
            }
        }
    }

    fn poll_engines(&mut self) {
        let Self { snapshot, shared, engines, buffers, .. } = self;
        let context = Context { worker: self.id, snapshot, shared, now: self.now };
        for &engine in engines.iter() {
            let Some(port) = snapshot.port(engine) else { continue };
            let Device::Internal(internal) = &port.device else { continue };
            if internal.has_frames() {
                for egress in std::iter::from_fn(|| internal.take()).take(64) {
                    buffers.send_engine(&context, port, &egress);
                }
            }
        }
    }

    /// Waits for descriptors and serves those that are ready.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, timeout: Option<Duration>) {
        if timeout != Some(Duration::ZERO) && self.engines_have_frames() {
            return;
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        events.clear();
        // Interrupted: the loop comes back.
        let _ = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref());
        if self.meter.is_idle() {
            // What was slept is nobody's.
            self.clock = Instant::now();
        }
        for event in events.iter() {
            let token = Token(event.data.u64());
            let Some(&at) = self.by_token.get(&token) else { continue };
            match at.checked_sub(self.rings.len()) {
                None => self.wake_ring(at, true),
                Some(kernel) => self.poll_kernel(kernel),
            }
        }
    }

    fn engines_have_frames(&self) -> bool {
        self.engines.iter().any(|&engine| {
            let device = self.snapshot.port(engine).map(|port| &port.device);
            matches!(device, Some(Device::Internal(internal)) if internal.has_frames())
        })
    }

    fn poll_kernel(&mut self, at: usize) {
        let Self { snapshot, shared, kernels, buffers, meter, .. } = self;
        let context = Context { worker: self.id, snapshot, shared, now: self.now };
        let source = &kernels[at];
        let Some(port) = snapshot.port(source.port) else { return };
        let Device::Kernel(kernel) = &port.device else { return };
        let taken = buffers.take_kernel(&context, port, kernel, source.queue);
        meter.add(self.rings.len() + at, taken);
        if kernel.is_gone() {
            // Else epoll would report it for ever.
            let _ = epoll::delete(&self.epoll, &source.fd);
        }
    }

    /// Reads the clock and says whose the time was. Once a second the kicks without frames are forgotten.
    pub(super) fn tick(&mut self) {
        let before = std::mem::replace(&mut self.clock, Instant::now());
        if !self.meter.is_idle() {
            let Self { meter, rings, kernels, clock, .. } = self;
            meter.settle(clock.duration_since(before), |at, time| {
                match at.checked_sub(rings.len()) {
                    None => rings[at].duty().spend(time),
                    Some(at) => kernels[at].duty().spend(time),
                }
            });
        }
        let seconds = self.clock.duration_since(self.start).as_secs();
        let now = Seconds(u32::try_from(seconds).unwrap_or(u32::MAX));
        if now != self.now {
            self.now = now;
            for at in 0..self.rings.len() {
                self.rings[at].empty_kicks = 0;
                if self.rings[at].state == State::Timed && self.rings[at].kick.is_some() {
                    self.watch(at);
                    if self.rings[at].watched && self.arm(at) {
                        self.timed -= 1;
                    }
                }
            }
        }
    }

    /// Sends the announcements that are waiting; whichever worker comes first does.
    pub(super) fn announce(&mut self) {
        let Self { snapshot, shared, buffers, .. } = self;
        let context = Context { worker: self.id, snapshot, shared, now: self.now };
        for port in snapshot.ports() {
            if let Device::Vhost(vhost) = &port.device
                && let Some(mac) = vhost.take_announcement()
            {
                buffers.announce(&context, port, mac);
            }
        }
    }
}

/// One burst of a ring.
#[inline]
fn take(
    context: &Context<'_>,
    at: usize,
    ring: &RingSource,
    buffers: &mut Buffers,
    meter: &mut Meter,
) -> usize {
    let Some(port) = context.snapshot.port(ring.port) else { return 0 };
    let Device::Vhost(vhost) = &port.device else { return 0 };
    let taken = buffers.take_vhost(context, port, vhost, ring.pair);
    if taken.frames > 0 {
        meter.add(at, taken);
    }
    taken.frames
}

pub(super) fn suppress_kicks(vhost: &VhostPort, pair: usize) {
    if let Some(mut guard) = vhost.tx(pair).and_then(|queue| queue.try_lock())
        && let Some(live) = guard.as_mut()
    {
        live.ring.suppress_kicks();
    }
}

/// Nobody waits for a worker that has ended, however that came about.
struct Ended<'s>(&'s Shared, usize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.epochs.ended(self.1);
    }
}
