//! Every forward mode against every other and the outside, in both families, one way at a time.
//!
//! Ten networks: a *sending* and a *receiving* one of each mode. Each sender is a User-mode Linux
//! guest, each receiver a namespace with a capture on its interface, so that a frame that leaks one
//! way is seen even though no answer comes back.

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::capture::Capture;
use netns_tests::guest::{Guest, Namespace, Uml};
use netns_tests::topology::{HOST, HOST6, INET, INET6};
use netns_tests::{Lab, Netns};

const MODES: [&str; 5] = ["nat", "route", "open", "isolated", "bridge"];

/// Subnets of mode number `n`: 10.(100+n).0.0/24 sends, 10.(200+n).0.0/24 receives.
fn subnet(side: Side, n: usize) -> (String, String) {
    let octet = match side {
        Side::Sends => 100,
        Side::Receives => 200,
    } + n;
    (format!("10.{octet}.0"), format!("fd00:{octet}:"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Sends,
    Receives,
}

impl Side {
    fn letter(self) -> char {
        if self == Self::Sends { 's' } else { 'r' }
    }
}

fn xml(side: Side, n: usize) -> String {
    let mode = MODES[n];
    let name = format!("{}{mode}", side.letter());
    let (v4, v6) = subnet(side, n);
    let ips = format!(
        "<ip address='{v4}.1' netmask='255.255.255.0'/>\
         <ip family='ipv6' address='{v6}:1' prefix='64'/>"
    );
    match mode {
        "bridge" => format!(
            "<network><name>{name}</name><forward mode='bridge'/><bridge name='br-{name}'/></network>"
        ),
        "isolated" => {
            format!("<network><name>{name}</name><bridge name='g-{name}'/>{ips}</network>")
        }
        _ => format!(
            "<network><name>{name}</name><forward mode='{mode}'/>\
             <bridge name='g-{name}'/>{ips}</network>"
        ),
    }
}

/// Who may start a conversation with whom (libvirt's rules, without its one-way leaks).
fn allowed(from: &str, to: &str) -> bool {
    from != "isolated" && !["nat", "isolated"].contains(&to)
}

fn addresses(guest: &mut dyn Guest, v4: &str, v6: &str) -> anyhow::Result<()> {
    guest.run(&format!(
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; \
         ip addr add {v4}.2/24 dev eth0; ip -6 addr add {v6}:2/64 dev eth0; \
         ip route add default via {v4}.1; ip -6 route add default via {v6}:1"
    ))?;
    guest.ping(&format!("{v4}.1"))?;
    guest.ping(&format!("{v6}:1"))
}

/// Linux bridges that the `bridge` networks join, addressed as a host's bridge would be.
fn host_bridges(host: &Netns, n: usize) -> anyhow::Result<()> {
    for side in [Side::Sends, Side::Receives] {
        let name = format!("br-{}bridge", side.letter());
        let (v4, v6) = subnet(side, n);
        host.ip(&format!("link add {name} type bridge"))?;
        host.ip(&format!("link set {name} up"))?;
        host.ip(&format!("addr add {v4}.1/24 dev {name}"))?;
        host.ip(&format!("addr add {v6}:1/64 dev {name} nodad"))?;
    }
    Ok(())
}

#[test]
fn every_mode_against_every_other_and_the_outside() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    host_bridges(&lab.host, 4)?;
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for (n, mode) in MODES.iter().enumerate() {
        lab.daemon.network(&format!("s{mode}"), &xml(Side::Sends, n))?;
        lab.daemon.network(&format!("r{mode}"), &xml(Side::Receives, n))?;
        // The outside knows the way to every guest: what stops it is the firewall alone.
        for side in [Side::Sends, Side::Receives] {
            let (v4, v6) = subnet(side, n);
            lab.inet.ip(&format!("route add {v4}.0/24 via {HOST}"))?;
            lab.inet.ip(&format!("-6 route add {v6}:/64 via {HOST6}"))?;
        }
        let port = lab.daemon.port(&format!("s{mode}"), &format!("s{mode}"), &[])?;
        let socket = port.socket.ok_or_else(|| anyhow::anyhow!("no socket"))?;
        let mut sender = Uml::start(&format!("s{mode}"), &[&socket])?;
        let (v4, v6) = subnet(Side::Sends, n);
        addresses(&mut sender, &v4, &v6)?;
        senders.push(sender);

        let mut receiver = Namespace::new(&format!("r{mode}"))?;
        let netns = receiver.netns().name().to_owned();
        let place = ["--netns", &netns, "--ifname", "eth0"];
        lab.daemon.port(&format!("r{mode}"), &format!("r{mode}"), &place)?;
        let (v4, v6) = subnet(Side::Receives, n);
        addresses(&mut receiver, &v4, &v6)?;
        let capture = Capture::start(receiver.netns(), "eth0")?;
        receivers.push((receiver, capture));
    }
    let outside = Capture::start(&lab.inet, "wan")?;

    for (n, sender) in senders.iter_mut().enumerate() {
        let targets = (0..MODES.len()).flat_map(|to| {
            let (v4, v6) = subnet(Side::Receives, to);
            [(format!("{v4}.2"), mark(4, n, to)), (format!("{v6}:2"), mark(6, n, to))]
        });
        let outside = [(INET.to_owned(), mark(4, n, OUT)), (INET6.to_owned(), mark(6, n, OUT))];
        let probes: String = targets.chain(outside).map(|(to, mark)| probe(&to, mark)).collect();
        sender.run(&format!("{probes} wait"))?;
    }
    for to in 0..MODES.len() {
        let (v4, v6) = subnet(Side::Receives, to);
        let probes = probe(&format!("{v4}.2"), mark(4, OUT, to))
            + &probe(&format!("{v6}:2"), mark(6, OUT, to));
        lab.inet.run(&["sh", "-c", &format!("{probes} wait")])?;
    }
    // A last frame from each network's own gateway: what was sent before it has arrived by now.
    for (to, (_, capture)) in receivers.iter().enumerate() {
        let (v4, _) = subnet(Side::Receives, to);
        lab.host.enter(|| send(format!("{v4}.2").parse()?, "last;"))?;
        capture.wait_for(b"last;", Duration::from_secs(5))?;
    }

    let mut wrong = Vec::new();
    let mut check = |seen: bool, expected: bool, family: u8, from: &str, to: &str| {
        if seen != expected {
            let what = if seen { "leaks" } else { "is blocked" };
            wrong.push(format!("IPv{family} {from} to {to} {what}"));
        }
    };
    for (n, from) in MODES.iter().enumerate() {
        for family in [4, 6] {
            for (m, to) in MODES.iter().enumerate() {
                let seen = receivers[m].1.holds(&[mark(family, n, m); 24]);
                check(seen, allowed(from, to), family, from, to);
            }
            let seen = outside.holds(&[mark(family, n, OUT); 24]);
            check(seen, *from != "isolated", family, from, "outside");
            let seen = receivers[n].1.holds(&[mark(family, OUT, n); 24]);
            check(seen, allowed("outside", from), family, "outside", from);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// In place of a mode's number: the outside.
const OUT: usize = MODES.len();

/// The byte that fills the echo request from one place to another; no two are alike.
fn mark(family: u8, from: usize, to: usize) -> u8 {
    let place = u8::try_from(from * (OUT + 1) + to).unwrap_or(u8::MAX);
    // 36 places from 0x40 and from 0x80 on.
    if family == 4 { 0x40 + place } else { 0x80 + place }
}

/// A shell command that sends one echo request and does not care for an answer.
fn probe(address: &str, mark: u8) -> String {
    format!("busybox ping -c 1 -W 1 -p {mark:02x} {address} & ")
}

fn send(address: IpAddr, text: &str) -> anyhow::Result<()> {
    let any: IpAddr = if address.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.send_to(text.as_bytes(), (address, 9))?;
    Ok(())
}

#[test]
fn a_guest_behind_nat_is_seen_as_the_host_and_an_isolated_one_reaches_only_its_gateway()
-> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("snat", &xml(Side::Sends, 0))?;
    lab.daemon.network("sisolated", &xml(Side::Sends, 3))?;
    let mut guests = Vec::new();
    for (n, network) in [(0, "snat"), (3, "sisolated")] {
        let mut guest = Namespace::on(&lab.daemon, network, network, &[])?;
        let (v4, v6) = subnet(Side::Sends, n);
        addresses(&mut guest, &v4, &v6)?;
        guests.push(guest);
    }
    guests[0].run(&format!("busybox wget -q -O /dev/null http://{INET}/"))?;
    assert_eq!(lab.web.clients(), [HOST.parse::<IpAddr>()?]);
    for other in [HOST, "10.100.0.1", INET] {
        assert!(!guests[1].reaches(other.parse()?)?, "the isolated guest reaches {other}");
    }
    // Its own gateway answers echo requests, and nothing but DHCP, DNS and ICMP.
    let capture = Capture::start(&lab.host, "g-sisolated")?;
    lab.host.enter(|| {
        let listener = std::net::TcpListener::bind("0.0.0.0:2222")?;
        let refused =
            guests[1].sh("busybox nc -w 1 10.103.0.1 2222 </dev/null", Duration::from_secs(5))?;
        listener.set_nonblocking(true)?;
        anyhow::ensure!(
            !refused.ok() && listener.accept().is_err(),
            "port 2222 of the gateway is open"
        );
        Ok(())
    })?;
    assert!(!capture.frames().is_empty());
    Ok(())
}
