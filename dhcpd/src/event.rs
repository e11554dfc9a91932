//! What a network's services tell their owner.

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::lease::Lease;

/// A change of a lease, told after it is durable (removals: after they happened).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEvent {
    /// A client has a new lease.
    Added(Lease),
    /// A client's lease was prolonged or its name or port changed.
    Renewed(Lease),
    /// A client renewed its lease through another port than before: it has moved, or another
    /// guest pretends to be it.
    Moved {
        lease: Lease,
        from: Uuid,
    },
    Removed {
        lease: Lease,
        why: Removal,
    },
    /// A client said that its address is in use by somebody else; nobody gets it until the
    /// lease's expiry.
    Quarantined(Lease),
    /// No address is left for a client. Told at most once a minute.
    Exhausted,
    /// The reserved address of a static host is held by another client; the host gets another
    /// address, or none, until it is free.
    ReservationHeld {
        ip: Ipv4Addr,
        holder: Lease,
    },
    /// Two clients with different MACs use one client identifier, as clones of one machine do.
    /// Each has an address of its own.
    DuplicateClientId {
        ip: Ipv4Addr,
        port: Uuid,
        other: Lease,
    },
    /// A client's name is not given out in DNS: another client or the configuration has it.
    NameTaken {
        ip: Ipv4Addr,
        name: String,
    },
    /// The lease file could not be written: nothing is acknowledged until it can be again. Told
    /// once for each spell.
    StoreFailed(String),
    /// The lease file is written again.
    StoreRecovered,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Expired,
    Released,
    Declined,
    /// The client took another address.
    Replaced,
    /// The port through which it was taken was deleted.
    PortRemoved,
    /// The configuration gives the address to somebody else, or to nobody.
    Reconfigured,
}
