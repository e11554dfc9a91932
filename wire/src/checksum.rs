//! The Internet checksum (RFC 1071): one's complement sums of 16-bit words.
//!
//! A *sum* is a `u32` that may be added to others before [`finish`] folds and complements it. Every piece but the last
//! has to have an even number of bytes, because words must not straddle pieces.

use core::net::{Ipv4Addr, Ipv6Addr};

/// The sum of the bytes as big-endian 16-bit words, an odd last byte padded with zero; at most 0xffff.
///
/// Reads 32 bytes per turn as 32-bit words into independent 64-bit accumulators, which the compiler turns into vector
/// instructions: the sum of words does not depend on their width or byte order, up to a swap at the end (RFC 1071 §2).
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut lanes = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            // 2^32 additions would overflow a lane: more than any slice of a frame has.
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().map(|lane| (lane >> 32) + (lane & 0xffff_ffff)).sum();
    let mut words = blocks.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    // From less than 40 bits to 32 and a carry, to 17, to 16.
    total = (total >> 32) + (total & 0xffff_ffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    u32::from(u16::from_be(low16(total)))
}

/// The one's complement sum in 16 bits.
#[must_use]
#[inline]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    let twice = (once >> 16) + (once & 0xffff);
    low16(twice as u64)
}

/// The checksum to put into a header whose checksum field was zero in the sum.
#[must_use]
#[inline]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// Like [`finish`], for UDP: a computed zero is sent as 0xffff, as zero means "none" (RFC 768).
#[must_use]
#[inline]
pub const fn finish_udp(sum: u32) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        other => other,
    }
}

/// The checksum of an IPv4 header (options included) whose checksum field is zero; 0 for a correct header with its
/// checksum in place.
#[must_use]
#[inline]
pub fn ipv4_header(header: &[u8]) -> u16 {
    finish(sum(header))
}

/// The sum of the IPv4 pseudo-header (RFC 9293 §3.1, RFC 768). `len` is that of transport header and payload.
#[must_use]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> u32 {
    sum(&src.octets()) + sum(&dst.octets()) + u32::from(protocol) + u32::from(len)
}

/// The sum of the IPv6 pseudo-header (RFC 8200 §8.1).
#[must_use]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, len: u32) -> u32 {
    sum(&src.octets()) + sum(&dst.octets()) + u32::from(next_header) + (len >> 16) + (len & 0xffff)
}

/// The new checksum after a 16-bit word under it changed (RFC 1624 eqn. 3).
#[must_use]
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u32 + !old as u32 + new as u32)
}

/// The low 16 bits, where the rest is known to be zero or not wanted.
#[inline]
const fn low16(value: u64) -> u16 {
    let bytes = value.to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]])
}
