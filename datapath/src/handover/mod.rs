//! What a datapath hands over to one in another process, so that guests notice nothing of a restart.
//!
//! ```text
//!  old: suspend ─► workers end, between bursts ─► export ─► State + descriptors ──┐      (resume, if nobody takes it)
//!                                                                                  ▼
//!  new:                                       import (maps memory, builds rings) ─► start ─► the control plane adopts
//! ```
//!
//! Between bursts nothing is in flight, so one number for each ring says where to go on. Only one of the two may touch
//! rings: the old one's workers have ended before anything is exported, the new one's begin with
//! [`Imported::start`](crate::Imported::start). A [`State`] comes from another process and perhaps another version:
//! everything in it is checked as if the guest had said it, and a port that cannot be taken over begins anew.

mod fds;
mod state;

pub use fds::Fds;
pub use state::State;
pub(crate) use state::{
    AddrState, BridgeState, ConnectionState, EndpointState, FdbState, IoState, LogState,
    OriginState, PortState, RegionState, RxModesState, VringState,
};
