//! Frames between guests: intact, in order, whatever the rings look like.

mod common;

common::packed::on_both_layouts! {
    frames_arrive_intact_whatever_the_rings_look_like
    frames_cut_anywhere_arrive_intact
    a_frame_takes_as_many_small_buffers_as_it_needs
    a_frame_larger_than_the_only_buffer_is_dropped_and_the_next_arrives
    a_frame_longer_than_the_mtu_is_dropped
    a_full_ring_drops_with_its_reason_and_recovers
    bursts_stay_in_order
    broadcasts_and_unknown_stations_reach_every_other_port
    flows_spread_over_queues_and_each_stays_in_one
    tags_come_and_go_with_the_ports_vlans
    isolated_ports_reach_others_only
    a_hub_floods_what_a_switch_would_not
    counters_and_table_tell_what_happened
}

use common::{BROADCAST, Bench, Nic, Options, PortOptions, eventually, frame, introduce, mac, udp};
use datapath::{BridgeSpec, Config};
use switch::{DropReason, Vid, VlanMode};

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const MRG_RXBUF: u64 = 1 << 15;

fn pair(bench: &Bench, one: &Options, two: &Options) -> (Nic, Nic) {
    let mut a = bench.nic(0, &Options { mac: mac(0), ..one.clone() });
    let mut b = bench.nic(1, &Options { mac: mac(1), ..two.clone() });
    introduce(&mut [&mut a, &mut b]);
    (a, b)
}

/// Sends frames of many sizes both ways and compares every byte.
fn exchange(a: &mut Nic, b: &mut Nic, sizes: impl IntoIterator<Item = usize>) {
    for (seed, len) in (0..).zip(sizes) {
        let there = frame(b.mac, a.mac, len, seed);
        a.send(&there);
        let (header, got) = b.recv().expect("a frame arrives");
        assert!(got == there, "{len} bytes arrive as they were ({} came)", got.len());
        assert_eq!((header.flags, header.gso_type), (0, 0));
        let back = frame(a.mac, b.mac, len, !seed);
        b.send(&back);
        let (_, got) = a.recv().expect("a frame comes back");
        assert!(got == back, "{len} bytes come back as they were");
    }
}

fn sizes() -> impl Iterator<Item = usize> {
    (60..300).step_by(7).chain([500, 1024, 1500, 1514, 1518, 2000, 4096, 8999, 9000, 65_000])
}

fn frames_arrive_intact_whatever_the_rings_look_like() {
    for mergeable in [false, true] {
        for indirect in [false, true] {
            for event_idx in [false, true] {
                let mut features = 0;
                for (on, feature) in
                    [(mergeable, MRG_RXBUF), (indirect, INDIRECT), (event_idx, EVENT_IDX)]
                {
                    features |= if on { feature } else { 0 };
                }
                let options = Options {
                    features,
                    rx_buffer: if mergeable { 1600 } else { 70_000 },
                    tx_cut: if indirect { 1100 } else { 1 << 20 },
                    start: 65_500,
                    ..Options::new(mac(0))
                };
                let bench = Bench::new(2);
                let (mut a, mut b) = pair(&bench, &options, &options);
                exchange(&mut a, &mut b, sizes());
                assert_eq!(bench.all_drops(0), [], "{features:#x}");
                assert_eq!(bench.all_drops(1), [], "{features:#x}");
            }
        }
    }
}

fn frames_cut_anywhere_arrive_intact() {
    for tx_cut in [2, 5, 12, 13, 26, 64, 139, 140, 141, 1000] {
        let bench = Bench::new(2);
        let options = Options { tx_cut, ..Options::new(mac(0)) };
        let (mut a, mut b) = pair(&bench, &options, &options);
        let most = (tx_cut * 60).min(3000) - 12;
        exchange(&mut a, &mut b, (60..most).step_by(most / 12));
    }
}

fn a_frame_takes_as_many_small_buffers_as_it_needs() {
    let bench = Bench::new(2);
    let options = Options { rx_buffer: 100, ..Options::new(mac(0)) };
    let (mut a, mut b) = pair(&bench, &options, &options);
    for (len, buffers) in [(60, 1), (88, 1), (89, 2), (188, 2), (189, 3), (1514, 16)] {
        let there = frame(b.mac, a.mac, len, 7);
        a.send(&there);
        assert_eq!(b.recv().unwrap().1, there);
        assert_eq!(b.last_num_buffers, buffers, "{len}");
    }
    // More than fit into 64 buffers can never arrive.
    a.send(&frame(b.mac, a.mac, 64 * 100, 8));
    assert!(eventually(|| bench.drops(1, DropReason::RxBufferTooSmall) == 1));
    exchange(&mut a, &mut b, [60, 1514]);
}

fn a_frame_larger_than_the_only_buffer_is_dropped_and_the_next_arrives() {
    let bench = Bench::new(2);
    let options = Options { features: EVENT_IDX, rx_buffer: 1526, ..Options::new(mac(0)) };
    let (mut a, mut b) = pair(&bench, &options, &options);
    a.send(&frame(b.mac, a.mac, 1515, 1));
    assert!(eventually(|| bench.drops(1, DropReason::RxBufferTooSmall) == 1));
    exchange(&mut a, &mut b, [1514]);
}

fn a_frame_longer_than_the_mtu_is_dropped() {
    let ports = [PortOptions { mtu: 1500, ..PortOptions::default() }, PortOptions::default()];
    let bench = Bench::with(Config::default(), BridgeSpec::default(), &ports);
    let options = Options::new(mac(0));
    let (mut a, mut b) = pair(&bench, &options, &options);
    // Room for one tag.
    exchange(&mut a, &mut b, [1514, 1518]);
    b.send(&frame(a.mac, b.mac, 1519, 1));
    assert!(eventually(|| bench.drops(0, DropReason::TooLong) == 1));
    a.send(&frame(b.mac, a.mac, 9000, 1));
    assert_eq!(b.recv().unwrap().1.len(), 9000);
}

fn a_full_ring_drops_with_its_reason_and_recovers() {
    let bench = Bench::new(2);
    let options = Options { rx_size: 16, ..Options::new(mac(0)) };
    let (mut a, mut b) = pair(&bench, &options, &options);
    for seed in 0..40 {
        a.send(&frame(b.mac, a.mac, 100, seed));
    }
    assert!(eventually(|| bench.stats(0).rx_packets >= 41));
    assert!(eventually(|| bench.drops(1, DropReason::RxRingFull) == 24));
    for seed in 0..16 {
        assert_eq!(b.recv().unwrap().1, frame(b.mac, a.mac, 100, seed));
    }
    exchange(&mut a, &mut b, [100]);
}

fn bursts_stay_in_order() {
    let bench = Bench::new(3);
    let options = Options::new(mac(0));
    let (mut a, mut b) = pair(&bench, &options, &options);
    let mut c = bench.nic(2, &Options::new(mac(2)));
    c.send(&frame(BROADCAST, c.mac, 60, 0));
    a.recv().unwrap();
    b.recv().unwrap();
    for round in 0..50 {
        for seed in 0..60 {
            let to = if seed % 3 == 0 { c.mac } else { b.mac };
            a.send(&frame(to, a.mac, 60 + seed, u32::try_from(round * 60 + seed).unwrap()));
        }
        for seed in 0..60 {
            let (nic, to) = if seed % 3 == 0 { (&mut c, mac(2)) } else { (&mut b, mac(1)) };
            let expected = frame(to, a.mac, 60 + seed, u32::try_from(round * 60 + seed).unwrap());
            assert_eq!(nic.recv().unwrap().1, expected);
        }
    }
}

fn broadcasts_and_unknown_stations_reach_every_other_port() {
    let bench = Bench::new(5);
    let mut nics: Vec<_> = (0..5).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    for (seed, dst) in [(1, BROADCAST), (2, mac(77))] {
        let sent = frame(dst, mac(0), 700, seed);
        nics[0].send(&sent);
        for nic in &mut nics[1..] {
            assert_eq!(nic.recv().unwrap().1, sent);
        }
        assert!(nics[0].try_recv(0).is_none());
    }
}

fn flows_spread_over_queues_and_each_stays_in_one() {
    let options = PortOptions { queue_pairs: 4, ..PortOptions::default() };
    let bench = Bench::with(Config::default(), BridgeSpec::default(), &vec![options; 2]);
    let options = Options { pairs: 4, ..Options::new(mac(0)) };
    let (mut a, mut b) = (
        bench.nic(0, &Options { mac: mac(0), ..options.clone() }),
        bench.nic(1, &Options { mac: mac(1), ..options }),
    );
    assert!(eventually(|| bench.datapath.port_status(bench.id(1)).unwrap().queue_pairs == 4));
    b.send(&frame(BROADCAST, b.mac, 60, 0));
    assert!(eventually(|| (0..4).any(|pair| a.try_recv(pair).is_some())));
    let mut queue_of = vec![None; 64];
    let mut next = vec![0_u32; 64];
    for seed in 0..8 {
        for flow in 0..64 {
            a.send_with(usize::from(flow % 4), &wire::VirtioNetHdr::default(), &udp(flow, seed));
        }
        // One queue of the sender is ahead of another, but each flow uses one.
        for _ in 0..64 {
            let mut got = None;
            assert!(eventually(|| {
                got = (0..4).find_map(|pair| Some((pair, b.try_recv(pair)?.1)));
                got.is_some()
            }));
            let (pair, got) = got.unwrap();
            let flow = usize::from(u16::from_be_bytes([got[34], got[35]]));
            assert_eq!(got, udp(u16::try_from(flow).unwrap(), next[flow]), "in order");
            next[flow] += 1;
            assert_eq!(*queue_of[flow].get_or_insert(pair), pair);
        }
    }
    for pair in 0..4 {
        let flows = queue_of.iter().filter(|queue| **queue == Some(pair)).count();
        assert!((6..=28).contains(&flows), "queue {pair} has {flows} of 64 flows");
    }
}

fn tags_come_and_go_with_the_ports_vlans() {
    let access = |vid| PortOptions {
        vlan: VlanMode::Access(Vid::new(vid).unwrap()),
        ..PortOptions::default()
    };
    let ports = [access(5), PortOptions::default(), access(6), access(5)];
    let bench = Bench::with(Config::default(), BridgeSpec::default(), &ports);
    let mut nics: Vec<_> = (0..4).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    let tagged = |plain: &[u8], tci: u16| {
        let mut tagged = plain[..12].to_vec();
        tagged.extend([0x81, 0]);
        tagged.extend(tci.to_be_bytes());
        tagged.extend(&plain[12..]);
        tagged
    };
    for len in [60, 124, 128, 129, 1500] {
        let sent = frame(BROADCAST, mac(0), len, 1);
        nics[0].send(&sent);
        assert_eq!(nics[1].recv().unwrap().1, tagged(&sent, 5));
        assert_eq!(nics[3].recv().unwrap().1, sent);
        let back = frame(mac(0), mac(1), len, 2);
        nics[1].send(&tagged(&back, 5));
        assert_eq!(nics[0].recv().unwrap().1, back);
        nics[1].send(&tagged(&frame(BROADCAST, mac(1), len, 3), 6));
        assert_eq!(nics[2].recv().unwrap().1, frame(BROADCAST, mac(1), len, 3));
    }
    for nic in &mut nics {
        assert!(nic.try_recv(0).is_none());
    }
    nics[0].send(&tagged(&frame(BROADCAST, mac(0), 60, 4), 5));
    assert!(eventually(|| bench.drops(0, DropReason::VlanRefused) == 1));
}

fn isolated_ports_reach_others_only() {
    let isolated = PortOptions { isolated: true, ..PortOptions::default() };
    let ports = [isolated.clone(), isolated, PortOptions::default()];
    let bench = Bench::with(Config::default(), BridgeSpec::default(), &ports);
    let mut nics: Vec<_> = (0..3).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    nics[0].send(&frame(BROADCAST, mac(0), 60, 1));
    nics[2].recv().unwrap();
    nics[1].send(&frame(mac(0), mac(1), 60, 2));
    assert!(eventually(|| bench.drops(1, DropReason::Isolated) == 1));
    nics[2].send(&frame(mac(0), mac(2), 60, 3));
    assert_eq!(nics[0].recv().unwrap().1, frame(mac(0), mac(2), 60, 3));
    bench.datapath.set_port(bench.id(0), VlanMode::transparent(), false).unwrap();
    nics[1].send(&frame(BROADCAST, mac(1), 60, 4));
    assert_eq!(nics[0].recv().unwrap().1, frame(BROADCAST, mac(1), 60, 4));
}

fn a_hub_floods_what_a_switch_would_not() {
    let hub = BridgeSpec { hub: true, ..BridgeSpec::default() };
    let bench = Bench::with(Config::default(), hub, &vec![PortOptions::default(); 3]);
    let mut nics: Vec<_> = (0..3).map(|at| bench.nic(at, &Options::new(mac(at)))).collect();
    let [a, b, c] = &mut nics[..] else { unreachable!() };
    introduce(&mut [a, b, c]);
    a.send(&frame(mac(1), mac(0), 60, 1));
    b.recv().unwrap();
    c.recv().unwrap();
    assert_eq!(bench.datapath.fdb(bench.bridge), []);
}

fn counters_and_table_tell_what_happened() {
    let bench = Bench::new(2);
    let options = Options::new(mac(0));
    let (mut a, mut b) = pair(&bench, &options, &options);
    for seed in 0..10 {
        a.send(&frame(b.mac, a.mac, 100, seed));
        b.recv().unwrap();
    }
    assert!(eventually(|| bench.stats(0).rx_packets == 11));
    let (from, to) = (bench.stats(0), bench.stats(1));
    assert_eq!((from.rx_packets, from.rx_bytes), (11, 60 + 1000));
    assert!(eventually(|| bench.stats(1).tx_packets == 11));
    assert_eq!(to.rx_packets, 1);
    let mut fdb = bench.datapath.fdb(bench.bridge);
    fdb.sort_by_key(|entry| entry.mac.0);
    let entries: Vec<_> = fdb.iter().map(|e| (e.mac, e.vlan, e.port)).collect();
    assert_eq!(entries, [(mac(0), 0, bench.id(0)), (mac(1), 0, bench.id(1))]);
    assert!(fdb.iter().all(|entry| entry.age.is_some_and(|age| age.as_secs() < 30)));
    bench.datapath.fdb_add(bench.bridge, mac(9), 0, bench.id(1)).unwrap();
    a.send(&frame(mac(9), a.mac, 60, 3));
    b.recv().unwrap();
    assert!(bench.datapath.fdb_del(bench.bridge, mac(9), 0).unwrap());
    assert_eq!(bench.datapath.fdb_flush(bench.bridge).unwrap(), 2);
}
