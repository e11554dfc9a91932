//! Leases, and the file that keeps them.
//!
//! [`Store`] is called by the service's DHCP thread only. It knows nothing of DHCP: it makes what
//! the engine decided durable before the answer leaves.

mod lease4;

pub use lease4::{Lease, LeaseState};
