//! Why a frame got no answer, and the counters of the engine.

/// Why a frame to the server was dropped without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not a whole UDP datagram over IPv4, or a wrong checksum.
    NotUdp,
    /// Not to port 67.
    NotToServer,
    /// The source address is multicast, loopback or our own, or the source MAC is no station's.
    Source,
    /// Shorter than a DHCP message.
    Truncated,
    /// An answer, not a request.
    NotARequest,
    /// Not Ethernet with six octets of address.
    HardwareType,
    /// Went through more than 16 relays.
    Hops,
    /// No DHCP options: BOOTP is not served.
    Bootp,
    /// The client's hardware address is zero or multicast.
    ClientAddress,
    /// Options run over the end, or have a length that they cannot have.
    Malformed,
    /// A message type that only servers send, or one that is not served.
    MessageType,
    /// giaddr or option 82 is set and relays are not trusted.
    Relay,
    /// giaddr is not in the subnet.
    RelaySubnet,
    /// The message is for another server.
    OtherServer,
    /// A REQUEST without an address in it.
    NoAddress,
    /// The client's address is not in the subnet.
    ForeignAddress,
    /// RELEASE or DECLINE of an address that this client on this port does not have.
    NotHolder,
    /// Every address is in use.
    Exhausted,
    /// The client is not a static host, and there are no ranges.
    NoRange,
    /// The port has as many addresses as it may.
    PortLimit,
    /// The MAC address has as many addresses as it may.
    ClientLimit,
    /// The lease file could not be written.
    Store,
    /// The port did not take the answer.
    Send,
}

impl DropReason {
    pub const ALL: [Self; 23] = [
        Self::NotUdp,
        Self::NotToServer,
        Self::Source,
        Self::Truncated,
        Self::NotARequest,
        Self::HardwareType,
        Self::Hops,
        Self::Bootp,
        Self::ClientAddress,
        Self::Malformed,
        Self::MessageType,
        Self::Relay,
        Self::RelaySubnet,
        Self::OtherServer,
        Self::NoAddress,
        Self::ForeignAddress,
        Self::NotHolder,
        Self::Exhausted,
        Self::NoRange,
        Self::PortLimit,
        Self::ClientLimit,
        Self::Store,
        Self::Send,
    ];

    /// The word for counters and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotUdp => "not-udp",
            Self::NotToServer => "not-to-server",
            Self::Source => "source",
            Self::Truncated => "truncated",
            Self::NotARequest => "not-a-request",
            Self::HardwareType => "hardware-type",
            Self::Hops => "hops",
            Self::Bootp => "bootp",
            Self::ClientAddress => "client-address",
            Self::Malformed => "malformed",
            Self::MessageType => "message-type",
            Self::Relay => "relay",
            Self::RelaySubnet => "relay-subnet",
            Self::OtherServer => "other-server",
            Self::NoAddress => "no-address",
            Self::ForeignAddress => "foreign-address",
            Self::NotHolder => "not-holder",
            Self::Exhausted => "exhausted",
            Self::NoRange => "no-range",
            Self::PortLimit => "port-limit",
            Self::ClientLimit => "client-limit",
            Self::Store => "store",
            Self::Send => "send",
        }
    }
}

/// What the engine has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub discovers: u64,
    pub requests: u64,
    pub declines: u64,
    pub releases: u64,
    pub informs: u64,
    pub offers: u64,
    pub acks: u64,
    pub naks: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Frames dropped for one reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().map(|r| (r, self.dropped(r))).filter(|(_, count)| *count > 0)
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
