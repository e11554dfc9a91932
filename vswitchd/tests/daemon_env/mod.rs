//! A daemon under test: the built binary, started in the test's own machine, and HTTP on its
//! socket.

#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for something that must come.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls until `condition` gives a value.
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `vswitchd` with these arguments, which dies with the test's thread.
pub fn vswitchd(instance: &str, root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswitchd"));
    command.arg("--instance").arg(instance).arg("--root").arg(root);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("NETLOOM_")) {
        command.env_remove(key);
    }
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// A running daemon. Killed when dropped, without any clean-up of its own.
#[derive(Debug)]
pub struct Daemon {
    pub instance: String,
    pub root: PathBuf,
    child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of instance {}:\n{}", self.instance, self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts it and waits until it serves.
    pub fn start(instance: &str, root: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(root.join(format!("{instance}.log")))
            .expect("log file");
        let child = vswitchd(instance, root).stderr(log).spawn().expect("vswitchd starts");
        let mut daemon = Self { instance: instance.to_owned(), root: root.to_owned(), child };
        wait("the daemon serves", || {
            if let Some(status) = daemon.child.try_wait().expect("wait") {
                panic!("vswitchd ended with {status}:\n{}", daemon.log());
            }
            let pid = daemon.try_get("/v1/instance")?.json()["pid"].as_u64();
            (pid == Some(u64::from(daemon.child.id()))).then_some(())
        });
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join(format!("{}.log", self.instance)))
            .unwrap_or_default()
    }

    fn end(&mut self, signal: libc::c_int) -> ExitStatus {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: the process is our child and was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        wait("the daemon ends", || self.child.try_wait().expect("wait"))
    }

    /// SIGTERM, then a new daemon on the same instance.
    pub fn restart(mut self) -> Self {
        let status = self.end(libc::SIGTERM);
        assert_eq!(status.code(), Some(0), "log:\n{}", self.log());
        Self::start(&self.instance, &self.root)
    }

    /// SIGKILL, then a new daemon on the same instance.
    pub fn crash(mut self) -> Self {
        let status = self.end(libc::SIGKILL);
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        Self::start(&self.instance, &self.root)
    }

    /// SIGTERM; returns how long the end took.
    pub fn stop(mut self) -> Duration {
        let begun = Instant::now();
        assert_eq!(self.end(libc::SIGTERM).code(), Some(0));
        begun.elapsed()
    }

    pub fn instance(&self) -> api::Instance {
        api::Instance::new(&self.instance, &self.root).expect("instance")
    }

    pub fn connect(&self) -> Option<UnixStream> {
        let stream = UnixStream::connect(self.instance().api_socket()).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        Some(stream)
    }

    fn try_get(&self, path: &str) -> Option<Response> {
        let mut stream = self.connect()?;
        send(&mut stream, "GET", path, &[], b"").ok()?;
        Response::read(stream)
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut stream = self.connect().expect("the daemon listens");
        // A body that is refused early may not be taken to its end.
        let sent = send(&mut stream, method, path, headers, body);
        Response::read(stream).unwrap_or_else(|| panic!("no answer to {method} {path}: {sent:?}"))
    }

    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, &[], b"").ok(path)
    }

    pub fn text(&self, path: &str) -> String {
        let response = self.request("GET", path, &[], b"");
        assert_eq!(response.status, 200, "{path}");
        String::from_utf8(response.body).expect("UTF-8")
    }

    pub fn post(&self, path: &str, body: &str) -> Value {
        self.request("POST", path, &[], body.as_bytes()).ok(path)
    }

    pub fn put(&self, path: &str, body: &str) -> Value {
        self.request("PUT", path, &[], body.as_bytes()).ok(path)
    }

    pub fn delete(&self, path: &str) {
        self.request("DELETE", path, &[], b"").ok(path);
    }

    /// The problem that this request ends in.
    pub fn refused(&self, method: &str, path: &str, body: &str) -> api::Problem {
        self.request(method, path, &[], body.as_bytes()).problem()
    }

    /// Events after `since`, as they come.
    pub fn events(&self, since: u64) -> impl Iterator<Item = Value> + use<> {
        let mut stream = self.connect().expect("the daemon listens");
        send(&mut stream, "GET", &format!("/v1/events?since={since}"), &[], b"").expect("sent");
        BufReader::new(stream).lines().map_while(Result::ok).filter_map(|line| {
            let data = line.strip_prefix("data: ")?;
            Some(serde_json::from_str(data).expect("an event is JSON"))
        })
    }
}

fn send(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// What came back.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    fn read(mut stream: UnixStream) -> Option<Self> {
        let mut bytes = Vec::new();
        // A connection that is reset after the answer has still given the answer.
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, body: bytes[end + 4..].to_vec() })
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn ok(&self, what: &str) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{what}: {} {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    pub fn problem(&self) -> api::Problem {
        assert!(self.head.to_lowercase().contains("application/problem+json"), "{}", self.head);
        let problem: api::Problem = serde_json::from_slice(&self.body).expect("a problem document");
        assert_eq!(problem.status, self.status);
        problem
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A NAT network with DHCP on this third octet of 10.77.
pub fn nat(name: &str, octet: u8) -> String {
    format!(
        "<network><name>{name}</name><forward mode='nat'/><ip address='10.77.{octet}.1' \
         prefix='24'><dhcp><range start='10.77.{octet}.10' end='10.77.{octet}.99'/></dhcp></ip>\
         </network>"
    )
}

/// Processes a child until it ends, at most for the deadline.
pub fn finish(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
    let mut stderr = child.stderr.take().expect("piped");
    let status = wait("the command ends", || child.try_wait().expect("wait"));
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("UTF-8");
    (status, text)
}
