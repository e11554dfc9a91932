//! A frontend without manners: raw messages with any bytes and descriptors, rings scribbled by hand.
//!
//! It attacks only sockets that a test hands to it.

mod driver;
mod raw;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use rustix::event::{EventfdFlags, eventfd};
use vhost_user::Request;
use vhost_user::features::virtio;
use wire::MacAddr;
use wire::virtio_net::HDR_LEN;

use super::memory::{GUEST_BASE, Memory};
use super::ring::{RING_BYTES, RingLayout, desc};
use driver::Driver;
pub use driver::Layout;
pub use raw::{NEED_REPLY, Raw, Reply, Word, table, words};

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

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
    layout: Layout,
    rings: [Driver; 3],
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
    pub fn connect(socket: &Path, layout: Layout) -> anyhow::Result<Attacker> {
        Attacker::over(socket, layout, Arc::new(Memory::new(Attacker::MEMORY)?))
    }

    /// As [`connect`](Self::connect), with memory that is there already.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn over(socket: &Path, layout: Layout, memory: Arc<Memory>) -> anyhow::Result<Attacker> {
        let raw = Raw::connect(socket)?;
        raw.negotiate(Attacker::features(layout))?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let rings = [0, 1, 2].map(|ring| {
            let parts = RingLayout::at(ring * RING_BYTES, Attacker::RING);
            Driver::new(layout, parts, &memory)
        });
        let kicks = [event()?, event()?, event()?];
        let calls = [event()?, event()?, event()?];
        Ok(Attacker { raw, memory, kicks, calls, layout, rings })
    }

    /// What it asks for.
    #[must_use]
    pub fn features(layout: Layout) -> u64 {
        match layout {
            Layout::Split => Attacker::FEATURES,
            Layout::Packed => Attacker::FEATURES | virtio::F_RING_PACKED,
        }
    }

    /// Connects and starts both rings; `rx_buffers` buffers of 2,048 bytes are on offer.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn start(socket: &Path, layout: Layout, rx_buffers: u16) -> anyhow::Result<Attacker> {
        let attacker = Attacker::connect(socket, layout)?;
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
        self.run_at(side, self.ring(side).base())
    }

    /// As [`run`](Self::run), with any base.
    ///
    /// # Errors
    /// When the backend refuses one of them.
    pub fn run_at(&self, side: Side, base: u32) -> anyhow::Result<()> {
        let ring = side as u32;
        let parts = self.parts(side);
        let user = |at: usize| self.memory.user_addr() + at as u64;
        let mut addresses = words([ring, 0]);
        addresses.extend(words([user(parts.desc), user(parts.used), user(parts.avail), 0]));
        let index = words([u64::from(ring)]);
        let kick = [self.kicks[side as usize].as_fd()];
        let call = [self.calls[side as usize].as_fd()];
        let num = words([ring, u32::from(parts.num)]);
        let base = words([ring, base]);
        for (request, payload, fds) in [
            (Request::SET_VRING_NUM, &num, &[][..]),
            (Request::SET_VRING_BASE, &base, &[]),
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

    /// GET_VRING_BASE; [`run`](Self::run) goes on there.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn stop(&self, side: Side) -> anyhow::Result<u32> {
        self.raw.send(Request::GET_VRING_BASE, 0, &words([side as u32, 0]), &[])?;
        let reply = self.raw.reply()?;
        ensure!(reply.payload.len() == 8, "GET_VRING_BASE: {reply:?}");
        let base = u32::from_ne_bytes(reply.payload[4..].try_into()?);
        self.ring(side).resume(base);
        Ok(base)
    }

    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Where a ring is. Of a packed one, `avail` and `used` are the event suppression areas of driver and device.
    #[must_use]
    pub fn parts(&self, side: Side) -> RingLayout {
        self.ring(side).parts
    }

    fn ring(&self, side: Side) -> &Driver {
        &self.rings[side as usize]
    }

    /// Guest address of an offset in the memory.
    #[must_use]
    pub fn guest(&self, at: usize) -> u64 {
        GUEST_BASE + at as u64
    }

    /// Writes one of the descriptors that a ring's chains are made of.
    pub fn describe(&self, side: Side, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.memory.write(self.ring(side).table_at(index), &desc(addr, len, flags, next));
    }

    /// Writes one descriptor anywhere, for indirect tables. A packed ring's have the buffer ID, which means nothing
    /// there, in place of `next`, and before the flags.
    pub fn describe_at(&self, at: usize, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = match self.layout {
            Layout::Split => desc(addr, len, flags, next),
            Layout::Packed => desc(addr, len, next, flags),
        };
        self.memory.write(at, &bytes);
    }

    /// Puts a head on offer, whatever it is.
    pub fn offer(&self, side: Side, head: u16) {
        self.offer_as(side, head, head);
    }

    /// As [`offer`](Self::offer), with any buffer ID in a packed ring.
    pub fn offer_as(&self, side: Side, head: u16, id: u16) {
        self.ring(side).offer(head, id);
    }

    /// Sets a split ring's available index to anything.
    pub fn set_avail(&self, side: Side, index: u16) {
        self.memory.store_u16(self.parts(side).avail + 2, index);
    }

    /// Chains that the backend has given back so far.
    #[must_use]
    pub fn used(&self, side: Side) -> u16 {
        self.ring(side).used()
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
