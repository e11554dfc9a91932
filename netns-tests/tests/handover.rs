//! A new daemon goes on where another one was: guests keep their devices, also those that cannot reconnect.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::frontend::{Nic, Options, Probe, Report};
use netns_tests::guest::qemu::Nic as Card;
use netns_tests::guest::{Guest, Namespace, Qemu, Uml};
use netns_tests::systemd::Systemd;
use netns_tests::testpmd::Testpmd;
use netns_tests::topology::INET;
use netns_tests::{Daemon, Lab, Netns, document, wait};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use wire::MacAddr;

const NETWORK: &str = "<network>
  <name>lan</name>
  <forward mode='nat'/>
  <bridge name='lan0'/>
  <domain name='lan.test'/>
  <dns><host ip='10.7.0.9'><hostname>fixed</hostname></host></dns>
  <ip address='10.7.0.1' netmask='255.255.0.0'>
    <dhcp><range start='10.7.1.1' end='10.7.100.250'/></dhcp>
  </ip>
</network>";

const LIMIT: Duration = Duration::from_secs(20);
const FIRST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SECOND: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Frames per second that measure the gap.
const RATE: u32 = 10_000;

#[derive(Clone, Copy, Debug)]
enum Carrier {
    /// Between two daemons that run.
    Direct,
    /// Through systemd's store, while none runs.
    Store,
}

impl Carrier {
    const BOTH: [Self; 2] = [Self::Direct, Self::Store];

    /// The systemd that the daemon is under from now on, if any.
    fn prepare(self, daemon: &mut Daemon) -> anyhow::Result<Option<Systemd>> {
        let Self::Store = self else { return Ok(None) };
        let systemd = Systemd::new(daemon, "")?;
        systemd.unit(&["start"])?;
        Ok(Some(systemd))
    }
}

/// A new daemon in place of the one that runs; returns when it serves.
fn replace(daemon: &mut Daemon, systemd: Option<&Systemd>) -> anyhow::Result<()> {
    let Some(systemd) = systemd else { return daemon.take_over() };
    systemd.unit(&["restart"])?;
    nothing_is_stored(systemd)
}

fn nothing_is_stored(systemd: &Systemd) -> anyhow::Result<()> {
    let kept = systemd.property("NFileDescriptorStore")?;
    ensure!(kept == "0", "{kept} descriptors stay in the store");
    Ok(())
}

/// The number of the daemon's process, as itself sees it.
fn process(daemon: &Daemon) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(daemon.instance().run_dir().join("lock"))?)
}

/// One probe at a time: it wants a CPU now and then.
fn alone() -> MutexGuard<'static, ()> {
    static STAGE: Mutex<()> = Mutex::new(());
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket(port: &api::PortInfo) -> anyhow::Result<PathBuf> {
    port.socket.clone().context("a vhost-user port without a socket")
}

/// Asks the network's DNS server all the time; a closed port or an address that nobody has is an error.
fn resolver(host: &Netns, stop: Arc<std::sync::atomic::AtomicBool>) -> anyhow::Result<Resolver> {
    let socket = host.enter(|| {
        let socket = std::net::UdpSocket::bind("10.7.0.1:0")?;
        socket.connect("10.7.0.1:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    })?;
    Ok(std::thread::spawn(move || {
        // fixed.lan.test, A.
        let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x05fixed\x03lan\x04test\x00\x00\x01\x00\x01");
        let mut asked = 0_u16;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            asked += 1;
            query[..2].copy_from_slice(&asked.to_be_bytes());
            socket.send(&query).context("the DNS server's port is closed")?;
            let mut answer = [0; 512];
            let got = socket.recv(&mut answer).context("no answer of the DNS server")?;
            ensure!(answer[..got].ends_with(&[10, 7, 0, 9]), "{:?}", &answer[..got]);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(asked)
    }))
}

type Resolver = std::thread::JoinHandle<anyhow::Result<u16>>;

#[test]
fn guests_that_cannot_reconnect_go_on() -> anyhow::Result<()> {
    for carrier in Carrier::BOTH {
        guests_go_on(carrier).with_context(|| format!("{carrier:?}"))?;
    }
    Ok(())
}

fn guests_go_on(carrier: Carrier) -> anyhow::Result<()> {
    let _alone = alone();
    let mut lab = Lab::new()?;
    let systemd = carrier.prepare(&mut lab.daemon)?;
    lab.daemon.network("lan", NETWORK)?;
    let uml_port = socket(&lab.daemon.port("lan", "uml", &[])?)?;
    let mut uml = Uml::start("uml", &[&uml_port])?;
    let port = lab.daemon.port("lan", "deb", &[])?;
    let deb_port = socket(&port)?;
    let mut deb = Qemu::start_without_reconnect("deb", &[Card::new(&deb_port, port.mac)])?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    let addresses = [uml.dhcp()?, deb.dhcp()?, ns.dhcp()?].map(|address| address.to_string());
    let carrier_changes = |ns: &mut Namespace| ns.run("cat /sys/class/net/eth0/carrier_changes");
    let changes = carrier_changes(&mut ns)?;
    let stop = Arc::default();
    let resolver = resolver(&lab.host, Arc::clone(&stop))?;
    for round in 1..=4 {
        let before = process(&lab.daemon)?;
        replace(&mut lab.daemon, systemd.as_ref())?;
        ensure!(process(&lab.daemon)? != before, "the same daemon runs on");
        for port in ["uml", "deb", "ns"] {
            lab.daemon.wait_port(port, api::PortState::Up)?;
        }
        let guests: [&mut dyn Guest; 3] = [&mut uml, &mut deb, &mut ns];
        for guest in guests {
            for address in addresses.iter().map(String::as_str).chain([INET]) {
                guest.ping(address).with_context(|| format!("round {round}"))?;
            }
        }
        ensure!(carrier_changes(&mut ns)? == changes, "the TAP has lost its carrier");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let asked = resolver.join().map_err(|_| anyhow::anyhow!("the resolver panicked"))??;
    ensure!(asked > 50, "only {asked} queries");
    // What the daemon knows of the network goes on as well.
    let again = [uml.dhcp()?, deb.dhcp()?, ns.dhcp()?].map(|address| address.to_string());
    ensure!(again == addresses, "{again:?} after {addresses:?}");
    let stats: api::PortStats = lab.daemon.json(&["port-stats", "ns"])?;
    ensure!(stats.rx_packets > 12, "the counters began anew: {stats:?}");
    Ok(())
}

/// Two frontends on ports of an isolated network.
struct World {
    systemd: Option<Systemd>,
    daemon: Daemon,
    sockets: [PathBuf; 2],
    // The namespace outlives the daemon in it.
    _host: Arc<Netns>,
}

fn world(carrier: Carrier) -> anyhow::Result<World> {
    let host = Arc::new(Netns::new("host")?);
    let mut daemon = Daemon::start(&host, "handover", "")?;
    let systemd = carrier.prepare(&mut daemon)?;
    daemon.network("lan", "<network><name>lan</name></network>")?;
    let sockets =
        [socket(&daemon.port("lan", "first", &[])?)?, socket(&daemon.port("lan", "second", &[])?)?];
    Ok(World { systemd, daemon, sockets, _host: host })
}

impl World {
    fn replace(&mut self) -> anyhow::Result<()> {
        replace(&mut self.daemon, self.systemd.as_ref())
    }

    fn nics(&self) -> anyhow::Result<(Nic, Nic)> {
        // Room for what comes in 100 ms: nothing may be lost for want of it.
        let options = Options { ring: 1024, ..Options::new(FIRST) };
        let first = Nic::connect(&self.sockets[0], options.clone())?;
        Ok((first, Nic::connect(&self.sockets[1], Options { mac: SECOND, ..options })?))
    }
}

/// The frames of `report` came at most once, in order; those that were lost had no room at the receiver.
fn check(daemon: &Daemon, report: &Report) -> anyhow::Result<()> {
    ensure!(report.duplicates == 0 && report.reordered == 0, "{report:?}");
    let stats: api::PortStats = daemon.json(&["port-stats", "second"])?;
    let full = stats.drops.get("rx-ring-full").copied().unwrap_or_default();
    ensure!(
        report.lost.len() as u64 <= full,
        "lost without a reason: {:?} of {}, {stats:?}",
        report.lost_ranges(),
        report.sent
    );
    Ok(())
}

/// Every frame is delivered once and every descriptor comes back once (the frontend's rings refuse anything else). The
/// gap is printed; what it should be is for a machine that is quiet. `tests/systemd.rs` is the same through the store.
#[test]
fn under_load_nothing_is_lost_or_served_twice() -> anyhow::Result<()> {
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let (mut first, mut second) = world.nics()?;
    let mut gaps = Vec::new();
    for _ in 0..9 {
        let probe = Probe::start(first, second, RATE)?;
        probe.run(300, LIMIT)?;
        world.replace()?;
        probe.run(300, LIMIT)?;
        let report;
        (report, first, second) = probe.finish()?;
        check(&world.daemon, &report)?;
        gaps.push(report.slowest);
    }
    gaps.sort();
    println!("gap of {:?} (median), {:?} to {:?}", gaps[4], gaps[0], gaps[8]);
    ensure!(gaps[4] < Duration::from_secs(1), "{gaps:?}");
    Ok(())
}

/// Guests on a hub socket are on no disk, and their connections are all there is of them.
#[test]
fn guests_on_a_hub_socket_go_on() -> anyhow::Result<()> {
    let _alone = alone();
    for carrier in Carrier::BOTH {
        let mut world = world(carrier)?;
        let hub = world.daemon.instance().hub_socket("lan");
        let options = Options { ring: 1024, ..Options::new(FIRST) };
        let first = Nic::connect(&hub, options.clone())?;
        let second = Nic::connect(&hub, Options { mac: SECOND, ..options.clone() })?;
        let ports = |daemon: &Daemon| -> anyhow::Result<Vec<String>> {
            let mut ports: Vec<api::PortInfo> = daemon.json(&["port-list", "lan"])?;
            ports.retain(|port| matches!(port.port, api::PortKind::Hub { .. }));
            let mut ports: Vec<_> =
                ports.into_iter().map(|port| format!("{} {}", port.name, port.uuid)).collect();
            ports.sort();
            Ok(ports)
        };
        let probe = Probe::start(first, second, 1000)?;
        let before = ports(&world.daemon)?;
        ensure!(before.len() == 2, "{before:?}");
        for _ in 0..3 {
            probe.run(50, LIMIT)?;
            world.replace()?;
        }
        probe.run(50, LIMIT)?;
        ensure!(ports(&world.daemon)? == before);
        // Another one comes, by the same socket.
        let third = Nic::connect(&hub, Options { mac: MacAddr([2, 0, 0, 0, 0, 3]), ..options })?;
        ensure!(ports(&world.daemon)?.len() == 3);
        drop(third);
        let (report, first, second) = probe.finish()?;
        ensure!(report.duplicates == 0 && report.reordered == 0, "{report:?}");
        drop((first, second));
        wait::until("the guests to be gone", LIMIT, || {
            ports(&world.daemon).is_ok_and(|ports| ports.is_empty())
        })?;
    }
    Ok(())
}

/// DPDK's `net_virtio_user` is lost for good when its connection ends; it sends as fast as it can.
#[test]
fn dpdk_goes_on() -> anyhow::Result<()> {
    let _alone = alone();
    let packed = ",packed_vq=1,mrg_rxbuf=1,in_order=1";
    for (carrier, device) in [
        (Carrier::Direct, ""),
        (Carrier::Store, ""),
        (Carrier::Direct, packed),
        (Carrier::Store, packed),
    ] {
        let mut world = world(carrier)?;
        let sockets = world.sockets.each_ref().map(PathBuf::as_path);
        let io = ["--forward-mode=io", "--tx-first"];
        let mut testpmd = Testpmd::start(sockets, device, &io)?;
        let moved = |daemon: &Daemon| -> u64 {
            let stats = daemon.json::<api::PortStats>(&["port-stats", "first"]);
            stats.map_or(0, |stats| stats.rx_packets)
        };
        for round in 0..4 {
            let before = moved(&world.daemon);
            wait::until("frames of testpmd", Duration::from_secs(60), || {
                moved(&world.daemon) > before + 10_000
            })
            .with_context(|| format!("{carrier:?}{device}, round {round}: {}", testpmd.shown()))?;
            testpmd.check_alive()?;
            world.replace()?;
        }
    }
    Ok(())
}

/// A process that takes over, up to a point.
struct Impostor(OwnedFd);

fn seqpacket() -> anyhow::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

impl Impostor {
    fn connect(daemon: &Daemon) -> anyhow::Result<Self> {
        let socket = seqpacket()?;
        let path = daemon.instance().run_dir().join("handover.sock");
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?).context("handover.sock")?;
        Ok(Self(socket))
    }

    fn say(&self, words: &str) -> anyhow::Result<()> {
        rustix::net::send(&self.0, words.as_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message; its descriptors are closed.
    fn hear(&self) -> anyhow::Result<String> {
        let mut bytes = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.0, &mut buffer, &mut control, flags)?;
        Ok(String::from_utf8_lossy(&bytes[..received.bytes]).into_owned())
    }

    /// Goes as far as `steps`.
    fn act(&self, steps: usize) -> anyhow::Result<()> {
        if steps > 0 {
            self.say("{\"hello\":{\"versions\":[1]}}")?;
        }
        if steps > 1 {
            let head = self.hear()?;
            ensure!(head.starts_with("{\"document\":"), "{head}");
        }
        if steps > 2 {
            ensure!(self.hear()? == "\"descriptors\"");
        }
        if steps > 3 {
            self.say("\"ready\"")?;
        }
        if steps > 4 {
            ensure!(self.hear()? == "\"go\"");
        }
        Ok(())
    }
}

#[test]
fn a_successor_that_dies_half_way_changes_nothing() -> anyhow::Result<()> {
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let (first, second) = world.nics()?;
    let probe = Probe::start(first, second, 1000)?;
    let pid = world.daemon.process()?.id();
    for round in 0..3 {
        for steps in 0..=5 {
            let impostor = Impostor::connect(&world.daemon)?;
            impostor.act(steps).with_context(|| format!("step {steps}"))?;
            if round == 2 && (1..=3).contains(&steps) {
                // It lives, and says no more: it is given up. (After `go` it would be killed.)
                wait::until("the daemon to go on", LIMIT, || {
                    impostor.hear().is_ok_and(|words| words.is_empty() || words.contains("refused"))
                })?;
            }
            drop(impostor);
            probe.run(50, LIMIT).with_context(|| format!("after step {steps}"))?;
        }
        for nonsense in ["", "{}", "\"ready\"", "\"go\"", "{\"hello\":{\"versions\":[2,77]}}"] {
            let impostor = Impostor::connect(&world.daemon)?;
            impostor.say(nonsense)?;
            let answer = impostor.hear()?;
            ensure!(answer.is_empty() || answer.starts_with("{\"refused\":"), "{answer}");
            probe.run(10, LIMIT)?;
        }
    }
    let (report, mut first, mut second) = probe.finish()?;
    check(&world.daemon, &report)?;
    ensure!(world.daemon.process()?.id() == pid && world.daemon.process()?.ended().is_none());
    // Real ones that are killed at any moment: the old daemon goes on, or it had been relieved.
    let mut went_on = 0;
    for delay in [0, 1, 2, 4, 8, 16, 24, 32, 48] {
        let process = world.daemon.start_process(&["--take-over"])?;
        std::thread::sleep(Duration::from_millis(delay));
        drop(process);
        // Who was relieved ends within this time.
        let old = world.daemon.process()?;
        if old.wait(Duration::from_millis(500)).is_ok() {
            world.daemon.up()?;
            for port in ["first", "second"] {
                world.daemon.wait_port(port, api::PortState::Listening)?;
            }
            first.reconnect(&world.sockets[0])?;
            second.reconnect(&world.sockets[1])?;
        } else {
            went_on += 1;
        }
        let probe = Probe::start(first, second, 1000)?;
        probe.run(50, LIMIT).with_context(|| format!("killed after {delay} ms"))?;
        let report;
        (report, first, second) = probe.finish()?;
        check(&world.daemon, &report)?;
    }
    println!("the old daemon went on {went_on} times of 9");
    world.daemon.take_over()
}

#[test]
fn nobody_else_can_take_over() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let (first, second) = world.nics()?;
    let probe = Probe::start(first, second, 1000)?;
    let path = world.daemon.instance().run_dir().join("handover.sock");
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode & 0o077 == 0, "mode {mode:o}");
    // Even where the mode was changed.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    let stranger = std::thread::scope(|scope| {
        let work = || -> anyhow::Result<String> {
            // Of this thread alone.
            let user = 65_534;
            // SAFETY: the system call takes numbers.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            ensure!(done == 0, "setresuid");
            let stranger = Impostor::connect(&world.daemon)?;
            // It may have been closed already.
            let _ = stranger.say("{\"hello\":{\"versions\":[1]}}");
            Ok(stranger.hear().unwrap_or_default())
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match stranger {
        Ok(heard) => ensure!(heard.is_empty(), "a stranger was told {heard}"),
        // The directories above keep him out.
        Err(error) => ensure!(format!("{error:#}").contains("ermission denied"), "{error:#}"),
    }
    probe.run(50, LIMIT)?;
    let (report, ..) = probe.finish()?;
    check(&world.daemon, &report)?;
    world.daemon.take_over()
}

/// What another version, or nobody, has written makes an ordinary restart: frontends connect again.
#[test]
fn what_cannot_be_read_makes_an_ordinary_restart() -> anyhow::Result<()> {
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let (mut first, mut second) = world.nics()?;
    let left = world.daemon.dir().join("left");
    std::fs::create_dir(&left)?;
    let program = netns_tests::program("leave-document")?;
    let (program, place) = (program.display(), left.display());
    let before = format!("NotifyAccess=all\nExecStartPre={program} {place}");
    let systemd = Systemd::new(&mut world.daemon, &before)?;
    let head = "{\"document\":{\"version\":1,\"descriptors\":0}}";
    let unknown = "{\"document\":{\"version\":99,\"descriptors\":0}}";
    let empty = "{\"datapath\":{\"uptime\":{\"secs\":1,\"nanos\":0},\"bridges\":[],\"ports\":[]},\
                 \"api_socket\":null,\"dns_sockets\":[],\"hub_sockets\":[],\"guests\":[],\"lock\":null}";
    let cases = [
        ("an empty one", head, Some(empty), false),
        ("another version", unknown, Some(empty), true),
        ("no JSON", head, Some("what?"), true),
        ("other JSON", head, Some("{\"datapath\":7}"), true),
        ("no document", head, None, true),
        ("no head", "what?", None, true),
    ];
    for (name, words, document, refused) in cases {
        std::fs::write(left.join("words"), words)?;
        let file = left.join("document");
        match document {
            Some(text) => std::fs::write(file, text)?,
            None => drop(std::fs::remove_file(file)),
        }
        let before = systemd.log().len();
        systemd.unit(&["start"]).context(name)?;
        nothing_is_stored(&systemd).context(name)?;
        let log = systemd.log();
        let said = log[before..].contains("what the last daemon left");
        ensure!(said == refused, "{name}: {}", &log[before..]);
        for port in ["first", "second"] {
            world.daemon.wait_port(port, api::PortState::Listening).context(name)?;
        }
        first.reconnect(&world.sockets[0]).context(name)?;
        second.reconnect(&world.sockets[1]).context(name)?;
        let probe = Probe::start(first, second, 1000)?;
        probe.run(100, LIMIT)?;
        (_, first, second) = probe.finish()?;
        systemd.unit(&["stop"]).context(name)?;
    }
    Ok(())
}

/// A daemon that runs and whose words the new one does not know is ended in good order.
#[test]
fn a_daemon_of_another_version_is_restarted() -> anyhow::Result<()> {
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let (mut first, mut second) = world.nics()?;
    let path = world.daemon.instance().run_dir().join("handover.sock");
    std::fs::remove_file(&path)?;
    let other = seqpacket()?;
    rustix::net::bind(&other, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(&other, 1)?;
    let sealed = document::sealed(b"{}")?;
    std::thread::spawn(move || -> anyhow::Result<()> {
        let caller = rustix::net::accept(&other)?;
        let words = "{\"document\":{\"version\":99,\"descriptors\":0}}";
        let mut hello = [0; 200];
        rustix::net::recv(&caller, &mut hello, RecvFlags::empty())?;
        document::send(&caller, words.as_bytes(), Some(&sealed))?;
        // Until the caller has turned away.
        rustix::net::recv(&caller, &mut hello, RecvFlags::empty())?;
        Ok(())
    });
    world.daemon.take_over()?;
    for port in ["first", "second"] {
        world.daemon.wait_port(port, api::PortState::Listening)?;
    }
    first.reconnect(&world.sockets[0])?;
    second.reconnect(&world.sockets[1])?;
    let probe = Probe::start(first, second, 1000)?;
    probe.run(100, LIMIT)?;
    probe.finish()?;
    Ok(())
}

/// `--take-over` without anybody to take over from starts a daemon; two in a row leave one.
#[test]
fn a_daemon_can_be_replaced_at_any_time() -> anyhow::Result<()> {
    let _alone = alone();
    let mut world = world(Carrier::Direct)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        world.daemon.take_over()?;
        let port = format!("p{}", begun.elapsed().as_millis());
        world.daemon.port("lan", &port, &[])?;
        world.daemon.netctl(&["port-del", &port])?;
    }
    world.daemon.kill()?;
    let process = world.daemon.start_process(&["--take-over"])?;
    wait::until("the API to answer", LIMIT, || {
        world.daemon.netctl(&["port-info", "first"]).is_ok()
    })?;
    drop(process);
    Ok(())
}
