//! The switch's brain: frames and a time in, decisions out.

mod decision;
mod drop_reason;
mod port;

pub use decision::{Decision, Egress, Flood, FloodIter, TagOp, Verdict};
pub use drop_reason::DropReason;
pub use port::{MAX_PORTS, Native, PortConfig, PortIndex, Role, VidSet, VlanMode};
pub use wire::{MacAddr, Tci, Vid};
