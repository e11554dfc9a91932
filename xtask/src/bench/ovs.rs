//! The peer: Open vSwitch with DPDK, vhost-user server ports on one bridge, worker on CPU 0.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use netns_tests::process::Process;
use netns_tests::record::run;
use netns_tests::{Netns, wait};

use super::peer::Setup;
use crate::phase::quiet;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Running; both daemons end with the value.
pub(super) struct Ovs {
    dir: PathBuf,
    /// To the sockets, which others must make.
    connects: bool,
    sockets: Vec<PathBuf>,
    // Dropped in this order: the switch before its database, the namespace last.
    switch: Process,
    database: Process,
    netns: Netns,
}

impl Ovs {
    /// `sleep`: the worker may sleep up to 250 µs when it finds nothing.
    ///
    /// # Errors
    /// With the end of a log, when a daemon does not come up.
    pub(super) fn start(setup: Setup, sleep: bool) -> anyhow::Result<Ovs> {
        // In a namespace of its own: the bridge makes a TAP of its name.
        let netns = Netns::new("ovs")?;
        let dir = run().directory("ovs");
        let place = Place { netns: &netns, dir: &dir };
        let conf = place.file("conf.db");
        quiet(Command::new("ovsdb-tool").args(["create", &conf, SCHEMA]))?;
        let remote = format!("--remote=punix:{}", place.file("db.sock"));
        let mut database = place.daemon("ovsdb-server", "ovsdb-server", &[&conf, &remote])?;
        wait::until("the database of Open vSwitch", Duration::from_secs(20), || {
            dir.join("db.sock").exists()
        })?;
        place.vsctl(&["--no-wait", "init"])?;
        let mut set = vec![
            "other_config:dpdk-init=true",
            "other_config:dpdk-socket-mem=768",
            "other_config:dpdk-extra=--no-pci --in-memory",
            "other_config:pmd-cpu-mask=0x1",
            "other_config:dpdk-lcore-mask=0x2",
        ];
        if setup.tso {
            set.push("other_config:userspace-tso-enable=true");
        }
        if sleep {
            // The name in 3.1, and the one since 3.2.
            set.extend(["other_config:pmd-maxsleep=250", "other_config:pmd-sleep-max=250"]);
        }
        place.vsctl(&[&["--no-wait", "set", "Open_vSwitch", "."], &set[..]].concat())?;
        let remote = format!("unix:{}", place.file("db.sock"));
        let mut switch = place.daemon("ovs-vswitchd", DAEMON, &[&remote])?;
        let bridge = ["set", "bridge", "br0", "datapath_type=netdev"];
        let addresses = "other-config:mac-table-size=200000";
        place.vsctl(&[&["add-br", "br0", "--"], &bridge[..], &[addresses]].concat())?;
        let ports: Vec<String> = (0..setup.ports).map(|port| format!("vh{port}")).collect();
        let mut words = Vec::new();
        for port in &ports {
            words.extend(["--", "add-port", "br0", port]);
            words.extend(["--", "set", "Interface", port]);
            // A port that listens offers no segmentation, whatever the switch is told.
            if setup.tso {
                words.push("type=dpdkvhostuserclient");
            } else {
                words.push("type=dpdkvhostuser");
            }
        }
        let paths =
            ports.iter().map(|port| format!("options:vhost-server-path={}", place.file(port)));
        let paths: Vec<String> = paths.collect();
        for (port, path) in ports.iter().zip(&paths).filter(|_| setup.tso) {
            words.extend(["--", "set", "Interface", port, path]);
        }
        if !words.is_empty() {
            place.vsctl(&words[1..])?;
        }
        switch.check_alive()?;
        database.check_alive()?;
        let sockets: Vec<PathBuf> = ports.iter().map(|port| dir.join(port)).collect();
        wait::until("sockets of Open vSwitch", Duration::from_secs(20), || {
            setup.tso || sockets.iter().all(|socket| socket.exists())
        })?;
        Ok(Ovs { dir, connects: setup.tso, sockets, switch, database, netns })
    }

    /// A veth between a namespace (`eth0` there) and the bridge, with offloads that this datapath cannot serve turned off.
    ///
    /// # Errors
    /// When `ip`, `ethtool` or `ovs-vsctl` fail.
    pub(super) fn add_veth(&self, name: &str, netns: &Netns) -> anyhow::Result<()> {
        self.netns.join(name, netns, "eth0")?;
        netns.run(&["ethtool", "-K", "eth0", "tx", "off", "gso", "off", "tso", "off"])?;
        Place { netns: &self.netns, dir: &self.dir }.vsctl(&["add-port", "br0", name])
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(super) fn connects(&self) -> bool {
        self.connects
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.switch
    }

    /// Ends both daemons.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        for process in [&mut self.switch, &mut self.database] {
            process.signal(rustix::process::Signal::TERM)?;
            process.wait(Duration::from_secs(20))?;
        }
        Ok(())
    }
}

/// Where an instance lives.
struct Place<'a> {
    netns: &'a Netns,
    dir: &'a Path,
}

impl Place<'_> {
    fn daemon(&self, name: &str, program: &str, args: &[&str]) -> anyhow::Result<Process> {
        let mut command = self.netns.command(program);
        in_directory(&mut command, self.dir).args(args).arg("-vconsole:warn");
        command.arg(format!("--log-file={}", self.file(&format!("{name}.full.log"))));
        Process::start_quiet(name, command, self.dir)
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("ovs-vsctl");
        in_directory(&mut command, self.dir);
        command.arg(format!("--db=unix:{}", self.file("db.sock"))).arg("--timeout=60");
        quiet(command.args(words)).context("Open vSwitch does not come up").map(drop)
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

fn in_directory<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(variable, dir);
    }
    command
}

/// The first line that it says of itself.
pub(super) fn version() -> anyhow::Result<String> {
    let text = quiet(Command::new(DAEMON).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
