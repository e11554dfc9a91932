use vhost_user::features::protocol;
use vhost_user::{OUTPUT_LIMIT, Outcome, ProtocolError, Request, Session};

use crate::peer::{NEED_REPLY, Peer, bytes, fd, fds, is_closed, offer, watched};

/// GET_FEATURES, one byte at a time.
#[test]
fn any_split_of_the_stream_works() {
    let mut peer = Peer::new();
    let mut stream = bytes([1_u32, 1, 0]);
    stream.extend(bytes([16_u32, 1, 8]));
    stream.extend(bytes([protocol::REPLY_ACK]));
    stream.extend(bytes([15_u32, 1, 0]));
    for byte in stream {
        assert!(peer.session.wanted() > 0);
        peer.session.receive(&[byte], []).unwrap();
        assert_eq!(peer.session.poll().unwrap(), None);
    }
    assert_eq!(peer.reply().unwrap().request, Request::GET_FEATURES);
    assert_eq!(peer.session.device().protocol_features, protocol::REPLY_ACK);
    assert_eq!(peer.reply().unwrap().request, Request::GET_PROTOCOL_FEATURES);
    assert_eq!(peer.session.finish(), Ok(()));
}

#[test]
fn wanted_never_crosses_a_message() {
    let mut session = Session::new(offer());
    assert_eq!(session.wanted(), 12);
    session.receive(&bytes([2_u32, 1])[..8], []).unwrap();
    assert_eq!(session.wanted(), 4);
    session.receive(&bytes([8_u32]), []).unwrap();
    assert_eq!(session.wanted(), 8);
    session.receive(&[0; 8], []).unwrap();
    assert_eq!(session.wanted(), 0);
    assert_eq!(session.receive(&[0], []), Err(ProtocolError::Overrun));
}

#[test]
fn a_hang_up_is_clean_only_between_messages() {
    let mut session = Session::new(offer());
    assert_eq!(session.finish(), Ok(()));
    session.receive(&[2], []).unwrap();
    assert_eq!(session.finish(), Err(ProtocolError::TruncatedHeader));
    session.receive(&bytes([2_u32, 1, 8])[1..], []).unwrap();
    assert_eq!(session.finish(), Err(ProtocolError::Truncated { request: Request::SET_FEATURES }));
}

#[test]
fn only_version_1_requests_are_read() {
    for (flags, error) in [
        (0, ProtocolError::Version { request: Request::SET_OWNER, version: 0 }),
        (2, ProtocolError::Version { request: Request::SET_OWNER, version: 2 }),
        (1 | 1 << 2, ProtocolError::Flags { request: Request::SET_OWNER, flags: 5 }),
        (1 | 1 << 4, ProtocolError::Flags { request: Request::SET_OWNER, flags: 17 }),
    ] {
        let mut session = Session::new(offer());
        assert_eq!(session.receive(&bytes([3_u32, flags, 0]), []), Err(error));
    }
}

#[test]
fn payload_sizes_are_refused_from_the_header() {
    for (request, size) in [(2, 7), (2, 9), (3, 1), (5, 7), (5, 1033), (9, 39), (24, 269), (37, 32)]
    {
        let mut session = Session::new(offer());
        let error = session.receive(&bytes([request, 1, size]), []).unwrap_err();
        assert!(matches!(error, ProtocolError::PayloadSize { size: got, .. } if got == size));
    }
    let mut session = Session::new(offer());
    let error = session.receive(&bytes([u32::MAX, 1, 4097]), []).unwrap_err();
    assert_eq!(error, ProtocolError::PayloadTooLong { request: Request(u32::MAX), size: 4097 });
}

#[test]
fn descriptor_counts_are_refused_from_the_header_and_all_are_closed() {
    for (request, size, count) in
        [(2, 8, 1), (12, 8, 2), (21, 0, 0), (21, 0, 2), (37, 40, 0), (38, 40, 2)]
    {
        let mut session = Session::new(offer());
        let (read, write) = watched();
        let mut given = fds(count);
        if count > 0 {
            given.pop();
            given.push(read);
        } else {
            drop(read);
        }
        let error = session.receive(&bytes([request, 1_u32, size]), given).unwrap_err();
        assert!(matches!(error, ProtocolError::Fds { got, .. } if got == count), "{error}");
        drop(session);
        assert!(is_closed(&write));
    }
}

#[test]
fn descriptors_are_bounded_and_come_with_the_header_only() {
    let mut session = Session::new(offer());
    assert_eq!(session.receive(&[5], fds(33)), Err(ProtocolError::TooManyFds));

    // In two parts of one header: the count is that of the message.
    let mut session = Session::new(offer());
    session.receive(&[5], fds(20)).unwrap();
    assert_eq!(session.receive(&[0], fds(13)), Err(ProtocolError::TooManyFds));

    let mut session = Session::new(offer());
    session.receive(&bytes([5_u32, 1, 40]), fds(1)).unwrap();
    let error = session.receive(&[0; 40], [fd()]).unwrap_err();
    assert_eq!(error, ProtocolError::FdsWithPayload { request: Request::SET_MEM_TABLE });
}

#[test]
fn unread_replies_pause_the_session_and_stay_bounded() {
    let mut peer = Peer::negotiated();
    let mut sent = 0;
    while peer.session.wanted() > 0 {
        peer.send_with(Request::SET_OWNER, NEED_REPLY, &[], Vec::new()).unwrap();
        sent += 1;
        assert!(sent < 1000, "the flood is never stopped");
    }
    assert!(peer.session.output().len() < OUTPUT_LIMIT + 512);
    // Reading one reply makes room again.
    peer.reply().unwrap();
    assert_eq!(peer.session.wanted(), 12);
}

#[test]
fn unknown_requests_are_denied_if_asked_else_the_end() {
    for request in [0, 22, 31, 44, u32::MAX] {
        let mut peer = Peer::negotiated();
        assert_eq!(peer.ack(Request(request), &[1; 100], fds(3)), 1);
        assert!(peer.session.take_refusal().is_some());
        assert!(peer.send(Request(request), &[]).is_err());
    }
}

#[test]
fn need_reply_counts_only_after_reply_ack() {
    let mut peer = Peer::new();
    peer.send_with(Request::SET_OWNER, NEED_REPLY, &[], Vec::new()).unwrap();
    assert_eq!(peer.reply(), None);
    assert!(peer.send_with(Request(99), NEED_REPLY, &[], Vec::new()).is_err());

    let mut peer = Peer::negotiated();
    assert_eq!(peer.ack(Request::SET_OWNER, &[], Vec::new()), 0);
    // A request with a reply of its own is not acknowledged besides.
    peer.send_with(Request::GET_FEATURES, NEED_REPLY, &[], Vec::new()).unwrap();
    assert!(peer.reply().is_some());
    assert_eq!(peer.reply(), None);
}

#[test]
fn the_driver_can_fail_an_action() {
    let payload = bytes([0_u32, 256]);
    let mut peer = Peer::negotiated();
    peer.outcome = Outcome::Failed;
    assert_eq!(peer.ack(Request::SET_VRING_NUM, &payload, Vec::new()), 1);
    assert_eq!(peer.session.device().vrings[0].num, 0, "the state is that before the message");
    let error = peer.send(Request::SET_VRING_NUM, &payload).unwrap_err();
    assert_eq!(error.to_string(), "SET_VRING_NUM: the switch could not do it");
}

#[test]
fn completing_nothing_does_nothing() {
    let mut peer = Peer::new();
    peer.session.complete(Outcome::Failed).unwrap();
    assert!(peer.session.output().is_empty());
}
