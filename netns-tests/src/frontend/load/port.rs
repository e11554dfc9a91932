//! One vhost-user port of the generator: its memory, its rings, its connection.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::features::virtio;
use vmm_sys_util::eventfd::EventFd;
use wire::MacAddr;

use super::buffers::Buffers;
use super::frames::{Frame, Kind};
use super::{packed, split};
use crate::frontend::memory::Memory;
use crate::frontend::ring::{RING_BYTES, RingLayout};

/// Where the buffers begin: behind both rings, at a huge page's half.
const BUFFERS: usize = 1 << 20;
/// Position after which a packed ring starts: index 0 with its wrap counter set (virtio 1.3 §2.8.1).
const PACKED_START: u16 = 1 << 15;

/// How a port's driver looks to the switch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Descriptors of each ring, a power of two.
    pub(super) ring: u16,
    pub(super) packed: bool,
    pub(super) mergeable: bool,
    /// Segmentation by the device: frames of 64 KiB.
    pub(super) tso: bool,
    /// Bytes of each frame.
    pub(super) bytes: usize,
    /// The switch connects to the socket, not the generator.
    pub(super) listen: bool,
}

impl Shape {
    /// Descriptors of each frame that is sent, and bytes of each.
    fn parts(&self) -> (u16, u32) {
        if self.tso { (16, 4096) } else { (1, 2048) }
    }
}

pub(super) struct Port {
    pub(super) tx: Tx,
    pub(super) rx: Rx,
    kicks: [EventFd; 2],
    /// Buffers that are left of the frame that is being received.
    rest: u16,
    many_buffers: bool,
    // Kept while the port lives.
    _memory: Memory,
    _calls: [EventFd; 2],
    _frontend: Frontend,
}

/// The sending ring in either layout.
pub(super) enum Tx {
    Split(split::Tx),
    Packed(packed::Tx),
}

/// The receiving ring in either layout.
pub(super) enum Rx {
    Split(split::Rx),
    Packed(packed::Rx),
}

/// What came with one call of [`Port::receive`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Came {
    pub(super) frames: u64,
    /// Bytes of all buffers, headers and all.
    pub(super) bytes: u64,
    /// Sum of the numbers, so that the frames are looked at.
    pub(super) sum: u64,
}

impl Port {
    /// Connects and starts both rings. `frames`: what the sending slots hold, in turn.
    ///
    /// # Errors
    /// When the switch refuses something, or does not offer what is wanted.
    pub(super) fn new(socket: &Path, shape: Shape, frames: &[Frame]) -> anyhow::Result<Port> {
        let (chain, part) = shape.parts();
        let slots = shape.ring / chain;
        let half = usize::from(shape.ring) * part as usize;
        let memory = Memory::huge(BUFFERS + 2 * half)?;
        let kind = if shape.tso { Kind::Tso } else { Kind::Plain };
        let number_at = kind.number_at();
        let bytes = u32::try_from(wire::virtio_net::HDR_LEN + shape.bytes)?;
        let (rx_ring, tx_ring) =
            (RingLayout::at(0, shape.ring), RingLayout::at(RING_BYTES, shape.ring));
        let rx_buffers = Buffers::new(&memory, BUFFERS, [shape.ring, 1], [part, 0], number_at);
        let tx_buffers =
            Buffers::new(&memory, BUFFERS + half, [slots, chain], [part, bytes], number_at);
        ensure!(bytes <= u32::from(chain) * part, "a frame of {} bytes is too long", shape.bytes);
        for (slot, frame) in (0..slots).zip(frames.iter().cycle()) {
            memory.write(tx_buffers.part(slot, 0), &frame.bytes(shape.bytes, kind)?);
        }
        let (tx, rx) = if shape.packed {
            let tx = Tx::Packed(packed::Tx::new(&memory, tx_ring, tx_buffers));
            (tx, Rx::Packed(packed::Rx::new(&memory, rx_ring, rx_buffers)))
        } else {
            let tx = Tx::Split(split::Tx::new(&memory, tx_ring, tx_buffers));
            (tx, Rx::Split(split::Rx::new(&memory, rx_ring, rx_buffers)))
        };
        let mut frontend =
            if shape.listen { accept(socket)? } else { Frontend::connect(socket, 2)? };
        let [kicks, calls] = start(&mut frontend, shape, &memory, [rx_ring, tx_ring])?;
        let many_buffers = shape.tso;
        let port = Port {
            tx,
            rx,
            kicks,
            rest: 0,
            many_buffers,
            _memory: memory,
            _calls: calls,
            _frontend: frontend,
        };
        port.kick();
        Ok(port)
    }

    /// Wakes the switch where it sleeps.
    pub(super) fn kick(&self) {
        let wanted = match &self.rx {
            Rx::Split(rx) => rx.wants_kick(),
            Rx::Packed(rx) => rx.wants_kick(),
        };
        if wanted {
            // A full counter is as good as one more.
            let _ = self.kicks[0].write(1);
        }
        self.kick_tx();
    }

    /// Wakes the switch for what was sent.
    pub(super) fn kick_tx(&self) {
        let wanted = match &self.tx {
            Tx::Split(tx) => tx.wants_kick(),
            Tx::Packed(tx) => tx.wants_kick(),
        };
        if wanted {
            let _ = self.kicks[1].write(1);
        }
    }

    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        match &mut self.tx {
            Tx::Split(tx) => tx.free(),
            Tx::Packed(tx) => tx.free(),
        }
    }

    /// Sends `count` frames, which must be free.
    #[inline]
    pub(super) fn send(&mut self, count: u16, number: impl FnMut() -> u64) {
        match &mut self.tx {
            Tx::Split(tx) => tx.send(count, number),
            Tx::Packed(tx) => tx.send(count, number),
        }
    }

    /// The slot that the next frame goes out of.
    pub(super) fn next_slot(&self) -> u16 {
        match &self.tx {
            Tx::Split(tx) => tx.next_slot(),
            Tx::Packed(tx) => tx.next_slot(),
        }
    }

    /// Frames that the sending ring holds.
    pub(super) fn slots(&self) -> u16 {
        self.tx_buffers().slots
    }

    /// Source address of the frame in a slot that the switch does not have.
    pub(super) fn source(&self, slot: u16) -> MacAddr {
        self.tx_buffers().source(slot)
    }

    pub(super) fn set_source(&mut self, slot: u16, mac: MacAddr) {
        self.tx_buffers().set_source(slot, mac);
    }

    fn tx_buffers(&self) -> &Buffers {
        match &self.tx {
            Tx::Split(tx) => &tx.buffers,
            Tx::Packed(tx) => &tx.buffers,
        }
    }

    /// Takes what has come, at most `most` buffers, and shows the number of each frame.
    #[inline]
    pub(super) fn receive(&mut self, most: u16, mut each: impl FnMut(u64)) -> Came {
        let Port { rx, rest, many_buffers, .. } = self;
        let mut came = Came::default();
        let seen = |buffers: &Buffers, slot: u16, len: u32| {
            came.bytes += u64::from(len);
            if *rest == 0 {
                let number = buffers.number(slot);
                each(number);
                came.sum = came.sum.wrapping_add(number);
                came.frames += 1;
                if *many_buffers {
                    *rest = buffers.num_buffers(slot).saturating_sub(1);
                }
            } else {
                *rest -= 1;
            }
        };
        match rx {
            Rx::Split(rx) => rx.receive(most, seen),
            Rx::Packed(rx) => rx.receive(most, seen),
        };
        came
    }
}

/// Waits for a switch that connects.
fn accept(socket: &Path) -> anyhow::Result<Frontend> {
    // Left by the run before.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let mut stream = None;
    crate::wait::until("the switch to connect", Duration::from_secs(20), || {
        stream = stream.take().or_else(|| listener.accept().ok());
        stream.is_some()
    })?;
    let (stream, _) = stream.context("no connection")?;
    stream.set_nonblocking(false)?;
    Ok(Frontend::from_stream(stream, 2))
}

/// Negotiates and hands over memory and rings; returns kick and call descriptors of RX and TX.
fn start(
    frontend: &mut Frontend,
    shape: Shape,
    memory: &Memory,
    rings: [RingLayout; 2],
) -> anyhow::Result<[[EventFd; 2]; 2]> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    let mut wanted = virtio::F_VERSION_1;
    if shape.packed {
        wanted |= virtio::F_RING_PACKED;
    }
    if shape.mergeable {
        wanted |= virtio::NET_F_MRG_RXBUF;
    }
    if shape.tso {
        wanted |= virtio::NET_F_CSUM | virtio::NET_F_HOST_TSO4;
        wanted |= virtio::NET_F_GUEST_CSUM | virtio::NET_F_GUEST_TSO4;
    }
    let missing = wanted & !offered;
    ensure!(
        missing == 0,
        "the switch does not offer features {missing:#x} (virtio 1.3 §6: packed rings are bit 34, \
         mergeable buffers 15, TSO 0, 1, 7 and 11)"
    );
    let features = wanted | offered & virtio::F_PROTOCOL_FEATURES;
    let protocol = features & virtio::F_PROTOCOL_FEATURES != 0;
    if protocol {
        // Bit 30 must be known as accepted before protocol features are asked for.
        frontend.set_features(features)?;
        let offered = frontend.get_protocol_features()?;
        frontend.set_protocol_features(offered & VhostUserProtocolFeatures::MQ)?;
    }
    frontend.set_features(features)?;
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: memory.len() as u64,
        userspace_addr: memory.user_addr(),
        mmap_offset: 0,
        mmap_handle: memory.as_fd().as_raw_fd(),
    }])?;
    let events = || -> anyhow::Result<[EventFd; 2]> {
        Ok([EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?])
    };
    let (kicks, calls) = (events()?, events()?);
    let user = |at: usize| memory.user_addr() + at as u64;
    let base = if shape.packed { PACKED_START } else { 0 };
    for (index, ring) in rings.into_iter().enumerate() {
        frontend.set_vring_num(index, ring.num)?;
        frontend.set_vring_base(index, base)?;
        // With packed rings these are the descriptors and the driver's and the device's event suppression.
        let addresses = VringConfigData {
            queue_max_size: ring.num,
            queue_size: ring.num,
            flags: 0,
            desc_table_addr: user(ring.desc),
            used_ring_addr: user(ring.used),
            avail_ring_addr: user(ring.avail),
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses)?;
        frontend.set_vring_call(index, &calls[index])?;
        frontend.set_vring_kick(index, &kicks[index])?;
    }
    if protocol {
        for index in 0..2 {
            frontend.set_vring_enable(index, true)?;
        }
    }
    // A question is answered only after all of the above was done.
    frontend.get_features().context("the switch closed the connection")?;
    Ok([kicks, calls])
}
