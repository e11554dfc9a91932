//! Bad input at the command line: a clear error, at once, and nothing left behind.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use netns_tests::frontend::{Nic, Options, Probe};
use netns_tests::guest::{Guest, Namespace};
use netns_tests::topology::{CONFIG, world};
use netns_tests::{Daemon, Netns};
use wire::MacAddr;

fn daemon() -> anyhow::Result<(Arc<Netns>, Daemon)> {
    let host = Arc::new(Netns::new("host")?);
    let daemon = Daemon::start(&host, "lab", "")?;
    Ok((host, daemon))
}

/// What netctl says of a document; it must refuse it within a second.
fn refused(daemon: &Daemon, xml: &[u8]) -> anyhow::Result<String> {
    let file = daemon.dir().join("bad.xml");
    fs::write(&file, xml)?;
    let start = Instant::now();
    let output = daemon.netctl_output(&["net-define", &file.display().to_string()])?;
    let took = start.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let virsh = ["error: Failed to define network from", "error: Failed to read file"];
    assert!(virsh.iter().any(|start| text.starts_with(start)), "{text}");
    // The debug build of a test run is some ten times slower than a release.
    assert!(took < Duration::from_secs(5), "took {took:?}: {text}");
    Ok(text)
}

fn network(inner: &str) -> String {
    format!("<network>\n  <name>n</name>\n  {inner}\n</network>\n")
}

#[test]
fn bad_documents_are_refused_with_line_and_remedy() -> anyhow::Result<()> {
    let (_host, daemon) = daemon()?;
    let ip = |inner: &str| network(&format!("<ip address='10.1.0.1' prefix='24'>{inner}</ip>"));
    let cases: Vec<(String, &str)> = vec![
        ("<network><name>n</name".to_owned(), "line 1"),
        ("not xml at all".to_owned(), "line 1"),
        ("<domain><name>n</name></domain>".to_owned(), "expecting"),
        ("<network/>".to_owned(), "missing name information"),
        ("<network><name>a/b</name></network>".to_owned(), "invalid char in name: /"),
        ("<network><name>a&#10;b</name></network>".to_owned(), "invalid char in name"),
        (network("<forward mode='sideways'/>"), "sideways"),
        (network("<bridge name='much-too-long-for-linux'/>"), "much-too-long-for-linux"),
        (network("<ip address='10.1.0.256' prefix='24'/>"), "10.1.0.256"),
        (network("<bandwidth><inbound average='1'/></bandwidth>"), "bandwidth"),
        (
            ip("<dhcp><range start='10.1.0.10' end='10.1.0.50'/>\
                <range start='10.1.0.40' end='10.1.0.60'/></dhcp>"),
            "overlap",
        ),
        (ip("<dhcp><range start='10.2.0.10' end='10.2.0.50'/></dhcp>"), "10.2.0.10"),
        (
            "<!DOCTYPE n [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>\
             <network><name>&b;</name></network>"
                .to_owned(),
            "document type",
        ),
    ];
    for (xml, expected) in cases {
        let text = refused(&daemon, xml.as_bytes())?;
        assert!(text.contains(expected), "no `{expected}` in the answer to {xml}:\n{text}");
    }
    let text = refused(&daemon, network("<mtu size='abc'/>").as_bytes())?;
    assert!(text.contains("bad.xml:3:"), "no position: {text}");
    assert_eq!(daemon.netctl(&["net-list", "--all", "--name"])?.trim(), "");
    Ok(())
}

#[test]
fn huge_and_hostile_documents_are_refused_at_once() -> anyhow::Result<()> {
    let (_host, mut daemon) = daemon()?;
    let mut huge = b"<network><name>n</name><description>".to_vec();
    huge.resize(100 << 20, b'x');
    refused(&daemon, &huge)?;
    let mut deep = String::from("<network><name>n</name>");
    deep.push_str(&"<a>".repeat(500_000));
    refused(&daemon, deep.as_bytes())?;
    let mut wide = String::from("<network><name>n</name><ip address='10.1.0.1' prefix='8'><dhcp>");
    for n in 0..40_000 {
        let _ = write!(wide, "<host name='h{n}' ip='10.1.{}.{}'/>", n / 250, n % 250 + 1);
    }
    wide.push_str("</dhcp></ip></network");
    wide.truncate(4 << 20);
    refused(&daemon, wide.as_bytes())?;
    let attributes =
        "<network><name>n</name><x ".to_owned() + &"a='1' ".repeat(300_000) + "/></network>";
    refused(&daemon, attributes.as_bytes())?;
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process()?.id()))?;
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| anyhow::anyhow!("no VmHWM"))?;
    assert!(peak < 160 << 10, "the daemon's memory peaked at {peak} KiB");
    daemon.process()?.check_alive()
}

#[test]
fn a_document_cut_at_any_line_is_refused() -> anyhow::Result<()> {
    let (_host, daemon) = daemon()?;
    let whole = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/default.xml"))?;
    let lines = whole.lines().count();
    for cut in 1..lines {
        let part: String = whole.lines().take(cut).map(|line| format!("{line}\n")).collect();
        refused(&daemon, part.as_bytes())?;
    }
    Ok(())
}

#[test]
fn names_that_are_nft_keywords_work() -> anyhow::Result<()> {
    let (host, daemon) = daemon()?;
    for (n, name) in ["rt0", "drop", "meta", "accept", "ip"].iter().enumerate() {
        let xml = format!(
            "<network><name>{name}</name><forward mode='nat'/><bridge name='{name}'/>\
             <ip address='10.{n}.0.1' prefix='24'/></network>"
        );
        daemon.network(name, &xml)?;
    }
    assert!(host.run(&["nft", "list", "ruleset"])?.contains("\"accept\""));
    Ok(())
}

#[test]
fn bad_ports_are_refused() -> anyhow::Result<()> {
    let (_host, daemon) = daemon()?;
    daemon.network("n", &network("<ip address='10.1.0.1' prefix='24'/>"))?;
    daemon.port("n", "one", &[])?;
    let long = "x".repeat(33);
    let bridge = daemon.json::<api::NetworkInfo>(&["net-info", "n"])?.bridge.context("a bridge")?;
    let cases: [(&[&str], &str); 10] = [
        (&["port-add", "n", "one"], "already"),
        (&["port-add", "nowhere", "two"], "nowhere"),
        (&["port-add", "n", "a/b"], "name"),
        (&["port-add", "n", &long], "name"),
        (
            &["port-add", "n", "two", "--netns", "no-such-netns", "--ifname", "eth0"],
            "no-such-netns",
        ),
        (&["port-add", "n", "two", "--dev", "no-such-dev"], "no-such-dev"),
        (&["port-add", "n", "two", "--dev", "lo"], "not Ethernet's"),
        (&["port-add", "n", "two", "--dev", &bridge], "a port of this switch already"),
        (&["port-add", "n", "two", "--portgroup", "x"], "no portgroup 'x'"),
        (&["port-add", "n", "two", "--queues", "17"], "17 is not in 1..=16"),
    ];
    for (words, expected) in cases {
        let output = daemon.netctl_output(words)?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains(expected), "{words:?}: {text}");
        assert!(text.contains("\nhint: "), "{words:?}: no remedy in {text}");
    }
    let ports: Vec<api::PortInfo> = daemon.json(&["port-list"])?;
    assert_eq!(ports.len(), 1, "a refused port is there: {ports:?}");
    Ok(())
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_a_remedy() -> anyhow::Result<()> {
    let host = Arc::new(Netns::new("host")?);
    // sun_path holds 108 bytes; the API's socket still fits, a long port name's does not.
    let daemon = Daemon::start_in(&host, "lab", "", &"deep".repeat(9))?;
    daemon.network("n", &network("<ip address='10.1.0.1' prefix='24'/>"))?;
    let output = daemon.netctl_output(&["port-add", "n", &"p".repeat(32)])?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("shorten"), "{text}");
    Ok(())
}

#[test]
fn a_subnet_of_the_host_or_of_another_network_is_refused_by_name() -> anyhow::Result<()> {
    let (host, _inet) = world()?;
    let host = Arc::new(host);
    host.ip("route add 10.60.0.0/16 via 203.0.113.1 table 77")?;
    let daemon = Daemon::start(&host, "lab", CONFIG)?;
    let define = |name: &str, subnet: &str| -> anyhow::Result<String> {
        let file = daemon.dir().join(format!("{name}.xml"));
        fs::write(
            &file,
            format!("<network><name>{name}</name><ip address='{subnet}' prefix='24'/></network>"),
        )?;
        daemon.netctl(&["net-define", &file.display().to_string()])?;
        let output = daemon.netctl_output(&["net-start", name])?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let text = define("a", "203.0.113.129")?;
    assert!(text.contains("203.0.113.0/24") && text.contains("wan"), "{text}");
    let text = define("b", "10.60.7.1")?;
    assert!(text.contains("10.60.0.0/16") && text.contains("77"), "{text}");
    assert_eq!(define("c", "10.61.0.1")?, "");
    let text = define("d", "10.61.0.9")?;
    assert!(text.contains("'c'") || text.contains("\"c\""), "{text}");
    Ok(())
}

/// A host where something else drops forwarded traffic: the start says so.
#[test]
fn a_foreign_drop_policy_is_named_in_a_warning() -> anyhow::Result<()> {
    let (host, daemon) = daemon()?;
    host.run(&[
        "nft",
        "add table inet fortress; add chain inet fortress fw { type filter hook forward priority 0; policy drop; }",
    ])?;
    let text = warnings_of_nat(&daemon)?;
    assert!(text.contains("fortress"), "{text}");
    Ok(())
}

/// What the start of a network says that can do its work.
fn warnings_of_nat(daemon: &Daemon) -> anyhow::Result<String> {
    let xml = network("<forward mode='nat'/><ip address='10.1.0.1' prefix='24'/>");
    let file = daemon.dir().join("n.xml");
    fs::write(&file, xml)?;
    daemon.netctl(&["net-define", &file.display().to_string()])?;
    let output = daemon.netctl_output(&["net-start", "n"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    Ok(text)
}

#[test]
fn a_drop_policy_of_legacy_iptables_is_named_in_a_warning() -> anyhow::Result<()> {
    let (host, daemon) = daemon()?;
    host.run(&["iptables-legacy", "-P", "FORWARD", "DROP"])?;
    let text = warnings_of_nat(&daemon)?;
    assert!(text.contains("iptables-legacy, chain FORWARD"), "{text}");
    Ok(())
}

/// Malformed DHCP and DNS from a guest: the services go on, and two other guests, between which a
/// thousand frames per second pass meanwhile, lose nothing.
#[test]
fn malformed_dhcp_and_dns_do_no_harm() -> anyhow::Result<()> {
    let (_host, mut daemon) = daemon()?;
    let xml = network(
        "<domain name='n.test'/><ip address='10.1.0.1' prefix='24'>\
         <dhcp><range start='10.1.0.10' end='10.1.0.99'/></dhcp></ip>",
    );
    daemon.network("n", &xml)?;
    let mut guest = Namespace::on(&daemon, "n", "guest", &[])?;
    guest.dhcp()?;
    let nic = |name: &str, last: u8| -> anyhow::Result<Nic> {
        let socket = daemon.port("n", name, &[])?.socket.context("no socket")?;
        Nic::connect(
            &socket,
            Options { ring: 1024, ..Options::new(MacAddr([2, 0, 0, 0, 4, last])) },
        )
    };
    let probe = Probe::start(nic("first", 1)?, nic("second", 2)?, 1000)?;
    guest.netns().enter(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for n in 0..4000_usize {
            let mut bytes = vec![0; n % 700];
            for byte in &mut bytes {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *byte = random.to_le_bytes()[0];
            }
            if n % 2 == 0 && bytes.len() > 244 {
                // Far enough into the parser: a request with the cookie, and rubbish options.
                bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
                bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
            }
            socket.send_to(&bytes, "10.1.0.1:53")?;
            socket.send_to(&bytes, "10.1.0.1:67")?;
        }
        Ok(())
    })?;
    let (report, ..) = probe.finish()?;
    assert!(report.sent > 0 && report.lost.is_empty(), "{report:?}");
    // All of it is accounted for, by reason. What the switch itself refused is with the port.
    let stats: api::NetworkStats = daemon.json(&["net-stats", "n"])?;
    let (dhcp, dns) = (stats.dhcp4.context("no DHCP")?, stats.dns.context("no DNS")?);
    for reason in ["truncated", "hardware-type", "malformed"] {
        assert!(dhcp.drops.get(reason).is_some_and(|count| *count > 0), "{reason}: {dhcp:?}");
    }
    assert!(dhcp.drops.values().sum::<u64>() > 1000, "{dhcp:?}");
    assert_eq!((dhcp.offers, dhcp.acks, dhcp.naks), (1, 1, 0), "{dhcp:?}");
    for reason in ["short", "response"] {
        assert!(dns.drops.get(reason).is_some_and(|count| *count > 0), "{reason}: {dns:?}");
    }
    let decided = dns.malformed + dns.local + dns.refused + dns.drops.values().sum::<u64>();
    assert!(dns.malformed > 0 && decided >= dns.queries, "{dns:?}");
    let text = daemon.netctl(&["net-stats", "n"])?;
    assert!(text.contains("dhcp4 drop truncated") && text.contains("dns malformed"), "{text}");
    guest.dhcp()?;
    assert_eq!(guest.run("dig +short +time=2 @10.1.0.1 guest.n.test")?.lines().count(), 1);
    daemon.process()?.check_alive()
}
