//! Leases, and the file that keeps them.
//!
//! [`Store`] is called by the service's DHCP thread only. It knows nothing of DHCP: it makes what
//! the engine decided durable before the answer leaves.

mod change;
mod journal;
mod lease4;
mod record;
mod store;

pub use change::Change;
pub use lease4::{Lease, LeaseState};
pub use store::{Opened, Store, StoreError};
