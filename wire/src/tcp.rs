//! TCP headers (RFC 9293 §3.1).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum stands in the header.
pub const CHECKSUM_OFFSET: usize = 16;

pub const FLAG_FIN: u8 = 0x01;
pub const FLAG_SYN: u8 = 0x02;
pub const FLAG_RST: u8 = 0x04;
pub const FLAG_PSH: u8 = 0x08;
pub const FLAG_ACK: u8 = 0x10;
/// Congestion window reduced (RFC 3168 §6.1).
pub const FLAG_CWR: u8 = 0x80;

/// The fixed part of the header.
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
pub struct TcpHeader {
    pub src_port: U16,
    pub dst_port: U16,
    pub sequence: U32,
    pub acknowledgment: U32,
    /// Words of the header in the upper 4 bits.
    pub data_offset: u8,
    pub flags: u8,
    pub window: U16,
    pub checksum: U16,
    pub urgent: U16,
}

/// A segment whose header and options are all there. The checksum is not looked at.
#[derive(Clone, Copy, Debug)]
pub struct TcpView<'a> {
    header: &'a TcpHeader,
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> TcpView<'a> {
    /// # Errors
    /// [`Malformed`] when the header is cut short or says that it is shorter than 20 bytes.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = TcpHeader::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let header_len = usize::from(header.data_offset >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(Malformed::Length);
        }
        if bytes.len() < header_len {
            return Err(Malformed::Truncated);
        }
        Ok(Self { header, bytes, header_len })
    }

    #[must_use]
    pub fn header(&self) -> &'a TcpHeader {
        self.header
    }

    /// Bytes of the header with its options.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..self.header_len]
    }

    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }
}
