//! Checksum and segmentation work that a frame's sender left to others.
//!
//! A sender's virtio header is validated against the frame's own headers, turned into an [`Offload`], and never
//! forwarded: what a receiver gets is built anew from the `Offload`. A receiver that did not negotiate the work gets
//! the frame with the work done, by [`complete_checksum`] or [`cut`].
//!
//! Invariants: the offsets of an `Offload` lie inside the frame that it was validated with; those of a frame to be
//! segmented inside the window, which is the private copy that goes out.

mod fragment;
mod segment;
mod set;
mod validate;

use switch::TagOp;
use wire::virtio_net::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_UDP, VirtioNetHdr};
use wire::{Malformed, checksum, vlan};
use zerocopy::byteorder::little_endian::U16;

pub use fragment::Identifications;
pub use set::OffloadSet;
pub use validate::validate;

/// Bytes that all headers of a frame to be segmented may take: the window.
pub const MAX_HEADERS: usize = switch::WINDOW_LEN;

/// What is left to do for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offload {
    /// What a receiver must take over to get the frame as it is.
    needs: OffloadSet,
    gso_type: u8,
    /// Payload bytes of each segment, IP payload bytes of each fragment; 0 unless the frame is to be segmented.
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
        self.needs.is_empty()
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

/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM_OFFSET: usize = 6;

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

/// Cuts a frame into TCP segments, datagrams or IP fragments that each carry at most `gso_size` bytes, complete with lengths
/// and checksums. Each goes to `emit` as headers and payload; the headers are only borrowed. Returns how many there were.
///
/// # Errors
/// [`Malformed`] when the frame is not the one that the offload was validated with. Nothing was emitted then.
pub fn cut(
    frame: &mut [u8],
    offload: &Offload,
    identifications: &mut Identifications,
    emit: impl FnMut(&[u8], &[u8]),
) -> Result<usize, Malformed> {
    if offload.gso() == GSO_UDP {
        fragment::fragment(frame, offload, identifications, emit)
    } else {
        segment::segment(frame, offload, emit)
    }
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
