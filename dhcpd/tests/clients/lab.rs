//! Two namespaces joined by a veth: the test's own with the server, and one for clients.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::{ip, run, wait_for};

pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    holder: Child,
    server: Option<Child>,
}

/// Server 10.77.0.1/16 on `s0`; 10.77.1.0 to 10.77.250.255 for anybody.
pub(crate) const CONFIG: &str = r#"
interface = "s0"
lease_file = "DIR/leases"
domain = "net77.test"
[dhcp4]
address = "10.77.0.1/16"
ranges = [{ start = "10.77.1.0", end = "10.77.250.255" }]
mtu = 1400
[dns]
local_only = true
forward = false
[[dns.hosts]]
ip = "10.77.0.1"
names = ["gw"]
"#;

impl Lab {
    /// Call inside [`crate::support::isolated`].
    pub(crate) fn new() -> Self {
        // The holder of the clients' namespace ends with this thread, however that ends.
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .expect("setpriv is installed");
        let lab = Self { dir: tempfile::tempdir().expect("a directory"), holder, server: None };
        // The thread's own namespace, not the process's.
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("it is there");
        wait_for("the clients' namespace", || {
            std::fs::read_link(lab.namespace()).ok().filter(|theirs| *theirs != own)
        });
        ip(&format!("link add s0 type veth peer name c0 netns {}", lab.holder.id()));
        ip("addr add 10.77.0.1/16 dev s0");
        ip("link set s0 up");
        lab.client("ip", &["link", "set", "lo", "up"]);
        lab.client("ip", &["link", "set", "c0", "up"]);
        lab
    }

    pub(crate) fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program in the clients' namespace.
    pub(crate) fn client_command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg(program).args(words);
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) fn client(&self, program: &str, words: &[&str]) -> Output {
        run(&mut self.client_command(program, words))
    }

    /// What `dig +short` prints.
    pub(crate) fn dig(&self, words: &[&str]) -> String {
        let words = [&["@10.77.0.1", "+short", "+tries=2", "+time=5"], words].concat();
        let output = self.client("dig", &words);
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    pub(crate) fn write_config(&self, text: &str) -> PathBuf {
        let path = self.path("config.toml");
        let text = text.replace("DIR", self.dir.path().to_str().expect("text"));
        std::fs::write(&path, text).expect("it can be written");
        path
    }

    pub(crate) fn program(&self, config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netloom-dhcpd"));
        command.arg("--config").arg(config).env_remove("RUST_BACKTRACE");
        command
    }

    /// Starts the server, and waits until it serves.
    pub(crate) fn start(&mut self, config: &str) {
        let config = self.write_config(config);
        let log = self.path("log");
        let file = File::create(&log).expect("it can be written");
        let server = self.program(&config).stderr(file).spawn().expect("it starts");
        self.server = Some(server);
        wait_for("the server", || self.log().contains("serving").then_some(()));
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let server = self.server.as_ref().expect("it runs");
        run(Command::new("kill").args([signal, &server.id().to_string()]));
    }

    /// Sends a signal that ends the server; its exit status.
    pub(crate) fn end(&mut self, signal: &str) -> std::process::ExitStatus {
        self.signal(signal);
        self.server.take().expect("it runs").wait().expect("it is ours")
    }

    /// Moves the calling thread into the clients' namespace.
    pub(crate) fn enter(namespace: &Path) {
        let file = File::open(namespace).expect("it is there");
        // SAFETY: it changes the network namespace of this thread, on which nothing else relies.
        let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
        if let Some(mut child) = self.server.take() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
