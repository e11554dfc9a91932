//! QEMU migrates a running guest from one port to another, under load: what is on its way arrives whole, the switches learn the
//! new place, and the outage is measured.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::capture::Capture;
use netns_tests::guest::qemu::{Announcer, Nic};
use netns_tests::guest::{Guest, Namespace, Qemu};
use netns_tests::pinger::Pinger;
use netns_tests::streams::Streams;
use netns_tests::{Daemon, Netns, wait};
use wire::MacAddr;
use wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_RARP};

const NETWORK: &str = "<network><name>lan</name></network>";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 9, 2]);

/// The port that the switch sends the guest's frames to.
fn place(daemon: &Daemon) -> anyhow::Result<String> {
    let entries: Vec<api::FdbEntry> = daemon.json(&["fdb-show", "lan"])?;
    let found = entries.into_iter().find(|entry| entry.mac == MAC);
    Ok(found.context("the guest is not in the table")?.port)
}

fn power_on(
    daemon: &Daemon,
    name: &str,
    announcer: Announcer,
    start: fn(Announcer, &str, &[Nic<'_>]) -> anyhow::Result<Qemu>,
) -> anyhow::Result<Qemu> {
    let port = daemon.port("lan", name, &[])?;
    let socket = port.socket.as_deref().context("no socket")?;
    start(announcer, name, &[Nic::new(socket, MAC)])
}

/// A broadcast that says where the guest is.
fn is_announcement(frame: &[u8], announcer: Announcer) -> bool {
    let head = frame.get(..12) == Some(&[[0xff; 6], MAC.0].concat());
    head && match announcer {
        // About its own address: the sender's is the target's.
        Announcer::Guest => {
            frame.get(28..32) == Some(&GUEST.octets()) && frame[28..32] == frame[38..42]
        }
        Announcer::Switch => frame.get(20..22) == Some(&[0, 3]),
    }
}

/// One migration at a time: each has two emulated machines, which is as many as two CPUs carry.
fn alone() -> MutexGuard<'static, ()> {
    static STAGE: Mutex<()> = Mutex::new(());
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for so many answers more.
fn answered(pinger: &Pinger, more: u32) -> anyhow::Result<()> {
    let before = pinger.received();
    wait::until("answers of the guest", Duration::from_secs(60), || {
        pinger.received() >= before + more
    })
}

/// Moves a guest from `one` to `two` while a peer behind `one` talks with it.
fn migrate(one: &Daemon, two: &Daemon, announcer: Announcer) -> anyhow::Result<()> {
    let same = std::ptr::eq(one, two);
    let mut peer = Namespace::on(one, "lan", "peer", &[])?;
    peer.run(&format!("ip link set eth0 up; ip addr add {PEER}/24 dev eth0"))?;
    let mut source = power_on(one, "source", announcer, Qemu::announced_by)?;
    source.run(&format!("ip link set eth0 up; ip addr add {GUEST}/24 dev eth0"))?;
    source.ping(&PEER.to_string())?;
    ensure!(place(one)? == "source", "before: {}", place(one)?);

    let mut destination = power_on(two, "destination", announcer, Qemu::incoming)?;
    let load = Streams::start((peer.netns(), PEER), (&mut source, GUEST))?;
    let ethertype = match announcer {
        Announcer::Guest => ETHERTYPE_ARP,
        Announcer::Switch => ETHERTYPE_RARP,
    };
    let announcements = Capture::only(peer.netns(), "eth0", ethertype)?;
    let ping = || Pinger::start(peer.netns(), GUEST, Duration::from_millis(10));
    // What the machine's own hesitation comes to.
    let before = ping()?;
    answered(&before, 400)?;
    let before = before.finish()?;
    let pinger = ping()?;
    let start = Instant::now();
    answered(&pinger, 50)?;
    let migration = source.migrate(&mut destination)?;
    wait::until("an announcement of the guest's new place", Duration::from_secs(60), || {
        announcements.frames().iter().any(|frame| is_announcement(frame, announcer))
    })?;
    wait::until("the switches to learn where the guest is", Duration::from_secs(10), || {
        let here = if same { "destination" } else { "uplink" };
        place(one).is_ok_and(|port| port == here)
            && place(two).is_ok_and(|port| port == "destination")
    })?;
    answered(&pinger, 100)?;
    let report = pinger.finish()?;
    let took = start.elapsed();
    let [down, up] = load.finish(&mut destination)?;
    destination.ping(&PEER.to_string())?;
    println!(
        "{}: QEMU says {} ms down, {} ms in all, {} rounds, {} MiB; pings: {} of {} answered, longest silence {} ms ({} ms before, {} ms for comparing memory); \
         streams: {} KiB to the guest, {} KiB from it in {} ms, whole",
        if same { "one switch" } else { "two switches" },
        migration.downtime.as_millis(),
        migration.total.as_millis(),
        migration.rounds,
        migration.bytes >> 20,
        report.received,
        report.sent,
        report.silence.as_millis(),
        before.silence.as_millis(),
        migration.comparing.as_millis(),
        down >> 10,
        up >> 10,
        took.as_millis(),
    );
    ensure!(migration.rounds > 1, "the guest was not running while it was copied: {migration:?}");
    ensure!(down > 0 && up > 0 && report.received > 0, "nothing moved: {report:?}");
    for (daemon, port) in [(one, "source"), (two, "destination")] {
        let info: api::PortInfo = daemon.json(&["port-info", port])?;
        ensure!(info.state != api::PortState::Quarantined && info.reason.is_none(), "{info:?}");
    }
    Ok(())
}

#[test]
fn between_two_ports_of_a_switch() -> anyhow::Result<()> {
    let _alone = alone();
    let host = Arc::new(Netns::new("host")?);
    let daemon = Daemon::start(&host, "lab", "")?;
    daemon.network("lan", NETWORK)?;
    migrate(&daemon, &daemon, Announcer::Guest)
}

#[test]
fn between_two_switches() -> anyhow::Result<()> {
    let _alone = alone();
    let (first, second) = (Arc::new(Netns::new("first")?), Arc::new(Netns::new("second")?));
    first.join("wire", &second, "wire")?;
    let one = Daemon::start(&first, "one", "")?;
    let two = Daemon::start(&second, "two", "")?;
    for daemon in [&one, &two] {
        daemon.network("lan", NETWORK)?;
        daemon.port("lan", "uplink", &["--dev", "wire"])?;
    }
    migrate(&one, &two, Announcer::Switch)
}
