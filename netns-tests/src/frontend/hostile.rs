//! A frontend without manners: raw messages with any bytes and descriptors, rings scribbled by hand.
//!
//! It attacks only sockets that a test hands to it.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_user::Request;
use vhost_user::features::{protocol, virtio};
use wire::MacAddr;
use wire::virtio_net::HDR_LEN;

use super::memory::{GUEST_BASE, Memory};
use super::ring::{RING_BYTES, RingLayout, desc};

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

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

/// Which ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Rx,
    Tx,
    /// The control queue, behind the only pair.
    Control,
}

/// A device whose memory and rings are written by hand. All rings have [`Attacker::RING`] descriptors.
#[derive(Debug)]
pub struct Attacker {
    pub raw: Raw,
    pub memory: Arc<Memory>,
    kicks: [OwnedFd; 3],
    calls: [OwnedFd; 3],
    layouts: [RingLayout; 3],
}

impl Attacker {
    pub const RING: u16 = 256;
    /// Offset of the first byte after the rings: room for buffers.
    pub const BUFFERS: usize = 3 * RING_BYTES;
    /// Bytes of memory, all told.
    pub const MEMORY: usize = 4 << 20;
    pub const FEATURES: u64 = virtio::F_VERSION_1
        | virtio::F_PROTOCOL_FEATURES
        | virtio::F_INDIRECT_DESC
        | virtio::NET_F_MRG_RXBUF
        | virtio::NET_F_CTRL_VQ;

    /// Connects and negotiates; memory and rings are still to come.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn connect(socket: &Path) -> anyhow::Result<Attacker> {
        let raw = Raw::connect(socket)?;
        raw.negotiate(Attacker::FEATURES)?;
        let memory = Arc::new(Memory::new(Attacker::MEMORY)?);
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let layouts = [0, 1, 2].map(|ring| RingLayout::at(ring * RING_BYTES, Attacker::RING));
        let kicks = [event()?, event()?, event()?];
        let calls = [event()?, event()?, event()?];
        Ok(Attacker { raw, memory, kicks, calls, layouts })
    }

    /// Connects and starts both rings; `rx_buffers` buffers of 2,048 bytes are on offer.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn start(socket: &Path, rx_buffers: u16) -> anyhow::Result<Attacker> {
        let attacker = Attacker::connect(socket)?;
        for index in 0..rx_buffers {
            let at = Attacker::MEMORY / 2 + usize::from(index) * 2048;
            attacker.describe(Side::Rx, index, attacker.guest(at), 2048, WRITE, 0);
            attacker.offer(Side::Rx, index);
        }
        ensure!(attacker.share(Attacker::MEMORY as u64)? == 0, "SET_MEM_TABLE");
        attacker.run(Side::Rx)?;
        attacker.run(Side::Tx)?;
        Ok(attacker)
    }

    /// SET_MEM_TABLE with the whole memory as one region that says to be `size` bytes.
    ///
    /// # Errors
    /// When there is no acknowledgement.
    pub fn share(&self, size: u64) -> anyhow::Result<u64> {
        let region = [GUEST_BASE, size, self.memory.user_addr(), 0];
        self.raw.ack(Request::SET_MEM_TABLE, &table(&[region]), &[self.memory.as_fd()])
    }

    /// Size, base, addresses, kick, call, enable.
    ///
    /// # Errors
    /// When the backend refuses one of them.
    pub fn run(&self, side: Side) -> anyhow::Result<()> {
        let ring = side as u32;
        let layout = self.layout(side);
        let user = |at: usize| self.memory.user_addr() + at as u64;
        let mut addresses = words([ring, 0]);
        addresses.extend(words([user(layout.desc), user(layout.used), user(layout.avail), 0]));
        let index = words([u64::from(ring)]);
        let kick = [self.kicks[side as usize].as_fd()];
        let call = [self.calls[side as usize].as_fd()];
        let num = words([ring, u32::from(layout.num)]);
        for (request, payload, fds) in [
            (Request::SET_VRING_NUM, &num, &[][..]),
            (Request::SET_VRING_BASE, &words([ring, 0]), &[]),
            (Request::SET_VRING_ADDR, &addresses, &[]),
            (Request::SET_VRING_CALL, &index, &call),
            (Request::SET_VRING_KICK, &index, &kick),
            (Request::SET_VRING_ENABLE, &words([ring, 1]), &[]),
        ] {
            let status = self.raw.ack(request, payload, fds)?;
            ensure!(status == 0, "{request} was refused ({status})");
        }
        Ok(())
    }

    #[must_use]
    pub fn layout(&self, side: Side) -> RingLayout {
        self.layouts[side as usize]
    }

    /// Guest address of an offset in the memory.
    #[must_use]
    pub fn guest(&self, at: usize) -> u64 {
        GUEST_BASE + at as u64
    }

    /// Writes one descriptor of a ring.
    pub fn describe(&self, side: Side, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.describe_at(self.layout(side).desc_at(index), addr, len, flags, next);
    }

    /// Writes one descriptor anywhere, for indirect tables.
    pub fn describe_at(&self, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
        self.memory.write(at, &desc(addr, len, flags, next));
    }

    /// Puts a head on offer, whatever it is.
    pub fn offer(&self, side: Side, head: u16) {
        let layout = self.layout(side);
        let index = self.memory.load_u16(layout.avail + 2);
        self.memory.store_u16(layout.avail_at(index), head);
        self.memory.store_u16(layout.avail + 2, index.wrapping_add(1));
    }

    /// Sets the available index to anything.
    pub fn set_avail(&self, side: Side, index: u16) {
        self.memory.store_u16(self.layout(side).avail + 2, index);
    }

    /// Chains that the backend has given back so far.
    #[must_use]
    pub fn used(&self, side: Side) -> u16 {
        self.memory.load_u16(self.layout(side).used + 2)
    }

    /// # Errors
    /// When the eventfd does not take it.
    pub fn kick(&self, side: Side) -> anyhow::Result<()> {
        rustix::io::write(&self.kicks[side as usize], &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Writes a virtio header and a frame; returns how long both are together.
    pub fn write_frame(&self, at: usize, to: MacAddr, from: MacAddr, len: usize) -> u32 {
        let mut bytes = vec![0; HDR_LEN];
        bytes.extend(to.0);
        bytes.extend(from.0);
        bytes.extend([0x88, 0xb6]);
        bytes.resize(HDR_LEN + len, 0xa5);
        self.memory.write(at, &bytes);
        u32::try_from(bytes.len()).unwrap_or(u32::MAX)
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
