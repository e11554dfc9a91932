//! A sender's virtio header against the frame's own headers.

use switch::DropReason;
use wire::virtio_net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, VirtioNetHdr,
};
use wire::{ethernet, ipv4, ipv6, tcp, udp, vlan};

use super::{MAX_HEADERS, Offload, OffloadSet, UDP_CHECKSUM_OFFSET, fragment};

/// The least payload of a TCP segment. The kernel never goes below (`TCP_MIN_SND_MSS`); a guest that asks for less
/// wants to turn one frame into thousands.
const MIN_TCP_SEGMENT: u16 = 48;

/// Datagrams or fragments that one UDP frame may be cut into (`UDP_MAX_SEGMENTS` of newer kernels).
const MAX_UDP_PIECES: usize = 128;

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
    let (kind, csum_field) = match (hdr.gso(), layout.version, layout.protocol) {
        (GSO_TCPV4, 4, ipv4::PROTOCOL_TCP) => (OffloadSet::TSO4, tcp::CHECKSUM_OFFSET),
        (GSO_TCPV6, 6, ipv6::NEXT_TCP) => (OffloadSet::TSO6, tcp::CHECKSUM_OFFSET),
        (GSO_UDP, 4 | 6, ipv4::PROTOCOL_UDP) => (OffloadSet::UFO, UDP_CHECKSUM_OFFSET),
        (GSO_UDP_L4, 4, ipv4::PROTOCOL_UDP) => (OffloadSet::USO4, UDP_CHECKSUM_OFFSET),
        (GSO_UDP_L4, 6, ipv6::NEXT_UDP) => (OffloadSet::USO6, UDP_CHECKSUM_OFFSET),
        _ => return None,
    };
    if usize::from(csum_start) != layout.transport || usize::from(csum_offset) != csum_field {
        return None;
    }
    let gso_size = hdr.gso_size.get();
    let (gso_size, pieces) = if hdr.gso() == GSO_UDP {
        let size = fragment::payload_size(gso_size);
        (size, fragment::count(window, &layout, len, size)?)
    } else {
        (gso_size, payload.div_ceil(usize::from(gso_size.max(1))))
    };
    let sane = match hdr.gso() {
        GSO_UDP | GSO_UDP_L4 => {
            gso_size > 0 && pieces <= MAX_UDP_PIECES && hdr.gso_type == hdr.gso()
        }
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
    if pieces <= 1 {
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

/// Where the headers of a frame lie.
pub(super) struct Layout {
    pub(super) network: usize,
    pub(super) transport: usize,
    /// End of the transport header.
    pub(super) headers: usize,
    pub(super) version: u8,
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
