//! `fdb-show` in the layout of `ovs-appctl fdb/show`, `fdb-add`, `fdb-del`, `fdb-flush`.

use std::fmt::Write as _;

use api::{FdbAdd, FdbEntry, FdbRemove};
use wire::MacAddr;

use super::Context;
use super::networks::said;
use crate::failure::{Failure, Lead as _};
use crate::output::clean;

pub(super) async fn show(context: &mut Context<'_>, network: &str) -> Result<(), Failure> {
    let mut entries = context.client.fdb(network).await.network(network, None)?;
    entries.sort_by_key(|entry| (entry.vlan, entry.mac));
    if context.output.is_json() {
        context.output.json(&entries)?;
    } else {
        let text = fdb_text(&entries, context.output.is_quiet());
        context.output.text(&text)?;
    }
    Ok(())
}

pub(super) async fn add(
    context: &mut Context<'_>,
    network: &str,
    entry: FdbAdd,
) -> Result<(), Failure> {
    let mac = entry.mac;
    let lead = Some(format!("Failed to add an entry for {mac}"));
    let added = context.client.add_fdb(network, &entry).await.network(network, lead)?;
    if context.output.is_json() {
        context.output.json(&added)?;
        return Ok(());
    }
    let text = format!("Entry for {mac} in VLAN {} added at port {}", added.vlan, added.port);
    said(context, network, &text)
}

pub(super) async fn delete(
    context: &mut Context<'_>,
    network: &str,
    mac: MacAddr,
    vlan: Option<u16>,
) -> Result<(), Failure> {
    let lead = Some(format!("Failed to delete the entry for {mac}"));
    let which = FdbRemove { mac: Some(mac), vlan };
    let removed = context.client.remove_fdb(network, which).await.network(network, lead)?;
    count(context, network, "deleted", removed)
}

pub(super) async fn flush(context: &mut Context<'_>, network: &str) -> Result<(), Failure> {
    let lead = Some(format!("Failed to flush network {network}"));
    let which = FdbRemove::default();
    let removed = context.client.remove_fdb(network, which).await.network(network, lead)?;
    count(context, network, "forgotten", removed)
}

fn count(
    context: &mut Context<'_>,
    network: &str,
    verb: &str,
    removed: api::FdbRemoved,
) -> Result<(), Failure> {
    if context.output.is_json() {
        context.output.json(&removed)?;
        return Ok(());
    }
    let entries = removed.entries;
    let noun = if entries == 1 { "entry" } else { "entries" };
    said(context, network, &format!("{entries} {noun} {verb}"))
}

/// The columns of `ovs-appctl fdb/show`; the first is as wide as our names.
fn fdb_text(entries: &[FdbEntry], quiet: bool) -> String {
    let names: Vec<String> = entries.iter().map(|entry| clean(&entry.port, false)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
    let mut text = String::new();
    if !quiet {
        let _ = writeln!(text, "{:>width$}  VLAN  MAC                Age", "port");
    }
    for (entry, name) in entries.iter().zip(&names) {
        let age = entry.age.map_or_else(|| "static".to_owned(), |age| format!("{age:>3}"));
        let _ = writeln!(text, "{name:>width$}  {:>4}  {}  {age}", entry.vlan, entry.mac);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(port: &str, vlan: u16, mac: &str, age: Option<u64>) -> FdbEntry {
        FdbEntry { port: port.to_owned(), vlan, mac: mac.parse().expect("a MAC"), age }
    }

    #[test]
    fn the_forwarding_database_looks_like_ovss() {
        let entries = [
            entry("web1", 0, "52:54:00:00:00:01", Some(3)),
            entry("long-name", 100, "52:54:00:00:00:02", None),
        ];
        assert_eq!(
            fdb_text(&entries, false),
            concat!(
                "     port  VLAN  MAC                Age\n",
                "     web1     0  52:54:00:00:00:01    3\n",
                "long-name   100  52:54:00:00:00:02  static\n",
            )
        );
        assert_eq!(fdb_text(&[], false), " port  VLAN  MAC                Age\n");
        assert_eq!(fdb_text(&[], true), "");
    }
}
