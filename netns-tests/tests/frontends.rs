//! Guests of many shapes through the switch: with and without event indices, mergeable buffers and
//! indirect descriptors, cut frames, several queues, the control queue, and a switch that restarts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::frontend::{Nic, Options, Probe};
use netns_tests::{Daemon, Netns};
use vhost_user::features::virtio;
use wire::MacAddr;

const LIMIT: Duration = Duration::from_secs(10);
const FIRST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SECOND: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

struct World {
    sockets: [PathBuf; 2],
    daemon: Daemon,
    // The namespace outlives the daemon in it.
    _host: Arc<Netns>,
}

fn world(more: &[&str]) -> anyhow::Result<World> {
    let host = Arc::new(Netns::new("host")?);
    let daemon = Daemon::start(&host, "frontends", "")?;
    daemon.network("lan", "<network><name>lan</name><mtu size='9000'/></network>")?;
    let socket = |name: &str| -> anyhow::Result<PathBuf> {
        daemon.port("lan", name, more)?.socket.context("a vhost-user port without a socket")
    };
    Ok(World { sockets: [socket("first")?, socket("second")?], daemon, _host: host })
}

fn frame(from: MacAddr, to: MacAddr, len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    let mut byte = seed;
    frame.resize_with(len, || {
        byte = byte.wrapping_mul(31).wrapping_add(7);
        byte
    });
    frame
}

/// Frames of many lengths in both directions; each arrives whole, once, in order.
fn exchange(first: &mut Nic, second: &mut Nic) -> anyhow::Result<()> {
    one_way(first, second)?;
    one_way(second, first)?;
    ensure!(first.try_receive()?.is_none() && second.try_receive()?.is_none(), "more came");
    Ok(())
}

fn one_way(from: &mut Nic, to: &mut Nic) -> anyhow::Result<()> {
    let lengths = [14, 15, 60, 64, 115, 116, 117, 128, 200, 256, 1024, 1514, 1515, 4000, 9014];
    for (n, len) in (0_u8..).zip(lengths) {
        let sent = frame(from.mac(), to.mac(), len, n);
        let deadline = Instant::now() + LIMIT;
        from.send(&sent, deadline)?;
        let got = to.receive(deadline)?.with_context(|| format!("{len} bytes got lost"))?;
        ensure!(got.frame == sent, "{len} bytes came as {} or changed", got.frame.len());
        ensure!(got.header.flags == 0 && got.header.gso_type == 0, "{:?}", got.header);
    }
    let mut given_back = || from.unsent().is_ok_and(|unsent| unsent == 0);
    netns_tests::wait::until("all descriptors to come back", LIMIT, &mut given_back)
}

#[test]
fn drivers_of_many_shapes_talk_to_each_other() -> anyhow::Result<()> {
    let world = world(&[])?;
    let plain = || Options::new(FIRST);
    let big = || Options { rx_buffer: 16384, ..plain().without(virtio::NET_F_MRG_RXBUF) };
    let shapes = [
        ("as Linux", plain()),
        ("one descriptor", Options { tx_cuts: vec![], ..plain() }),
        ("indirect", Options { indirect: true, ..plain() }),
        ("no event index", plain().without(virtio::F_EVENT_IDX)),
        ("not mergeable", big()),
        ("not mergeable, header apart", Options { rx_cuts: vec![12, 100, 4096], ..big() }),
        ("small buffers", Options { rx_buffer: 256, ..plain() }),
        (
            "cut into pieces",
            Options {
                tx_cuts: vec![5, 11, 12, 13, 26, 100, 1000],
                rx_cuts: vec![7, 40],
                ..plain()
            },
        ),
        (
            "cut and indirect",
            Options { tx_cuts: vec![1, 2, 3, 12, 20, 21], indirect: true, ..plain() },
        ),
        ("a ring of 16", Options { ring: 16, ..plain() }),
        ("a ring of 1024", Options { ring: 1024, ..plain() }),
    ];
    for (name, first) in &shapes {
        for (other, second) in &shapes[..3] {
            let second = Options { mac: SECOND, ..second.clone() };
            let mut first = Nic::connect(&world.sockets[0], first.clone())?;
            let mut second = Nic::connect(&world.sockets[1], second)?;
            exchange(&mut first, &mut second).with_context(|| format!("{name} with {other}"))?;
            for base in first.stop()?.into_iter().chain(second.stop()?) {
                ensure!(base <= u32::from(u16::MAX), "{name}: {base}");
            }
        }
    }
    Ok(())
}

/// More than 65,536 frames through rings of 64: each comes, in order.
#[test]
fn ring_indices_wrap_around() -> anyhow::Result<()> {
    let world = world(&[])?;
    let options = Options { ring: 64, ..Options::new(FIRST) };
    let mut first = Nic::connect(&world.sockets[0], options.clone())?;
    let mut second = Nic::connect(&world.sockets[1], Options { mac: SECOND, ..options })?;
    exchange(&mut first, &mut second)?;
    for round in 0..70_000_u32 / 32 {
        let deadline = Instant::now() + LIMIT;
        let number = round.to_be_bytes();
        let mut sent = frame(FIRST, SECOND, 60, 0);
        for n in 0..32 {
            sent[14..18].copy_from_slice(&number);
            sent[18] = n;
            first.send(&sent, deadline)?;
        }
        for n in 0..32 {
            let got = second.receive(deadline)?.context("a frame got lost")?.frame;
            ensure!(got[14..18] == number && got[18] == n, "out of order in round {round}");
        }
    }
    Ok(())
}

/// All pairs carry frames once the driver has said how many it uses.
#[test]
fn several_queues_and_the_control_queue() -> anyhow::Result<()> {
    let world = world(&["--queues", "4"])?;
    let options = Options {
        queue_pairs: 4,
        ..Options::new(FIRST).with(virtio::NET_F_MQ | virtio::NET_F_CTRL_VQ)
    };
    let mut first = Nic::connect(&world.sockets[0], options.clone())?;
    ensure!(
        first.features() & virtio::NET_F_MQ != 0 && first.features() & virtio::NET_F_CTRL_VQ != 0,
        "not offered: {:#x}",
        first.features()
    );
    let mut second = Nic::connect(&world.sockets[1], Options { mac: SECOND, ..options })?;
    exchange(&mut first, &mut second)?;
    let mut queues = std::collections::BTreeSet::new();
    for flow in 0..64 {
        // UDP flows that differ in their ports.
        let addresses = wire::udp::UdpV4 {
            src_mac: FIRST,
            dst_mac: SECOND,
            vlan: None,
            src: std::net::SocketAddrV4::new([10, 0, 0, 1].into(), 4000 + flow),
            dst: std::net::SocketAddrV4::new([10, 0, 0, 2].into(), 7),
            ttl: 64,
        };
        let mut sent = vec![0; 100];
        wire::udp::build_ipv4(&mut sent, &addresses, &[0; 58])?;
        let deadline = Instant::now() + LIMIT;
        let header = wire::VirtioNetHdr::default();
        first.send_on(usize::from(flow) % 4, header, &sent, deadline)?;
        let got = second.receive(deadline)?.context("a frame got lost")?;
        ensure!(got.frame == sent);
        queues.insert(got.queue);
    }
    ensure!(queues.len() > 1, "64 flows all came on queue {queues:?}");
    // A command that does not exist is denied, not left unanswered.
    ensure!(first.control(77, 1, &[0; 8], LIMIT)? == Some(1));
    Ok(())
}

/// A driver whose switch ends and starts again goes on with the same rings.
#[test]
fn a_driver_goes_on_after_a_restart() -> anyhow::Result<()> {
    let mut world = world(&[])?;
    let mut first = Nic::connect(&world.sockets[0], Options::new(FIRST))?;
    let mut second =
        Nic::connect(&world.sockets[1], Options { mac: SECOND, ..Options::new(FIRST) })?;
    exchange(&mut first, &mut second)?;
    for stop in [Daemon::stop, Daemon::kill] {
        stop(&mut world.daemon)?;
        world.daemon.up()?;
        for port in ["first", "second"] {
            world.daemon.wait_port(port, api::PortState::Listening)?;
        }
        first.reconnect(&world.sockets[0])?;
        second.reconnect(&world.sockets[1])?;
        exchange(&mut first, &mut second)?;
    }
    Ok(())
}

/// 10,000 times one frame for a switch that sleeps: each wakes it, none waits for the next.
#[test]
fn every_frame_wakes_a_sleeping_switch() -> anyhow::Result<()> {
    let world = world(&[])?;
    let mut first = Nic::connect(&world.sockets[0], Options::new(FIRST))?;
    let mut second =
        Nic::connect(&world.sockets[1], Options { mac: SECOND, ..Options::new(FIRST) })?;
    exchange(&mut first, &mut second)?;
    for round in 0..10_000_u32 {
        let mut sent = frame(FIRST, SECOND, 60, 0);
        sent[14..18].copy_from_slice(&round.to_be_bytes());
        first.send(&sent, Instant::now() + LIMIT)?;
        let got = second.receive(Instant::now() + LIMIT)?;
        let got = got.with_context(|| format!("frame {round} never came"))?;
        ensure!(got.frame == sent);
        if round % 4 == 0 {
            // Longer than the switch polls an idle ring (50 µs by default), so that it sleeps.
            let until = Instant::now() + Duration::from_micros(80 + u64::from(round % 97));
            while Instant::now() < until {
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

/// The probe itself: it must see a loss.
#[test]
fn the_probe_sees_what_is_lost() -> anyhow::Result<()> {
    let world = world(&[])?;
    let first = Nic::connect(&world.sockets[0], Options::new(FIRST))?;
    let second = Nic::connect(&world.sockets[1], Options { mac: SECOND, ..Options::new(FIRST) })?;
    let third = world.daemon.port("lan", "third", &[])?.socket.context("no socket")?;
    let mut third = Nic::connect(&third, Options { mac: SECOND, ..Options::new(FIRST) })?;
    let probe = Probe::start(first, second, 1000)?;
    probe.run(200, LIMIT)?;
    // Somebody else says that the receiver's address is his.
    let before = probe.sent();
    third.send(&frame(SECOND, FIRST, 60, 0), Instant::now() + LIMIT)?;
    netns_tests::wait::until("50 more frames to be sent", LIMIT, || probe.sent() > before + 50)?;
    let (report, _, _) = probe.finish()?;
    ensure!(report.lost.len() >= 40, "{report:?}");
    ensure!(report.lost.iter().all(|number| *number >= before), "{report:?}");
    ensure!(report.received + report.lost.len() as u64 == report.sent, "{report:?}");
    Ok(())
}
