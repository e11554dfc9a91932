//! Remembered decisions: used again while they are right, and not a frame longer. All other tests of the bridge go through a
//! cache too (see `common`).

mod common;

use std::net::Ipv4Addr;

use common::*;
use switch::{BridgeConfig, DecisionCache, DropReason, PortIndex, Role};

/// What the cache says of a frame, and whether it would after the bridge has decided once more.
fn recalled(lab: &Lab, cache: &mut DecisionCache, port: u16, frame: &[u8]) -> Option<u16> {
    let port = PortIndex(port);
    let before = lab.bridge.recall(cache, port, frame, lab.now);
    let decision = lab.bridge.decide(port, frame, lab.now);
    if let switch::Verdict::Unicast(egress) = decision.verdict {
        lab.bridge.remember(cache, port, frame, decision.vlan, egress, lab.now);
    }
    before.map(|egress| egress.port.0)
}

#[test]
fn a_conversation_is_remembered_until_an_end_of_it_moves() {
    let mut lab = Lab::new([guest(), guest(), guest()]);
    let mut cache = DecisionCache::default();
    let there = frame(station(1), station(2), None);
    assert_eq!(recalled(&lab, &mut cache, 1, &there), None, "the destination is unknown");
    lab.send(2, 2, 1);
    assert_eq!(recalled(&lab, &mut cache, 1, &there), None);
    assert_eq!(recalled(&lab, &mut cache, 1, &there), Some(2));
    lab.send(3, 2, 1);
    assert_eq!(recalled(&lab, &mut cache, 1, &there), None, "station 2 is behind port 3 now");
    assert_eq!(recalled(&lab, &mut cache, 1, &there), Some(3));
    lab.send(2, 1, 9);
    assert_eq!(
        lab.bridge.recall(&mut cache, PortIndex(1), &there, lab.now),
        None,
        "the source moved"
    );
    assert_eq!(recalled(&lab, &mut cache, 1, &there), None);
    assert_eq!(recalled(&lab, &mut cache, 1, &there), Some(3));
    lab.bridge.fdb().flush_port(PortIndex(3));
    assert_eq!(recalled(&lab, &mut cache, 1, &there), None, "flushed");
}

#[test]
fn a_remembered_source_does_not_age_out_while_it_sends() {
    let mut lab = Lab::new([guest(), guest()]);
    lab.send(2, 2, 1);
    for _ in 0..20 {
        lab.now.0 += 100;
        assert_eq!(lab.send(1, 1, 2), untagged(&[2]));
        lab.send(2, 2, 1);
        lab.expire();
    }
    assert_eq!(lab.learned().len(), 2);
}

#[test]
fn a_conversation_with_the_gateway_does_not_hide_what_is_asked_of_the_dhcp_server() {
    let gateway = Ipv4Addr::new(192, 0, 2, 1);
    let config = BridgeConfig {
        trap_dhcp4: Some(PortIndex(3)),
        gateway_v4: vec![gateway],
        ..BridgeConfig::default()
    };
    let internal = switch::PortConfig::new(Role::Internal);
    let mut lab = Lab::with_config(config, 100, [guest(), guest(), internal]);
    lab.send(2, 2, 1);
    let dns = datagram(station(1), station(2), (gateway, 53), None);
    let dhcp = datagram(station(1), station(2), (gateway, 67), None);
    for _ in 0..3 {
        assert_eq!(lab.put(1, &dns), untagged(&[2]));
        assert_eq!(lab.put(1, &dhcp), Seen::Trapped(3));
    }
    // IPv4 options move the ports.
    let mut options = dhcp;
    options[14] = 0x46;
    options.splice(34..34, [1, 1, 1, 0]);
    for _ in 0..3 {
        assert_eq!(lab.put(1, &options), Seen::Trapped(3));
    }
}

#[test]
fn a_port_whose_isolation_changed_is_decided_anew() {
    let mut lab = Lab::new([guest(), isolated()]);
    lab.send(2, 2, 1);
    for _ in 0..3 {
        assert_eq!(lab.send(1, 1, 2), untagged(&[2]));
    }
    lab.reconfigure(1, isolated());
    assert_eq!(lab.send(1, 1, 2), dropped(DropReason::Isolated));
}
