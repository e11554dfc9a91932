//! Two daemons in one namespace, and one after another on the same files.

use std::sync::Arc;
use std::time::Duration;

use netns_tests::guest::{Guest, Namespace};
use netns_tests::topology::{CONFIG, world};
use netns_tests::{Daemon, Netns};

fn network(n: u8) -> String {
    format!(
        "<network><name>lan</name><forward mode='nat'/><bridge name='lan{n}'/>\
         <ip address='10.{n}.0.1' netmask='255.255.255.0'>\
         <dhcp><range start='10.{n}.0.10' end='10.{n}.0.99'/></dhcp></ip></network>"
    )
}

fn guest(daemon: &Daemon, name: &str) -> anyhow::Result<Namespace> {
    Namespace::on(daemon, "lan", name, &[])
}

#[test]
fn stopping_one_instance_leaves_the_other_undisturbed() -> anyhow::Result<()> {
    let (host, _inet) = world()?;
    let host = Arc::new(host);
    let mut first = Daemon::start(&host, "first", CONFIG)?;
    let second = Daemon::start(&host, "second", CONFIG)?;
    first.network("lan", &network(21))?;
    second.network("lan", &network(22))?;
    let (mut a, mut b) = (guest(&second, "a")?, guest(&second, "b")?);
    a.dhcp()?;
    let b_address = b.dhcp()?.to_string();
    let mut other = guest(&first, "other")?;
    other.dhcp()?;

    first.teardown()?;
    assert!(host.ip("link show lan21").is_err(), "the first instance's gateway is still there");
    a.ping(&b_address)?;
    a.ping("10.22.0.1")?;
    a.ping(netns_tests::topology::INET)?;
    let rules = host.run(&["nft", "list", "ruleset"])?;
    assert!(!rules.contains("lan21") && rules.contains("lan22"), "{rules}");
    Ok(())
}

#[test]
fn rules_that_somebody_removes_come_back_and_it_is_told() -> anyhow::Result<()> {
    let (host, _inet) = world()?;
    let host = Arc::new(host);
    let daemon = Daemon::start(&host, "one", CONFIG)?;
    daemon.network("lan", &network(24))?;
    let mut a = guest(&daemon, "a")?;
    a.dhcp()?;
    host.run(&["nft", "flush", "ruleset"])?;
    let words = ["-o", "json", "events", "--since", "0", "--timeout", "1"];
    netns_tests::wait::some("the event", Duration::from_secs(30), || {
        daemon.netctl(&words).ok().filter(|events| events.contains("\"firewall-repaired\""))
    })?;
    assert!(host.run(&["nft", "list", "ruleset"])?.contains("lan24"));
    a.ping(netns_tests::topology::INET)?;
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_instance_is_refused_and_names_the_first() -> anyhow::Result<()> {
    let host = Arc::new(Netns::new("host")?);
    let mut daemon = Daemon::start(&host, "one", "")?;
    let pid = daemon.process()?.id().to_string();
    let program = netns_tests::program("vswitchd")?.display().to_string();
    let root = daemon.instance().root().display().to_string();
    let output = host.output(&[&program, "--instance", "one", "--root", &root])?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(&pid), "{text}");
    daemon.process()?.check_alive()
}

#[test]
fn teardown_leaves_nothing() -> anyhow::Result<()> {
    let (host, _inet) = world()?;
    let host = Arc::new(host);
    let before = netns_tests::snapshot::Snapshot::namespace(&host)?;
    let mut daemon = Daemon::start(&host, "one", CONFIG)?;
    daemon.network("lan", &network(23))?;
    let mut a = guest(&daemon, "a")?;
    a.dhcp()?;
    daemon.teardown()?;
    assert!(a.netns().ip("link show eth0").is_err(), "the guest's interface is still there");
    drop(daemon);
    let after = netns_tests::snapshot::Snapshot::namespace(&host)?;
    assert_eq!(before.difference(&after), Vec::<String>::new());
    Ok(())
}
