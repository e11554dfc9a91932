//! Idle when idle, awake when needed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::frontend::{Nic, Options};
use netns_tests::{Daemon, Netns};
use wire::MacAddr;

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.3.0.1' netmask='255.255.255.0'>\
    <dhcp><range start='10.3.0.10' end='10.3.0.99'/></dhcp></ip></network>";

/// An experimental Ethertype (IEEE 802, local use) that no stack answers.
fn frame(to: MacAddr, from: MacAddr, n: u32) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5], &n.to_be_bytes()].concat();
    frame.resize(60, 0);
    frame
}

#[test]
fn thirty_two_silent_guests_cost_nothing_and_ten_thousand_wake_ups_lose_none() -> anyhow::Result<()>
{
    let host = Arc::new(Netns::new("host")?);
    let mut daemon = Daemon::start(&host, "lab", "")?;
    daemon.network("lan", NETWORK)?;
    let mut nics = Vec::new();
    for n in 0..32_u8 {
        let port = daemon.port("lan", &format!("guest{n}"), &[])?;
        let socket = port.socket.context("no socket")?;
        nics.push(Nic::connect(&socket, Options::new(MacAddr([2, 0, 0, 0, 3, n])))?);
    }
    for n in 0..32 {
        daemon.wait_port(&format!("guest{n}"), api::PortState::Up)?;
    }

    let before = daemon.process()?.cpu_time();
    // CPU time can only be seen over time: the promise is for 30 s.
    std::thread::sleep(Duration::from_secs(30));
    let used = daemon.process()?.cpu_time() - before;
    ensure!(used < Duration::from_millis(300), "{used:?} of CPU in 30 s of silence");

    let [first, second, ..] = &mut nics[..] else { unreachable!("32 were made") };
    let (a, b) = (first.mac(), second.mac());
    // Both sides are learned by their first frames.
    second.send(&frame(a, b, 0), Instant::now() + Duration::from_secs(1))?;
    first.receive(Instant::now() + Duration::from_secs(1))?.context("the first frame")?;
    for n in 1..=10_000_u32 {
        let sent = frame(b, a, n);
        // Longer than the worker polls before it sleeps.
        let asleep = Instant::now() + Duration::from_micros(200);
        while Instant::now() < asleep {
            std::hint::spin_loop();
        }
        first.send(&sent, Instant::now() + Duration::from_secs(1))?;
        let received = second
            .receive(Instant::now() + Duration::from_secs(2))?
            .with_context(|| format!("wake-up {n} was lost"))?;
        ensure!(received.frame == sent, "wake-up {n} gave another frame");
    }
    Ok(())
}
