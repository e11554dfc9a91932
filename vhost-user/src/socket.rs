//! The thin shell: moves bytes and descriptors between a Unix stream and a [`Session`], never blocking.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use thiserror::Error;

use crate::descriptor::{self, Foreign};
use crate::error::ProtocolError;
use crate::message::{MAX_FDS, MAX_PAYLOAD};
use crate::session::Session;

/// Why the connection is over.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    #[error(
        "a file descriptor for {}: only memory files (memfd, tmpfs, hugetlbfs), eventfds, pipes and Unix sockets are accepted", .0.what
    )]
    Descriptor(Foreign),
}

/// What one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Something was received: [`Session::poll`] next, then read again.
    Received,
    /// Nothing there now; wait until the socket is readable.
    Empty,
    /// The session wants nothing now: an action is pending or replies wait to be sent.
    Paused,
    /// The peer closed the connection, between two messages.
    Closed,
}

/// Reads once, just what the session wants.
///
/// # Errors
/// When the connection is over: bad input, a hang-up within a message, or a socket error. With [`Error::Descriptor`] comes
/// what must be closed where nobody waits.
pub fn read(stream: impl AsFd, session: &mut Session) -> Result<Read, Error> {
    let wanted = session.wanted().min(MAX_PAYLOAD);
    if wanted == 0 {
        return Ok(Read::Paused);
    }
    let mut bytes = [0; MAX_PAYLOAD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut buffer = [io::IoSliceMut::new(&mut bytes[..wanted])];
    let received = match recvmsg(stream, &mut buffer, &mut control, flags) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Read::Empty),
        Err(Errno::CONNRESET) => {
            return session.finish().map(|()| Read::Closed).map_err(Into::into);
        }
        Err(error) => return Err(Error::Io(error.into())),
    };
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = descriptor::check(fds.flatten().collect()).map_err(Error::Descriptor)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ProtocolError::FdsTruncated.into());
    }
    if received.bytes == 0 {
        session.finish()?;
        return Ok(Read::Closed);
    }
    session.receive(&bytes[..received.bytes], fds)?;
    Ok(Read::Received)
}

/// Sends what is queued. `true`: all of it; `false`: the socket is full, try again when it is writable.
///
/// # Errors
/// When the socket is broken.
pub fn write(stream: impl AsFd, session: &mut Session) -> io::Result<bool> {
    while !session.output().is_empty() {
        match send(&stream, session.output(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => session.sent(sent),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
