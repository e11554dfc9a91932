//! The peer: Open vSwitch with DPDK, two vhost-user server ports on one bridge, worker on CPU 0.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use netns_tests::process::Process;
use netns_tests::record::run;
use netns_tests::{Netns, wait};

use crate::phase::quiet;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Running; both daemons end with the value.
pub(super) struct Ovs {
    dir: PathBuf,
    // Dropped in this order: the switch before its database, the namespace last.
    switch: Option<Process>,
    database: Option<Process>,
    netns: Netns,
}

impl Ovs {
    /// # Errors
    /// With the end of a log, when a daemon does not come up.
    pub(super) fn start() -> anyhow::Result<Ovs> {
        // In a namespace of its own: the bridge makes a TAP of its name.
        let netns = Netns::new("ovs")?;
        let dir = run().directory("ovs");
        let mut ovs = Ovs { dir, switch: None, database: None, netns };
        let conf = ovs.file("conf.db");
        quiet(Command::new("ovsdb-tool").args(["create", &conf, SCHEMA]))?;
        let remote = format!("--remote=punix:{}", ovs.file("db.sock"));
        ovs.database = Some(ovs.daemon("ovsdb-server", "ovsdb-server", &[&conf, &remote])?);
        wait::until("the database of Open vSwitch", Duration::from_secs(20), || {
            ovs.dir.join("db.sock").exists()
        })?;
        ovs.vsctl(&["--no-wait", "init"])?;
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-socket-mem=512",
            "other_config:dpdk-extra=--no-pci --in-memory",
            "other_config:pmd-cpu-mask=0x1",
            "other_config:dpdk-lcore-mask=0x2",
        ])?;
        let database = format!("unix:{}", ovs.file("db.sock"));
        ovs.switch = Some(ovs.daemon("ovs-vswitchd", DAEMON, &[&database])?);
        ovs.vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for port in ["vh0", "vh1"] {
            let interface = ["set", "Interface", port, "type=dpdkvhostuser"];
            ovs.vsctl(&[&["add-port", "br0", port, "--"][..], &interface].concat())?;
        }
        for process in ovs.switch.iter_mut().chain(&mut ovs.database) {
            process.check_alive()?;
        }
        Ok(ovs)
    }

    pub(super) fn sockets(&self) -> [PathBuf; 2] {
        ["vh0", "vh1"].map(|port| self.dir.join(port))
    }

    /// Ends both daemons.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        for process in self.switch.iter_mut().chain(&mut self.database) {
            process.signal(rustix::process::Signal::TERM)?;
            process.wait(Duration::from_secs(10))?;
        }
        Ok(())
    }

    fn daemon(&self, name: &str, program: &str, args: &[&str]) -> anyhow::Result<Process> {
        let mut command = self.netns.command(program);
        in_directory(&mut command, &self.dir).args(args).arg("-vconsole:warn");
        command.arg(format!("--log-file={}", self.file(&format!("{name}.full.log"))));
        Process::start_quiet(name, command, &self.dir)
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("ovs-vsctl");
        in_directory(&mut command, &self.dir);
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
