//! Messages that break the protocol.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use netns_tests::frontend::hostile::{Attacker, Layout, NEED_REPLY, Raw, Side, words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use vhost_user::Request;

use crate::scene::{Scene, Trace};

/// Bytes after a good handshake, and the reason they give.
fn bad_messages() -> Vec<(&'static str, Vec<u8>, usize, &'static str)> {
    let message = |request: u32, flags: u32, payload: &[u8]| {
        let size = u32::try_from(payload.len()).unwrap_or_default();
        [&words([request, flags, size])[..], payload].concat()
    };
    let ring = |value: u64| words([value]);
    vec![
        ("text in place of a protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 0, "version"),
        ("another version", message(1, 2, &[]), 0, "version"),
        ("a reply from the frontend", message(1, 1 | 4, &[]), 0, "flags"),
        ("a payload of 4 GiB", words([1_u32, 1, u32::MAX]), 0, "payload"),
        ("a payload that is too short", message(2, 1, &[0; 7]), 0, "payload"),
        ("an unknown request", message(4711, 1, &[0; 64]), 0, "not supported"),
        ("a request that was not offered", message(22, 1, &[0; 16]), 1, "not supported"),
        ("in-flight tracking, which is not offered", message(31, 1, &[0; 24]), 0, "not supported"),
        ("descriptors with a message that has none", message(3, 1, &[]), 5, "descriptors"),
        ("33 descriptors", message(5, 1, &[0; 8]), 33, "descriptors"),
        ("250 descriptors", message(5, 1, &[0; 8]), 250, "descriptors"),
        ("a ring that is not there", message(12, 1, &ring(77)), 1, "ring 77"),
        ("the 257th ring", message(8, 1, &words([256_u32, 256])), 0, "ring 256"),
        ("a ring of 0 descriptors", message(8, 1, &words([0_u32, 0])), 0, "power of two"),
        ("a ring of 300 descriptors", message(8, 1, &words([0_u32, 300])), 0, "power of two"),
        ("a ring of 2^31 descriptors", message(8, 1, &words([0_u32, 1 << 31])), 0, "power of two"),
        ("features that were not offered", message(2, 1, &words([u64::MAX])), 0, "not offered"),
        ("a kick without a descriptor", message(12, 1, &ring(0)), 0, "descriptors"),
    ]
}

#[test]
fn messages_that_break_the_protocol() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for (name, bytes, fds, said) in bad_messages() {
        scene.attack(name, Trace::Reason(said), |_, socket| {
            let raw = Raw::connect(socket)?;
            raw.negotiate(Attacker::FEATURES)?;
            let fds: Vec<BorrowedFd<'_>> = vec![event.as_fd(); fds];
            raw.send_bytes(&bytes, &fds)?;
            raw.closed()?;
            Ok(raw)
        })?;
    }
    scene.attack("a new size for a running ring", Trace::Reason("runs"), |_, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        attacker.raw.send(Request::SET_VRING_NUM, 0, &words([1_u32, 128]), &[])?;
        attacker.raw.closed()?;
        Ok(attacker)
    })?;
    scene.attack("ring addresses outside of the memory", Trace::Reason("ring"), |_, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        attacker.stop(Side::Tx)?;
        let mut addresses = words([1_u32, 0]);
        let end = attacker.memory.user_addr() + Attacker::MEMORY as u64;
        addresses.extend(words([end - 16, end - 16, end - 16, 0]));
        attacker.raw.send(Request::SET_VRING_ADDR, 0, &addresses, &[])?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC)?;
        let _ = attacker.raw.send(Request::SET_VRING_KICK, 0, &words([1_u64]), &[kick.as_fd()]);
        attacker.raw.closed()?;
        Ok(attacker)
    })?;
    scene.finish()
}

/// Questions without end, and no answer read.
#[test]
fn questions_without_end() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("a flood of questions", Trace::Nothing, |scene, socket| {
        let raw = Raw::connect(socket)?;
        raw.negotiate(Attacker::FEATURES)?;
        raw.stream().set_nonblocking(true)?;
        let question = words([Request::SET_OWNER.0, 1 | NEED_REPLY, 0]);
        loop {
            match rustix::io::write(raw.stream(), &question) {
                Ok(_) => {}
                // Its own socket is full: the switch has stopped to listen.
                Err(Errno::AGAIN) => break,
                // Or it had enough.
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::ensure!(scene.info()?.name == "evil", "the API answers meanwhile");
        Ok(raw)
    })?;
    scene.finish()
}

/// A frontend that holds the line in the middle of a message.
#[test]
fn half_a_message() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("half a message, and silence", Trace::Nothing, |scene, socket| {
        let raw = Raw::connect(socket)?;
        raw.send_bytes(&words([2_u32, 1, 8])[..7], &[])?;
        anyhow::ensure!(scene.info()?.name == "evil", "the API answers meanwhile");
        scene.newcomer()?;
        Ok(raw)
    })?;
    scene.finish()
}

/// Kick and call descriptors that are none.
#[test]
fn notifiers_that_are_none() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let (full, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    // From here on a write blocks for ever.
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::WRONLY)?;
    let stuck = eventfd(0, EventfdFlags::CLOEXEC)?;
    rustix::io::write(&stuck, &(u64::MAX - 1).to_ne_bytes())?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let file = std::fs::File::open(Path::new("/dev/zero"))?;
    let disk = tempfile::tempfile()?;
    let notifiers: Vec<(&str, OwnedFd)> = vec![
        ("a full pipe", writer),
        ("a full eventfd that blocks", stuck),
        ("a socket nobody reads", theirs.into()),
        ("a device that is always readable", file.into()),
        ("a file", disk.into()),
    ];
    for (name, fd) in &notifiers {
        for request in [Request::SET_VRING_CALL, Request::SET_VRING_KICK] {
            let what = format!("{name} for {request}");
            scene.attack(&what, Trace::Nothing, |scene, socket| {
                let attacker = Attacker::start(socket, Layout::Split, 200)?;
                for ring in [0_u64, 1] {
                    // Accepted or refused, both are fine.
                    let _ = attacker.raw.send(request, 0, &words([ring]), &[fd.as_fd()]);
                }
                let frame = Attacker::BUFFERS;
                let len =
                    attacker.write_frame(frame, crate::scene::FRIEND, crate::scene::EVIL, 100);
                attacker.describe(Side::Tx, 0, attacker.guest(frame), len, 0, 0);
                for _ in 0..100 {
                    attacker.offer(Side::Tx, 0);
                    attacker.kick(Side::Tx)?;
                }
                scene.befriend(50)?;
                scene.harvest()?;
                Ok(attacker)
            })?;
        }
    }
    drop((full, ours));
    scene.finish()
}
