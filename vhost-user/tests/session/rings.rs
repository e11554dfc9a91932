use vhost_user::{Action, ProtocolError, Refusal, Request};

use crate::peer::{Peer, addr, bytes, fd, fds, is_closed, watched};

fn refusal(result: Result<Option<Action>, ProtocolError>) -> Refusal {
    match result {
        Err(ProtocolError::Refused { refusal, .. }) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn start(peer: &mut Peer, ring: u32) {
    peer.send(Request::SET_VRING_NUM, &bytes([ring, 256])).unwrap();
    peer.send(Request::SET_VRING_BASE, &bytes([ring, 0])).unwrap();
    peer.send(Request::SET_VRING_ADDR, &addr(ring, 0x1000, 0x2004, 0x3002)).unwrap();
    peer.send_with(Request::SET_VRING_KICK, 0, &bytes([u64::from(ring)]), fds(1)).unwrap();
    peer.send_with(Request::SET_VRING_CALL, 0, &bytes([u64::from(ring)]), fds(1)).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([ring, 1])).unwrap();
}

#[test]
fn a_ring_goes_through_its_life() {
    let mut peer = Peer::negotiated();
    start(&mut peer, 3);
    let vring = &peer.session.device().vrings[3];
    assert!(vring.is_ready() && vring.is_running());
    assert_eq!(vring.num, 256);
    let reply = peer.call(Request::GET_VRING_BASE, &bytes([3_u32, 0]));
    assert_eq!(reply.payload, bytes([3_u32, 7]));
    let vring = &peer.session.device().vrings[3];
    assert!(!vring.started && vring.kick.is_none());
    assert!(vring.call.is_some(), "frontends do not always send it again");
    assert_eq!(vring.base, 7);
}

#[test]
fn ring_numbers_are_checked_in_every_message() {
    for (request, payload) in [
        (Request::SET_VRING_NUM, bytes([5_u32, 256])),
        (Request::SET_VRING_BASE, bytes([u32::MAX, 0])),
        (Request::SET_VRING_ADDR, addr(0x1_0000, 0, 0, 0)),
        (Request::GET_VRING_BASE, bytes([256_u32, 0])),
        (Request::SET_VRING_ENABLE, bytes([5_u32, 1])),
        (Request::SET_VRING_KICK, bytes([0x1ff_u64])),
        (Request::SET_VRING_CALL, bytes([0x105_u64])),
        (Request::SET_VRING_ERR, bytes([0x180_u64])),
    ] {
        let error = refusal(Peer::negotiated().send(request, &payload));
        assert!(matches!(error, Refusal::RingIndex { rings: 5, .. }), "{request}: {error}");
    }
}

#[test]
fn sizes_are_powers_of_two_within_the_offer() {
    let mut peer = Peer::negotiated();
    for num in [0, 3, 255, 2048, 0x1_0000, 0x1_0100, u32::MAX] {
        let error = refusal(peer.send(Request::SET_VRING_NUM, &bytes([0_u32, num])));
        assert_eq!(error, Refusal::RingSize { ring: 0, num, max: 1024 });
        assert_eq!(peer.session.device().vrings[0].num, 0);
    }
    for num in [1, 2, 1024] {
        peer.send(Request::SET_VRING_NUM, &bytes([0_u32, num])).unwrap();
    }
}

#[test]
fn a_running_ring_is_not_reconfigured() {
    let mut peer = Peer::negotiated();
    start(&mut peer, 0);
    for (request, payload) in [
        (Request::SET_VRING_NUM, bytes([0_u32, 512])),
        (Request::SET_VRING_BASE, bytes([0_u32, 3])),
        (Request::SET_VRING_ADDR, addr(0, 0x4000, 0x2004, 0x3002)),
    ] {
        assert_eq!(refusal(peer.send(request, &payload)), Refusal::RingRunning { ring: 0 });
    }
    // The same addresses again are fine.
    peer.send(Request::SET_VRING_ADDR, &addr(0, 0x1000, 0x2004, 0x3002)).unwrap();
    assert_eq!(peer.session.device().vrings[0].num, 256);
    peer.send(Request::GET_VRING_BASE, &bytes([0_u32, 0])).unwrap();
    peer.send(Request::SET_VRING_NUM, &bytes([0_u32, 512])).unwrap();
}

/// User-mode Linux reloads its driver without GET_VRING_BASE.
#[test]
fn configuring_a_disabled_ring_stops_it() {
    let mut peer = Peer::negotiated();
    start(&mut peer, 0);
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 0])).unwrap();
    assert!(peer.session.device().vrings[0].started);
    peer.send(Request::SET_VRING_NUM, &bytes([0_u32, 512])).unwrap();
    assert!(!peer.session.device().vrings[0].started);
    start(&mut peer, 0);
    assert!(peer.session.device().vrings[0].is_running());
}

#[test]
fn a_kick_before_the_addresses_is_fine() {
    let mut peer = Peer::negotiated();
    peer.send(Request::SET_VRING_NUM, &bytes([0_u32, 256])).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])).unwrap();
    peer.send_with(Request::SET_VRING_KICK, 0, &bytes([0_u64]), fds(1)).unwrap();
    assert!(!peer.session.device().vrings[0].is_ready());
    peer.send(Request::SET_VRING_ADDR, &addr(0, 0x1000, 0x2004, 0x3002)).unwrap();
    assert!(peer.session.device().vrings[0].is_ready());
}

#[test]
fn start_index_fits_a_split_ring() {
    let mut peer = Peer::negotiated();
    peer.send(Request::SET_VRING_BASE, &bytes([0_u32, 0xffff])).unwrap();
    assert_eq!(peer.session.device().vrings[0].base, 0xffff);
    let error = refusal(peer.send(Request::SET_VRING_BASE, &bytes([0_u32, 0x1_0000])));
    assert_eq!(error, Refusal::RingBase { ring: 0, base: 0x1_0000 });
}

#[test]
fn addresses_are_aligned_and_flags_known() {
    let mut peer = Peer::negotiated();
    for (payload, part) in [
        (addr(0, 8, 0, 0), "descriptor"),
        (addr(0, 0, 2, 0), "used"),
        (addr(0, 0, 0, 1), "available"),
    ] {
        let error = refusal(peer.send(Request::SET_VRING_ADDR, &payload));
        assert!(matches!(error, Refusal::RingAlignment { part: got, .. } if got == part));
    }
    let mut flags = addr(0, 0, 0, 0);
    flags[4] = 2;
    let error = refusal(peer.send(Request::SET_VRING_ADDR, &flags));
    assert_eq!(error, Refusal::RingFlags { ring: 0, flags: 2 });
}

#[test]
fn notifiers_match_the_no_fd_bit() {
    for request in [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR] {
        let mut peer = Peer::negotiated();
        peer.send(request, &bytes([0x100_u64])).unwrap();
        peer.send_with(request, 0, &bytes([0_u64]), vec![fd()]).unwrap();
        for (value, count) in [(0x100_u64, 1), (0, 0)] {
            let error = refusal(peer.send_with(request, 0, &bytes([value]), fds(count)));
            assert!(matches!(error, Refusal::FdCount { got, .. } if got == count));
        }
        let error = refusal(peer.send(request, &bytes([0x300_u64])));
        assert_eq!(error, Refusal::ReservedBits(0x300));
    }
    let mut peer = Peer::negotiated();
    peer.send(Request::SET_VRING_KICK, &bytes([0x102_u64])).unwrap();
    let vring = &peer.session.device().vrings[2];
    assert!(vring.started && vring.kick.is_none(), "polled");
}

#[test]
fn a_replaced_notifier_is_closed() {
    let mut peer = Peer::negotiated();
    for request in [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR] {
        let (read, write) = watched();
        peer.send_with(request, 0, &bytes([0_u64]), vec![read]).unwrap();
        assert!(!is_closed(&write));
        peer.send_with(request, 0, &bytes([0_u64]), vec![fd()]).unwrap();
        assert!(is_closed(&write), "{request}");
    }
}

#[test]
fn enable_is_0_or_1() {
    let mut peer = Peer::negotiated();
    let error = refusal(peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 2])));
    assert_eq!(error, Refusal::RingEnable { ring: 0, value: 2 });
    assert_eq!(
        peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])),
        Ok(Some(Action::Vring(0)))
    );
}
