//! The switch's brain: frames and a time in, decisions out.

mod bridge;
mod decision;
mod drop_reason;
mod fdb;
mod port;
mod time;

pub use bridge::{Bridge, BridgeConfig, Mode, WINDOW_LEN};
pub use decision::{Decision, Egress, Flood, FloodIter, TagOp, Verdict};
pub use drop_reason::DropReason;
pub use fdb::{Fdb, FdbEntry, FdbStats, Learned, StaticError};
pub use port::{MAX_PORTS, Native, PortConfig, PortIndex, Role, VidSet, VlanMode};
pub use time::Seconds;
pub use wire::{MacAddr, Tci, Vid};
