//! The `net-*` commands that virsh has, but for leases and the editor.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use api::{HubInfo, NetworkInfo};
use serde_json::json;
use uuid::Uuid;

use super::Context;
use crate::cli::NetList;
use crate::failure::{Failure, Lead as _, system_words};
use crate::output::clean;
use crate::table::Table;

type Result = std::result::Result<(), Failure>;

pub(super) async fn define(context: &mut Context<'_>, file: &Path) -> Result {
    let xml = read(file)?;
    let lead = format!("Failed to define network from {}", file.display());
    let network =
        context.client.define(xml).await.lead(lead).map_err(|failure| failure.in_file(file))?;
    report(context, &network, &format!("Network {} defined from {}", network.name, file.display()))
}

pub(super) async fn create(context: &mut Context<'_>, file: &Path) -> Result {
    let xml = read(file)?;
    let lead = format!("Failed to create network from {}", file.display());
    let network =
        context.client.create(xml).await.lead(lead).map_err(|failure| failure.in_file(file))?;
    report(context, &network, &format!("Network {} created from {}", network.name, file.display()))
}

/// A document from a file: the daemon sees neither the file nor more than the limit.
fn read(path: &Path) -> std::result::Result<Vec<u8>, Failure> {
    let fail = |what: &str, error: &std::io::Error| {
        Failure::local(format!(
            "Failed to {what} file '{}': {}",
            path.display(),
            system_words(error)
        ))
    };
    let file = File::open(path).map_err(|error| fail("open", &error))?;
    let limit = u64::try_from(netdef::MAX_DOCUMENT).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text).map_err(|error| fail("read", &error))?;
    if text.len() > netdef::MAX_DOCUMENT {
        let message = format!(
            "Failed to read file '{}': it is larger than {} MiB",
            path.display(),
            netdef::MAX_DOCUMENT >> 20
        );
        return Err(Failure::local(message)
            .remedy("a network definition is a few kilobytes; is this the file?"));
    }
    Ok(text)
}

fn report(context: &mut Context<'_>, network: &NetworkInfo, message: &str) -> Result {
    context.warn(&network.warnings);
    if context.output.is_json() {
        context.output.json(network)?;
    } else {
        context.output.message(&clean(message, false))?;
    }
    Ok(())
}

pub(super) async fn start(context: &mut Context<'_>, network: &str) -> Result {
    let lead = Some(format!("Failed to start network {network}"));
    let info = context.client.start(network).await.network(network, lead)?;
    report(context, &info, &format!("Network {network} started"))?;
    if let Some(hub) = info.hub.as_ref().filter(|_| !context.output.is_json()) {
        let message = format!("Guests get a port on {}", hub.socket.display());
        context.output.message(&clean(&message, false))?;
    }
    Ok(())
}

pub(super) async fn destroy(context: &mut Context<'_>, network: &str) -> Result {
    let lead = Some(format!("Failed to destroy network {network}"));
    context.client.destroy(network).await.network(network, lead)?;
    said(context, network, &format!("Network {network} destroyed"))
}

pub(super) async fn undefine(context: &mut Context<'_>, network: &str) -> Result {
    let lead = Some(format!("Failed to undefine network {network}"));
    context.client.undefine(network).await.network(network, lead)?;
    said(context, network, &format!("Network {network} has been undefined"))
}

/// A message for a call without an answer.
pub(super) fn said(context: &mut Context<'_>, object: &str, message: &str) -> Result {
    if context.output.is_json() {
        context.output.json(&json!({ "object": object, "message": message }))?;
    } else {
        context.output.message(&clean(message, false))?;
    }
    Ok(())
}

pub(super) async fn autostart(context: &mut Context<'_>, network: &str, wanted: bool) -> Result {
    let (verb, done) = if wanted { ("mark", "marked") } else { ("unmark", "unmarked") };
    let lead = Some(format!("failed to {verb} network {network} as autostarted"));
    let info = context.client.set_autostart(network, wanted).await.network(network, lead)?;
    report(context, &info, &format!("Network {network} {done} as autostarted"))
}

pub(super) async fn list(context: &mut Context<'_>, options: &NetList) -> Result {
    let forms = [options.table, options.name, options.uuid];
    if forms.iter().filter(|form| **form).count() > 1 {
        let message = "Only one argument from --table, --name and --uuid may be specified.";
        return Err(Failure::local(message));
    }
    let mut networks = context.client.networks().await.lead("Failed to list networks")?;
    networks.retain(|network| wanted(network, options));
    networks.sort_by_key(|network| (network.name.to_lowercase(), network.name.clone()));
    if context.output.is_json() {
        context.output.json(&networks)?;
        return Ok(());
    }
    let text = list_text(&networks, options, context.output.is_quiet());
    context.output.text(&text)?;
    Ok(())
}

/// Without flags, the active ones; flags of one kind add up, of different kinds narrow.
fn wanted(network: &NetworkInfo, options: &NetList) -> bool {
    let either = |a: bool, b: bool, value: bool| (!a && !b) || (a && value) || (b && !value);
    let active = if options.all {
        true
    } else if options.inactive {
        !network.active
    } else {
        network.active
    };
    active
        && either(options.persistent, options.transient, network.persistent)
        && either(options.autostart, options.no_autostart, network.autostart)
}

fn list_text(networks: &[NetworkInfo], options: &NetList, quiet: bool) -> String {
    if options.name {
        return networks.iter().map(|network| clean(&network.name, false) + "\n").collect();
    }
    if options.uuid {
        return networks.iter().map(|network| format!("{}\n", network.uuid)).collect();
    }
    let mut header = vec!["Name", "State", "Autostart", "Persistent"];
    if options.title {
        header.push("Title");
    }
    let mut table = Table::new(&header);
    for network in networks {
        let mut row = vec![
            network.name.clone(),
            if network.active { "active" } else { "inactive" }.to_owned(),
            yes_no(network.autostart).to_owned(),
            yes_no(network.persistent).to_owned(),
        ];
        if options.title {
            row.push(network.title.clone().unwrap_or_default());
        }
        table.row(row);
    }
    table.render(quiet)
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub(super) async fn info(context: &mut Context<'_>, network: &str) -> Result {
    let info = context.client.network(network).await.network(network, None)?;
    if context.output.is_json() {
        context.output.json(&info)?;
    } else {
        context.output.text(&info_text(&info))?;
    }
    Ok(())
}

fn info_text(network: &NetworkInfo) -> String {
    let mut lines = vec![
        ("Name:", clean(&network.name, false)),
        ("UUID:", network.uuid.to_string()),
        ("Active:", yes_no(network.active).to_owned()),
        ("Persistent:", yes_no(network.persistent).to_owned()),
        ("Autostart:", yes_no(network.autostart).to_owned()),
    ];
    if let Some(bridge) = &network.bridge {
        lines.push(("Bridge:", clean(bridge, false)));
    }
    if let Some(hub) = &network.hub {
        lines.push(("Hub socket:", clean(&hub.socket.to_string_lossy(), false)));
        lines.push(("Hub guests:", hub_guests(hub)));
    }
    lines.iter().map(|(label, value)| format!("{label:<15} {value}\n")).collect()
}

/// `3 of 64`, and what was refused.
pub(super) fn hub_guests(hub: &HubInfo) -> String {
    let HubInfo { guests, limit, refused, .. } = hub;
    match refused {
        0 => format!("{guests} of {limit}"),
        _ => format!(
            "{guests} of {limit}; {refused} refused: raise guests in [hub] of vswitchd.toml"
        ),
    }
}

pub(super) async fn dumpxml(context: &mut Context<'_>, network: &str, inactive: bool) -> Result {
    let xml = context.client.xml(network, inactive).await.network(network, None)?;
    if context.output.is_json() {
        context.output.json(&json!({ "network": network, "xml": xml }))?;
    } else {
        context.output.text(&xml)?;
    }
    Ok(())
}

/// virsh's `net-name` takes a UUID only, `net-uuid` a name only.
pub(super) async fn name(context: &mut Context<'_>, wanted: &str) -> Result {
    if Uuid::try_parse(wanted).is_err() {
        return Err(Failure::local(format!("failed to get network '{wanted}'"))
            .remedy("net-name takes a UUID"));
    }
    let info = context.client.network(wanted).await.network(wanted, None)?;
    if context.output.is_json() {
        context.output.json(&info)?;
    } else {
        context.output.line(&clean(&info.name, false))?;
    }
    Ok(())
}

pub(super) async fn uuid(context: &mut Context<'_>, wanted: &str) -> Result {
    let info = context.client.network(wanted).await.network(wanted, None)?;
    if info.name != wanted {
        return Err(Failure::local(format!("failed to get network '{wanted}'"))
            .remedy("net-uuid takes a name"));
    }
    if context.output.is_json() {
        context.output.json(&info)?;
    } else {
        context.output.line(&info.uuid.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn network(name: &str, active: bool, persistent: bool, autostart: bool) -> NetworkInfo {
        NetworkInfo {
            name: name.to_owned(),
            uuid: Uuid::from_u128(0xc2ef_2ac3_1e0d_4c0e_9d4a_1f4e_3a3f_0a11),
            title: Some("a title".to_owned()),
            active,
            persistent,
            autostart,
            mode: "nat".to_owned(),
            bridge: active.then(|| "virbr0".to_owned()),
            ports: 0,
            warnings: Vec::new(),
            hub: None,
        }
    }

    #[test]
    fn lists_look_like_virshs() {
        let networks = [network("default", true, true, false), network("lab", false, true, true)];
        assert_eq!(
            list_text(&networks, &NetList::default(), false),
            concat!(
                " Name      State      Autostart   Persistent\n",
                "----------------------------------------------\n",
                " default   active     no          yes\n",
                " lab       inactive   yes         yes\n",
            )
        );
        let titles = NetList { title: true, ..NetList::default() };
        assert_eq!(
            list_text(&networks[..1], &titles, false),
            concat!(
                " Name      State    Autostart   Persistent   Title\n",
                "------------------------------------------------------\n",
                " default   active   no          yes          a title\n",
            )
        );
        let names = NetList { name: true, ..NetList::default() };
        assert_eq!(list_text(&networks, &names, false), "default\nlab\n");
        let uuids = NetList { uuid: true, ..NetList::default() };
        let uuid = "c2ef2ac3-1e0d-4c0e-9d4a-1f4e3a3f0a11\n";
        assert_eq!(list_text(&networks[..1], &uuids, false), uuid);
        assert_eq!(
            list_text(&[], &NetList::default(), false),
            " Name   State   Autostart   Persistent\n----------------------------------------\n"
        );
    }

    #[test]
    fn lists_are_filtered_as_virsh_does() {
        let all = |options: &NetList| -> String {
            let mut kept = String::new();
            for (name, active, persistent, autostart) in [
                ("a", true, true, true),
                ("b", true, true, false),
                ("c", true, false, false),
                ("d", false, true, true),
                ("e", false, true, false),
            ] {
                if wanted(&network(name, active, persistent, autostart), options) {
                    kept.push_str(name);
                }
            }
            kept
        };
        let none = NetList::default;
        assert_eq!(all(&none()), "abc");
        assert_eq!(all(&NetList { all: true, ..none() }), "abcde");
        assert_eq!(all(&NetList { inactive: true, ..none() }), "de");
        assert_eq!(all(&NetList { all: true, inactive: true, ..none() }), "abcde");
        assert_eq!(all(&NetList { transient: true, ..none() }), "c");
        assert_eq!(all(&NetList { persistent: true, ..none() }), "ab");
        assert_eq!(all(&NetList { persistent: true, transient: true, ..none() }), "abc");
        assert_eq!(all(&NetList { all: true, autostart: true, ..none() }), "ad");
        assert_eq!(all(&NetList { all: true, no_autostart: true, ..none() }), "bce");
        assert_eq!(
            all(&NetList { all: true, no_autostart: true, persistent: true, ..none() }),
            "be"
        );
    }

    #[test]
    fn info_has_virshs_labels() {
        assert_eq!(
            info_text(&network("default", true, true, false)),
            "Name:           default
UUID:           c2ef2ac3-1e0d-4c0e-9d4a-1f4e3a3f0a11
Active:         yes
Persistent:     yes
Autostart:      no
Bridge:         virbr0
"
        );
        assert!(!info_text(&network("default", false, true, false)).contains("Bridge"));
    }

    #[test]
    fn files_are_bounded_and_their_errors_are_virshs() {
        let missing = read(Path::new("/nonexistent/x.xml")).expect_err("not there");
        let words = "Failed to open file '/nonexistent/x.xml': No such file or directory";
        assert!(format!("{missing:?}").contains(words), "{missing:?}");
        let folder = read(Path::new("/")).expect_err("not a file");
        assert!(format!("{folder:?}").contains("Failed to read file '/': Is a directory"));
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&vec![b' '; netdef::MAX_DOCUMENT]).expect("written");
        assert_eq!(read(file.path()).expect("at the limit").len(), netdef::MAX_DOCUMENT);
        file.write_all(b" ").expect("written");
        let large = read(file.path()).expect_err("one byte more");
        assert!(format!("{large:?}").contains("larger than 4 MiB"), "{large:?}");
        // A file without an end is not read to its end.
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
