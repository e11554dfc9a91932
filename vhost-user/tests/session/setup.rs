use vhost_user::features::{protocol, virtio};
use vhost_user::{Action, MEM_SLOTS, ProtocolError, Refusal, Request, Session};

use crate::peer::{FEATURES, Peer, bytes, is_closed, offer, watched};

fn refusal(result: Result<Option<Action>, ProtocolError>) -> Refusal {
    match result {
        Err(ProtocolError::Refused { refusal, .. }) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn the_offer_is_completed() {
    let mut wide = offer();
    wide.features = 0;
    wide.protocol_features = u64::MAX;
    wide.queue_pairs = 0;
    let session = Session::new(wide.clone());
    assert_eq!(session.offer().features, virtio::F_PROTOCOL_FEATURES | virtio::F_LOG_ALL);
    assert_eq!(session.offer().protocol_features, protocol::SUPPORTED);
    assert_eq!(session.device().vrings.len(), 2);
    // No log without a way to pass it.
    wide.features = virtio::F_LOG_ALL;
    wide.protocol_features = !protocol::LOG_SHMFD;
    assert_eq!(Session::new(wide).offer().features, virtio::F_PROTOCOL_FEATURES);
}

#[test]
fn features_are_a_subset_of_the_offer() {
    let mut peer = Peer::new();
    let offered = peer.call(Request::GET_FEATURES, &[]).value();
    assert_eq!(offered, FEATURES | virtio::F_LOG_ALL);
    assert_eq!(
        refusal(peer.send(Request::SET_FEATURES, &bytes([FEATURES | 1 << 60]))),
        Refusal::Features(1 << 60)
    );
    let action = peer.send(Request::SET_FEATURES, &bytes([FEATURES])).unwrap();
    assert_eq!(action, Some(Action::Features));
    assert!(peer.session.device().has(virtio::NET_F_MRG_RXBUF | virtio::F_VERSION_1));
}

#[test]
fn rings_are_enabled_at_once_without_protocol_features() {
    let mut peer = Peer::new();
    peer.send(Request::SET_FEATURES, &bytes([FEATURES])).unwrap();
    assert!(peer.session.device().vrings.iter().all(|vring| !vring.enabled));
    peer.send(Request::SET_FEATURES, &bytes([FEATURES & !virtio::F_PROTOCOL_FEATURES])).unwrap();
    assert!(peer.session.device().vrings.iter().all(|vring| vring.enabled && !vring.started));
}

#[test]
fn features_do_not_change_under_a_running_ring() {
    let mut peer = Peer::negotiated();
    peer.send(Request::SET_VRING_KICK, &bytes([0x101_u64])).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([1_u32, 1])).unwrap();
    // The same again is what a second queue pair of QEMU sends.
    peer.send(Request::SET_FEATURES, &bytes([FEATURES])).unwrap();
    let changed = bytes([FEATURES & !virtio::NET_F_MRG_RXBUF]);
    assert_eq!(
        refusal(peer.send(Request::SET_FEATURES, &changed)),
        Refusal::FeaturesWhileRunning { ring: 1 }
    );
    peer.send(Request::SET_VRING_ENABLE, &bytes([1_u32, 0])).unwrap();
    peer.send(Request::SET_FEATURES, &changed).unwrap();
}

#[test]
fn control_queue_follows_multi_queue() {
    let mut peer = Peer::new();
    assert_eq!(peer.session.device().control_queue(), None);
    peer.send(Request::SET_FEATURES, &bytes([FEATURES])).unwrap();
    assert_eq!(peer.session.device().control_queue(), Some(4));
    peer.send(Request::SET_FEATURES, &bytes([FEATURES & !virtio::NET_F_MQ])).unwrap();
    assert_eq!(peer.session.device().control_queue(), Some(2));
}

#[test]
fn protocol_features_are_a_subset_and_gate_their_messages() {
    let mut peer = Peer::new();
    assert_eq!(peer.call(Request::GET_PROTOCOL_FEATURES, &[]).value(), protocol::SUPPORTED);
    assert_eq!(
        refusal(peer.send(Request::SET_PROTOCOL_FEATURES, &bytes([1_u64 << 40]))),
        Refusal::ProtocolFeatures(1 << 40)
    );
    for (request, payload, feature) in [
        (Request::GET_QUEUE_NUM, vec![], protocol::MQ),
        (Request::NET_SET_MTU, bytes([1500_u64]), protocol::MTU),
        (Request::GET_CONFIG, bytes([0_u32, 1, 0]), protocol::CONFIG),
        (Request::RESET_DEVICE, vec![], protocol::RESET_DEVICE),
        (Request::GET_MAX_MEM_SLOTS, vec![], protocol::CONFIGURE_MEM_SLOTS),
        (Request::SET_STATUS, bytes([1_u64]), protocol::STATUS),
    ] {
        let mut peer = Peer::new();
        let error = refusal(peer.send(request, &payload));
        assert_eq!(error, Refusal::NotNegotiated(feature), "{request}");
        assert!(error.to_string().contains(protocol::name(feature)));
        peer = Peer::new();
        peer.send(Request::SET_PROTOCOL_FEATURES, &bytes([feature])).unwrap();
        peer.send(request, &payload).unwrap();
    }
}

#[test]
fn limits_are_told() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.call(Request::GET_QUEUE_NUM, &[]).value(), 4);
    assert_eq!(peer.call(Request::GET_MAX_MEM_SLOTS, &[]).value(), MEM_SLOTS as u64);
}

/// User-mode Linux reads byte by byte, others the whole.
#[test]
fn config_is_read_in_any_pieces() {
    let mut peer = Peer::negotiated();
    for offset in 0..24 {
        let mut request = bytes([offset, 1_u32, 0]);
        request.push(0xff);
        let reply = peer.call(Request::GET_CONFIG, &request).payload;
        assert_eq!(&reply[..12], &request[..12]);
        assert_eq!(reply[12..], [u8::try_from(offset).unwrap()]);
    }
    // Without room for the bytes in the request.
    let reply = peer.call(Request::GET_CONFIG, &bytes([4_u32, 20, 0])).payload;
    assert_eq!(reply[12..], (4..24).collect::<Vec<u8>>());
    for (offset, size) in [(24, 1), (0, 25), (u32::MAX, u32::MAX)] {
        let reply = peer.call(Request::GET_CONFIG, &bytes([offset, size, 0]));
        assert_eq!(reply.payload, [], "out of range is an empty reply");
    }
}

#[test]
fn config_is_read_only_and_a_write_does_not_end_the_connection() {
    let mut peer = Peer::negotiated();
    let mut write = bytes([0_u32, 6, 0]);
    write.extend([2; 6]);
    peer.send(Request::SET_CONFIG, &write).unwrap();
    let refused = peer.session.take_refusal().unwrap();
    assert_eq!(refused.to_string(), "SET_CONFIG: the device configuration is read-only");
    assert_eq!(peer.ack(Request::SET_CONFIG, &write, Vec::new()), 1);
    for bad in [bytes([0_u32, 25, 0]), bytes([0_u32, 2, 0]), bytes([0_u32, 0, 2])] {
        assert_eq!(peer.ack(Request::SET_CONFIG, &bad, Vec::new()), 1);
    }
    assert_eq!(peer.call(Request::GET_CONFIG, &bytes([0_u32, 2, 0])).payload[12..], [0, 1]);
}

#[test]
fn mtu_is_checked_and_kept() {
    let mut peer = Peer::negotiated();
    for bad in [0, 67, 65536, u64::MAX] {
        assert_eq!(peer.ack(Request::NET_SET_MTU, &bytes([bad]), Vec::new()), 1);
    }
    assert_eq!(peer.session.device().mtu, None);
    assert_eq!(peer.ack(Request::NET_SET_MTU, &bytes([9000_u64]), Vec::new()), 0);
    assert_eq!(peer.session.device().mtu, Some(9000));
}

#[test]
fn rarp_is_for_unicast_addresses() {
    let mut peer = Peer::negotiated();
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let payload = [0x52, 0x54, 0, 1, 2, 3, 0, 0];
    assert_eq!(peer.send(Request::SEND_RARP, &payload), Ok(Some(Action::Rarp(mac))));
    for bad in [[0; 8], [0xff; 8]] {
        assert_eq!(peer.send(Request::SEND_RARP, &bad), Ok(None));
        assert!(peer.session.take_refusal().is_some());
    }
}

#[test]
fn status_is_kept_and_zero_resets() {
    let mut peer = Peer::negotiated();
    peer.send(Request::SET_STATUS, &bytes([0x0f_u64])).unwrap();
    assert_eq!(peer.call(Request::GET_STATUS, &[]).value(), 0x0f);
    assert_eq!(refusal(peer.send(Request::SET_STATUS, &bytes([256_u64]))), Refusal::Status(256));
    peer.send(Request::SET_VRING_KICK, &bytes([0x100_u64])).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])).unwrap();
    assert_eq!(peer.send(Request::SET_STATUS, &bytes([0_u64])), Ok(Some(Action::Reset)));
    assert!(!peer.session.device().vrings[0].is_running());
    assert_eq!(peer.call(Request::GET_STATUS, &[]).value(), 0);
}

#[test]
fn reset_device_stops_rings_and_keeps_memory() {
    let mut peer = Peer::negotiated();
    peer.send_with(
        Request::SET_MEM_TABLE,
        0,
        &crate::peer::table(&[[0, 4096, 0, 0]]),
        crate::peer::fds(1),
    )
    .unwrap();
    peer.send(Request::SET_VRING_KICK, &bytes([0x100_u64])).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])).unwrap();
    assert_eq!(peer.send(Request::RESET_DEVICE, &[]), Ok(Some(Action::Reset)));
    let device = peer.session.device();
    assert_eq!((device.features, device.status), (0, 0));
    assert!(device.vrings.iter().all(|vring| !vring.started && !vring.enabled));
    assert_eq!(device.regions.len(), 1);
    assert_eq!(device.protocol_features, protocol::SUPPORTED);
    assert_eq!(peer.send(Request::RESET_OWNER, &[]), Ok(Some(Action::Reset)));
}

/// User-mode Linux unplugs its device when the back channel closes.
#[test]
fn back_channel_stays_open_until_replaced() {
    let mut peer = Peer::negotiated();
    let (first, first_end) = watched();
    let (second, second_end) = watched();
    peer.send_with(Request::SET_BACKEND_REQ_FD, 0, &[], vec![first]).unwrap();
    peer.send(Request::RESET_DEVICE, &[]).unwrap();
    assert!(!is_closed(&first_end));
    peer.send_with(Request::SET_BACKEND_REQ_FD, 0, &[], vec![second]).unwrap();
    assert!(is_closed(&first_end));
    assert!(!is_closed(&second_end));
    drop(peer);
    assert!(is_closed(&second_end));
}
