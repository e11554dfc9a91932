//! vswitchd in a namespace, and netctl beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use api::Instance;
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::netns::Netns;
use crate::process::Process;
use crate::record::run;
use crate::wait;

/// A running vswitchd with all its files under one temporary root.
#[derive(Debug)]
pub struct Daemon {
    netns: Arc<Netns>,
    instance: Instance,
    process: Option<Process>,
    dir: PathBuf,
}

impl Daemon {
    /// Start an instance; returns when its API answers.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub fn start(netns: &Arc<Netns>, instance: &str, config: &str) -> anyhow::Result<Self> {
        Self::start_in(netns, instance, config, "root")
    }

    /// Like [`Self::start`], with the name of the root directory.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub fn start_in(
        netns: &Arc<Netns>,
        instance: &str,
        config: &str,
        root: &str,
    ) -> anyhow::Result<Self> {
        let dir = run().directory("vswitchd");
        let instance = Instance::new(instance, dir.join(root))?;
        fs::create_dir_all(instance.config_dir())?;
        fs::write(instance.config_dir().join("vswitchd.toml"), config)?;
        let mut daemon = Self { netns: Arc::clone(netns), instance, process: None, dir };
        daemon.up()?;
        Ok(daemon)
    }

    /// Start the process again after [`Self::kill`] or [`Self::stop`].
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub fn up(&mut self) -> anyhow::Result<()> {
        let process = self.start_process(&[])?;
        let process = self.process.insert(process);
        let socket = self.instance.api_socket();
        wait::until("vswitchd's API to answer", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok() || process.ended().is_some()
        })?;
        process.check_alive()
    }

    /// Start a process on this instance, with more arguments, beside the one that may run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_process(&self, more: &[&str]) -> anyhow::Result<Process> {
        let program = crate::program("vswitchd")?;
        let mut command = self.netns.command(&program.display().to_string());
        command.args(["--instance", self.instance.name()]).arg("--root").arg(self.instance.root());
        command.args(more);
        Process::start_quiet("vswitchd", command, &self.dir)
    }

    /// `vswitchd --take-over`; returns when the old process has ended and the new one answers.
    ///
    /// # Errors
    /// With the end of the log when either does not happen.
    pub fn take_over(&mut self) -> anyhow::Result<()> {
        let new = self.start_process(&["--take-over"])?;
        let mut old = self.process.replace(new).context("vswitchd is not running")?;
        let status = old.wait(Duration::from_secs(20)).with_context(|| old.log())?;
        anyhow::ensure!(status.success(), "the old daemon ended with {status}: {}", old.log());
        let process = self.process.as_mut().context("vswitchd is not running")?;
        let pid = process.id().to_string();
        let lock = self.instance.run_dir().join("lock");
        let socket = self.instance.api_socket();
        wait::until("the new vswitchd's API to answer", Duration::from_secs(20), || {
            let ours = fs::read_to_string(&lock).is_ok_and(|holder| holder.trim() == pid);
            ours && std::os::unix::net::UnixStream::connect(&socket).is_ok()
                || process.ended().is_some()
        })?;
        process.check_alive()
    }

    /// SIGTERM, and wait for its end.
    ///
    /// # Errors
    /// When it does not end within ten seconds.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::TERM)
    }

    /// SIGKILL, and wait for its end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::KILL)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let mut process = self.process.take().context("vswitchd is not running")?;
        process.signal(signal)?;
        process.wait(Duration::from_secs(10))?;
        Ok(())
    }

    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// # Errors
    /// When it is not running.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().context("vswitchd is not running")
    }

    /// Run netctl with these words; returns what it printed.
    ///
    /// # Errors
    /// With its error when it fails.
    pub fn netctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.netctl_output(words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "netctl {}: {}\n{text}{}",
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }

    /// Run netctl, whatever its status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn netctl_output(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.netns.command(&crate::program("netctl")?.display().to_string());
        command.args(["--instance", self.instance.name()]).arg("--root").arg(self.instance.root());
        Ok(command.args(words).output()?)
    }

    /// `netctl -o json WORDS`, parsed.
    ///
    /// # Errors
    /// When netctl fails or prints something else.
    pub fn json<T: DeserializeOwned>(&self, words: &[&str]) -> anyhow::Result<T> {
        let text = self.netctl(&[&["-o", "json"], words].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("netctl {} gave {text}", words.join(" ")))
    }

    /// Define and start a network from XML text.
    ///
    /// # Errors
    /// When netctl fails.
    pub fn network(&self, name: &str, xml: &str) -> anyhow::Result<()> {
        let file = self.dir.join(format!("{name}.xml"));
        fs::write(&file, xml)?;
        self.netctl(&["net-define", &file.display().to_string()])?;
        self.netctl(&["net-start", name])?;
        Ok(())
    }

    /// Add a vhost-user port; returns its socket.
    ///
    /// # Errors
    /// When netctl fails.
    pub fn port(&self, network: &str, name: &str, more: &[&str]) -> anyhow::Result<api::PortInfo> {
        self.json(&[&["port-add", network, name], more].concat())
    }

    /// # Errors
    /// When the port is not in this state in time.
    pub fn wait_port(&self, name: &str, state: api::PortState) -> anyhow::Result<()> {
        wait::until(&format!("port {name} to be {state:?}"), Duration::from_secs(10), || {
            self.json::<api::PortInfo>(&["port-info", name]).is_ok_and(|port| port.state == state)
        })
    }

    /// Current leases of a network.
    ///
    /// # Errors
    /// When netctl fails.
    pub fn leases(&self, network: &str) -> anyhow::Result<Vec<api::Lease>> {
        self.json(&["net-dhcp-leases", network])
    }

    /// Directory of the daemon's log and files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stop it and remove everything that it made.
    ///
    /// # Errors
    /// When `vswitchd --teardown` fails.
    pub fn teardown(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            self.stop()?;
        }
        let program = crate::program("vswitchd")?.display().to_string();
        let root = self.instance.root().display().to_string();
        let words = [&program, "--instance", self.instance.name(), "--root", &root, "--teardown"];
        self.netns.run(&words)?;
        Ok(())
    }
}
