//! What is known of one address that is in use.

use std::net::Ipv4Addr;
use std::time::Duration;

use uuid::Uuid;
use wire::MacAddr;

use crate::dhcp4::LeaseTime;

/// One IPv4 address in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ip: Ipv4Addr,
    pub mac: MacAddr,
    /// Option 61 as the client sent it, 2 to 255 octets.
    pub client_id: Option<Vec<u8>>,
    /// The name under which DNS may know the client: a static host's name, or the client's own
    /// when it is usable. One lower-case label, or a full name that the configuration gives.
    pub hostname: Option<String>,
    /// When the lease ends, since the Unix epoch; `None`: never.
    pub expiry: Option<Duration>,
    /// For how long it was granted last.
    pub time: LeaseTime,
    /// Port through which the client asked last. [`Uuid::nil`] never appears here.
    pub port: Option<Uuid>,
    pub state: LeaseState,
}

/// What holds the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// A client has it.
    Bound,
    /// The client said that somebody else uses it (DHCPDECLINE): nobody gets it until `expiry`.
    Quarantined,
}
