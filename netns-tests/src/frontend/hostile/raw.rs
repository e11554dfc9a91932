//! Raw messages with any bytes and descriptors.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_user::Request;
use vhost_user::features::protocol;

/// Header flag: acknowledge this.
pub const NEED_REPLY: u32 = 1 << 3;
const LIMIT: Duration = Duration::from_secs(10);

/// A connection on which anything can be said.
#[derive(Debug)]
pub struct Raw {
    stream: UnixStream,
}

/// A message from the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub request: Request,
    pub payload: Vec<u8>,
}

impl Raw {
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: &Path) -> anyhow::Result<Raw> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Raw { stream })
    }

    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A message with a correct header.
    ///
    /// # Errors
    /// When the backend has closed the connection.
    pub fn send(
        &self,
        request: Request,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        let size = u32::try_from(payload.len())?;
        let mut bytes = words([request.0, 1 | flags, size]);
        bytes.extend(payload);
        self.send_bytes(&bytes, fds)
    }

    /// Any bytes.
    ///
    /// # Errors
    /// When the backend has closed the connection.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        ensure!(sent == bytes.len(), "the socket took {sent} of {} bytes", bytes.len());
        Ok(())
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes in time or the connection is closed.
    pub fn reply(&self) -> anyhow::Result<Reply> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).context("no reply")?;
        let word = |at: usize| -> anyhow::Result<u32> {
            Ok(u32::from_ne_bytes(header[at..at + 4].try_into()?))
        };
        let mut payload = vec![0; word(8)?.min(4096) as usize];
        (&self.stream).read_exact(&mut payload).context("half a reply")?;
        Ok(Reply { request: Request(word(0)?), payload })
    }

    /// Sends with need_reply and returns the acknowledgement.
    ///
    /// # Errors
    /// When there is none.
    pub fn ack(
        &self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<u64> {
        self.send(request, NEED_REPLY, payload, fds)?;
        self.value(request)
    }

    /// Sends a question that is answered by one number.
    ///
    /// # Errors
    /// When it is not.
    pub fn ask(&self, request: Request) -> anyhow::Result<u64> {
        self.send(request, 0, &[], &[])?;
        self.value(request)
    }

    fn value(&self, request: Request) -> anyhow::Result<u64> {
        let reply = self.reply()?;
        ensure!(reply.request == request, "{} was answered to {request}", reply.request);
        Ok(u64::from_ne_bytes(reply.payload.as_slice().try_into()?))
    }

    /// Waits until the backend closes the connection; what it still says is thrown away.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn closed(&self) -> anyhow::Result<()> {
        let mut bytes = [0; 4096];
        crate::wait::until("the backend to close the connection", LIMIT, || {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        })
    }

    /// Owner, protocol features and features; the backend must offer them.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub fn negotiate(&self, features: u64) -> anyhow::Result<()> {
        self.send(Request::SET_OWNER, 0, &[], &[])?;
        let offered = self.ask(Request::GET_FEATURES)?;
        let wanted = features & offered;
        let protocols = self.ask(Request::GET_PROTOCOL_FEATURES)?
            & (protocol::REPLY_ACK
                | protocol::MQ
                | protocol::LOG_SHMFD
                | protocol::CONFIGURE_MEM_SLOTS);
        self.send(Request::SET_PROTOCOL_FEATURES, 0, &words([protocols]), &[])?;
        ensure!(self.ack(Request::SET_FEATURES, &words([wanted]), &[])? == 0, "SET_FEATURES");
        Ok(())
    }
}

/// The bytes of some numbers in a row.
pub fn words<W: Word>(words: impl IntoIterator<Item = W>) -> Vec<u8> {
    let mut out = Vec::new();
    for word in words {
        word.put(&mut out);
    }
    out
}

/// Payload of SET_MEM_TABLE: guest address, size, user address, file offset of each region.
///
/// # Panics
/// With more than 2³² regions.
#[must_use]
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("a number of regions");
    let mut out = words([count, 0]);
    for region in regions {
        out.extend(words(*region));
    }
    out
}

/// A number that messages are made of.
pub trait Word {
    fn put(self, out: &mut Vec<u8>);
}

impl Word for u32 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_ne_bytes());
    }
}

impl Word for u64 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_ne_bytes());
    }
}
