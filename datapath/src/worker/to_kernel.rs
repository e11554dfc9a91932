//! Frames to a TAP device or packet socket, one gathering write each.

use switch::DropReason;

use super::Context;
use super::batch::Batch;
use super::outputs::Job;
use super::patience::patiently;
use super::shape::{Shaped, linearize, shape};
use crate::counters::Counters;
use crate::offload::{OffloadSet, complete_checksum, segment};
use crate::port::gather::MAX_PIECES;
use crate::port::kernel::{KernelPort, KernelQueue};
use crate::snapshot::Port;

pub(crate) fn deliver(
    context: &Context<'_>,
    port: &Port,
    kernel: &KernelPort,
    batch: &Batch<'_, '_>,
    jobs: &[Job],
    linear: &mut [u8],
) {
    let counters = &port.counters[context.worker];
    let queue = context.worker % kernel.queues().max(1);
    let Some(mut queue) = patiently(|| kernel.try_queue(queue)) else {
        counters.drop(DropReason::TxContended, jobs.len() as u64);
        return;
    };
    for job in jobs {
        let mut tag = [0; 4];
        let shaped = shape(batch, job, &mut tag);
        let (offload, len) = (shaped.offload, shaped.len);
        let pieces = shaped.parts.len() + 1 + shaped.tail.parts().1.len();
        let result = if offload.fits(OffloadSet::KERNEL_TAKES) && pieces <= MAX_PIECES {
            send(&mut queue, &shaped)
        } else {
            let frame = linearize(&shaped, linear);
            if offload.fits(OffloadSet::KERNEL_TAKES) {
                let shaped = Shaped { offload, ..Shaped::private([frame, &[], &[]]) };
                send(&mut queue, &shaped)
            } else if offload.is_gso() {
                let mut result = Ok(());
                let segments = segment(frame, &offload, |headers, payload| {
                    if let Err(reason) = send(&mut queue, &Shaped::private([headers, payload, &[]]))
                    {
                        result = Err(reason);
                    }
                });
                segments.map_err(|_| DropReason::SegmentationFailed).and(result)
            } else {
                complete_checksum(frame, &offload)
                    .map_err(|_| DropReason::Malformed)
                    .and_then(|()| send(&mut queue, &Shaped::private([frame, &[], &[]])))
            }
        };
        account(counters, batch, result, len);
    }
}

fn account(counters: &Counters, batch: &Batch<'_, '_>, result: Result<(), DropReason>, len: usize) {
    match result {
        Ok(()) => {
            counters.tx_packets.add(1);
            counters.tx_bytes.add(len as u64);
        }
        Err(reason) => {
            if reason == DropReason::GuestMemory {
                batch.poison();
            }
            counters.drop(reason, 1);
        }
    }
}

fn send(queue: &mut KernelQueue, shaped: &Shaped<'_, '_>) -> Result<(), DropReason> {
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
    unsafe { queue.send(&shaped.offload.header(), &pieces[..n]) }
}
