//! QEMU migrates a running guest from one port to another, under load: what is on its way arrives whole, the switches learn the
//! new place, and the outage is measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::capture::Capture;
use netns_tests::guest::qemu::{Announcer, Nic};
use netns_tests::guest::{Guest, Namespace, Qemu};
use netns_tests::pinger::Pinger;
use netns_tests::{Daemon, Netns, wait};
use wire::MacAddr;
use wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_RARP};

const NETWORK: &str = "<network><name>lan</name></network>";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 9, 2]);
/// To the guest and from it.
const PORTS: [u16; 2] = [5000, 5001];
const LIMIT: Duration = Duration::from_secs(120);

/// `md5sum` of what is written into it.
struct Sum {
    child: Child,
    stdin: ChildStdin,
}

impl Sum {
    fn new() -> anyhow::Result<Self> {
        let mut child =
            Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        Ok(Self { child, stdin })
    }

    fn finish(self) -> anyhow::Result<String> {
        drop(self.stdin);
        let output = self.child.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// A stream between the peer and the guest, in both directions at once.
struct Load {
    stop: Arc<AtomicBool>,
    down: JoinHandle<anyhow::Result<(String, u64)>>,
    up: JoinHandle<anyhow::Result<(String, u64)>>,
}

impl Load {
    /// The guest sums what it receives, and what it sends; so does the peer.
    fn start(peer: &Namespace, guest: &mut Qemu) -> anyhow::Result<Self> {
        let [to_guest, from_guest] = PORTS;
        let listener = peer
            .netns()
            .enter(move || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, from_guest))?))?;
        guest.run(&format!(
            "mkfifo /tmp/pipe; cd /tmp; \
             (sleep 1000 | nc -l -p {to_guest} | {{ md5sum >down; mv down down.sum; }}) >/dev/null 2>&1 & \
             ({{ md5sum <pipe >up; mv up up.sum; }} & \
              while [ ! -e stop ]; do head -c 32768 /dev/urandom; done | tee pipe | nc {PEER} {from_guest}) \
              >/dev/null 2>&1 & \
             sleep 1"
        ))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let stream = peer.netns().enter(move || Ok(TcpStream::connect((GUEST, to_guest))?))?;
        let down = std::thread::spawn(move || send(stream, &stopped));
        let up = std::thread::spawn(move || receive(&listener));
        Ok(Self { stop, down, up })
    }

    /// Both streams end; what came is what was sent, or else memory was lost on the way. Returns the bytes.
    fn finish(self, guest: &mut Qemu) -> anyhow::Result<[u64; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        guest.run("touch /tmp/stop")?;
        let panicked = |_| anyhow::anyhow!("a stream panicked");
        let (sent, down) = self.down.join().map_err(panicked)??;
        let (received, up) = self.up.join().map_err(panicked)??;
        for (name, ours) in [("down", &sent), ("up", &received)] {
            let wait = format!(
                "for n in $(seq 300); do [ -e /tmp/{name}.sum ] && break; sleep 0.1; done; cat /tmp/{name}.sum"
            );
            let theirs = guest.sh(&wait, LIMIT)?.text;
            ensure!(theirs.trim() == ours, "{name}: the peer has {ours}, the guest {theirs}");
        }
        Ok([down, up])
    }
}

/// Some megabytes a second, never twice the same block.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> anyhow::Result<(String, u64)> {
    let mut sum = Sum::new()?;
    let mut state = 1_u64;
    let mut bytes = 0;
    while !stop.load(Ordering::Relaxed) {
        let block: Vec<u8> = (0..8192)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .collect();
        stream.write_all(&block)?;
        sum.stdin.write_all(&block)?;
        bytes += block.len() as u64;
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let sum = sum.finish()?;
    // The guest's end hangs up when it has all.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let _ = stream.read(&mut [0]);
    Ok((sum, bytes))
}

fn receive(listener: &TcpListener) -> anyhow::Result<(String, u64)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut sum = Sum::new()?;
    let mut bytes = 0;
    let mut block = [0; 65_536];
    loop {
        let n = stream.read(&mut block)?;
        if n == 0 {
            return Ok((sum.finish()?, bytes));
        }
        bytes += n as u64;
        sum.stdin.write_all(&block[..n])?;
    }
}

/// The port that the switch sends the guest's frames to.
fn place(daemon: &Daemon) -> anyhow::Result<String> {
    let entries: Vec<api::FdbEntry> = daemon.json(&["fdb-show", "lan"])?;
    let found = entries.into_iter().find(|entry| entry.mac == MAC);
    Ok(found.context("the guest is not in the table")?.port)
}

fn power_on(
    daemon: &Daemon,
    name: &str,
    announcer: Announcer,
    start: fn(Announcer, &str, &[Nic<'_>]) -> anyhow::Result<Qemu>,
) -> anyhow::Result<Qemu> {
    let port = daemon.port("lan", name, &[])?;
    let socket = port.socket.as_deref().context("no socket")?;
    start(announcer, name, &[Nic { socket, mac: MAC, queue_pairs: 1 }])
}

/// A broadcast that says where the guest is.
fn is_announcement(frame: &[u8], announcer: Announcer) -> bool {
    let head = frame.get(..12) == Some(&[[0xff; 6], MAC.0].concat());
    head && match announcer {
        // About its own address: the sender's is the target's.
        Announcer::Guest => {
            frame.get(28..32) == Some(&GUEST.octets()) && frame[28..32] == frame[38..42]
        }
        Announcer::Switch => frame.get(20..22) == Some(&[0, 3]),
    }
}

/// One migration at a time: each has two emulated machines, which is as many as two CPUs carry.
fn alone() -> MutexGuard<'static, ()> {
    static STAGE: Mutex<()> = Mutex::new(());
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves a guest from `one` to `two` while a peer behind `one` talks with it.
fn migrate(one: &Daemon, two: &Daemon, announcer: Announcer) -> anyhow::Result<()> {
    let same = std::ptr::eq(one, two);
    let mut peer = Namespace::new("peer")?;
    let netns = peer.netns().name().to_owned();
    one.port("lan", "peer", &["--netns", &netns, "--ifname", "eth0"])?;
    peer.run(&format!("ip link set eth0 up; ip addr add {PEER}/24 dev eth0"))?;
    let mut source = power_on(one, "source", announcer, Qemu::announced_by)?;
    source.run(&format!("ip link set eth0 up; ip addr add {GUEST}/24 dev eth0"))?;
    source.ping(&PEER.to_string())?;
    ensure!(place(one)? == "source", "before: {}", place(one)?);

    let mut destination = power_on(two, "destination", announcer, Qemu::incoming)?;
    let load = Load::start(&peer, &mut source)?;
    let ethertype = match announcer {
        Announcer::Guest => ETHERTYPE_ARP,
        Announcer::Switch => ETHERTYPE_RARP,
    };
    let announcements = Capture::only(peer.netns(), "eth0", ethertype)?;
    let ping = || Pinger::start(peer.netns(), GUEST, Duration::from_millis(10));
    // What the machine's own hesitation comes to.
    let before = ping()?;
    std::thread::sleep(Duration::from_secs(5));
    let before = before.finish()?;
    let pinger = ping()?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let migration = source.migrate(&mut destination)?;
    wait::until("an announcement of the guest's new place", Duration::from_secs(20), || {
        announcements.frames().iter().any(|frame| is_announcement(frame, announcer))
    })?;
    wait::until("the switches to learn where the guest is", Duration::from_secs(10), || {
        let here = if same { "destination" } else { "uplink" };
        place(one).is_ok_and(|port| port == here)
            && place(two).is_ok_and(|port| port == "destination")
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let report = pinger.finish()?;
    let took = start.elapsed();
    let [down, up] = load.finish(&mut destination)?;
    destination.ping(&PEER.to_string())?;
    println!(
        "{}: QEMU says {} ms down, {} ms in all, {} rounds, {} MiB; pings: {} of {} answered, longest silence {} ms ({} ms before); \
         streams: {} KiB to the guest, {} KiB from it in {} ms, whole",
        if same { "one switch" } else { "two switches" },
        migration.downtime.as_millis(),
        migration.total.as_millis(),
        migration.rounds,
        migration.bytes >> 20,
        report.received,
        report.sent,
        report.silence.as_millis(),
        before.silence.as_millis(),
        down >> 10,
        up >> 10,
        took.as_millis(),
    );
    ensure!(migration.rounds > 1, "the guest was not running while it was copied: {migration:?}");
    ensure!(down > 0 && up > 0 && report.received > 0, "nothing moved: {report:?}");
    for (daemon, port) in [(one, "source"), (two, "destination")] {
        let info: api::PortInfo = daemon.json(&["port-info", port])?;
        ensure!(info.state != api::PortState::Quarantined && info.reason.is_none(), "{info:?}");
    }
    Ok(())
}

#[test]
fn between_two_ports_of_a_switch() -> anyhow::Result<()> {
    let _alone = alone();
    let host = Arc::new(Netns::new("host")?);
    let daemon = Daemon::start(&host, "lab", "")?;
    daemon.network("lan", NETWORK)?;
    migrate(&daemon, &daemon, Announcer::Guest)
}

#[test]
fn between_two_switches() -> anyhow::Result<()> {
    let _alone = alone();
    let (first, second) = (Arc::new(Netns::new("first")?), Arc::new(Netns::new("second")?));
    first.join("wire", &second, "wire")?;
    let one = Daemon::start(&first, "one", "")?;
    let two = Daemon::start(&second, "two", "")?;
    for daemon in [&one, &two] {
        daemon.network("lan", NETWORK)?;
        daemon.port("lan", "uplink", &["--dev", "wire"])?;
    }
    migrate(&one, &two, Announcer::Switch)
}
