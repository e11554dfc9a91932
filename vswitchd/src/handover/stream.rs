//! What the carriers bring: messages of one JSON value each over a sequenced-packet socket, and descriptors with them,
//! of which the kernel takes 253 at a time (`SCM_MAX_FD`).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Descriptors in one message.
const MAX_FDS: usize = 253;
/// Longest message; the document travels in a file of its own.
const MAX_MESSAGE: usize = 4096;
/// Longest document: a thousand ports with full tables need a tenth of it.
const MAX_DOCUMENT: u64 = 256 << 20;
/// Most descriptors altogether.
const MAX_DESCRIPTORS: usize = 1 << 20;

/// What one side tells the other.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Message {
    /// The new daemon reads documents of these versions.
    Hello { versions: Vec<u32> },
    /// The old one goes on, and says why.
    Refused { reason: String },
    /// A sealed file with the document comes along; so many other descriptors follow.
    Document { version: u32, descriptors: usize },
    /// Some of the descriptors.
    Descriptors,
    /// The new one could start now.
    Ready,
    /// The old one touches nothing any more.
    Go,
    /// The new one moves frames.
    Running,
}

/// A document with its descriptors.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) version: u32,
    pub(super) document: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Sends one message.
pub(super) fn send(
    socket: impl AsFd,
    message: &Message,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("too many descriptors in one message"));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Waits for one message.
///
/// # Errors
/// `UnexpectedEof` when the other side is gone, `WouldBlock` when the time set by [`patience`] is over.
pub(super) fn receive(socket: impl AsFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => break received?,
        }
    };
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds: Vec<OwnedFd> = fds.flatten().collect();
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid("descriptors were lost: see `ulimit -n`"));
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(invalid("a message is too long"));
    }
    Ok((serde_json::from_slice(&bytes[..received.bytes])?, fds))
}

/// How long each message may take, either way.
pub(super) fn patience(socket: impl AsFd, limit: Duration) -> io::Result<()> {
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    Ok(())
}

/// Sends a document and everything that belongs to it.
pub(super) fn deliver(socket: impl AsFd, delivery: &Delivery, flags: SendFlags) -> io::Result<()> {
    let file = memfd_create("handover", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(&delivery.document)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    let (version, descriptors) = (delivery.version, delivery.fds.len());
    let head = Message::Document { version, descriptors };
    send(&socket, &head, &[file.as_fd()], flags)?;
    for chunk in delivery.fds.chunks(MAX_FDS) {
        let chunk: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
        send(&socket, &Message::Descriptors, &chunk, flags)?;
    }
    Ok(())
}

/// Waits for the rest of a delivery whose first message is here.
pub(super) fn accept(
    socket: impl AsFd,
    (version, descriptors): (u32, usize),
    file: Vec<OwnedFd>,
) -> io::Result<Delivery> {
    let mut file = file.into_iter();
    let (Some(file), None) = (file.next(), file.next()) else {
        return Err(invalid("a document is one file"));
    };
    // Sealed: what is read is what was written, and nobody changes it meanwhile.
    let wanted = SealFlags::WRITE | SealFlags::SHRINK;
    if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(wanted)) {
        return Err(invalid("the document is not sealed"));
    }
    let file = File::from(file);
    let size = file.metadata()?.len();
    if size > MAX_DOCUMENT || descriptors > MAX_DESCRIPTORS {
        return Err(invalid(format!("{size} bytes with {descriptors} descriptors are too much")));
    }
    let mut document = Vec::new();
    // The writer's position is at the end of the shared file.
    io::Seek::rewind(&mut &file)?;
    (&file).take(MAX_DOCUMENT).read_to_end(&mut document)?;
    let mut fds = Vec::new();
    while fds.len() < descriptors {
        let (message, more) = receive(&socket)?;
        if message != Message::Descriptors || more.is_empty() {
            return Err(invalid("descriptors are missing"));
        }
        fds.extend(more);
    }
    if fds.len() > descriptors {
        return Err(invalid("there are more descriptors than was said"));
    }
    Ok(Delivery { version, document, fds })
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a pair")
    }

    fn delivery(fds: usize) -> Delivery {
        let null = || OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
        let fds = (0..fds).map(|_| null()).collect();
        Delivery { version: 7, document: b"{}".to_vec(), fds }
    }

    fn first(socket: &OwnedFd) -> io::Result<Delivery> {
        match receive(socket)? {
            (Message::Document { version, descriptors }, fds) => {
                accept(socket, (version, descriptors), fds)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Everything waits in the socket, as it does in systemd's store, and its writer is gone.
    #[test]
    fn a_delivery_outlives_its_sender() {
        for count in [0, 1, 253, 254, 1000] {
            let (ours, theirs) = pair();
            deliver(&ours, &delivery(count), SendFlags::DONTWAIT).expect("it fits");
            drop(ours);
            let got = first(&theirs).expect("a delivery");
            assert_eq!(
                (got.version, got.document.as_slice(), got.fds.len()),
                (7, &b"{}"[..], count)
            );
            let end = receive(&theirs).expect_err("nothing more");
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_cut_off_or_open_to_change_is_refused() {
        let (ours, theirs) = pair();
        let head = Message::Document { version: 1, descriptors: 3 };
        let file = memfd_create("open", MemfdFlags::ALLOW_SEALING).expect("a file");
        send(&ours, &head, &[file.as_fd()], SendFlags::empty()).expect("sent");
        assert!(first(&theirs).expect_err("not sealed").to_string().contains("sealed"));
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK).expect("sealed");
        send(&ours, &head, &[file.as_fd()], SendFlags::empty()).expect("sent");
        send(&ours, &Message::Descriptors, &[file.as_fd()], SendFlags::empty()).expect("sent");
        drop(ours);
        assert_eq!(first(&theirs).expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
        let (ours, theirs) = pair();
        send(&ours, &head, &[], SendFlags::empty()).expect("sent");
        assert!(first(&theirs).is_err());
        rustix::io::write(&ours, b"what?").expect("sent");
        assert!(receive(&theirs).is_err());
    }

    #[test]
    fn who_says_nothing_is_not_waited_for() {
        let (ours, _theirs) = pair();
        patience(&ours, Duration::from_millis(20)).expect("set");
        assert_eq!(receive(&ours).expect_err("silence").kind(), io::ErrorKind::WouldBlock);
    }
}
