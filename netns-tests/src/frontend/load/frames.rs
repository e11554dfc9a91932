//! What the generator sends.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::ensure;
use wire::MacAddr;
use wire::udp::{UdpV4, build_ipv4};
use wire::virtio_net::HDR_LEN;

use super::port::Port;

/// TCP payload of each segment that a frame of 64 KiB stands for: MTU 1,500 with timestamps.
pub(super) const MSS: u16 = 1448;
/// Ethernet, IPv4, TCP with timestamps.
pub(super) const TCP_HEADERS: usize = 14 + 20 + 32;

/// How a frame is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// UDP, nothing left to do.
    Plain,
    /// TCP, to be cut into segments, with its checksum left to be done.
    Tso,
}

impl Kind {
    /// Where a frame carries its number, from the virtio header on: behind all headers. That is the first cache line of a plain one.
    pub(super) fn number_at(self) -> usize {
        match self {
            Kind::Plain => HDR_LEN + 42,
            Kind::Tso => HDR_LEN + TCP_HEADERS,
        }
    }
}

/// Addresses of a frame: a flow between two stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) flow: u16,
    pub(super) from: u8,
    pub(super) to: u8,
}

impl Frame {
    pub(super) fn mac(flow: u16, station: u8) -> MacAddr {
        let [high, low] = flow.to_be_bytes();
        MacAddr([2, 0, 0, high, low, station])
    }

    /// Virtio header and frame of `len` bytes without the header.
    ///
    /// # Errors
    /// When it is too short for its headers.
    pub(super) fn bytes(&self, len: usize, kind: Kind) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; HDR_LEN + len];
        let (header, frame) = bytes.split_at_mut(HDR_LEN);
        match kind {
            Kind::Plain => self.udp(frame)?,
            Kind::Tso => self.tcp(header, frame)?,
        }
        Ok(bytes)
    }

    fn udp(&self, frame: &mut [u8]) -> anyhow::Result<()> {
        ensure!(frame.len() >= 60, "frames have at least 60 bytes");
        let Frame { flow, from, to } = *self;
        let [high, low] = flow.to_be_bytes();
        let addresses = UdpV4 {
            src_mac: Frame::mac(flow, from),
            dst_mac: Frame::mac(flow, to),
            vlan: None,
            src: SocketAddrV4::new([10, high, low, from].into(), 1024 + flow),
            dst: SocketAddrV4::new([10, high, low, to].into(), 7),
            ttl: 64,
        };
        let payload = vec![0; frame.len() - 42];
        build_ipv4(frame, &addresses, &payload)?;
        Ok(())
    }

    /// As Linux sends it: the pseudo header's sum in the checksum's place (virtio 1.3 §5.1.6.2). Only the headers are
    /// filled in.
    fn tcp(&self, header: &mut [u8], frame: &mut [u8]) -> anyhow::Result<()> {
        ensure!(frame.len() > TCP_HEADERS, "a TSO frame has at least {TCP_HEADERS} bytes");
        let Frame { flow, from, to } = *self;
        let [high, low] = flow.to_be_bytes();
        let ip_len = u16::try_from(frame.len() - 14)?;
        // NEEDS_CSUM, TCPV4, length of headers, segment size, where the checksum starts and goes.
        header[0] = 1;
        header[1] = 1;
        header[2..4].copy_from_slice(&u16::try_from(TCP_HEADERS)?.to_le_bytes());
        header[4..6].copy_from_slice(&MSS.to_le_bytes());
        header[6..8].copy_from_slice(&34_u16.to_le_bytes());
        header[8..10].copy_from_slice(&16_u16.to_le_bytes());

        frame[..6].copy_from_slice(&Frame::mac(flow, to).0);
        frame[6..12].copy_from_slice(&Frame::mac(flow, from).0);
        frame[12..14].copy_from_slice(&[8, 0]);
        let ip = &mut frame[14..34];
        ip[..2].copy_from_slice(&[0x45, 0]);
        ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
        ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
        ip[12..16].copy_from_slice(&[10, high, low, from]);
        ip[16..20].copy_from_slice(&[10, high, low, to]);
        let checksum = !sum(ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let mut pseudo = ip[12..20].to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend((ip_len - 20).to_be_bytes());
        let tcp = &mut frame[34..66];
        tcp[..4].copy_from_slice(&[0x10, 0, 0x10, 1]);
        // 8 words, ACK, a window; two NOPs and the timestamps.
        tcp[12..16].copy_from_slice(&[0x80, 0x10, 0xff, 0xff]);
        tcp[16..18].copy_from_slice(&sum(&pseudo).to_be_bytes());
        tcp[20..24].copy_from_slice(&[1, 1, 8, 10]);
        Ok(())
    }
}

/// Internet checksum's sum, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Makes `count` addresses known to the switch behind each port but the first two, which are busy with each other.
///
/// # Errors
/// When the switch does not take the frames.
pub(super) fn announce(ports: &mut [Port], count: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let Some((first, rest)) = ports.split_first_mut() else { return Ok(()) };
    for (side, here) in (1_u8..).zip(rest).skip(1) {
        for told in 0..count {
            let [_, high, middle, low] = told.to_be_bytes();
            let slot = here.next_slot();
            let own = here.source(slot);
            here.set_source(slot, MacAddr([6, side, 0, high, middle, low]));
            here.send(1, || 0);
            here.kick_tx();
            // The slot has its own address again as soon as the switch has read it.
            while here.free() < here.slots() {
                first.receive(64, |_| {});
                ensure!(Instant::now() < deadline, "only {told} of {count} addresses were taken");
            }
            here.set_source(slot, own);
        }
    }
    Ok(())
}
