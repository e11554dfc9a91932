//! TAPs, addresses, routes, settings and notifications, on the real kernel.

mod host_env;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use host_env::{eventually, host, inside, ip, machine, run, udp};
use ipnet::IpNet;
use uuid::Uuid;
use vswitchd::host::{Error, Host, HostEvent, RouteSpec, TapSpec};

const OBJECT: Uuid = Uuid::from_u128(0x1234);

fn tap(name: &str, netns: Option<&str>) -> TapSpec {
    TapSpec {
        name: name.to_owned(),
        object: OBJECT,
        mac: Some("52:54:00:aa:bb:cc".parse().unwrap()),
        mtu: 1400,
        queues: 2,
        netns: netns.map(str::to_owned),
        up: true,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

async fn event(events: &mut tokio::sync::mpsc::UnboundedReceiver<HostEvent>) -> HostEvent {
    tokio::time::timeout(host_env::DEADLINE, events.recv()).await.expect("no event").unwrap()
}

#[test]
fn a_tap_is_made_adopted_and_deleted() {
    machine(async || {
        let host = host("links");
        let first = host.create_tap(&tap("gw0", None)).await.unwrap();
        assert!(!first.adopted && first.queues.len() == 2);
        let shown = run("ip -d link show dev gw0");
        for part in
            ["mtu 1400", "52:54:00:aa:bb:cc", ",UP", "persist on", "multi_queue", "vnet_hdr on"]
        {
            assert!(shown.contains(part), "{part} is missing: {shown}");
        }
        assert!(shown.contains(&format!("alias netloom:links:{OBJECT}")), "{shown}");

        // The daemon goes; the interface stays; the next daemon takes it back and mends it.
        drop(first.queues);
        ip("link set dev gw0 mtu 1300 down");
        let again = self::host("links").create_tap(&tap("gw0", None)).await.unwrap();
        assert!(again.adopted);
        assert_eq!((again.ifindex, again.netns), (first.ifindex, first.netns));
        let shown = run("ip link show dev gw0");
        assert!(shown.contains("mtu 1400") && shown.contains(",UP"), "{shown}");
        // Its queues work: a frame from the kernel side arrives.
        ip("addr add 10.9.0.1/24 dev gw0
            neigh replace 10.9.0.2 lladdr 52:54:00:00:00:02 dev gw0 nud permanent");
        let sender = udp("10.9.0.1:1000".parse().unwrap());
        eventually("a frame through the adopted TAP", async || {
            sender.send_to(b"<word tap>", "10.9.0.2:1").unwrap();
            let mut frame = [0; 2000];
            again.queues.iter().any(|queue| {
                while let Ok(length) = rustix::io::read(queue, &mut frame) {
                    if frame[..length].ends_with(b"<word tap>") {
                        return true;
                    }
                }
                false
            })
        })
        .await;

        let owned = host.owned_links().await.unwrap();
        assert_eq!(owned.len(), 1);
        assert_eq!((owned[0].name.as_str(), owned[0].object, owned[0].up), ("gw0", OBJECT, true));
        assert!(host.link_exists("gw0").await.unwrap());
        let other = host.delete_link("gw0", Uuid::from_u128(9), None).await.unwrap_err();
        assert!(matches!(other, Error::ForeignDevice { .. }), "{other:?}");
        assert!(host.delete_link("gw0", OBJECT, None).await.unwrap());
        assert!(!host.delete_link("gw0", OBJECT, None).await.unwrap());
        assert!(!host.link_exists("gw0").await.unwrap());
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    machine(async || {
        let host = host("links");
        ip("link add br0 type bridge
            tuntap add dev tap0 mode tap
            link add v0 type veth peer name v1");
        // Of the same object in another instance, and of another object in this one.
        self::host("other").create_tap(&tap("theirs", None)).await.unwrap();
        host.create_tap(&TapSpec { object: Uuid::from_u128(7), ..tap("another", None) })
            .await
            .unwrap();
        for name in ["br0", "tap0", "v0", "lo", "theirs", "another"] {
            let before = run(&format!("ip -d link show dev {name}"));
            let error = host.create_tap(&tap(name, None)).await.unwrap_err();
            assert!(matches!(&error, Error::ForeignDevice { name: n } if n == name), "{error:?}");
            assert!(error.to_string().contains(name) && error.remedy().is_some());
            let error = host.delete_link(name, OBJECT, None).await.unwrap_err();
            assert!(matches!(error, Error::ForeignDevice { .. }), "{error:?}");
            assert_eq!(run(&format!("ip -d link show dev {name}")), before);
        }
        let owned = host.owned_links().await.unwrap();
        assert_eq!(owned.len(), 1, "{owned:?}");

        // Even with our alias: only a TAP is adopted as one.
        ip(&format!("link set dev v0 alias netloom:links:{OBJECT}"));
        let error = host.create_tap(&tap("v0", None)).await.unwrap_err();
        assert!(matches!(error, Error::ForeignDevice { .. }), "{error:?}");
        // An alternative name is a taken name too.
        ip("link property add dev v1 altname taken");
        let error = host.create_tap(&tap("taken", None)).await.unwrap_err();
        assert!(matches!(error, Error::ForeignDevice { .. }), "{error:?}");
    });
}

#[test]
fn a_failed_tap_leaves_nothing() {
    machine(async || {
        let host = host("links");
        let huge = TapSpec { mtu: 1_000_000, ..tap("gw0", None) };
        let error = host.create_tap(&huge).await.unwrap_err();
        assert!(
            error.to_string().contains("gw0") && error.to_string().contains("1000000"),
            "{error}"
        );
        assert!(!host.link_exists("gw0").await.unwrap());

        for bad in ["", "sixteen-letters-", "a/b", "a b", "a\n", "..", "-a", "tap%d", "é", "a*"] {
            let error = host.create_tap(&tap(bad, None)).await.unwrap_err();
            assert!(matches!(error, Error::InvalidName { .. }), "{bad:?}: {error:?}");
        }
        for bad in ["", "..", "nowhere", "/nowhere/ns", "a\0b"] {
            let error = host.create_tap(&tap("eth0", Some(bad))).await.unwrap_err();
            assert!(matches!(error, Error::NoSuchNamespace { .. }), "{bad:?}: {error:?}");
        }
        // Things that are no network namespace are not even opened: a FIFO would hang.
        std::fs::write("/run/netns/file", "").unwrap();
        run("mkfifo /run/netns/fifo");
        for bad in ["file", "fifo", "/dev/null", "/proc/self/ns/mnt"] {
            let error = host.create_tap(&tap("eth0", Some(bad))).await.unwrap_err();
            assert!(matches!(error, Error::EnterNamespace { .. }), "{bad}: {error:?}");
            assert!(error.to_string().contains(bad));
        }
    });
}

#[test]
fn a_tap_inside_a_namespace_survives_the_daemon() {
    machine(async || {
        let host = host("links");
        ip("netns add guest");
        for (netns, name) in [("guest", "eth0"), ("/run/netns/guest", "eth1")] {
            let spec = tap(name, Some(netns));
            let made = host.create_tap(&spec).await.unwrap();
            assert!(!made.adopted);
            assert_eq!(made.netns, host.netns_id("guest").unwrap());
            assert!(!host.link_exists(name).await.unwrap(), "not in the daemon's namespace");
            let shown = run(&format!("ip -n guest link show dev {name}"));
            assert!(shown.contains("52:54:00:aa:bb:cc") && shown.contains("mtu 1400"), "{shown}");
            drop(made);
            let again = self::host("links").create_tap(&spec).await.unwrap();
            assert!(again.adopted);
        }
        // eth0 by name and eth0 of the daemon's namespace are two devices.
        host.create_tap(&tap("eth0", None)).await.unwrap();
        assert!(host.delete_link("eth0", OBJECT, Some("guest")).await.unwrap());
        assert!(host.link_exists("eth0").await.unwrap());
        assert!(!run("ip -n guest link").contains("eth0"));
        assert!(!host.delete_link("eth0", OBJECT, Some("gone")).await.unwrap());
        // The thread that entered the namespace is gone: we still work in our own.
        assert_eq!(host.owned_links().await.unwrap().len(), 1);
    });
}

#[test]
fn a_deleted_namespace_is_reported_once() {
    machine(async || {
        let host = host("links");
        let mut events = host.events().unwrap();
        ip("netns add one\nnetns add two");
        let made = host.create_tap(&tap("eth0", Some("one"))).await.unwrap();
        host.watch_netns("one", made.netns);
        host.watch_netns("two", host.netns_id("two").unwrap());
        let path =
            format!("/proc/self/fd/{}", std::fs::File::open("/run/netns/two").unwrap().as_raw_fd());
        host.watch_netns(&path, host.netns_id("two").unwrap());

        // The closed fd's path is gone: found by looking, /proc sends no notifications.
        assert_eq!(event(&mut events).await, HostEvent::NetnsGone { netns: path });
        ip("netns del one");
        assert_eq!(event(&mut events).await, HostEvent::NetnsGone { netns: "one".into() });
        // A new namespace of that name is another one.
        let two = host.netns_id("two").unwrap();
        ip("netns del two\nnetns add two");
        assert_eq!(event(&mut events).await, HostEvent::NetnsGone { netns: "two".into() });
        assert_ne!(host.netns_id("two").unwrap(), two);

        host.watch_netns("two", host.netns_id("two").unwrap());
        host.unwatch_netns("two");
        ip("netns del two");
        // Already gone when the watch begins.
        host.watch_netns("one", made.netns);
        assert_eq!(event(&mut events).await, HostEvent::NetnsGone { netns: "one".into() });
        drop(made);
    });
}

#[test]
fn a_deleted_interface_is_reported() {
    machine(async || {
        let host = host("links");
        let mut events = host.events().unwrap();
        let made = host.create_tap(&tap("gw0", None)).await.unwrap();
        ip("link add br0 type bridge\nlink set dev gw0 master br0\nlink set dev gw0 nomaster");
        ip("link del gw0");
        let gone =
            HostEvent::LinkGone { ifindex: made.ifindex, name: "gw0".into(), object: Some(OBJECT) };
        assert_eq!(event(&mut events).await, gone);
        ip("link del br0");
        assert!(matches!(
            event(&mut events).await,
            HostEvent::LinkGone { name, object: None, .. } if name == "br0"
        ));
    });
}

fn addresses(ifname: &str) -> Vec<String> {
    let shown = run(&format!("ip -o addr show dev {ifname} scope global"));
    let mut found: Vec<String> =
        shown.lines().map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect();
    found.sort();
    found
}

#[test]
fn addresses_are_set_exactly_and_usable_at_once() {
    machine(async || {
        let host = host("links");
        let _gw = host.create_tap(&tap("gw0", None)).await.unwrap();
        host.gateway_sysctls("gw0", true).await.unwrap();
        let both = [net("192.168.122.1/24"), net("fd00:1::1/64")];
        for _ in 0..2 {
            host.set_addresses("gw0", &both).await.unwrap();
            assert_eq!(addresses("gw0"), ["192.168.122.1/24", "fd00:1::1/64"]);
        }
        // No duplicate address detection: a service binds in the same moment.
        udp(SocketAddr::new("fd00:1::1".parse().unwrap(), 53));
        let shown = run("ip addr show dev gw0");
        assert!(shown.contains("brd 192.168.122.255"), "{shown}");
        assert!(run("ip route").contains("192.168.122.0/24 dev gw0"));

        ip("addr add 172.16.0.1/24 dev gw0");
        host.set_addresses("gw0", &[net("192.168.123.1/24"), net("fd00:1::1/64")]).await.unwrap();
        assert_eq!(addresses("gw0"), ["172.16.0.1/24", "192.168.123.1/24", "fd00:1::1/64"]);
        host.set_addresses("gw0", &[]).await.unwrap();
        assert_eq!(addresses("gw0"), ["172.16.0.1/24"], "an administrator's address stays");

        let error = host.set_addresses("nope", &both).await.unwrap_err();
        assert!(matches!(error, Error::NoSuchInterface { .. }), "{error:?}");
    });
}

fn sysctl(key: &str) -> String {
    // Through the thread's own view: /proc/sys/net is that of the reading thread.
    std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap().trim().to_owned()
}

#[test]
fn forwarding_is_turned_on_and_gateways_take_no_advertisements() {
    machine(async || {
        let host = host("links");
        let _gw = host.create_tap(&tap("gw0", None)).await.unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        host.enable_forwarding(true, false).await.unwrap();
        assert_eq!(
            (sysctl("ipv4/ip_forward"), sysctl("ipv6/conf/all/forwarding")),
            ("1".into(), "0".into())
        );
        host.enable_forwarding(false, true).await.unwrap();
        assert_eq!(
            (sysctl("ipv4/ip_forward"), sysctl("ipv6/conf/all/forwarding")),
            ("1".into(), "1".into())
        );

        host.gateway_sysctls("gw0", true).await.unwrap();
        let of = |key: &str| sysctl(&format!("ipv6/conf/gw0/{key}"));
        assert_eq!(
            (of("accept_ra"), of("autoconf"), of("disable_ipv6")),
            ("0".into(), "0".into(), "0".into())
        );
        host.gateway_sysctls("gw0", false).await.unwrap();
        assert_eq!(of("disable_ipv6"), "1");
        let error = host.gateway_sysctls("nope", false).await.unwrap_err();
        assert!(matches!(error, Error::NoSuchInterface { .. }), "{error:?}");
    });
}

#[test]
fn forwarding_does_not_cut_off_an_interface_that_lives_on_advertisements() {
    machine(async || {
        let host = host("links");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        ip("link add wan0 type veth peer name far
            link set far up
            link set wan0 up
            addr add 2001:db8::2/64 dev wan0 nodad
            route add default via 2001:db8::1 dev wan0 proto ra");
        std::fs::write("/proc/sys/net/ipv6/conf/wan0/accept_ra", "1").unwrap();
        let error = host.enable_forwarding(true, true).await.unwrap_err();
        assert!(
            matches!(&error, Error::RouterAdvertisement { interface } if interface == "wan0"),
            "{error:?}"
        );
        assert_eq!(error.remedy().unwrap(), "set net.ipv6.conf.wan0.accept_ra=2");
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0");
        std::fs::write("/proc/sys/net/ipv6/conf/wan0/accept_ra", "2").unwrap();
        host.enable_forwarding(true, true).await.unwrap();
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
    });
}

async fn conflict(host: &Host, subnet: &str) -> Option<String> {
    host.subnet_conflict(net(subnet), None).await.unwrap().map(|conflict| conflict.to_string())
}

#[test]
fn overlapping_routes_of_any_table_are_named() {
    machine(async || {
        let host = host("links");
        ip("link add wan0 type veth peer name far
            link set far up
            link set wan0 up
            addr add 192.0.2.2/24 dev wan0
            addr add 2001:db8:5::2/48 dev wan0 nodad
            addr add 10.77.0.5/32 dev lo
            route add default via 192.0.2.1
            route add 0.0.0.0/1 via 192.0.2.1
            route add 128.0.0.0/1 via 192.0.2.1
            route add default via 2001:db8:5::1
            route add 2000::/3 via 2001:db8:5::1
            route add 10.0.0.0/12 via 192.0.2.9
            route add 172.20.5.0/24 via 192.0.2.9 table 1000
            route add 192.168.50.0/24 nexthop via 192.0.2.7 nexthop via 192.0.2.8
            route add blackhole 192.168.0.0/16");
        for (subnet, expected) in [
            ("192.168.122.0/24", None),
            ("fd00:1::/64", None),
            ("10.5.6.0/24", Some("route 10.0.0.0/12 via 192.0.2.9 of interface wan0")),
            ("10.0.0.0/8", Some("route 10.0.0.0/12 via 192.0.2.9 of interface wan0")),
            (
                "172.16.0.0/12",
                Some("route 172.20.5.0/24 via 192.0.2.9 of interface wan0 (table 1000)"),
            ),
            ("192.168.50.128/25", Some("route 192.168.50.0/24 of interface wan0")),
            ("192.0.2.0/25", Some("route 192.0.2.0/24 of interface wan0")),
            ("2001:db8:5:1::/64", Some("route 2001:db8:5::/48 of interface wan0")),
            ("10.77.0.0/24", Some("route local 10.77.0.5 of interface lo (table local)")),
            ("127.5.0.0/16", Some("route local 127.0.0.0/8 of interface lo (table local)")),
        ] {
            assert_eq!(conflict(&host, subnet).await.as_deref(), expected, "{subnet}");
        }
        // The host part of the gateway's address does not matter.
        assert!(conflict(&host, "192.0.2.1/30").await.is_some());

        // Our own interfaces, and the one to be adopted, are no conflict.
        let _gw = host.create_tap(&tap("gw0", None)).await.unwrap();
        host.set_addresses("gw0", &[net("192.168.122.1/24")]).await.unwrap();
        assert_eq!(conflict(&host, "192.168.122.0/24").await, None);
        let other = self::host("other");
        assert_eq!(
            conflict(&other, "192.168.122.0/25").await.as_deref(),
            Some("route 192.168.122.0/24 of interface gw0")
        );
        assert_eq!(
            other.subnet_conflict(net("192.168.122.0/25"), Some("gw0")).await.unwrap(),
            None
        );
    });
}

#[test]
fn static_routes_come_and_go() {
    machine(async || {
        let host = host("links");
        let _gw = host.create_tap(&tap("gw0", None)).await.unwrap();
        host.gateway_sysctls("gw0", true).await.unwrap();
        host.set_addresses("gw0", &[net("10.1.0.1/24"), net("fd00:1::1/64")]).await.unwrap();
        let route = |subnet: &str, gateway: &str, metric| RouteSpec {
            net: net(subnet),
            gateway: gateway.parse().unwrap(),
            interface: "gw0".into(),
            metric,
        };
        let wanted = [
            route("10.8.0.0/16", "10.1.0.2", None),
            route("10.9.0.0/16", "10.1.0.2", Some(7)),
            route("fd00:8::/48", "fd00:1::2", None),
        ];
        for spec in wanted.iter().chain(&wanted) {
            host.add_route(spec).await.unwrap();
        }
        let shown = run("ip route");
        assert!(shown.contains("10.8.0.0/16 via 10.1.0.2 dev gw0"), "{shown}");
        assert!(
            shown.contains("10.9.0.0/16 via 10.1.0.2 dev gw0 proto static metric 7"),
            "{shown}"
        );
        assert!(run("ip -6 route").contains("fd00:8::/48 via fd00:1::2 dev gw0"));
        let taken = host.add_route(&route("10.8.0.0/16", "10.1.0.3", None)).await.unwrap_err();
        assert!(taken.to_string().contains("10.8.0.0/16 via 10.1.0.3"), "{taken}");
        let unreachable = host.add_route(&route("10.7.0.0/16", "10.55.0.3", None)).await;
        assert!(unreachable.is_err());
        for spec in &wanted {
            assert!(host.del_route(spec).await.unwrap());
            assert!(!host.del_route(spec).await.unwrap());
        }
    });
}

#[test]
fn a_tap_becomes_a_port_of_a_bridge() {
    machine(async || {
        let host = host("links");
        ip("link add br0 type bridge");
        let _tap = host.create_tap(&TapSpec { mac: None, ..tap("vnl0", None) }).await.unwrap();
        assert!(host.bridge_exists("br0").await.unwrap());
        assert!(!host.bridge_exists("vnl0").await.unwrap());
        assert!(!host.bridge_exists("br1").await.unwrap());
        for _ in 0..2 {
            host.enslave("vnl0", "br0").await.unwrap();
        }
        assert!(run("ip link show dev vnl0").contains("master br0"));
        let error = host.enslave("vnl0", "br1").await.unwrap_err();
        assert!(matches!(&error, Error::NoSuchInterface { name } if name == "br1"), "{error:?}");
        host.set_up("vnl0", false).await.unwrap();
        let shown = run("ip link show dev vnl0");
        assert!(!shown.contains(",UP"), "{shown}");
    });
}

#[test]
fn a_packet_socket_belongs_to_the_daemons_namespace() {
    machine(async || {
        let host = host("links");
        ip("link add wan0 type veth peer name far\nlink set far up\nlink set wan0 up");
        let socket = host.open_packet("wan0").await.unwrap();
        assert!(socket.as_raw_fd() > 2);
        let error = host.open_packet("nope").await.unwrap_err();
        assert!(matches!(error, Error::NoSuchInterface { .. }), "{error:?}");
    });
}

#[test]
fn the_owner_of_a_port_is_named() {
    machine(async || {
        let host = host("links");
        ip("netns add other");
        let free: SocketAddr = "127.0.0.9:53".parse().unwrap();
        assert_eq!(host.port_owner(free).await, None);
        let elsewhere = inside("other", || udp("0.0.0.0:53".parse().unwrap()));
        assert_eq!(host.port_owner(free).await, None, "another namespace's socket is no conflict");
        drop(elsewhere);

        let here = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (bound, asked) in [
            ("127.0.0.9:53", "127.0.0.9:53"),
            ("0.0.0.0:53", "127.0.0.9:53"),
            ("[::1]:53", "[::1]:53"),
            ("[::]:53", "127.0.0.9:53"),
        ] {
            let socket = udp(here(bound));
            let owner = host.port_owner(here(asked)).await.expect(bound);
            assert_eq!(owner.pid, std::process::id(), "UDP {bound}");
            assert!(!owner.name.is_empty());
            drop(socket);
            let listener = std::net::TcpListener::bind(here(bound)).unwrap();
            assert!(host.port_owner(here(asked)).await.is_some(), "TCP {bound}");
            drop(listener);
            assert_eq!(host.port_owner(here(asked)).await, None);
        }
    });
}
