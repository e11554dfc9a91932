//! Checksum and segmentation work that a frame's sender left to others.
//!
//! A sender's virtio header is validated against the frame's own headers, turned into an [`Offload`], and never
//! forwarded: what a receiver gets is built anew from the `Offload`. A receiver that did not negotiate the work gets
//! the frame with the work done, by [`complete_checksum`] or [`segment`].
//!
//! Invariants: the offsets of an `Offload` lie inside the frame that it was validated with; those of a frame to be
//! segmented inside the window, which is the private copy that goes out.

use switch::{DropReason, TagOp};
use wire::virtio_net::{
    F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioNetHdr,
};
use wire::{Malformed, checksum, ethernet, ipv4, ipv6, tcp, udp, vlan};
use zerocopy::byteorder::little_endian::U16;

/// Bytes that all headers of a frame to be segmented may take: the window.
pub const MAX_HEADERS: usize = switch::WINDOW_LEN;

/// The least payload of a TCP segment. The kernel never goes below (`TCP_MIN_SND_MSS`); a guest that asks for less
/// wants to turn one frame into thousands.
const MIN_TCP_SEGMENT: u16 = 48;

/// Datagrams that one UDP frame may be cut into (`UDP_MAX_SEGMENTS` of newer kernels).
const MAX_DATAGRAMS: usize = 128;

/// Work that a port can leave to others, or take over from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OffloadSet(u8);

impl OffloadSet {
    pub const NONE: Self = Self(0);
    pub const CHECKSUM: Self = Self(1);
    pub const TSO4: Self = Self(1 << 1);
    pub const TSO6: Self = Self(1 << 2);
    pub const TSO_ECN: Self = Self(1 << 3);
    pub const USO4: Self = Self(1 << 4);
    pub const USO6: Self = Self(1 << 5);
    pub const ALL: Self = Self(0x3f);

    /// What the kernel takes over from us on TAP devices and packet sockets: UDP segments only since 6.2, so never.
    pub const KERNEL_TAKES: Self =
        Self(Self::CHECKSUM.0 | Self::TSO4.0 | Self::TSO6.0 | Self::TSO_ECN.0);

    /// What a driver that negotiated these features may leave to the device (virtio 1.3 §5.1.3).
    #[must_use]
    pub fn driver_leaves(features: u64) -> Self {
        const CSUM: u32 = 0;
        const HOST_TSO4: u32 = 11;
        const HOST_TSO6: u32 = 12;
        const HOST_ECN: u32 = 13;
        const HOST_USO: u32 = 56;
        Self::from_bits(
            features,
            &[
                (CSUM, Self::CHECKSUM),
                (HOST_TSO4, Self::TSO4),
                (HOST_TSO6, Self::TSO6),
                (HOST_ECN, Self::TSO_ECN),
                (HOST_USO, Self::USO4.union(Self::USO6)),
            ],
        )
    }

    /// What a driver that negotiated these features takes over from the device.
    #[must_use]
    pub fn driver_takes(features: u64) -> Self {
        const GUEST_CSUM: u32 = 1;
        const GUEST_TSO4: u32 = 7;
        const GUEST_TSO6: u32 = 8;
        const GUEST_ECN: u32 = 9;
        const GUEST_USO4: u32 = 54;
        const GUEST_USO6: u32 = 55;
        Self::from_bits(
            features,
            &[
                (GUEST_CSUM, Self::CHECKSUM),
                (GUEST_TSO4, Self::TSO4),
                (GUEST_TSO6, Self::TSO6),
                (GUEST_ECN, Self::TSO_ECN),
                (GUEST_USO4, Self::USO4),
                (GUEST_USO6, Self::USO6),
            ],
        )
    }

    fn from_bits(features: u64, bits: &[(u32, Self)]) -> Self {
        let set = bits.iter().filter(|(bit, _)| features >> bit & 1 != 0);
        let set = set.fold(Self::NONE, |set, (_, one)| set.union(*one));
        // Every kind of segmentation computes checksums (virtio 1.3 §5.1.3.1).
        if set.contains(Self::CHECKSUM) { set } else { Self::NONE }
    }

    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What is left to do for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offload {
    /// What a receiver must take over to get the frame as it is.
    needs: OffloadSet,
    gso_type: u8,
    /// Payload bytes of each segment; 0 unless the frame is to be segmented.
    gso_size: u16,
    /// End of all headers; 0 unless the frame is to be segmented.
    headers_len: u16,
    /// Start of the IP header; 0 unless the frame is to be segmented.
    network: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Offload {
    /// A frame with nothing left to do.
    pub const NONE: Self = Self {
        needs: OffloadSet::NONE,
        gso_type: GSO_NONE,
        gso_size: 0,
        headers_len: 0,
        network: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    #[must_use]
    #[inline]
    pub const fn is_none(&self) -> bool {
        self.needs.0 == 0
    }

    /// The frame has to be cut into segments by whoever can.
    #[must_use]
    #[inline]
    pub const fn is_gso(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// A receiver that takes over `set` may get the frame as it is.
    #[must_use]
    #[inline]
    pub const fn fits(&self, set: OffloadSet) -> bool {
        set.contains(self.needs)
    }

    /// The header for a receiver that the offload fits. `num_buffers` is left 0.
    #[must_use]
    #[inline]
    pub fn header(&self) -> VirtioNetHdr {
        if self.is_none() {
            return VirtioNetHdr::default();
        }
        VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: self.gso_type,
            hdr_len: U16::new(self.headers_len),
            gso_size: U16::new(self.gso_size),
            csum_start: U16::new(self.csum_start),
            csum_offset: U16::new(self.csum_offset),
            num_buffers: U16::ZERO,
        }
    }

    /// The same work after `tag` was applied to a frame that has a tag where `tag` takes one off.
    #[must_use]
    #[inline]
    pub fn retagged(mut self, tag: TagOp) -> Self {
        const TAG: u16 = 4;
        const _: () = assert!(TAG as usize == vlan::TAG_LEN);
        let shift = |offset: u16| match tag {
            // 0 stands for "not there". Real offsets are behind the tag.
            _ if offset == 0 => 0,
            TagOp::Push(_) => offset.saturating_add(TAG),
            TagOp::Strip => offset.saturating_sub(TAG),
            TagOp::Keep | TagOp::Rewrite(_) => offset,
        };
        self.csum_start = shift(self.csum_start);
        self.network = shift(self.network);
        self.headers_len = shift(self.headers_len);
        self
    }
}

/// Checks a sender's header against its frame. `window` is the frame's beginning, at least [`MAX_HEADERS`] bytes or the
/// whole frame; `len` is the whole length; `allowed` is what the sender may leave to others.
///
/// Flags that only a device may set, and those not known, are ignored (virtio 1.3 §5.1.6.2.1).
///
/// # Errors
/// [`DropReason::BadOffload`] when the header asks for what the sender did not negotiate, or does not fit the frame.
#[inline]
pub fn validate(
    hdr: &VirtioNetHdr,
    window: &[u8],
    len: usize,
    allowed: OffloadSet,
) -> Result<Offload, DropReason> {
    if !hdr.needs_csum() && hdr.gso_type == GSO_NONE {
        return Ok(Offload::NONE);
    }
    validate_work(hdr, window, len, allowed).ok_or(DropReason::BadOffload)
}

fn validate_work(
    hdr: &VirtioNetHdr,
    window: &[u8],
    len: usize,
    allowed: OffloadSet,
) -> Option<Offload> {
    let (csum_start, csum_offset) = (hdr.csum_start.get(), hdr.csum_offset.get());
    let field = usize::from(csum_start) + usize::from(csum_offset);
    let inside = usize::from(csum_start) >= first_payload(window)? && field + 2 <= len;
    // Segmentation without NEEDS_CSUM is not allowed (virtio 1.3 §5.1.6.2.1).
    if !hdr.needs_csum() || !allowed.contains(OffloadSet::CHECKSUM) || !inside {
        return None;
    }
    let partial = Offload { needs: OffloadSet::CHECKSUM, csum_start, csum_offset, ..Offload::NONE };
    if !hdr.is_gso() {
        return (hdr.gso_type == GSO_NONE).then_some(partial);
    }
    let layout = Layout::parse(window)?;
    let payload = len.checked_sub(layout.headers)?;
    let gso_size = hdr.gso_size.get();
    let (kind, csum_field) = match (hdr.gso(), layout.version, layout.protocol) {
        (GSO_TCPV4, 4, ipv4::PROTOCOL_TCP) => (OffloadSet::TSO4, tcp::CHECKSUM_OFFSET),
        (GSO_TCPV6, 6, ipv6::NEXT_TCP) => (OffloadSet::TSO6, tcp::CHECKSUM_OFFSET),
        (GSO_UDP_L4, 4, ipv4::PROTOCOL_UDP) => (OffloadSet::USO4, UDP_CHECKSUM_OFFSET),
        (GSO_UDP_L4, 6, ipv6::NEXT_UDP) => (OffloadSet::USO6, UDP_CHECKSUM_OFFSET),
        _ => return None,
    };
    if usize::from(csum_start) != layout.transport || usize::from(csum_offset) != csum_field {
        return None;
    }
    let segments = payload.div_ceil(usize::from(gso_size.max(1)));
    let sane = match hdr.gso() {
        GSO_UDP_L4 => gso_size > 0 && segments <= MAX_DATAGRAMS && hdr.gso_type == GSO_UDP_L4,
        _ => gso_size >= MIN_TCP_SEGMENT,
    };
    // An IP packet is at most 64 KiB long.
    if !sane || len - layout.network > usize::from(u16::MAX) {
        return None;
    }
    let ecn = if hdr.gso_type & GSO_ECN == 0 { OffloadSet::NONE } else { OffloadSet::TSO_ECN };
    let needs = OffloadSet::CHECKSUM.union(kind).union(ecn);
    if !allowed.contains(needs) {
        return None;
    }
    if segments <= 1 {
        return Some(partial);
    }
    Some(Offload {
        needs,
        gso_type: hdr.gso_type,
        gso_size,
        headers_len: u16::try_from(layout.headers).ok()?,
        network: u16::try_from(layout.network).ok()?,
        ..partial
    })
}

/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM_OFFSET: usize = 6;

/// Where the headers of a frame lie.
struct Layout {
    network: usize,
    transport: usize,
    /// End of the transport header.
    headers: usize,
    version: u8,
    protocol: u8,
}

/// The end of the Ethernet header and of at most one tag.
fn first_payload(window: &[u8]) -> Option<usize> {
    let ethertype = u16::from_be_bytes(*window.get(12..)?.first_chunk()?);
    Some(ethernet::HEADER_LEN + if vlan::is_tpid(ethertype) { vlan::TAG_LEN } else { 0 })
}

impl Layout {
    /// `None` when the headers are not those of unfragmented TCP or UDP, or reach beyond the window.
    fn parse(window: &[u8]) -> Option<Self> {
        let mut network = first_payload(window)?;
        let mut ethertype = u16::from_be_bytes(*window.get(network - 2..)?.first_chunk()?);
        if vlan::is_tpid(ethertype) {
            // A second tag, which nothing here changes.
            network += vlan::TAG_LEN;
            ethertype = u16::from_be_bytes(*window.get(network - 2..)?.first_chunk()?);
        }
        let packet = window.get(network..)?;
        let (version, protocol, transport) = match (ethertype, packet.first()? >> 4) {
            (ethernet::ETHERTYPE_IPV4, 4) => {
                let header: &[u8; ipv4::HEADER_LEN] = packet.first_chunk()?;
                let header_len = usize::from(header[0] & 15) * 4;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                if header_len < ipv4::HEADER_LEN || fragment != 0 {
                    return None;
                }
                (4, header[9], network + header_len)
            }
            (ethernet::ETHERTYPE_IPV6, 6) => {
                let found = ipv6::transport(packet)?;
                (6, found.protocol, network + found.offset)
            }
            _ => return None,
        };
        let header_len = match protocol {
            ipv4::PROTOCOL_TCP => {
                let words = window.get(transport + 12)? >> 4;
                usize::from(words) * 4
            }
            ipv4::PROTOCOL_UDP => udp::HEADER_LEN,
            _ => return None,
        };
        let headers = transport + header_len;
        let complete = header_len >= udp::HEADER_LEN
            && (protocol != ipv4::PROTOCOL_TCP || header_len >= tcp::HEADER_LEN)
            && headers <= window.len().min(MAX_HEADERS);
        complete.then_some(Self { network, transport, headers, version, protocol })
    }
}

/// Completes the checksum of a frame that is not to be segmented. The field holds the sum of the pseudo-header, as its
/// sender left it.
///
/// # Errors
/// [`Malformed::Truncated`] when the frame is shorter than the one that the offload was validated with.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) -> Result<(), Malformed> {
    if offload.is_none() {
        return Ok(());
    }
    let covered = frame.get_mut(usize::from(offload.csum_start)..).ok_or(Malformed::Truncated)?;
    let field = usize::from(offload.csum_offset);
    let sum = checksum::sum(covered);
    let is_udp = field == UDP_CHECKSUM_OFFSET;
    let checksum = if is_udp { checksum::finish_udp(sum) } else { checksum::finish(sum) };
    let field = covered.get_mut(field..field + 2).ok_or(Malformed::Truncated)?;
    field.copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// Cuts a frame into segments that each fit `gso_size` bytes of payload, with lengths, identifications, sequence
/// numbers, flags and checksums of their own. Each goes to `emit` as headers and payload; the headers are only
/// borrowed. Returns how many there were.
///
/// # Errors
/// [`Malformed`] when the frame is not the one that the offload was validated with. Nothing was emitted then.
pub fn segment(
    frame: &[u8],
    offload: &Offload,
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<usize, Malformed> {
    let headers_len = usize::from(offload.headers_len);
    let (network, transport) = (usize::from(offload.network), usize::from(offload.csum_start));
    let (template, payload) = frame.split_at_checked(headers_len).ok_or(Malformed::Truncated)?;
    let mut buffer = [0; MAX_HEADERS];
    let headers = buffer.get_mut(..headers_len).ok_or(Malformed::Length)?;
    headers.copy_from_slice(template);
    let is_tcp = offload.gso() != GSO_UDP_L4;
    let transport_len = headers_len.checked_sub(transport).ok_or(Malformed::Length)?;
    let network_len = transport.checked_sub(network).ok_or(Malformed::Length)?;
    let is_v4 = template.get(network).is_some_and(|byte| byte >> 4 == 4);
    let complete = network_len >= if is_v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
        && transport_len >= if is_tcp { tcp::HEADER_LEN } else { udp::HEADER_LEN };
    if !complete || offload.gso_size == 0 || frame.len() - network > usize::from(u16::MAX) {
        return Err(Malformed::Length);
    }
    let protocol = if is_tcp { ipv4::PROTOCOL_TCP } else { ipv4::PROTOCOL_UDP };
    let first_id = u16::from_be_bytes([template[network + 4], template[network + 5]]);
    let first_sequence = u32::from_be_bytes([
        template[transport + 4],
        template[transport + 5],
        template[transport + 6],
        template[transport + 7],
    ]);
    let flags = if is_tcp { template[transport + 13] } else { 0 };
    let addresses = if is_v4 {
        checksum::sum(&template[network + 12..network + 20])
    } else {
        checksum::sum(&template[network + 8..network + 40])
    };

    let mut id = first_id;
    let mut sequence = first_sequence;
    let mut pieces = payload.chunks(usize::from(offload.gso_size)).peekable();
    let mut count = 0;
    while let Some(piece) = pieces.next() {
        // Below 64 KiB, as the whole frame is.
        let packet_len = short(headers_len - network + piece.len());
        let datagram_len = short(transport_len + piece.len());
        let (before, segment) = headers.split_at_mut(transport);
        let ip = &mut before[network..];
        if is_v4 {
            ip[2..4].copy_from_slice(&packet_len.to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = checksum::ipv4_header(ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let payload_len = packet_len - short(ipv6::HEADER_LEN);
            ip[4..6].copy_from_slice(&payload_len.to_be_bytes());
        }
        let field = if is_tcp {
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            let mut flags = flags;
            if count > 0 {
                flags &= !tcp::FLAG_CWR;
            }
            if pieces.peek().is_some() {
                flags &= !(tcp::FLAG_FIN | tcp::FLAG_PSH);
            }
            segment[13] = flags;
            tcp::CHECKSUM_OFFSET
        } else {
            segment[4..6].copy_from_slice(&datagram_len.to_be_bytes());
            UDP_CHECKSUM_OFFSET
        };
        segment[field..field + 2].fill(0);
        let sum = addresses
            + u32::from(protocol)
            + u32::from(datagram_len)
            + checksum::sum(segment)
            + checksum::sum(piece);
        let checksum = if is_tcp { checksum::finish(sum) } else { checksum::finish_udp(sum) };
        segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        emit(headers, piece);
        id = id.wrapping_add(1);
        sequence = sequence.wrapping_add(u32::from(offload.gso_size));
        count += 1;
    }
    Ok(count)
}

impl Offload {
    const fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}

/// A length that was checked to be below 64 KiB.
#[expect(clippy::cast_possible_truncation, reason = "checked by the caller")]
const fn short(len: usize) -> u16 {
    len as u16
}
