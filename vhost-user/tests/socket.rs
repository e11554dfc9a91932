//! The thin shell over a real socket pair.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_user::features::protocol;
use vhost_user::socket::{self, Error, Read};
use vhost_user::{Action, Offer, Outcome, ProtocolError, Session};

fn session() -> Session {
    Session::new(Offer {
        features: 1 << 32,
        protocol_features: protocol::SUPPORTED,
        queue_pairs: 1,
        config: Vec::new(),
        max_ring: 256,
    })
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let mut out: Vec<u8> =
        [request, 1 | flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
    out.extend(payload);
    out
}

fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

/// Reads until something other than bytes happens.
fn drain(stream: &UnixStream, session: &mut Session) -> (Vec<Action>, Result<Read, Error>) {
    let mut actions = Vec::new();
    loop {
        match socket::read(stream, session) {
            Ok(Read::Received) => {
                if let Some(action) = session.poll().unwrap() {
                    actions.push(action);
                    session.complete(Outcome::Done).unwrap();
                }
            }
            other => return (actions, other),
        }
    }
}

/// Messages sent back to back are one stretch of bytes for the kernel; descriptors must still find
/// their own message.
#[test]
fn descriptors_stay_with_their_message() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut session = session();
    (&theirs).write_all(&message(3, 0, &[])).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    send_with_fds(&theirs, &message(12, 0, &1_u64.to_ne_bytes()), &[event.as_fd()]);
    (&theirs).write_all(&message(18, 0, &[1, 0, 0, 0, 1, 0, 0, 0])).unwrap();
    let (actions, end) = drain(&ours, &mut session);
    assert!(matches!(end, Ok(Read::Empty)));
    assert_eq!(actions, [Action::Vring(1), Action::Vring(1)]);
    assert!(session.device().vrings[1].kick.is_some());
    assert!(session.device().vrings[1].enabled);
}

#[test]
fn too_many_descriptors_are_noticed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut session = session();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    send_with_fds(&theirs, &message(5, 0, &[0; 8]), &[event.as_fd(); 64]);
    let (_, end) = drain(&ours, &mut session);
    assert!(matches!(end, Err(Error::Protocol(ProtocolError::FdsTruncated))));
}

#[test]
fn a_hang_up_is_told_apart() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut clean = session();
    (&theirs).write_all(&message(3, 0, &[])).unwrap();
    drop(theirs);
    assert!(matches!(drain(&ours, &mut clean).1, Ok(Read::Closed)));

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut torn = session();
    (&theirs).write_all(&message(2, 0, &[0; 8])[..15]).unwrap();
    drop(theirs);
    let end = drain(&ours, &mut torn).1;
    assert!(matches!(end, Err(Error::Protocol(ProtocolError::Truncated { .. }))));
}

/// A frontend that asks and never reads: neither side of the session blocks or grows.
#[test]
fn a_peer_that_reads_no_replies_only_stops_itself() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut session = session();
    let question = message(1, 0, &[]);
    let mut rounds = 0;
    loop {
        let asked = (&theirs).write(&question).is_ok_and(|sent| sent == question.len());
        let (_, end) = drain(&ours, &mut session);
        let all_sent = socket::write(&ours, &mut session).unwrap();
        rounds += 1;
        assert!(rounds < 1_000_000, "replies vanish somewhere");
        if !all_sent && !asked {
            assert!(matches!(end, Ok(Read::Paused)));
            break;
        }
    }
    assert!(session.output().len() < 2 * vhost_user::OUTPUT_LIMIT);
}
