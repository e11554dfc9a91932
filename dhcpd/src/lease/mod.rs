//! Leases, and the file that keeps them.
//!
//! The store is called by the service's DHCP thread only. It knows nothing of DHCP: it makes what
//! the engine decided durable before the answer leaves.

mod change;
mod lease4;

pub use change::Change;
pub use lease4::{Lease, LeaseState};
