//! The backend side of the vhost-user protocol as a state machine without I/O.
//!
//! A [`Session`] belongs to one connection of one frontend (QEMU, Cloud Hypervisor, User-mode
//! Linux, DPDK `net_virtio_user`, `netloom-vmm`). Bytes and file descriptors go in, [`Action`]s
//! for the datapath and reply bytes come out:
//!
//! ```text
//! socket ─► receive(bytes, fds) ─► poll() ─► Action ─► the driver stops, maps, rebuilds rings
//!        ◄─ output(), sent(n)   ◄────────── complete(Outcome)
//! ```
//!
//! It is called by the datapath's vhost-user port. It never reads a socket, maps memory, touches a
//! ring or waits; [`socket`] is the thin shell that moves bytes between a Unix stream and a session.
//!
//! Invariants, whatever the peer sends:
//! - At most one message is held: 12 bytes of header, [`MAX_PAYLOAD`] bytes, [`MAX_FDS`] descriptors.
//! - While an action is pending or more than [`OUTPUT_LIMIT`] reply bytes are unread, the session
//!   wants no bytes ([`Session::wanted`] is 0), so a peer that floods only fills its own socket.
//! - [`Session::device`] only ever shows checked state, and a refused or failed message leaves it
//!   as it was.
//! - Every descriptor received is either part of [`Device`] or closed.
//!
//! Source: the vhost-user protocol specification of the QEMU project; virtio 1.3 for features.

#![forbid(unsafe_code)]

mod descriptor;
mod device;
mod error;
pub mod features;
mod framing;
mod handlers;
mod handover;
mod message;
mod session;
pub mod socket;
mod table;

pub use descriptor::Foreign;
pub use device::{Device, Log, Region, Vring, VringAddr};
pub use error::{ProtocolError, Refusal};
pub use handover::{Handover, ImportError};
pub use message::{HEADER_LEN, MAX_FDS, MAX_PAYLOAD, Request};
pub use session::{Action, MEM_SLOTS, OUTPUT_LIMIT, Offer, Outcome, Session, TABLE_REGIONS};
