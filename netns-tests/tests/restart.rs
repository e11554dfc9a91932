//! Stop is not destroy: what survives the daemon's end, in good order and by SIGKILL.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use netns_tests::capture::Capture;
use netns_tests::frontend::{Nic, Options, Probe};
use netns_tests::guest::qemu::Nic as QemuNic;
use netns_tests::guest::{Guest, Namespace, Qemu};
use netns_tests::topology::INET;
use netns_tests::{Lab, wait};
use wire::MacAddr;

const NETWORK: &str = "<network>
  <name>lan</name>
  <forward mode='nat'/>
  <bridge name='lan0'/>
  <ip address='10.7.0.1' netmask='255.255.0.0'>
    <dhcp><range start='10.7.1.1' end='10.7.100.250'/></dhcp>
  </ip>
</network>";

#[test]
fn guests_go_on_after_a_restart_and_after_a_kill() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let transient = lab.daemon.dir().join("transient.xml");
    std::fs::write(
        &transient,
        "<network><name>passing</name><ip address='10.6.0.1' prefix='24'/></network>",
    )?;
    lab.daemon.netctl(&["net-create", &transient.display().to_string()])?;
    let port = lab.daemon.port("lan", "deb", &[])?;
    let socket = port.socket.as_deref().ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut deb = Qemu::start("deb", &[QemuNic::new(socket, port.mac)])?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    let deb_address = deb.dhcp()?;
    let ns_address = ns.dhcp()?;
    deb.ping(&ns_address.to_string())?;
    let link = ns.run("ip -o link show eth0")?;
    let gateway = lab.host.ip("-o link show lan0")?;

    for kill in [false, true] {
        if kill {
            lab.daemon.kill()?;
        } else {
            lab.daemon.stop()?;
        }
        // The gateway and the guest's interface outlive the daemon.
        let index = |text: &str| text.split(':').next().map(str::to_owned);
        assert_eq!(index(&lab.host.ip("-o link show lan0")?), index(&gateway));
        assert_eq!(index(&ns.run("ip -o link show eth0")?), index(&link));
        lab.daemon.up()?;
        assert_eq!(index(&lab.host.ip("-o link show lan0")?), index(&gateway));
        assert_eq!(index(&ns.run("ip -o link show eth0")?), index(&link));
        lab.daemon.wait_port("deb", api::PortState::Up)?;
        lab.daemon.wait_port("ns", api::PortState::Up)?;
        ns.ping(&deb_address.to_string())?;
        deb.ping(&ns_address.to_string())?;
        deb.ping(INET)?;
        let names = lab.daemon.netctl(&["net-list", "--name"])?;
        assert!(names.lines().any(|name| name == "passing"), "{names}");
        let leases: Vec<IpAddr> =
            lab.daemon.leases("lan")?.into_iter().map(|lease| lease.ip).collect();
        assert!(leases.contains(&deb_address.into()) && leases.contains(&ns_address.into()));
    }
    Ok(())
}

/// How long after SIGKILL frames flow again, for a frontend that connects at once and for a VMM that listens. It is
/// printed; what it should be is for a machine that is quiet.
#[test]
fn after_a_kill_guests_are_back_soon() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let socket = |name: &str| -> anyhow::Result<PathBuf> {
        lab.daemon.port("lan", name, &[])?.socket.context("a vhost-user port without a socket")
    };
    let sockets = [socket("one")?, socket("two")?];
    let options = Options::new(MacAddr([2, 0, 0, 0, 0, 1]));
    let mut one = Nic::connect(&sockets[0], options.clone())?;
    let other = Options { mac: MacAddr([2, 0, 0, 0, 0, 2]), ..options };
    let mut two = Nic::connect(&sockets[1], other)?;
    let theirs = lab.daemon.dir().join("vmm.sock");
    let port = lab.daemon.port("lan", "deb", &["--connect", &theirs.display().to_string()])?;
    let card = QemuNic::new(&theirs, port.mac);
    let mut deb = Qemu::listening("deb", &[card])?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    let address = deb.dhcp()?.to_string();
    ns.dhcp()?;
    let (mut frames, mut guests) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        lab.daemon.kill()?;
        let killed = Instant::now();
        lab.daemon.up()?;
        let limit = Duration::from_secs(20);
        for (nic, socket) in [(&mut one, &sockets[0]), (&mut two, &sockets[1])] {
            wait::until("the port's socket", limit, || UnixStream::connect(socket).is_ok())?;
            nic.reconnect(socket)?;
        }
        let probe = Probe::start(one, two, 1000)?;
        probe.run(1, limit)?;
        frames.push(killed.elapsed());
        (_, one, two) = probe.finish()?;
        lab.daemon.wait_port("deb", api::PortState::Up)?;
        guests.push(killed.elapsed());
        ns.ping(&address)?;
    }
    frames.sort();
    guests.sort();
    println!(
        "after SIGKILL: a frontend {:?}, a VMM that listens {:?} (medians)",
        frames[2], guests[2]
    );
    Ok(())
}

#[test]
fn a_destroyed_network_comes_back_with_its_ports() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut one = Namespace::on(&lab.daemon, "lan", "one", &[])?;
    let mut two = Namespace::on(&lab.daemon, "lan", "two", &[])?;
    one.dhcp()?;
    lab.daemon.netctl(&["net-destroy", "lan"])?;
    lab.daemon.wait_port("one", api::PortState::Down)?;
    assert!(lab.host.ip("link show lan0").is_err(), "the gateway is still there");
    assert!(one.netns().ip("link show eth0").is_err(), "the guest's interface is still there");
    lab.daemon.netctl(&["net-start", "lan"])?;
    let address = one.dhcp()?;
    two.dhcp()?;
    two.ping(&address.to_string())
}

#[test]
fn a_deleted_namespace_is_reported_and_costs_nothing() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    lab.daemon.wait_port("ns", api::PortState::Up)?;
    drop(ns);
    lab.daemon.wait_port("ns", api::PortState::Gone)?;
    let process = lab.daemon.process()?;
    let before = process.cpu_time();
    // CPU time can only be seen over time.
    std::thread::sleep(Duration::from_secs(3));
    let used = process.cpu_time() - before;
    assert!(used < Duration::from_millis(150), "vswitchd spins: {used:?} in 3 s");
    lab.daemon.netctl(&["port-del", "ns"])?;
    Ok(())
}

/// DORA by hand from many MACs: what the wire saw acknowledged must be there after every kill.
#[test]
fn no_acknowledged_lease_is_lost_by_twenty_kills() -> anyhow::Result<()> {
    let config = "[dhcp]\nleases_per_port = 100000\n";
    let mut lab = Lab::with_config(config)?;
    lab.daemon.network("lan", NETWORK)?;
    let ns = Namespace::on(&lab.daemon, "lan", "load", &[])?;
    ns.netns().ip("link set eth0 up")?;
    let wire = Capture::start(ns.netns(), "eth0")?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = dhcp_load::start(ns.netns(), "eth0", Arc::clone(&stop))?;
    let mut seen = 0;
    for round in 0..20 {
        // Each round dies while leases are being given.
        wait::until("new leases on the wire", Duration::from_secs(10), || {
            let acks = dhcp_load::acknowledged(&wire.frames()).len();
            let enough = acks >= seen + 25;
            if enough {
                seen = acks;
            }
            enough
        })
        .map_err(|error| error.context(format!("round {round}")))?;
        lab.daemon.kill()?;
        lab.daemon.up()?;
    }
    stop.store(true, Ordering::Relaxed);
    load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    let acknowledged = dhcp_load::acknowledged(&wire.frames());
    let leases: HashMap<IpAddr, _> =
        lab.daemon.leases("lan")?.into_iter().map(|lease| (lease.ip, lease.mac)).collect();
    let mut holders: HashMap<IpAddr, MacAddr> = HashMap::new();
    for (ip, mac) in &acknowledged {
        assert_eq!(leases.get(ip), Some(mac), "{ip} was acknowledged to {mac} and is lost");
        let before = holders.insert(*ip, *mac);
        assert!(before.is_none_or(|before| before == *mac), "{ip} is held by {before:?} and {mac}");
    }
    assert!(acknowledged.len() >= 500, "only {} leases", acknowledged.len());
    Ok(())
}

/// A DHCP client of many MACs on one interface.
mod dhcp_load {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use netns_tests::Netns;
    use socket2::{Domain, Protocol, Socket, Type};
    use wire::MacAddr;

    const DISCOVER: u8 = 1;
    const OFFER: u8 = 2;
    const REQUEST: u8 = 3;
    const ACK: u8 = 5;

    pub(crate) fn start(
        netns: &Netns,
        ifname: &str,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
        let socket = netns.enter(|| {
            // All protocols (ETH_P_ALL) in network byte order.
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0x0300)))?;
            socket.bind_device(Some(ifname.as_bytes()))?;
            let index = rustix::net::netdevice::name_to_index(&socket, ifname)?;
            let address = link_address(index)?;
            socket.bind(&address)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        Ok(std::thread::spawn(move || run(&socket, &stop)))
    }

    fn link_address(index: u32) -> anyhow::Result<socket2::SockAddr> {
        // SAFETY: every bit pattern of sockaddr_storage is valid and sockaddr_ll fits in it.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, length| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
                (*link).sll_protocol = 0x0300;
                (*link).sll_ifindex = i32::try_from(index).unwrap_or_default();
                *length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
                Ok(())
            })?
        };
        Ok(address)
    }

    /// One exchange after the other, each from a new MAC; unanswered ones are left behind.
    fn run(socket: &Socket, stop: &AtomicBool) -> anyhow::Result<()> {
        for n in 1_u32.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let [a, b, c, d] = n.to_be_bytes();
            let mac = MacAddr([2, 0, a, b, c, d]);
            // The TAP may be away while the daemon is; the next exchange finds it again.
            let _ = socket.send(&message(DISCOVER, n, mac, None));
            let Some((offered, server)) = reply(socket, n, OFFER)? else { continue };
            let _ = socket.send(&message(REQUEST, n, mac, Some((offered, server))));
            reply(socket, n, ACK)?;
        }
        Ok(())
    }

    fn reply(socket: &Socket, xid: u32, kind: u8) -> anyhow::Result<Option<(Ipv4Addr, Ipv4Addr)>> {
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
        while Instant::now() < deadline {
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            // SAFETY: recv initialised the first `length` bytes.
            let frame = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            if let Some(message) = parse(frame)
                && message.xid == xid
                && message.kind == kind
            {
                return Ok(Some((message.address, message.server)));
            }
        }
        Ok(None)
    }

    struct Message {
        xid: u32,
        kind: u8,
        address: Ipv4Addr,
        server: Ipv4Addr,
        mac: MacAddr,
    }

    fn message(kind: u8, xid: u32, mac: MacAddr, offer: Option<(Ipv4Addr, Ipv4Addr)>) -> Vec<u8> {
        let mut bootp = vec![0; 236];
        bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
        bootp[4..8].copy_from_slice(&xid.to_be_bytes());
        bootp[10] = 0x80; // replies by broadcast
        bootp[28..34].copy_from_slice(&mac.0);
        bootp.extend([99, 130, 83, 99, 53, 1, kind]);
        if let Some((address, server)) = offer {
            bootp.extend([50, 4]);
            bootp.extend(address.octets());
            bootp.extend([54, 4]);
            bootp.extend(server.octets());
        }
        bootp.push(255);
        let datagram = wire::udp::UdpV4 {
            src_mac: mac,
            dst_mac: MacAddr::BROADCAST,
            vlan: None,
            src: "0.0.0.0:68".parse().expect("an address"),
            dst: "255.255.255.255:67".parse().expect("an address"),
            ttl: 64,
        };
        let mut frame = vec![0; 1500];
        let length = wire::udp::build_ipv4(&mut frame, &datagram, &bootp).expect("it fits");
        frame.truncate(length);
        frame
    }

    fn parse(frame: &[u8]) -> Option<Message> {
        let datagram = wire::udp::parse_ipv4(frame).ok()?;
        let bootp = datagram.payload;
        if datagram.src.port() != 67 || bootp.len() < 240 {
            return None;
        }
        let word = |at: usize| <[u8; 4]>::try_from(&bootp[at..at + 4]).ok();
        let (mut kind, mut server) = (0, Ipv4Addr::UNSPECIFIED);
        let mut options = &bootp[240..];
        while let [code, length, rest @ ..] = options {
            let (value, next) = rest.split_at_checked(usize::from(*length))?;
            match (code, value) {
                (53, [value]) => kind = *value,
                (54, [a, b, c, d]) => server = Ipv4Addr::new(*a, *b, *c, *d),
                _ => {}
            }
            options = next;
        }
        Some(Message {
            xid: u32::from_be_bytes(word(4)?),
            kind,
            address: Ipv4Addr::from(word(16)?),
            server,
            mac: MacAddr(bootp[28..34].try_into().ok()?),
        })
    }

    /// Every (address, MAC) that an ACK on the wire gave, once per ACK.
    pub(crate) fn acknowledged(frames: &[Vec<u8>]) -> Vec<(IpAddr, MacAddr)> {
        frames
            .iter()
            .filter_map(|frame| parse(frame))
            .filter(|message| message.kind == ACK)
            .map(|message| (IpAddr::V4(message.address), message.mac))
            .collect()
    }
}
