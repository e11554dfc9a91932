//! What the journal records.

use std::net::Ipv4Addr;

use super::Lease;

/// A change of the set of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The address has this holder now.
    Put(Lease),
    /// The address is free.
    Remove(Ipv4Addr),
}
