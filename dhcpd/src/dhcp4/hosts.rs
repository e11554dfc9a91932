//! Static hosts, by MAC and by name.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use uuid::Uuid;
use wire::MacAddr;

use super::config::{Config, LeaseTime};
use super::table::{Client, Slot, State};

/// What is reserved for a client.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub ip: Ipv4Addr,
    pub name: Option<String>,
    pub lease: Option<LeaseTime>,
    /// Reserved for a MAC, whatever its client identifier: firmware and system of one machine
    /// use different ones.
    by_mac: bool,
}

impl Host {
    /// The address, in use as `slot` says, goes to the client.
    pub(super) fn may_take(&self, slot: &Slot, client: Client<'_>, port: Uuid) -> bool {
        if self.by_mac {
            slot.state != State::Quarantined && slot.mac == client.mac
        } else {
            slot.is_of(client, port)
        }
    }
}

#[derive(Debug)]
pub(super) struct Hosts {
    by_mac: HashMap<MacAddr, Host>,
    by_name: HashMap<String, Host>,
}

impl Hosts {
    pub(super) fn new(config: &Config) -> Self {
        let mut hosts = Self { by_mac: HashMap::new(), by_name: HashMap::new() };
        for host in &config.hosts {
            let name = host.name.as_ref().map(|name| name.to_ascii_lowercase());
            let by_mac = host.mac.is_some();
            let found = Host { ip: host.ip, name: name.clone(), lease: host.lease, by_mac };
            if let Some(mac) = host.mac {
                hosts.by_mac.insert(mac, found);
            } else if let Some(name) = name {
                hosts.by_name.insert(name, found);
            }
        }
        hosts
    }

    pub(super) fn find(&self, mac: MacAddr, name: Option<&str>) -> Option<Host> {
        self.by_mac.get(&mac).or_else(|| self.by_name.get(name?)).cloned()
    }
}
