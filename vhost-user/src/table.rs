//! The protocol as one table: message → payload size, descriptors allowed, feature wanted, what a
//! refusal does, handler.
//!
//! A message that is not here is unsupported. Sizes and descriptor counts are checked as soon as the
//! header is known, before a payload byte is buffered; a violation ends the connection.

use crate::features::protocol;
use crate::handlers::{self as on, Handler};
use crate::message::{
    ConfigHead, LogPayload, RegionPayload, Request, SlotPayload, TableHead, VringAddrPayload,
    VringState,
};
use crate::session::TABLE_REGIONS;

/// One row.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) request: Request,
    /// Smallest and largest payload in bytes.
    pub(crate) payload: (usize, usize),
    /// Fewest and most descriptors.
    pub(crate) fds: (usize, usize),
    /// Protocol feature that must have been negotiated, 0 for none.
    pub(crate) wants: u64,
    /// Who answers.
    pub(crate) answer: Answer,
    /// What a refusal does when the frontend did not ask for an acknowledgement.
    pub(crate) refusal: OnRefusal,
    pub(crate) handler: Handler,
}

/// Whether a message has an answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Only an acknowledgement, and only if REPLY_ACK was negotiated and the message asks.
    Ack,
    /// Always a reply of its own, never an acknowledgement.
    Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnRefusal {
    /// End the connection: going on would leave both sides with different ideas.
    Close,
    /// Go on: nothing depends on it.
    Ignore,
}

const NONE: (usize, usize) = (0, 0);
const U64: (usize, usize) = (8, 8);
const STATE: (usize, usize) = exactly(size_of::<VringState>());
const ADDR: (usize, usize) = exactly(size_of::<VringAddrPayload>());
const LOG: (usize, usize) = exactly(size_of::<LogPayload>());
const SLOT: (usize, usize) = exactly(size_of::<SlotPayload>());
/// May be longer than its region count needs: User-mode Linux always sends two regions' room.
const TABLE_PAYLOAD: (usize, usize) =
    (size_of::<TableHead>(), size_of::<TableHead>() + TABLE_REGIONS * size_of::<RegionPayload>());
const CONFIG: (usize, usize) = (size_of::<ConfigHead>(), size_of::<ConfigHead>() + 256);

const fn exactly(size: usize) -> (usize, usize) {
    (size, size)
}

use Answer::{Ack, Reply};
use OnRefusal::{Close, Ignore};

#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    row(Request::GET_FEATURES,          NONE,          (0, 0),  0,                             Reply, Close,  on::get_features),
    row(Request::SET_FEATURES,          U64,           (0, 0),  0,                             Ack,   Close,  on::set_features),
    row(Request::SET_OWNER,             NONE,          (0, 0),  0,                             Ack,   Close,  on::set_owner),
    row(Request::RESET_OWNER,           NONE,          (0, 0),  0,                             Ack,   Close,  on::reset_owner),
    row(Request::SET_MEM_TABLE,         TABLE_PAYLOAD, (0, TABLE_REGIONS), 0,                  Ack,   Close,  on::set_mem_table),
    row(Request::SET_LOG_BASE,          LOG,           (1, 1),  protocol::LOG_SHMFD,           Reply, Close,  on::set_log_base),
    row(Request::SET_LOG_FD,            (0, 8),        (0, 1),  protocol::LOG_SHMFD,           Ack,   Ignore, on::set_log_fd),
    row(Request::SET_VRING_NUM,         STATE,         (0, 0),  0,                             Ack,   Close,  on::set_vring_num),
    row(Request::SET_VRING_ADDR,        ADDR,          (0, 0),  0,                             Ack,   Close,  on::set_vring_addr),
    row(Request::SET_VRING_BASE,        STATE,         (0, 0),  0,                             Ack,   Close,  on::set_vring_base),
    row(Request::GET_VRING_BASE,        STATE,         (0, 0),  0,                             Reply, Close,  on::get_vring_base),
    row(Request::SET_VRING_KICK,        U64,           (0, 1),  0,                             Ack,   Close,  on::set_vring_kick),
    row(Request::SET_VRING_CALL,        U64,           (0, 1),  0,                             Ack,   Close,  on::set_vring_call),
    row(Request::SET_VRING_ERR,         U64,           (0, 1),  0,                             Ack,   Close,  on::set_vring_err),
    row(Request::GET_PROTOCOL_FEATURES, NONE,          (0, 0),  0,                             Reply, Close,  on::get_protocol_features),
    row(Request::SET_PROTOCOL_FEATURES, U64,           (0, 0),  0,                             Ack,   Close,  on::set_protocol_features),
    row(Request::GET_QUEUE_NUM,         NONE,          (0, 0),  protocol::MQ,                  Reply, Close,  on::get_queue_num),
    row(Request::SET_VRING_ENABLE,      STATE,         (0, 0),  0,                             Ack,   Close,  on::set_vring_enable),
    row(Request::SEND_RARP,             U64,           (0, 0),  protocol::RARP,                Ack,   Ignore, on::send_rarp),
    row(Request::NET_SET_MTU,           U64,           (0, 0),  protocol::MTU,                 Ack,   Close,  on::net_set_mtu),
    row(Request::SET_BACKEND_REQ_FD,    NONE,          (1, 1),  protocol::BACKEND_REQ,         Ack,   Close,  on::set_backend_req_fd),
    row(Request::GET_CONFIG,            CONFIG,        (0, 0),  protocol::CONFIG,              Reply, Close,  on::get_config),
    row(Request::SET_CONFIG,            CONFIG,        (0, 0),  protocol::CONFIG,              Ack,   Ignore, on::set_config),
    row(Request::RESET_DEVICE,          NONE,          (0, 0),  protocol::RESET_DEVICE,        Ack,   Close,  on::reset_device),
    row(Request::GET_MAX_MEM_SLOTS,     NONE,          (0, 0),  protocol::CONFIGURE_MEM_SLOTS, Reply, Close,  on::get_max_mem_slots),
    row(Request::ADD_MEM_REG,           SLOT,          (1, 1),  protocol::CONFIGURE_MEM_SLOTS, Ack,   Close,  on::add_mem_reg),
    row(Request::REM_MEM_REG,           SLOT,          (0, 1),  protocol::CONFIGURE_MEM_SLOTS, Ack,   Close,  on::rem_mem_reg),
    row(Request::SET_STATUS,            U64,           (0, 0),  protocol::STATUS,              Ack,   Close,  on::set_status),
    row(Request::GET_STATUS,            NONE,          (0, 0),  protocol::STATUS,              Reply, Close,  on::get_status),
];

const fn row(
    request: Request,
    payload: (usize, usize),
    fds: (usize, usize),
    wants: u64,
    answer: Answer,
    refusal: OnRefusal,
    handler: Handler,
) -> Rule {
    Rule { request, payload, fds, wants, answer, refusal, handler }
}

/// The row of a request.
pub(crate) fn rule(request: Request) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.request == request)
}
