//! Dirty logging: what QEMU sends around a migration, and what must be refused.

use vhost_user::features::{protocol, virtio};
use vhost_user::{Action, Outcome, ProtocolError, Refusal, Request};

use crate::peer::{FEATURES, NEED_REPLY, Peer, bytes, fds, is_closed, slot, table, watched};

const MIB: u64 = 1 << 20;
const USER: u64 = 0x7f00_0000_0000;
const LOGGING: u64 = FEATURES | virtio::F_LOG_ALL;
/// Bytes of a log of one MiB.
const ENOUGH: u64 = MIB / 4096 / 8;

/// A peer with one MiB of memory at 0 and ring 0 running.
fn running() -> Peer {
    let mut peer = Peer::negotiated();
    peer.send_with(Request::SET_MEM_TABLE, 0, &table(&[[0, MIB, USER, 0]]), fds(1)).unwrap();
    peer.send(Request::SET_VRING_NUM, &bytes([0_u32, 256])).unwrap();
    peer.send(Request::SET_VRING_ADDR, &addr(0, None)).unwrap();
    peer.send_with(Request::SET_VRING_KICK, 0, &bytes([0_u64]), fds(1)).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])).unwrap();
    peer
}

/// Payload of SET_VRING_ADDR; with VHOST_VRING_F_LOG if there is an address for it.
fn addr(ring: u32, log: Option<u64>) -> Vec<u8> {
    let mut out = bytes([ring, u32::from(log.is_some())]);
    out.extend(bytes([USER, USER + 0x2000, USER + 0x1000, log.unwrap_or(0)]));
    out
}

/// Sends a log as QEMU does, without need_reply; returns the answer.
fn set_log(peer: &mut Peer, size: u64, offset: u64) -> Result<Vec<u8>, Refusal> {
    let payload = bytes([size, offset]);
    match peer.send_with(Request::SET_LOG_BASE, 0, &payload, fds(1)) {
        Ok(action) => {
            assert_eq!(action, Some(Action::Log));
            let reply = peer.reply().expect("SET_LOG_BASE has an answer of its own");
            assert_eq!(reply.request, Request::SET_LOG_BASE);
            Ok(reply.payload)
        }
        Err(ProtocolError::Refused { refusal, .. }) => Err(refusal),
        Err(other) => panic!("{other}"),
    }
}

fn features(peer: &mut Peer, features: u64) -> u64 {
    peer.ack(Request::SET_FEATURES, &bytes([features]), Vec::new())
}

/// A migration of QEMU: log, features, addresses with the flag, all while the ring runs; and back.
#[test]
fn logging_goes_on_and_off_while_rings_run() {
    let mut peer = running();
    for _ in 0..2 {
        assert_eq!(set_log(&mut peer, ENOUGH, 0).unwrap(), bytes([ENOUGH, 0]));
        assert_eq!(features(&mut peer, LOGGING), 0);
        assert!(peer.session.device().is_logging());
        let log = addr(0, Some(0x8_0000));
        assert_eq!(peer.ack(Request::SET_VRING_ADDR, &log, Vec::new()), 0);
        assert_eq!(peer.session.device().vrings[0].addr.unwrap().log, Some(0x8_0000));
        // A larger one in its place, as before memory is plugged in.
        set_log(&mut peer, 2 * ENOUGH, 4096).unwrap();
        let more = slot([MIB, MIB, USER + MIB, 0]);
        assert_eq!(peer.ack(Request::ADD_MEM_REG, &more, fds(1)), 0);
        assert_eq!(peer.ack(Request::REM_MEM_REG, &more, Vec::new()), 0);
        assert_eq!(peer.session.device().log.as_ref().unwrap().size, 2 * ENOUGH);

        assert_eq!(features(&mut peer, FEATURES), 0);
        assert_eq!(peer.ack(Request::SET_VRING_ADDR, &addr(0, None), Vec::new()), 0);
        let device = peer.session.device();
        assert!(device.log.is_none() && device.vrings[0].addr.unwrap().log.is_none());
        assert!(device.vrings[0].is_running());
    }
    // Nothing else may change with it.
    let other = LOGGING & !virtio::NET_F_MRG_RXBUF;
    set_log(&mut peer, ENOUGH, 0).unwrap();
    assert_eq!(features(&mut peer, other), 1);
    // Other addresses neither.
    let mut moved = addr(0, Some(0));
    moved[8..16].copy_from_slice(&(USER + 0x4000).to_ne_bytes());
    assert_eq!(peer.ack(Request::SET_VRING_ADDR, &moved, Vec::new()), 1);
}

/// A guest that loads its driver in the middle of a migration: QEMU names the log last.
#[test]
fn a_device_that_starts_while_logging_gets_its_log_last() {
    let mut peer = Peer::negotiated();
    assert_eq!(features(&mut peer, LOGGING), 0);
    peer.send_with(Request::SET_MEM_TABLE, 0, &table(&[[0, MIB, USER, 0]]), fds(1)).unwrap();
    assert_eq!(peer.ack(Request::SET_VRING_ADDR, &addr(0, Some(0)), Vec::new()), 0);
    peer.send_with(Request::SET_VRING_KICK, 0, &bytes([0_u64]), fds(1)).unwrap();
    set_log(&mut peer, ENOUGH, 0).unwrap();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 1])).unwrap();
    assert_eq!(features(&mut peer, LOGGING), 0, "the second queue pair of QEMU says it again");
}

#[test]
fn rings_are_not_logged_without_a_log() {
    let mut peer = running();
    peer.send(Request::SET_VRING_ENABLE, &bytes([0_u32, 0])).unwrap();
    assert_eq!(features(&mut peer, LOGGING), 1);
    let refused = peer.session.take_refusal().unwrap().to_string();
    assert!(refused.contains("SET_LOG_BASE"), "{refused}");
    assert!(!peer.session.device().is_logging());
}

#[test]
fn a_log_covers_the_memory() {
    let mut peer = running();
    let too_small = Refusal::LogTooSmall { end: MIB - 8 * 4096, needed: MIB };
    assert_eq!(set_log(&mut peer, ENOUGH - 1, 0), Err(too_small));

    let mut peer = running();
    set_log(&mut peer, ENOUGH, 0).unwrap();
    let more = slot([MIB, 4096, USER + MIB, 0]);
    // A log that is not in use does not stand in the way, but cannot be used then.
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &more, fds(1)), 0);
    assert_eq!(features(&mut peer, LOGGING), 1);
    assert_eq!(peer.ack(Request::REM_MEM_REG, &more, Vec::new()), 0);
    assert_eq!(features(&mut peer, LOGGING), 0);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &more, fds(1)), 1);
    let both = table(&[[0, MIB, USER, 0], [MIB, 4096, USER + MIB, 0]]);
    assert_eq!(peer.ack(Request::SET_MEM_TABLE, &both, fds(2)), 1);
    assert_eq!(peer.session.device().regions.len(), 1);
}

#[test]
fn sizes_that_lie_are_refused() {
    for (size, offset) in [
        (0, 0),
        (u64::MAX, 0),
        (u64::MAX, 2),
        (ENOUGH, u64::MAX),
        (ENOUGH, i64::MAX.unsigned_abs()),
        ((8 << 30) + 1, 0),
    ] {
        let refused = set_log(&mut running(), size, offset);
        assert_eq!(refused, Err(Refusal::LogSize { size, offset }));
    }
    // A session without the feature takes neither a log nor the flag.
    let mut peer = Peer::new();
    let set = bytes([protocol::SUPPORTED & !protocol::LOG_SHMFD]);
    peer.send(Request::SET_PROTOCOL_FEATURES, &set).unwrap();
    let missing = Refusal::NotNegotiated(protocol::LOG_SHMFD);
    assert_eq!(set_log(&mut peer, ENOUGH, 0), Err(missing.clone()));
    assert_eq!(features(&mut peer, LOGGING), 1);
    let refused = peer.session.take_refusal().unwrap();
    let request = Request::SET_FEATURES;
    assert_eq!(refused, ProtocolError::Refused { request, refusal: missing });
}

#[test]
fn a_log_that_cannot_be_mapped_ends_the_connection() {
    let mut peer = running();
    peer.outcome = Outcome::Failed;
    let payload = bytes([ENOUGH, 0]);
    let (read, write) = watched();
    peer.send_with(Request::SET_LOG_BASE, NEED_REPLY, &payload, vec![read]).unwrap_err();
    assert!(peer.session.device().log.is_none());
    assert!(is_closed(&write));
}

#[test]
fn the_old_log_is_closed_when_the_new_one_is_in_place() {
    let mut peer = running();
    let (read, write) = watched();
    let payload = bytes([ENOUGH, 0]);
    peer.send_with(Request::SET_LOG_BASE, 0, &payload, vec![read]).unwrap();
    peer.reply().unwrap();
    assert!(!is_closed(&write));
    set_log(&mut peer, ENOUGH, 0).unwrap();
    assert!(is_closed(&write));
}
