//! Handing the datapath over to another process, and taking one over; see [`crate::handover`].

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;
use std::{fmt, io};

use crossbeam_channel::Receiver;
use switch::{PortConfig, Role, Seconds, Vid};
use tracing::warn;
use uuid::Uuid;
use wire::MacAddr;

use super::model::{Model, PortEntry};
use super::{Datapath, Inner};
use crate::counters::Counters;
use crate::handover::{BridgeState, FdbState, Fds, IoState, PortState, State};
use crate::port::internal::{InternalHandle, internal};
use crate::port::kernel::{KernelPort, KernelQueue};
use crate::port::packet::PacketSocket;
use crate::port::tap::TapQueue;
use crate::port::vhost_user::thread::{Endpoint, Thread};
use crate::port::vhost_user::{MAX_PAIRS, VhostPort, offer};
use crate::snapshot::Device;
use crate::{BridgeSpec, Config, Error, Event, PortSpec};

/// A datapath that moves no frames: its threads have ended, between two bursts. It goes on when this is dropped.
pub struct Suspended {
    datapath: Datapath,
    thread: Option<Thread>,
}

/// A datapath of another process, complete; nothing of a guest's rings has been touched yet.
pub struct Imported {
    datapath: Datapath,
    thread: Thread,
    endpoints: Vec<Endpoint>,
    events: Receiver<Event>,
}

/// What a port is that another process has handed over.
#[derive(Debug)]
pub enum Inherited {
    VhostUser { queue_pairs: u16 },
    Tap { queues: usize },
    Packet,
    Internal(InternalHandle),
}

impl Datapath {
    /// Stops moving frames.
    ///
    /// # Errors
    /// [`Error::Stopped`] when it has stopped for good.
    pub fn suspend(&self) -> Result<Suspended, Error> {
        let thread = self.0.halt().ok_or(Error::Stopped)?;
        Ok(Suspended { datapath: self.clone(), thread: Some(thread) })
    }

    /// Makes the datapath that another process has exported. What cannot be taken over is left out, and logged: guests
    /// of that process that can connect again do so when the port has been added anew.
    ///
    /// # Errors
    /// [`Error::System`] when descriptors cannot be had.
    pub fn import(config: Config, state: State, fds: &mut Fds) -> Result<Imported, Error> {
        // Times in the state stay comparable: the clock is the machine's.
        let now = Instant::now();
        let start = now.checked_sub(state.uptime).unwrap_or(now);
        let (datapath, thread, events) = Self::prepare(config, start)?;
        let mut endpoints = Vec::new();
        let mut model = datapath.model();
        for bridge in &state.bridges {
            model.import_bridge(bridge);
        }
        for port in state.ports {
            let (id, name) = (port.id, port.name.clone());
            match datapath.import_port(&mut model, port, fds) {
                Ok(endpoint) => endpoints.extend(endpoint),
                Err(error) => warn!(port = name, %id, %error, "cannot go on with a port"),
            }
        }
        for BridgeState { id, fdb, .. } in &state.bridges {
            model.import_fdb(*id, fdb);
            model.rebuild(*id);
        }
        datapath.0.shared.current.store(Arc::new(model.snapshot()));
        drop(model);
        Ok(Imported { datapath, thread, endpoints, events })
    }

    /// What another process has handed over for a port that has not been added since with
    /// [`PortIo::Inherited`](crate::PortIo::Inherited).
    #[must_use]
    pub fn inherited(&self, id: Uuid) -> Option<Inherited> {
        let model = self.model();
        let port = model.ports.get(&id).filter(|_| model.inherited.contains(&id))?;
        Some(match &port.device {
            Device::Vhost(vhost) => {
                Inherited::VhostUser { queue_pairs: u16::try_from(vhost.pairs()).ok()? }
            }
            Device::Kernel(kernel) if kernel.is_gone() => return None,
            Device::Kernel(kernel) if kernel.is_packet() => Inherited::Packet,
            Device::Kernel(kernel) => Inherited::Tap { queues: kernel.queues() },
            Device::Internal(internal) => Inherited::Internal(InternalHandle::of(internal)),
        })
    }

    /// The internal port of a bridge that another process has handed over.
    #[must_use]
    pub fn inherited_internal(&self, bridge: Uuid) -> Option<Uuid> {
        let model = self.model();
        let mut ports = model.ports.iter();
        let found = ports.find(|(id, port)| {
            port.bridge == bridge
                && port.config.role == Role::Internal
                && model.inherited.contains(*id)
        });
        found.map(|(&id, _)| id)
    }

    /// Removes what was handed over and nobody has asked for.
    pub fn disown(&self) {
        let (bridges, ports) = {
            let mut model = self.model();
            let bridges = std::mem::take(&mut model.inherited_bridges);
            (bridges, std::mem::take(&mut model.inherited))
        };
        for id in ports {
            // It is there: nothing else removes what is inherited.
            let _ = self.remove_port(id);
        }
        for id in bridges {
            if let Err(error) = self.remove_bridge(id) {
                warn!(bridge = %id, %error, "an inherited bridge stays");
            }
        }
    }

    /// The port of another process becomes one of the configuration. What guests see of it stays as it is.
    pub(super) fn adopt_port(
        &self,
        mut model: MutexGuard<'_, Model>,
        spec: PortSpec,
    ) -> Result<(), Error> {
        let PortSpec { id, name, bridge, mac, role, vlan, isolated, mtu, .. } = spec;
        if !model.inherited.contains(&id) {
            return Err(Error::NoPort(id));
        }
        let Some(port) = model.ports.get_mut(&id).filter(|port| port.bridge == bridge) else {
            return Err(Error::NoPort(id));
        };
        let config =
            PortConfig { role, vlan, isolated, mac: (mac != MacAddr::ZERO).then_some(mac) };
        let before = std::mem::replace(&mut port.config, config.clone());
        let index = port.index;
        (port.name, port.mtu) = (name, mtu);
        model.inherited.remove(&id);
        let fdb = model.bridges.get(&bridge).map(|bridge| Arc::clone(&bridge.fdb));
        if let Some(fdb) = fdb
            && (before.static_entry(), &before.vlan, before.isolated)
                != (config.static_entry(), &config.vlan, config.isolated)
        {
            if let Some((mac, vlan)) = before.static_entry() {
                fdb.remove_static(mac, vlan);
            }
            fdb.flush_port(index);
            self.add_static_entry(&model, bridge, index, &config)?;
        }
        model.rebuild(bridge);
        self.publish(&model);
        Ok(())
    }

    /// Returns the endpoint of a vhost-user port.
    fn import_port(
        &self,
        model: &mut Model,
        state: PortState,
        fds: &mut Fds,
    ) -> Result<Option<Endpoint>, ImportError> {
        let PortState { id, name, bridge, mac, role, vlan, isolated, mtu, counters, io } = state;
        let role = Role::from(role);
        let vlan = vlan.mode().ok_or(ImportError::Vlan)?;
        if !model.bridges.contains_key(&bridge) || model.ports.contains_key(&id) {
            return Err(ImportError::Bridge);
        }
        let index = model.free_index().ok_or(Error::TooManyPorts)?;
        let mut endpoint = None;
        let device = match io {
            IoState::VhostUser { queue_pairs, endpoint: state } => {
                if !(1..=MAX_PAIRS).contains(&queue_pairs) {
                    return Err(Error::QueuePairs(queue_pairs).into());
                }
                let resume = self.resume_records(id, queue_pairs);
                let vhost = Arc::new(VhostPort::new(queue_pairs, mac, resume));
                let offer = offer(mac, mtu, queue_pairs);
                endpoint = Some(Thread::import(id, name.clone(), &vhost, offer, *state, fds)?);
                Device::Vhost(vhost)
            }
            IoState::Tap { queues } => {
                let queues = queues.into_iter().map(|queue| fds.take(queue));
                let queues = queues.collect::<io::Result<Vec<_>>>()?;
                if queues.is_empty() {
                    return Err(Error::NoQueues.into());
                }
                let queues = queues.into_iter().map(|fd| KernelQueue::Tap(TapQueue::new(fd)));
                Device::Kernel(Arc::new(KernelPort::new(queues)))
            }
            IoState::Packet { socket } => {
                let queue = KernelQueue::Packet(PacketSocket::new(fds.take(socket)?));
                Device::Kernel(Arc::new(KernelPort::new([queue])))
            }
            IoState::Internal => {
                if model.has_internal(bridge) {
                    return Err(Error::InternalExists(bridge).into());
                }
                let (port, _) = internal(TRAP_QUEUE);
                port.0.attach(Arc::clone(&self.0.shared.epochs));
                Device::Internal(port.0)
            }
        };
        let mac = (mac != MacAddr::ZERO).then_some(mac);
        let config = PortConfig { role, vlan, isolated, mac };
        self.add_static_entry(model, bridge, index, &config)?;
        let workers = self.0.shared.epochs.workers();
        let all: Arc<[Counters]> = (0..workers).map(|_| Counters::default()).collect();
        counters.restore(&all[0]);
        let state =
            if endpoint.is_some() { crate::PortState::Listening } else { crate::PortState::Up };
        self.0.status.add(id, state);
        let entry = PortEntry { index, name, bridge, config, device, mtu, counters: all };
        model.ports.insert(id, entry);
        model.inherited.insert(id);
        Ok(endpoint)
    }
}

/// Frames that may wait for an engine until the control plane has started it.
const TRAP_QUEUE: usize = 1024;

/// Why a port cannot be taken over.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error("its bridge is not there, or it comes twice")]
    Bridge,
    #[error("its VLANs are not possible")]
    Vlan,
    #[error(transparent)]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Datapath(#[from] Error),
}

impl Model {
    fn import_bridge(&mut self, state: &BridgeState) {
        let BridgeState { id, hub, ageing, mtu, trap_dhcp4, .. } = *state;
        let gateway_v4 = state.gateway_v4.clone();
        self.add_bridge(id, BridgeSpec { hub, ageing, mtu, trap_dhcp4, gateway_v4 });
        self.inherited_bridges.insert(id);
    }

    fn import_fdb(&mut self, bridge: Uuid, fdb: &[FdbState]) {
        let Some(entry) = self.bridges.get(&bridge) else { return };
        for state in fdb {
            let found = self.ports.get(&state.port).filter(|port| port.bridge == bridge);
            let Some((port, vlan)) = found.zip(Vid::new(state.vlan)) else { continue };
            match state.last_seen {
                Some(seen) => {
                    entry.fdb.learn(state.mac, vlan, port.index, usize::MAX, Seconds(seen));
                }
                None => {
                    // One that is full has learned entries only, which the port's next frames bring back.
                    let _ = entry.fdb.add_static(state.mac, vlan, port.index);
                }
            }
        }
    }
}

impl Suspended {
    /// Everything that another process needs to go on.
    ///
    /// # Errors
    /// When this process is out of descriptors.
    pub fn export(&mut self) -> io::Result<(State, Fds)> {
        let Self { datapath, thread } = self;
        let mut fds = Fds::default();
        let thread = thread.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let mut endpoints: HashMap<_, _> = thread.export(&mut fds)?.into_iter().collect();
        let Inner { model, start, .. } = &*datapath.0;
        let model = model.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = model.ids();
        let bridges = model.bridges.iter().map(|(&id, entry)| {
            let fdb = entry.fdb.entries().into_iter().filter_map(|row| {
                let port = *ids.get(&row.port)?;
                let last_seen = row.last_seen.map(|seen| seen.0);
                Some(FdbState { mac: row.mac, vlan: row.vlan.value(), port, last_seen })
            });
            let BridgeSpec { hub, ageing, mtu, trap_dhcp4, ref gateway_v4 } = entry.spec;
            let (fdb, gateway_v4) = (fdb.collect(), gateway_v4.clone());
            BridgeState { id, hub, ageing, mtu, trap_dhcp4, gateway_v4, fdb }
        });
        let bridges = bridges.collect();
        let mut ports = Vec::with_capacity(model.ports.len());
        for (&id, port) in &model.ports {
            let io = match &port.device {
                Device::Vhost(vhost) => {
                    // A port that cannot even listen begins anew.
                    let Some(endpoint) = endpoints.remove(&id) else { continue };
                    let queue_pairs = u16::try_from(vhost.pairs()).unwrap_or(MAX_PAIRS);
                    IoState::VhostUser { queue_pairs, endpoint: Box::new(endpoint) }
                }
                Device::Kernel(kernel) if kernel.is_gone() => continue,
                Device::Kernel(kernel) => {
                    let queues = (0..kernel.queues()).filter_map(|at| kernel.queue(at));
                    let queues = queues.map(|queue| fds.put(&*queue));
                    let queues = queues.collect::<io::Result<Vec<_>>>()?;
                    match (kernel.is_packet(), queues.first()) {
                        (true, Some(&socket)) => IoState::Packet { socket },
                        _ => IoState::Tap { queues },
                    }
                }
                Device::Internal(_) => IoState::Internal,
            };
            ports.push(PortState {
                id,
                name: port.name.clone(),
                bridge: port.bridge,
                mac: port.config.mac.unwrap_or(MacAddr::ZERO),
                role: port.config.role.into(),
                vlan: (&port.config.vlan).into(),
                isolated: port.config.isolated,
                mtu: port.mtu,
                counters: port.stats().into(),
                io,
            });
        }
        Ok((State { uptime: start.elapsed(), bridges, ports }, fds))
    }

    /// Another process goes on: this datapath has stopped for good.
    pub fn leave(mut self) {
        self.thread = None;
        self.datapath.clone().stop();
    }
}

impl fmt::Debug for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspended").field("datapath", &self.datapath).finish_non_exhaustive()
    }
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported").field("datapath", &self.datapath).finish_non_exhaustive()
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let shared = &self.datapath.0.shared;
        for worker in 0..shared.epochs.workers() {
            shared.epochs.seen(worker, 0);
        }
        shared.stop.store(false, Ordering::SeqCst);
        shared.stop_workers.store(false, Ordering::SeqCst);
        if let Err(error) = self.datapath.run(thread) {
            tracing::error!(%error, "the datapath cannot go on");
        }
    }
}

impl Imported {
    /// Moves frames from here on. The process that exported must not any more.
    ///
    /// # Errors
    /// [`Error::System`] when threads cannot be had.
    pub fn start(self) -> Result<(Datapath, Receiver<Event>), Error> {
        let Self { datapath, mut thread, endpoints, events } = self;
        // What epoll is asked to watch here is seen as soon as the thread runs.
        endpoints.into_iter().for_each(|endpoint| thread.begin(endpoint));
        datapath.run(thread)?;
        Ok((datapath, events))
    }
}
