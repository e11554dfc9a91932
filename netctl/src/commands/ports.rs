//! `port-add`, `port-list`, `port-info`, `port-set`, `port-del`.

use std::fmt::Write as _;

use api::{PortInfo, PortKind, PortProfile, PortSet, PortState, SocketAccess, Vlan};

use super::Context;
use super::attach::snippets;
use crate::cli::{self, Setting, VlanList};
use crate::failure::{Failure, Lead as _, system_words};
use crate::output::{clean, state};
use crate::table::Table;

pub(super) async fn add(context: &mut Context<'_>, options: cli::PortAdd) -> Result<(), Failure> {
    let network = options.network.clone();
    let lead = format!("Failed to add port {} to network {network}", options.name);
    let request = request(options)?;
    let port = context.client.add_port(&network, &request).await.network(&network, Some(lead))?;
    if context.output.is_json() {
        context.output.json(&port)?;
        return Ok(());
    }
    if context.output.is_quiet() {
        // What a script needs next.
        if let Some(socket) = &port.socket {
            context.output.line(&clean(&socket.to_string_lossy(), false))?;
        }
        return Ok(());
    }
    let mut text = format!("Port {} added to network {}\n\n", port.name, port.network);
    text.push_str(&info_text(&port, context.output.colour()));
    let how = snippets(&port, &context.instance);
    if !how.is_empty() {
        text.push('\n');
        text.push_str(&how);
    }
    context.output.text(&text)?;
    Ok(())
}

fn request(options: cli::PortAdd) -> Result<api::PortAdd, Failure> {
    let port = if let (Some(netns), Some(ifname)) = (options.netns, options.ifname) {
        PortKind::Namespace { netns, ifname }
    } else if let Some(ifname) = options.tap {
        PortKind::Tap { ifname }
    } else if let Some(ifname) = options.dev {
        PortKind::Packet { ifname }
    } else {
        let access = SocketAccess {
            owner: options.access.socket_owner,
            group: options.access.socket_group,
            mode: options.access.socket_mode,
            selinux: options.access.socket_context,
        };
        // The daemon stands in another directory.
        let connect = options.connect.map(std::path::absolute).transpose().map_err(|error| {
            Failure::local(format!("cannot find the socket: {}", system_words(&error)))
        })?;
        PortKind::VhostUser { connect, access, queue_pairs: options.queues }
    };
    let profile = profile(options.profile);
    Ok(api::PortAdd { name: options.name, uuid: options.uuid, port, mac: options.mac, profile })
}

fn profile(options: cli::Profile) -> PortProfile {
    let vlan = match (options.vlan, options.trunk) {
        (Some(vlan), _) => Some(Vlan::Access(vlan)),
        (None, Some(VlanList(allowed))) => Some(Vlan::Trunk { native: options.native, allowed }),
        (None, None) => None,
    };
    PortProfile { portgroup: options.portgroup, vlan, isolated: options.isolated }
}

pub(super) async fn set(context: &mut Context<'_>, options: cli::PortSet) -> Result<(), Failure> {
    let name = options.port.clone();
    let lead = Some(format!("Failed to change port {name}"));
    let port = context.client.set_port(&name, &change(options)).await.port(&name, lead)?;
    if context.output.is_json() {
        context.output.json(&port)?;
        return Ok(());
    }
    context.output.message(&format!("Port {} changed", clean(&port.name, false)))?;
    Ok(())
}

/// What is given; what is to be reset is `null`, unless it is given too.
fn change(options: cli::PortSet) -> PortSet {
    let PortProfile { portgroup, vlan, isolated } = profile(options.profile);
    let reset = |setting: Setting| options.reset.contains(&setting);
    PortSet {
        portgroup: portgroup.map(Some).or(reset(Setting::Portgroup).then_some(None)),
        vlan: vlan.map(Some).or(reset(Setting::Vlan).then_some(None)),
        isolated: isolated.map(Some).or(reset(Setting::Isolated).then_some(None)),
    }
}

pub(super) async fn list(context: &mut Context<'_>, network: Option<&str>) -> Result<(), Failure> {
    let mut ports = match network {
        Some(network) => context.client.network_ports(network).await.network(network, None)?,
        None => context.client.ports().await.lead("Failed to list ports")?,
    };
    ports.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
    if context.output.is_json() {
        context.output.json(&ports)?;
    } else {
        let text = list_text(&ports, context.output.is_quiet());
        context.output.text(&text)?;
    }
    Ok(())
}

fn list_text(ports: &[PortInfo], quiet: bool) -> String {
    let mut table =
        Table::new(&["Name", "Network", "Type", "State", "MAC address", "VLAN", "Target"]);
    for port in ports {
        let vlan = port.profile.vlan.as_ref().map_or_else(|| "-".to_owned(), vlan_text);
        table.row([
            port.name.clone(),
            port.network.clone(),
            kind_word(&port.port).to_owned(),
            state_word(port.state).to_owned(),
            port.mac.to_string(),
            vlan,
            target(port),
        ]);
    }
    table.render(quiet)
}

pub(super) async fn info(context: &mut Context<'_>, name: &str) -> Result<(), Failure> {
    let port = context.client.port(name).await.port(name, None)?;
    if context.output.is_json() {
        context.output.json(&port)?;
        return Ok(());
    }
    let mut text = info_text(&port, context.output.colour());
    let how = snippets(&port, &context.instance);
    if !how.is_empty() && !context.output.is_quiet() {
        text.push('\n');
        text.push_str(&how);
    }
    context.output.text(&text)?;
    Ok(())
}

fn info_text(port: &PortInfo, colour: bool) -> String {
    let mut lines = vec![
        ("Name:", clean(&port.name, false)),
        ("UUID:", port.uuid.to_string()),
        ("Network:", clean(&port.network, false)),
        ("Type:", kind_word(&port.port).to_owned()),
        ("State:", state(state_word(port.state), colour)),
    ];
    if let Some(reason) = &port.reason {
        lines.push(("Reason:", clean(reason, false)));
    }
    lines.push(("MAC address:", port.mac.to_string()));
    lines.push(("MTU:", port.mtu.to_string()));
    match &port.port {
        PortKind::VhostUser { connect, access, queue_pairs } => {
            lines.push(("Queue pairs:", queue_pairs.to_string()));
            let listens = if connect.is_some() { "the VMM" } else { "the switch" };
            lines.push(("Listens:", listens.to_owned()));
            let SocketAccess { owner, group, mode, selinux } = access;
            let mode = mode.map(|mode| mode.to_string());
            let set =
                [("Owner:", owner), ("Group:", group), ("Mode:", &mode), ("SELinux:", selinux)];
            for (label, value) in set {
                lines.extend(value.as_ref().map(|value| (label, clean(value, false))));
            }
        }
        PortKind::Namespace { netns, ifname } => {
            lines.push(("Namespace:", clean(netns, false)));
            lines.push(("Interface:", clean(ifname, false)));
        }
        PortKind::Tap { ifname } | PortKind::Packet { ifname } => {
            lines.push(("Interface:", clean(ifname, false)));
        }
        PortKind::Hub { pid, command, queue_pairs } => {
            lines.push(("Queue pairs:", queue_pairs.to_string()));
            lines.push(("Process:", clean(&process(*pid, command.as_deref()), false)));
        }
    }
    if let Some(socket) = &port.socket {
        lines.push(("Socket:", clean(&socket.to_string_lossy(), false)));
    }
    if let Some(portgroup) = &port.profile.portgroup {
        lines.push(("Portgroup:", clean(portgroup, false)));
    }
    if let Some(vlan) = &port.profile.vlan {
        lines.push(("VLAN:", vlan_text(vlan)));
    }
    if let Some(isolated) = port.profile.isolated {
        lines.push(("Isolated:", if isolated { "yes" } else { "no" }.to_owned()));
    }
    let mut text = String::new();
    for (label, value) in lines {
        let _ = writeln!(text, "{label:<15} {value}");
    }
    text
}

pub(super) async fn delete(context: &mut Context<'_>, name: &str) -> Result<(), Failure> {
    let lead = Some(format!("Failed to delete port {name}"));
    context.client.delete_port(name).await.port(name, lead)?;
    super::networks::said(context, name, &format!("Port {name} deleted"))
}

pub(super) fn kind_word(kind: &PortKind) -> &'static str {
    match kind {
        PortKind::VhostUser { .. } => "vhost-user",
        PortKind::Namespace { .. } => "namespace",
        PortKind::Tap { .. } => "tap",
        PortKind::Packet { .. } => "packet",
        PortKind::Hub { .. } => "hub",
    }
}

pub(super) fn state_word(state: PortState) -> &'static str {
    match state {
        PortState::Down => "down",
        PortState::Listening => "listening",
        PortState::Connecting => "connecting",
        PortState::Connected => "connected",
        PortState::Up => "up",
        PortState::Gone => "gone",
        PortState::Quarantined => "quarantined",
        PortState::Error => "error",
    }
}

/// Where the other end is.
pub(super) fn target(port: &PortInfo) -> String {
    match &port.port {
        PortKind::VhostUser { .. } => match &port.socket {
            Some(socket) => socket.to_string_lossy().into_owned(),
            None => "-".to_owned(),
        },
        PortKind::Namespace { netns, ifname } => format!("{netns}:{ifname}"),
        PortKind::Tap { ifname } | PortKind::Packet { ifname } => ifname.clone(),
        PortKind::Hub { pid, command, .. } => process(*pid, command.as_deref()),
    }
}

/// `qemu-system-x86 (pid 1234)`.
fn process(pid: Option<u32>, command: Option<&str>) -> String {
    match (command, pid) {
        (Some(command), Some(pid)) => format!("{command} (pid {pid})"),
        (None, Some(pid)) => format!("pid {pid}"),
        (_, None) => "-".to_owned(),
    }
}

/// `7` for access, `10,20-29` with `native 5` for a trunk.
pub(super) fn vlan_text(vlan: &Vlan) -> String {
    match vlan {
        Vlan::Access(vlan) => vlan.to_string(),
        Vlan::Trunk { native, allowed } => {
            let list = if allowed.is_empty() { "all".to_owned() } else { ranges(allowed) };
            match native {
                Some(native) => format!("trunk {list} native {native}"),
                None => format!("trunk {list}"),
            }
        }
    }
}

fn ranges(vlans: &[u16]) -> String {
    let mut sorted = vlans.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use uuid::Uuid;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &str) -> api::PortAdd {
        match Cli::try_parse_from(line.split_whitespace()).expect("a good line").command {
            Command::PortAdd(options) => request(*options).expect("a request"),
            other => panic!("{other:?}"),
        }
    }

    fn vhost_user(access: SocketAccess, queue_pairs: u16) -> PortKind {
        PortKind::VhostUser { connect: None, access, queue_pairs }
    }

    fn port(name: &str, kind: PortKind, state: PortState) -> PortInfo {
        PortInfo {
            name: name.to_owned(),
            uuid: Uuid::from_u128(7),
            network: "default".to_owned(),
            port: kind,
            mac: "52:54:00:12:34:56".parse().expect("a MAC"),
            profile: PortProfile::default(),
            state,
            reason: None,
            socket: None,
            mtu: 1500,
        }
    }

    #[test]
    fn options_become_requests() {
        let add = parsed("netctl port-add default web1");
        assert_eq!(add.port, vhost_user(SocketAccess::default(), 1));
        assert_eq!(add.profile, PortProfile::default());
        let add = parsed(
            "netctl port-add default web1 --queues 4 --socket-owner qemu --socket-group kvm \
             --socket-mode 640 --socket-context a:b:c:s0 --vlan 7 --isolated",
        );
        let access = SocketAccess {
            owner: Some("qemu".to_owned()),
            group: Some("kvm".to_owned()),
            mode: api::SocketMode::new(0o640),
            selinux: Some("a:b:c:s0".to_owned()),
        };
        assert_eq!(add.port, vhost_user(access, 4));
        assert_eq!(add.profile.vlan, Some(Vlan::Access(7)));
        assert_eq!(add.profile.isolated, Some(true));
        let add = parsed("netctl port-add d c --netns red --ifname eth0 --trunk 5-7,9 --native 5");
        let kind = PortKind::Namespace { netns: "red".to_owned(), ifname: "eth0".to_owned() };
        assert_eq!(add.port, kind);
        let trunk = Vlan::Trunk { native: Some(5), allowed: vec![5, 6, 7, 9] };
        assert_eq!(add.profile.vlan, Some(trunk));
        let add = parsed("netctl port-add d vm --connect here/vm.sock --queues 2");
        let connect = std::env::current_dir().expect("a directory").join("here/vm.sock");
        let access = SocketAccess::default();
        let kind = PortKind::VhostUser { connect: Some(connect), access, queue_pairs: 2 };
        assert_eq!(add.port, kind);
        let add = parsed("netctl port-add d up --dev eth1 --portgroup fast");
        assert_eq!(add.port, PortKind::Packet { ifname: "eth1".to_owned() });
        assert_eq!(add.profile.portgroup.as_deref(), Some("fast"));
        let add = parsed("netctl port-add d up --tap t0 --mac 52:54:00:00:00:01");
        assert_eq!(add.port, PortKind::Tap { ifname: "t0".to_owned() });
        assert_eq!(add.mac.map(|mac| mac.to_string()).as_deref(), Some("52:54:00:00:00:01"));
    }

    #[test]
    fn lists_name_the_other_end() {
        let vhost = vhost_user(SocketAccess::default(), 1);
        let red = PortKind::Namespace { netns: "red".to_owned(), ifname: "eth0".to_owned() };
        let mut web = port("web1", vhost, PortState::Up);
        web.socket = Some("/run/netloom/port/web1".into());
        web.profile.vlan = Some(Vlan::Access(7));
        assert_eq!(
            list_text(&[web, port("c1", red, PortState::Gone)], false),
            concat!(
                " Name   Network   Type         State   MAC address         VLAN   Target\n",
                "------------------------------------------------------------------------------------------\n",
                " web1   default   vhost-user   up      52:54:00:12:34:56   7      /run/netloom/port/web1\n",
                " c1     default   namespace    gone    52:54:00:12:34:56   -      red:eth0\n",
            )
        );
    }

    #[test]
    fn info_tells_all_that_is_set() {
        let mode = api::SocketMode::new(0o600);
        let group = Some("kvm".to_owned());
        let kind = vhost_user(SocketAccess { group, mode, ..SocketAccess::default() }, 2);
        let mut web = port("web1", kind, PortState::Quarantined);
        web.reason = Some("descriptor out of range".to_owned());
        web.socket = Some("/run/netloom/port/web1".into());
        web.profile = PortProfile {
            portgroup: Some("fast".to_owned()),
            vlan: Some(Vlan::Trunk { native: None, allowed: Vec::new() }),
            isolated: Some(true),
        };
        assert_eq!(
            info_text(&web, false),
            "Name:           web1
UUID:           00000000-0000-0000-0000-000000000007
Network:        default
Type:           vhost-user
State:          quarantined
Reason:         descriptor out of range
MAC address:    52:54:00:12:34:56
MTU:            1500
Queue pairs:    2
Listens:        the switch
Group:          kvm
Mode:           0600
Socket:         /run/netloom/port/web1
Portgroup:      fast
VLAN:           trunk all
Isolated:       yes
"
        );
    }

    #[test]
    fn vlans_are_short() {
        assert_eq!(vlan_text(&Vlan::Access(7)), "7");
        let trunk = Vlan::Trunk { native: Some(5), allowed: vec![9, 5, 6, 7, 12] };
        assert_eq!(vlan_text(&trunk), "trunk 5-7,9,12 native 5");
    }
}
