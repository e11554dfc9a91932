//! A virtio-net driver (virtio 1.3 §5.1) in this process, attached to a vhost-user socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::features::virtio;
use vmm_sys_util::eventfd::EventFd;
use wire::MacAddr;
use wire::virtio_net::{HDR_LEN, VirtioNetHdr};
use zerocopy::{FromBytes, IntoBytes};

use super::memory::{GUEST_BASE, Memory};
use super::ring::{Gauge, Piece, RING_BYTES, Ring, RingLayout};

/// Longest answer of a backend that works.
const ANSWER: Duration = Duration::from_secs(10);
/// Room for an indirect table before each frame to be sent.
const TABLE_BYTES: usize = 512;

/// What the driver looks like.
#[derive(Clone, Debug)]
pub struct Options {
    pub mac: MacAddr,
    /// Device features wanted; what the backend does not offer is left out.
    pub features: u64,
    pub queue_pairs: u16,
    /// Descriptors of each ring, up to 1024.
    pub ring: u16,
    /// Bytes of each receive buffer, with the header.
    pub rx_buffer: usize,
    /// Where header and frame to be sent are cut into descriptors, from the first byte of the header.
    pub tx_cuts: Vec<usize>,
    /// Where receive buffers are cut into descriptors.
    pub rx_cuts: Vec<usize>,
    /// Send through indirect tables (when negotiated).
    pub indirect: bool,
    /// Longest frame that can be sent.
    pub tx_frame: usize,
}

impl Options {
    /// What a Linux guest would negotiate, without offloads.
    #[must_use]
    pub fn new(mac: MacAddr) -> Options {
        Options {
            mac,
            features: virtio::F_VERSION_1
                | virtio::F_PROTOCOL_FEATURES
                | virtio::F_EVENT_IDX
                | virtio::F_INDIRECT_DESC
                | virtio::NET_F_MRG_RXBUF,
            queue_pairs: 1,
            ring: 256,
            rx_buffer: 2048,
            tx_cuts: vec![HDR_LEN],
            rx_cuts: Vec::new(),
            indirect: false,
            tx_frame: 9216,
        }
    }

    /// With these features too.
    #[must_use]
    pub fn with(mut self, features: u64) -> Options {
        self.features |= features;
        self
    }

    /// Without these features.
    #[must_use]
    pub fn without(mut self, features: u64) -> Options {
        self.features &= !features;
        self
    }
}

/// A frame that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub header: VirtioNetHdr,
    pub frame: Vec<u8>,
    /// Queue pair it came on.
    pub queue: usize,
}

#[derive(Debug)]
struct Queue {
    ring: Ring,
    kick: EventFd,
    call: EventFd,
    /// Offset of the first buffer.
    buffers: usize,
    free: Vec<usize>,
}

/// The driver, attached.
pub struct Nic {
    options: Options,
    features: u64,
    memory: Arc<Memory>,
    frontend: Frontend,
    /// RX and TX of each pair, then the control queue.
    queues: Vec<Queue>,
    next_rx: usize,
    /// The backend watches this channel; closing it is an unplug.
    _channel: Option<(UnixStream, UnixStream)>,
}

impl std::fmt::Debug for Nic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nic").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Nic {
    /// Connects, negotiates and starts all queues.
    ///
    /// # Errors
    /// When the backend refuses something or does not answer in time.
    pub fn connect(socket: &Path, options: Options) -> anyhow::Result<Nic> {
        ensure!(options.rx_buffer >= 64, "receive buffers are too short");
        let rings = usize::from(options.queue_pairs) * 2 + 1;
        let room = options.rx_buffer.max(slot_bytes(&options)).next_multiple_of(64);
        let queue_bytes = (RING_BYTES + usize::from(options.ring) * room).next_multiple_of(4096);
        let memory = Arc::new(Memory::new(rings * queue_bytes)?);
        let (frontend, features, channel) = negotiate(socket, &options)?;
        let event_idx = features & virtio::F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for at in 0..rings {
            let start = at * queue_bytes;
            queues.push(Queue {
                ring: Ring::new(
                    Arc::clone(&memory),
                    RingLayout::at(start, options.ring),
                    event_idx,
                ),
                kick: EventFd::new(libc::EFD_NONBLOCK)?,
                call: EventFd::new(libc::EFD_NONBLOCK)?,
                buffers: start + RING_BYTES,
                free: (0..usize::from(options.ring)).rev().collect(),
            });
        }
        let mut nic =
            Nic { options, features, memory, frontend, queues, next_rx: 0, _channel: channel };
        for pair in 0..usize::from(nic.options.queue_pairs) {
            nic.fill(pair)?;
        }
        nic.start(|_| 0)?;
        if nic.has(virtio::NET_F_MQ | virtio::NET_F_CTRL_VQ) && nic.options.queue_pairs > 1 {
            let pairs = nic.options.queue_pairs.to_le_bytes();
            let answer = nic.control(4, 0, &pairs, ANSWER)?;
            ensure!(answer == Some(0), "VQ_PAIRS_SET was answered with {answer:?}");
        }
        Ok(nic)
    }

    /// Attaches the same driver, with all its state, to a backend that was started anew.
    ///
    /// # Errors
    /// As [`Nic::connect`]; also when other features were negotiated.
    pub fn reconnect(&mut self, socket: &Path) -> anyhow::Result<()> {
        let (frontend, features, channel) = negotiate(socket, &self.options)?;
        ensure!(features == self.features, "other features than before: {features:#x}");
        self.frontend = frontend;
        self._channel = channel;
        let bases: Vec<u16> = self.queues.iter().map(|queue| queue.ring.base()).collect();
        self.start(|ring| bases[ring])
    }

    /// Features that were agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    #[must_use]
    pub fn mac(&self) -> MacAddr {
        self.options.mac
    }

    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The protocol side, for requests of a test's own.
    #[must_use]
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Sends one frame on the first queue; waits for a free slot at most until `deadline`.
    ///
    /// # Errors
    /// When the backend breaks the ring's rules or takes nothing until then.
    pub fn send(&mut self, frame: &[u8], deadline: Instant) -> anyhow::Result<()> {
        self.send_on(0, VirtioNetHdr::default(), frame, deadline)
    }

    /// Sends one frame with this header on this pair.
    ///
    /// # Errors
    /// As [`Nic::send`].
    pub fn send_on(
        &mut self,
        pair: usize,
        header: VirtioNetHdr,
        frame: &[u8],
        deadline: Instant,
    ) -> anyhow::Result<()> {
        ensure!(frame.len() <= self.options.tx_frame, "frame too long for the driver's slots");
        loop {
            if self.try_send(pair, header, frame)? {
                return Ok(());
            }
            let queue = &mut self.queues[pair * 2 + 1];
            if !queue.ring.arm() && !wait(&queue.call, deadline)? {
                bail!("the backend takes no frames: {} are in flight", queue.ring.in_flight());
            }
        }
    }

    /// `false`: no slot is free now.
    ///
    /// # Errors
    /// When the backend breaks the ring's rules.
    pub fn try_send(
        &mut self,
        pair: usize,
        header: VirtioNetHdr,
        frame: &[u8],
    ) -> anyhow::Result<bool> {
        let indirect = self.options.indirect && self.has(virtio::F_INDIRECT_DESC);
        let step = slot_bytes(&self.options);
        let queue = &mut self.queues[pair * 2 + 1];
        while let Some((slot, written)) = queue.ring.pop()? {
            ensure!(written == 0, "the device says it wrote {written} bytes of a frame to send");
            queue.free.push(slot);
        }
        let Some(slot) = queue.free.pop() else { return Ok(false) };
        let table = queue.buffers + slot * step;
        let at = table + TABLE_BYTES;
        self.memory.write(at, header.as_bytes());
        self.memory.write(at + HDR_LEN, frame);
        let pieces = cut(at, HDR_LEN + frame.len(), &self.options.tx_cuts, false);
        match queue.ring.push(&pieces, indirect.then_some(table), slot) {
            None => {
                queue.free.push(slot);
                Ok(false)
            }
            Some(kick) => {
                if kick {
                    queue.kick.write(1)?;
                }
                Ok(true)
            }
        }
    }

    /// Fewest buffers that the backend had left in the receiving ring of a pair.
    #[must_use]
    pub fn rx_fewest_free(&self, pair: usize) -> u16 {
        self.queues[pair * 2].ring.fewest_open()
    }

    /// How full the receiving ring of a pair is, for another thread than the receiver's.
    #[must_use]
    pub fn rx_gauge(&self, pair: usize) -> Gauge {
        self.queues[pair * 2].ring.gauge()
    }

    /// The same of the sending ring.
    #[must_use]
    pub fn tx_gauge(&self, pair: usize) -> Gauge {
        self.queues[pair * 2 + 1].ring.gauge()
    }

    /// Frames to send that the backend has not given back yet, on all pairs.
    ///
    /// # Errors
    /// When the backend breaks the ring's rules.
    pub fn unsent(&mut self) -> anyhow::Result<usize> {
        let mut unsent = 0;
        for pair in 0..usize::from(self.options.queue_pairs) {
            let queue = &mut self.queues[pair * 2 + 1];
            while let Some((slot, _)) = queue.ring.pop()? {
                queue.free.push(slot);
            }
            unsent += usize::from(queue.ring.in_flight());
        }
        Ok(unsent)
    }

    /// The next frame of any pair, until `deadline`; sleeps on the backend's interrupts.
    ///
    /// # Errors
    /// When the backend breaks the ring's rules.
    pub fn receive(&mut self, deadline: Instant) -> anyhow::Result<Option<Received>> {
        loop {
            if let Some(received) = self.try_receive()? {
                return Ok(Some(received));
            }
            let pairs = usize::from(self.options.queue_pairs);
            let rx = || (0..pairs).map(|pair| &self.queues[pair * 2]);
            if rx().any(|queue| queue.ring.arm()) {
                continue;
            }
            let calls: Vec<&EventFd> = rx().map(|queue| &queue.call).collect();
            if !wait_any(&calls, deadline)? {
                if !rx().any(|queue| queue.ring.arm()) {
                    return Ok(None);
                }
                // What came without an interrupt is a lost wake-up: not to be hidden. One that is
                // just being sent is not lost.
                let soon = Instant::now() + Duration::from_secs(1);
                ensure!(wait_any(&calls, soon)?, "a frame came and the backend did not interrupt");
            }
        }
    }

    /// The next frame if there is one.
    ///
    /// # Errors
    /// When the backend breaks the ring's rules.
    pub fn try_receive(&mut self) -> anyhow::Result<Option<Received>> {
        let pairs = usize::from(self.options.queue_pairs);
        for _ in 0..pairs {
            let pair = self.next_rx % pairs;
            self.next_rx = pair + 1;
            if let Some(received) = self.receive_on(pair)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Sends a control command (virtio 1.3 §5.1.6.5) and waits for the device's answer.
    ///
    /// # Errors
    /// When there is no control queue or the backend breaks the ring's rules.
    pub fn control(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        limit: Duration,
    ) -> anyhow::Result<Option<u8>> {
        let at = self.control_queue().context("no control queue was negotiated")?;
        let deadline = Instant::now() + limit;
        let queue = &mut self.queues[at];
        let head = queue.buffers;
        self.memory.write(head, &[class, command]);
        self.memory.write(head + 64, data);
        self.memory.write(head + 2048, &[0xff]);
        let piece = |at, len, writable| Piece { at, len, writable };
        let mut pieces = vec![piece(head, 2, false)];
        if !data.is_empty() {
            pieces.push(piece(head + 64, data.len(), false));
        }
        pieces.push(piece(head + 2048, 1, true));
        let kick = queue.ring.push(&pieces, None, 0).context("the control queue is full")?;
        if kick {
            queue.kick.write(1)?;
        }
        loop {
            if queue.ring.pop()?.is_some() {
                let mut answer = [0];
                self.memory.read(head + 2048, &mut answer);
                return Ok(Some(answer[0]));
            }
            if !queue.ring.arm() && !wait(&queue.call, deadline)? {
                return Ok(None);
            }
        }
    }

    /// Stops all queues in good order (GET_VRING_BASE); returns the index each would go on with.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub fn stop(&mut self) -> anyhow::Result<Vec<u32>> {
        let rings = self.rings();
        rings.into_iter().map(|ring| Ok(self.frontend.get_vring_base(ring)?)).collect()
    }

    fn has(&self, mask: u64) -> bool {
        self.features & mask == mask
    }

    fn control_queue(&self) -> Option<usize> {
        let last = if self.has(virtio::NET_F_MQ) { self.queues.len() - 1 } else { 2 };
        self.has(virtio::NET_F_CTRL_VQ).then_some(last)
    }

    /// Rings in use.
    fn rings(&self) -> Vec<usize> {
        let pairs = usize::from(self.options.queue_pairs) * 2;
        (0..pairs).chain(self.control_queue()).collect()
    }

    fn start(&mut self, base: impl Fn(usize) -> u16) -> anyhow::Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.memory.len() as u64,
            userspace_addr: self.memory.user_addr(),
            mmap_offset: 0,
            mmap_handle: std::os::fd::AsFd::as_fd(&*self.memory).as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).context("SET_MEM_TABLE")?;
        for ring in self.rings() {
            let queue = &self.queues[ring];
            let layout = queue.ring.layout();
            let user = |at: usize| self.memory.user_addr() + at as u64;
            self.frontend.set_vring_num(ring, layout.num).context("SET_VRING_NUM")?;
            self.frontend.set_vring_base(ring, base(ring)).context("SET_VRING_BASE")?;
            let addresses = VringConfigData {
                queue_max_size: layout.num,
                queue_size: layout.num,
                flags: 0,
                desc_table_addr: user(layout.desc),
                used_ring_addr: user(layout.used),
                avail_ring_addr: user(layout.avail),
                log_addr: None,
            };
            self.frontend.set_vring_addr(ring, &addresses).context("SET_VRING_ADDR")?;
            self.frontend.set_vring_call(ring, &queue.call).context("SET_VRING_CALL")?;
            self.frontend.set_vring_kick(ring, &queue.kick).context("SET_VRING_KICK")?;
            if self.features & virtio::F_PROTOCOL_FEATURES != 0 {
                self.frontend.set_vring_enable(ring, true).context("SET_VRING_ENABLE")?;
            }
            // What was offered before the backend was there.
            queue.kick.write(1)?;
        }
        Ok(())
    }

    /// Offers all free receive buffers of a pair.
    fn fill(&mut self, pair: usize) -> anyhow::Result<()> {
        let queue = &mut self.queues[pair * 2];
        let mut kick = false;
        while let Some(slot) = queue.free.pop() {
            let at = queue.buffers + slot * self.options.rx_buffer;
            let pieces = cut(at, self.options.rx_buffer, &self.options.rx_cuts, true);
            match queue.ring.push(&pieces, None, slot) {
                Some(wanted) => kick |= wanted,
                None => {
                    queue.free.push(slot);
                    break;
                }
            }
        }
        if kick {
            queue.kick.write(1)?;
        }
        Ok(())
    }

    fn receive_on(&mut self, pair: usize) -> anyhow::Result<Option<Received>> {
        let queue = &mut self.queues[pair * 2];
        let Some((slot, len)) = queue.ring.pop()? else { return Ok(None) };
        ensure!(len >= HDR_LEN, "a receive buffer with {len} bytes");
        let at = |slot: usize| queue.buffers + slot * self.options.rx_buffer;
        let mut bytes = vec![0; len];
        self.memory.read(at(slot), &mut bytes);
        let (header, _) = VirtioNetHdr::read_from_prefix(&bytes)
            .map_err(|_| anyhow::anyhow!("shorter than a header"))?;
        let mut slots = vec![slot];
        let mut frame = bytes.split_off(HDR_LEN);
        if self.features & virtio::NET_F_MRG_RXBUF != 0 {
            let buffers = header.num_buffers.get();
            ensure!(buffers >= 1, "num_buffers is 0");
            let deadline = Instant::now() + Duration::from_secs(1);
            while slots.len() < usize::from(buffers) {
                let Some((slot, len)) = queue.ring.pop()? else {
                    ensure!(Instant::now() < deadline, "{buffers} buffers said, fewer came");
                    continue;
                };
                let mut more = vec![0; len];
                self.memory.read(at(slot), &mut more);
                frame.extend(more);
                slots.push(slot);
            }
        }
        queue.free.extend(slots);
        self.fill(pair)?;
        Ok(Some(Received { header, frame, queue: pair }))
    }
}

type Negotiated = (Frontend, u64, Option<(UnixStream, UnixStream)>);

fn negotiate(socket: &Path, options: &Options) -> anyhow::Result<Negotiated> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let rings = u64::from(options.queue_pairs) * 2 + 1;
    let mut frontend = Frontend::from_stream(stream, rings);
    frontend.set_owner().context("SET_OWNER")?;
    let features = frontend.get_features().context("GET_FEATURES")? & options.features;
    ensure!(features & virtio::F_VERSION_1 != 0, "the backend is a legacy device");
    let mut channel = None;
    if features & virtio::F_PROTOCOL_FEATURES != 0 {
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG;
        let offered = frontend.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
        let accepted = wanted & offered;
        frontend.set_protocol_features(accepted).context("SET_PROTOCOL_FEATURES")?;
        if accepted.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if accepted.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair()?;
            frontend.set_backend_request_fd(&theirs).context("SET_BACKEND_REQ_FD")?;
            channel = Some((ours, theirs));
        }
    }
    frontend.set_features(features).context("SET_FEATURES")?;
    Ok((frontend, features, channel))
}

fn slot_bytes(options: &Options) -> usize {
    (TABLE_BYTES + HDR_LEN + options.tx_frame).next_multiple_of(64)
}

/// Cuts a stretch of memory into pieces at the given distances from its start.
fn cut(at: usize, len: usize, cuts: &[usize], writable: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().filter(|cut| *cut < len).chain([len]) {
        if end > start {
            pieces.push(Piece { at: at + start, len: end - start, writable });
            start = end;
        }
    }
    pieces
}

fn wait(call: &EventFd, deadline: Instant) -> anyhow::Result<bool> {
    wait_any(&[call], deadline)
}

/// `false` when the time is up.
fn wait_any(calls: &[&EventFd], deadline: Instant) -> anyhow::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let fds: Vec<_> = calls
        .iter()
        // SAFETY: the descriptors outlive this call.
        .map(|call| unsafe { std::os::fd::BorrowedFd::borrow_raw(call.as_raw_fd()) })
        .collect();
    let mut polls: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match poll(&mut polls, Some(&Timespec::try_from(left)?)) {
        Ok(0) => return Ok(false),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    for call in calls {
        // Empty again; EAGAIN where it did not ring.
        let _ = call.read();
    }
    Ok(true)
}
