//! Ethernet II frames, with at most one VLAN tag looked through.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::vlan::{self, VlanTag};
use crate::{MacAddr, Malformed, Tci};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_RARP: u16 = 0x8035;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bytes of [`EthernetHeader`].
pub const HEADER_LEN: usize = 14;
/// The least length of a frame on a real wire, without its check sequence.
pub const MIN_FRAME_LEN: usize = 60;

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct EthernetHeader {
    pub dst: MacAddr,
    pub src: MacAddr,
    /// What follows, or the EtherType of a VLAN tag.
    pub ethertype: U16,
}

/// A frame whose Ethernet header, and VLAN tag if it has one, are all there.
#[derive(Clone, Copy, Debug)]
pub struct EthernetView<'a> {
    header: &'a EthernetHeader,
    tag: Option<&'a VlanTag>,
    ethertype: u16,
    payload: &'a [u8],
}

impl<'a> EthernetView<'a> {
    /// # Errors
    /// [`Malformed::Truncated`] when the header or the tag is cut short.
    pub fn new_checked(frame: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) =
            EthernetHeader::ref_from_prefix(frame).map_err(|_| Malformed::Truncated)?;
        let ethertype = header.ethertype.get();
        if !vlan::is_tpid(ethertype) {
            return Ok(Self { header, tag: None, ethertype, payload: rest });
        }
        // The tag starts with the EtherType that the header ends with.
        let (tag, rest) =
            VlanTag::ref_from_prefix(&frame[HEADER_LEN - 2..]).map_err(|_| Malformed::Truncated)?;
        let (inner, payload) = U16::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
        Ok(Self { header, tag: Some(tag), ethertype: inner.get(), payload })
    }

    #[must_use]
    pub fn dst(&self) -> MacAddr {
        self.header.dst
    }

    #[must_use]
    pub fn src(&self) -> MacAddr {
        self.header.src
    }

    /// The outermost tag.
    #[must_use]
    pub fn tag(&self) -> Option<Tci> {
        self.tag.map(VlanTag::tci)
    }

    /// The EtherType after the outermost tag.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// What follows the EtherType, padding included.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Where the payload starts in the frame: 14 or 18.
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        HEADER_LEN + if self.tag.is_some() { vlan::TAG_LEN } else { 0 }
    }
}
