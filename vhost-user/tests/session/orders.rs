//! Orders of messages as frontends were seen to send them.

use vhost_user::features::{protocol, virtio};
use vhost_user::{Action, Request};

use crate::peer::{FEATURES, NEED_REPLY, Peer, addr, bytes, fds, table};

const USER: u64 = 0x7f12_3456_0000;

/// QEMU 7.2, one pair: call descriptors long before the rings, status at the end, a stop and a start.
#[test]
fn qemu() {
    let mut peer = Peer::new();
    peer.call(Request::GET_FEATURES, &[]);
    let offered = peer.call(Request::GET_PROTOCOL_FEATURES, &[]).value();
    let accepted = offered & !protocol::CONFIG;
    peer.send(Request::SET_PROTOCOL_FEATURES, &bytes([accepted])).unwrap();
    peer.call(Request::GET_QUEUE_NUM, &[]);
    peer.call(Request::GET_MAX_MEM_SLOTS, &[]);
    assert_eq!(with_fd(&mut peer, Request::SET_BACKEND_REQ_FD, &[]), 0);
    peer.send(Request::SET_OWNER, &[]).unwrap();
    peer.call(Request::GET_FEATURES, &[]);
    for ring in 0..2_u64 {
        peer.send_with(Request::SET_VRING_CALL, 0, &bytes([ring]), fds(1)).unwrap();
        peer.send_with(Request::SET_VRING_ERR, 0, &bytes([ring]), fds(1)).unwrap();
    }
    for base in [0, 300_u32] {
        peer.send(Request::SET_FEATURES, &bytes([FEATURES & !virtio::NET_F_CTRL_VQ])).unwrap();
        for region in [[0, 0xa_0000, USER, 0], [0xc_0000, 1 << 20, USER + 0xc_0000, 0xc_0000]] {
            let status = peer.ack(Request::ADD_MEM_REG, &crate::peer::slot(region), fds(1));
            assert_eq!(status, 0);
        }
        for ring in 0..2_u32 {
            peer.send(Request::SET_VRING_NUM, &bytes([ring, 256])).unwrap();
            peer.send(Request::SET_VRING_BASE, &bytes([ring, base])).unwrap();
            peer.send(Request::SET_VRING_ADDR, &addr(ring, USER, USER + 0x2000, USER + 0x1000))
                .unwrap();
            let ring = bytes([u64::from(ring)]);
            peer.send_with(Request::SET_VRING_KICK, 0, &ring, fds(1)).unwrap();
            peer.send_with(Request::SET_VRING_CALL, 0, &ring, fds(1)).unwrap();
        }
        peer.call(Request::GET_STATUS, &[]);
        peer.send(Request::SET_STATUS, &bytes([0x7_u64])).unwrap();
        for ring in 0..2_u32 {
            peer.send(Request::SET_VRING_ENABLE, &bytes([ring, 1])).unwrap();
        }
        assert!(peer.session.device().vrings[..2].iter().all(|v| v.is_ready() && v.is_running()));
        assert!(peer.session.device().vrings.iter().all(|v| v.base == 0 || v.base == 300));

        // The guest reboots.
        for ring in 0..2_u32 {
            peer.send(Request::SET_VRING_ENABLE, &bytes([ring, 0])).unwrap();
        }
        for ring in 0..2_u32 {
            let reply = peer.call(Request::GET_VRING_BASE, &bytes([ring, 0]));
            assert_eq!(reply.payload, bytes([ring, 7]));
        }
        peer.send(Request::SET_STATUS, &bytes([0_u64])).unwrap();
        for region in [[0, 0xa_0000, USER, 0], [0xc_0000, 1 << 20, USER + 0xc_0000, 0xc_0000]] {
            let status = peer.ack(Request::REM_MEM_REG, &crate::peer::slot(region), fds(1));
            assert_eq!(status, 0);
        }
        assert!(peer.session.device().vrings[..2].iter().all(|v| v.call.is_some()));
    }
}

/// User-mode Linux 6.1: configuration byte by byte, a table with room to spare, need_reply on all.
#[test]
fn user_mode_linux() {
    let mut peer = Peer::new();
    peer.send(Request::SET_OWNER, &[]).unwrap();
    peer.call(Request::GET_FEATURES, &[]);
    peer.call(Request::GET_PROTOCOL_FEATURES, &[]);
    let accepted = protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;
    peer.send(Request::SET_PROTOCOL_FEATURES, &bytes([accepted])).unwrap();
    assert_eq!(with_fd(&mut peer, Request::SET_BACKEND_REQ_FD, &[]), 0);
    for offset in 0..6_u32 {
        let mut request = bytes([offset, 1_u32, 0]);
        request.push(0);
        assert_eq!(peer.call(Request::GET_CONFIG, &request).payload.len(), 13);
    }
    let features = FEATURES & !virtio::NET_F_MQ;
    assert_eq!(peer.ack(Request::SET_FEATURES, &bytes([features]), Vec::new()), 0);
    let mut memory = table(&[[0, 128 << 20, 0x6000_0000, 0]]);
    memory.resize(72, 0);
    assert_eq!(peer.ack(Request::SET_MEM_TABLE, &memory, fds(1)), 0);
    // RX, TX, control.
    for ring in 0..3_u32 {
        assert_eq!(with_fd(&mut peer, Request::SET_VRING_CALL, &bytes([u64::from(ring)])), 0);
        for (request, value) in [(Request::SET_VRING_NUM, 128), (Request::SET_VRING_BASE, 0)] {
            assert_eq!(peer.ack(request, &bytes([ring, value]), Vec::new()), 0);
        }
        let at = 0x6000_0000 + 0x1_0000 * u64::from(ring);
        let addresses = addr(ring, at, at + 0x2000, at + 0x1000);
        assert_eq!(peer.ack(Request::SET_VRING_ADDR, &addresses, Vec::new()), 0);
    }
    for ring in 0..3_u32 {
        assert_eq!(with_fd(&mut peer, Request::SET_VRING_KICK, &bytes([u64::from(ring)])), 0);
        assert_eq!(peer.ack(Request::SET_VRING_ENABLE, &bytes([ring, 1]), Vec::new()), 0);
    }
    let device = peer.session.device();
    assert_eq!(device.control_queue(), Some(2));
    assert!(device.vrings[..3].iter().all(|vring| vring.is_ready() && vring.is_running()));
}

/// A frontend without protocol features: no SET_VRING_ENABLE at all.
#[test]
fn old_frontend() {
    let mut peer = Peer::new();
    peer.send(Request::SET_OWNER, &[]).unwrap();
    let features = virtio::NET_F_MRG_RXBUF | virtio::F_VERSION_1;
    peer.send(Request::SET_FEATURES, &bytes([features])).unwrap();
    let memory = table(&[[0, 1 << 20, USER, 0]]);
    let action = peer.send_with(Request::SET_MEM_TABLE, 0, &memory, fds(1)).unwrap();
    assert_eq!(action, Some(Action::Memory));
    peer.send(Request::SET_VRING_NUM, &bytes([0_u32, 64])).unwrap();
    peer.send(Request::SET_VRING_ADDR, &addr(0, USER, USER + 0x2000, USER + 0x1000)).unwrap();
    peer.send_with(Request::SET_VRING_KICK, 0, &bytes([0_u64]), fds(1)).unwrap();
    assert!(peer.session.device().vrings[0].is_running());
    assert!(!peer.session.device().vrings[1].is_running());
}

fn with_fd(peer: &mut Peer, request: Request, payload: &[u8]) -> u64 {
    peer.send_with(request, NEED_REPLY, payload, fds(1)).unwrap();
    peer.reply().expect("an acknowledgement").value()
}
