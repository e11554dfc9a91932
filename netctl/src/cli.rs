//! The command line.

use std::path::PathBuf;

use api::{Instance, SocketMode};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;
use uuid::Uuid;
use wire::MacAddr;

use crate::complete;

/// Networks, ports and what the switch knows.
///
/// The net-* commands are virsh's. The daemon, vswitchd, must be running.
#[derive(Debug, Parser)]
#[command(name = "netctl", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Which daemon on this host
    #[arg(long, global = true, env = "NETLOOM_INSTANCE", default_value = Instance::DEFAULT,
        hide_default_value = true, hide_env = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) instance: String,
    /// Directory that stands for / in all paths of the instance
    #[arg(long, global = true, env = "NETLOOM_ROOT", default_value = "/", hide_default_value = true,
        hide_env = true, value_name = "DIR", value_hint = ValueHint::DirPath,
        help_heading = "Global options")]
    pub(crate) root: PathBuf,
    /// How to print answers
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_default_value = true,
        help_heading = "Global options"
    )]
    pub(crate) output: Format,
    /// No messages, no table headers, no empty lines
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, as virsh prints
    #[default]
    Table,
    /// The API's JSON
    Json,
}

/// The command line as clap knows it, for parsing, completion and man pages.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Define a persistent network from libvirt XML, or change it
    NetDefine(File),
    /// Create and start a transient network from libvirt XML
    NetCreate(File),
    /// Start a network that is defined
    NetStart(Network),
    /// Stop a network; a transient one is gone then
    NetDestroy(Network),
    /// Remove the definition of a network
    NetUndefine(Network),
    /// Start a network whenever the daemon starts after a boot
    NetAutostart {
        #[command(flatten)]
        network: Network,
        /// Do not, any more
        #[arg(long)]
        disable: bool,
    },
    /// List networks
    NetList(NetList),
    /// Show what a network is
    NetInfo(Network),
    /// Print the XML of a network
    NetDumpxml {
        #[command(flatten)]
        network: Network,
        /// The definition on disk, not the running one
        #[arg(long)]
        inactive: bool,
    },
    /// Edit the XML of a network in $VISUAL or $EDITOR
    NetEdit(Network),
    /// Print the name of the network with a UUID
    NetName(Network),
    /// Print the UUID of the network with a name
    NetUuid(Network),
    /// List DHCP leases of a network
    NetDhcpLeases {
        #[command(flatten)]
        network: Network,
        /// Only those of this MAC address
        #[arg(value_name = "mac")]
        mac_positional: Option<String>,
        /// Only those of this MAC address
        #[arg(long, value_name = "string", conflicts_with = "mac_positional")]
        mac: Option<String>,
    },
    /// Show what DHCP and DNS of a network have answered and dropped
    NetStats(Network),

    /// Add a port to a network: a vhost-user socket, unless another kind is given
    PortAdd(Box<PortAdd>),
    /// List ports
    PortList {
        /// Only those of this network
        #[arg(value_name = "network", add = ArgValueCandidates::new(complete::networks))]
        network: Option<String>,
    },
    /// Show what a port is, and how to attach to it
    PortInfo(Port),
    /// Change how a port forwards, also while it is in use
    PortSet(PortSet),
    /// Remove a port
    PortDel(Port),
    /// Show the counters of a port
    PortStats {
        #[command(flatten)]
        port: Port,
        /// Again every so many seconds, as rates
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        interval: Option<u64>,
        /// End after so many lines of rates
        #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Show the forwarding database of a network
    FdbShow(Network),
    /// Add a static entry to the forwarding database of a network
    FdbAdd {
        #[command(flatten)]
        network: Network,
        #[command(flatten)]
        port: Port,
        /// Address that is behind the port
        #[arg(value_name = "mac")]
        mac: MacAddr,
        /// VLAN of the entry [default: that of the port's untagged frames]
        #[arg(long, value_name = "VLAN")]
        vlan: Option<u16>,
    },
    /// Remove an address from the forwarding database of a network
    FdbDel {
        #[command(flatten)]
        network: Network,
        /// The address
        #[arg(value_name = "mac")]
        mac: MacAddr,
        /// Only in this VLAN
        #[arg(long, value_name = "VLAN")]
        vlan: Option<u16>,
    },
    /// Forget what the forwarding database of a network has learned
    FdbFlush(Network),
    /// Show all networks with their ports
    Show,
    /// List the daemon's worker threads, with their load and the queues that each serves
    WorkerList,
    /// Print what happens, as it happens
    Events(Events),
    /// Print the completion script of a shell
    #[command(long_about = complete::HELP)]
    Completion {
        #[arg(value_enum)]
        shell: complete::Shell,
    },
    /// Write the man pages
    #[command(hide = true)]
    Man {
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct File {
    /// File with the XML of the network
    #[arg(value_name = "file", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Accepted for virsh's sake: every document is checked
    #[arg(long, hide = true)]
    pub(crate) validate: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Network {
    /// Name or UUID of the network
    #[arg(value_name = "network", add = ArgValueCandidates::new(complete::networks))]
    pub(crate) network: String,
}

#[derive(Args, Debug)]
pub(crate) struct Port {
    /// Name or UUID of the port
    #[arg(value_name = "port", add = ArgValueCandidates::new(complete::ports))]
    pub(crate) port: String,
}

#[derive(Args, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "virsh's flags")]
pub(crate) struct NetList {
    /// Inactive networks
    #[arg(long)]
    pub(crate) inactive: bool,
    /// Active and inactive networks
    #[arg(long)]
    pub(crate) all: bool,
    /// Persistent networks
    #[arg(long)]
    pub(crate) persistent: bool,
    /// Transient networks
    #[arg(long)]
    pub(crate) transient: bool,
    /// Networks with autostart
    #[arg(long)]
    pub(crate) autostart: bool,
    /// Networks without autostart
    #[arg(long)]
    pub(crate) no_autostart: bool,
    /// Only UUIDs
    #[arg(long)]
    pub(crate) uuid: bool,
    /// Only names
    #[arg(long)]
    pub(crate) name: bool,
    /// A table (default)
    #[arg(long)]
    pub(crate) table: bool,
    /// Titles, too
    #[arg(long)]
    pub(crate) title: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PortAdd {
    /// Name or UUID of the network
    #[arg(value_name = "network", add = ArgValueCandidates::new(complete::networks))]
    pub(crate) network: String,
    /// Name of the port, unique in the daemon: letters, digits and _ . -
    #[arg(value_name = "port")]
    pub(crate) name: String,

    /// An interface inside this network namespace (a name in /run/netns, or a path)
    #[arg(
        long,
        value_name = "NETNS",
        requires = "ifname",
        group = "kind",
        help_heading = "Kind of port"
    )]
    pub(crate) netns: Option<String>,
    /// Its name in there
    #[arg(long, value_name = "NAME", requires = "netns", help_heading = "Kind of port")]
    pub(crate) ifname: Option<String>,
    /// An interface (TAP) of this host
    #[arg(long, value_name = "NAME", group = "kind", help_heading = "Kind of port")]
    pub(crate) tap: Option<String>,
    /// An existing interface of this host, as uplink
    #[arg(long, value_name = "NAME", group = "kind", help_heading = "Kind of port")]
    pub(crate) dev: Option<String>,
    /// The VMM listens on this vhost-user socket (QEMU: server=on): connect to it, again and again
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, group = "kind", help_heading = "Kind of port")]
    pub(crate) connect: Option<PathBuf>,
    /// Pairs of queues of the vhost-user port
    #[arg(long, value_name = "N", conflicts_with_all = ["netns", "tap", "dev"], default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(api::MAX_QUEUE_PAIRS)), help_heading = "Kind of port")]
    pub(crate) queues: u16,

    #[command(flatten, next_help_heading = "Access to the socket")]
    pub(crate) access: SocketAccess,

    /// MAC address of the guest [default: a random one]
    #[arg(long, value_name = "MAC", help_heading = "What it is")]
    pub(crate) mac: Option<MacAddr>,
    /// UUID of the port [default: a random one]
    #[arg(long, value_name = "UUID", help_heading = "What it is")]
    pub(crate) uuid: Option<Uuid>,
    #[command(flatten, next_help_heading = "How it forwards")]
    pub(crate) profile: Profile,
}

/// Who may connect to a socket that is ours.
#[derive(Args, Debug)]
pub(crate) struct SocketAccess {
    /// User who owns the vhost-user socket [default: the daemon's configuration]
    #[arg(long, value_name = "USER", conflicts_with = "kind")]
    pub(crate) socket_owner: Option<String>,
    /// Group of the vhost-user socket [default: the daemon's configuration]
    #[arg(long, value_name = "GROUP", conflicts_with = "kind")]
    pub(crate) socket_group: Option<String>,
    /// Mode of the vhost-user socket, octal [default: the daemon's configuration, 0660]
    #[arg(long, value_name = "MODE", conflicts_with = "kind")]
    pub(crate) socket_mode: Option<SocketMode>,
    /// SELinux context of the vhost-user socket
    #[arg(long, value_name = "CONTEXT", conflicts_with = "kind")]
    pub(crate) socket_context: Option<String>,
}

/// How a port forwards.
#[derive(Args, Debug)]
pub(crate) struct Profile {
    /// Untagged outside, this VLAN inside
    #[arg(long, value_name = "VLAN", conflicts_with = "trunk")]
    pub(crate) vlan: Option<u16>,
    /// Tagged frames of these VLANs, as in 10,20-29; 'all' for any
    #[arg(long, value_name = "VLANS", value_parser = vlan_list)]
    pub(crate) trunk: Option<VlanList>,
    /// VLAN of untagged frames on a trunk
    #[arg(long, value_name = "VLAN", requires = "trunk")]
    pub(crate) native: Option<u16>,
    /// Do not exchange frames with other isolated ports
    #[arg(long, value_name = "yes|no", num_args = 0..=1, require_equals = true,
        default_missing_value = "yes", value_parser = yes_no)]
    pub(crate) isolated: Option<bool>,
    /// Portgroup of the network to take settings from
    #[arg(long, value_name = "NAME")]
    pub(crate) portgroup: Option<String>,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true)
    .args(["vlan", "trunk", "isolated", "portgroup", "reset"]))]
pub(crate) struct PortSet {
    /// Name or UUID of the port
    #[arg(value_name = "port", add = ArgValueCandidates::new(complete::ports))]
    pub(crate) port: String,
    #[command(flatten)]
    pub(crate) profile: Profile,
    /// Take the network's settings again
    #[arg(long, value_enum, value_name = "SETTINGS", value_delimiter = ',')]
    pub(crate) reset: Vec<Setting>,
}

/// A setting of a port's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    Vlan,
    Isolated,
    Portgroup,
}

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Start after the event with this number
    #[arg(long, value_name = "SEQ")]
    pub(crate) since: Option<u64>,
}

/// VLANs of a trunk; empty means all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VlanList(pub(crate) Vec<u16>);

fn vlan_list(text: &str) -> Result<VlanList, String> {
    if text == "all" {
        return Ok(VlanList(Vec::new()));
    }
    let vlan = |text: &str| match text.parse::<u16>() {
        Ok(vlan) if (1..=4094).contains(&vlan) => Ok(vlan),
        _ => Err(format!("'{text}' is not a VLAN from 1 to 4094")),
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => list.push(vlan(part)?),
            Some((first, last)) => {
                let (first, last) = (vlan(first)?, vlan(last)?);
                if last < first {
                    return Err(format!("'{part}' ends before it starts"));
                }
                list.extend(first..=last);
            }
        }
    }
    list.sort_unstable();
    list.dedup();
    Ok(VlanList(list))
}

fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn port_add(line: &str) -> PortAdd {
        match parse(line).expect("a good command line").command {
            Command::PortAdd(port) => *port,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli =
            parse("netctl --instance lab net-list --all -q -o json --root /tmp").expect("good");
        assert_eq!((cli.instance.as_str(), cli.output, cli.quiet), ("lab", Format::Json, true));
        assert_eq!(cli.root, PathBuf::from("/tmp"));
    }

    #[test]
    fn kinds_of_ports_exclude_each_other() {
        let port = port_add("netctl port-add net web1 --netns red --ifname eth0 --vlan 7");
        assert_eq!((port.netns.as_deref(), port.ifname.as_deref()), (Some("red"), Some("eth0")));
        assert_eq!(port.profile.vlan, Some(7));
        for line in [
            "netctl port-add net web1 --netns red",
            "netctl port-add net web1 --ifname eth0",
            "netctl port-add net web1 --tap a --dev b",
            "netctl port-add net web1 --tap a --queues 2",
            "netctl port-add net web1 --dev a --socket-group kvm",
            "netctl port-add net web1 --connect /s --socket-mode 600",
            "netctl port-add net web1 --connect /s --tap a",
            "netctl port-add net web1 --socket-mode 1000",
            "netctl port-add net web1 --vlan 1 --trunk all",
            "netctl port-add net web1 --native 1",
            "netctl port-add net web1 --queues 0",
            "netctl port-add net web1 --isolated=maybe",
            "netctl port-add net web1 --mac 1:2",
            "netctl port-add net",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn isolation_may_be_said_or_denied() {
        assert_eq!(port_add("netctl port-add n p").profile.isolated, None);
        assert_eq!(port_add("netctl port-add n p --isolated").profile.isolated, Some(true));
        assert_eq!(port_add("netctl port-add n p --isolated=no").profile.isolated, Some(false));
    }

    #[test]
    fn a_change_of_a_port_changes_something() {
        let line = "netctl port-set p --trunk 5 --native 1 --reset isolated,portgroup";
        match parse(line).expect("good").command {
            Command::PortSet(set) => {
                assert_eq!(set.reset, [Setting::Isolated, Setting::Portgroup]);
                assert_eq!(set.profile.native, Some(1));
            }
            other => panic!("{other:?}"),
        }
        for line in [
            "netctl port-set p",
            "netctl port-set --vlan 1",
            "netctl port-set p --native 1",
            "netctl port-set p --vlan 1 --trunk all",
            "netctl port-set p --reset mac",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn trunks_are_lists_of_ranges() {
        let trunk = |list: &str| vlan_list(list).map(|list| list.0);
        assert_eq!(trunk("all"), Ok(vec![]));
        assert_eq!(trunk("20,10-12,11"), Ok(vec![10, 11, 12, 20]));
        for bad in ["", "0", "4095", "3-1", "1,,2", "a", "1-"] {
            assert!(trunk(bad).is_err(), "{bad}");
        }
    }
}
