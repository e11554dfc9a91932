//! The forwarding database of a network: what it knows, and what an administrator adds and removes.
//!
//! Entries are live state: they go with the network's stop and with their port, and are handed over to the next daemon.

use std::collections::HashMap;

use api::{Code, FdbAdd, FdbEntry, FdbRemove, FdbRemoved, Problem};
use switch::VlanMode;
use uuid::Uuid;
use wire::Vid;

use super::problem::about;
use super::undo::Undo;
use super::{Manager, Operation, profile};

impl Manager {
    /// # Errors
    /// When there is no such network.
    pub fn fdb(&self, wanted: &str) -> Result<Vec<FdbEntry>, Problem> {
        let (uuid, names) = {
            let tables = self.tables();
            let network = tables.network(wanted)?;
            let Some(live) = &network.live else { return Ok(Vec::new()) };
            let definition = &live.definition;
            let gateway = definition.bridge.name.clone().or(definition.forward.dev.clone());
            let ports = tables.ports.values().map(|port| &port.document);
            let mut names: HashMap<_, _> =
                ports.map(|port| (port.uuid, port.name.clone())).collect();
            names.insert(network.uuid, gateway.unwrap_or_else(|| network.name.clone()));
            (network.uuid, names)
        };
        let mut entries: Vec<_> = self
            .dataplane
            .fdb(uuid)
            .into_iter()
            .map(|entry| FdbEntry {
                port: names.get(&entry.port).map_or_else(|| entry.port.to_string(), Clone::clone),
                vlan: entry.vlan,
                mac: entry.mac,
                age: entry.age.map(|age| age.as_secs()),
            })
            .collect();
        entries.sort_by_key(|entry| (entry.vlan, entry.mac));
        Ok(entries)
    }

    /// Adds a static entry, in place of one that was there.
    ///
    /// # Errors
    /// When the network is not active, the port not of it or not up, or the address not one for an entry.
    pub async fn add_fdb(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
        entry: FdbAdd,
    ) -> Result<FdbEntry, Problem> {
        let (network, port, name, mode) = {
            let tables = self.tables();
            let (network, live) = tables.active(wanted)?;
            let port = tables.port(&entry.port)?;
            let document = &port.document;
            if document.network != network.uuid {
                let title =
                    format!("port '{}' is not in network '{}'", document.name, network.name);
                return Err(about(Code::InvalidArgument, &document.name, title));
            }
            if !port.undo.iter().any(|undo| matches!(undo, Undo::DataplanePort(_))) {
                let title = format!("port '{}' is not in the switch now", document.name);
                let remedy = format!("`netctl port-info {}` says why", document.name);
                let problem = about(Code::InvalidArgument, &document.name, title);
                return Err(problem.with_remedy(remedy));
            }
            let forwarding = profile::resolve(&live.definition, &document.profile)?;
            (network.uuid, document.uuid, document.name.clone(), forwarding.vlan)
        };
        if !entry.mac.is_station() {
            let title = format!("{} cannot have an entry", entry.mac);
            return Err(about(Code::InvalidArgument, &entry.mac.to_string(), title)
                .with_remedy("give the address of one station, not of a group"));
        }
        let vlan = vlan_of(&entry, &name, &mode)?;
        let there = self.dataplane.fdb(network);
        let meant = there.iter().filter(|found| (found.mac, found.vlan) == (entry.mac, vlan));
        not_the_gateways(network, meant)?;
        self.dataplane.fdb_add(network, entry.mac, vlan, port).await?;
        tracing::info!(port = %name, mac = %entry.mac, vlan, "static entry added");
        Ok(FdbEntry { port: name, vlan, mac: entry.mac, age: None })
    }

    /// Removes the entries of an address, static or learned; without an address, all that were learned.
    ///
    /// # Errors
    /// When the network is not active, or knows no such address.
    pub async fn remove_fdb(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
        which: FdbRemove,
    ) -> Result<FdbRemoved, Problem> {
        let network = self.tables().active(wanted)?.0.uuid;
        let Some(mac) = which.mac else {
            if which.vlan.is_some() {
                let problem = Problem::new(Code::InvalidArgument, "a VLAN without a MAC address");
                return Err(problem.with_remedy("say which address, too"));
            }
            let entries = self.dataplane.fdb_flush(network).await?;
            return Ok(FdbRemoved { entries });
        };
        let mut meant = self.dataplane.fdb(network);
        meant.retain(|found| found.mac == mac && which.vlan.is_none_or(|vlan| vlan == found.vlan));
        not_the_gateways(network, &meant)?;
        let mut entries = 0;
        for found in meant {
            entries += usize::from(self.dataplane.fdb_del(network, mac, found.vlan).await?);
        }
        if entries == 0 {
            let vlan = which.vlan.map(|vlan| format!(" in VLAN {vlan}")).unwrap_or_default();
            let title = format!("Entry not found: no entry for {mac}{vlan}");
            return Err(about(Code::FdbEntryNotFound, &mac.to_string(), title)
                .with_remedy(format!("`netctl fdb-show {wanted}` lists those that there are")));
        }
        Ok(FdbRemoved { entries })
    }
}

/// The gateway's own static entry keeps guests from taking its address; it is not among the entries that are `meant`.
fn not_the_gateways<'e>(
    network: Uuid,
    meant: impl IntoIterator<Item = &'e datapath::FdbEntry>,
) -> Result<(), Problem> {
    let own = |entry: &&datapath::FdbEntry| entry.port == network && entry.age.is_none();
    match meant.into_iter().find(own) {
        Some(entry) => {
            let title = format!("{} is the address of the network's gateway", entry.mac);
            Err(about(Code::InvalidArgument, &entry.mac.to_string(), title)
                .with_remedy("its entry goes when the network is stopped"))
        }
        None => Ok(()),
    }
}

/// The VLAN that is meant: without one, that of the port's untagged frames.
fn vlan_of(entry: &FdbAdd, port: &str, mode: &VlanMode) -> Result<u16, Problem> {
    let refused =
        |title: String, remedy: &str| about(Code::InvalidArgument, port, title).with_remedy(remedy);
    let Some(vlan) = entry.vlan else {
        return mode.untagged_vlan().map(Vid::value).ok_or_else(|| {
            let title = format!("port '{port}' has no VLAN for untagged frames");
            refused(title, "say which of its VLANs is meant")
        });
    };
    let carried = Vid::new(vlan).is_some_and(|vlan| mode.carries(vlan));
    carried.then_some(vlan).ok_or_else(|| {
        let title = format!("port '{port}' does not carry VLAN {vlan}");
        refused(title, "use one of the port's VLANs, or change them with `netctl port-set`")
    })
}
