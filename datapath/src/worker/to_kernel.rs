//! Frames to a TAP device or packet socket, one gathering write each.

use switch::DropReason;

use super::Context;
use super::batch::Batch;
use super::outputs::Job;
use super::patience::patiently;
use super::shape::{Shaped, linearize, shape};
use crate::counters::Counters;
use crate::offload::{Identifications, OffloadSet, complete_checksum, cut};
use crate::port::gather::MAX_PIECES;
use crate::port::kernel::{KernelPort, KernelQueue};
use crate::snapshot::Port;

pub(crate) fn deliver(
    context: &Context<'_>,
    port: &Port,
    kernel: &KernelPort,
    batch: &Batch<'_, '_>,
    jobs: &[Job],
    (linear, identifications): (&mut [u8], &mut Identifications),
) {
    let counters = &port.counters[context.worker];
    let queue = kernel.queue_of(context.worker);
    let Some(mut queue) = patiently(|| kernel.try_queue(queue)) else {
        counters.drop(DropReason::TxContended, jobs.len() as u64);
        return;
    };
    for job in jobs {
        let mut tag = [0; 4];
        let shaped = shape(batch, job, &mut tag);
        let result = if shaped.len > port.longest && !shaped.offload.is_gso() {
            Err(DropReason::TooLong)
        } else {
            deliver_one(&mut queue, counters, batch, &shaped, linear, identifications)
        };
        if let Err(reason) = result {
            if reason == DropReason::GuestMemory {
                batch.poison();
            }
            counters.drop(reason, 1);
        }
    }
}

fn deliver_one(
    queue: &mut KernelQueue,
    counters: &Counters,
    batch: &Batch<'_, '_>,
    shaped: &Shaped<'_, '_>,
    linear: &mut [u8],
    identifications: &mut Identifications,
) -> Result<(), DropReason> {
    let offload = shaped.offload;
    let fits = offload.fits(OffloadSet::KERNEL_TAKES);
    let pieces = shaped.parts.len() + 1 + shaped.tail.parts().1.len();
    if fits && pieces <= MAX_PIECES {
        return send(queue, counters, shaped);
    }
    let frame = linearize(shaped, linear);
    if batch.is_poisoned() {
        return Err(DropReason::GuestMemory);
    }
    if fits {
        let shaped = Shaped { offload, ..Shaped::private([frame, &[], &[]]) };
        send(queue, counters, &shaped)
    } else if offload.is_gso() {
        let pieces = cut(frame, &offload, identifications, |headers, payload| {
            if let Err(reason) = send(queue, counters, &Shaped::private([headers, payload, &[]])) {
                counters.drop(reason, 1);
            }
        });
        pieces.map(drop).map_err(|_| DropReason::SegmentationFailed)
    } else {
        complete_checksum(frame, &offload).map_err(|_| DropReason::Malformed)?;
        send(queue, counters, &Shaped::private([frame, &[], &[]]))
    }
}

fn send(
    queue: &mut KernelQueue,
    counters: &Counters,
    shaped: &Shaped<'_, '_>,
) -> Result<(), DropReason> {
    const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [EMPTY; MAX_PIECES];
    let mut n = 0;
    let mut push = |piece: libc::iovec| {
        if let (Some(place), true) = (pieces.get_mut(n), piece.iov_len > 0) {
            *place = piece;
            n += 1;
        }
    };
    for part in shaped.parts {
        push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    }
    let (current, rest) = shaped.tail.parts();
    let mut left = shaped.tail_len;
    for slice in std::iter::once(&current).chain(rest) {
        let slice = slice.first(left);
        left -= slice.len();
        push(slice.as_iovec());
    }
    // SAFETY: the private pieces are borrowed slices; the others are guest memory that the batch keeps mapped, where a
    // fault is an error of the call.
    unsafe { queue.send(&shaped.offload.header(), &pieces[..n]) }?;
    counters.tx_packets.add(1);
    counters.tx_bytes.add(shaped.len as u64);
    Ok(())
}
