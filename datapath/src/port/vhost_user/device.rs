//! One connection's device: from what the frontend said to rings that workers use.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use vhost_user::features::virtio;
use vhost_user::{Action, Device as Told, Outcome};
use virtio_ring::{
    DirtyLog, GuestMemory, MapError, MappedRegion, MemoryError, RegionSpec, Ring, RingConfig,
    RingError,
};
use wire::MacAddr;

use super::call::Call;
use super::config_space::header_len;
use super::control_queue::ControlQueue;
use super::logging::{Logging, Need};
use super::queue::{Live, Queue, TxSetup, VhostPort};
use super::rx_filter::RxModes;
use crate::offload::OffloadSet;

/// How long a worker's burst is waited for before the thread goes on with other ports.
const PATIENCE: Duration = Duration::from_micros(200);

/// Why what the frontend asks for cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error("memory: {0}")]
    Memory(#[from] MemoryError),
    #[error("dirty log: {0}")]
    Log(#[from] MapError),
    #[error("ring {ring}: {error}")]
    Ring { ring: usize, error: RingError },
    #[error("ring {ring}: its call descriptor cannot be used: {error}")]
    Call { ring: usize, error: io::Error },
}

/// A worker holds the ring: try again later.
pub(super) struct Busy;

/// Where a ring goes on, or where it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RingPosition {
    pub(super) live: Option<u32>,
    pub(super) ended: Option<u32>,
}

/// How a ring was built.
#[derive(Clone, Debug)]
struct Built {
    config: RingConfig,
    generation: u64,
    kick: Option<Arc<OwnedFd>>,
}

pub(super) struct DeviceState {
    vhost: Arc<VhostPort>,
    memory: Option<Arc<GuestMemory>>,
    /// What is mapped, with the file that it came from.
    regions: HashMap<[u64; 4], (Arc<OwnedFd>, Arc<MappedRegion>)>,
    log: Logging,
    built: Vec<Option<Built>>,
    /// Where stopped rings ended.
    ended: Vec<Option<u32>>,
    /// Where rings that another process has served go on.
    resume: Vec<Option<u32>>,
    control: Option<ControlQueue>,
    /// Which ring that is.
    control_at: usize,
    /// The port is quarantined: rings are not built before the frontend has stopped one.
    broken: bool,
    generation: u64,
    /// The workers have to look at the rings again.
    changed: bool,
}

impl DeviceState {
    /// `generation` is above every one that the port had before.
    pub(super) fn new(vhost: Arc<VhostPort>, generation: u64) -> Self {
        Self {
            vhost,
            memory: None,
            regions: HashMap::new(),
            log: Logging::default(),
            built: Vec::new(),
            ended: Vec::new(),
            resume: Vec::new(),
            control: None,
            control_at: 0,
            broken: false,
            generation,
            changed: false,
        }
    }

    /// Goes on with what another process has served. Maps memory and builds rings, and touches none.
    ///
    /// # Errors
    /// When memory or a ring is not what it was.
    pub(super) fn import(
        &mut self,
        told: &Told,
        positions: &[RingPosition],
        said: Option<(u16, RxModes)>,
        broken: bool,
    ) -> Result<(), DeviceError> {
        self.built.resize(told.vrings.len(), None);
        self.ended = positions.iter().map(|position| position.ended).collect();
        self.resume = positions.iter().map(|position| position.live).collect();
        self.ended.resize(told.vrings.len(), None);
        self.resume.resize(told.vrings.len(), None);
        self.broken = broken;
        self.memory = Some(self.map(told)?);
        self.log = Logging::map(told)?;
        match self.sync_all(told) {
            Ok(synced) => synced?,
            Err(Busy) => unreachable!("nobody else knows the rings yet"),
        }
        if let (Some(control), Some((pairs, modes))) = (&mut self.control, said) {
            control.pairs = pairs.clamp(1, control.max_pairs());
            control.modes = modes;
        }
        self.activate(told);
        Ok(())
    }

    /// Where every ring is. No worker may run.
    pub(super) fn positions(&self, rings: usize) -> Vec<RingPosition> {
        let position = |at: usize| {
            let ended = self.ended.get(at).copied().flatten();
            let live = match &self.control {
                _ if self.built.get(at).is_none_or(Option::is_none) => None,
                Some(control) if self.control_at == at => control.ring.position(),
                _ => place(&self.vhost, at)
                    .and_then(Queue::try_lock)
                    .and_then(|guard| guard.as_ref()?.ring.position()),
            };
            RingPosition { live, ended }
        };
        (0..rings).map(position).collect()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Tells every driver to look at its rings: a signal may have been missed.
    pub(super) fn signal_all(&self) {
        let control = self.control.as_ref().and_then(|control| control.call.clone());
        let live = (0..self.built.len()).filter_map(|at| {
            let guard = place(&self.vhost, at)?.try_lock()?;
            guard.as_ref()?.call.clone()
        });
        live.chain(control).for_each(|call| call.signal());
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn control(&self) -> Option<&ControlQueue> {
        self.control.as_ref()
    }

    /// Answers requests on the control queue; see [`ControlQueue::serve`].
    pub(super) fn serve_control(&mut self, told: &Told) -> Result<bool, RingError> {
        let Some(control) = &mut self.control else { return Ok(false) };
        let (vhost, features) = (&self.vhost, told.features);
        control.serve(|control| vhost.set_rx_modes(Some(&control.modes), features))
    }

    /// Whether the workers have to be told of a change since the last time.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_poisoned())
    }

    pub(super) fn is_log_poisoned(&self) -> bool {
        self.log.is_poisoned()
    }

    /// Some ring moves frames.
    pub(super) fn is_up(&self, told: &Told) -> bool {
        let control = told.control_queue();
        let mut rings = self.built.iter().zip(&told.vrings).enumerate();
        rings.any(|(at, (built, vring))| built.is_some() && vring.enabled && Some(at) != control)
    }

    /// Does what the session asks for. It is all done or nothing is, and may be called again after `Busy`.
    pub(super) fn apply(
        &mut self,
        told: &Told,
        action: Action,
    ) -> Result<Result<Outcome, DeviceError>, Busy> {
        self.built.resize(told.vrings.len(), None);
        self.ended.resize(told.vrings.len(), None);
        let done = match action {
            Action::Features => self.sync_all(told),
            Action::Memory => match self.map(told) {
                Ok(memory) => {
                    let before = self.memory.replace(memory);
                    let synced = self.sync_all(told);
                    if !matches!(synced, Ok(Ok(()))) {
                        self.memory = before;
                    } else if let Some(memory) = &self.memory {
                        let kept = memory.regions();
                        self.regions
                            .retain(|_, (_, region)| kept.iter().any(|k| Arc::ptr_eq(k, region)));
                    }
                    synced
                }
                Err(error) => Ok(Err(error)),
            },
            Action::Log => match Logging::map(told) {
                Ok(log) => {
                    let before = std::mem::replace(&mut self.log, log);
                    let synced = self.sync_all(told);
                    if !matches!(synced, Ok(Ok(()))) {
                        self.log = before;
                    }
                    synced
                }
                Err(error) => Ok(Err(error.into())),
            },
            Action::Vring(ring) => {
                let at = usize::from(ring);
                if told.vrings.get(at).is_some_and(|vring| !vring.started) {
                    self.mend();
                }
                self.sync(told, at).map(|synced| synced.inspect(|()| self.activate(told)))
            }
            Action::StopVring(ring) => {
                let at = usize::from(ring);
                self.mend();
                self.remove(at)?;
                self.vhost.resume.forget(at);
                self.activate(told);
                let base = told.vrings.get(at).map_or(0, |vring| vring.base);
                let ended = self.ended.get_mut(at).and_then(Option::take).unwrap_or(base);
                return Ok(Ok(Outcome::VringBase(ended)));
            }
            Action::Reset => {
                self.mend();
                self.remove_all(told)?;
                (0..told.vrings.len()).for_each(|at| self.vhost.resume.forget(at));
                Ok(Ok(()))
            }
            Action::Rarp(mac) => {
                self.vhost.announce(MacAddr(mac));
                self.changed = true;
                Ok(Ok(()))
            }
            _ => Ok(Ok(())),
        }?;
        if done.is_ok() {
            // No ring has it any more.
            self.log.forget(told);
        }
        Ok(done.map(|()| Outcome::Done))
    }

    /// Takes every ring away from the workers.
    pub(super) fn remove_all(&mut self, told: &Told) -> Result<(), Busy> {
        for at in 0..self.built.len() {
            self.remove(at)?;
        }
        self.activate(told);
        Ok(())
    }

    /// Frees workers that hang in a call descriptor of this device. False when none can hang.
    pub(super) fn unblock(told: &Told) -> bool {
        let calls = told.vrings.iter().filter_map(|vring| Call::new(vring.call.as_ref()?).ok());
        calls.fold(false, |full, call| call.unblock() | full)
    }

    /// A worker has put the port into quarantine: takes its rings away until the frontend begins anew.
    pub(super) fn break_off(&mut self, told: &Told) -> Result<(), Busy> {
        self.broken = true;
        self.remove_all(told)?;
        for vring in &told.vrings {
            if let Some(err) = &vring.err
                && let Ok(err) = Call::new(err)
            {
                err.signal();
            }
        }
        Ok(())
    }

    fn mend(&mut self) {
        if self.broken {
            self.broken = false;
            self.vhost.release();
        }
    }

    /// The memory as the frontend has it now; regions that were mapped before stay mapped.
    fn map(&mut self, told: &Told) -> Result<Arc<GuestMemory>, DeviceError> {
        let mut mapped = Vec::with_capacity(told.regions.len());
        for region in &told.regions {
            let vhost_user::Region { guest_addr, size, user_addr, mmap_offset, ref fd } = *region;
            let key = [guest_addr, size, user_addr, mmap_offset];
            let old = self.regions.get(&key).filter(|(file, _)| Arc::ptr_eq(file, fd));
            let region = if let Some((_, region)) = old {
                Arc::clone(region)
            } else {
                let spec = RegionSpec { guest_addr, size, user_addr, mmap_offset };
                let region = Arc::new(MappedRegion::map(spec, fd.as_fd())?);
                self.regions.insert(key, (Arc::clone(fd), Arc::clone(&region)));
                region
            };
            mapped.push(region);
        }
        Ok(Arc::new(GuestMemory::new(mapped)?))
    }

    fn sync_all(&mut self, told: &Told) -> Result<Result<(), DeviceError>, Busy> {
        for at in 0..told.vrings.len() {
            if let Err(error) = self.sync(told, at)? {
                return Ok(Err(error));
            }
        }
        self.activate(told);
        Ok(Ok(()))
    }

    /// Makes one ring what the frontend says it is.
    fn sync(&mut self, told: &Told, at: usize) -> Result<Result<(), DeviceError>, Busy> {
        let Some(vring) = told.vrings.get(at) else { return Ok(Ok(())) };
        let (Some(memory), Some(addr), true) =
            (self.memory.clone(), vring.addr, vring.is_ready() && !self.broken)
        else {
            self.remove(at)?;
            return Ok(Ok(()));
        };
        let log = match self.log.need(told) {
            Need::Nothing => None,
            Need::Log(log) => Some(Arc::clone(log)),
            Need::Wait => {
                self.remove(at)?;
                return Ok(Ok(()));
            }
        };
        let call = match vring.call.as_ref().map(Call::new).transpose() {
            Ok(call) => call,
            Err(error) => return Ok(Err(DeviceError::Call { ring: at, error })),
        };
        let config = RingConfig {
            packed: told.has(virtio::F_RING_PACKED),
            size: vring.num,
            desc: addr.desc,
            avail: addr.avail,
            used: addr.used,
            base: vring.base,
            event_idx: told.has(virtio::F_EVENT_IDX),
            indirect: told.has(virtio::F_INDIRECT_DESC),
            in_order: told.has(virtio::F_IN_ORDER),
        };
        if told.control_queue() == Some(at) {
            return Ok(self.sync_control(told, at, log, call, &memory, config));
        }
        let vhost = Arc::clone(&self.vhost);
        let Some(queue) = place(&vhost, at) else { return Ok(Ok(())) };
        let mut guard = lock(queue)?;
        let before = guard.as_ref().zip(self.built[at].as_ref());
        let resumes = self.resume.get(at).copied().flatten().is_some();
        let served = before.is_some() || self.ended[at].is_some();
        let ring = match before {
            // Nothing of the ring itself has changed.
            Some((live, built)) if built.config == config && Arc::ptr_eq(&live.memory, &memory) => {
                None
            }
            Some((live, _)) => Some(live.ring.rebuild(&memory, &config)),
            None => Some(self.build(at, &memory, &config)),
        };
        let is_new = ring.is_some();
        let receives = at.is_multiple_of(2);
        let accept = if receives {
            OffloadSet::driver_takes(told.features)
        } else {
            OffloadSet::driver_leaves(told.features)
        };
        // With the last ring of old memory the memory is unmapped: after the lock is free again.
        let mut old = None;
        // A worker may hang in the call descriptor that nobody knows from now on.
        let replaced = guard.as_ref().and_then(|live| live.call.clone());
        match ring {
            Some(Ok(mut ring)) => {
                ring.set_log(log.as_ref(), addr.log);
                if !resumes {
                    ring.suppress_kicks();
                }
                old = guard.replace(Live {
                    ring,
                    memory,
                    log,
                    call,
                    enabled: vring.enabled,
                    accept,
                    mergeable: told.has(virtio::NET_F_MRG_RXBUF),
                    hdr_len: header_len(told.features),
                });
            }
            Some(Err(error)) => return Ok(Err(DeviceError::Ring { ring: at, error })),
            None => {
                if let Some(live) = guard.as_mut() {
                    live.ring.set_log(log.as_ref(), addr.log);
                    live.log = log;
                    live.call = call;
                    live.enabled = vring.enabled;
                }
            }
        }
        // A new call descriptor may have missed the last signal.
        let missed = |live: &&Live| served || live.ring.was_resumed();
        let call = guard.as_ref().filter(missed).and_then(|live| live.call.clone());
        drop(guard);
        drop(old);
        if let Some(replaced) = replaced {
            replaced.unblock();
        }
        if let Some(call) = call {
            call.signal();
        }
        let kick_changed = self.built[at].as_ref().is_none_or(|built| {
            built.kick.as_ref().map(Arc::as_ptr) != vring.kick.as_ref().map(Arc::as_ptr)
        });
        if is_new || kick_changed {
            self.generation += 1;
            self.changed = true;
            let (generation, kick) = (self.generation, vring.kick.clone());
            self.built[at] = Some(Built { config, generation, kick });
        }
        self.ended[at] = None;
        Ok(Ok(()))
    }

    /// A ring that is new to this process.
    fn build(
        &mut self,
        at: usize,
        memory: &Arc<GuestMemory>,
        config: &RingConfig,
    ) -> Result<Ring, RingError> {
        let mut ring = Ring::new(memory, config, self.vhost.resume.record(at, config))?;
        if let Some(index) = self.resume.get_mut(at).and_then(Option::take) {
            ring.resume_at(index);
        }
        Ok(ring)
    }

    fn sync_control(
        &mut self,
        told: &Told,
        at: usize,
        log: Option<Arc<DirtyLog>>,
        call: Option<Call>,
        memory: &Arc<GuestMemory>,
        config: RingConfig,
    ) -> Result<(), DeviceError> {
        let before = self.control.take();
        self.control_at = at;
        let unchanged = self.built[at].as_ref().is_some_and(|built| built.config == config);
        let said = before.as_ref().map(|control| (control.pairs, control.modes.clone()));
        let served = before.is_some() || self.ended[at].is_some();
        let ring = match before {
            Some(control) if unchanged && Arc::ptr_eq(&control.memory, memory) => Ok(control.ring),
            Some(control) => control.ring.rebuild(memory, &config),
            None => self.build(at, memory, &config),
        };
        self.built[at] = None;
        let mut ring = ring.map_err(|error| DeviceError::Ring { ring: at, error })?;
        let vring = told.vrings.get(at);
        ring.set_log(log.as_ref(), vring.and_then(|vring| vring.addr).and_then(|addr| addr.log));
        let kick = vring.and_then(|vring| vring.kick.clone());
        let max_pairs = u16::try_from(told.vrings.len() / 2).unwrap_or(1);
        let mut control = ControlQueue::new(ring, Arc::clone(memory), max_pairs);
        if let Some((pairs, modes)) = said {
            (control.pairs, control.modes) = (pairs, modes);
        }
        control.call = call;
        control.log = log;
        control.kick.clone_from(&kick);
        // As for the other rings, a new call descriptor may have missed the last signal.
        if (served || control.ring.was_resumed())
            && let Some(call) = &control.call
        {
            call.signal();
        }
        self.control = Some(control);
        self.generation += 1;
        self.built[at] = Some(Built { config, generation: self.generation, kick });
        Ok(())
    }

    /// Takes one ring away from the workers.
    fn remove(&mut self, at: usize) -> Result<(), Busy> {
        if self.built.get(at).is_none_or(Option::is_none) {
            return Ok(());
        }
        if self.control.is_some() && self.control_at == at {
            if let Some(control) = self.control.take() {
                self.ended[at] = Some(control.ring.next_index());
            }
            self.built[at] = None;
            return Ok(());
        }
        let vhost = Arc::clone(&self.vhost);
        if let Some(queue) = place(&vhost, at) {
            let live = lock(queue)?.take();
            self.ended[at] = live.map(|live| live.ring.next_index());
        }
        self.built[at] = None;
        self.changed = true;
        Ok(())
    }

    /// Tells the workers which rings there are.
    pub(super) fn activate(&mut self, told: &Told) {
        let control = told.control_queue();
        let rx = |pair: usize| {
            let at = 2 * pair;
            let built = self.built.get(at).is_some_and(Option::is_some);
            built && Some(at) != control && told.vrings.get(at).is_some_and(|v| v.enabled)
        };
        let active = (0..self.vhost.pairs()).take_while(|&pair| rx(pair)).count();
        let active = u16::try_from(active).unwrap_or(0);
        let chosen = self.control.as_ref().map_or(u16::MAX, |control| control.pairs);
        self.vhost.set_rx_active(active.min(chosen));
        let modes = self.control.as_ref().map(|control| &control.modes);
        self.vhost.set_rx_modes(modes, told.features);
        let setup = (0..self.vhost.pairs()).filter_map(|pair| {
            let built = self.built.get(2 * pair + 1)?.as_ref()?;
            (Some(2 * pair + 1) != control).then(|| TxSetup {
                queue: u16::try_from(pair).unwrap_or(0),
                generation: built.generation,
                kick: built.kick.clone(),
            })
        });
        self.vhost.set_tx_setup(setup.collect());
    }
}

/// Ring `at` in the port: RX and TX of each pair in turn. `None` for the control queue behind them.
fn place(vhost: &VhostPort, at: usize) -> Option<&Queue> {
    if at.is_multiple_of(2) { vhost.rx(at / 2) } else { vhost.tx(at / 2) }
}

/// A worker's burst is short; one that was put aside by the kernel is not waited for.
fn lock(queue: &Queue) -> Result<MutexGuard<'_, Option<Live>>, Busy> {
    let start = Instant::now();
    loop {
        if let Some(guard) = queue.try_lock() {
            return Ok(guard);
        }
        if start.elapsed() > PATIENCE {
            return Err(Busy);
        }
        std::hint::spin_loop();
    }
}
