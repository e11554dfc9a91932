//! Taking up a new configuration: which sources are this worker's, and which are not any more.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use tracing::warn;

use super::poller::{Poller, suppress_kicks};
use super::source::{KernelSource, RingSource, State, Token};
use crate::balance::Duty;
use crate::port::internal;
use crate::snapshot::{Device, Port};

impl Poller {
    /// Takes up a new snapshot: lets go of sources that are no more, begins with new ones.
    #[cold]
    pub(super) fn adopt(&mut self, epoch: u64) {
        self.tick();
        let snapshot = self.shared.current.load_full();
        let mut old: HashMap<Token, RingSource> =
            self.rings.drain(..).map(|ring| (ring.token, ring)).collect();
        let mut old_kernels: HashMap<Token, KernelSource> =
            self.kernels.drain(..).map(|kernel| (kernel.token, kernel)).collect();
        let mut fresh = Vec::new();
        self.engines.clear();
        for port in snapshot.ports() {
            match &port.device {
                Device::Vhost(vhost) => {
                    for setup in vhost.tx_setup() {
                        let pair = usize::from(setup.queue);
                        let token = Token::new(port.index, pair);
                        if !self.is_mine(vhost.duties(), pair) {
                            continue;
                        }
                        let same = old.get(&token).is_some_and(|ring| {
                            ring.generation == setup.generation
                                && same_fd(ring.kick.as_ref(), setup.kick.as_ref())
                        });
                        if let (true, Some(ring)) = (same, old.remove(&token)) {
                            self.rings.push(ring);
                            continue;
                        }
                        // Its last worker may have asked for them.
                        suppress_kicks(vhost, pair);
                        fresh.push(RingSource {
                            token,
                            port: port.index,
                            pair,
                            duties: Arc::clone(vhost.duties()),
                            generation: setup.generation,
                            kick: setup.kick,
                            watched: false,
                            state: State::Polled,
                            idle_since: None,
                            empty_kicks: 0,
                        });
                    }
                }
                Device::Kernel(kernel) => {
                    for queue in (0..kernel.queues()).filter(|_| !kernel.is_gone()) {
                        let token = Token::new(port.index, queue);
                        if !self.is_mine(kernel.duties(), queue) {
                            continue;
                        }
                        let source = old_kernels.remove(&token).or_else(|| {
                            let source = self.watch_kernel(port, queue, token);
                            source
                                .inspect_err(|error| {
                                    warn!(port = %port.id, queue, %error, "cannot wait for frames");
                                })
                                .ok()
                        });
                        self.kernels.extend(source);
                    }
                }
                Device::Internal(_) if self.id == internal::WORKER => {
                    self.engines.push(port.index);
                }
                Device::Internal(_) => {}
            }
        }
        for ring in old.values().filter(|ring| ring.watched) {
            if let Some(kick) = &ring.kick {
                let _ = epoll::delete(&self.epoll, kick);
            }
        }
        for kernel in old_kernels.values() {
            let _ = epoll::delete(&self.epoll, &kernel.fd);
        }
        drop((old, old_kernels));
        let first = self.rings.len();
        self.rings.append(&mut fresh);
        for at in first..self.rings.len() {
            self.watch(at);
        }
        let rings = self.rings.iter().map(|ring| ring.token);
        let kernels = self.kernels.iter().map(|kernel| kernel.token);
        self.by_token = rings.chain(kernels).enumerate().map(|(at, token)| (token, at)).collect();
        let polled = |(at, ring): (usize, &RingSource)| (ring.state == State::Polled).then_some(at);
        self.polled = self.rings.iter().enumerate().filter_map(polled).collect();
        self.timed = self.rings.iter().filter(|ring| ring.state == State::Timed).count();
        self.buffers.forget();
        self.meter.reset(self.rings.len() + self.kernels.len());
        self.snapshot = snapshot;
        self.epoch = epoch;
        self.shared.epochs.seen(self.id, epoch);
        self.announce();
    }

    fn is_mine(&self, duties: &[Duty], queue: usize) -> bool {
        duties.get(queue).and_then(Duty::owner) == Some(self.id)
    }

    pub(super) fn watch(&mut self, at: usize) {
        let ring = &mut self.rings[at];
        let Some(kick) = &ring.kick else { return };
        let data = epoll::EventData::new_u64(ring.token.0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        // One that cannot be waited for is looked at every millisecond.
        ring.watched = ring.watched || epoll::add(&self.epoll, kick, data, flags).is_ok();
    }

    pub(super) fn unwatch(&mut self, at: usize) {
        let ring = &mut self.rings[at];
        if let (true, Some(kick)) = (ring.watched, &ring.kick) {
            let _ = epoll::delete(&self.epoll, kick);
        }
        ring.watched = false;
    }

    fn watch_kernel(&self, port: &Port, queue: usize, token: Token) -> io::Result<KernelSource> {
        let Device::Kernel(kernel) = &port.device else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let guard = kernel.queue(queue).ok_or(io::ErrorKind::NotFound)?;
        let fd = guard.as_fd().try_clone_to_owned()?;
        let data = epoll::EventData::new_u64(token.0);
        epoll::add(&self.epoll, &fd, data, epoll::EventFlags::IN)?;
        let duties = Arc::clone(kernel.duties());
        Ok(KernelSource { token, port: port.index, queue, duties, fd })
    }
}

fn same_fd(one: Option<&Arc<OwnedFd>>, other: Option<&Arc<OwnedFd>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}
