//! A forwarding table with many addresses.

mod common;

use common::handover::hand_over;
use common::{Bench, Nic, Options, PortOptions, eventually, frame, introduce, mac};
use datapath::{BridgeSpec, Config};
use switch::DropReason;
use wire::MacAddr;

fn station(n: u32) -> MacAddr {
    let [_, a, b, c] = n.to_be_bytes();
    MacAddr([2, 0, 1, a, b, c])
}

/// Frames from `first` to each of the stations behind `second`, which gets them and nobody else.
fn reach(bench: &Bench, first: &mut Nic, second: &mut Nic, stations: impl Iterator<Item = u32>) {
    let others = bench.stats(2).tx_packets;
    for n in stations {
        let sent = frame(station(n), first.mac, 60, n);
        first.send(&sent);
        assert_eq!(second.recv().expect("a frame for a station that is known").1, sent);
    }
    assert_eq!(bench.stats(2).tx_packets, others, "a frame for a known station was flooded");
}

#[test]
fn sixty_four_thousand_addresses_are_known_and_handed_over() {
    const COUNT: u32 = 65_536;
    let config = Config { fdb_entries_per_guest: 70_000, ..Config::default() };
    let mut bench = Bench::with(config, BridgeSpec::default(), &vec![PortOptions::default(); 3]);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut c = bench.nic(2, &Options::new(mac(2)));
    introduce(&mut [&mut a, &mut b, &mut c]);
    for n in 0..COUNT {
        // They go nowhere, but teach.
        a.send(&frame(a.mac, station(n), 60, n));
    }
    let taught = || bench.drops(0, DropReason::SamePort) == u64::from(COUNT);
    assert!(eventually(taught), "{:?}", bench.all_drops(0));
    let learned = |bench: &Bench| bench.datapath.fdb(bench.bridge).len();
    assert_eq!(learned(&bench), COUNT as usize + 3);
    reach(&bench, &mut b, &mut a, (0..COUNT).step_by(17));
    hand_over(&mut bench, |_| {});
    assert_eq!(learned(&bench), COUNT as usize + 3);
    reach(&bench, &mut b, &mut a, (0..COUNT).step_by(1009));
    assert!(c.try_recv(0).is_none(), "the third card got a frame");
}

#[test]
fn a_guest_owns_no_more_addresses_than_it_may() {
    let config = Config { fdb_entries_per_guest: 100, ..Config::default() };
    let bench = Bench::with(config, BridgeSpec::default(), &vec![PortOptions::default(); 2]);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut b = bench.nic(1, &Options::new(mac(1)));
    introduce(&mut [&mut a, &mut b]);
    for n in 0..5000 {
        a.send(&frame(mac(1), station(n), 60, n));
        b.recv().expect("a frame of any station arrives");
    }
    let entries = bench.datapath.fdb(bench.bridge);
    let owned = entries.iter().filter(|entry| entry.port == bench.id(0)).count();
    assert_eq!((owned, entries.len()), (100, 101));
}
