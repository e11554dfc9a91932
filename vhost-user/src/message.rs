//! Shapes on the wire: header, requests by number, fixed payloads. All integers are in the
//! machine's own byte order, as the specification says.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a message header.
pub const HEADER_LEN: usize = 12;
/// Longest payload accepted, in bytes. The longest legal one today is far shorter.
pub const MAX_PAYLOAD: usize = 4096;
/// Guest bytes for which one bit of the dirty log stands.
pub(crate) const LOG_PAGE: u64 = 4096;
/// Most file descriptors one message may carry.
pub const MAX_FDS: usize = 32;

const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// A request by its number in the specification; prints its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request(pub u32);

macro_rules! requests {
    ($($number:literal $name:ident)*) => {
        impl Request {
            $(pub const $name: Request = Request($number);)*

            /// The specification's name without its prefix, if the number has one.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

requests! {
    1 GET_FEATURES
    2 SET_FEATURES
    3 SET_OWNER
    4 RESET_OWNER
    5 SET_MEM_TABLE
    6 SET_LOG_BASE
    7 SET_LOG_FD
    8 SET_VRING_NUM
    9 SET_VRING_ADDR
    10 SET_VRING_BASE
    11 GET_VRING_BASE
    12 SET_VRING_KICK
    13 SET_VRING_CALL
    14 SET_VRING_ERR
    15 GET_PROTOCOL_FEATURES
    16 SET_PROTOCOL_FEATURES
    17 GET_QUEUE_NUM
    18 SET_VRING_ENABLE
    19 SEND_RARP
    20 NET_SET_MTU
    21 SET_BACKEND_REQ_FD
    22 IOTLB_MSG
    23 SET_VRING_ENDIAN
    24 GET_CONFIG
    25 SET_CONFIG
    26 CREATE_CRYPTO_SESSION
    27 CLOSE_CRYPTO_SESSION
    28 POSTCOPY_ADVISE
    29 POSTCOPY_LISTEN
    30 POSTCOPY_END
    31 GET_INFLIGHT_FD
    32 SET_INFLIGHT_FD
    33 GPU_SET_SOCKET
    34 RESET_DEVICE
    35 VRING_KICK
    36 GET_MAX_MEM_SLOTS
    37 ADD_MEM_REG
    38 REM_MEM_REG
    39 SET_STATUS
    40 GET_STATUS
    41 GET_SHARED_OBJECT
    42 SET_DEVICE_STATE_FD
    43 CHECK_DEVICE_STATE
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "request {}", self.0),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Message header as it is on the wire.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) size: u32,
}

impl Header {
    pub(crate) fn reply(request: Request, size: usize) -> Header {
        let size = u32::try_from(size).expect("replies are shorter than MAX_PAYLOAD");
        Header { request: request.0, flags: VERSION | FLAG_REPLY, size }
    }

    pub(crate) fn version(self) -> u32 {
        self.flags & VERSION_MASK
    }

    /// Version 1 and no flag but need_reply, as a frontend's request must have.
    pub(crate) fn is_request(self) -> bool {
        self.flags & !FLAG_NEED_REPLY == VERSION
    }

    pub(crate) fn need_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
}

/// `{index, num}` of SET_VRING_NUM/BASE/ENABLE and GET_VRING_BASE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringState {
    pub(crate) index: u32,
    pub(crate) num: u32,
}

/// Payload of SET_VRING_ADDR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringAddrPayload {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    pub(crate) log: u64,
}

/// One memory region as SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG carry it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionPayload {
    pub(crate) guest_addr: u64,
    pub(crate) size: u64,
    pub(crate) user_addr: u64,
    pub(crate) mmap_offset: u64,
}

/// Payload of SET_LOG_BASE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LogPayload {
    pub(crate) size: u64,
    pub(crate) offset: u64,
}

/// First part of SET_MEM_TABLE's payload; the regions follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct TableHead {
    pub(crate) regions: u32,
    pub(crate) padding: u32,
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SlotPayload {
    pub(crate) padding: u64,
    pub(crate) region: RegionPayload,
}

/// First part of GET_CONFIG's and SET_CONFIG's payload; the bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ConfigHead {
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) flags: u32,
}
