//! QEMU with TCG: Debian's stock cloud kernel behind QEMU's vhost-user frontend.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use wire::MacAddr;

use super::console::Console;
use super::slot::Slot;
use super::{Files, Guest, Qmp, Ran};
use crate::process::Process;
use crate::record::run;
use crate::wait;

#[derive(Debug)]
pub struct Qemu {
    name: String,
    console: Console,
    process: Process,
    dir: PathBuf,
    /// Not while a guest is still to come.
    slot: Option<Slot>,
}

/// Bytes a second of a migration: slow enough that the guest runs on for seconds, and its pages are copied again and again.
const BANDWIDTH: u64 = 24 << 20;
/// Milliseconds for which the guest may run on neither side.
const DOWNTIME: u64 = 100;
/// 256 MiB and a little: QEMU before 9.0 loses pages of a guest that TCG runs when it migrates memory of a multiple of 256 KiB.
/// There it takes dirty bits 64 at a time and leaves the processor's TLB as it is, so that the next write to such a page
/// goes unseen (mended by "physmem: Fix migration dirty bitmap coherency with TCG memory access").
const MEMORY_KIB: u64 = (256 << 10) + 8;

/// Who tells the network where a guest is that was migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcer {
    /// The guest's driver (VIRTIO_NET_F_GUEST_ANNOUNCE).
    Guest,
    /// The switch, by RARP.
    Switch,
}

/// How a machine differs from the usual one.
#[derive(Clone, Copy, Debug)]
struct Machine<'a> {
    /// Options of the cards' sockets.
    socket: &'static str,
    announcer: Announcer,
    /// Where a guest is to come from.
    incoming: Option<&'static str>,
    /// What its kernel is told, and what the guest has, beside the usual.
    host: Option<(&'a str, &'a Files)>,
}

impl Default for Machine<'_> {
    fn default() -> Self {
        Self { socket: ",reconnect=1", announcer: Announcer::Guest, incoming: None, host: None }
    }
}

/// What QEMU says of a migration.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// How long the guest ran on neither side.
    pub downtime: Duration,
    pub total: Duration,
    /// How often the dirty log was fetched.
    pub rounds: u64,
    pub bytes: u64,
    /// How long the machine stood still while both memories were compared.
    pub comparing: Duration,
}

/// A network card: its port's socket, its MAC, its pairs of queues.
#[derive(Clone, Copy, Debug)]
pub struct Nic<'a> {
    pub socket: &'a Path,
    pub mac: MacAddr,
    pub queue_pairs: u16,
    /// The driver may use packed rings; Linux's then does.
    pub packed: bool,
}

impl<'a> Nic<'a> {
    /// With one pair of queues and split rings.
    #[must_use]
    pub fn new(socket: &'a Path, mac: MacAddr) -> Self {
        Self { socket, mac, queue_pairs: 1, packed: false }
    }
}

impl Qemu {
    /// Boot with these cards; returns when the agent answers. Waits for a free slot first. There
    /// is a processor for every pair of queues, since Linux uses no more pairs than processors.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn start(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, &Machine::default())
    }

    /// Like [`Self::start`], with QEMU listening on the cards' sockets.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn listening(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, &Machine { socket: ",server=on,wait=off", ..Machine::default() })
    }

    /// Like [`Self::start`], with cards that are lost for good when their connection ends.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn start_without_reconnect(name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        Self::boot(name, nics, &Machine { socket: "", ..Machine::default() })
    }

    /// Like [`Self::start`], for [`Self::migrate`].
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn announced_by(
        announcer: Announcer,
        name: &str,
        nics: &[Nic<'_>],
    ) -> anyhow::Result<Self> {
        Self::boot(name, nics, &Machine { announcer, ..Machine::default() })
    }

    /// A machine without a guest, for [`Self::migrate`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn incoming(announcer: Announcer, name: &str, nics: &[Nic<'_>]) -> anyhow::Result<Self> {
        let incoming = Some("unix:migration");
        Self::power_on(name, nics, &Machine { announcer, incoming, ..Machine::default() })
    }

    /// A machine without cards, on which these files are and whose kernel is told this; it has two processors.
    ///
    /// # Errors
    /// When the kernel does not come up within two minutes.
    pub fn host(name: &str, kernel: &str, files: &Files) -> anyhow::Result<Self> {
        Self::boot(name, &[], &Machine { host: Some((kernel, files)), ..Machine::default() })
    }

    fn boot(name: &str, nics: &[Nic<'_>], machine: &Machine<'_>) -> anyhow::Result<Self> {
        let slot = Slot::take()?;
        let mut qemu = Self::power_on(name, nics, machine)?;
        qemu.slot = Some(slot);
        qemu.console.ready(Duration::from_secs(120)).with_context(|| {
            format!("booting {name} ({:?}; {})", qemu.process.ended(), qemu.process.log().trim())
        })?;
        qemu.run(&format!("hostname {name}"))?;
        Ok(qemu)
    }

    fn power_on(name: &str, nics: &[Nic<'_>], machine: &Machine<'_>) -> anyhow::Result<Self> {
        let dir = run().directory(name);
        let processors = nics.iter().map(|nic| nic.queue_pairs).max().unwrap_or(2);
        let initramfs = super::super::asset("qemu.initramfs")?;
        let (words, initramfs) = match machine.host {
            Some((words, files)) => (words, files.initramfs(&initramfs)?),
            None => ("", initramfs),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-smp", &processors.to_string()])
            .args(["-M", "pc,accel=tcg,memory-backend=m"])
            .args(["-m", &format!("{MEMORY_KIB}k"), "-object"])
            .arg(format!("memory-backend-memfd,id=m,size={MEMORY_KIB}k,share=on"))
            .args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio"])
            .args(["-monitor", "none", "-qmp", "unix:qmp,server=on,wait=off"])
            .args(machine.incoming.iter().flat_map(|from| ["-S", "-incoming", from]))
            .current_dir(&dir)
            .arg("-kernel")
            .arg(super::super::asset("vmlinuz")?)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!("console=ttyS0 rdinit=/init quiet panic=-1 {words}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let switch = |on| if on { "on" } else { "off" };
        for (n, nic) in nics.iter().enumerate() {
            let queues = nic.queue_pairs;
            command
                .arg("-chardev")
                .arg(format!("socket,id=c{n},path={}{}", nic.socket.display(), machine.socket))
                .arg("-netdev")
                .arg(format!("vhost-user,id=n{n},chardev=c{n},queues={queues}"))
                .arg("-device")
                // MSI-X with vhost-user crashes this QEMU under TCG.
                .arg(format!(
                    "virtio-net-pci,id=nic{n},netdev=n{n},mac={},romfile=,vectors=0,mq={},packed={},guest_announce={}",
                    nic.mac,
                    switch(queues > 1),
                    switch(nic.packed),
                    switch(machine.announcer == Announcer::Guest)
                ));
        }
        let mut process = Process::start(name, command, &dir)?;
        let pipes = process.take_pipes().context("pipes")?;
        let console = Console::new(pipes, &dir.join("console"))?;
        Ok(Self { name: name.to_owned(), console, process, dir, slot: None })
    }

    /// Moves the running guest to a machine made by [`Self::incoming`] with the same cards; it goes on there, and its
    /// console with it. Nothing may be running on the console.
    ///
    /// # Errors
    /// With QEMU's words when it fails; when the guest's memory did not come as it was.
    pub fn migrate(&mut self, to: &mut Self) -> anyhow::Result<Migration> {
        let mut source = Qmp::connect(&self.dir.join("qmp"))?;
        let mut destination = Qmp::connect(&to.dir.join("qmp"))?;
        let limits = json!({ "max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME });
        source.execute("migrate-set-parameters", &limits)?;
        let uri = format!("unix:{}", to.dir.join("migration").display());
        source.execute("migrate", &json!({ "uri": uri }))?;
        let mut info = Value::Null;
        wait::until("the migration to end", Duration::from_secs(180), || {
            info = source.execute("query-migrate", &json!({})).unwrap_or_else(
                |error| json!({ "status": "failed", "error-desc": error.to_string() }),
            );
            matches!(info["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        })
        .with_context(|| info.to_string())?;
        if info["status"] != "completed" {
            bail!("migrating {}: {info}\n{}\n{}", self.name, self.process.log(), to.process.log());
        }
        wait::until("the guest to have come", Duration::from_secs(60), || {
            let status = destination.execute("query-status", &json!({}));
            status.is_ok_and(|status| status["status"] == "paused")
        })?;
        let compared = Instant::now();
        let lost = different_pages(&self.memory()?, &to.memory()?)?;
        let comparing = compared.elapsed();
        ensure!(
            lost == 0,
            "{lost} pages did not come as they were: is all logged that is written?"
        );
        destination.execute("cont", &json!({}))?;
        to.slot = self.slot.take();
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(Migration {
            downtime: Duration::from_millis(number(&info["downtime"])),
            total: Duration::from_millis(number(&info["total-time"])),
            rounds: number(&info["ram"]["dirty-sync-count"]),
            bytes: number(&info["ram"]["transferred"]),
            comparing,
        })
    }

    /// The guest's memory, which is a file that QEMU has open.
    fn memory(&self) -> anyhow::Result<File> {
        let dir = format!("/proc/{}/fd", self.process.id());
        for entry in std::fs::read_dir(&dir).context("QEMU's descriptors")? {
            let path = entry?.path();
            let is_memory = |to: PathBuf| to.to_string_lossy().contains("memfd:memory-backend");
            if std::fs::read_link(&path).is_ok_and(is_memory) {
                return File::open(&path).context("the guest's memory");
            }
        }
        bail!("{dir} has no memory");
    }

    /// # Errors
    /// When QEMU does not answer on its monitor.
    pub fn monitor(&self) -> anyhow::Result<Qmp> {
        Qmp::connect(&self.dir.join("qmp"))
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// How many pages of two files of one length differ.
fn different_pages(one: &File, other: &File) -> anyhow::Result<usize> {
    const PIECE: usize = 64 << 10;
    let len = one.metadata()?.len();
    let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
    let mut different = 0;
    for at in (0..len).step_by(PIECE) {
        let piece = PIECE.min(usize::try_from(len - at)?);
        ours.truncate(piece);
        theirs.truncate(piece);
        one.read_exact_at(&mut ours, at)?;
        other.read_exact_at(&mut theirs, at)?;
        if ours != theirs {
            let pages = ours.chunks(4096).zip(theirs.chunks(4096));
            different += pages.filter(|(ours, theirs)| ours != theirs).count();
        }
    }
    Ok(different)
}

impl Guest for Qemu {
    fn name(&self) -> &str {
        &self.name
    }

    fn sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<Ran> {
        self.console.sh(command, limit)
    }
}
