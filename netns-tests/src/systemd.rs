//! A real systemd that manages one vswitchd, by the unit file that is shipped.
//!
//! It is process 1 of a PID namespace of its own, with its own mounts and control group, and it knows no other units. What
//! it manages runs in the network namespace of the daemon that it was made for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::Daemon;
use crate::process::Process;
use crate::record::{delete_cgroup, run};
use crate::wait;

/// The unit's name.
const UNIT: &str = "vswitchd";
/// How long systemd may take for what it is asked.
const LIMIT: Duration = Duration::from_secs(30);

/// As process 1. `$1`: name of the control group, `$2`: directory of the units. Nothing outside is changed by what systemd does at its
/// start: sysctls and `/etc` are read-only, the console is not there. The switch may set those of the network.
const INIT: &str = r#"
set -e
mount --rbind /run/netns /mnt
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/net /run/none /run/groups
mount --move /mnt /run/netns
mount -o bind,ro /etc /etc
mount --bind /proc/sys/net /run/net
mount -o bind,ro /proc/sys /proc/sys
mount --move /run/net /proc/sys/net
mount --bind /dev/null /dev/console
mount -t cgroup2 cgroup2 /run/groups
mkdir "/run/groups/$1"
echo 0 > "/run/groups/$1/cgroup.procs"
units=$2
exec unshare --cgroup sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh \
    env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH="$units" \
    SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
    /lib/systemd/systemd --system --unit=lab.target \
    --show-status=no --log-target=console --log-level=info --default-standard-output=null
"#;

/// See the module's documentation.
#[derive(Debug)]
pub struct Systemd {
    process: Process,
    cgroup: String,
    log: PathBuf,
}

impl Systemd {
    /// Stops the daemon and starts systemd, which does not start it again yet. `more` are lines for the unit's
    /// section `[Service]`.
    ///
    /// # Errors
    /// When systemd is not installed, or does not answer.
    pub fn new(daemon: &mut Daemon, more: &str) -> anyhow::Result<Self> {
        daemon.stop()?;
        let dir = daemon.dir();
        let log = dir.join("systemd-vswitchd.log");
        let units = dir.join("units");
        write_units(daemon, &units, &log, more)?;
        let cgroup = format!("netloom-lab-{}-{}", std::process::id(), run().number());
        run().add(&format!("cgroup {cgroup}"));
        let mut command = daemon.netns().command("unshare");
        // Namespaces of later come in by /run/netns, nothing goes out.
        command
            .args(["--mount", "--propagation=slave", "--uts", "--ipc", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc"])
            .args(["sh", "-c", INIT, "sh", &cgroup])
            .arg(&units);
        let process = Process::start_quiet("systemd", command, dir)?;
        let mut systemd = Self { process, cgroup, log };
        wait::until("systemd to answer", LIMIT, || {
            systemd.systemctl(&["list-units"]).is_ok() || systemd.process.ended().is_some()
        })?;
        systemd.process.check_alive()?;
        Ok(systemd)
    }

    /// `systemctl WORDS vswitchd`, to its end; returns what it printed.
    ///
    /// # Errors
    /// When it fails; with the daemon's log.
    pub fn unit(&self, words: &[&str]) -> anyhow::Result<String> {
        let done = self.systemctl(&[words, &[UNIT]].concat());
        done.with_context(|| self.log())
    }

    /// What the daemons have logged; nothing before the first start.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A property of the unit, as `systemctl show` prints it.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn property(&self, name: &str) -> anyhow::Result<String> {
        let shown = self.unit(&["show", "--value", "-p", name])?;
        Ok(shown.trim().to_owned())
    }

    fn systemctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let init = self.process.only_child().context("systemd has not started")?.to_string();
        let output = Command::new("nsenter")
            .args(["--target", &init, "--mount", "--pid", "systemctl", "--no-pager"])
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("systemctl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The shipped unit, told which daemon it is about and that there is nothing else on this system.
fn write_units(daemon: &Daemon, units: &Path, log: &Path, lines: &str) -> anyhow::Result<()> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/vswitchd.service");
    let more = units.join(format!("{UNIT}.service.d"));
    fs::create_dir_all(&more)?;
    fs::copy(&shipped, units.join(format!("{UNIT}.service")))
        .with_context(|| shipped.display().to_string())?;
    let (program, instance) = (crate::program("vswitchd")?, daemon.instance());
    let (program, root) = (program.display(), instance.root().display());
    let name = instance.name();
    fs::write(
        more.join("lab.conf"),
        format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=\n\
             ExecStart={program} --instance {name} --root {root}\nStandardError=append:{}\n{lines}\n",
            log.display()
        ),
    )?;
    fs::write(units.join("lab.target"), "[Unit]\nDefaultDependencies=no\n")?;
    Ok(())
}

impl Drop for Systemd {
    fn drop(&mut self) {
        run().leave();
        self.process.kill();
        // The namespace's processes end a moment after the one that made it.
        let _ = wait::until("the control group to be empty", LIMIT, || delete_cgroup(&self.cgroup));
    }
}
