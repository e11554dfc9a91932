//! Who reaches whom: every mode × every mode × the outside, both families, seen by capture.
//!
//! Gateway interfaces are named by nft keywords here, on purpose.

mod host_env;

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;

use host_env::{PORT, Station, drain, eventually, host, inside, ip, machine, nft, run, send, udp};
use netdef::model::{ForwardMode, Nat};
use socket2::{Domain, Protocol, Socket, Type};
use vswitchd::host::{FirewallNetwork, Host, HostEvent};

const V4: usize = 0;
const V6: usize = 1;

fn network(interface: &str, mode: ForwardMode, n: u8) -> FirewallNetwork {
    FirewallNetwork {
        name: format!("net{n}"),
        interface: interface.to_owned(),
        mode,
        nets: vec![
            format!("10.{n}.0.1/24").parse().unwrap(),
            format!("fd00:{n}::1/64").parse().unwrap(),
        ],
        gateway: vec![
            format!("10.{n}.0.1").parse().unwrap(),
            format!("fd00:{n}::1").parse().unwrap(),
        ],
        nat: None,
        forward_dev: None,
        dns: true,
        dhcp: true,
        tftp: false,
    }
}

async fn router() -> Host {
    let host = host("fw");
    host.enable_forwarding(true, true).await.unwrap();
    host
}

/// Everyone of a test. The mode of the outside is `None`.
struct World(Vec<(Station, Option<ForwardMode>)>);

impl World {
    /// The outside behind `wan0`, and one guest per (name, gateway interface, mode); guest
    /// number n (from 1) is in 10.N.0.0/24 and fd00:N::/64.
    fn new(guests: &[(&'static str, &str, ForwardMode)]) -> (Self, Vec<FirewallNetwork>) {
        let mut stations = vec![(Station::new("outside", "wan0", 0), None)];
        let mut networks = Vec::new();
        for (n, (name, interface, mode)) in (1..).zip(guests) {
            stations.push((Station::new(name, interface, n), Some(*mode)));
            networks.push(network(interface, *mode, n));
        }
        (Self(stations), networks)
    }

    fn station(&self, name: &str) -> &Station {
        &self.0.iter().find(|(station, _)| station.name == name).unwrap().0
    }

    /// Everyone sends to everyone; "family from to" of what arrived.
    fn probe(&self, round: &str) -> BTreeSet<String> {
        for (from, _) in &self.0 {
            for (to, _) in &self.0 {
                for family in [V4, V6] {
                    if from.name != to.name {
                        let address = SocketAddr::new(to.address[family], PORT);
                        from.send(
                            family,
                            address,
                            &format!("{round} {family} {} {}", from.name, to.name),
                        );
                    }
                }
            }
        }
        self.arrived(round)
    }

    /// What arrived anywhere but at its sender (where ICMP errors quote it).
    fn arrived(&self, round: &str) -> BTreeSet<String> {
        for (station, _) in &self.0 {
            station.settle();
        }
        let mut arrived = BTreeSet::new();
        for (station, _) in &self.0 {
            for word in station.captured() {
                let [of, family, from, to] = word.split(' ').collect::<Vec<_>>()[..] else {
                    continue;
                };
                if of == round && from != station.name {
                    assert_eq!(to, station.name, "{word} was seen at {}", station.name);
                    arrived.insert(format!("{family} {from} {to}"));
                }
            }
        }
        arrived
    }

    /// One probe in each family; whether it arrived, in (IPv4, IPv6).
    fn reaches(&self, from: &str, to: &str) -> (bool, bool) {
        let (from, to) = (self.station(from), self.station(to));
        for family in [V4, V6] {
            let address = SocketAddr::new(to.address[family], PORT);
            from.send(family, address, &format!("single {family} {} {}", from.name, to.name));
        }
        let arrived = self.arrived("single");
        let has = |family| arrived.contains(&format!("{family} {} {}", from.name, to.name));
        (has(V4), has(V6))
    }
}

const BOTH: (bool, bool) = (true, true);
const NEITHER: (bool, bool) = (false, false);

fn may_leave(mode: Option<ForwardMode>) -> bool {
    mode != Some(ForwardMode::Isolated)
}

fn may_enter(mode: Option<ForwardMode>) -> bool {
    !matches!(mode, Some(ForwardMode::Isolated | ForwardMode::Nat))
}

/// What [`World::probe`] must give: to leave and to enter are judged apart.
fn allowed(world: &World) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for (from, from_mode) in &world.0 {
        for (to, to_mode) in &world.0 {
            if from.name != to.name && may_leave(*from_mode) && may_enter(*to_mode) {
                allowed.insert(format!("{V4} {} {}", from.name, to.name));
                allowed.insert(format!("{V6} {} {}", from.name, to.name));
            }
        }
    }
    allowed
}

fn assert_same(arrived: &BTreeSet<String>, expected: &BTreeSet<String>) {
    let leaks: Vec<_> = arrived.difference(expected).collect();
    let missing: Vec<_> = expected.difference(arrived).collect();
    assert!(leaks.is_empty() && missing.is_empty(), "leaks {leaks:?}\nmissing {missing:?}");
}

#[test]
fn modes_by_modes_by_outside_in_both_families() {
    machine(async || {
        let host = router().await;
        let (world, networks) = World::new(&[
            ("nat1", "ip", ForwardMode::Nat),
            ("nat2", "accept", ForwardMode::Nat),
            ("route1", "rt0", ForwardMode::Route),
            ("route2", "drop", ForwardMode::Route),
            ("open1", "jump", ForwardMode::Open),
            ("open2", "meta", ForwardMode::Open),
            ("isolated1", "inet", ForwardMode::Isolated),
            ("isolated2", "table", ForwardMode::Isolated),
        ]);
        let count = world.0.len();
        let everything = world.probe("before");
        assert_eq!(everything.len(), 2 * count * (count - 1), "without rules: {everything:#?}");
        for (station, _) in &world.0 {
            station.servers.iter().for_each(|socket| drop(drain(socket)));
        }

        host.apply_firewall(&networks).await.unwrap();
        let arrived = world.probe("one-way");
        assert_same(&arrived, &allowed(&world));

        // Whoever was reached answers; answers come back into every mode.
        for (station, _) in &world.0 {
            for family in [V4, V6] {
                for (word, from) in drain(&station.servers[family]) {
                    let asked: Vec<&str> = word[6..].trim_end_matches('>').split(' ').collect();
                    if asked[0] == "one-way" {
                        let answer = format!("answer {family} {} {}", station.name, asked[2]);
                        send(&station.servers[family], from, &answer);
                    }
                }
            }
        }
        let answers = world.arrived("answer");
        let turned = arrived.iter().map(|word| {
            let [family, from, to] = word.split(' ').collect::<Vec<_>>()[..] else { panic!() };
            format!("{family} {to} {from}")
        });
        assert_same(&answers, &turned.collect());
    });
}

#[test]
fn nat_translates_the_source_and_route_does_not() {
    machine(async || {
        let host = router().await;
        let (world, mut networks) =
            World::new(&[("nat", "vn0", ForwardMode::Nat), ("route", "vr0", ForwardMode::Route)]);
        host.apply_firewall(&networks).await.unwrap();
        let outside = world.station("outside");
        let source = |from: &str, family: usize| {
            drain(&outside.servers[family]);
            assert_eq!(world.reaches(from, "outside"), BOTH);
            drain(&outside.servers[family])[0].1
        };
        assert_eq!(source("nat", V4).ip(), outside.gateway[V4]);
        assert_eq!(
            source("nat", V6).ip(),
            world.station("nat").address[V6],
            "only with ipv6='yes'"
        );
        assert_eq!(source("route", V4).ip(), world.station("route").address[V4]);
        assert_eq!(source("route", V6).ip(), world.station("route").address[V6]);

        // A privileged source port does not stay one.
        let to = SocketAddr::new(outside.address[V4], PORT);
        let own = SocketAddr::new(world.station("nat").address[V4], 500);
        send(&inside("nat", || udp(own)), to, "privileged");
        world.station("nat").settle();
        let (word, seen) = drain(&outside.servers[V4]).pop().unwrap();
        assert_eq!(word, "<word privileged>");
        assert!(seen.ip() == outside.gateway[V4] && seen.port() >= 1024, "{seen}");

        // Pools of addresses and ports, and translation of IPv6.
        networks[0].nat = Some(Nat {
            ipv6: Some(true),
            addresses: Some(("10.0.0.50".parse().unwrap(), "10.0.0.51".parse().unwrap())),
            ports: Some((2000, 2010)),
        });
        host.apply_firewall(&networks).await.unwrap();
        let nat = world.station("nat");
        for (family, ips) in [(V4, vec!["10.0.0.50", "10.0.0.51"]), (V6, vec!["fd00::1"])] {
            let own = SocketAddr::new(nat.address[family], 6000);
            let to = SocketAddr::new(outside.address[family], PORT);
            drain(&outside.servers[family]);
            send(&inside("nat", || udp(own)), to, "pool");
            nat.settle();
            let seen = drain(&outside.servers[family]).pop().expect("the pool's flow arrives").1;
            assert!(ips.contains(&seen.ip().to_string().as_str()), "{seen}");
            assert!((2000..=2010).contains(&seen.port()), "{seen}");
        }
        assert_eq!(world.reaches("outside", "nat"), NEITHER);
    });
}

#[test]
fn forward_dev_is_the_only_way_out_and_in() {
    machine(async || {
        let host = router().await;
        let (mut world, mut networks) = World::new(&[
            ("nat", "vn0", ForwardMode::Nat),
            ("route", "vr0", ForwardMode::Route),
            ("free", "vf0", ForwardMode::Route),
        ]);
        world.0.push((Station::new("other", "wan1", 9), None));
        networks[0].forward_dev = Some("wan0".into());
        networks[1].forward_dev = Some("wan0".into());
        host.apply_firewall(&networks).await.unwrap();
        for guest in ["nat", "route"] {
            assert_eq!(world.reaches(guest, "outside"), BOTH, "{guest}");
            assert_eq!(world.reaches(guest, "other"), NEITHER, "{guest}");
            assert_eq!(world.reaches(guest, "free"), NEITHER, "{guest}");
        }
        assert_eq!(world.reaches("outside", "route"), BOTH);
        assert_eq!(world.reaches("other", "route"), NEITHER);
        assert_eq!(world.reaches("free", "route"), NEITHER);
        assert_eq!(world.reaches("free", "other"), BOTH);
    });
}

/// Sockets of a station with addresses that are not of its network.
fn forgers(station: &Station) -> [std::net::UdpSocket; 2] {
    inside(station.name, || {
        ip("addr add 10.0.0.77/32 dev lo
            addr add fd00:77::77/128 dev lo nodad");
        ["10.0.0.77:4002", "[fd00:77::77]:4002"].map(|address| udp(address.parse().unwrap()))
    })
}

#[test]
fn forged_sources_are_not_forwarded_and_not_answered() {
    machine(async || {
        let host = router().await;
        let (world, networks) = World::new(&[
            ("nat", "vn0", ForwardMode::Nat),
            ("route", "vr0", ForwardMode::Route),
            ("isolated", "vi0", ForwardMode::Isolated),
            ("open", "vo0", ForwardMode::Open),
        ]);
        host.apply_firewall(&networks).await.unwrap();
        let forge = |name: &str| -> (usize, usize) {
            let station = world.station(name);
            for (family, forger) in forgers(station).iter().enumerate() {
                for (to, _) in world.0.iter().filter(|(to, _)| to.name != name) {
                    let word = format!("forged {family} {name} {}", to.name);
                    send(forger, SocketAddr::new(to.address[family], PORT), &word);
                }
                // An answer to this would carry the guest's bytes out.
                for port in [53, 9999] {
                    let own = SocketAddr::new(station.gateway[family], port);
                    send(forger, own, &format!("forged {family} {name} reflected"));
                }
            }
            let heard = station.settle();
            (world.arrived("forged").len(), heard.len())
        };
        for name in ["nat", "route"] {
            assert_eq!(forge(name).0, 0, "{name}");
        }
        assert_eq!(forge("isolated"), (0, 0), "no way out, and no hearing at the gateway");
        assert_eq!(forge("open"), (2 * 2, 2), "to outside and route, and to DNS: the probe works");
    });
}

#[test]
fn isolated_guests_reach_nothing_of_the_host_but_its_services() {
    machine(async || {
        let host = router().await;
        let (world, networks) = World::new(&[
            ("isolated", "vi0", ForwardMode::Isolated),
            ("nat", "vn0", ForwardMode::Nat),
        ]);
        host.apply_firewall(&networks).await.unwrap();
        let (isolated, nat, outside) =
            (world.station("isolated"), world.station("nat"), world.station("outside"));

        for family in [V4, V6] {
            let open = |ip| udp(SocketAddr::new(ip, 8080));
            let [own, of_nat, of_wan] =
                [isolated.gateway, nat.gateway, outside.gateway].map(|ips| open(ips[family]));
            let others = [&own, &of_nat, &of_wan, &outside.served[family]];
            let knock = |from: &Station, expected: usize| {
                for target in others {
                    from.send(family, target.local_addr().unwrap(), "knock");
                }
                from.settle();
                for target in others {
                    assert_eq!(drain(target).len(), expected, "{} {target:?}", from.name);
                }
            };
            knock(nat, 1);
            knock(isolated, 0);
            let dns_of_nat = &nat.served[family];
            isolated.send(family, dns_of_nat.local_addr().unwrap(), "knock");
            isolated.settle();
            assert_eq!(drain(dns_of_nat), [], "DNS of another network");
            // The host speaks to its isolated guests, and hears them then.
            let guest = &isolated.servers[family];
            send(&own, guest.local_addr().unwrap(), "hello");
            let mut buffer = [0; 64];
            let (_, from) = guest.recv_from(&mut buffer).unwrap();
            send(guest, from, "answer");
            own.recv_from(&mut buffer).expect("the answer to the host");
        }
        // Neighbour discovery passes: the guest does not know its gateway's address here.
        inside("isolated", || {
            ip("neigh del fd00:1::1 dev eth0
                neigh del 10.1.0.1 dev eth0");
        });
        for gateway in ["10.1.0.1", "fd00:1::1"] {
            let ping = inside("isolated", || Ping::open(gateway));
            eventually("an answer by neighbour discovery", async || ping.answered()).await;
        }
        for (gateway, reached) in [
            ("10.1.0.1", true),
            ("fd00:1::1", true),
            ("10.2.0.1", false),
            ("fd00:2::1", false),
            ("10.0.0.1", false),
        ] {
            let socket = inside("isolated", || Ping::open(gateway));
            isolated.settle();
            assert_eq!(socket.answered(), reached, "ping {gateway}");
        }
    });
}

/// An echo request that was sent.
struct Ping(Socket, bool);

impl Ping {
    fn open(to: &str) -> Self {
        let to = SocketAddr::new(to.parse().unwrap(), 0);
        let v4 = to.is_ipv4();
        let (domain, protocol) =
            if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        // Type, code, checksum (the kernel fills in that of ICMPv6), identifier, sequence.
        let request = if v4 { [8, 0, 0xf7, 0xfe, 0, 1, 0, 0] } else { [128, 0, 0, 0, 0, 1, 0, 0] };
        socket.send_to(&request, &to.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket, v4)
    }

    /// Whether the echo reply is there.
    fn answered(&self) -> bool {
        let mut buffer = [0; 256];
        while let Ok(length) = (&self.0).read(&mut buffer) {
            let (at, reply) = if self.1 { (20, 0) } else { (0, 129) };
            if length > at && buffer[at] == reply {
                return true;
            }
        }
        false
    }
}

fn listing(table: &str) -> String {
    run(&format!("nft list table inet {table}"))
}

#[test]
fn applying_again_changes_nothing_and_keeps_connections() {
    machine(async || {
        let host = router().await;
        let (world, networks) = World::new(&[("nat", "vn0", ForwardMode::Nat)]);
        nft("add table ip other");
        host.apply_firewall(&networks).await.unwrap();
        let first = listing("netloom-fw");
        assert_eq!(world.reaches("nat", "outside"), BOTH);
        let asked = world.station("outside").servers.each_ref().map(|socket| drain(socket)[0].1);

        host.apply_firewall(&networks).await.unwrap();
        assert_eq!(listing("netloom-fw"), first);
        for family in [V4, V6] {
            send(
                &world.station("outside").servers[family],
                asked[family],
                &format!("late {family} outside nat"),
            );
        }
        assert_eq!(world.arrived("late").len(), 2, "answers after the rules were replaced");

        // Another daemon of the same instance starts from what it is told, not from what is there.
        self::host("fw").apply_firewall(&networks[..0]).await.unwrap();
        let tables = run("nft list tables");
        assert_eq!(tables.trim(), "table ip other", "the other table stays, ours is gone");
        host.remove_firewall().await.unwrap();
    });
}

#[test]
fn two_instances_do_not_disturb_each_other() {
    machine(async || {
        let (one, two) = (router().await, host("second"));
        let (world, networks) =
            World::new(&[("nat", "vn0", ForwardMode::Nat), ("route", "vr0", ForwardMode::Route)]);
        one.apply_firewall(&networks[..1]).await.unwrap();
        two.apply_firewall(&networks[1..]).await.unwrap();
        assert_same(&world.probe("both"), &allowed(&world));
        two.remove_firewall().await.unwrap();
        assert_eq!(world.reaches("outside", "nat"), NEITHER);
        assert_eq!(world.reaches("nat", "outside"), BOTH);
        assert!(one.firewall_present().await.unwrap());
    });
}

#[test]
fn a_foreign_flush_is_repaired() {
    machine(async || {
        let host = router().await;
        let (world, networks) = World::new(&[("nat", "vn0", ForwardMode::Nat)]);
        let mut events = host.events().unwrap();
        host.apply_firewall(&networks).await.unwrap();
        let intact = listing("netloom-fw");
        for damage in [
            "flush ruleset",
            "flush table inet netloom-fw",
            "add rule inet netloom-fw to-vn0 accept",
            "delete element inet netloom-fw forward_to { vn0 }",
        ] {
            nft(damage);
            let event = tokio::time::timeout(host_env::DEADLINE, events.recv()).await;
            assert_eq!(event.expect(damage), Some(HostEvent::FirewallRepaired), "{damage}");
            assert_eq!(listing("netloom-fw"), intact, "{damage}");
        }
        assert!(host.firewall_present().await.unwrap());
        assert_eq!(world.reaches("outside", "nat"), NEITHER);
        // What we change ourselves is no damage.
        host.remove_firewall().await.unwrap();
        nft("flush ruleset");
        assert!(host.firewall_present().await.unwrap());
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn other_tables_that_drop_are_named() {
    machine(async || {
        let (host, networks) = (router().await, [network("vn0", ForwardMode::Nat, 1)]);
        host.apply_firewall(&networks).await.unwrap();
        std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0").ok();
        std::fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0").ok();
        assert_eq!(host.firewall_warnings("vn0").await, <Vec<String>>::new());
        nft("add table ip filter
             add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
             add table inet fw
             add chain inet fw in { type filter hook input priority 0; policy drop; }");
        let warnings = host.firewall_warnings("vn0").await;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].contains("table ip filter, chain FORWARD") && warnings[0].contains("vn0")
        );
        assert!(warnings[1].contains("table inet fw, chain in"), "{warnings:?}");
        if std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1").is_ok() {
            let warnings = host.firewall_warnings("vn0").await;
            assert!(warnings.iter().any(|w| w.contains("bridge-nf-call-iptables")), "{warnings:?}");
        }
    });
}

#[test]
fn names_that_nft_would_interpret_are_refused() {
    machine(async || {
        let host = router().await;
        for bad in ["wan*", "@set", "a\\b", "a\"b", "", "sixteen-letters-"] {
            let mut nat = network("vn0", ForwardMode::Nat, 1);
            nat.forward_dev = Some(bad.into());
            let error = host.apply_firewall(&[nat]).await.unwrap_err();
            assert!(matches!(error, vswitchd::host::Error::InvalidName { .. }), "{bad}: {error:?}");
        }
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn a_missing_nft_is_said_with_its_package() {
    machine(async || {
        let host = router().await;
        for directory in ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"] {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", directory, "tmpfs", flags, None).unwrap();
        }
        let error = host.apply_firewall(&[network("vn0", ForwardMode::Nat, 1)]).await.unwrap_err();
        assert!(matches!(error, vswitchd::host::Error::NftMissing), "{error:?}");
        assert_eq!(error.remedy().unwrap(), "install the Debian package nftables");
    });
}
