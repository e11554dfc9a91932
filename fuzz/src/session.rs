//! A frontend's messages.

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost_user::features::{protocol, virtio};
use vhost_user::{Device, HEADER_LEN, MEM_SLOTS, OUTPUT_LIMIT, Offer, Outcome, Session};

use crate::input::Input;

const MAX_RING: u16 = 1024;
/// Answers that fit in after the limit was not yet reached: one message's.
const ANSWER: usize = HEADER_LEN + 4096;

/// A frontend that says anything, in pieces, with descriptors, while the driver succeeds or fails as it likes.
///
/// # Panics
/// When the session shows state that it must not accept, holds more than its bounds, or wants bytes while it works.
pub fn session(data: &[u8]) {
    let mut input = Input(data);
    let mut session = Session::new(Offer {
        features: virtio::F_VERSION_1
            | virtio::F_INDIRECT_DESC
            | virtio::F_EVENT_IDX
            | virtio::NET_F_MRG_RXBUF
            | virtio::NET_F_MQ
            | virtio::NET_F_CTRL_VQ,
        protocol_features: protocol::SUPPORTED,
        queue_pairs: 2,
        config: (0..24).collect(),
        max_ring: MAX_RING,
    });
    while !input.is_empty() {
        let step = input.u8();
        let over = match step % 8 {
            0 => {
                let bytes = input.sized();
                feed(&mut session, bytes, usize::from(step >> 3) % 4, 1 + usize::from(step >> 5))
            }
            1 => {
                session.sent(usize::from(input.u8()));
                false
            }
            // A message with a true header, as deeper states need.
            _ => {
                let request = u32::from(input.u8());
                let flags = 1 | u32::from(step & 8);
                let payload = input.sized();
                let size = u32::try_from(payload.len()).unwrap_or(0);
                let header = [request, flags, size].map(u32::to_ne_bytes).concat();
                let count = if step & 16 != 0 { usize::from(step >> 5) } else { 0 };
                feed(&mut session, &header, count, HEADER_LEN)
                    || feed(&mut session, payload, 0, payload.len().max(1))
            }
        };
        if over || act(&mut session, step) {
            let _ = session.finish();
            return;
        }
    }
}

/// Gives bytes in pieces; true when the connection is over.
fn feed(session: &mut Session, bytes: &[u8], fds: usize, piece: usize) -> bool {
    let mut descriptors = Some(descriptors(fds));
    let mut rest = bytes;
    while !rest.is_empty() {
        let take = session.wanted().min(rest.len()).min(piece);
        if take == 0 {
            // It insists on something else first.
            return act(session, 0);
        }
        let (now, later) = rest.split_at(take);
        rest = later;
        if session.receive(now, descriptors.take().unwrap_or_default()).is_err() {
            return true;
        }
        if act(session, u8::try_from(rest.len() % 256).unwrap_or(0)) {
            return true;
        }
    }
    false
}

/// Does what the session asks for; true when the connection is over.
fn act(session: &mut Session, how: u8) -> bool {
    loop {
        match session.poll() {
            Err(_) => return true,
            Ok(None) => break,
            Ok(Some(_)) => {
                assert_eq!(session.wanted(), 0, "an action is pending");
                assert!(matches!(session.poll(), Ok(None)), "one action at a time");
                let outcome = match how % 4 {
                    0 => Outcome::Done,
                    1 => Outcome::Failed,
                    _ => Outcome::VringBase(u32::from(how)),
                };
                if session.complete(outcome).is_err() {
                    return true;
                }
            }
        }
        check(session.device());
    }
    assert!(session.output().len() < OUTPUT_LIMIT + ANSWER, "answers pile up");
    if session.output().len() >= OUTPUT_LIMIT {
        assert_eq!(session.wanted(), 0, "a peer that does not read is not listened to");
        session.sent(usize::MAX);
    }
    false
}

/// What a driver may rely on.
fn check(device: &Device) {
    assert!(device.regions.len() <= MEM_SLOTS);
    assert_eq!(device.vrings.len(), 5);
    for (at, region) in device.regions.iter().enumerate() {
        assert!(region.size > 0);
        let end = region.guest_addr.checked_add(region.size).expect("checked guest addresses");
        region.user_addr.checked_add(region.size).expect("checked user addresses");
        region.mmap_offset.checked_add(region.size).expect("checked offsets");
        for other in &device.regions[..at] {
            let apart =
                end <= other.guest_addr || other.guest_addr + other.size <= region.guest_addr;
            assert!(apart, "regions overlap: {region:?} {other:?}");
        }
    }
    for vring in &device.vrings {
        assert!(vring.num == 0 || vring.num.is_power_of_two() && vring.num <= MAX_RING);
        assert!(!vring.is_ready() || vring.addr.is_some() && vring.num > 0);
    }
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).filter_map(|_| File::open("/dev/null").ok()).map(OwnedFd::from).collect()
}
