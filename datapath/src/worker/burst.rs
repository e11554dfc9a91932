//! One burst of one source: taken, classified, copied to its outputs, given back.

use std::io;

use rustix::io::Errno;
use switch::{DropReason, Verdict};
use virtio_ring::{ChainBuf, ChainError, Chains, Cursor, Direction, Limit, MAX_BURST};
use wire::{MacAddr, VirtioNetHdr};
use zerocopy::FromBytes;

use super::Context;
use super::batch::{Batch, Bytes, MAX_FRAME, MIN_FRAME, Meta, Owned, Window};
use super::outputs::{Job, Outputs};
use super::to_vhost::{Fault, Storage};
use super::{to_internal, to_kernel, to_vhost};
use crate::counters::Counters;
use crate::offload::{Offload, OffloadSet, validate};
use crate::port::internal::Egress;
use crate::port::kernel::KernelPort;
use crate::port::vhost_user::queue::Live;
use crate::port::vhost_user::{VhostPort, announce};
use crate::snapshot::{Device, Port};

/// Bytes that a burst copies, over all outputs: it ends with the frame that exceeds this.
const MAX_BYTES: u64 = 256 * 1024;
/// Frames that one read of a TAP queue or packet socket takes at most.
const KERNEL_BURST: usize = 32;

/// Storage of one worker, used again and again.
pub(crate) struct Buffers {
    chains: ChainBuf,
    windows: Box<[Window; MAX_BURST]>,
    metas: Box<[Meta; MAX_BURST]>,
    outputs: Outputs,
    storage: Storage,
    owned: Vec<Owned>,
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
        }
    }

    /// Takes a burst out of a guest's TX ring. Returns how many chains there were; 0 also when somebody else has the ring.
    #[inline]
    pub(crate) fn take_vhost(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        vhost: &VhostPort,
        pair: usize,
    ) -> usize {
        if vhost.is_quarantined() {
            return 0;
        }
        let Some(mut guard) = vhost.tx(pair).and_then(|queue| queue.try_lock()) else { return 0 };
        let Some(live) = guard.as_mut() else { return 0 };
        let drained = self.drain(context, port, live);
        let call = if matches!(drained, Ok((_, true))) { live.call.clone() } else { None };
        // Nobody waits for the ring because of a system call.
        drop(guard);
        if let Some(call) = call {
            context.signal(port, &call);
        }
        match drained {
            Ok((n, _)) => n,
            Err(fault) => {
                context.quarantine(port, vhost, &fault);
                0
            }
        }
    }

    /// How many chains were taken, and whether the driver must be signalled.
    #[inline]
    fn drain(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        live: &mut Live,
    ) -> Result<(usize, bool), Fault> {
        let Self { chains, windows, metas, outputs, storage, .. } = self;
        let counters = &port.counters[context.worker];
        let Live { ring, memory, hdr_len, accept, enabled, .. } = &mut *live;
        let limit = Limit { chains: MAX_BURST, bytes: MAX_BYTES };
        let taken = match ring.gather(memory, Direction::Readable, limit, chains) {
            Ok(taken) if !taken.is_empty() => taken,
            // A ring whose memory is gone is empty or makes no sense.
            _ if memory.is_poisoned() => return Err(Fault::Memory),
            Ok(_) => return Ok((0, false)),
            Err(error) => return Err(Fault::Ring(error)),
        };
        let mut done = taken.len();
        if *enabled {
            look(taken, *hdr_len, windows, metas);
            check(taken, *hdr_len, *accept, windows, metas);
            let (windows, metas) = (&windows[..], &metas[..taken.len()]);
            let bytes = Bytes::Guest { windows, chains: taken, memory, hdr_len: *hdr_len };
            let batch = Batch { ingress: port.index, metas, bytes };
            done = forward(context, port, &batch, outputs, storage);
            // The rest comes again with the next burst.
            count(&metas[..done], counters);
        } else {
            // A disabled ring's frames are consumed and discarded.
            counters.drop(DropReason::PortDown, taken.len() as u64);
        }
        ring.unread(taken.len() - done);
        for chain in &taken.as_slice()[..done] {
            ring.complete(chain.head, 0);
        }
        if memory.is_poisoned() {
            return Err(Fault::Memory);
        }
        let signal = ring.publish();
        if live.log_is_lost() { Err(Fault::Log) } else { Ok((done, signal)) }
    }

    /// Takes a burst out of a TAP queue or packet socket. Returns how many frames there were.
    pub(crate) fn take_kernel(
        &mut self,
        context: &Context<'_>,
        port: &Port,
        kernel: &KernelPort,
        queue: usize,
    ) -> usize {
        let Self { metas, outputs, storage, owned, .. } = self;
        let counters = &port.counters[context.worker];
        let mut n = 0;
        {
            let Some(mut queue) = kernel.try_queue(queue) else { return 0 };
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
        if n > 0 {
            let bytes = Bytes::Owned(&owned[..n]);
            let batch = Batch { ingress: port.index, metas: &metas[..n], bytes };
            forward(context, port, &batch, outputs, storage);
            count(&metas[..n], counters);
        }
        n
    }

    /// Sends a guest's announcement as if it came from the guest.
    pub(crate) fn announce(&mut self, context: &Context<'_>, port: &Port, mac: MacAddr) {
        let frame = announce::frame(mac);
        let len = u32::try_from(frame.len()).unwrap_or(0);
        let metas = [Meta { len, ..Meta::NONE }];
        let batch = Batch { ingress: port.index, metas: &metas, bytes: Bytes::Single(&frame) };
        forward(context, port, &batch, &mut self.outputs, &mut self.storage);
        count(&metas, &port.counters[context.worker]);
    }

    /// Sends an engine's frame on the port that it names.
    pub(crate) fn send_engine(&mut self, context: &Context<'_>, from: &Port, egress: &Egress) {
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

/// Copies the virtio header and the first bytes of every frame. After this, guest memory is read only for the bytes behind.
#[inline]
fn look(
    taken: Chains<'_, '_>,
    hdr_len: usize,
    windows: &mut [Window; MAX_BURST],
    metas: &mut [Meta; MAX_BURST],
) {
    let places = windows.iter_mut().zip(metas.iter_mut());
    for (chain, (window, meta)) in taken.as_slice().iter().zip(places) {
        let len = (chain.len as usize).max(hdr_len);
        let place = window.place(hdr_len, len);
        match taken.slices(chain) {
            [slice] => {
                slice.read(place);
            }
            slices => {
                Cursor::new(slices).read(place);
            }
        }
        // A header alone, or less than one, is a frame of no bytes, which is too short.
        meta.len = u32::try_from(len - hdr_len).unwrap_or(u32::MAX);
    }
}

/// Sorts out what is no frame and turns each virtio header into what is left to do.
#[inline]
fn check(
    taken: Chains<'_, '_>,
    hdr_len: usize,
    accept: OffloadSet,
    windows: &[Window; MAX_BURST],
    metas: &mut [Meta; MAX_BURST],
) {
    for (chain, (window, meta)) in taken.as_slice().iter().zip(windows.iter().zip(metas)) {
        let len = meta.len as usize;
        (meta.offload, meta.refused) = (Offload::NONE, None);
        if chain.error.is_some() || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            meta.refused = Some(refusal(chain.error, len));
            continue;
        }
        let header = window.header(hdr_len);
        // All zero but the last field, which a driver need not set: nothing to do, as nearly always.
        if header[..10] != [0; 10] {
            let header = VirtioNetHdr::read_from_bytes(&header).unwrap_or_default();
            match validate(&header, window.frame(len), len, accept) {
                Ok(offload) => meta.offload = offload,
                Err(reason) => meta.refused = Some(reason),
            }
        }
    }
}

/// Counts what was taken from a port.
#[inline]
fn count(metas: &[Meta], counters: &Counters) {
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
    outputs: &mut Outputs,
    storage: &mut Storage,
) -> usize {
    let counters = &port.counters[context.worker];
    let bounded = matches!(batch.bytes, Bytes::Guest { .. });
    let mut copied = 0;
    let mut done = 0;
    for (frame, meta) in (0_u16..).zip(batch.metas) {
        if copied > MAX_BYTES && bounded {
            break;
        }
        done += 1;
        if meta.refused.is_some() {
            continue;
        }
        let len = u64::from(meta.len);
        let decision =
            port.bridge.decide(batch.ingress, batch.head(usize::from(frame)), context.now);
        match decision.verdict {
            Verdict::Unicast(egress) => {
                copied += len;
                if outputs.is_full() {
                    flush(context, port, batch, outputs, storage);
                }
                outputs.push(egress.port, frame, egress.tag);
            }
            Verdict::Flood(flood) => {
                for egress in flood {
                    copied += len;
                    if outputs.is_full() {
                        flush(context, port, batch, outputs, storage);
                    }
                    outputs.push(egress.port, frame, egress.tag);
                }
            }
            Verdict::Trap(engine) => {
                copied += len;
                if let Some(engine) = context.snapshot.port(engine) {
                    let job = Job::keep(frame);
                    let vlan = decision.vlan;
                    to_internal::punt(context, batch, &job, port, vlan, engine, storage.linear());
                } else {
                    counters.drop(DropReason::PortGone, 1);
                }
            }
            Verdict::Drop(reason) => counters.drop(reason, 1),
        }
    }
    flush(context, port, batch, outputs, storage);
    done
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
            to_kernel::deliver(context, to, kernel, batch, jobs, storage.linear());
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
