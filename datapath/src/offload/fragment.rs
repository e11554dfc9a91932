//! UDP datagrams cut into IP fragments (UFO).
//!
//! `gso_size` is the part of the IP payload that each fragment carries, UDP header and all, as Linux sets it: an MTU of
//! 1500 gives 1480 over IPv4 and 1448 over IPv6, whose fragments have a header more.

use std::hash::{BuildHasher, RandomState};

use wire::{Malformed, checksum, ipv4, ipv6};

use super::validate::Layout;
use super::{MAX_HEADERS, Offload, complete_checksum, short};

/// Bytes of an IPv6 Fragment header (RFC 8200 §4.5).
const FRAGMENT_HEADER: usize = 8;

/// Offsets of fragments count so many bytes, and all fragments but the last are multiples of it.
const UNIT: u16 = 8;

/// The same bit of the IPv4 header's fragment field.
const IPV4_MORE: u16 = 0x2000;
const IPV6_MORE: u16 = 1;

/// An IP packet, its header included, and the payload length of an IPv6 header are at most this.
const MAX_PACKET: usize = u16::MAX as usize;

/// Identifications of IPv6 packets that are cut here; IPv4 packets have that of their sender. Nobody who saw some knows
/// the next (RFC 7739).
#[derive(Debug, Default)]
pub struct Identifications {
    key: RandomState,
    used: u64,
}

impl Identifications {
    fn next(&mut self) -> u32 {
        self.used = self.used.wrapping_add(1);
        let [a, b, c, d, ..] = self.key.hash_one(self.used).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// What part of a datagram each fragment may carry when its sender asked for `gso_size`.
pub(super) const fn payload_size(gso_size: u16) -> u16 {
    gso_size - gso_size % UNIT
}

/// How many fragments of [`payload_size`] a datagram makes. `None` unless it is a whole datagram that fills the frame,
/// its sender lets it be cut, and the first fragment holds all headers (RFC 7112).
pub(super) fn count(window: &[u8], layout: &Layout, len: usize, size: u16) -> Option<usize> {
    let field = |at: usize| {
        window
            .get(at..)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| u16::from_be_bytes(*bytes))
    };
    let is = |at, expected| (usize::from(field(at)?) == expected).then_some(());
    let packet_len = len.checked_sub(layout.network)?;
    is(layout.transport + 4, len.checked_sub(layout.transport)?)?;
    let (start, added) = if layout.version == 4 {
        is(layout.network + 2, packet_len)?;
        // Neither "don't fragment" nor a fragment.
        is(layout.network + 6, 0)?;
        (layout.transport, 0)
    } else {
        is(layout.network + 4, packet_len.checked_sub(ipv6::HEADER_LEN)?)?;
        let kept = ipv6::per_fragment_headers(window.get(layout.network..)?)?;
        (layout.network + kept.len, FRAGMENT_HEADER)
    };
    let size = usize::from(size);
    let fits =
        layout.headers - start <= size && start + added + size - layout.network <= MAX_PACKET;
    let pieces = (len - start).div_ceil(size.max(1));
    (fits || pieces == 1).then_some(pieces)
}

/// Completes the datagram's checksum and cuts it. Each fragment goes to `emit` as headers and payload.
///
/// # Errors
/// As [`cut`](super::cut).
pub(super) fn fragment(
    frame: &mut [u8],
    offload: &Offload,
    identifications: &mut Identifications,
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<usize, Malformed> {
    let (network, transport) = (usize::from(offload.network), usize::from(offload.csum_start));
    let size = usize::from(offload.gso_size);
    let packet = frame.get(network..).ok_or(Malformed::Truncated)?;
    let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    let (start, added, next_header) = if is_v4 {
        (transport, 0, 0)
    } else {
        let kept = ipv6::per_fragment_headers(packet).ok_or(Malformed::Truncated)?;
        (network + kept.len, FRAGMENT_HEADER, network + kept.next_header)
    };
    let least = network + if is_v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let longest = (start + added).saturating_sub(network) + size;
    if start < least || packet.len() > MAX_PACKET || longest > MAX_PACKET || size == 0 {
        return Err(Malformed::Length);
    }
    complete_checksum(frame, offload)?;
    let (template, payload) = frame.split_at_checked(start).ok_or(Malformed::Truncated)?;
    let mut buffer = [0; MAX_HEADERS + FRAGMENT_HEADER];
    let headers = buffer.get_mut(..start + added).ok_or(Malformed::Length)?;
    headers[..start].copy_from_slice(template);
    if !is_v4 {
        let protocol = std::mem::replace(&mut headers[next_header], ipv6::NEXT_FRAGMENT);
        headers[start] = protocol;
        headers[start + 4..].copy_from_slice(&identifications.next().to_be_bytes());
    }
    let fixed_len = headers.len() - network;
    let (mut offset, mut count) = (0, 0);
    for piece in payload.chunks(size) {
        let is_last = offset + piece.len() == payload.len();
        // Below 64 KiB, as the longest fragment is.
        let packet_len = short(fixed_len + piece.len());
        // In bytes, of which the lower three bits are free.
        let place = short(offset);
        let ip = &mut headers[network..];
        if is_v4 {
            let more = if is_last { 0 } else { IPV4_MORE };
            ip[2..4].copy_from_slice(&packet_len.to_be_bytes());
            ip[6..8].copy_from_slice(&((place / UNIT) | more).to_be_bytes());
            if count == 1 {
                drop_uncopied(&mut ip[ipv4::HEADER_LEN..]);
            }
            ip[10..12].fill(0);
            let checksum = checksum::ipv4_header(ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let more = if is_last { 0 } else { IPV6_MORE };
            let payload_len = packet_len - short(ipv6::HEADER_LEN);
            ip[4..6].copy_from_slice(&payload_len.to_be_bytes());
            headers[start + 2..start + 4].copy_from_slice(&(place | more).to_be_bytes());
        }
        emit(headers, piece);
        offset += piece.len();
        count += 1;
    }
    Ok(count)
}

/// Puts "no operation" in the place of options that only a packet's first fragment has (RFC 791 §3.1).
fn drop_uncopied(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&kind) = options.get(at).filter(|&&kind| kind != END) {
        let len =
            if kind == NO_OPERATION { 1 } else { options.get(at + 1).map_or(0, |&len| len.into()) };
        let Some(option) = options.get_mut(at..at + len).filter(|option| !option.is_empty()) else {
            return;
        };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += len;
    }
}
