//! What can be wrong with bytes, and with a buffer for them.

use core::fmt;

/// Why a view could not be made of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Fewer bytes than the header needs, or than the header says there are.
    Truncated,
    /// A version or type that is not the one of the view.
    Version,
    /// A length field that is smaller than its own header.
    Length,
    /// A checksum that does not match.
    Checksum,
    /// A fragment where a whole packet is needed.
    Fragment,
    /// Another protocol than the view is for.
    Protocol,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the packet is cut short",
            Self::Version => "the version or type is wrong",
            Self::Length => "a length field is smaller than its header",
            Self::Checksum => "the checksum does not match",
            Self::Fragment => "the packet is a fragment",
            Self::Protocol => "the packet is of another protocol",
        })
    }
}

impl core::error::Error for Malformed {}

/// A builder's buffer cannot hold the packet, or the packet is longer than its length field can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferTooSmall {
    /// Bytes that the packet takes.
    pub needed: usize,
}

impl fmt::Display for BufferTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a packet of {} bytes does not fit", self.needed)
    }
}

impl core::error::Error for BufferTooSmall {}
