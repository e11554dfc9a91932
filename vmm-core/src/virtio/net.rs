//! A virtio network device (virtio 1.3 §5.1) whose rings a vhost-user backend serves.
//!
//! The backend moves the frames; this device negotiates. Offered are the backend's features that
//! need nothing from the VMM, and the VMM's own: MAC, MTU and link status, which live in the
//! configuration space that the VMM keeps. One pair of queues, no control queue.
//!
//! When the backend goes away the link goes down, and [`VhostUserNet::reconnect`] (called by the
//! machine's main loop) brings the device back on a new connection: rings go on at their used
//! index, because a backend that vanished has nothing in flight that it could still complete.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};
use wire::MacAddr;

use super::{Activation, ActiveQueue, VirtioDevice};
use crate::bus::lock;

const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 256;
/// No backend takes longer for one negotiation, unless it hangs.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
/// vhost-user's own feature bit.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Features that work when only the backend and the driver know of them.
const PASSED_ON: u64 = bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_F_IN_ORDER)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(net::VIRTIO_NET_F_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_TSO4)
    | bit(net::VIRTIO_NET_F_GUEST_TSO6)
    | bit(net::VIRTIO_NET_F_GUEST_ECN)
    | bit(net::VIRTIO_NET_F_GUEST_UFO)
    | bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_HOST_ECN)
    | bit(net::VIRTIO_NET_F_HOST_UFO)
    | bit(net::VIRTIO_NET_F_GUEST_USO4)
    | bit(net::VIRTIO_NET_F_GUEST_USO6)
    | bit(net::VIRTIO_NET_F_HOST_USO)
    | bit(net::VIRTIO_NET_F_MRG_RXBUF);

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What the VMM decides about the device.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The backend's socket.
    pub socket: PathBuf,
    pub mac: MacAddr,
    /// Offered to the driver when given.
    pub mtu: Option<u16>,
}

/// Why the device and its backend do not get together.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error(
        "there is no socket {}: start the network and add the port first (netctl port-add)",
        .0.display()
    )]
    NoSocket(PathBuf),
    #[error(
        "nobody listens on {}: the backend that made the socket has ended; restart it",
        .0.display()
    )]
    NobodyListens(PathBuf),
    #[error("cannot connect to the vhost-user backend at {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error(
        "{what} failed with the vhost-user backend at {}; it serves one virtual machine per \
         socket, so another may be connected already", socket.display()
    )]
    Protocol { socket: PathBuf, what: &'static str, source: vhost::Error },
    #[error("the backend at {} lacks the features {missing:#x}", socket.display())]
    Features { socket: PathBuf, missing: u64 },
    #[error("the used ring of queue {0} cannot be read")]
    Ring(u16),
}

#[derive(Debug)]
struct State {
    config: NetConfig,
    /// The backend's part of [`VirtioDevice::features`], fixed by the first connection.
    offered: u64,
    connection: Option<Connection>,
    active: Option<Activation>,
    link_up: bool,
}

struct Connection {
    frontend: Frontend,
    features: u64,
    socket: UnixStream,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("features", &format_args!("{:#x}", self.features))
            .finish_non_exhaustive()
    }
}

/// The device; a handle that the transport and the main loop share.
#[derive(Clone, Debug)]
pub struct VhostUserNet(Arc<Mutex<State>>);

impl VhostUserNet {
    /// Connects to the backend and learns its features.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn connect(config: NetConfig) -> Result<Self, NetError> {
        let connection = Connection::open(&config.socket)?;
        let offered = connection.features & PASSED_ON;
        if offered & bit(VIRTIO_F_VERSION_1) == 0 {
            let missing = bit(VIRTIO_F_VERSION_1);
            return Err(NetError::Features { socket: config.socket, missing });
        }
        let connection = Some(connection);
        let state = State { config, offered, connection, active: None, link_up: true };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// The socket to watch for the backend's hang-up; `None` while there is no connection.
    #[must_use]
    pub fn watched(&self) -> Option<UnixStream> {
        lock(&self.0).connection.as_ref().and_then(|connection| connection.socket.try_clone().ok())
    }

    /// Where the backend listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        lock(&self.0).config.socket.clone()
    }

    /// The backend hung up: the link goes down.
    pub fn disconnected(&self) {
        let mut state = lock(&self.0);
        state.connection = None;
        state.set_link(false);
    }

    /// Tries to get the backend back; the link goes up when that worked.
    ///
    /// # Errors
    /// [`NetError`]; the device stays disconnected and the caller may try again.
    pub fn reconnect(&self) -> Result<(), NetError> {
        let mut state = lock(&self.0);
        if state.connection.is_some() {
            return Ok(());
        }
        let mut connection = Connection::open(&state.config.socket)?;
        if let Some(active) = &state.active {
            connection.start(&state.config.socket, active, Base::Used)?;
        }
        state.connection = Some(connection);
        state.set_link(true);
        Ok(())
    }
}

impl State {
    fn set_link(&mut self, up: bool) {
        if self.link_up == up {
            return;
        }
        self.link_up = up;
        if let Some(active) = &self.active {
            active.config_change.notify();
        }
    }

    /// `struct virtio_net_config` as far as its features are offered.
    fn config_bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&self.config.mac.0);
        bytes[6] = u8::from(self.link_up);
        bytes[8] = 1;
        bytes[10..].copy_from_slice(&self.config.mtu.unwrap_or(0).to_le_bytes());
        bytes
    }
}

/// Where the backend goes on in a ring.
#[derive(Clone, Copy, Debug)]
enum Base {
    /// A ring that was just set up.
    Zero,
    /// After everything that the ring says is used.
    Used,
}

impl Connection {
    fn open(socket: &Path) -> Result<Self, NetError> {
        let path = || socket.to_owned();
        let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetError::NoSocket(path()),
            io::ErrorKind::ConnectionRefused => NetError::NobodyListens(path()),
            _ => NetError::Connect { socket: path(), source },
        })?;
        let watched =
            stream.try_clone().map_err(|source| NetError::Connect { socket: path(), source })?;
        let _deadline = Deadline::start(&watched);
        let mut frontend = Frontend::from_stream(stream, QUEUES as u64);
        let failed = |what| move |source| NetError::Protocol { socket: path(), what, source };
        frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let features = frontend.get_features().map_err(failed("GET_FEATURES"))?;
        if features & PROTOCOL_FEATURES != 0 {
            let offered =
                frontend.get_protocol_features().map_err(failed("GET_PROTOCOL_FEATURES"))?;
            let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ;
            let accepted = offered & wanted;
            frontend.set_protocol_features(accepted).map_err(failed("SET_PROTOCOL_FEATURES"))?;
            if accepted.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        Ok(Self { frontend, features, socket: watched })
    }

    fn start(&mut self, socket: &Path, active: &Activation, base: Base) -> Result<(), NetError> {
        let failed =
            |what| move |source| NetError::Protocol { socket: socket.to_owned(), what, source };
        let _deadline = Deadline::start(&self.socket);
        let missing = active.features & PASSED_ON & !self.features;
        if missing != 0 {
            return Err(NetError::Features { socket: socket.to_owned(), missing });
        }
        let features = active.features & PASSED_ON | self.features & PROTOCOL_FEATURES;
        self.frontend.set_features(features).map_err(failed("SET_FEATURES"))?;
        let regions = active
            .memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed("describing guest memory"))?;
        self.frontend.set_mem_table(&regions).map_err(failed("SET_MEM_TABLE"))?;
        for queue in &active.queues {
            self.start_queue(active, queue, base, &failed)?;
        }
        if features & PROTOCOL_FEATURES != 0 {
            for queue in &active.queues {
                self.frontend
                    .set_vring_enable(queue.index.into(), true)
                    .map_err(failed("SET_VRING_ENABLE"))?;
            }
        }
        Ok(())
    }

    fn start_queue<F: FnOnce(vhost::Error) -> NetError>(
        &self,
        active: &Activation,
        queue: &ActiveQueue,
        base: Base,
        failed: &impl Fn(&'static str) -> F,
    ) -> Result<(), NetError> {
        let index = usize::from(queue.index);
        let host = |address| {
            active
                .memory
                .get_host_address(GuestAddress(address))
                .map(|pointer| pointer.expose_provenance() as u64)
                .map_err(|_| NetError::Ring(queue.index))
        };
        let rings = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: host(queue.descriptors)?,
            used_ring_addr: host(queue.used)?,
            avail_ring_addr: host(queue.avail)?,
            log_addr: None,
        };
        let base = match base {
            Base::Zero => 0,
            Base::Used => active
                .memory
                .read_obj::<u16>(GuestAddress(queue.used + 2))
                .map(u16::from_le)
                .map_err(|_| NetError::Ring(queue.index))?,
        };
        let frontend = &self.frontend;
        frontend.set_vring_num(index, queue.size).map_err(failed("SET_VRING_NUM"))?;
        frontend.set_vring_base(index, base).map_err(failed("SET_VRING_BASE"))?;
        frontend.set_vring_addr(index, &rings).map_err(failed("SET_VRING_ADDR"))?;
        frontend.set_vring_call(index, queue.call.event()).map_err(failed("SET_VRING_CALL"))?;
        frontend.set_vring_kick(index, &queue.kick).map_err(failed("SET_VRING_KICK"))
    }

    fn stop(&mut self, socket: &Path, active: &Activation) -> Result<(), NetError> {
        let failed =
            |what| move |source| NetError::Protocol { socket: socket.to_owned(), what, source };
        let _deadline = Deadline::start(&self.socket);
        for queue in &active.queues {
            self.frontend.get_vring_base(queue.index.into()).map_err(failed("GET_VRING_BASE"))?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The main loop may hold the socket too, while it watches it.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl VirtioDevice for VhostUserNet {
    fn device_type(&self) -> u16 {
        1
    }

    fn pci_class(&self) -> u32 {
        0x02_0000
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn features(&self) -> u64 {
        let state = lock(&self.0);
        let mtu = if state.config.mtu.is_some() { bit(net::VIRTIO_NET_F_MTU) } else { 0 };
        state.offered | bit(net::VIRTIO_NET_F_MAC) | bit(net::VIRTIO_NET_F_STATUS) | mtu
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let bytes = lock(&self.0).config_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset + i).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), Box<dyn std::error::Error>> {
        let mut state = lock(&self.0);
        let State { config, connection, active, .. } = &mut *state;
        if let Some(live) = connection
            && let Err(error) = live.start(&config.socket, &activation, Base::Zero)
        {
            *connection = None;
            state.link_up = false;
            return Err(error.into());
        }
        // Without a connection the device waits for `reconnect`, its link down.
        *active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        let mut state = lock(&self.0);
        let Some(activation) = state.active.take() else { return };
        let State { config, connection, .. } = &mut *state;
        if let Some(live) = connection
            && let Err(error) = live.stop(&config.socket, &activation)
        {
            // A backend whose connection is closed must let go of the rings.
            tracing::warn!(%error, "the backend does not stop; its connection is closed");
            *connection = None;
            state.link_up = false;
        }
    }
}

/// Shuts a socket down when a negotiation takes too long: the `vhost` crate waits for replies
/// without a limit. Dropping it calls it off.
struct Deadline(#[expect(dead_code, reason = "its drop is the message")] Sender<()>);

impl Deadline {
    fn start(socket: &UnixStream) -> Option<Self> {
        let socket = socket.try_clone().ok()?;
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("vhost-deadline".into())
            .spawn(move || {
                if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    tracing::warn!("the vhost-user backend does not answer; hanging up");
                    let _ = socket.shutdown(Shutdown::Both);
                }
            })
            .ok()?;
        Some(Self(sender))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    const SET_OWNER: u32 = 3;
    const GET_FEATURES: u32 = 1;

    fn config(directory: &tempfile::TempDir) -> NetConfig {
        let mac = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
        NetConfig { socket: directory.path().join("port"), mac, mtu: Some(1400) }
    }

    /// A backend that answers GET_FEATURES (or not) and then waits for the hang-up.
    fn backend(config: &NetConfig, features: Option<u64>) -> JoinHandle<()> {
        let listener = UnixListener::bind(&config.socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for expected in [SET_OWNER, GET_FEATURES] {
                let mut header = [0; 12];
                stream.read_exact(&mut header).unwrap();
                assert_eq!(header[..4], expected.to_le_bytes());
            }
            if let Some(features) = features {
                for word in [GET_FEATURES, 1 | 4, 8] {
                    stream.write_all(&word.to_le_bytes()).unwrap();
                }
                stream.write_all(&features.to_le_bytes()).unwrap();
            }
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the frontend says no more");
        })
    }

    #[test]
    fn the_driver_sees_the_backends_features_and_our_own() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let status_and_mq = bit(net::VIRTIO_NET_F_STATUS) | bit(net::VIRTIO_NET_F_CTRL_VQ);
        let offered = bit(VIRTIO_F_VERSION_1) | bit(net::VIRTIO_NET_F_CSUM) | status_and_mq;
        let backend = backend(&config, Some(offered));
        let net = VhostUserNet::connect(config).unwrap();
        let own =
            bit(net::VIRTIO_NET_F_MAC) | bit(net::VIRTIO_NET_F_STATUS) | bit(net::VIRTIO_NET_F_MTU);
        let expected = bit(VIRTIO_F_VERSION_1) | bit(net::VIRTIO_NET_F_CSUM) | own;
        assert_eq!(net.features(), expected, "no control queue, whoever offers one");
        let mut bytes = [0xff; 14];
        net.read_config(0, &mut bytes);
        assert_eq!(bytes, [0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0x78, 0x05, 0, 0]);
        assert!(net.watched().is_some());

        net.disconnected();
        backend.join().unwrap();
        net.read_config(6, &mut bytes[..2]);
        assert_eq!(bytes[..2], [0, 0], "the link is down");
        assert!(net.watched().is_none());
        assert!(matches!(net.reconnect(), Err(NetError::NobodyListens(_))));
        assert_eq!(net.features(), expected, "features outlive the connection");
    }

    #[test]
    fn a_legacy_backend_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let backend = backend(&config, Some(bit(net::VIRTIO_NET_F_CSUM)));
        let error = VhostUserNet::connect(config).unwrap_err();
        assert!(matches!(error, NetError::Features { missing, .. } if missing == 1 << 32));
        backend.join().unwrap();
    }

    #[test]
    fn a_backend_that_does_not_answer_is_hung_up_on() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let backend = backend(&config, None);
        let error = VhostUserNet::connect(config).unwrap_err();
        assert!(matches!(error, NetError::Protocol { what: "GET_FEATURES", .. }), "{error}");
        backend.join().unwrap();
    }

    #[test]
    fn a_missing_socket_says_how_to_get_one() {
        let directory = tempfile::tempdir().unwrap();
        let error = VhostUserNet::connect(config(&directory)).unwrap_err();
        assert!(error.to_string().contains("netctl port-add"), "{error}");
    }
}
