//! Between slots and leases, and other small functions of the engine.

use wire::vlan::Vid;

use super::config::LeaseTime;
use super::table::{Client, Slot, State};
use crate::lease::{Lease, LeaseState};
use crate::time::Now;

/// Spreads clients over the pool, the same way in every run.
pub(super) fn hash(client: Client<'_>) -> u64 {
    // FNV-1a with a final mix: stable by definition, unlike the hashers of libraries.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in client.mac.0.iter().chain(client.id.unwrap_or_default()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

/// The VLAN of the frame's tag. Priority tags (VLAN 0) count as none.
pub(super) fn tag_of(frame: &[u8]) -> Option<Vid> {
    let [a, b, c, d] = *frame.get(12..16)?.first_chunk()?;
    if [a, b] != [0x81, 0x00] {
        return None;
    }
    Vid::new(u16::from_be_bytes([c, d]) & 0x0fff).filter(|vid| !vid.is_none())
}

/// The lease that a slot is, with its end on the wall clock of now; nothing for an offer.
pub(super) fn lease_of(slot: &Slot, now: Now) -> Option<Lease> {
    let state = match slot.state {
        State::Offered => return None,
        State::Bound => LeaseState::Bound,
        State::Quarantined => LeaseState::Quarantined,
    };
    Some(Lease {
        ip: slot.ip,
        mac: slot.mac,
        client_id: slot.client_id.as_deref().map(<[u8]>::to_vec),
        hostname: slot.hostname.clone(),
        expiry: slot.ends.map(|ends| now.wall + ends.saturating_sub(now.mono)),
        time: slot.time,
        port: Some(slot.port).filter(|port| !port.is_nil()),
        state,
    })
}

/// The slot of a stored lease; nothing when it is over. A wall clock that went backwards while
/// the server was down does not make a lease longer than it was granted.
pub(super) fn slot_of(lease: Lease, now: Now) -> Option<Slot> {
    let ends = match lease.expiry {
        None => None,
        Some(expiry) => {
            let left = expiry.checked_sub(now.wall).filter(|left| !left.is_zero())?;
            let left = match lease.time {
                LeaseTime::Finite(time) => left.min(time),
                LeaseTime::Infinite => left,
            };
            Some(now.mono + left)
        }
    };
    Some(Slot {
        ip: lease.ip,
        mac: lease.mac,
        client_id: lease.client_id.map(Into::into),
        hostname: lease.hostname,
        port: lease.port.unwrap_or_default(),
        time: lease.time,
        state: match lease.state {
            LeaseState::Bound => State::Bound,
            LeaseState::Quarantined => State::Quarantined,
        },
        ends,
    })
}
