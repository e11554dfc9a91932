//! Receive filters of the control queue (virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3).

mod common;

common::packed::on_both_layouts! {
    each_mode_holds_when_it_is_answered
    tables_are_kept_as_a_whole_or_refused
    tagged_frames_come_of_vlans_that_were_added
    what_is_known_to_be_there_comes_whatever_the_driver_wants
    a_device_that_was_reset_receives_everything
    a_hand_over_keeps_them
}

use common::handover::hand_over;
use common::nic::{CTRL_VQ, MAC};
use common::{BROADCAST, Bench, Nic, Options, PortOptions, eventually, frame, introduce, mac};
use serde_json::Value;
use switch::{DropReason, Vid, VlanMode};
use wire::MacAddr;

const CTRL_RX: u64 = 1 << 18;
const CTRL_VLAN: u64 = 1 << 19;
const CTRL_RX_EXTRA: u64 = 1 << 20;
const CTRL_MAC_ADDR: u64 = 1 << 23;
const FILTERS: u64 = MAC | CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR;

/// Classes and commands.
const RX: u8 = 0;
const PROMISC: u8 = 0;
const ALLMULTI: u8 = 1;
const ALLUNI: u8 = 2;
const NOMULTI: u8 = 3;
const NOUNI: u8 = 4;
const NOBCAST: u8 = 5;
const MAC_CLASS: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDR_SET: u8 = 1;
const VLAN: u8 = 2;
const ADD: u8 = 0;
const DEL: u8 = 1;

/// Nobody's, and a group that nobody has asked for.
const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 9, 9]);
const GROUP: MacAddr = MacAddr([0x33, 0x33, 0, 0, 9, 9]);

fn options() -> Options {
    let options = Options::new(mac(1));
    Options { features: options.features | FILTERS, ..options }
}

/// A sender on port 0 and a card with a control queue on port 1, which never sends.
fn pair() -> (Bench, Nic, Nic) {
    let bench = Bench::new(2);
    let sender = bench.nic(0, &Options::new(mac(0)));
    let card = bench.nic(1, &options());
    (bench, sender, card)
}

fn tagged(mut frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

/// Whether a frame comes to the card. One that does not is counted.
fn comes(bench: &Bench, sender: &mut Nic, card: &mut Nic, sent: &[u8]) -> bool {
    let counts = || (bench.stats(1).tx_packets, bench.drops(1, DropReason::RxFiltered));
    let before = counts();
    sender.send(sent);
    let counted = || {
        let now = counts();
        now.0 + now.1 == before.0 + before.1 + 1
    };
    assert!(eventually(counted), "a frame got lost: {:?}", bench.all_drops(1));
    let received = card.try_recv(0).map(|(_, got)| got);
    assert_eq!(received.is_some(), counts().0 == before.0 + 1);
    received.inspect(|got| assert_eq!(got, sent)).is_some()
}

/// Frames for the card, for a stranger, for a group and for all: which of them come.
fn coming(bench: &Bench, sender: &mut Nic, card: &mut Nic) -> [bool; 4] {
    [mac(1), STRANGER, GROUP, BROADCAST]
        .map(|to| comes(bench, sender, card, &frame(to, mac(0), 60, 1)))
}

fn set(card: &mut Nic, mode: u8, on: bool) {
    assert!(card.control(RX, mode, &[on.into()]), "mode {mode} is refused");
}

fn table(addresses: &[MacAddr]) -> Vec<u8> {
    let count = u32::try_from(addresses.len()).unwrap().to_le_bytes();
    count.into_iter().chain(addresses.iter().flat_map(|mac| mac.0)).collect()
}

fn each_mode_holds_when_it_is_answered() {
    let (bench, mut sender, mut card) = pair();
    assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4], "nothing was said yet");
    set(&mut card, PROMISC, false);
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, false, true]);
    for (mode, with) in [
        (PROMISC, [true, true, true, true]),
        (ALLMULTI, [true, false, true, true]),
        (ALLUNI, [true, true, false, true]),
        (NOMULTI, [true, false, false, true]),
        (NOUNI, [false, false, false, true]),
        (NOBCAST, [true, false, false, false]),
    ] {
        set(&mut card, mode, true);
        assert_eq!(coming(&bench, &mut sender, &mut card), with, "mode {mode}");
        set(&mut card, mode, false);
        assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, false, true]);
    }
    assert!(!card.control(RX, 6, &[1]), "a mode that does not exist is refused");
    assert!(!card.control(RX, PROMISC, &[]), "a mode without a value is refused");
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, false, true]);
    // Another address of its own.
    assert!(card.control(MAC_CLASS, ADDR_SET, &STRANGER.0));
    assert_eq!(coming(&bench, &mut sender, &mut card), [false, true, false, true]);
    assert!(!card.control(MAC_CLASS, ADDR_SET, &GROUP.0), "a group has no station's address");
    assert!(bench.drops(1, DropReason::RxFiltered) > 0);
    assert_eq!(bench.all_drops(0), [], "the sender has lost nothing");
}

fn tables_are_kept_as_a_whole_or_refused() {
    let (bench, mut sender, mut card) = pair();
    set(&mut card, PROMISC, false);
    let set_tables = |card: &mut Nic, unicast: &[MacAddr], multicast: &[MacAddr]| {
        card.control(MAC_CLASS, TABLE_SET, &[table(unicast), table(multicast)].concat())
    };
    let many = |n: u32| -> Vec<MacAddr> {
        (0..n).map(|n| MacAddr([2, 1, 0, 0, n.to_le_bytes()[1], n.to_le_bytes()[0]])).collect()
    };
    assert!(set_tables(&mut card, &[STRANGER], &[]));
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, true, false, true]);
    assert!(set_tables(&mut card, &[], &[GROUP]));
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, true, true]);
    let full = [many(255), vec![STRANGER]].concat();
    assert!(set_tables(&mut card, &full, &[]));
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, true, false, true]);
    // More than are kept: all pass.
    assert!(set_tables(&mut card, &many(257), &[]));
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, true, false, true]);
    assert!(set_tables(&mut card, &[], &many(257)));
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, true, true]);
    assert!(set_tables(&mut card, &[], &[]));
    for wrong in [
        table(&[STRANGER]),
        [table(&[STRANGER]), vec![2, 0, 0, 0, 1]].concat(),
        [table(&[STRANGER]), vec![0xff; 4]].concat(),
        [table(&many(4097)), table(&[])].concat(),
    ] {
        assert!(!card.control(MAC_CLASS, TABLE_SET, &wrong), "{} bytes", wrong.len());
        assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, false, true]);
    }
}

fn tagged_frames_come_of_vlans_that_were_added() {
    let (bench, mut sender, mut card) = pair();
    let sent = |vlan| tagged(frame(BROADCAST, mac(0), 60, 1), vlan);
    let mut vlans =
        |card: &mut Nic| [7, 8].map(|vlan| comes(&bench, &mut sender, card, &sent(vlan)));
    assert_eq!(vlans(&mut card), [true, true]);
    set(&mut card, PROMISC, false);
    assert_eq!(vlans(&mut card), [false, false]);
    assert!(card.control(VLAN, ADD, &7_u16.to_le_bytes()));
    assert_eq!(vlans(&mut card), [true, false]);
    assert!(card.control(VLAN, ADD, &8_u16.to_le_bytes()));
    assert!(card.control(VLAN, DEL, &7_u16.to_le_bytes()));
    assert_eq!(vlans(&mut card), [false, true]);
    assert!(!card.control(VLAN, ADD, &4095_u16.to_le_bytes()));
    set(&mut card, PROMISC, true);
    assert_eq!(vlans(&mut card), [true, true]);

    // On an access port no tag is left to look at.
    let access = PortOptions { vlan: VlanMode::Access(Vid::new(7).unwrap()), ..Default::default() };
    let ports = [PortOptions::default(), access];
    let bench = Bench::with(datapath::Config::default(), datapath::BridgeSpec::default(), &ports);
    let mut sender = bench.nic(0, &Options::new(mac(0)));
    let mut card = bench.nic(1, &options());
    set(&mut card, PROMISC, false);
    sender.send(&sent(7));
    assert_eq!(card.recv().expect("a frame of its VLAN").1, frame(BROADCAST, mac(0), 60, 1));
}

/// Only what goes to everybody is looked at.
fn what_is_known_to_be_there_comes_whatever_the_driver_wants() {
    let (bench, mut sender, mut card) = pair();
    introduce(&mut [&mut sender, &mut card]);
    set(&mut card, PROMISC, false);
    set(&mut card, NOUNI, true);
    for seed in 0..50 {
        let sent = frame(mac(1), mac(0), 60, seed);
        sender.send(&sent);
        assert_eq!(card.recv().expect("a frame for a known station").1, sent);
    }
    assert_eq!(bench.all_drops(1), []);
}

fn a_device_that_was_reset_receives_everything() {
    let (bench, mut sender, mut card) = pair();
    set(&mut card, PROMISC, false);
    assert!(!comes(&bench, &mut sender, &mut card, &frame(GROUP, mac(0), 60, 1)));
    // The driver takes the control queue down and up again.
    card.stop_ring(2);
    assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4]);
    card.restart_ring(2);
    assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4]);
    set(&mut card, PROMISC, false);
    assert!(!comes(&bench, &mut sender, &mut card, &frame(GROUP, mac(0), 60, 1)));
    // Another driver.
    drop(card);
    bench.wait_state(1, datapath::PortState::Listening);
    let mut card = bench.nic(1, &options());
    assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4]);
}

fn a_hand_over_keeps_them() {
    let (mut bench, mut sender, mut card) = pair();
    set(&mut card, PROMISC, false);
    set(&mut card, ALLUNI, true);
    let group = table(&[GROUP]);
    assert!(card.control(MAC_CLASS, TABLE_SET, &[table(&[]), group].concat()));
    assert!(card.control(VLAN, ADD, &7_u16.to_le_bytes()));
    let other = MacAddr([0x33, 0x33, 0, 0, 1, 1]);
    for _ in 0..3 {
        assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4]);
        for (to, vlan, expected) in [(GROUP, 7, true), (GROUP, 8, false), (other, 7, false)] {
            let sent = tagged(frame(to, mac(0), 60, 1), vlan);
            assert_eq!(comes(&bench, &mut sender, &mut card, &sent), expected, "{to} in {vlan}");
        }
        hand_over(&mut bench, |_| {});
    }
    set(&mut card, ALLUNI, false);
    assert_eq!(coming(&bench, &mut sender, &mut card), [true, false, true, true]);
    // One that comes from a version without them, or with nonsense, receives everything.
    for nonsense in [Value::Null, serde_json::json!([[1, 5000]])] {
        set(&mut card, PROMISC, false);
        hand_over(&mut bench, |state| {
            for port in state["ports"].as_array_mut().unwrap() {
                let connection = &mut port["io"]["vhost-user"]["endpoint"]["connection"];
                match &nonsense {
                    Value::Null => drop(connection.as_object_mut().unwrap().remove("rx_modes")),
                    vlans if connection["rx_modes"].is_object() => {
                        connection["rx_modes"]["vlans"] = vlans.clone();
                    }
                    _ => {}
                }
            }
        });
        assert_eq!(coming(&bench, &mut sender, &mut card), [true; 4]);
    }
}
