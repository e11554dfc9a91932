//! A private machine for one test: its own network and mount namespaces in a thread, with an
//! empty `/run`. The kernel removes everything when the thread (and what it opened) is gone, so
//! tests can run side by side and leave nothing, whatever happens.

#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(dead_code, reason = "each test file uses its own part of the lab")]

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{CpuSet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use vswitchd::host::Host;

/// Longest wait for something that must come.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Runs a test in its own machine, on a runtime whose threads are in it too.
pub fn machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only namespaces are unshared, no memory or file descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
            .expect("tests of the host module need root");
        pin();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        rustix::mount::mount("none", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
        std::fs::create_dir("/run/netns").unwrap();
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Keeps the test on one processor, so that packets are handled in the order in which they were
/// sent, also where they cross namespaces.
fn pin() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let mut own = CpuSet::new();
    own.set(processors[NEXT.fetch_add(1, Ordering::Relaxed) % processors.len()]);
    rustix::thread::sched_setaffinity(None, &own).unwrap();
}

/// The host module for instance `name`, in the test's machine.
pub fn host(name: &str) -> Host {
    Host::new(api::Instance::new(name, "/").unwrap()).unwrap()
}

/// Runs `ip` commands, one per line; each must succeed.
pub fn ip(commands: &str) {
    feed("ip", &["-batch", "-"], commands);
}

/// Runs one command and returns its output; it must succeed.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Loads a ruleset in nft's own language.
pub fn nft(ruleset: &str) {
    feed("nft", &["-f", "-"], ruleset);
}

fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {stderr}\n{input}");
}

/// Polls until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs `work` in a namespace of the machine made by `ip netns add`; sockets that it opens stay
/// there.
pub fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{netns}")).unwrap();
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn udp(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("bind {address}: {e}"));
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// What waits in a socket, without waiting.
pub fn drain(socket: &UdpSocket) -> Vec<(String, SocketAddr)> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    let mut received = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        received.push((String::from_utf8_lossy(&buffer[..length]).into_owned(), from));
    }
    socket.set_nonblocking(false).unwrap();
    received
}

/// Everything that arrives in a namespace, before any filter; not what is sent from there.
pub struct Capture(Socket);

impl Capture {
    /// In the calling thread's namespace.
    pub fn open() -> Self {
        const ETH_P_ALL: u16 = 3;
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: the option takes an int, which lives through the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    /// Words of the form `<word …>` in all frames up to the one with `fence`, which must come.
    pub fn words_until(&self, fence: &str) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            let length = match self.0.recv(&mut buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("no {fence} came: {e}"),
            };
            // SAFETY: recv has written this many bytes.
            let frame: Vec<u8> =
                buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            let text = String::from_utf8_lossy(&frame);
            let word = text.split_once("<word ").and_then(|(_, rest)| rest.split_once('>'));
            if let Some((word, _)) = word {
                if word == fence {
                    return words;
                }
                words.insert(word.to_owned());
            }
        }
    }
}

/// A guest (or the outside): a namespace joined by a veth to an interface of the machine.
pub struct Station {
    pub name: &'static str,
    /// The machine's side.
    pub gateway: [IpAddr; 2],
    pub address: [IpAddr; 2],
    pub capture: Capture,
    /// Where it is reached: [`PORT`] of each address.
    pub servers: [UdpSocket; 2],
    /// From where it sends.
    pub clients: [UdpSocket; 2],
    /// Port 53 of the machine's side.
    pub served: [UdpSocket; 2],
}

pub const PORT: u16 = 4000;

impl Station {
    /// Station number `n`, in 10.N.0.0/24 and fd00:N::/64, behind the machine's interface
    /// `gateway`. Neighbours are static, so that no packet waits for resolution.
    pub fn new(name: &'static str, gateway: &str, n: u8) -> Self {
        let (near, far) = (format!("52:54:00:00:{n:02x}:01"), format!("52:54:00:00:{n:02x}:02"));
        ip(&format!(
            "netns add {name}
             link add name {gateway} address {near} type veth peer name eth0 address {far} netns {name}
             link set dev {gateway} up
             addr add 10.{n}.0.1/24 dev {gateway}
             addr add fd00:{n}::1/64 dev {gateway} nodad
             neigh replace 10.{n}.0.2 lladdr {far} dev {gateway} nud permanent
             neigh replace fd00:{n}::2 lladdr {far} dev {gateway} nud permanent"
        ));
        inside(name, || {
            ip(&format!(
                "link set lo up
                 link set eth0 up
                 addr add 10.{n}.0.2/24 dev eth0
                 addr add fd00:{n}::2/64 dev eth0 nodad
                 neigh replace 10.{n}.0.1 lladdr {near} dev eth0 nud permanent
                 neigh replace fd00:{n}::1 lladdr {near} dev eth0 nud permanent
                 route add default via 10.{n}.0.1
                 route add default via fd00:{n}::1"
            ));
        });
        // Until the kernel has seen the carrier of both ends it drops what is sent.
        let up = |link: &str| run(&format!("ip -o link show dev {link}")).contains(" state UP ");
        let deadline = Instant::now() + DEADLINE;
        while !up(gateway) || !inside(name, || up("eth0")) {
            assert!(Instant::now() < deadline, "{gateway} has no carrier");
            std::thread::sleep(Duration::from_millis(2));
        }
        let pair = |host: u8| -> [IpAddr; 2] {
            [format!("10.{n}.0.{host}"), format!("fd00:{n}::{host}")].map(|ip| ip.parse().unwrap())
        };
        let (gateway, address) = (pair(1), pair(2));
        let (capture, servers, clients) = inside(name, || {
            let bind = |port| address.map(|ip| udp(SocketAddr::new(ip, port)));
            (Capture::open(), bind(PORT), bind(PORT + 1))
        });
        let served = gateway.map(|ip| udp(SocketAddr::new(ip, 53)));
        for family in [0, 1] {
            meet(&clients[family], &served[family]);
            meet(&served[family], &servers[family]);
        }
        Self { name, gateway, address, capture, servers, clients, served }
    }

    /// Sends `<word …>`, as a client.
    pub fn send(&self, family: usize, to: SocketAddr, word: &str) {
        send(&self.clients[family], to, word);
    }

    /// Returns when the machine has handled everything that this station sent, with what else
    /// its port 53 heard before.
    pub fn settle(&self) -> Vec<String> {
        let mut heard = Vec::new();
        for family in [0, 1] {
            let to = SocketAddr::new(self.gateway[family], 53);
            self.send(family, to, "settle");
            let mut buffer = [0; 64];
            loop {
                let (length, _) = self.served[family]
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|e| panic!("{}: port 53 does not answer: {e}", self.name));
                match &buffer[..length] {
                    b"<word settle>" => break,
                    other => heard.push(String::from_utf8_lossy(other).into_owned()),
                }
            }
        }
        heard
    }

    /// What came to this station before a mark that the machine sends now.
    pub fn captured(&self) -> BTreeSet<String> {
        for family in [0, 1] {
            let to = SocketAddr::new(self.address[family], 9);
            self.served[family].send_to(b"<word fence>", to).unwrap();
        }
        let mut words = self.capture.words_until("fence");
        words.extend(self.capture.words_until("fence"));
        words
    }
}

/// Returns when one socket hears the other: addresses and routes of a new link take a moment.
fn meet(from: &UdpSocket, to: &UdpSocket) {
    let deadline = Instant::now() + DEADLINE;
    to.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while {
        send(from, to.local_addr().unwrap(), "hello");
        to.recv_from(&mut [0; 64]).is_err()
    } {
        assert!(Instant::now() < deadline, "{from:?} does not reach {to:?}");
    }
    drain(to);
    to.set_read_timeout(Some(DEADLINE)).unwrap();
}

/// Sends `<word …>`.
pub fn send(from: &UdpSocket, to: SocketAddr, word: &str) {
    from.send_to(format!("<word {word}>").as_bytes(), to)
        .unwrap_or_else(|e| panic!("send to {to}: {e}"));
}
