//! Learning, ageing, static entries and limits, as Open vSwitch does them.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::*;
use switch::{
    BridgeConfig, DropReason, Fdb, Learned, MacAddr, Mode, PortConfig, PortIndex, Role, Seconds,
    StaticError, Vid,
};

/// Of large tables, so that they are the same in each run.
const SEED: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

fn three() -> Lab {
    Lab::new([guest(), guest(), guest()])
}

#[test]
fn a_new_table_is_empty_and_unknown_destinations_go_everywhere_else() {
    let mut lab = three();
    assert_eq!(lab.learned(), []);
    assert_eq!(lab.send(3, 5, 0xff), untagged(&[1, 2]));
    assert_eq!(lab.learned(), [(3, 0, station(5))]);
    assert_eq!(lab.send(1, 6, 9), untagged(&[2, 3]));
}

#[test]
fn a_known_destination_gets_the_only_copy() {
    let mut lab = three();
    lab.send(3, 5, 0xff);
    assert_eq!(lab.send(1, 6, 5), untagged(&[3]));
    assert_eq!(lab.learned(), [(3, 0, station(5)), (1, 0, station(6))]);
    assert_eq!(lab.send(3, 5, 6), untagged(&[1]));
}

#[test]
fn multicast_goes_everywhere_else_even_with_an_entry_for_its_neighbour() {
    let mut lab = three();
    let group = MacAddr([1, 0, 0x5e, 1, 1, 1]);
    assert_eq!(lab.put(1, &frame(station(1), group, None)), untagged(&[2, 3]));
}

#[test]
fn a_station_that_moves_is_found_at_its_new_port() {
    let mut lab = three();
    lab.send(1, 5, 0xff);
    assert_eq!(lab.send(2, 6, 5), untagged(&[1]));
    lab.send(3, 5, 0xff);
    assert_eq!(lab.send(2, 6, 5), untagged(&[3]));
    assert_eq!(lab.bridge.fdb().stats().moved, 1);
    assert_eq!(lab.bridge.fdb().stats().entries, 2);
}

#[test]
fn a_frame_for_its_own_port_is_dropped_but_teaches() {
    let mut lab = three();
    lab.send(1, 5, 0xff);
    assert_eq!(lab.send(1, 7, 5), dropped(DropReason::SamePort));
    assert_eq!(lab.send(2, 6, 7), untagged(&[1]));
}

#[test]
fn refused_frames_teach_nothing() {
    let mut lab = Lab::new([access(10), access(10), guest()]);
    assert_eq!(lab.send_tagged(1, 5, 0xff, Some(tci(10, 0))), dropped(DropReason::VlanRefused));
    let control = MacAddr([1, 0x80, 0xc2, 0, 0, 2]);
    assert_eq!(lab.put(1, &frame(station(6), control, None)), dropped(DropReason::ReservedMac));
    assert_eq!(lab.put(9, &frame(station(7), station(1), None)), dropped(DropReason::PortGone));
    assert_eq!(lab.learned(), []);
}

#[test]
fn sources_that_are_no_stations_are_refused() {
    let mut lab = three();
    for src in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([3, 0, 0, 0, 0, 1])] {
        assert_eq!(
            lab.put(1, &frame(src, station(1), None)),
            dropped(DropReason::BadSourceMac),
            "{src}"
        );
    }
    assert_eq!(lab.learned(), []);
}

#[test]
fn the_same_address_in_two_vlans_is_two_stations() {
    let mut lab = Lab::new([guest(), guest(), guest()]);
    lab.send_tagged(1, 5, 0xff, Some(tci(10, 0)));
    lab.send_tagged(2, 5, 0xff, Some(tci(20, 0)));
    assert_eq!(lab.send_tagged(3, 6, 5, Some(tci(10, 0))), sent(&[(1, Some(tci(10, 0)))]));
    assert_eq!(lab.send_tagged(3, 6, 5, Some(tci(20, 0))), sent(&[(2, Some(tci(20, 0)))]));
    assert_eq!(lab.send(3, 6, 5), untagged(&[1, 2]));
}

#[test]
fn entries_age_and_each_frame_renews() {
    let mut lab = three();
    lab.send(1, 1, 0xff);
    lab.send(2, 2, 0xff);
    lab.now.0 += 299;
    assert_eq!(lab.expire(), 0);
    lab.send(1, 1, 0xff);
    lab.now.0 += 1;
    assert_eq!(lab.expire(), 1);
    assert_eq!(lab.learned(), [(1, 0, station(1))]);
    lab.now.0 += 298;
    assert_eq!(lab.expire(), 0);
    lab.now.0 += 1;
    assert_eq!(lab.expire(), 1);
    assert_eq!(lab.bridge.fdb().stats().expired, 2);
    assert_eq!(lab.bridge.fdb().stats().entries, 0);
}

#[test]
fn ageing_has_a_floor_of_15_seconds_and_spares_static_entries() {
    let config = BridgeConfig { ageing: Duration::from_secs(5), ..BridgeConfig::default() };
    let mut lab = Lab::with_config(config, 100, [guest(), guest()]);
    lab.send(1, 1, 0xff);
    lab.send(2, 2, 0xff);
    let fdb = lab.bridge.fdb().clone();
    fdb.add_static(station(0x11), Vid::NONE, PortIndex(1)).unwrap();
    fdb.add_static(station(0x12), Vid::NONE, PortIndex(2)).unwrap();
    lab.now.0 += 14;
    assert_eq!(lab.expire(), 0);
    lab.now.0 += 6;
    assert_eq!(lab.expire(), 2);
    assert_eq!(lab.learned(), [(1, 0, station(0x11)), (2, 0, station(0x12))]);
    let stats = fdb.stats();
    assert_eq!((stats.expired, stats.entries, stats.static_entries), (2, 2, 2));
}

#[test]
fn static_entries_override_learned_ones_and_each_other() {
    let mut lab = three();
    lab.send(1, 1, 0xff);
    let fdb = lab.bridge.fdb().clone();
    assert_eq!(fdb.add_static(station(1), Vid::NONE, PortIndex(1)), Ok(Some(PortIndex(1))));
    assert_eq!(fdb.entries()[0].last_seen, None);
    assert_eq!(fdb.add_static(station(1), Vid::NONE, PortIndex(2)), Ok(Some(PortIndex(1))));
    assert_eq!(lab.send(3, 3, 1), untagged(&[2]));
    assert_eq!(fdb.stats().static_entries, 1);
    assert!(fdb.remove_static(station(1), Vid::NONE));
    assert!(!fdb.remove_static(station(1), Vid::NONE));
    assert!(!fdb.remove_static(station(3), Vid::NONE), "a learned entry is not static");
    assert_eq!(fdb.stats().static_entries, 0);
    assert_eq!(lab.send(3, 3, 1), untagged(&[1, 2]));
}

#[test]
fn a_static_entry_is_not_moved_by_frames_which_are_forwarded_all_the_same() {
    let mut lab = three();
    let fdb = lab.bridge.fdb().clone();
    fdb.add_static(station(1), Vid::NONE, PortIndex(2)).unwrap();
    assert_eq!(lab.send(1, 1, 0xff), untagged(&[2, 3]));
    assert_eq!(lab.learned(), [(2, 0, station(1))]);
    assert_eq!(fdb.stats().static_conflicts, 1);
    // At its own port it is no conflict.
    lab.send(2, 1, 0xff);
    assert_eq!(fdb.stats().static_conflicts, 1);
    assert_eq!(fdb.learn(station(1), Vid::NONE, PortIndex(2), 9, lab.now), Learned::Static);
}

#[test]
fn flushes_take_what_they_name() {
    let mut lab = three();
    for src in 1..=3 {
        lab.send(src.into(), src, 0xff);
        lab.send(src.into(), 0x10 + src, 0xff);
    }
    let fdb = lab.bridge.fdb().clone();
    fdb.add_static(station(0x21), Vid::NONE, PortIndex(1)).unwrap();
    assert_eq!(fdb.flush_port(PortIndex(1)), 2);
    assert_eq!(fdb.stats().entries, 5);
    assert!(fdb.remove(station(2), Vid::NONE));
    assert!(!fdb.remove(station(2), Vid::NONE));
    assert_eq!(fdb.remove_port(PortIndex(1)), 1);
    assert_eq!(fdb.flush(), 3);
    assert_eq!(fdb.entries(), []);
    assert_eq!(fdb.stats().entries, 0);
    // The places are usable again.
    lab.send(2, 2, 0xff);
    assert_eq!(lab.learned(), [(2, 0, station(2))]);
}

#[test]
fn a_flooding_port_cannot_push_the_others_out() {
    let fdb = Fdb::with_seed(10, [7; 4]);
    let learn = |src: u8, port: u16, now: u32| {
        fdb.learn(station(src), Vid::NONE, PortIndex(port), usize::MAX, Seconds(now))
    };
    for port in 1u8..=5 {
        learn(port * 2, port.into(), port.into());
        learn(port * 2 + 1, port.into(), port.into());
    }
    assert_eq!(fdb.stats().entries, 10);
    for n in 0..16 {
        assert_eq!(learn(100 + n, 6, 100 + u32::from(n)), Learned::New);
        assert_eq!(fdb.stats().entries, 10);
    }
    let owned = |port: u16| fdb.entries().iter().filter(|entry| entry.port.0 == port).count();
    assert_eq!(owned(6), 3);
    let mut others: Vec<_> = (1..=5).map(owned).collect();
    others.sort_unstable();
    assert_eq!(others, [1, 1, 1, 2, 2]);
    // Its newest three are the ones that stayed.
    let mut kept: Vec<_> =
        fdb.entries().iter().filter(|entry| entry.port.0 == 6).map(|entry| entry.mac).collect();
    kept.sort_unstable();
    assert_eq!(kept, [station(113), station(114), station(115)]);
}

#[test]
fn a_guest_has_a_share_and_gives_way_to_itself() {
    let config = BridgeConfig { max_entries_per_guest: 3, ..BridgeConfig::default() };
    let uplink = PortConfig::new(Role::Uplink);
    let mut lab = Lab::with_config(config, 100, [guest(), guest(), uplink]);
    lab.send(2, 0x20, 0xff);
    for src in 1..=3 {
        lab.send(1, src, 0xff);
        lab.now.0 += 1;
    }
    // The oldest speaks again, so the second oldest goes.
    lab.send(1, 1, 0xff);
    lab.now.0 += 1;
    lab.send(1, 4, 0xff);
    let learned = lab.learned();
    assert_eq!(
        learned,
        [(1, 0, station(1)), (1, 0, station(3)), (1, 0, station(4)), (2, 0, station(0x20))]
    );
    // A station that moves in counts like a new one.
    lab.now.0 += 1;
    lab.send(1, 0x20, 0xff);
    assert_eq!(lab.learned().iter().filter(|entry| entry.0 == 1).count(), 3);
    assert_eq!(lab.send(3, 0x30, 0x20), untagged(&[1]));
    for src in 0x40..0x50 {
        lab.send(3, src, 0xff);
    }
    assert_eq!(lab.learned().iter().filter(|entry| entry.0 == 3).count(), 17);
}

#[test]
fn a_table_full_of_static_entries_refuses_but_forwards() {
    let mut lab = Lab::with_config(BridgeConfig::default(), 10, [guest(), guest(), guest()]);
    let fdb = lab.bridge.fdb().clone();
    for n in 0..10 {
        fdb.add_static(station(n), Vid::NONE, PortIndex(1)).unwrap();
    }
    assert_eq!(fdb.add_static(station(10), Vid::NONE, PortIndex(1)), Err(StaticError::TableFull));
    assert_eq!(fdb.learn(station(11), Vid::NONE, PortIndex(2), 5, lab.now), Learned::Refused);
    assert_eq!(lab.send(2, 11, 3), untagged(&[1]));
    assert_eq!(lab.send(1, 3, 11), untagged(&[2, 3]));
    // A group address would never be looked up.
    assert_eq!(
        fdb.add_static(MacAddr::BROADCAST, Vid::NONE, PortIndex(1)),
        Err(StaticError::NotAStation)
    );
}

#[test]
fn a_static_entry_makes_room_for_itself() {
    let mut lab = Lab::with_config(BridgeConfig::default(), 10, [guest(), guest()]);
    for src in 0..10 {
        lab.send(1, src + 1, 0xff);
    }
    let fdb = lab.bridge.fdb().clone();
    assert_eq!(fdb.add_static(station(99), Vid::NONE, PortIndex(2)), Ok(None));
    assert_eq!(fdb.stats().entries, 10);
    assert_eq!(lab.send(1, 1, 99), untagged(&[2]));
}

#[test]
fn the_table_takes_all_that_it_promises() {
    let max = Fdb::DEFAULT_MAX_ENTRIES;
    let fdb = Fdb::with_seed(max, SEED);
    for n in 0..u32::try_from(max).unwrap() {
        let [_, a, b, c] = n.to_be_bytes();
        let learned = fdb.learn(
            MacAddr([2, 0, 0, a, b, c]),
            Vid::NONE,
            PortIndex(u16::from(c)),
            usize::MAX,
            Seconds(1),
        );
        assert_eq!(learned, Learned::New);
    }
    let stats = fdb.stats();
    assert_eq!((stats.entries, stats.evicted), (max, 0), "{stats:?}");
    assert_eq!(fdb.entries().len(), stats.entries);
}

/// Station `n` of more than a byte can tell apart.
fn one_of_many(n: u32) -> MacAddr {
    let [_, a, b, c] = n.to_be_bytes();
    MacAddr([2, 0, 0, a, b, c])
}

/// A table of several chunks: `count` stations, in turn on ports 0, 1 and 2, each heard in the second of its number / 1000.
fn grown(count: u32) -> Fdb {
    let fdb = Fdb::with_seed(Fdb::DEFAULT_MAX_ENTRIES, SEED);
    for n in 0..count {
        let port = PortIndex(u16::try_from(n % 3).unwrap());
        let learned = fdb.learn(one_of_many(n), Vid::NONE, port, usize::MAX, Seconds(n / 1000));
        assert_eq!(learned, Learned::New, "station {n}");
    }
    fdb
}

#[test]
fn a_table_that_grows_loses_nothing() {
    // Just before, at and after a doubling, and in the middle.
    for count in [4096, 4097, 6000, 8191, 8192, 12_288, 24_001, 65_536] {
        let fdb = grown(count);
        let stats = fdb.stats();
        assert_eq!((stats.entries, stats.evicted), (count as usize, 0));
        for n in 0..count {
            let port = PortIndex(u16::try_from(n % 3).unwrap());
            assert_eq!(fdb.lookup(one_of_many(n), Vid::NONE), Some(port), "station {n} of {count}");
        }
        let entries = fdb.entries();
        assert_eq!(entries.len(), count as usize);
        for (n, entry) in (0..).zip(&entries) {
            assert_eq!((entry.mac, entry.last_seen), (one_of_many(n), Some(Seconds(n / 1000))));
        }
    }
}

#[test]
fn the_books_of_a_table_that_has_grown_are_right() {
    let fdb = grown(30_000);
    // The first of each port's line gives way, in the order in which they came.
    for n in 0..2000 {
        let (new, limit) = (one_of_many(100_000 + n), 10_000);
        assert_eq!(fdb.learn(new, Vid::NONE, PortIndex(1), limit, Seconds(31)), Learned::New);
        assert_eq!(fdb.lookup(one_of_many(3 * n + 1), Vid::NONE), None, "the {n}th of its port");
    }
    assert_eq!(fdb.stats().evicted, 2000);
    // A station that is known moves, another becomes static.
    let moved = fdb.learn(one_of_many(0), Vid::NONE, PortIndex(2), usize::MAX, Seconds(31));
    assert_eq!(moved, Learned::Moved(PortIndex(0)));
    assert_eq!(fdb.add_static(one_of_many(3), Vid::NONE, PortIndex(0)), Ok(Some(PortIndex(0))));
    assert_eq!(fdb.flush_port(PortIndex(2)), 10_001);
    assert_eq!(fdb.flush_port(PortIndex(0)), 9998);
    assert_eq!(fdb.flush_port(PortIndex(1)), 10_000);
    assert_eq!(fdb.entries().len(), 1);
    assert_eq!(fdb.stats().entries, 1);
}

#[test]
fn a_large_table_ages_part_by_part() {
    let fdb = grown(65_536);
    let ageing = Duration::from_secs(15);
    let now = Seconds(65 + 15);
    let parts: Vec<usize> = (0..Fdb::EXPIRE_PARTS).map(|_| fdb.expire(now, ageing)).collect();
    assert_eq!(parts.iter().sum::<usize>(), 65_536);
    assert_eq!(fdb.stats().entries, 0);
    // A 32nd of 32,768 buckets of five.
    assert!(parts.iter().all(|&part| part <= 5 * 1024), "{parts:?}");
    // Those that speak stay.
    let fdb = grown(65_536);
    let expired: usize = (0..Fdb::EXPIRE_PARTS).map(|_| fdb.expire(Seconds(45), ageing)).sum();
    assert_eq!(expired, 31_000);
    assert_eq!(fdb.lookup(one_of_many(30_999), Vid::NONE), None);
    assert_eq!(fdb.lookup(one_of_many(31_000), Vid::NONE), Some(PortIndex(1)));
}

#[test]
fn a_hub_learns_nothing_and_floods_everything() {
    let config = BridgeConfig { mode: Mode::Hub, ..BridgeConfig::default() };
    let mut lab =
        Lab::with_config(config, 100, [guest(), guest(), isolated(), isolated(), access(5)]);
    assert_eq!(lab.send(1, 1, 0xff), untagged(&[2, 3, 4]));
    assert_eq!(lab.send(2, 2, 1), untagged(&[1, 3, 4]));
    assert_eq!(lab.send(1, 1, 2), untagged(&[2, 3, 4]));
    assert_eq!(lab.send(3, 3, 1), untagged(&[1, 2]));
    assert_eq!(lab.learned(), []);
}

#[test]
fn a_port_whose_vlan_changed_is_not_sent_frames_of_the_old_one() {
    let mut lab = Lab::new([access(10), access(10), access(10)]);
    lab.send(1, 1, 0xff);
    lab.reconfigure(1, access(20));
    // The entry is still there; the frame is flooded in its VLAN as if it were not.
    assert_eq!(lab.send(2, 2, 1), untagged(&[3]));
    lab.bridge.fdb().flush_port(PortIndex(1));
    assert_eq!(lab.send(2, 2, 1), untagged(&[3]));
}

#[test]
fn engines_behind_internal_ports_are_not_learned_and_get_no_floods() {
    let mut lab = Lab::new([guest(), guest(), PortConfig::new(Role::Internal)]);
    assert_eq!(lab.send(1, 1, 0xff), untagged(&[2]));
    assert_eq!(lab.send(3, 9, 0xff), untagged(&[1, 2]));
    assert_eq!(lab.learned(), [(1, 0, station(1))]);
    lab.bridge.fdb().add_static(station(9), Vid::NONE, PortIndex(3)).unwrap();
    assert_eq!(lab.send(1, 1, 9), untagged(&[3]));
}

#[test]
fn the_gateways_address_cannot_be_taken_over() {
    let gateway = PortConfig { mac: Some(station(0xfe)), ..PortConfig::new(Role::Gateway) };
    assert_eq!(gateway.static_entry(), Some((station(0xfe), Vid::NONE)));
    let mut lab = Lab::new([guest(), guest(), gateway.clone()]);
    let (mac, vlan) = gateway.static_entry().unwrap();
    lab.bridge.fdb().add_static(mac, vlan, PortIndex(3)).unwrap();
    lab.send(1, 0xfe, 0xff);
    assert_eq!(lab.send(2, 2, 0xfe), untagged(&[3]));
    assert_eq!(PortConfig { mac: Some(station(1)), ..guest() }.static_entry(), None);
}

/// Guests' questions to DHCP servers.
mod trap {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 1);

    /// Guest 1, isolated guest 2, gateway 3, uplink 4, the engine 5 which carries `vlan`, guest 6 in VLAN 10.
    fn lab(engine: PortConfig) -> Lab {
        let config = BridgeConfig {
            trap_dhcp4: Some(PortIndex(5)),
            gateway_v4: vec![GATEWAY],
            ..BridgeConfig::default()
        };
        let ports = [
            guest(),
            isolated(),
            PortConfig::new(Role::Gateway),
            PortConfig::new(Role::Uplink),
            PortConfig { role: Role::Internal, ..engine },
            access(10),
        ];
        Lab::with_config(config, 100, ports)
    }

    fn ask(port: u16, to: Ipv4Addr) -> Vec<u8> {
        datagram(station(u8::try_from(port).unwrap()), MacAddr::BROADCAST, (to, 67), None)
    }

    #[test]
    fn broadcasts_and_questions_to_the_gateway_go_to_the_engine_alone() {
        let mut lab = lab(guest());
        for port in [1, 2, 4, 6] {
            for to in [Ipv4Addr::BROADCAST, GATEWAY] {
                assert_eq!(lab.put(port, &ask(port, to)), Seen::Trapped(5), "port {port} to {to}");
            }
        }
        assert_eq!(lab.learned().len(), 4, "what is trapped teaches");
        // By whatever address on the link.
        let renewal = datagram(station(1), station(0x77), (GATEWAY, 67), None);
        assert_eq!(lab.put(1, &renewal), Seen::Trapped(5));
    }

    #[test]
    fn tagged_questions_go_to_the_engine() {
        let mut lab = lab(guest());
        let tagged =
            datagram(station(1), MacAddr::BROADCAST, (Ipv4Addr::BROADCAST, 67), Some(vid(7)));
        assert_eq!(lab.put(1, &tagged), Seen::Trapped(5));
    }

    #[test]
    fn an_engine_serves_only_the_vlans_that_it_carries() {
        let mut lab = lab(access(0));
        assert_eq!(lab.put(1, &ask(1, Ipv4Addr::BROADCAST)), Seen::Trapped(5));
        assert_ne!(lab.put(6, &ask(6, Ipv4Addr::BROADCAST)), Seen::Trapped(5));
    }

    #[test]
    fn everything_else_passes() {
        let mut lab = lab(guest());
        // Another server's address, the client's port, the gateway's own questions, a fragment, another protocol.
        let other = ask(1, Ipv4Addr::new(192, 168, 122, 9));
        assert_eq!(lab.put(1, &other), untagged(&[2, 3, 4]));
        let client = datagram(station(1), MacAddr::BROADCAST, (Ipv4Addr::BROADCAST, 68), None);
        assert_eq!(lab.put(1, &client), untagged(&[2, 3, 4]));
        assert_eq!(lab.put(3, &ask(3, Ipv4Addr::BROADCAST)), untagged(&[1, 2, 4]));
        for (at, byte) in [(20, 0x20), (20, 0x1f), (21, 1)] {
            let mut fragment = ask(1, Ipv4Addr::BROADCAST);
            fragment[at] = byte;
            assert_eq!(lab.put(1, &fragment), untagged(&[2, 3, 4]), "byte {at} {byte:#x}");
        }
        let mut tcp = ask(1, Ipv4Addr::BROADCAST);
        tcp[23] = 6;
        assert_eq!(lab.put(1, &tcp), untagged(&[2, 3, 4]));
    }

    #[test]
    fn headers_with_options_are_understood_and_short_ones_are_not_misread() {
        let mut lab = lab(guest());
        let frame = ask(1, Ipv4Addr::BROADCAST);
        let mut options = frame[..34].to_vec();
        options[14] = 0x4f;
        options.extend_from_slice(&[1; 40]);
        options.extend_from_slice(&frame[34..]);
        assert_eq!(lab.put(1, &options), Seen::Trapped(5));
        for end in 14..frame.len() {
            let seen = lab.put(1, &frame[..end]);
            assert_eq!(seen == Seen::Trapped(5), end >= 38, "cut at {end}");
        }
    }
}
