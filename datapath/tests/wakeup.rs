//! Sleeping and waking: nothing is lost, and nothing is burnt.

mod common;

common::packed::on_both_layouts! {
    no_wake_up_is_lost_with_event_indices
    no_wake_up_is_lost_with_flags
    no_wake_up_of_a_receiver_is_lost_in_a_replaced_call_descriptor
    no_wake_up_of_a_sender_is_lost_in_a_replaced_call_descriptor
    no_answer_is_lost_in_a_replaced_call_descriptor
    silent_frontends_cost_nothing
    kicks_without_frames_do_not_keep_the_worker_busy
}

use std::time::Duration;

use common::nic::CTRL_VQ;
use common::swapper::Swapper;
use common::{Bench, Nic, Options, eventually, frame, introduce, mac};
use datapath::{BridgeSpec, Config};
use rustix::process::Resource;
use rustix::time::{ClockId, clock_gettime};

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// Each frame is sent when the worker sleeps, or is about to.
fn wake(features: u64, frames: u32) {
    let config = Config { spin: Duration::from_micros(1), ..Config::default() };
    let bench =
        Bench::with(config, BridgeSpec::default(), &vec![common::PortOptions::default(); 2]);
    let options = Options { features, ..Options::new(mac(0)) };
    let mut a = bench.nic(0, &options);
    let mut b = bench.nic(1, &Options { mac: mac(1), ..options });
    introduce(&mut [&mut a, &mut b]);
    let mut pause = 0;
    for seed in 0..frames {
        let (from, to): (&mut Nic, &mut Nic) =
            if seed % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        let sent = frame(to.mac, from.mac, 60, seed);
        from.send(&sent);
        let (_, got) = to.recv().unwrap_or_else(|| panic!("frame {seed} is lost"));
        assert_eq!(got, sent);
        // Hits every moment between the last poll and the sleep.
        pause = (pause + 37) % 4000;
        for _ in 0..pause {
            std::hint::spin_loop();
        }
    }
    assert_eq!(bench.all_drops(0), []);
    assert_eq!(bench.all_drops(1), []);
}

fn no_wake_up_is_lost_with_event_indices() {
    wake((1 << 29) | (1 << 15), 10_000);
}

fn no_wake_up_is_lost_with_flags() {
    wake(1 << 15, 10_000);
}

/// Replaced once per frame, at any moment before, while and after the device signals.
const REPLACEMENTS: u32 = 3000;

fn no_wake_up_of_a_receiver_is_lost_in_a_replaced_call_descriptor() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut a, &mut b]);
    let swapper = Swapper::new(&b, 0);
    for seed in 0..REPLACEMENTS {
        let sent = frame(b.mac, a.mac, 60, seed);
        swapper.swap(seed);
        a.send(&sent);
        let (_, got) = b.recv().unwrap_or_else(|| panic!("the signal of frame {seed} is lost"));
        assert_eq!(got, sent);
    }
}

fn no_wake_up_of_a_sender_is_lost_in_a_replaced_call_descriptor() {
    let bench = Bench::new(2);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut a, &mut b]);
    a.wait_reaped(0);
    let swapper = Swapper::new(&a, 1);
    for seed in 0..REPLACEMENTS {
        swapper.swap(seed);
        a.send(&frame(b.mac, a.mac, 60, seed));
        a.wait_reaped(0);
        b.recv().expect("the frame");
    }
}

fn no_answer_is_lost_in_a_replaced_call_descriptor() {
    const CTRL_RX: u64 = 1 << 18;
    let bench = Bench::new(1);
    let options = Options::new(mac(0));
    let features = options.features | CTRL_VQ | CTRL_RX;
    let mut nic = bench.nic(0, &Options { features, ..options });
    let swapper = Swapper::new(&nic, 2);
    for seed in 0..REPLACEMENTS {
        swapper.swap(seed);
        // VIRTIO_NET_CTRL_RX_PROMISC
        assert!(nic.control(0, 0, &[u8::from(seed % 2 == 0)]));
    }
}

fn silent_frontends_cost_nothing() {
    // Descriptors: 32 cards have five on each side, and files of their own.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Nofile, wanted).unwrap();
    let bench = Bench::new(32);
    let mut nics: Vec<Nic> = (0..32).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    let mut all: Vec<&mut Nic> = nics.iter_mut().collect();
    introduce(&mut all[..2]);
    // Settled when a second costs nothing.
    let mut spent = Duration::MAX;
    assert!(
        eventually(|| {
            let before = cpu_time();
            std::thread::sleep(Duration::from_secs(1));
            spent = cpu_time() - before;
            spent < Duration::from_millis(10)
        }),
        "32 silent cards cost {spent:?} of processor time in a second"
    );
    let sent = frame(mac(1), mac(0), 60, 1);
    nics[0].send(&sent);
    assert!(eventually(|| nics[1].try_recv(0).is_some_and(|(_, got)| got == sent)));
}

fn kicks_without_frames_do_not_keep_the_worker_busy() {
    let bench = Bench::new(3);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let storm = bench.nic(2, &Options::new(mac(2)));
    a.send(&frame(common::BROADCAST, a.mac, 60, 0));
    b.recv().unwrap();
    b.send(&frame(a.mac, b.mac, 60, 0));
    a.recv().unwrap();
    let kick = storm.rings[1].kick.try_clone().unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let kicker = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = kick.write(1);
        }
    });
    for seed in 0..500 {
        let sent = frame(b.mac, a.mac, 60, seed);
        a.send(&sent);
        assert_eq!(b.recv().unwrap().1, sent);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    kicker.join().unwrap();
    // The ring that was not listened to is heard again.
    let mut storm = storm;
    let sent = frame(a.mac, storm.mac, 60, 5);
    storm.send(&sent);
    assert_eq!(a.recv().unwrap().1, sent);
    assert_eq!(bench.all_drops(0), []);
}
