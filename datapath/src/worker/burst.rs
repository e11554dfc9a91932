//! One burst of one source: taken, classified, copied to its outputs, given back.

use std::io;

use rustix::io::Errno;
use switch::{DecisionCache, DropReason, Egress, PortIndex, Tci, Verdict};
use virtio_ring::{ChainBuf, ChainError, Chains, Cursor, Direction, Limit, MAX_BURST};
use wire::{MacAddr, VirtioNetHdr};
use zerocopy::FromBytes;

use super::Context;
use super::batch::{Batch, Bytes, MAX_FRAME, MIN_FRAME, Meta, Owned, Window};
use super::outputs::{Job, Outputs};
use super::to_vhost::{Fault, Storage};
use super::{to_internal, to_kernel, to_vhost};
use crate::counters::Counters;
use crate::offload::{OffloadSet, validate};
use crate::port::internal;
use crate::port::kernel::KernelPort;
use crate::port::vhost_user::queue::Live;
use crate::port::vhost_user::{VhostPort, announce};
use crate::snapshot::{Device, Port};

/// Bytes that a burst copies, over all outputs: it ends with the frame that exceeds this.
const MAX_BYTES: u64 = 256 * 1024;
/// Frames that one read of a TAP queue or packet socket takes at most.
const KERNEL_BURST: usize = 32;

/// What one burst had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Of a guest: chains, also those that were no frames.
    pub(crate) frames: usize,
    pub(crate) bytes: u64,
}

impl Taken {
    const NOTHING: Self = Self { frames: 0, bytes: 0 };
}

/// Storage of one worker, used again and again.
pub(crate) struct Buffers {
    chains: ChainBuf,
    windows: Box<[Window; MAX_BURST]>,
    metas: Box<[Meta; MAX_BURST]>,
    outputs: Outputs,
    storage: Storage,
    owned: Vec<Owned>,
    cache: DecisionCache,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Self {
            chains: ChainBuf::new(),
            windows: Box::new([Window::EMPTY; MAX_BURST]),
            metas: Box::new([Meta::NONE; MAX_BURST]),
            outputs: Outputs::new(),
            storage: Storage::new(),
            owned: (0..KERNEL_BURST).map(|_| Owned::new()).collect(),
            cache: DecisionCache::default(),
        }
    }

    /// The configuration is another one.
    pub(crate) fn forget(&mut self) {
        self.cache.forget();
    }

    /// Takes a burst out of a guest's TX ring; nothing also when somebody else has the ring.
    #[inline]
    pub(crate) fn take_vhost(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        vhost: &VhostPort,
        pair: usize,
    ) -> Taken {
        if vhost.is_quarantined() {
            return Taken::NOTHING;
        }
        let Some(mut guard) = vhost.tx(pair).and_then(|queue| queue.try_lock()) else {
            return Taken::NOTHING;
        };
        let Some(live) = guard.as_mut() else { return Taken::NOTHING };
        let drained = self.drain(context, port, live);
        let call = if matches!(drained, Ok((_, true))) { live.call.clone() } else { None };
        // Nobody waits for the ring because of a system call.
        drop(guard);
        if let Some(call) = call {
            context.signal(port, &call);
        }
        match drained {
            Ok((taken, _)) => taken,
            Err(fault) => {
                context.quarantine(port, vhost, &fault);
                Taken::NOTHING
            }
        }
    }

    /// What was taken, and whether the driver must be signalled.
    #[inline]
    fn drain(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        live: &mut Live,
    ) -> Result<(Taken, bool), Fault> {
        let Self { chains, windows, metas, outputs, storage, cache, .. } = self;
        let counters = &port.counters[context.worker];
        let Live { ring, memory, hdr_len, accept, enabled, .. } = &mut *live;
        let limit = Limit { chains: MAX_BURST, bytes: MAX_BYTES };
        let taken = match ring.gather(memory, Direction::Readable, limit, chains) {
            Ok(taken) if !taken.is_empty() => taken,
            // A ring whose memory is gone is empty or makes no sense.
            _ if memory.is_poisoned() => return Err(Fault::Memory),
            Ok(_) => return Ok((Taken::NOTHING, false)),
            Err(error) => return Err(Fault::Ring(error)),
        };
        let (mut done, mut bytes) = (taken.len(), 0);
        if *enabled {
            match *hdr_len {
                12 => look::<12>(taken, *accept, windows, metas),
                _ => look::<10>(taken, *accept, windows, metas),
            }
            let (windows, metas) = (&*windows, &metas[..taken.len()]);
            let source = Bytes::Guest { windows, chains: taken, memory, hdr_len: *hdr_len };
            let batch = Batch { ingress: port.index, metas, bytes: source };
            done = forward(context, port, &batch, cache, outputs, storage);
            // The rest comes again with the next burst.
            bytes = count(&metas[..done], counters);
        } else {
            // A disabled ring's frames are consumed and discarded.
            counters.drop(DropReason::PortDown, taken.len() as u64);
        }
        ring.unread(taken.len() - done);
        ring.complete_read(&taken.as_slice()[..done]);
        if memory.is_poisoned() {
            return Err(Fault::Memory);
        }
        let signal = ring.publish();
        if live.log_is_lost() {
            Err(Fault::Log)
        } else {
            Ok((Taken { frames: done, bytes }, signal))
        }
    }

    /// Takes a burst out of a TAP queue or packet socket.
    pub(crate) fn take_kernel(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        kernel: &KernelPort,
        queue: usize,
    ) -> Taken {
        let Self { metas, outputs, storage, owned, cache, .. } = self;
        let counters = &port.counters[context.worker];
        let mut n = 0;
        {
            let Some(mut queue) = kernel.try_queue(queue) else { return Taken::NOTHING };
            // Frames that are refused count too: whoever sends only those must not keep the worker here.
            for _ in 0..KERNEL_BURST {
                let mut header = VirtioNetHdr::default();
                let buffer = owned[n].bytes_mut();
                match queue.recv(&mut header, buffer) {
                    Ok(len @ MIN_FRAME..=MAX_FRAME) => {
                        let window = &buffer[..len.min(switch::WINDOW_LEN)];
                        match validate(&header, window, len, OffloadSet::ALL) {
                            Ok(offload) => {
                                // Not above MAX_FRAME.
                                let len = u32::try_from(len).unwrap_or(0);
                                metas[n] = Meta { len, offload, refused: None };
                                n += 1;
                            }
                            Err(reason) => counters.drop(reason, 1),
                        }
                    }
                    Ok(len) => counters.drop(refusal(None, len), 1),
                    Err(error) => match Errno::from_io_error(&error) {
                        Some(Errno::AGAIN) => break,
                        Some(Errno::BADFD | Errno::NODEV | Errno::NXIO) => {
                            context.gone(port, kernel);
                            break;
                        }
                        // Longer than any frame, or of a kind that has no virtio header.
                        None if error.kind() == io::ErrorKind::InvalidData => {
                            counters.drop(DropReason::TooLong, 1);
                        }
                        // A packet socket says once that its interface went down; it can come back.
                        Some(Errno::NETDOWN) => break,
                        _ => {
                            counters.drop(DropReason::IoError, 1);
                            break;
                        }
                    },
                }
            }
        }
        if n == 0 {
            return Taken::NOTHING;
        }
        let bytes = Bytes::Owned(&owned[..n]);
        let batch = Batch { ingress: port.index, metas: &metas[..n], bytes };
        forward(context, port, &batch, cache, outputs, storage);
        Taken { frames: n, bytes: count(&metas[..n], counters) }
    }

    /// Sends a guest's announcement as if it came from the guest.
    pub(crate) fn announce(&mut self, context: &Context<'_>, port: &Port, mac: MacAddr) {
        let frame = announce::frame(mac);
        let len = u32::try_from(frame.len()).unwrap_or(0);
        let metas = [Meta { len, ..Meta::NONE }];
        let batch = Batch { ingress: port.index, metas: &metas, bytes: Bytes::Single(&frame) };
        let Self { cache, outputs, storage, .. } = self;
        forward(context, port, &batch, cache, outputs, storage);
        count(&metas, &port.counters[context.worker]);
    }

    /// Sends an engine's frame on the port that it names.
    pub(crate) fn send_engine(
        &mut self,
        context: &Context<'_>,
        from: &Port,
        egress: &internal::Egress,
    ) {
        let counters = &from.counters[context.worker];
        let frame = &egress.frame[..];
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            counters.drop(refusal(None, frame.len()), 1);
            return;
        }
        counters.rx_packets.add(1);
        counters.rx_bytes.add(frame.len() as u64);
        let Some(port) = context.snapshot.port_by_id(egress.port) else {
            counters.drop(DropReason::PortGone, 1);
            return;
        };
        let len = u32::try_from(frame.len()).unwrap_or(0);
        let metas = [Meta { len, ..Meta::NONE }];
        let batch = Batch { ingress: from.index, metas: &metas, bytes: Bytes::Single(frame) };
        send(context, from, port, &batch, &[Job::SINGLE], &mut self.storage);
    }
}

/// Copies the virtio header and the first bytes of every frame, sorts out what is no frame, and turns each header into what is
/// left to do. After this, guest memory is read only for the bytes behind.
#[inline]
fn look<const HDR_LEN: usize>(
    taken: Chains<'_, '_>,
    accept: OffloadSet,
    windows: &mut [Window; MAX_BURST],
    metas: &mut [Meta; MAX_BURST],
) {
    let places = windows[..taken.len()].iter_mut().zip(&mut metas[..taken.len()]);
    if let Some(slices) = taken.plain() {
        for (slice, (window, meta)) in slices[..taken.len()].iter().zip(places) {
            *meta = look_at::<HDR_LEN>(slice.len(), accept, window, |place| {
                slice.read(place);
            });
        }
        return;
    }
    for (chain, (window, meta)) in taken.as_slice().iter().zip(places) {
        *meta = match chain.error {
            Some(_) => Meta { refused: Some(refusal(chain.error, 0)), ..Meta::NONE },
            None => look_at::<HDR_LEN>(chain.len as usize, accept, window, |place| {
                Cursor::new(taken.slices(chain)).read(place);
            }),
        };
    }
}

/// One chain of `total` bytes, of which `read` fills a place with the first ones.
#[inline(always)]
fn look_at<const HDR_LEN: usize>(
    total: usize,
    accept: OffloadSet,
    window: &mut Window,
    read: impl FnOnce(&mut [u8]),
) -> Meta {
    // A header alone, or less than one, is a frame of no bytes, which is too short.
    let len = total.saturating_sub(HDR_LEN);
    if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
        return Meta { refused: Some(refusal(None, len)), ..Meta::NONE };
    }
    read(window.place::<HDR_LEN>(len));
    // Not above MAX_FRAME.
    let mut meta = Meta { len: u32::try_from(len).unwrap_or(u32::MAX), ..Meta::NONE };
    // Nothing to do, as nearly always.
    if !window.header_is_zero::<HDR_LEN>() {
        let header = window.header::<HDR_LEN>();
        let header = VirtioNetHdr::read_from_bytes(&header).unwrap_or_default();
        match validate(&header, window.frame(len), len, accept) {
            Ok(offload) => meta.offload = offload,
            Err(reason) => meta.refused = Some(reason),
        }
    }
    window.set_plain();
    meta
}

/// Counts what was taken from a port. Returns the frames' bytes.
#[inline]
fn count(metas: &[Meta], counters: &Counters) -> u64 {
    let (mut packets, mut bytes) = (0, 0);
    for meta in metas {
        match meta.refused {
            None => {
                packets += 1;
                bytes += u64::from(meta.len);
            }
            Some(reason) => counters.drop(reason, 1),
        }
    }
    counters.rx_packets.add(packets);
    counters.rx_bytes.add(bytes);
    bytes
}

/// Why something is no frame.
#[cold]
fn refusal(error: Option<ChainError>, len: usize) -> DropReason {
    match error {
        Some(ChainError::Memory) => DropReason::GuestMemory,
        Some(_) => DropReason::BadDescriptor,
        None if len < MIN_FRAME => DropReason::TooShort,
        None => DropReason::TooLong,
    }
}

/// Decides for every frame and makes its copies. Returns how many frames were done: those of a guest end when
/// their copies exceed the burst's bytes.
#[inline]
fn forward(
    context: &Context<'_>,
    port: &Port,
    batch: &Batch<'_, '_>,
    cache: &mut DecisionCache,
    outputs: &mut Outputs,
    storage: &mut Storage,
) -> usize {
    let mut forward = Forward { context, port, batch, cache, outputs, storage, copied: 0 };
    let done = match batch.bytes {
        Bytes::Guest { windows, .. } => {
            forward.run(MAX_BYTES, |frame, meta| windows[frame].frame(meta.len as usize))
        }
        Bytes::Owned(_) | Bytes::Single(_) => {
            forward.run(u64::MAX, |frame, meta| batch.head_of(frame, meta))
        }
    };
    flush(context, port, batch, outputs, storage);
    done
}

/// A burst on its way.
struct Forward<'f, 'b, 'm> {
    context: &'f Context<'f>,
    port: &'f Port,
    batch: &'f Batch<'b, 'm>,
    cache: &'f mut DecisionCache,
    outputs: &'f mut Outputs,
    storage: &'f mut Storage,
    /// Bytes of all copies.
    copied: u64,
}

impl<'b> Forward<'_, 'b, '_> {
    /// Returns how many frames were done before their copies exceeded `limit` bytes.
    #[inline(always)]
    fn run(&mut self, limit: u64, window: impl Fn(usize, &Meta) -> &'b [u8]) -> usize {
        let (ingress, now) = (self.batch.ingress, self.context.now);
        let metas = self.batch.metas;
        for (frame, meta) in metas.iter().enumerate() {
            if self.copied > limit {
                return frame;
            }
            if meta.refused.is_some() {
                continue;
            }
            let window = window(frame, meta);
            #[expect(clippy::cast_possible_truncation, reason = "below MAX_BURST")]
            let at = frame as u16;
            match self.port.bridge.recall(self.cache, ingress, window, now) {
                Some(egress) => self.push(at, u64::from(meta.len), egress),
                None => self.decide(at, u64::from(meta.len), window),
            }
        }
        metas.len()
    }

    #[inline(always)]
    fn push(&mut self, frame: u16, len: u64, egress: Egress) {
        if self.outputs.is_full() {
            self.flush();
        }
        self.outputs.push(egress.port, frame, egress.tag);
        self.copied += len;
    }

    #[inline(never)]
    fn flush(&mut self) {
        flush(self.context, self.port, self.batch, self.outputs, self.storage);
    }

    /// What the cache does not know.
    #[inline(never)]
    fn decide(&mut self, frame: u16, len: u64, window: &[u8]) {
        let (context, port, ingress) = (self.context, self.port, self.batch.ingress);
        let (counters, now) = (&port.counters[context.worker], context.now);
        let decision = port.bridge.decide(ingress, window, now);
        match decision.verdict {
            Verdict::Unicast(egress) => {
                port.bridge.remember(self.cache, ingress, window, decision.vlan, egress, now);
                self.push(frame, len, egress);
            }
            Verdict::Flood(flood) => {
                for egress in flood {
                    if self.is_wanted(egress.port, window, flood.tag_out(egress)) {
                        self.push(frame, len, egress);
                    }
                }
            }
            Verdict::Trap(engine) => {
                self.copied += len;
                if let Some(engine) = context.snapshot.port(engine) {
                    let job = Job::keep(frame);
                    let (vlan, linear) = (decision.vlan, self.storage.linear());
                    to_internal::punt(context, self.batch, &job, port, vlan, engine, linear);
                } else {
                    counters.drop(DropReason::PortGone, 1);
                }
            }
            Verdict::Drop(reason) => counters.drop(reason, 1),
        }
    }

    /// Whether the guest behind a port wants its copy of a frame that goes to several.
    fn is_wanted(&self, port: PortIndex, window: &[u8], tag: Option<Tci>) -> bool {
        let Some(port) = self.context.snapshot.port(port) else { return true };
        let (Device::Vhost(vhost), Some(&to)) = (&port.device, window.first_chunk()) else {
            return true;
        };
        let wanted = vhost.wants(MacAddr(to), tag);
        if !wanted {
            port.counters[self.context.worker].drop(DropReason::RxFiltered, 1);
        }
        wanted
    }
}

/// Makes the copies that were collected.
fn flush(
    context: &Context<'_>,
    from: &Port,
    batch: &Batch<'_, '_>,
    outputs: &mut Outputs,
    storage: &mut Storage,
) {
    let poisoned = batch.is_poisoned();
    let counters = &from.counters[context.worker];
    for group in 0..outputs.groups() {
        let (to, jobs) = outputs.group(group);
        match context.snapshot.port(to) {
            _ if poisoned => counters.drop(DropReason::GuestMemory, jobs.len() as u64),
            Some(port) => send(context, from, port, batch, jobs, storage),
            None => counters.drop(DropReason::PortGone, jobs.len() as u64),
        }
    }
    outputs.clear();
}

#[inline]
fn send(
    context: &Context<'_>,
    from: &Port,
    to: &Port,
    batch: &Batch<'_, '_>,
    jobs: &[Job],
    storage: &mut Storage,
) {
    match &to.device {
        Device::Vhost(vhost) => to_vhost::deliver(context, to, vhost, batch, jobs, storage),
        Device::Kernel(kernel) => {
            to_kernel::deliver(context, to, kernel, batch, jobs, storage.for_cutting());
        }
        Device::Internal(_) => {
            // By a static entry. The VLAN is the one that untagged frames have.
            for job in jobs {
                let vlan = switch::Vid::NONE;
                to_internal::punt(context, batch, job, from, vlan, to, storage.linear());
            }
        }
    }
}
