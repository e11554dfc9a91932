//! TCP and UDP frames cut into segments with headers of their own.

use wire::virtio_net::GSO_UDP_L4;
use wire::{Malformed, checksum, ipv4, ipv6, tcp, udp};

use super::{MAX_HEADERS, Offload, UDP_CHECKSUM_OFFSET, short};

/// Cuts a frame into segments that each fit `gso_size` bytes of payload, with lengths, identifications, sequence
/// numbers, flags and checksums of their own.
///
/// # Errors
/// As [`cut`](super::cut).
pub(super) fn segment(
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
