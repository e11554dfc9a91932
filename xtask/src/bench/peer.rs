//! Who is measured. Each is started with its worker on CPU 0 and offers vhost-user sockets.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use netns_tests::process::Process;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::ovs::{self, Ovs};
use super::paired::Paired;
use super::vswitchd::{self, Vswitchd};

/// The switches, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Name {
    /// Ours
    Vswitchd,
    /// Open vSwitch with DPDK
    OvsDpdk,
    /// The same, its worker allowed to sleep (pmd-sleep-max)
    OvsDpdkSleep,
    /// DPDK's two-port forwarder (testpmd, net_vhost, io mode)
    Forwarder,
    /// Our rings, copying and nothing else
    Limit,
    /// Linux bridge with veths
    LinuxBridge,
}

impl Name {
    pub(super) fn title(self) -> &'static str {
        match self {
            Name::Vswitchd => "vswitchd",
            Name::OvsDpdk => "OVS-DPDK",
            Name::OvsDpdkSleep => "OVS-DPDK, sleeping",
            Name::Forwarder => "DPDK forwarder",
            Name::Limit => "limit",
            Name::LinuxBridge => "Linux bridge",
        }
    }

    /// Debian packages that it needs.
    pub(super) fn packages(self) -> &'static [&'static str] {
        match self {
            Name::Vswitchd => &["iproute2", "nftables"],
            Name::OvsDpdk | Name::OvsDpdkSleep => &["openvswitch-switch-dpdk", "iproute2"],
            Name::Forwarder => &["dpdk-dev"],
            Name::Limit => &[],
            Name::LinuxBridge => &["iproute2"],
        }
    }

    /// What it says of itself.
    pub(super) fn version(self, programs: &Path) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Name::Vswitchd => Some(vswitchd::version(programs)?),
            Name::OvsDpdk | Name::OvsDpdkSleep => Some(ovs::version()?),
            Name::Forwarder => Some(super::forwarder::version()?),
            Name::Limit | Name::LinuxBridge => None,
        })
    }
}

/// How a switch is to be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) ports: usize,
    /// Segmentation offload between its ports.
    pub(super) tso: bool,
}

/// A switch that runs; it ends with the value.
pub(super) enum Peer {
    Vswitchd(Vswitchd),
    Ovs(Ovs),
    Paired(Paired),
}

impl Peer {
    /// # Errors
    /// With the end of a log, when it does not come up.
    pub(super) fn start(name: Name, setup: Setup, programs: &Path) -> anyhow::Result<Peer> {
        Ok(match name {
            Name::Vswitchd => Peer::Vswitchd(Vswitchd::start(programs, setup.ports)?),
            Name::OvsDpdk => Peer::Ovs(Ovs::start(setup, false)?),
            Name::OvsDpdkSleep => Peer::Ovs(Ovs::start(setup, true)?),
            Name::Forwarder => Peer::Paired(super::forwarder::start(setup.ports)?),
            Name::Limit => Peer::Paired(super::limit::start(programs, setup.ports)?),
            Name::LinuxBridge => anyhow::bail!("a Linux bridge has no vhost-user ports"),
        })
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        match self {
            Peer::Vswitchd(peer) => peer.sockets(),
            Peer::Ovs(peer) => peer.sockets(),
            Peer::Paired(peer) => peer.sockets(),
        }
    }

    /// It connects to the sockets, and the generator has to make them.
    pub(super) fn connects(&self) -> bool {
        matches!(self, Peer::Ovs(ovs) if ovs.connects())
    }

    /// The process that moves frames.
    pub(super) fn process(&mut self) -> &mut Process {
        match self {
            Peer::Vswitchd(peer) => peer.process(),
            Peer::Ovs(peer) => peer.process(),
            Peer::Paired(peer) => peer.process(),
        }
    }

    /// Runs `probe` while the switch stands still: a worker that spins on CPU 0 would spoil it.
    pub(super) fn paused<T>(
        &mut self,
        probe: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let process = self.process();
        process.check_alive()?;
        process.signal(Signal::STOP)?;
        let result = probe();
        process.signal(Signal::CONT)?;
        result
    }

    /// Ends it in order.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        match self {
            Peer::Vswitchd(peer) => peer.stop(),
            Peer::Ovs(peer) => peer.stop(),
            Peer::Paired(peer) => peer.stop(),
        }
    }
}
