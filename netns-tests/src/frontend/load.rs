//! Load for measuring a vhost-user switch: two ports, one thread, as little work as possible.
//!
//! Descriptors are written once and never again: each slot of the sending ring keeps its frame, each
//! slot of the receiving ring its buffer. A frame costs one cache line written when it is sent and one
//! read when it arrives, so that the switch and not this program is what is measured. It is a closed
//! loop: a slot is sent again as soon as the switch has given it back.
//!
//! Sent slots are reused in order, without a look at which descriptors came back: all known network
//! backends give them back in order, and one that does not only sends a number twice.

use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::features::virtio;
use vmm_sys_util::eventfd::EventFd;
use wire::MacAddr;
use wire::udp::{UdpV4, build_ipv4};
use wire::virtio_net::HDR_LEN;

use super::memory::Memory;
use super::placement::pin;
use super::ring::{RING_BYTES, RingLayout, desc};

const RING: u16 = 1024;
const BUFFER: usize = 2048;
const BUFFERS: usize = 1 << 20;
/// Where each frame carries its number: after Ethernet, IPv4 and UDP, within the first cache line.
const NUMBER_AT: usize = HDR_LEN + 42;
const BURST: u16 = 32;
const WRITE: u16 = 2;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Bytes of each frame without FCS; 60 to 1,518.
    pub bytes: usize,
    /// MAC and IP address pairs, 1 to 1,024.
    pub flows: u16,
    /// Both ports send, or only the first.
    pub both: bool,
    pub warm_up: Duration,
    pub seconds: f64,
    /// CPU of the generator.
    pub cpu: usize,
}

/// What was measured, both directions together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// Frames received per second.
    pub frames_per_second: f64,
    pub sent: u64,
    pub received: u64,
    /// Share of all rounds in which nothing could be sent and nothing came: the switch was the slower.
    pub idle: f64,
}

/// One vhost-user port of the generator.
struct Port {
    memory: Memory,
    rx: RingLayout,
    tx: RingLayout,
    rx_kick: EventFd,
    tx_kick: EventFd,
    _calls: [EventFd; 2],
    _frontend: Frontend,
    tx_avail: u16,
    rx_avail: u16,
    rx_used: u16,
}

/// Runs the load between two ports of a switch.
///
/// # Errors
/// When a port does not come up, or no frame gets through.
pub fn run(sockets: [&Path; 2], load: &Load) -> anyhow::Result<Rate> {
    ensure!((60..=1518).contains(&load.bytes), "frames of 60 to 1518 bytes");
    ensure!((1..=1024).contains(&load.flows), "1 to 1024 flows");
    pin(load.cpu)?;
    let mut ports = [
        Port::new(sockets[0], load, 1, 2).context("first port")?,
        Port::new(sockets[1], load, 2, 1).context("second port")?,
    ];
    let mut number = 0;
    learn(&mut ports, &mut number)?;

    let mut sum = 0;
    let (mut sent, mut received, mut idle, mut rounds) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut start = Instant::now();
    let mut warm = false;
    loop {
        for _ in 0..1000 {
            let mut moved = ports[0].send(BURST, &mut number);
            if load.both {
                moved += ports[1].send(BURST, &mut number);
            }
            sent += moved;
            let [first, second] = &mut ports;
            let came = first.receive(&mut sum) + second.receive(&mut sum);
            received += came;
            rounds += 1;
            idle += u64::from(moved + came == 0);
            if rounds.is_multiple_of(64) {
                ports.iter().for_each(Port::kick);
            }
        }
        let elapsed = start.elapsed();
        if !warm && elapsed >= load.warm_up {
            warm = true;
            (sent, received, idle, rounds) = (0, 0, 0, 0);
            start = Instant::now();
        } else if warm && elapsed.as_secs_f64() >= load.seconds {
            break;
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    std::hint::black_box(sum);
    ensure!(received > 0, "no frame came through");
    #[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
    Ok(Rate {
        frames_per_second: received as f64 / elapsed,
        sent,
        received,
        idle: idle as f64 / rounds as f64,
    })
}

/// Lets the switch learn all addresses of both sides.
fn learn(ports: &mut [Port; 2], number: &mut u64) -> anyhow::Result<()> {
    let mut arrived = [0_u64; 2];
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut sum = 0;
    // A whole ring of frames holds every flow once; three times for those lost while starting.
    let wanted = u64::from(RING) * 3;
    while arrived.iter().any(|count| *count < wanted) {
        ensure!(
            Instant::now() < deadline,
            "frames do not get through: {} and {} of {wanted} arrived",
            arrived[0],
            arrived[1]
        );
        for (port, count) in ports.iter_mut().zip(&mut arrived) {
            port.send(BURST, number);
            port.kick();
            *count += port.receive(&mut sum);
        }
        std::thread::yield_now();
    }
    Ok(())
}

impl Port {
    fn new(socket: &Path, load: &Load, side: u8, other: u8) -> anyhow::Result<Port> {
        let memory = Memory::huge(BUFFERS + 2 * usize::from(RING) * BUFFER)?;
        let rx = RingLayout::at(0, RING);
        let tx = RingLayout::at(RING_BYTES, RING);
        for slot in 0..RING {
            let buffer = rx_buffer(slot);
            memory.write(rx.desc_at(slot), &desc(buffer as u64, 2048, WRITE, 0));
            memory.store_u16(rx.avail_at(slot), slot);
            let buffer = tx_buffer(slot);
            let frame = frame(load.bytes, slot % load.flows, side, other)?;
            let len = u32::try_from(HDR_LEN + frame.len())?;
            memory.write(tx.desc_at(slot), &desc(buffer as u64, len, 0, 0));
            memory.store_u16(tx.avail_at(slot), slot);
            memory.write(buffer + HDR_LEN, &frame);
        }
        for ring in [rx, tx] {
            // No interrupts: this driver polls.
            memory.store_u16(ring.avail, 1);
        }
        memory.store_u16(rx.avail + 2, RING);

        let mut frontend = Frontend::connect(socket, 2)?;
        frontend.set_owner()?;
        let features = frontend.get_features()?
            & (virtio::F_VERSION_1 | virtio::F_PROTOCOL_FEATURES | virtio::NET_F_MRG_RXBUF);
        ensure!(features & virtio::F_VERSION_1 != 0, "the switch is a legacy device");
        if features & virtio::F_PROTOCOL_FEATURES != 0 {
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
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&memory)),
        }])?;
        let events = || -> anyhow::Result<[EventFd; 2]> {
            Ok([EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?])
        };
        let (kicks, calls) = (events()?, events()?);
        let user = |at: usize| memory.user_addr() + at as u64;
        for (index, ring) in [rx, tx].into_iter().enumerate() {
            frontend.set_vring_num(index, RING)?;
            frontend.set_vring_base(index, 0)?;
            frontend.set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: RING,
                    queue_size: RING,
                    flags: 0,
                    desc_table_addr: user(ring.desc),
                    used_ring_addr: user(ring.used),
                    avail_ring_addr: user(ring.avail),
                    log_addr: None,
                },
            )?;
            frontend.set_vring_call(index, &calls[index])?;
            frontend.set_vring_kick(index, &kicks[index])?;
        }
        if features & virtio::F_PROTOCOL_FEATURES != 0 {
            for index in 0..2 {
                frontend.set_vring_enable(index, true)?;
            }
        }
        // A question is answered only after all of the above was done.
        frontend.get_features()?;
        let [rx_kick, tx_kick] = kicks;
        let port = Port {
            memory,
            rx,
            tx,
            rx_kick,
            tx_kick,
            _calls: calls,
            _frontend: frontend,
            tx_avail: 0,
            rx_avail: RING,
            rx_used: 0,
        };
        port.kick();
        Ok(port)
    }

    /// Wakes the switch where it sleeps.
    fn kick(&self) {
        for (ring, kick) in [(self.rx, &self.rx_kick), (self.tx, &self.tx_kick)] {
            if self.memory.load_u16(ring.used) & 1 == 0 {
                // A full counter is as good as one more.
                let _ = kick.write(1);
            }
        }
    }

    /// Sends up to `burst` frames, in eights so that whole cache lines of the ring are not shared.
    #[inline]
    fn send(&mut self, burst: u16, number: &mut u64) -> u64 {
        let used = self.index(self.tx.used);
        let free = RING - self.tx_avail.wrapping_sub(used.load(Ordering::Acquire));
        let count = burst.min(free) & !7;
        for n in 0..count {
            *number += 1;
            let at = tx_buffer(self.tx_avail.wrapping_add(n) % RING) + NUMBER_AT;
            // SAFETY: slot numbers are below RING and the memory has a buffer for each of them.
            unsafe { self.memory.as_ptr().add(at).cast::<u64>().write_unaligned(*number) };
        }
        if count > 0 {
            self.tx_avail = self.tx_avail.wrapping_add(count);
            self.index(self.tx.avail).store(self.tx_avail, Ordering::Release);
        }
        u64::from(count)
    }

    /// Takes up to 64 frames and offers their buffers again.
    #[inline]
    fn receive(&mut self, sum: &mut u64) -> u64 {
        let used = self.index(self.rx.used).load(Ordering::Acquire);
        let count = used.wrapping_sub(self.rx_used).min(64);
        if count == 0 {
            return 0;
        }
        let base = self.memory.as_ptr();
        for n in 0..count {
            let entry = self.rx.used + 4 + usize::from(self.rx_used.wrapping_add(n) % RING) * 8;
            // SAFETY: a ring entry, at a wrapped index.
            let id = unsafe { ptr::read_volatile(base.add(entry).cast::<u16>()) } % RING;
            // SAFETY: the slot number is wrapped and there is a buffer for each.
            let word =
                unsafe { base.add(rx_buffer(id) + NUMBER_AT).cast::<u64>().read_unaligned() };
            *sum = sum.wrapping_add(word);
            let entry = self.rx.avail_at(self.rx_avail.wrapping_add(n));
            // SAFETY: a ring entry, at a wrapped index.
            unsafe { ptr::write_volatile(base.add(entry).cast::<u16>(), id) };
        }
        self.rx_used = self.rx_used.wrapping_add(count);
        self.rx_avail = self.rx_avail.wrapping_add(count);
        fence(Ordering::Release);
        self.index(self.rx.avail).store(self.rx_avail, Ordering::Release);
        u64::from(count)
    }

    /// Index of the available or used ring that starts at `ring`.
    #[inline]
    fn index(&self, ring: usize) -> &AtomicU16 {
        // SAFETY: rings are within the memory and aligned; both sides access indices atomically.
        unsafe { AtomicU16::from_ptr(self.memory.as_ptr().add(ring + 2).cast()) }
    }
}

fn rx_buffer(slot: u16) -> usize {
    BUFFERS + usize::from(slot) * BUFFER
}

fn tx_buffer(slot: u16) -> usize {
    BUFFERS + (usize::from(RING) + usize::from(slot)) * BUFFER
}

/// UDP over IPv4 from one side to the other; addresses by flow.
fn frame(bytes: usize, flow: u16, from: u8, to: u8) -> anyhow::Result<Vec<u8>> {
    let [high, low] = flow.to_be_bytes();
    let mut frame = vec![0; bytes];
    let addresses = UdpV4 {
        src_mac: MacAddr([2, 0, 0, high, low, from]),
        dst_mac: MacAddr([2, 0, 0, high, low, to]),
        vlan: None,
        src: std::net::SocketAddrV4::new([10, high, low, from].into(), 1024 + flow),
        dst: std::net::SocketAddrV4::new([10, high, low, to].into(), 7),
        ttl: 64,
    };
    build_ipv4(&mut frame, &addresses, &vec![0; bytes - 42])?;
    Ok(frame)
}
