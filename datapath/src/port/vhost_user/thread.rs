//! The thread that holds all vhost-user sockets. It also does the datapath's housekeeping.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use switch::Seconds;
use tracing::{info, warn};
use uuid::Uuid;
use vhost_user::Offer;
use wire::MacAddr;

use super::config_space;
use super::connection::{Connection, Wait};
use super::device::DeviceState;
use super::dialer::{Dialed, Dialer};
use super::origin::Origin;
use super::queue::VhostPort;
use crate::balance::{Balancer, Move};
use crate::control::status::StatusBoard;
use crate::worker::{Notice, Shared};
use crate::{PortState, PortStatus, VhostSocket};

/// What the control plane asks of the thread.
#[derive(Debug)]
pub(crate) enum Command {
    Add(NewPort),
    /// Closes the connection and the listener, takes the rings away, then says so.
    Remove(Uuid, Sender<()>),
    /// Gives a queue to a worker.
    Move(Move),
}

#[derive(Debug)]
pub(crate) struct NewPort {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u32,
    pub(crate) socket: VhostSocket,
    pub(crate) vhost: Arc<VhostPort>,
}

/// How soon a connection that waits for a worker is looked at again.
const SOON: Duration = Duration::from_micros(500);
/// Between two looks at whether a worker hangs in a signal.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two rounds of housekeeping.
const HOUSEKEEPING: u32 = 10;

const WAKE: u64 = u64::MAX;
pub(super) const LISTENER: u64 = 0;
pub(super) const CONNECTION: u64 = 1;
const CONTROL: u64 = 2;

pub(crate) struct Endpoint {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) vhost: Arc<VhostPort>,
    pub(super) offer: Offer,
    pub(super) connection: Option<Connection>,
    /// Above every generation of the port's rings.
    pub(super) generation: u64,
    /// The connection is to be driven again without an event.
    pub(super) soon: bool,
    /// What epoll watches the connection for.
    pub(super) watched_for_writing: bool,
    /// The control queue's kick that epoll watches.
    pub(super) control_kick: Option<Arc<OwnedFd>>,
    /// A connection that ended while a worker held a ring.
    pub(super) leaving: Option<Connection>,
}

impl Endpoint {
    /// Without a connection; nothing of it is watched yet.
    pub(super) fn new(
        id: Uuid,
        name: String,
        vhost: Arc<VhostPort>,
        offer: Offer,
        origin: Origin,
    ) -> Self {
        Self {
            id,
            name,
            origin,
            vhost,
            offer,
            connection: None,
            generation: 0,
            soon: false,
            watched_for_writing: false,
            control_kick: None,
            leaving: None,
        }
    }
}

/// See the module's documentation.
pub(crate) struct Thread {
    pub(super) shared: Arc<Shared>,
    commands: Receiver<Command>,
    notices: Receiver<Notice>,
    pub(super) status: Arc<StatusBoard>,
    pub(super) dialer: Dialer,
    dialed: Receiver<Dialed>,
    pub(super) epoll: OwnedFd,
    pub(super) endpoints: HashMap<u64, Endpoint>,
    next_key: u64,
    start: Instant,
    /// Each worker's signal at the last tick.
    signals: Vec<u64>,
    pub(super) balancer: Balancer,
}

impl Thread {
    /// # Errors
    /// When the process is out of descriptors.
    pub(crate) fn new(
        shared: Arc<Shared>,
        (commands, notices): (Receiver<Command>, Receiver<Notice>),
        status: Arc<StatusBoard>,
        balancer: Balancer,
        start: Instant,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, shared.notify.as_fd(), epoll::EventData::new_u64(WAKE), flags)?;
        let endpoints = HashMap::new();
        let signals = vec![0; shared.signals.len()];
        let (dialed_in, dialed) = crossbeam_channel::unbounded();
        let dialer = Dialer::new(dialed_in, Arc::clone(&shared.notify));
        Ok(Self {
            shared,
            commands,
            notices,
            status,
            dialer,
            dialed,
            epoll,
            endpoints,
            next_key: 0,
            start,
            signals,
            balancer,
        })
    }

    /// Works until the datapath stops; then it can go on where it was.
    pub(crate) fn run(mut self) -> Self {
        let mut events = Vec::with_capacity(64);
        let mut next_tick = Instant::now() + TICK;
        let mut ticks = 0;
        while !self.shared.stopped() {
            let now = Instant::now();
            let leaves = |e: &Endpoint| e.leaving.as_ref().is_some_and(|old| !old.is_closing());
            let soon =
                self.balancer.is_busy() || self.endpoints.values().any(|e| e.soon || leaves(e));
            let timeout = if soon { SOON } else { next_tick.saturating_duration_since(now) };
            let timeout = Timespec::try_from(timeout).ok();
            events.clear();
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref());
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
            }
            while let Ok(notice) = self.notices.try_recv() {
                self.notice(&notice);
            }
            while let Ok(Dialed { key, result }) = self.dialed.try_recv() {
                self.dialed(key, result);
            }
            for event in &events {
                let data = event.data.u64();
                match data & 3 {
                    _ if data == WAKE => {}
                    LISTENER => self.accept(data >> 2),
                    CONNECTION => self.drive(data >> 2),
                    _ => self.serve_control(data >> 2),
                }
            }
            let keys: Vec<u64> = self.endpoints.keys().copied().collect();
            for key in keys {
                self.resume(key);
            }
            self.balancer.step();
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.free_workers();
                self.age();
                ticks += 1;
                if ticks == HOUSEKEEPING {
                    ticks = 0;
                    self.housekeeping();
                }
            }
        }
        self
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Add(new) => {
                let NewPort { id, name, mac, mtu, socket, vhost } = new;
                let pairs = u16::try_from(vhost.pairs()).unwrap_or(1);
                let offer = config_space::offer(mac, mtu, pairs);
                let (origin, connected) = Origin::new(socket);
                let key = self.insert(Endpoint::new(id, name, vhost, offer, origin));
                match connected {
                    Some(stream) => self.connected(key, stream),
                    None => self.await_frontend(key),
                }
            }
            Command::Remove(id, done) => {
                let found = self.endpoints.iter().find(|(_, e)| e.id == id).map(|(&key, _)| key);
                let found = found.and_then(|key| Some((key, self.endpoints.remove(&key)?)));
                if let Some((key, mut endpoint)) = found {
                    self.ignore(key, &endpoint.origin);
                    let connections = [endpoint.connection.take(), endpoint.leaving.take()];
                    if let Some(kick) = endpoint.control_kick.take() {
                        let _ = epoll::delete(&self.epoll, &kick);
                    }
                    for mut connection in connections.into_iter().flatten() {
                        let _ = epoll::delete(&self.epoll, &connection.stream);
                        // The port leaves the configuration anyway: here a worker's burst is waited for.
                        while connection.device.remove_all(connection.session.device()).is_err() {
                            self.free_workers();
                            DeviceState::unblock(connection.session.device());
                            std::thread::yield_now();
                        }
                    }
                }
                let _ = done.send(());
            }
            Command::Move(wanted) => self.balancer.request(wanted),
        }
    }

    pub(super) fn insert(&mut self, endpoint: Endpoint) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.endpoints.insert(key, endpoint);
        key
    }

    fn notice(&mut self, notice: &Notice) {
        match *notice {
            Notice::Fault(id) => {
                let found = self.endpoints.iter_mut().find(|(_, e)| e.id == id);
                let Some((&key, endpoint)) = found else { return };
                let reason = endpoint.vhost.fault();
                warn!(port = endpoint.name, reason, "port quarantined");
                self.status.set(id, PortState::Quarantined, reason);
                if let Some(connection) = &mut endpoint.connection {
                    connection.break_off();
                    self.drive(key);
                }
            }
            Notice::Gone(id) => {
                info!(port = %id, "the port's device was deleted");
                let reason = Some("the device was deleted".to_owned());
                self.status.set(id, PortState::Gone, reason);
            }
        }
    }

    pub(super) fn drive(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else { return };
        let result = connection.drive(&endpoint.name);
        if connection.device.take_changed() {
            self.shared.epochs.advance();
            self.balancer.rings_changed();
        }
        match result {
            Ok(wait) => {
                endpoint.soon = wait == Wait::Soon;
                let writing = connection.has_unread();
                if writing != endpoint.watched_for_writing {
                    let data = epoll::EventData::new_u64(key << 2 | CONNECTION);
                    // While answers are unread nothing more is read, only a hang-up is seen.
                    let flags =
                        if writing { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
                    let _ = epoll::modify(&self.epoll, &connection.stream, data, flags);
                    endpoint.watched_for_writing = writing;
                }
                self.watch_control(key);
                self.show(key);
            }
            Err(end) => self.hang_up(key, end),
        }
    }

    /// What must go on without an event of the socket.
    fn resume(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        if endpoint.leaving.is_some() {
            self.leave(key);
            return;
        }
        if !endpoint.soon {
            return;
        }
        if endpoint.connection.is_some() {
            self.drive(key);
            return;
        }
        match &mut endpoint.origin {
            Origin::Listener { paused, .. } if paused.is_some_and(|end| Instant::now() < end) => {}
            Origin::Listener { paused: paused @ Some(_), .. } => {
                *paused = None;
                endpoint.soon = false;
                self.await_frontend(key);
            }
            _ => endpoint.soon = false,
        }
    }

    /// Watches the control queue's kick, which may be another one now, and answers what is there.
    fn watch_control(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else { return };
        let kick = connection.device.control().and_then(|control| control.kick.clone());
        let same =
            kick.as_ref().map(Arc::as_ptr) == endpoint.control_kick.as_ref().map(Arc::as_ptr);
        if same {
            return;
        }
        if let Some(old) = endpoint.control_kick.take() {
            let _ = epoll::delete(&self.epoll, &old);
        }
        if let Some(kick) = kick {
            let data = epoll::EventData::new_u64(key << 2 | CONTROL);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if epoll::add(&self.epoll, &kick, data, flags).is_ok() {
                endpoint.control_kick = Some(kick);
            }
            self.serve_control(key);
        }
    }

    fn serve_control(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else { return };
        // A driver that always has more waits for the next event of its own.
        let mut more = Ok(true);
        for _ in 0..16 {
            if !matches!(more, Ok(true)) {
                break;
            }
            more = connection.device.serve_control(connection.session.device());
        }
        match more {
            Ok(_) => connection.device.activate(connection.session.device()),
            Err(error) => {
                if endpoint.vhost.quarantine(format!("control queue: {error}")) {
                    let id = endpoint.id;
                    self.notice(&Notice::Fault(id));
                }
            }
        }
    }

    /// Publishes how the port is.
    fn show(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else { return };
        // A peer that says nothing is not known to be a frontend.
        if !connection.heard {
            return;
        }
        let told = connection.session.device();
        let up = connection.device.is_up(told);
        connection.was_up |= up;
        let (state, reason) = if endpoint.vhost.is_quarantined() {
            (PortState::Quarantined, endpoint.vhost.fault())
        } else {
            let state = if up { PortState::Up } else { PortState::Connected };
            (state, connection.refusal.clone())
        };
        let queue_pairs = u16::try_from(endpoint.vhost.rx_active()).unwrap_or(0);
        let features = told.features;
        self.status.put(endpoint.id, PortStatus { state, reason, features, queue_pairs });
    }

    /// A worker that writes the same signal at two ticks may hang: the frontend has filled its call descriptor and made it block.
    fn free_workers(&mut self) {
        let signals: Vec<_> = self.shared.signalling().collect();
        for (worker, (signal, port)) in signals.into_iter().enumerate() {
            let before = std::mem::replace(&mut self.signals[worker], signal);
            let Some(port) = port.filter(|_| signal == before) else { continue };
            let snapshot = self.shared.current.load_full();
            let Some(id) = snapshot.port(port).map(|port| port.id) else { continue };
            let found = self.endpoints.values().find(|endpoint| endpoint.id == id);
            let Some(endpoint) = found else { continue };
            let connections = [&endpoint.connection, &endpoint.leaving];
            let connections = connections.into_iter().flatten();
            let hung = connections.fold(false, |hung, connection| {
                DeviceState::unblock(connection.session.device()) | hung
            });
            // One that the kernel does not let run looks the same.
            let reason = "the frontend made a call descriptor block".to_owned();
            if hung && endpoint.vhost.quarantine(reason) {
                self.notice(&Notice::Fault(id));
            }
        }
    }

    /// Ages a part of each forwarding table.
    fn age(&self) {
        let seconds = self.start.elapsed().as_secs();
        let now = Seconds(u32::try_from(seconds).unwrap_or(u32::MAX));
        let snapshot = self.shared.current.load_full();
        let mut bridges: Vec<_> = snapshot.ports().map(|port| &port.bridge).collect();
        bridges.sort_by_key(|bridge| Arc::as_ptr(bridge));
        bridges.dedup_by_key(|bridge| Arc::as_ptr(bridge));
        for bridge in bridges {
            bridge.expire(now);
        }
    }

    /// Looks after frontends that do not read their answers or say nothing.
    fn housekeeping(&mut self) {
        self.balancer.housekeeping();
        let unread = self.endpoints.iter().filter(|(_, endpoint)| endpoint.watched_for_writing);
        let unread: Vec<u64> = unread.map(|(&key, _)| key).collect();
        for key in unread {
            self.drive(key);
        }
        let silent = self.endpoints.iter().filter_map(|(&key, endpoint)| {
            let connection = endpoint.connection.as_ref().filter(|connection| !connection.heard)?;
            Some((key, connection.since.elapsed()))
        });
        for (key, silent) in silent.collect::<Vec<_>>() {
            self.silent(key, silent);
        }
    }
}
