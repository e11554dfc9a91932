//! What a frontend did wrong, in words for the operator.

use thiserror::Error;

use crate::features::protocol;
use crate::message::{MAX_FDS, MAX_PAYLOAD, Request};

/// The connection cannot go on: the driver closes it and shows the text as the port's reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    #[error(
        "{request}: protocol version {version}, only version 1 exists; is this a vhost-user frontend?"
    )]
    Version { request: Request, version: u32 },
    #[error("{request}: flags {flags:#x} are not those of a request")]
    Flags { request: Request, flags: u32 },
    #[error("{request}: payload of {size} bytes, at most {MAX_PAYLOAD} are accepted")]
    PayloadTooLong { request: Request, size: u32 },
    #[error("{request}: payload of {size} bytes, expected {min} to {max}")]
    PayloadSize { request: Request, size: u32, min: usize, max: usize },
    #[error("{request}: {got} file descriptors, expected {min} to {max}")]
    Fds { request: Request, got: usize, min: usize, max: usize },
    #[error("{request}: file descriptors came with the payload instead of the header")]
    FdsWithPayload { request: Request },
    #[error("more than {MAX_FDS} file descriptors in one message")]
    TooManyFds,
    #[error(
        "file descriptors were lost on the way: too many in one message, or this process is out of them (see `ulimit -n`)"
    )]
    FdsTruncated,
    #[error("{request}: {refusal}")]
    Refused { request: Request, refusal: Refusal },
    #[error("{request}: {context} and the frontend did not ask for a reply")]
    Failed { request: Request, context: &'static str },
    #[error("connection closed in the middle of {request}")]
    Truncated { request: Request },
    #[error("connection closed in the middle of a header")]
    TruncatedHeader,
    #[error("more bytes delivered than the session asked for")]
    Overrun,
}

/// Why the content of one well-formed message was refused.
///
/// With REPLY_ACK the frontend is told by a non-zero answer and the connection goes on; without, most
/// refusals end it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("not supported by this backend")]
    Unsupported,
    #[error("protocol feature {} was not negotiated", protocol::name(*.0))]
    NotNegotiated(u64),
    #[error("device features {0:#x} were not offered")]
    Features(u64),
    #[error("protocol features {0:#x} were not offered")]
    ProtocolFeatures(u64),
    #[error("device features changed while ring {ring} runs; stop the rings first")]
    FeaturesWhileRunning { ring: usize },
    #[error("ring {index} does not exist, this port has {rings} (two for each queue pair)")]
    RingIndex { index: u64, rings: usize },
    #[error(
        "ring {ring} of {num} descriptors: the size must be 1 to {max}, of a split ring a power of two"
    )]
    RingSize { ring: usize, num: u32, max: u16 },
    #[error("ring {ring} runs; stop it with GET_VRING_BASE first")]
    RingRunning { ring: usize },
    #[error("ring {ring}: start index {base} is out of range")]
    RingBase { ring: usize, base: u32 },
    #[error("ring {ring}: {part} address {addr:#x} is not a multiple of {align}")]
    RingAlignment { ring: usize, part: &'static str, addr: u64, align: u64 },
    #[error("ring {ring}: flags {flags:#x} mean nothing")]
    RingFlags { ring: usize, flags: u32 },
    #[error("ring {ring}: enable value {value}, expected 0 or 1")]
    RingEnable { ring: usize, value: u32 },
    #[error("value {0:#x} has bits that mean nothing")]
    ReservedBits(u64),
    #[error("{got} file descriptors, the message says {expected}")]
    FdCount { got: usize, expected: usize },
    #[error("{count} memory regions, at most {max} are accepted")]
    RegionCount { count: u64, max: usize },
    #[error("{count} memory regions do not fit into a payload of {size} bytes")]
    TableTooShort { count: u32, size: usize },
    #[error("memory region {region} is empty")]
    RegionEmpty { region: usize },
    #[error("memory region {region}: {what} {start:#x} + size {size:#x} overflows")]
    RegionOverflow { region: usize, what: &'static str, start: u64, size: u64 },
    #[error("memory regions {first} and {second} overlap in {what}es")]
    RegionOverlap { first: usize, second: usize, what: &'static str },
    #[error(
        "a dirty log of {size:#x} bytes at offset {offset:#x} is empty, too large or overflows"
    )]
    LogSize { size: u64, offset: u64 },
    #[error(
        "the dirty log ends at guest address {end:#x}, the guest's memory at {needed:#x}; a larger log must come first (SET_LOG_BASE)"
    )]
    LogTooSmall { end: u64, needed: u64 },
    #[error("ring {ring} is started and cannot log dirty pages: there is no log (SET_LOG_BASE)")]
    NoLog { ring: usize },
    #[error("configuration bytes {offset}+{size} are outside of the {len} bytes there are")]
    ConfigRange { offset: u32, size: u32, len: usize },
    #[error("{got} configuration bytes came, the message says {expected}")]
    ConfigLength { got: usize, expected: u32 },
    #[error("configuration flags {0:#x} are unknown")]
    ConfigFlags(u32),
    #[error("the device configuration is read-only")]
    ConfigReadOnly,
    #[error("MTU {0} is outside of 68 to 65535")]
    Mtu(u64),
    #[error("{0:02x?} is not a unicast MAC address")]
    Mac([u8; 6]),
    #[error("device status {0:#x} does not fit into 8 bits")]
    Status(u64),
    #[error("the switch could not do it")]
    Failed,
}
