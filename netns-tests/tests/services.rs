//! DHCP and DNS with real clients: User-mode Linux, QEMU, udhcpc and dhclient.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netns_tests::guest::{Guest, Namespace, Qemu, Uml, qemu::Nic};
use netns_tests::topology::INET;
use netns_tests::{Lab, wait};

const NETWORK: &str = "<network>
  <name>lan</name>
  <forward mode='nat'/>
  <bridge name='lan0'/>
  <mtu size='1450'/>
  <domain name='lan.test' localOnly='yes'/>
  <dns>
    <txt name='about' value='a lab'/>
    <srv service='ldap' protocol='tcp' domain='lan.test' target='db.lan.test' port='389'/>
    <host ip='10.8.0.200'><hostname>printer</hostname></host>
  </dns>
  <ip address='10.8.0.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='10.8.0.10' end='10.8.0.99'/>
      <host mac='52:54:00:00:00:77' name='db' ip='10.8.0.77'/>
    </dhcp>
  </ip>
</network>";

fn in_range(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    [a, b, c] == [10, 8, 0] && (10..=99).contains(&d)
}

#[test]
fn four_kinds_of_clients_get_addresses_and_names() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let port = lab.daemon.port("lan", "qemu", &[])?;
    let socket = port.socket.as_deref().ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut qemu = Qemu::start("qemu", &[Nic::new(socket, port.mac)])?;
    let port = lab.daemon.port("lan", "uml", &[])?;
    let socket = port.socket.as_deref().ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut uml = Uml::start("uml", &[socket])?;
    let mut udhcpc = Namespace::on(&lab.daemon, "lan", "udhcpc", &[])?;
    let mut dhclient =
        Namespace::on(&lab.daemon, "lan", "dhclient", &["--mac", "52:54:00:00:00:77"])?;

    let mut addresses = vec![qemu.dhcp()?, uml.dhcp()?, udhcpc.dhcp()?];
    assert!(addresses.iter().all(|address| in_range(*address)), "{addresses:?}");
    let dir = dhclient.dir().display().to_string();
    std::fs::write(dhclient.dir().join("conf"), "also request interface-mtu;\n")?;
    let text = dhclient.run(&format!(
        "dhclient -4 -v -1 -sf /bin/true -cf {dir}/conf -lf {dir}/leases -pf {dir}/pid eth0"
    ))?;
    // dhclient stays to renew; its process id is in its file.
    dhclient.run(&format!("kill $(cat {dir}/pid)"))?;
    assert!(text.contains("bound to 10.8.0.77"), "the reservation was not given:\n{text}");
    let lease = std::fs::read_to_string(format!("{dir}/leases"))?;
    for option in [
        "option subnet-mask 255.255.255.0",
        "option routers 10.8.0.1",
        "option domain-name-servers 10.8.0.1",
        "option domain-name \"lan.test\"",
        "option interface-mtu 1450",
    ] {
        assert!(lease.contains(option), "no `{option}` in\n{lease}");
    }
    addresses.push("10.8.0.77".parse()?);
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 4, "an address was given twice: {addresses:?}");

    let leases = lab.daemon.leases("lan")?;
    let mut leased: Vec<IpAddr> = leases.iter().map(|lease| lease.ip).collect();
    leased.sort_unstable();
    assert_eq!(leased, addresses.iter().copied().map(IpAddr::V4).collect::<Vec<_>>());
    let db = leases.iter().find(|lease| lease.port.as_deref() == Some("dhclient"));
    assert_eq!(db.and_then(|lease| lease.hostname.as_deref()), Some("db"));

    // Names of each other, through the resolver that DHCP set.
    qemu.ping("uml")?;
    uml.ping("udhcpc.lan.test")?;
    udhcpc.ping("qemu")?;
    Ok(())
}

#[test]
fn names_of_the_network_and_of_the_outside() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut guest = Namespace::on(&lab.daemon, "lan", "guest", &[])?;
    let address = guest.dhcp()?;
    let mut dig =
        |words: &str| guest.run(&format!("dig +short +time=2 +tries=2 @10.8.0.1 {words}"));
    for tcp in ["", "+tcp "] {
        assert_eq!(dig(&format!("{tcp}printer.lan.test A"))?.trim(), "10.8.0.200");
        assert_eq!(dig(&format!("{tcp}guest.lan.test A"))?.trim(), address.to_string());
        assert_eq!(dig(&format!("{tcp}-x {address}"))?.trim(), "guest.lan.test.");
        assert_eq!(dig(&format!("{tcp}www.example.test A"))?.trim(), INET);
    }
    assert_eq!(dig("about TXT")?.trim(), "\"a lab\"");
    assert_eq!(dig("_ldap._tcp.lan.test SRV")?.trim(), "0 0 389 db.lan.test.");
    let unknown = guest.run("dig +time=2 +tries=2 @10.8.0.1 nobody.lan.test A")?;
    assert!(unknown.contains("NXDOMAIN"), "{unknown}");
    // A second question for the same outside name is answered from the cache.
    let first = guest.run("dig +time=2 @10.8.0.1 v6.example.test AAAA")?;
    assert!(first.contains("2001:db8:113::1"), "{first}");
    drop(lab.dns);
    let again = guest.run("dig +time=2 @10.8.0.1 v6.example.test AAAA")?;
    assert!(again.contains("2001:db8:113::1"), "not cached: {again}");
    Ok(())
}

#[test]
fn isolated_guests_get_no_router_and_no_outside_names() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", &NETWORK.replace("<forward mode='nat'/>", ""))?;
    let mut guest = Namespace::on(&lab.daemon, "lan", "guest", &[])?;
    guest.dhcp()?;
    let routes = guest.run("ip route")?;
    assert!(!routes.contains("default"), "{routes}");
    let printer = guest.run("dig +short +time=2 @10.8.0.1 printer.lan.test A")?;
    assert_eq!(printer.trim(), "10.8.0.200");
    let outside = guest.run("dig +time=2 +tries=1 @10.8.0.1 www.example.test A")?;
    assert!(outside.contains("REFUSED"), "{outside}");
    Ok(())
}

#[test]
fn a_busy_port_53_fails_the_start_and_names_the_process() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let before = lab.host.ip("-o link show")?;
    // A wildcard socket of another name server, as on many hosts.
    let mut other = lab.host.command("dnsmasq");
    other.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
    other.args(["--pid-file=", "--user=root"]);
    let dir = netns_tests::record::run().directory("other");
    let process = netns_tests::process::Process::start_quiet("dnsmasq", other, &dir)?;
    wait::until("dnsmasq to listen", Duration::from_secs(5), || {
        lab.host.run(&["ss", "-Hln", "sport = :53"]).is_ok_and(|text| !text.is_empty())
    })?;
    let error = lab.daemon.network("lan", NETWORK).expect_err("port 53 is taken").to_string();
    assert!(error.contains("dnsmasq") && error.contains(&process.id().to_string()), "{error}");
    assert_eq!(lab.host.ip("-o link show")?, before, "the failed start left links");
    drop(process);
    lab.daemon.netctl(&["net-start", "lan"])?;
    Ok(())
}
