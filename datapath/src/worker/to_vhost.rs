//! Frames into a guest's RX ring.

use switch::{DropReason, TagOp};
use virtio_ring::{
    Chain, ChainBuf, ChainError, Cursor, Direction, GuestSlice, Limit, MAX_BURST, RingError,
};
use zerocopy::IntoBytes;

use super::Context;
use super::batch::{Batch, MAX_FRAME, Meta, PLAIN_HEADER};
use super::outputs::Job;
use super::patience::patiently;
use super::shape::{Shaped, linearize, shape};
use crate::counters::Counters;
use crate::offload::{Identifications, Offload, complete_checksum, cut};
use crate::port::vhost_user::VhostPort;
use crate::port::vhost_user::queue::{Live, Queue};
use crate::snapshot::Port;

/// Looks at a full ring before frames are dropped, some 40 ns each.
const FULL_TRIES: usize = 32;

/// Storage for output, used again and again.
pub(crate) struct Storage {
    chains: ChainBuf,
    linear: Box<[u8]>,
    identifications: Identifications,
}

impl Storage {
    pub(crate) fn new() -> Self {
        Self {
            chains: ChainBuf::new(),
            linear: vec![0; MAX_FRAME + 64].into(),
            identifications: Identifications::default(),
        }
    }

    pub(crate) fn linear(&mut self) -> &mut [u8] {
        &mut self.linear
    }

    /// What cutting a frame takes: room for it, and identifications.
    pub(crate) fn for_cutting(&mut self) -> (&mut [u8], &mut Identifications) {
        (&mut self.linear, &mut self.identifications)
    }
}

/// What takes a port out of service.
pub(crate) enum Fault {
    Ring(RingError),
    Chain(ChainError),
    Memory,
    Log,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ring(error) => write!(f, "{error}"),
            Self::Chain(error) => write!(f, "a receive buffer is unusable: {error}"),
            Self::Memory => f.write_str(
                "the file behind the guest's memory was cut short, or has no pages left",
            ),
            Self::Log => f.write_str("the file behind the dirty log was cut short"),
        }
    }
}

/// Copies the frames of `jobs` to the guest, in order for each of its queues.
pub(crate) fn deliver(
    context: &Context<'_>,
    port: &Port,
    vhost: &VhostPort,
    batch: &Batch<'_, '_>,
    jobs: &[Job],
    storage: &mut Storage,
) {
    let counters = &port.counters[context.worker];
    if vhost.is_quarantined() {
        counters.drop(DropReason::Quarantined, jobs.len() as u64);
        return;
    }
    let queues = vhost.rx_active();
    match (queues, vhost.rx(0)) {
        (1, Some(queue)) => deliver_queue(context, port, vhost, queue, batch, jobs, storage),
        (0, _) | (_, None) => counters.drop(DropReason::PortDown, jobs.len() as u64),
        _ => {
            // Each queue gets its frames in the order of the burst.
            let mut left = [Job::NONE; MAX_BURST];
            for jobs in jobs.chunks(MAX_BURST) {
                for pair in 0..queues {
                    let mut n = 0;
                    for job in jobs {
                        let hash = super::flow::hash(batch.head(usize::from(job.frame)));
                        if hash as usize % queues == pair {
                            left[n] = *job;
                            n += 1;
                        }
                    }
                    if let (Some(queue), true) = (vhost.rx(pair), n > 0) {
                        let jobs = &left[..n];
                        deliver_queue(context, port, vhost, queue, batch, jobs, storage);
                    }
                }
            }
        }
    }
}

fn deliver_queue(
    context: &Context<'_>,
    port: &Port,
    vhost: &VhostPort,
    queue: &Queue,
    batch: &Batch<'_, '_>,
    jobs: &[Job],
    storage: &mut Storage,
) {
    let counters = &port.counters[context.worker];
    let Some(mut guard) = patiently(|| queue.try_lock()) else {
        counters.drop(DropReason::TxContended, jobs.len() as u64);
        return;
    };
    let Some(live) = guard.as_mut().filter(|live| live.enabled) else {
        counters.drop(DropReason::RxRingDown, jobs.len() as u64);
        return;
    };
    let Storage { chains, linear, identifications } = storage;
    let mut writer = Writer {
        live,
        chains,
        batch,
        counters,
        context,
        port,
        packets: 0,
        bytes: 0,
        known_full: false,
    };
    let result = writer.all(jobs, linear, identifications).and_then(|()| writer.publish());
    let result = result.map_err(|fault| {
        // What is in memory that is gone makes no sense.
        if writer.live.memory.is_poisoned() { Fault::Memory } else { fault }
    });
    counters.tx_packets.add(writer.packets);
    counters.tx_bytes.add(writer.bytes);
    let call = if matches!(result, Ok(true)) { live.call.clone() } else { None };
    // Others may have the ring before the system call.
    drop(guard);
    if let Some(call) = call {
        context.signal(port, &call);
    }
    if let Err(fault) = result {
        context.quarantine(port, vhost, &fault);
    }
}

/// Puts frames into one ring, under its lock.
struct Writer<'w, 'b, 'm> {
    live: &'w mut Live,
    chains: &'w mut ChainBuf,
    batch: &'w Batch<'b, 'm>,
    counters: &'w Counters,
    context: &'w Context<'w>,
    port: &'w Port,
    packets: u64,
    bytes: u64,
    /// Waited for room in vain: the rest of the burst does not wait again.
    known_full: bool,
}

impl Writer<'_, '_, '_> {
    fn all(
        &mut self,
        jobs: &[Job],
        linear: &mut [u8],
        identifications: &mut Identifications,
    ) -> Result<(), Fault> {
        let mut next = 0;
        loop {
            next += self.plain(&jobs[next..])?;
            let Some(job) = jobs.get(next) else { return Ok(()) };
            next += 1;
            let mut tag = [0; 4];
            let shaped = shape(self.batch, job, &mut tag);
            if shaped.len > self.port.longest && !shaped.offload.is_gso() {
                self.counters.drop(DropReason::TooLong, 1);
            } else if shaped.offload.fits(self.live.accept) {
                self.frame(&shaped)?;
            } else {
                let offload = shaped.offload;
                let frame = linearize(&shaped, linear);
                self.finished(frame, &offload, identifications)?;
            }
        }
    }

    /// As many of the next frames as are plain: nothing to change, nothing left to do, and the next buffer holds it.
    #[inline]
    fn plain(&mut self, jobs: &[Job]) -> Result<usize, Fault> {
        let Live { ring, memory, log, hdr_len, .. } = &mut *self.live;
        if *hdr_len != PLAIN_HEADER.len() || jobs.is_empty() {
            return Ok(0);
        }
        let limit = Limit { chains: jobs.len(), bytes: u64::MAX };
        let chains =
            ring.gather(memory, Direction::Writable, limit, self.chains).map_err(Fault::Ring)?;
        let longest = u32::try_from(self.port.longest).unwrap_or(u32::MAX);
        let mut bytes = 0;
        let mut put = |meta: &Meta, packet: &[u8], frame: usize, at: usize, chain: &Chain| {
            let need = meta.len + 12;
            if !meta.offload.is_none() || meta.len > longest || chain.len < need {
                return None;
            }
            match chains.plain().and_then(|plain| plain.get(at)) {
                Some(to) if packet.len() == need as usize => {
                    to.write(packet);
                }
                _ => put_plain(self.batch, frame, packet, chains.slices(chain), need),
            }
            bytes += u64::from(meta.len);
            Some(need)
        };
        let done = ring.complete_while(chains.as_slice(), |at, chain| {
            let job = jobs.get(at).filter(|job| job.tag == TagOp::Keep)?;
            let frame = usize::from(job.frame);
            let meta = self.batch.meta(frame);
            put(meta, self.batch.packet(frame, meta)?, frame, at, chain)
        });
        if let Some(log) = log {
            for (job, chain) in jobs.iter().zip(&chains.as_slice()[..done]) {
                let len = self.batch.meta(usize::from(job.frame)).len as usize;
                log.mark_slices(memory, chains.slices(chain), PLAIN_HEADER.len() + len);
            }
        }
        ring.unread(chains.len() - done);
        self.packets += done as u64;
        self.bytes += bytes;
        Ok(done)
    }

    /// A frame that the driver cannot take as it is, with the work done.
    fn finished(
        &mut self,
        frame: &mut [u8],
        offload: &Offload,
        identifications: &mut Identifications,
    ) -> Result<(), Fault> {
        if !offload.is_gso() {
            return match complete_checksum(frame, offload) {
                Ok(()) => self.frame(&Shaped::private([frame, &[], &[]])),
                Err(_) => {
                    self.counters.drop(DropReason::Malformed, 1);
                    Ok(())
                }
            };
        }
        let mut result = Ok(());
        let pieces = cut(frame, offload, identifications, |headers, payload| {
            if result.is_ok() {
                result = self.frame(&Shaped::private([headers, payload, &[]]));
            }
        });
        if pieces.is_err() {
            self.counters.drop(DropReason::SegmentationFailed, 1);
        }
        result
    }

    /// Any frame that the driver takes as it is.
    fn frame(&mut self, shaped: &Shaped<'_, '_>) -> Result<(), Fault> {
        let mut put = self.put(shaped)?;
        if put == Put::Full && !self.known_full {
            // The driver may wait for what it was not told of yet.
            if self.publish()?
                && let Some(call) = &self.live.call
            {
                self.context.signal(self.port, call);
            }
            for _ in 0..FULL_TRIES {
                std::hint::spin_loop();
                put = self.put(shaped)?;
                if put != Put::Full {
                    break;
                }
            }
            self.known_full = put == Put::Full;
        }
        match put {
            Put::Done => {
                self.packets += 1;
                self.bytes += shaped.len as u64;
            }
            Put::Full => self.counters.drop(DropReason::RxRingFull, 1),
            Put::TooSmall => self.counters.drop(DropReason::RxBufferTooSmall, 1),
        }
        Ok(())
    }

    fn put(&mut self, shaped: &Shaped<'_, '_>) -> Result<Put, Fault> {
        let Live { ring, memory, log, hdr_len, mergeable, .. } = &mut *self.live;
        let need = *hdr_len + shaped.len;
        let most = if *mergeable { MAX_BURST } else { 1 };
        let limit = Limit { chains: most, bytes: need as u64 };
        let chains =
            ring.gather(memory, Direction::Writable, limit, self.chains).map_err(Fault::Ring)?;
        if let Some(error) = chains.as_slice().iter().find_map(|chain| chain.error) {
            return Err(Fault::Chain(error));
        }
        let room: u64 = chains.as_slice().iter().map(|chain| u64::from(chain.len)).sum();
        if room < need as u64 {
            // More buffers would help only where the driver had no more to give.
            let full = chains.len() < most && ring.is_drained();
            ring.unread(chains.len());
            return Ok(if full { Put::Full } else { Put::TooSmall });
        }
        let mut header = shaped.offload.header();
        header.num_buffers.set(u16::try_from(chains.len()).unwrap_or(1));
        let mut to = Cursor::new(chains.slices_of(0, chains.len()));
        to.write(header.as_bytes().get(..*hdr_len).unwrap_or(&[]));
        for part in shaped.parts {
            to.write(part);
        }
        let mut tail = shaped.tail;
        to.copy_from(&mut tail, shaped.tail_len);
        if let Some(log) = log {
            log.mark_slices(memory, chains.slices_of(0, chains.len()), need);
        }
        let mut left = need;
        for chain in chains.as_slice() {
            let len = left.min(chain.len as usize);
            left -= len;
            // Not above the chain's own 32-bit length.
            ring.complete(chain.head, u32::try_from(len).unwrap_or(chain.len));
        }
        Ok(Put::Done)
    }

    /// Lets the driver have the frames, unless what was copied may not be the source's. True when it must be signalled.
    fn publish(&mut self) -> Result<bool, Fault> {
        if self.batch.is_poisoned() {
            self.live.ring.rollback();
            return Ok(false);
        }
        if self.live.memory.is_poisoned() {
            return Err(Fault::Memory);
        }
        let signal = self.live.ring.publish();
        if self.live.log_is_lost() { Err(Fault::Log) } else { Ok(signal) }
    }
}

/// A plain frame of more than its private bytes, or into more than one slice; `need` bytes with `packet`.
#[inline(never)]
fn put_plain(
    batch: &Batch<'_, '_>,
    frame: usize,
    packet: &[u8],
    slices: &[GuestSlice<'_>],
    need: u32,
) {
    let left = need as usize - packet.len();
    if let (&[to], Some(from)) = (slices, batch.tail_slice(frame)) {
        to.write(packet);
        to.skip(packet.len()).copy_from(from.first(left));
    } else {
        let mut to = Cursor::new(slices);
        to.write(packet);
        to.copy_from(&mut batch.tail(frame), left);
    }
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    /// There may be room later.
    Full,
    TooSmall,
}
