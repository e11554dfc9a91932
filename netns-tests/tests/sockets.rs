//! How guests come to the switch: a VMM that listens, and many on one hub socket.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::frontend::{self, Options};
use netns_tests::guest::{Guest, Namespace, Qemu, Uml, qemu::Nic};
use netns_tests::{Daemon, Lab, wait};
use wire::MacAddr;

const LIMIT: Duration = Duration::from_secs(20);
const NETWORK: &str = "<network>
  <name>lan</name>
  <bridge name='lan0'/>
  <ip address='10.7.0.1' netmask='255.255.0.0'>
    <dhcp><range start='10.7.1.1' end='10.7.100.250'/></dhcp>
  </ip>
</network>";

fn ports(daemon: &Daemon) -> anyhow::Result<Vec<api::PortInfo>> {
    daemon.json(&["port-list", "lan"])
}

/// The network has this many ports, all of which move frames.
fn wait_up(daemon: &Daemon, count: usize) -> anyhow::Result<()> {
    wait::until(&format!("{count} ports to be up"), LIMIT, || {
        ports(daemon).is_ok_and(|ports| {
            ports.len() == count && ports.iter().all(|port| port.state == api::PortState::Up)
        })
    })
}

#[test]
fn a_vmm_that_listens_is_served_again_after_either_side_was_killed() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let socket = lab.daemon.dir().join("deb.sock");
    let path = socket.display().to_string();
    let port = lab.daemon.port("lan", "deb", &["--connect", &path])?;
    ensure!(port.socket.as_ref() == Some(&socket), "{port:?}");
    lab.daemon.wait_port("deb", api::PortState::Connecting)?;
    let nic = Nic::new(&socket, port.mac);
    let mut deb = Qemu::listening("deb", &[nic])?;
    let mut ns = Namespace::on(&lab.daemon, "lan", "ns", &[])?;
    ns.dhcp()?;
    let address = deb.dhcp()?.to_string();
    ns.ping(&address)?;
    for _ in 0..3 {
        lab.daemon.kill()?;
        lab.daemon.up()?;
        let start = Instant::now();
        lab.daemon.wait_port("deb", api::PortState::Up)?;
        eprintln!("up again {:?} after the API of the new daemon", start.elapsed());
        ns.ping(&address)?;
    }
    deb.process().signal(rustix::process::Signal::KILL)?;
    lab.daemon.wait_port("deb", api::PortState::Connecting)?;
    let info: api::PortInfo = lab.daemon.json(&["port-info", "deb"])?;
    let reason = info.reason.unwrap_or_default();
    ensure!(reason.contains("nobody listens") || reason.contains("closed"), "{reason}");
    drop(deb);
    let mut deb = Qemu::listening("deb", &[nic])?;
    let address = deb.dhcp()?.to_string();
    ns.ping(&address)
}

#[test]
fn vmms_that_are_not_there_cost_nothing() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    for n in 0..100 {
        let absent = lab.daemon.dir().join(format!("absent{n}")).display().to_string();
        lab.daemon.port("lan", &format!("vm{n}"), &["--connect", &absent])?;
    }
    let process = lab.daemon.process()?;
    let before = process.cpu_time();
    // CPU time can only be seen over time.
    std::thread::sleep(Duration::from_secs(3));
    let used = process.cpu_time() - before;
    ensure!(used < Duration::from_millis(150), "looking for 100 VMMs takes {used:?} in 3 s");
    Ok(())
}

/// QEMU, User-mode Linux and the lab's own frontends.
#[test]
fn any_number_of_guests_attach_to_one_hub_socket() -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let info: api::NetworkInfo = lab.daemon.json(&["net-info", "lan"])?;
    let hub: PathBuf = info.hub.context("a hub socket")?.socket;
    let shown = lab.daemon.netctl(&["net-info", "lan"])?;
    ensure!(shown.contains(&hub.display().to_string()), "{shown}");

    let mac = MacAddr([0x52, 0x54, 0, 7, 7, 7]);
    let mut deb = Qemu::start("deb", &[Nic::new(&hub, mac)])?;
    let mut uml = Uml::start("uml", &[&hub])?;
    let (first, second) = (deb.dhcp()?, uml.dhcp()?);
    deb.ping(&second.to_string())?;
    uml.ping(&first.to_string())?;
    uml.ping("10.7.0.1")?;
    wait_up(&lab.daemon, 2)?;
    let names: Vec<String> = ports(&lab.daemon)?.into_iter().map(|port| port.name).collect();
    let qemu = format!("qemu-system-x86-{}", deb.process().id());
    ensure!(names.contains(&qemu), "{names:?}");
    let leases = lab.daemon.leases("lan")?;
    let lease = leases.iter().find(|lease| lease.ip == IpAddr::from(first));
    ensure!(lease.is_some_and(|lease| lease.port.as_ref() == Some(&qemu)), "{leases:?}");

    // More of them, all at once; each hears all the others.
    let station = |n: u8| MacAddr([2, 0, 0, 0, 7, n]);
    let count = 20;
    let mut nics = (0..count)
        .map(|n| frontend::Nic::connect(&hub, Options::new(station(n))))
        .collect::<Result<Vec<_>, _>>()?;
    wait_up(&lab.daemon, 2 + nics.len())?;
    for from in 0..count {
        let mut frame = [&[0xff; 6][..], &station(from).0, &[0x88, 0xb5]].concat();
        frame.resize(60, from);
        nics[usize::from(from)].send(&frame, Instant::now() + LIMIT)?;
        for to in (0..count).filter(|&to| to != from) {
            let nic = &mut nics[usize::from(to)];
            // The others' own broadcasts pass by.
            loop {
                let got = nic.receive(Instant::now() + LIMIT)?;
                let got = got.with_context(|| format!("{to} does not hear {from}"))?;
                if got.frame == frame {
                    break;
                }
            }
        }
    }
    drop(nics);
    wait_up(&lab.daemon, 2)?;

    // QEMU connects again to the next daemon, and gets its port anew; its lease is its own.
    drop(uml);
    wait_up(&lab.daemon, 1)?;
    lab.daemon.kill()?;
    lab.daemon.up()?;
    wait_up(&lab.daemon, 1)?;
    ensure!(ports(&lab.daemon)?[0].name == qemu, "{:?}", ports(&lab.daemon)?);
    deb.ping("10.7.0.1")?;
    ensure!(deb.dhcp()? == first, "the lease is another one");

    drop(deb);
    wait::until("the last port to go", LIMIT, || ports(&lab.daemon).is_ok_and(|p| p.is_empty()))?;
    ensure!(lab.daemon.leases("lan")?.iter().any(|lease| lease.ip == IpAddr::from(first)));
    lab.daemon.netctl(&["net-destroy", "lan"])?;
    ensure!(!hub.exists(), "{} is left", hub.display());
    Ok(())
}
