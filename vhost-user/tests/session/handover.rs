//! A session that moves to another process between any two bytes.

use std::os::fd::OwnedFd;

use vhost_user::features::{protocol, virtio};
use vhost_user::{Handover, ImportError, Outcome, Refusal, Request, Session};

use crate::peer::{FEATURES, NEED_REPLY, Peer, addr, bytes, fds, is_closed, offer, table, watched};

const USER: u64 = 0x7f12_3456_0000;

/// A whole set-up: request, payload, descriptors.
fn messages() -> Vec<(Request, Vec<u8>, usize)> {
    let mut messages = vec![
        (Request::GET_FEATURES, Vec::new(), 0),
        (Request::SET_PROTOCOL_FEATURES, bytes([protocol::SUPPORTED]), 0),
        (Request::SET_BACKEND_REQ_FD, Vec::new(), 1),
        (Request::SET_FEATURES, bytes([FEATURES]), 0),
        (
            Request::SET_MEM_TABLE,
            table(&[[0, 0xa_0000, USER, 0], [0xc_0000, 1 << 20, USER + 0xc_0000, 0xc_0000]]),
            2,
        ),
        (Request::NET_SET_MTU, bytes([1400_u64]), 0),
    ];
    for ring in 0..2_u32 {
        messages.extend([
            (Request::SET_VRING_NUM, bytes([ring, 256]), 0),
            (Request::SET_VRING_BASE, bytes([ring, 77]), 0),
            (
                Request::SET_VRING_ADDR,
                addr(ring, USER + 0xc_0000, USER + 0xc_2000, USER + 0xc_1000),
                0,
            ),
            (Request::SET_VRING_CALL, bytes([u64::from(ring)]), 1),
            (Request::SET_VRING_ERR, bytes([u64::from(ring)]), 1),
            (Request::SET_VRING_KICK, bytes([u64::from(ring)]), 1),
            (Request::SET_VRING_ENABLE, bytes([ring, 1]), 0),
        ]);
    }
    messages.push((Request::SET_STATUS, bytes([7_u64]), 0));
    messages
}

fn moved(session: &Session) -> Session {
    let before = format!("{:?}", session.device());
    let handover = session.export().expect("between two messages or in one");
    let next = Session::import(offer(), handover).expect("what one says the other takes");
    assert_eq!(format!("{:?}", next.device()), before);
    assert_eq!(next.output(), session.output());
    assert_eq!(next.wanted(), session.wanted());
    next
}

#[test]
fn at_every_byte() {
    let mut session = Session::new(offer());
    let mut still = Peer::new();
    for (request, payload, count) in messages() {
        let size = u32::try_from(payload.len()).unwrap();
        let mut stream = bytes([request.0, 1 | NEED_REPLY, size]);
        stream.extend(&payload);
        let mut sent: Vec<OwnedFd> = fds(count);
        for byte in stream {
            session.receive(&[byte], std::mem::take(&mut sent)).expect("a good message");
            session = moved(&session);
            if session.poll().expect("a good message").is_some() {
                assert!(session.export().is_err(), "an action is pending");
                session.complete(Outcome::Done).unwrap();
                session = moved(&session);
            }
        }
        still.send_with(request, NEED_REPLY, &payload, fds(count)).unwrap();
    }
    assert_eq!(session.output(), still.session.output(), "the same answers");
    let told = |session: &Session| {
        let device = session.device();
        let rings = device.vrings.iter().map(|v| (v.num, v.addr, v.base, v.enabled, v.started));
        let notifiers =
            device.vrings.iter().map(|v| (v.kick.is_some(), v.call.is_some(), v.err.is_some()));
        let rings: Vec<_> = rings.zip(notifiers).collect();
        (device.features, device.protocol_features, device.mtu, device.status, rings)
    };
    assert_eq!(told(&session), told(&still.session));
}

#[test]
fn what_is_not_taken_is_closed() {
    let (given, watch) = watched();
    let mut session = Session::new(offer());
    session.receive(&bytes([Request::SET_VRING_CALL.0]), vec![given]).unwrap();
    let handover = session.export().unwrap();
    drop(session);
    assert!(!is_closed(&watch));
    drop(Session::import(offer(), handover).unwrap());
    assert!(is_closed(&watch));
}

#[test]
fn what_no_frontend_may_say_is_refused() {
    let mut peer = Peer::new();
    for (request, payload, count) in messages() {
        peer.send_with(request, 0, &payload, fds(count)).unwrap();
    }
    let import = |change: &dyn Fn(&mut Handover)| {
        let mut handover = peer.session.export().unwrap();
        change(&mut handover);
        Session::import(offer(), handover).map(drop)
    };
    import(&|_| {}).unwrap();
    let refused = |change: &dyn Fn(&mut Handover)| match import(change) {
        Err(ImportError::Device(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let rings = import(&|h| h.device.vrings.truncate(1));
    assert!(matches!(rings, Err(ImportError::Rings { got: 1, .. })));
    let refusal = refused(&|h| h.device.features |= virtio::F_RING_PACKED);
    assert_eq!(refusal, Refusal::Features(virtio::F_RING_PACKED));
    assert!(matches!(
        refused(&|h| h.device.protocol_features |= 1 << 60),
        Refusal::ProtocolFeatures(_)
    ));
    assert!(matches!(refused(&|h| h.device.vrings[1].num = 3), Refusal::RingSize { .. }));
    assert!(matches!(refused(&|h| h.device.vrings[1].num = 2048), Refusal::RingSize { .. }));
    let misaligned = refused(&|h| h.device.vrings[1].addr.as_mut().unwrap().used += 1);
    assert!(matches!(misaligned, Refusal::RingAlignment { .. }));
    let overlap = refused(&|h| h.device.regions[1].guest_addr = 0x9_0000);
    assert!(matches!(overlap, Refusal::RegionOverlap { .. }));
    assert!(matches!(refused(&|h| h.device.regions[0].size = 0), Refusal::RegionEmpty { .. }));
    let message = import(&|h| h.unread = vec![0xff; 12]);
    assert!(matches!(message, Err(ImportError::Message(_))));
    let message = import(&|h| h.unread = vec![0; 5000]);
    assert!(matches!(message, Err(ImportError::Message(_))));
}
