//! The record of a run: what it made outside its own memory, so that it can be removed even when
//! the run was killed.
//!
//! Each process that uses the lab has one directory `/tmp/netloom-lab/PID.START` with a file
//! `record` of lines `netns NAME`, `cgroup NAME`, `process PID START` and `hugepages COUNT`. `START` is the start time from
//! `/proc/PID/stat`, so that a reused process id is never mistaken for ours.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

const BASE: &str = "/tmp/netloom-lab";

/// This process's run.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    record: Mutex<File>,
    keep: AtomicBool,
    next: AtomicU32,
}

static RUN: OnceLock<Run> = OnceLock::new();

/// The run of this process, made at first use; Ctrl-C removes what it recorded.
///
/// # Panics
/// When `/tmp/netloom-lab` cannot be written: nothing in the lab works then.
pub fn run() -> &'static Run {
    RUN.get_or_init(|| {
        let pid = std::process::id();
        let start = start_time(pid).expect("/proc is mounted");
        let dir = Path::new(BASE).join(format!("{pid}.{start}"));
        fs::create_dir_all(&dir).expect("/tmp is writable");
        let record = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("record"))
            .expect("/tmp is writable");
        // Tests of one binary share the handler; a second registration in it is not possible.
        let _ = ctrlc::set_handler(|| {
            if let Some(run) = RUN.get() {
                let _ = remove(&run.dir);
            }
            std::process::exit(130);
        });
        Run {
            dir,
            record: Mutex::new(record),
            keep: AtomicBool::new(false),
            next: AtomicU32::new(0),
        }
    })
}

impl Run {
    /// A new directory of this run; its name starts with `name`.
    ///
    /// # Panics
    /// When the directory cannot be made.
    pub fn directory(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(format!("{name}.{}", self.number()));
        fs::create_dir_all(&dir).expect("the run's directory is writable");
        dir
    }

    /// A number no other value of this run has.
    pub fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Keep consoles, logs and captures after the run.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Remember how many 2 MiB pages there were before this run set some aside; `None`: they are put
    /// back already.
    pub fn hugepages(&self, before: Option<u64>) {
        self.add(&format!("hugepages {}", before.map_or("done".to_owned(), |n| n.to_string())));
    }

    pub(crate) fn add(&self, line: &str) {
        let mut record = self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = writeln!(record, "{line}");
    }

    /// Called as a value goes away; a panic keeps the run's directory.
    pub(crate) fn leave(&self) {
        if std::thread::panicking() {
            self.keep();
            eprintln!("consoles, logs and captures are kept in {}", self.dir.display());
        }
    }

    /// Remove the directory now; called by programs that end in good order.
    pub fn finish(&self) {
        if !self.keep.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Start time of a process in clock ticks, field 22 of `/proc/PID/stat`.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; fields are counted from its end.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Remove what runs of dead processes recorded; returns what was removed.
///
/// # Errors
/// When the base directory cannot be read.
pub fn remove_stale() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(runs) = fs::read_dir(BASE) else { return Ok(removed) };
    for run in runs {
        let run = run.context(BASE)?;
        let name = run.file_name().to_string_lossy().into_owned();
        let Some((pid, start)) = name.split_once('.') else { continue };
        let (Ok(pid), Ok(start)) = (pid.parse::<u32>(), start.parse::<u64>()) else { continue };
        if start_time(pid) != Some(start) {
            removed.extend(remove(&run.path()));
        }
    }
    Ok(removed)
}

fn remove(dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    let record = fs::read_to_string(dir.join("record")).unwrap_or_default();
    let mut hugepages = None;
    for line in record.lines().rev() {
        let mut words = line.split_whitespace();
        let done = match (words.next(), words.next(), words.next()) {
            (Some("process"), Some(pid), Some(start)) => end_process(pid, start),
            (Some("netns"), Some(name), None) => delete_netns(name),
            (Some("cgroup"), Some(name), None) => delete_cgroup(name),
            // Of several lines the last one counts; all processes have ended before it.
            (Some("hugepages"), Some(count), None) => {
                hugepages.get_or_insert(count);
                false
            }
            _ => false,
        };
        if done {
            removed.push(line.to_owned());
        }
    }
    if let Some(Ok(count)) = hugepages.map(str::parse::<u64>)
        && fs::write("/proc/sys/vm/nr_hugepages", count.to_string()).is_ok()
    {
        removed.push(format!("hugepages beyond {count}"));
    }
    if fs::remove_dir_all(dir).is_ok() {
        removed.push(format!("directory {}", dir.display()));
    }
    removed
}

fn end_process(pid: &str, start: &str) -> bool {
    let (Ok(raw), Ok(start)) = (pid.parse::<u32>(), start.parse::<u64>()) else { return false };
    let Some(pid) = i32::try_from(raw).ok().and_then(Pid::from_raw) else { return false };
    start_time(raw) == Some(start) && kill_process(pid, Signal::KILL).is_ok()
}

/// Removes a control group below the root and those in it, when no process is in them.
pub(crate) fn delete_cgroup(name: &str) -> bool {
    const REMOVE: &str = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/groups && \
                          mount -t cgroup2 cgroup2 /mnt/groups && cd /mnt/groups && \
                          { [ ! -e \"$1\" ] || find \"$1\" -depth -type d -exec rmdir {} +; }";
    Command::new("unshare")
        .args(["--mount", "sh", "-c", REMOVE, "sh", name])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn delete_netns(name: &str) -> bool {
    let _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
    Path::new("/run/netns").join(name).exists()
        && Command::new("ip")
            .args(["netns", "delete", name])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}
