//! The datapath's handle: what the control plane calls.
//!
//! Every call changes the model, publishes a snapshot of it, and returns when all workers have taken it up, which takes a burst. Calls are
//! serialized by one lock, which neither workers nor the vhost-user thread ever take.

mod model;
pub(crate) mod status;
mod succession;

pub use succession::{Imported, Inherited, Suspended};

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::thread::{CpuSet, sched_setaffinity};
use switch::{PortConfig, Vid, VlanMode};
use tracing::warn;
use uuid::Uuid;
use wire::MacAddr;

use self::model::{Model, PortEntry};
use self::status::StatusBoard;
use crate::balance::{self, Balancer, Move};
use crate::counters::Counters;
use crate::epoch::Epochs;
use crate::port::internal::InternalPort;
use crate::port::kernel::{KernelPort, KernelQueue};
use crate::port::packet::PacketSocket;
use crate::port::tap::TapQueue;
use crate::port::vhost_user::resume::ResumeRecords;
use crate::port::vhost_user::thread::{Command, NewPort, Thread};
use crate::port::vhost_user::{MAX_PAIRS, VhostPort};
use crate::snapshot::{Current, Device};
use crate::wake::WakeFd;
use crate::worker::{Poller, Shared, Signal};
use crate::{
    BridgeSpec, Config, Error, Event, FdbEntry, PortIo, PortSpec, PortState, PortStats, PortStatus,
    VhostSocket, WorkerStatus,
};

/// A running datapath. Clones are handles to the same one; the last one to go stops it.
#[derive(Clone)]
pub struct Datapath(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    model: Mutex<Model>,
    status: Arc<StatusBoard>,
    commands: Sender<Command>,
    threads: Mutex<Threads>,
    config: Config,
    start: Instant,
}

#[derive(Default)]
struct Threads {
    workers: Vec<JoinHandle<()>>,
    vhost_user: Option<JoinHandle<Thread>>,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath")
            .field("workers", &self.0.shared.epochs.workers())
            .finish_non_exhaustive()
    }
}

fn system(context: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::System { context, source }
}

impl Datapath {
    /// Starts the workers and the vhost-user thread. The receiver ends when the datapath stops.
    ///
    /// # Errors
    /// [`Error::System`] when threads or descriptors cannot be had.
    pub fn start(config: Config) -> Result<(Self, Receiver<Event>), Error> {
        let (datapath, thread, events) = Self::prepare(config, Instant::now())?;
        datapath.run(thread)?;
        Ok((datapath, events))
    }

    /// A datapath whose threads do not run yet. Times are counted from `start`.
    fn prepare(config: Config, start: Instant) -> Result<(Self, Thread, Receiver<Event>), Error> {
        let workers = config.workers.max(1);
        let make = system("cannot make the descriptors that wake the workers");
        let epochs = Arc::new(Epochs::new(workers).map_err(&make)?);
        let notify = Arc::new(WakeFd::new().map_err(&make)?);
        let (notices, notices_out) = crossbeam_channel::unbounded();
        let (commands, commands_out) = crossbeam_channel::unbounded();
        let (events, events_out) = crossbeam_channel::unbounded();
        let shared = Arc::new(Shared {
            current: Current::default(),
            epochs,
            stop: AtomicBool::new(false),
            stop_workers: AtomicBool::new(false),
            notices,
            notify,
            spin: config.spin,
            signals: (0..workers).map(|_| Signal::default()).collect(),
        });
        let status = Arc::new(StatusBoard::new(events));
        let balancer = Balancer::new(Arc::clone(&shared), config.rebalance, start);
        let inboxes = (commands_out, notices_out);
        let thread =
            Thread::new(Arc::clone(&shared), inboxes, Arc::clone(&status), balancer, start)
                .map_err(&make)?;
        let datapath = Self(Arc::new(Inner {
            shared,
            model: Mutex::new(Model::new(&config)),
            status,
            commands,
            threads: Mutex::default(),
            config,
            start,
        }));
        Ok((datapath, thread, events_out))
    }

    fn resume_records(&self, port: Uuid, queue_pairs: u16) -> ResumeRecords {
        let dir = self.0.config.resume_dir.as_ref();
        let path = dir.map(|dir| dir.join(format!("{port}.rings")));
        // One ring more for the control queue.
        ResumeRecords::new(path, usize::from(queue_pairs) * 2 + 1)
    }

    /// Starts the threads.
    fn run(&self, thread: Thread) -> Result<(), Error> {
        let Inner { shared, threads, config, start, .. } = &*self.0;
        let failed = system("cannot start a thread");
        let mut threads = threads.lock().unwrap_or_else(PoisonError::into_inner);
        let builder = std::thread::Builder::new().name("vhost-user".to_owned());
        threads.vhost_user = Some(builder.spawn(move || thread.run()).map_err(&failed)?);
        for worker in 0..shared.epochs.workers() {
            let poller = Poller::new(worker, Arc::clone(shared), *start);
            let poller =
                poller.map_err(system("cannot make the descriptors that wake the workers"))?;
            let cpu = config.cpus.get(worker % config.cpus.len().max(1)).copied();
            let body = move || {
                if let Some(cpu) = cpu {
                    bind(worker, cpu);
                }
                poller.run();
            };
            let builder = std::thread::Builder::new().name(format!("worker-{worker}"));
            threads.workers.push(builder.spawn(body).map_err(&failed)?);
        }
        Ok(())
    }

    #[cfg(feature = "hot-path")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// # Errors
    /// [`Error::BridgeExists`].
    pub fn add_bridge(&self, id: Uuid, name: &str, spec: BridgeSpec) -> Result<(), Error> {
        let mut model = self.model();
        if model.inherited_bridges.remove(&id) && model.bridges.contains_key(&id) {
            drop(model);
            return self.set_bridge(id, spec);
        }
        if model.bridges.contains_key(&id) {
            return Err(Error::BridgeExists(id));
        }
        tracing::debug!(bridge = %id, name, ?spec, "bridge added");
        model.add_bridge(id, spec);
        Ok(())
    }

    /// # Errors
    /// [`Error::NoBridge`].
    pub fn set_bridge(&self, id: Uuid, spec: BridgeSpec) -> Result<(), Error> {
        let mut model = self.model();
        let bridge = model.bridges.get_mut(&id).ok_or(Error::NoBridge(id))?;
        let hub_before = std::mem::replace(&mut bridge.spec, spec).hub;
        let became_hub = bridge.spec.hub && !hub_before;
        let fdb = Arc::clone(&bridge.fdb);
        model.rebuild(id);
        self.publish(&model);
        if became_hub {
            fdb.flush();
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::NoBridge`], [`Error::BridgeInUse`].
    pub fn remove_bridge(&self, id: Uuid) -> Result<(), Error> {
        let mut model = self.model();
        if model.ports_of(id).next().is_some() {
            return Err(Error::BridgeInUse(id));
        }
        model.bridges.remove(&id).map(drop).ok_or(Error::NoBridge(id))
    }

    /// Frames may move when this returns.
    ///
    /// # Errors
    /// See [`Error`]; the descriptors of `spec` are closed then.
    pub fn add_port(&self, spec: PortSpec) -> Result<(), Error> {
        let mut model = self.model();
        if self.0.shared.stopped() {
            return Err(Error::Stopped);
        }
        if matches!(spec.io, PortIo::Inherited) {
            return self.adopt_port(model, spec);
        }
        let PortSpec { id, name, bridge, mac, role, vlan, isolated, mtu, io } = spec;
        if !model.bridges.contains_key(&bridge) {
            return Err(Error::NoBridge(bridge));
        }
        if model.ports.contains_key(&id) {
            return Err(Error::PortExists(id));
        }
        if matches!(io, PortIo::Internal(_)) && model.has_internal(bridge) {
            return Err(Error::InternalExists(bridge));
        }
        let index = model.free_index().ok_or(Error::TooManyPorts)?;
        let mut new_vhost = None;
        let device = match io {
            PortIo::VhostUser { socket, queue_pairs } => {
                if !(1..=MAX_PAIRS).contains(&queue_pairs) {
                    return Err(Error::QueuePairs(queue_pairs));
                }
                let resume = self.resume_records(id, queue_pairs);
                let vhost = Arc::new(VhostPort::new(queue_pairs, mac, resume));
                new_vhost = Some((socket, Arc::clone(&vhost)));
                Device::Vhost(vhost)
            }
            PortIo::Tap { queues } => {
                if queues.is_empty() {
                    return Err(Error::NoQueues);
                }
                let queues = queues.into_iter().map(|fd| KernelQueue::Tap(TapQueue::new(fd)));
                Device::Kernel(Arc::new(KernelPort::new(queues)))
            }
            PortIo::Packet { socket } => {
                let queue = KernelQueue::Packet(PacketSocket::new(socket));
                Device::Kernel(Arc::new(KernelPort::new([queue])))
            }
            PortIo::Internal(InternalPort(internal)) => {
                internal.attach(Arc::clone(&self.0.shared.epochs));
                Device::Internal(internal)
            }
            // Adopted above.
            PortIo::Inherited => return Err(Error::NoPort(id)),
        };
        if let Device::Kernel(kernel) = &device {
            let shared = &self.0.shared;
            balance::place_new(&shared.current.load(), shared.epochs.workers(), kernel.duties());
        }
        let mac_config = (mac != MacAddr::ZERO).then_some(mac);
        let config = PortConfig { role, vlan, isolated, mac: mac_config };
        self.add_static_entry(&model, bridge, index, &config)?;
        let workers = self.0.shared.epochs.workers();
        let counters = (0..workers).map(|_| Counters::default()).collect();
        let entry = PortEntry { index, name: name.clone(), bridge, config, device, mtu, counters };
        model.ports.insert(id, entry);
        model.rebuild(bridge);
        let state = match &new_vhost {
            Some((VhostSocket::Listen(_), _)) => PortState::Listening,
            Some((VhostSocket::Connect(_), _)) => PortState::Connecting,
            Some((VhostSocket::Connected(_), _)) => PortState::Connected,
            None => PortState::Up,
        };
        self.0.status.add(id, state);
        self.publish(&model);
        if let Some((socket, vhost)) = new_vhost {
            self.command(Command::Add(NewPort { id, name, mac, mtu, socket, vhost }));
        }
        Ok(())
    }

    /// Changes a port's VLANs and isolation. What was learned on it is forgotten.
    ///
    /// # Errors
    /// [`Error::NoPort`].
    pub fn set_port(&self, id: Uuid, vlan: VlanMode, isolated: bool) -> Result<(), Error> {
        let mut model = self.model();
        let port = model.ports.get_mut(&id).ok_or(Error::NoPort(id))?;
        let before = port.config.static_entry();
        port.config.vlan = vlan;
        port.config.isolated = isolated;
        let (bridge, index, config) = (port.bridge, port.index, port.config.clone());
        let fdb = model.bridges.get(&bridge).map(|bridge| Arc::clone(&bridge.fdb));
        if let (Some(fdb), Some((mac, vlan))) = (&fdb, before) {
            fdb.remove_static(mac, vlan);
        }
        if let Err(error) = self.add_static_entry(&model, bridge, index, &config) {
            warn!(port = %id, %error, "the gateway's address has no entry of its own");
        }
        model.rebuild(bridge);
        self.publish(&model);
        if let Some(fdb) = fdb {
            fdb.flush_port(index);
        }
        Ok(())
    }

    /// Removes a port. When this returns no worker knows it and its descriptors are closed.
    ///
    /// # Errors
    /// [`Error::NoPort`].
    pub fn remove_port(&self, id: Uuid) -> Result<(), Error> {
        let mut model = self.model();
        let port = model.ports.remove(&id).ok_or(Error::NoPort(id))?;
        model.inherited.remove(&id);
        model.rebuild(port.bridge);
        self.publish(&model);
        match &port.device {
            Device::Vhost(vhost) => {
                let (done, wait) = crossbeam_channel::bounded(1);
                self.command(Command::Remove(id, done));
                // An error means that the thread has ended and everything is closed.
                let _ = wait.recv();
                vhost.resume.remove();
            }
            Device::Internal(internal) => internal.close(),
            Device::Kernel(_) => {}
        }
        // No worker can learn it any more; only now the index may be given away again.
        if let Some(bridge) = model.bridges.get(&port.bridge) {
            bridge.fdb.remove_port(port.index);
        }
        self.0.status.remove(id);
        Ok(())
    }

    #[must_use]
    pub fn port_status(&self, id: Uuid) -> Option<PortStatus> {
        self.0.status.get(id)
    }

    #[must_use]
    pub fn port_stats(&self, id: Uuid) -> Option<PortStats> {
        self.model().ports.get(&id).map(PortEntry::stats)
    }

    /// Every worker, with the queues that it serves and what they cost it.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let shared = &self.0.shared;
        balance::status(&shared.current.load(), shared.epochs.workers(), &self.0.config.cpus)
    }

    /// Gives a queue to a worker. It stays there until [rebalancing](Config::rebalance) finds a better place.
    ///
    /// # Errors
    /// [`Error::NoWorker`], [`Error::NoQueue`] when the guest has not set it up, [`Error::Stopped`].
    pub fn move_queue(&self, port: Uuid, queue: usize, worker: usize) -> Result<(), Error> {
        let workers = self.0.shared.epochs.workers();
        if worker >= workers {
            return Err(Error::NoWorker { worker, workers });
        }
        let (done, wait) = crossbeam_channel::bounded(1);
        self.command(Command::Move(Move { port, queue, worker, done }));
        match wait.recv() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::NoQueue { port, queue }),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// The bridge's forwarding table; empty when there is no such bridge.
    #[must_use]
    pub fn fdb(&self, bridge: Uuid) -> Vec<FdbEntry> {
        let (ids, fdb) = {
            let model = self.model();
            let Some(entry) = model.bridges.get(&bridge) else { return Vec::new() };
            (model.ids(), Arc::clone(&entry.fdb))
        };
        let now = self.0.start.elapsed().as_secs();
        let entries = fdb.entries().into_iter();
        entries
            .filter_map(|entry| {
                let port = *ids.get(&entry.port)?;
                let age = entry
                    .last_seen
                    .map(|seen| Duration::from_secs(now.saturating_sub(u64::from(seen.0))));
                Some(FdbEntry { mac: entry.mac, vlan: entry.vlan.value(), port, age })
            })
            .collect()
    }

    /// Adds a static entry, in place of what was there.
    ///
    /// # Errors
    /// [`Error::NoBridge`], [`Error::NoPort`] (of this bridge), [`Error::Vlan`], [`Error::Static`].
    pub fn fdb_add(&self, bridge: Uuid, mac: MacAddr, vlan: u16, port: Uuid) -> Result<(), Error> {
        let model = self.model();
        let entry = model.bridges.get(&bridge).ok_or(Error::NoBridge(bridge))?;
        let found = model.ports.get(&port).filter(|port| port.bridge == bridge);
        let index = found.ok_or(Error::NoPort(port))?.index;
        let vid = Vid::new(vlan).ok_or(Error::Vlan(vlan))?;
        let added = entry.fdb.add_static(mac, vid, index);
        added.map(drop).map_err(|reason| Error::Static { mac, reason })
    }

    /// Removes an entry, static or learned. False when there was none.
    ///
    /// # Errors
    /// [`Error::NoBridge`], [`Error::Vlan`].
    pub fn fdb_del(&self, bridge: Uuid, mac: MacAddr, vlan: u16) -> Result<bool, Error> {
        let model = self.model();
        let entry = model.bridges.get(&bridge).ok_or(Error::NoBridge(bridge))?;
        let vid = Vid::new(vlan).ok_or(Error::Vlan(vlan))?;
        Ok(entry.fdb.remove(mac, vid))
    }

    /// Forgets what was learned; returns how many entries.
    ///
    /// # Errors
    /// [`Error::NoBridge`].
    pub fn fdb_flush(&self, bridge: Uuid) -> Result<usize, Error> {
        let model = self.model();
        let entry = model.bridges.get(&bridge).ok_or(Error::NoBridge(bridge))?;
        Ok(entry.fdb.flush())
    }

    /// Ends all threads and closes every descriptor, for all clones of the handle. Other calls then fail or do
    /// nothing.
    pub fn stop(self) {
        self.0.stop();
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is held: snapshots are published in the order in which they are made.
    fn publish(&self, model: &MutexGuard<'_, Model>) {
        let shared = &self.0.shared;
        let old = shared.current.swap(Arc::new(model.snapshot()));
        shared.epochs.wait(shared.epochs.advance());
        drop(old);
    }

    fn command(&self, command: Command) {
        let _ = self.0.commands.send(command);
        self.0.shared.notify.wake();
    }

    fn add_static_entry(
        &self,
        model: &Model,
        bridge: Uuid,
        index: switch::PortIndex,
        config: &PortConfig,
    ) -> Result<(), Error> {
        if let (Some(entry), Some((mac, vlan))) =
            (model.bridges.get(&bridge), config.static_entry())
        {
            let added = entry.fdb.add_static(mac, vlan, index);
            added.map_err(|reason| Error::Static { mac, reason })?;
        }
        Ok(())
    }
}

impl Inner {
    /// Ends the threads: the workers between two bursts, then the vhost-user thread, which may go on later.
    fn halt(&self) -> Option<Thread> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.stop_workers.store(true, Ordering::SeqCst);
        self.shared.epochs.advance();
        for worker in threads.workers.drain(..) {
            // One that panicked has said so.
            let _ = worker.join();
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.notify.wake();
        threads.vhost_user.take()?.join().ok()
    }

    fn stop(&self) {
        drop(self.halt());
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, port) in model.ports.drain() {
            if let Device::Internal(internal) = &port.device {
                internal.close();
            }
            self.status.remove(id);
        }
        self.shared.current.store(Arc::default());
        self.status.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds the calling thread to a processor.
fn bind(worker: usize, cpu: usize) {
    let mut set = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        set.set(cpu);
    }
    if let Err(error) = sched_setaffinity(None, &set) {
        warn!(worker, cpu, %error, "cannot bind a worker to its processor");
    }
}
