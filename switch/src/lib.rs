//! The switch's brain: a frame's first bytes and a time in, a decision out.
//!
//! The datapath's workers call [`Bridge::decide`] for each frame; control threads make a new [`Bridge`] for each
//! configuration and keep the forwarding table ([`Fdb`]) tidy. This crate has no clock, no I/O and no threads of its
//! own, never sees guest memory, and keeps nothing of a frame.
//!
//! ```text
//!  window (≤ 128 bytes), ingress port, now
//!     │
//!     ├─ shorter than its headers ─────────────► drop  too-short
//!     ├─ port not in this snapshot ────────────► drop  port-gone
//!     ├─ source is a group address or zero ────► drop  bad-source-mac
//!     ├─ 01:80:c2:00:00:0X and the like ───────► drop  reserved-mac
//!     ▼
//!   VLAN of the frame: port's mode + outermost tag
//!     ├─ not carried, tagged on access … ──────► drop  vlan-refused
//!     ▼
//!   learn (VLAN, source) → port      (not in hub mode, not from internal ports; never waits)
//!     ├─ asks a DHCP server of ours ───────────► trap to the internal port, nobody else
//!     ├─ hub mode, or group destination ─┐
//!     ▼                                  │
//!   look up (VLAN, destination)          │
//!     ├─ unknown ────────────────────────┼─────► flood: a precomputed slice of the VLAN's ports,
//!     │                                            cut short for isolated senders, without the ingress
//!     │                                            (empty: drop  no-destination)
//!     ├─ behind the ingress itself ────────────► drop  same-port
//!     ├─ isolated, and so is the sender ───────► drop  isolated
//!     └─ known ────────────────────────────────► unicast
//!                        each copy with its TagOp: keep, strip, push, rewrite
//! ```
//!
//! Invariants, which `tests/properties.rs` holds against a model: no frame leaves through the port that it came from;
//! none passes from an isolated port to another; none changes its VLAN, as the receiving port would read it; a decision
//! depends on nothing but the window, the port, the snapshot and the table.
//!
//! [`DropReason`] is the vocabulary of the whole product, also for drops that only the datapath can see.

#![forbid(unsafe_code)]

mod bridge;
mod cache;
mod decision;
mod drop_reason;
mod fdb;
mod port;
mod sync;
mod time;

pub use bridge::{Bridge, BridgeConfig, Mode, WINDOW_LEN};
pub use cache::DecisionCache;
pub use decision::{Decision, Egress, Flood, FloodIter, TagOp, Verdict};
pub use drop_reason::DropReason;
pub use fdb::{Fdb, FdbEntry, FdbStats, Learned, StaticError};
pub use port::{MAX_PORTS, Native, PortConfig, PortIndex, Role, VidSet, VlanMode};
pub use time::Seconds;
pub use wire::{MacAddr, Tci, Vid};
