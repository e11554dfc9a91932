//! Who has which address. One map keyed by address, so that an address has at most one holder;
//! the other maps are indices into it, changed only together with it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use uuid::Uuid;
use wire::MacAddr;

use super::config::LeaseTime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Offered,
    Bound,
    Quarantined,
}

/// One address in use.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub ip: Ipv4Addr,
    pub mac: MacAddr,
    pub client_id: Option<Box<[u8]>>,
    pub hostname: Option<String>,
    pub port: Uuid,
    pub time: LeaseTime,
    pub state: State,
    /// End on the monotonic clock.
    pub ends: Option<Duration>,
}

/// A client: its MAC and its client identifier (option 61). Two MACs with one identifier (clones
/// of a machine) are two clients; one MAC with two identifiers is two clients; one that leaves
/// the identifier out is the same client as any of that MAC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client<'a> {
    pub mac: MacAddr,
    pub id: Option<&'a [u8]>,
}

impl Slot {
    pub(super) fn is_exactly(&self, client: Client<'_>) -> bool {
        self.mac == client.mac && self.client_id.as_deref() == client.id
    }

    /// The client, on this port, has or was offered the address. From another port than the one
    /// where it was taken, a MAC alone (which any guest can forge) is not enough.
    pub(super) fn is_of(&self, client: Client<'_>, port: Uuid) -> bool {
        let vague = self.client_id.is_none() || client.id.is_none();
        self.state != State::Quarantined
            && self.mac == client.mac
            && (self.client_id.as_deref() == client.id || vague && self.port == port)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: HashMap<Ipv4Addr, Slot>,
    by_mac: HashMap<MacAddr, Vec<Ipv4Addr>>,
    by_id: HashMap<Box<[u8]>, HashSet<Ipv4Addr>>,
    by_port: HashMap<Uuid, BTreeSet<Ipv4Addr>>,
    ends: BTreeSet<(Duration, Ipv4Addr)>,
    offers: BTreeSet<(Duration, Ipv4Addr)>,
}

impl Table {
    pub(super) fn get(&self, ip: Ipv4Addr) -> Option<&Slot> {
        self.slots.get(&ip)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Puts a slot in, in place of one at its address.
    pub(super) fn put(&mut self, slot: Slot) -> Option<Slot> {
        let old = self.take(slot.ip);
        self.by_mac.entry(slot.mac).or_default().push(slot.ip);
        if let Some(id) = &slot.client_id {
            self.by_id.entry(id.clone()).or_default().insert(slot.ip);
        }
        self.by_port.entry(slot.port).or_default().insert(slot.ip);
        if let Some(ends) = slot.ends {
            self.ends.insert((ends, slot.ip));
            if slot.state == State::Offered {
                self.offers.insert((ends, slot.ip));
            }
        }
        self.slots.insert(slot.ip, slot);
        old
    }

    pub(super) fn take(&mut self, ip: Ipv4Addr) -> Option<Slot> {
        let slot = self.slots.remove(&ip)?;
        if let Some(ips) = self.by_mac.get_mut(&slot.mac) {
            ips.retain(|other| *other != ip);
            if ips.is_empty() {
                self.by_mac.remove(&slot.mac);
            }
        }
        if let Some(id) = &slot.client_id
            && let Some(ips) = self.by_id.get_mut(id)
        {
            ips.remove(&ip);
            if ips.is_empty() {
                self.by_id.remove(id);
            }
        }
        if let Some(ips) = self.by_port.get_mut(&slot.port) {
            ips.remove(&ip);
            if ips.is_empty() {
                self.by_port.remove(&slot.port);
            }
        }
        if let Some(ends) = slot.ends {
            self.ends.remove(&(ends, ip));
            self.offers.remove(&(ends, ip));
        }
        Some(slot)
    }

    /// The client's slot: one with exactly its identifier before any other of its MAC, a lease
    /// before an offer.
    pub(super) fn find(&self, client: Client<'_>, port: Uuid) -> Option<&Slot> {
        let rank = |slot: &&Slot| (slot.is_exactly(client), slot.state == State::Bound);
        self.of_mac(client.mac).filter(|slot| slot.is_of(client, port)).max_by_key(rank)
    }

    pub(super) fn of_mac(&self, mac: MacAddr) -> impl Iterator<Item = &Slot> {
        self.by_mac.get(&mac).into_iter().flatten().filter_map(|ip| self.slots.get(ip))
    }

    /// A lease with this identifier that another MAC has.
    pub(super) fn twin(&self, client: Client<'_>) -> Option<&Slot> {
        let ips = self.by_id.get(client.id?)?;
        let bound = |slot: &&Slot| slot.mac != client.mac && slot.state == State::Bound;
        ips.iter().filter_map(|ip| self.slots.get(ip)).find(bound)
    }

    pub(super) fn of_port(&self, port: Uuid) -> impl Iterator<Item = &Slot> {
        self.by_port.get(&port).into_iter().flatten().filter_map(|ip| self.slots.get(ip))
    }

    pub(super) fn count_of_port(&self, port: Uuid) -> usize {
        self.by_port.get(&port).map_or(0, BTreeSet::len)
    }

    pub(super) fn next_end(&self) -> Option<Duration> {
        self.ends.first().map(|(ends, _)| *ends)
    }

    /// The offer that ends first.
    pub(super) fn oldest_offer(&self) -> Option<&Slot> {
        self.offers.first().and_then(|(_, ip)| self.slots.get(ip))
    }

    pub(super) fn take_ended(&mut self, now: Duration) -> Option<Slot> {
        let (ends, ip) = *self.ends.first()?;
        if ends <= now { self.take(ip) } else { None }
    }
}
