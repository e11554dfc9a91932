//! Frames to an engine of the daemon. They are few: each is allocated.

use switch::{DropReason, Vid};

use super::Context;
use super::batch::Batch;
use super::outputs::Job;
use super::shape::{linearize, shape};
use crate::offload::complete_checksum;
use crate::port::internal::Ingress;
use crate::snapshot::{Device, Port};

/// A frame of the burst to the engine behind `to`.
pub(crate) fn punt(
    context: &Context<'_>,
    batch: &Batch<'_, '_>,
    job: &Job,
    from: &Port,
    vlan: Vid,
    to: &Port,
    linear: &mut [u8],
) {
    let Device::Internal(internal) = &to.device else { return };
    let counters = &to.counters[context.worker];
    let mut tag = [0; 4];
    let shaped = shape(batch, job, &mut tag);
    let offload = shaped.offload;
    let frame = linearize(&shaped, linear);
    if batch.is_poisoned() {
        return;
    }
    // An engine's messages are small; nobody segments them.
    if offload.is_gso() || complete_checksum(frame, &offload).is_err() {
        counters.drop(DropReason::Malformed, 1);
        return;
    }
    let (len, frame) = (frame.len() as u64, frame.to_vec());
    if internal.punt(Ingress { port: from.id, vlan: vlan.value(), frame }) {
        counters.tx_packets.add(1);
        counters.tx_bytes.add(len);
    } else {
        counters.drop(DropReason::TrapFull, 1);
    }
}
