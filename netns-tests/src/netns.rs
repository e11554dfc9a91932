//! Network namespaces of a run.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::record::{self, run};

/// A named network namespace with its loopback up; deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The name is unique on the machine and starts with `nl`.
    ///
    /// # Errors
    /// When `ip netns add` fails.
    pub fn new(role: &str) -> anyhow::Result<Self> {
        let run = run();
        let name = format!("nl{}-{}-{role}", std::process::id(), run.number());
        run.add(&format!("netns {name}"));
        let netns = Self { name };
        command(Command::new("ip").args(["netns", "add", &netns.name]))?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip ARGS` inside; the words of `args` are separated by spaces.
    ///
    /// # Errors
    /// When it ends non-zero; with what it printed.
    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        command(Command::new("ip").args(["-n", &self.name]).args(args.split(' ')))
    }

    /// `sysctl -w NAME=VALUE` inside.
    ///
    /// # Errors
    /// When the setting does not exist.
    pub fn sysctl(&self, setting: &str) -> anyhow::Result<()> {
        self.run(&["sysctl", "-q", "-w", setting]).map(drop)
    }

    /// A command to be run inside.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Run a program inside to its end.
    ///
    /// # Errors
    /// When it ends non-zero; with what it printed.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let (program, args) = words.split_first().context("no program")?;
        command(self.command(program).args(args))
    }

    /// Run a program inside to its end, whatever its status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, words: &[&str]) -> anyhow::Result<Output> {
        let (program, args) = words.split_first().context("no program")?;
        Ok(self.command(program).args(args).stdin(Stdio::null()).output()?)
    }

    /// Run `work` on a thread inside, for sockets that Rust code holds.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `work` returns.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let namespace = File::open(self.path())?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Join two namespaces with a pair of veths, both up.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn join(&self, ifname: &str, peer: &Netns, peer_ifname: &str) -> anyhow::Result<()> {
        self.ip(&format!(
            "link add {ifname} type veth peer name {peer_ifname} netns {}",
            peer.name
        ))?;
        self.ip(&format!("link set {ifname} up"))?;
        peer.ip(&format!("link set {peer_ifname} up"))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        record::delete_netns(&self.name);
        run().leave();
    }
}

/// Run to the end; the error of a failing program is what it printed.
pub(crate) fn command(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}
