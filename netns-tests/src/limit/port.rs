//! A vhost-user socket and the rings of the frontend that is connected to it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use vhost_user::features::{protocol, virtio};
use vhost_user::socket::{self, Read};
use vhost_user::{Action, Device, Offer, Outcome, Session};
use virtio_ring::{GuestMemory, MappedRegion, RegionSpec, Ring, RingConfig};

/// Both rings of a frontend that runs.
pub(super) struct Rings {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) memory: Arc<GuestMemory>,
    /// Frames may be longer than a receive buffer.
    pub(super) many_buffers: bool,
    calls: [Option<Arc<OwnedFd>>; 2],
}

impl Rings {
    #[inline]
    pub(super) fn signal_rx(&self, wanted: bool) {
        signal(self.calls[0].as_ref().filter(|_| wanted));
    }

    #[inline]
    pub(super) fn signal_tx(&self, wanted: bool) {
        signal(self.calls[1].as_ref().filter(|_| wanted));
    }
}

fn signal(call: Option<&Arc<OwnedFd>>) {
    if let Some(call) = call {
        // A full counter is as good as one more.
        let _ = rustix::io::write(call, &1_u64.to_ne_bytes());
    }
}

/// A listener, and the frontend that is there.
pub(super) struct Port {
    listener: UnixListener,
    connection: Option<(UnixStream, Session)>,
    rings: Option<Rings>,
}

impl Port {
    /// # Errors
    /// When the path cannot be bound.
    pub(super) fn new(path: &Path) -> anyhow::Result<Port> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Port { listener, connection: None, rings: None })
    }

    #[inline]
    pub(super) fn rings(&mut self) -> Option<&mut Rings> {
        self.rings.as_mut()
    }

    /// Accepts, reads messages and does what they say.
    ///
    /// # Errors
    /// When the frontend says something that makes no sense.
    pub(super) fn serve(&mut self) -> anyhow::Result<()> {
        let Some((stream, session)) = &mut self.connection else {
            if let Ok((stream, _)) = self.listener.accept() {
                self.connection = Some((stream, Session::new(offer())));
            }
            return Ok(());
        };
        loop {
            if let Some(action) = session.poll()? {
                let outcome = match action {
                    Action::StopVring(at) => {
                        let rings = self.rings.as_ref();
                        let ring = rings.map(|rings| if at == 0 { &rings.rx } else { &rings.tx });
                        let base = ring.map_or(0, |ring| ring.next_index());
                        self.rings = None;
                        Outcome::VringBase(base)
                    }
                    Action::Rarp(_) => Outcome::Done,
                    _ => {
                        self.rings = build(session.device())?;
                        Outcome::Done
                    }
                };
                session.complete(outcome)?;
                continue;
            }
            socket::write(&*stream, session)?;
            match socket::read(&*stream, session) {
                Ok(Read::Received) => {}
                Ok(Read::Empty | Read::Paused) => return Ok(()),
                Ok(Read::Closed) | Err(_) => {
                    self.connection = None;
                    self.rings = None;
                    return Ok(());
                }
            }
        }
    }
}

/// What changes how frames are moved, and nothing else.
fn offer() -> Offer {
    Offer {
        features: virtio::F_VERSION_1
            | virtio::F_RING_PACKED
            | virtio::F_IN_ORDER
            | virtio::F_INDIRECT_DESC
            | virtio::F_EVENT_IDX
            | virtio::NET_F_MRG_RXBUF
            | virtio::NET_F_CSUM
            | virtio::NET_F_GUEST_CSUM
            | virtio::NET_F_HOST_TSO4
            | virtio::NET_F_GUEST_TSO4,
        protocol_features: protocol::MQ | protocol::REPLY_ACK,
        queue_pairs: 1,
        config: vec![0; 24],
        max_ring: 32_768,
    }
}

/// Both rings, once both can run. Nothing is in flight between bursts, so they are made anew at each change.
fn build(device: &Device) -> anyhow::Result<Option<Rings>> {
    let [rx, tx] = [0, 1].map(|at| device.vrings.get(at));
    let (Some(rx), Some(tx)) = (rx, tx) else { return Ok(None) };
    let ready = |vring: &vhost_user::Vring| vring.is_ready() && vring.enabled;
    if !ready(rx) || !ready(tx) || device.regions.is_empty() {
        return Ok(None);
    }
    let regions = device.regions.iter().map(|region| {
        let spec = RegionSpec {
            guest_addr: region.guest_addr,
            size: region.size,
            user_addr: region.user_addr,
            mmap_offset: region.mmap_offset,
        };
        Ok(Arc::new(MappedRegion::map(spec, region.fd.as_fd())?))
    });
    let memory = Arc::new(GuestMemory::new(regions.collect::<anyhow::Result<_>>()?)?);
    let ring = |vring: &vhost_user::Vring| -> anyhow::Result<Ring> {
        let addr = vring.addr.context("a ring without addresses")?;
        let config = RingConfig {
            packed: device.has(virtio::F_RING_PACKED),
            in_order: device.has(virtio::F_IN_ORDER),
            size: vring.num,
            desc: addr.desc,
            avail: addr.avail,
            used: addr.used,
            base: vring.base,
            event_idx: device.has(virtio::F_EVENT_IDX),
            indirect: device.has(virtio::F_INDIRECT_DESC),
        };
        let mut ring = Ring::new(&memory, &config, None)?;
        ring.suppress_kicks();
        Ok(ring)
    };
    Ok(Some(Rings {
        rx: ring(rx)?,
        tx: ring(tx)?,
        many_buffers: device.has(virtio::NET_F_MRG_RXBUF) && device.has(virtio::NET_F_GUEST_TSO4),
        calls: [rx.call.clone(), tx.call.clone()],
        memory: Arc::clone(&memory),
    }))
}
