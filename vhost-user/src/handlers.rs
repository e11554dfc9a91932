//! What each message does to the device. Handlers change a copy of the state: what they return as a
//! refusal leaves no trace.

pub(crate) mod log;
pub(crate) mod memory;
mod setup;
pub(crate) mod vring;

use std::os::fd::OwnedFd;

pub(crate) use log::{set_log_base, set_log_fd};
pub(crate) use memory::{add_mem_reg, get_max_mem_slots, rem_mem_reg, set_mem_table};
pub(crate) use setup::{
    get_config, get_features, get_protocol_features, get_queue_num, get_status, net_set_mtu,
    reset_device, reset_owner, send_rarp, set_backend_req_fd, set_config, set_features, set_owner,
    set_protocol_features, set_status,
};
pub(crate) use vring::{
    get_vring_base, set_vring_addr, set_vring_base, set_vring_call, set_vring_enable,
    set_vring_err, set_vring_kick, set_vring_num,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::Device;
use crate::error::Refusal;
use crate::session::{Action, Offer};

pub(crate) type Handler = fn(&mut Context<'_>) -> Result<Reaction, Refusal>;

/// What a handler sees. Descriptors it does not keep are closed when it returns.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) device: &'a mut Device,
    /// Within the size limits of the message's row.
    pub(crate) payload: &'a [u8],
    /// Within the count limits of the message's row.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What follows from a message.
#[derive(Debug)]
pub(crate) enum Reaction {
    Done,
    Reply(Vec<u8>),
    Act(Action),
    /// An action whose success is answered by this.
    ActThenReply(Action, Vec<u8>),
}

impl Reaction {
    fn reply(value: u64) -> Reaction {
        Reaction::Reply(value.as_bytes().to_vec())
    }
}

/// Splits a fixed structure off the payload; the row's smallest size makes sure that it is there.
fn head<T: FromBytes>(payload: &[u8]) -> (T, &[u8]) {
    let (head, rest) =
        payload.split_at_checked(size_of::<T>()).expect("the row's smallest size covers it");
    (T::read_from_bytes(head).expect("exactly the size of T"), rest)
}

fn u64_of(payload: &[u8]) -> u64 {
    head::<u64>(payload).0
}
