//! Endpoints on their way to another process: what each connection has come to, and where its rings go on.
//!
//! Exported while no worker runs, after everything that was waiting for one has been done. Imported without touching a
//! ring: that begins with [`Thread::begin`].

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use uuid::Uuid;
use vhost_user::{Device as Told, Handover, Offer, Region, Session, Vring, VringAddr};

use super::connection::{Connection, End};
use super::device::{DeviceError, DeviceState, RingPosition};
use super::origin::Origin;
use super::queue::VhostPort;
use super::thread::{CONNECTION, Endpoint, Thread};
use crate::handover::{
    AddrState, ConnectionState, EndpointState, Fds, LogState, OriginState, RegionState,
    RxModesState, VringState,
};

/// Why a connection cannot be taken over.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Session(#[from] vhost_user::ImportError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Thread {
    /// The state of every endpoint, for a process that goes on with them. No worker may run.
    ///
    /// # Errors
    /// When this process is out of descriptors.
    pub(crate) fn export(&mut self, fds: &mut Fds) -> io::Result<Vec<(Uuid, EndpointState)>> {
        let keys: Vec<u64> = self.endpoints.keys().copied().collect();
        keys.into_iter().for_each(|key| self.settle(key));
        self.endpoints.values().map(|e| Ok((e.id, export_endpoint(e, fds)?))).collect()
    }

    /// Ends what waits for workers, which are not there.
    fn settle(&mut self, key: u64) {
        self.leave(key);
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else { return };
        if let Err(end) = connection.settle(&endpoint.name) {
            self.hang_up(key, end);
        }
    }

    /// An endpoint of another process, with its connection where that can go on. Nothing of it is watched and no ring is
    /// touched before [`begin`](Self::begin).
    ///
    /// # Errors
    /// When its socket is not there.
    pub(crate) fn import(
        id: Uuid,
        name: String,
        vhost: &Arc<VhostPort>,
        offer: Offer,
        state: EndpointState,
        fds: &mut Fds,
    ) -> io::Result<Endpoint> {
        let EndpointState { origin, fault, announcement, connection } = state;
        if let Some(mac) = announcement {
            vhost.announce(mac);
        }
        let origin = match origin {
            OriginState::Listener { listener } => {
                Origin::Listener { listener: fds.take(listener)?.into(), paused: None }
            }
            OriginState::Dialer { path } => {
                Origin::Dialer { path: path.into(), delay: Duration::ZERO }
            }
            OriginState::Hub => Origin::Hub,
        };
        let mut endpoint = Endpoint::new(id, name, Arc::clone(vhost), offer, origin);
        if let Some(state) = connection {
            match import_connection(state, fds, &endpoint) {
                Ok(connection) => endpoint.connection = Some(connection),
                Err(error) => {
                    // It is closed: a frontend that can connects again.
                    tracing::warn!(port = endpoint.name, %id, %error, "cannot go on with a frontend");
                }
            }
        }
        if let Some(fault) = fault.filter(|_| endpoint.connection.is_some()) {
            vhost.quarantine(fault);
        }
        Ok(endpoint)
    }

    /// Goes on with an endpoint of another process.
    pub(crate) fn begin(&mut self, endpoint: Endpoint) {
        let (id, idle) = (endpoint.id, endpoint.origin.idle());
        let key = self.insert(endpoint);
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(connection) = &mut endpoint.connection else {
            self.status.set(id, idle, None);
            self.await_frontend(key);
            return;
        };
        let data = epoll::EventData::new_u64(key << 2 | CONNECTION);
        let watched = epoll::add(&self.epoll, &connection.stream, data, epoll::EventFlags::IN);
        if let Err(error) = watched {
            self.hang_up(key, End::Socket(io::Error::from(error).into()));
            return;
        }
        connection.device.signal_all();
        self.drive(key);
    }
}

fn export_endpoint(endpoint: &Endpoint, fds: &mut Fds) -> io::Result<EndpointState> {
    let connection = endpoint.connection.as_ref();
    Ok(EndpointState {
        origin: match &endpoint.origin {
            Origin::Listener { listener, .. } => {
                OriginState::Listener { listener: fds.put(listener)? }
            }
            Origin::Dialer { path, .. } => OriginState::Dialer { path: path.to_path_buf() },
            Origin::Hub => OriginState::Hub,
        },
        announcement: endpoint.vhost.announcement(),
        fault: endpoint.vhost.is_quarantined().then(|| endpoint.vhost.fault()).flatten(),
        connection: connection.map(|c| export_connection(c, fds)).transpose()?,
    })
}

fn export_connection(connection: &Connection, fds: &mut Fds) -> io::Result<ConnectionState> {
    let Handover { device: told, unread, unread_fds, unsent } = connection.session.export()?;
    let device = &connection.device;
    let positions = device.positions(told.vrings.len());
    let mut put = |fd: &Option<Arc<OwnedFd>>| fd.as_ref().map(|fd| fds.put(fd)).transpose();
    let backend_channel = put(&told.backend_channel)?;
    let vrings = told.vrings.iter().zip(positions).map(|(vring, position)| {
        Ok(VringState {
            num: vring.num,
            addr: vring.addr.map(AddrState::from),
            base: vring.base,
            kick: put(&vring.kick)?,
            call: put(&vring.call)?,
            err: put(&vring.err)?,
            enabled: vring.enabled,
            started: vring.started,
            position: position.live,
            ended: position.ended,
        })
    });
    let vrings = vrings.collect::<io::Result<_>>()?;
    let regions = told.regions.iter().map(|region| {
        let &Region { guest_addr, size, user_addr, mmap_offset, ref fd } = region;
        Ok(RegionState { guest_addr, size, user_addr, mmap_offset, file: fds.put(fd)? })
    });
    let regions = regions.collect::<io::Result<_>>()?;
    let log = told.log.as_ref().map(|log| {
        let vhost_user::Log { size, offset, ref fd } = *log;
        io::Result::Ok(LogState { size, offset, file: fds.put(fd)? })
    });
    let log = log.transpose()?;
    Ok(ConnectionState {
        stream: fds.put(&connection.stream)?,
        features: told.features,
        protocol_features: told.protocol_features,
        mtu: told.mtu,
        status: told.status,
        backend_channel,
        regions,
        log,
        vrings,
        control_pairs: device.control().map_or(1, |control| control.pairs),
        rx_modes: device.control().map(|control| RxModesState::from(&control.modes)),
        broken: device.is_broken(),
        heard: connection.heard,
        refusal: connection.refusal.clone(),
        unread,
        unread_fds: unread_fds.iter().map(|fd| fds.put(fd)).collect::<io::Result<_>>()?,
        unsent,
    })
}

fn import_connection(
    state: ConnectionState,
    fds: &mut Fds,
    endpoint: &Endpoint,
) -> Result<Connection, ConnectionError> {
    let stream = UnixStream::from(fds.take(state.stream)?);
    stream.set_nonblocking(true)?;
    let mut take =
        |place: Option<u32>| place.map(|place| fds.take(place).map(Arc::new)).transpose();
    let positions: Vec<_> = state
        .vrings
        .iter()
        .map(|vring| RingPosition { live: vring.position, ended: vring.ended })
        .collect();
    let backend_channel = take(state.backend_channel)?;
    let vrings = state.vrings.into_iter().map(|vring| {
        Ok(Vring {
            num: vring.num,
            addr: vring.addr.map(VringAddr::from),
            base: vring.base,
            kick: take(vring.kick)?,
            call: take(vring.call)?,
            err: take(vring.err)?,
            enabled: vring.enabled,
            started: vring.started,
        })
    });
    let vrings = vrings.collect::<io::Result<_>>()?;
    let regions = state.regions.into_iter().map(|region| {
        let RegionState { guest_addr, size, user_addr, mmap_offset, file } = region;
        let fd = Arc::new(fds.take(file)?);
        Ok(Region { guest_addr, size, user_addr, mmap_offset, fd })
    });
    let regions = regions.collect::<io::Result<_>>()?;
    let log = state.log.map(|LogState { size, offset, file }| {
        io::Result::Ok(vhost_user::Log { size, offset, fd: Arc::new(fds.take(file)?) })
    });
    let log = log.transpose()?;
    let unread_fds = state.unread_fds.into_iter().map(|fd| fds.take(fd));
    let unread_fds = unread_fds.collect::<io::Result<_>>()?;
    let told = Told {
        features: state.features,
        protocol_features: state.protocol_features,
        regions,
        vrings,
        backend_channel,
        log,
        mtu: state.mtu,
        status: state.status,
    };
    let (unread, unsent) = (state.unread, state.unsent);
    let handover = Handover { device: told, unread, unread_fds, unsent };
    let session = Session::import(endpoint.offer.clone(), handover)?;
    let mut device = DeviceState::new(Arc::clone(&endpoint.vhost), 0);
    let modes = state.rx_modes.and_then(RxModesState::modes).unwrap_or_default();
    let said = Some((state.control_pairs, modes));
    device.import(session.device(), &positions, said, state.broken)?;
    Ok(Connection::import(stream, session, device, state.heard, state.refusal))
}

impl From<VringAddr> for AddrState {
    fn from(addr: VringAddr) -> Self {
        let VringAddr { desc, used, avail, log } = addr;
        Self { desc, used, avail, log }
    }
}

impl From<AddrState> for VringAddr {
    fn from(addr: AddrState) -> Self {
        let AddrState { desc, used, avail, log } = addr;
        Self { desc, used, avail, log }
    }
}
