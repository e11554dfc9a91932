//! VLAN separation, port isolation and hub mode between real network stacks.

use std::time::Duration;

use netns_tests::Lab;
use netns_tests::capture::Capture;
use netns_tests::guest::{Guest, Namespace, Uml};

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.9.0.1' netmask='255.255.255.0'/></network>";

fn namespace(lab: &Lab, name: &str, host: u8, more: &[&str]) -> anyhow::Result<Namespace> {
    let mut guest = Namespace::on(&lab.daemon, "lan", name, more)?;
    guest.run(&format!("ip link set eth0 up; ip addr add 10.9.0.{host}/24 dev eth0"))?;
    Ok(guest)
}

#[test]
fn access_ports_of_different_vlans_do_not_hear_each_other() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut a10 = namespace(&lab, "a10", 10, &["--vlan", "10"])?;
    let _b10 = namespace(&lab, "b10", 11, &["--vlan", "10"])?;
    let c20 = namespace(&lab, "c20", 12, &["--vlan", "20"])?;
    let trunk = namespace(&lab, "trunk", 13, &["--trunk", "10,20"])?;
    let at_c = Capture::start(c20.netns(), "eth0")?;
    let at_trunk = Capture::start(trunk.netns(), "eth0")?;

    a10.ping("10.9.0.11")?;
    assert!(!a10.reaches("10.9.0.12".parse()?)?, "VLAN 10 reaches VLAN 20");
    assert!(!a10.reaches("10.9.0.1".parse()?)?, "VLAN 10 reaches the untagged gateway");

    // The ARP request for .12 went to the trunk, tagged; the kernel takes the tag out of the frame
    // before a capture sees it, so the request itself is the evidence, and its absence in VLAN 20.
    let request_for_12 = [10, 9, 0, 12];
    at_trunk.wait_for(&request_for_12, Duration::from_secs(5))?;
    assert!(!at_c.holds(&request_for_12), "a broadcast of VLAN 10 reached VLAN 20");
    Ok(())
}

#[test]
fn a_port_changes_its_vlan_while_in_use_and_keeps_it() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut a = namespace(&lab, "a", 10, &["--vlan", "10"])?;
    let mut b = namespace(&lab, "b", 11, &["--vlan", "20"])?;
    assert!(!a.reaches("10.9.0.11".parse()?)?, "VLAN 10 reaches VLAN 20");

    let set = lab.daemon.json::<api::PortInfo>(&["port-set", "b", "--vlan", "10"])?;
    assert_eq!(set.profile.vlan, Some(api::Vlan::Access(10)));
    a.ping("10.9.0.11")?;
    b.ping("10.9.0.10")?;
    lab.daemon.netctl(&["port-set", "a", "--isolated"])?;
    a.ping("10.9.0.11")?;
    lab.daemon.netctl(&["port-set", "b", "--isolated"])?;
    assert!(!a.reaches("10.9.0.11".parse()?)?, "isolated reaches isolated");

    lab.daemon.kill()?;
    lab.daemon.up()?;
    let port = lab.daemon.json::<api::PortInfo>(&["port-info", "b"])?;
    assert_eq!((port.profile.vlan, port.profile.isolated), (set.profile.vlan, Some(true)));
    assert!(!a.reaches("10.9.0.11".parse()?)?, "isolated reaches isolated after a restart");
    lab.daemon.netctl(&["port-set", "b", "--reset", "isolated"])?;
    a.ping("10.9.0.11")?;
    lab.daemon.netctl(&["port-set", "b", "--reset", "vlan"])?;
    assert!(!a.reaches("10.9.0.11".parse()?)?, "VLAN 10 untagged reaches a port of all VLANs");
    let refused = lab.daemon.netctl_output(&["port-set", "b", "--portgroup", "nobody"])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("no portgroup 'nobody'"), "{text}");
    // All of it was told, refusals apart.
    let events = lab.daemon.netctl(&["-o", "json", "events", "--since", "0", "--timeout", "1"])?;
    assert_eq!(events.matches("\"port-changed\"").count(), 2, "{events}");
    Ok(())
}

#[test]
fn isolated_ports_reach_the_gateway_and_not_each_other() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let port = lab.daemon.port("lan", "one", &["--isolated"])?;
    let socket = port.socket.ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut one = Uml::start("one", &[&socket])?;
    one.run("ip link set eth0 up; ip addr add 10.9.0.10/24 dev eth0")?;
    let mut two = namespace(&lab, "two", 11, &["--isolated"])?;
    let mut open = namespace(&lab, "open", 12, &[])?;
    one.ping("10.9.0.1")?;
    two.ping("10.9.0.1")?;
    one.ping("10.9.0.12")?;
    open.ping("10.9.0.11")?;
    assert!(!one.reaches("10.9.0.11".parse()?)?, "isolated reaches isolated");
    assert!(!two.reaches("10.9.0.10".parse()?)?, "isolated reaches isolated");
    Ok(())
}

#[test]
fn a_switch_learns_and_a_hub_floods() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut a = namespace(&lab, "a", 10, &[])?;
    let mut b = namespace(&lab, "b", 11, &[])?;
    let third = namespace(&lab, "third", 12, &[])?;
    a.ping("10.9.0.11")?;
    let ears = Capture::start(third.netns(), "eth0")?;
    // 24 bytes of 0xab make the payload of this echo request unmistakable.
    a.run("busybox ping -c 1 -p ab 10.9.0.11")?;
    b.run("busybox ping -c 1 -p ab 10.9.0.10")?;
    // A broadcast after it proves that the capture works and that earlier frames would be there.
    a.sh("busybox arping -c 1 -w 1 -I eth0 10.9.0.99", Duration::from_secs(5))?;
    ears.wait_for(&[10, 9, 0, 99], Duration::from_secs(5))?;
    assert!(!ears.holds(&[0xab; 24]), "a known unicast frame was flooded");
    drop(ears);

    let hub = NETWORK.replace(
        "<bridge",
        "<metadata><netloom:switch \
        xmlns:netloom='urn:netloom:network:1' mode='hub'/></metadata><bridge",
    );
    lab.daemon.netctl(&["net-destroy", "lan"])?;
    lab.daemon.network("lan", &hub)?;
    // The interfaces are new ones.
    for (guest, host) in [(&mut a, 10), (&mut b, 11)] {
        guest.run(&format!("ip link set eth0 up; ip addr add 10.9.0.{host}/24 dev eth0"))?;
    }
    third.netns().ip("link set eth0 up")?;
    a.ping("10.9.0.11")?;
    let ears = Capture::start(third.netns(), "eth0")?;
    a.run("busybox ping -c 1 -p ab 10.9.0.11")?;
    ears.wait_for(&[0xab; 24], Duration::from_secs(5))?;
    let fdb: Vec<api::FdbEntry> = lab.daemon.json(&["fdb-show", "lan"])?;
    assert!(fdb.iter().all(|entry| entry.age.is_none()), "a hub has learned: {fdb:?}");
    Ok(())
}

#[test]
fn an_administrators_entry_stays_where_it_is() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let mut a = namespace(&lab, "a", 10, &[])?;
    let mut b = namespace(&lab, "b", 11, &[])?;
    let third = namespace(&lab, "third", 12, &[])?;
    let _tagged = namespace(&lab, "tagged", 13, &["--trunk", "10-20"])?;
    lab.daemon.port("lan", "far", &["--vlan", "10"])?;
    let mac = |guest: &mut Namespace| -> anyhow::Result<String> {
        Ok(guest.run("cat /sys/class/net/eth0/address")?.trim().to_owned())
    };
    let of_b = mac(&mut b)?;
    a.ping("10.9.0.11")?;

    let entry: api::FdbEntry = lab.daemon.json(&["fdb-add", "lan", "third", &of_b])?;
    assert_eq!((entry.port.as_str(), entry.vlan, entry.age), ("third", 0, None));
    // What b sends does not move it.
    b.run("busybox arping -c 1 -w 1 -I eth0 10.9.0.99 || true")?;
    let ears = Capture::start(third.netns(), "eth0")?;
    a.run("busybox ping -c 1 -w 1 -p ab 10.9.0.11 || true")?;
    ears.wait_for(&[0xab; 24], Duration::from_secs(5))?;
    lab.daemon.take_over()?;
    assert!(!a.reaches("10.9.0.11".parse()?)?, "another daemon has another entry");
    // Learned ones go, this one stays.
    lab.daemon.netctl(&["fdb-flush", "lan"])?;
    let left: Vec<api::FdbEntry> = lab.daemon.json(&["fdb-show", "lan"])?;
    assert!(left.contains(&entry), "{left:?}");
    assert!(lab.daemon.netctl(&["fdb-del", "lan", &of_b])?.contains("1 entry deleted"));
    a.ping("10.9.0.11")?;
    lab.daemon.netctl(&["fdb-add", "lan", "tagged", &of_b, "--vlan", "10"])?;
    a.ping("10.9.0.11")?;

    let gateway = left.iter().find(|entry| entry.port == "lan0" && entry.age.is_none());
    let gateway = gateway.expect("the gateway's entry").mac.to_string();
    for (words, reason) in [
        (["fdb-add", "lan", "third", "01:00:5e:00:00:01"], "cannot have an entry"),
        (["fdb-add", "lan", "third", &gateway], "is the address of the network's gateway"),
        (["fdb-add", "lan", "nobody", &of_b], "no port with matching name 'nobody'"),
        (["fdb-add", "lan", "tagged", &of_b], "say which of its VLANs is meant"),
        (["fdb-add", "nowhere", "third", &of_b], "failed to get network 'nowhere'"),
        (["fdb-del", "lan", &gateway, "-q"], "is the address of the network's gateway"),
        (["fdb-del", "lan", "02:00:00:00:00:99", "-q"], "no entry for 02:00:00:00:00:99"),
        (["fdb-del", "lan", &of_b, "--vlan=11"], "in VLAN 11"),
    ] {
        let output = lab.daemon.netctl_output(&words)?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(reason), "{words:?}: {error}");
    }
    let words = ["fdb-add", "lan", "far", &of_b, "--vlan", "11"];
    let error = lab.daemon.netctl(&words).expect_err("another VLAN").to_string();
    assert!(error.contains("does not carry VLAN 11"), "{error}");
    lab.daemon.netctl(&["net-destroy", "lan"])?;
    let error = lab.daemon.netctl(&["fdb-flush", "lan"]).expect_err("a stopped network");
    assert!(error.to_string().contains("is not active"), "{error}");
    Ok(())
}
