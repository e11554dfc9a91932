//! VLAN modes, isolation, flood sets and reserved addresses.

mod common;

use common::*;
use switch::{DropReason, MacAddr, Native, PortConfig, Role, VidSet, VlanMode};

/// One port of each kind:
/// 1, 2 access 10 · 3 access 12 · 4 trunk of everything, untagged is VLAN 0 · 5 trunk of 10 and 12, no untagged ·
/// 6 trunk of everything, untagged is 10 · 7 the same, but 10 leaves tagged · 8 trunk of 12 whose untagged 10 is not
/// listed · 9 trunk of nothing, no untagged.
fn every_mode() -> Lab {
    let native_tagged = VlanMode::Trunk {
        native: Some(Native { vlan: vid(10), tagged: true }),
        allowed: VidSet::all(),
    };
    Lab::new([
        access(10),
        access(10),
        access(12),
        guest(),
        trunk(None, vids(&[10, 12])),
        trunk(Some(10), VidSet::all()),
        with_vlan(native_tagged),
        trunk(Some(10), vids(&[12])),
        trunk(None, VidSet::empty()),
    ])
}

#[test]
fn every_mode_against_every_other() {
    const T0: Option<(u16, u16)> = Some((0, 1));
    let t10 = Some(tci(10, 0));
    let t12 = Some(tci(12, 1));
    // What comes in where (VLAN, priority), and who gets it in which form.
    let refused = || dropped(DropReason::VlanRefused);
    let in_10_untagged = |from: u16| {
        let all = [(1, None), (2, None), (4, t10), (5, t10), (6, None), (7, t10), (8, None)];
        sent(&all.into_iter().filter(|(port, _)| *port != from).collect::<Vec<_>>())
    };
    let in_10_priority = |from: u16| {
        let tag = Some(tci(10, 1));
        let all = [(1, None), (2, None), (4, tag), (5, tag), (6, None), (7, tag), (8, None)];
        sent(&all.into_iter().filter(|(port, _)| *port != from).collect::<Vec<_>>())
    };
    let in_12_priority = |from: u16| {
        let all = [(3, None), (4, t12), (5, t12), (6, t12), (7, t12), (8, t12)];
        sent(&all.into_iter().filter(|(port, _)| *port != from).collect::<Vec<_>>())
    };
    let in_11 = |from: u16| {
        let tag = Some(tci(11, 0));
        let all = [(4, tag), (6, tag), (7, tag)];
        sent(&all.into_iter().filter(|(port, _)| *port != from).collect::<Vec<_>>())
    };
    let nobody = || dropped(DropReason::NoDestination);
    let rows = [
        // Access ports: untagged and priority tags are theirs, every other tag is refused.
        (1, None, in_10_untagged(1)),
        (1, T0, in_10_priority(1)),
        (1, Some((10, 0)), refused()),
        (1, Some((11, 0)), refused()),
        (1, Some((4095, 0)), refused()),
        (3, Some((12, 1)), refused()),
        (3, T0, in_12_priority(3)),
        // A transparent trunk: VLAN 0 has no other member here.
        (4, None, nobody()),
        (4, T0, nobody()),
        (4, Some((10, 0)), in_10_untagged(4)),
        (4, Some((12, 1)), in_12_priority(4)),
        (4, Some((11, 0)), in_11(4)),
        (4, Some((4095, 0)), refused()),
        // A trunk with a list: what is not listed is refused, untagged too.
        (5, None, refused()),
        (5, T0, refused()),
        (5, Some((10, 0)), in_10_untagged(5)),
        (5, Some((12, 1)), in_12_priority(5)),
        (5, Some((11, 0)), refused()),
        // Native VLANs, leaving untagged, leaving tagged, not in the list.
        (6, None, in_10_untagged(6)),
        (6, T0, in_10_priority(6)),
        (6, Some((10, 1)), in_10_priority(6)),
        (6, Some((11, 0)), in_11(6)),
        (7, None, in_10_untagged(7)),
        (7, Some((10, 0)), in_10_untagged(7)),
        (7, Some((12, 1)), in_12_priority(7)),
        (8, None, in_10_untagged(8)),
        (8, Some((10, 0)), in_10_untagged(8)),
        (8, Some((12, 1)), in_12_priority(8)),
        (8, Some((11, 0)), refused()),
        // Nothing at all.
        (9, None, refused()),
        (9, Some((10, 0)), refused()),
    ];
    for (port, tag, expected) in rows {
        let mut lab = every_mode();
        let tag = tag.map(|(vlan, priority)| tci(vlan, priority));
        assert_eq!(lab.send_tagged(port, 1, 0xff, tag), expected, "port {port}, tag {tag:?}");
    }
}

#[test]
fn a_known_destination_gets_the_same_form_as_by_flood() {
    for (from, tag) in [(1, None), (4, Some(tci(10, 3))), (6, Some(tci(0, 5))), (7, None)] {
        let Seen::Sent(flood) = every_mode().send_tagged(from, 1, 0xff, tag) else {
            panic!("no flood from {from}")
        };
        for (&to, &form) in &flood {
            let mut lab = every_mode();
            // The destination speaks up in VLAN 10, as its port does.
            let hello = if matches!(to, 4 | 5) { Some(tci(10, 0)) } else { None };
            lab.send_tagged(to, 2, 0xff, hello);
            assert_eq!(lab.send_tagged(from, 1, 2, tag), sent(&[(to, form)]), "{from} to {to}");
        }
    }
}

#[test]
fn transparent_ports_pass_tags_through() {
    let mut lab = Lab::new([guest(), guest()]);
    for tag in [Some(tci(1, 7)), Some(tci(4094, 0)), None] {
        assert_eq!(lab.send_tagged(1, 1, 0xff, tag), sent(&[(2, tag)]), "{tag:?}");
    }
    // A tag that names no VLAN says nothing to a receiver that knows of none.
    assert_eq!(lab.send_tagged(1, 1, 0xff, Some(tci(0, 7))), untagged(&[2]));
}

#[test]
fn service_tags_name_vlans_as_well() {
    let mut lab = Lab::new([access(10), guest(), guest()]);
    let mut tagged = frame(station(1), MacAddr::BROADCAST, Some(tci(10, 0)));
    tagged[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(lab.put(1, &tagged), dropped(DropReason::VlanRefused));
    assert_eq!(lab.put(2, &tagged), sent(&[(1, None), (3, Some(tci(10, 0)))]));
}

#[test]
fn frames_cut_short_are_refused() {
    let mut lab = Lab::new([guest(), guest()]);
    let whole = frame(station(1), MacAddr::BROADCAST, None);
    let tagged = frame(station(1), MacAddr::BROADCAST, Some(tci(3, 0)));
    for end in 0..14 {
        assert_eq!(lab.put(1, &whole[..end]), dropped(DropReason::TooShort), "{end}");
    }
    assert_eq!(lab.put(1, &whole[..14]), untagged(&[2]));
    for end in 0..18 {
        assert_eq!(lab.put(1, &tagged[..end]), dropped(DropReason::TooShort), "{end}");
    }
    assert_eq!(lab.put(1, &tagged[..18]), sent(&[(2, Some(tci(3, 0)))]));
}

#[test]
fn link_local_control_protocols_stay_on_their_link() {
    let reserved: [[u8; 6]; 26] = std::array::from_fn(|n| match n {
        0..16 => [1, 0x80, 0xc2, 0, 0, u8::try_from(n).unwrap()],
        16 => [1, 0, 0xc, 0xcc, 0xcc, 0xcc],
        17 => [1, 0, 0xc, 0xcc, 0xcc, 0xcd],
        18 => [1, 0, 0xc, 0xcd, 0xcd, 0xcd],
        19 => [1, 0, 0xc, 0, 0, 0],
        20 => [1, 0, 0xc, 0xcc, 0xcc, 0xc0],
        21 => [1, 0, 0xc, 0xcc, 0xcc, 0xc7],
        22 => [0, 0xe0, 0x2b, 0, 0, 0],
        23 => [0, 0xe0, 0x2b, 0, 0, 4],
        24 => [0, 0xe0, 0x2b, 0, 0, 6],
        _ => [1, 0x80, 0xc2, 0, 0, 0xe],
    });
    let neighbours = [
        [1, 0x80, 0xc2, 0, 0, 0x10],
        [1, 0x80, 0xc2, 0, 1, 0],
        [1, 0, 0xc, 0xcc, 0xcc, 0xc8],
        [1, 0, 0xc, 0xcc, 0xcc, 0xce],
        [1, 0, 0xc, 0, 0, 1],
        [0, 0xe0, 0x2b, 0, 0, 1],
        [1, 0, 0x5e, 0, 0, 1],
    ];
    let mut lab = Lab::new([guest(), guest()]);
    for dst in reserved {
        let seen = lab.put(1, &frame(station(1), MacAddr(dst), None));
        assert_eq!(seen, dropped(DropReason::ReservedMac), "{}", MacAddr(dst));
    }
    for dst in neighbours {
        let seen = lab.put(1, &frame(station(1), MacAddr(dst), None));
        assert_eq!(seen, untagged(&[2]), "{}", MacAddr(dst));
    }
}

#[test]
fn isolated_ports_reach_others_and_not_each_other() {
    let gateway = PortConfig::new(Role::Gateway);
    // Only guests can be isolated.
    let uplink = PortConfig { isolated: true, ..PortConfig::new(Role::Uplink) };
    let mut lab = Lab::new([isolated(), isolated(), guest(), gateway, uplink]);
    assert_eq!(lab.send(1, 1, 0xff), untagged(&[3, 4, 5]));
    assert_eq!(lab.send(2, 2, 0xff), untagged(&[3, 4, 5]));
    assert_eq!(lab.send(3, 3, 0xff), untagged(&[1, 2, 4, 5]));
    assert_eq!(lab.send(5, 5, 0xff), untagged(&[1, 2, 3, 4]));
    assert_eq!(lab.send(1, 1, 2), dropped(DropReason::Isolated));
    assert_eq!(lab.send(1, 1, 3), untagged(&[3]));
    assert_eq!(lab.send(3, 3, 1), untagged(&[1]));
    assert_eq!(lab.send(1, 1, 5), untagged(&[5]));
}

#[test]
fn isolated_ports_alone_have_nobody_to_talk_to() {
    let mut lab = Lab::new([isolated(), isolated()]);
    assert_eq!(lab.send(1, 1, 0xff), dropped(DropReason::NoDestination));
    let mut lab = Lab::new([guest()]);
    assert_eq!(lab.send(1, 1, 0xff), dropped(DropReason::NoDestination));
}

#[test]
fn sets_of_vlans_hold_1_to_4094() {
    let all = VidSet::all();
    assert!(!all.contains(vid(0)) && all.contains(vid(1)) && all.contains(vid(4094)));
    assert_eq!(all.iter().count(), 4094);
    let some = vids(&[0, 63, 64, 4094]);
    assert_eq!(some.iter().map(switch::Vid::value).collect::<Vec<_>>(), [63, 64, 4094]);
    assert!(VidSet::default().is_empty() && !some.is_empty());
    assert_eq!(format!("{all:?} {some:?}"), "all {63, 64, 4094}");
}
