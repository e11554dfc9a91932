//! Negotiation, configuration, status, and what concerns the device as a whole.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Context, Reaction, head, log, u64_of};
use crate::device::{Device, Vring};
use crate::error::Refusal;
use crate::features::virtio;
use crate::message::ConfigHead;
use crate::session::Action;

pub(crate) fn get_features(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::reply(context.offer.features))
}

/// While a ring runs only dirty logging may be switched on and off. Without bit 30 there is no
/// SET_VRING_ENABLE and all rings are enabled at once.
pub(crate) fn set_features(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let features = u64_of(context.payload);
    let device = &mut *context.device;
    let unknown = features & !context.offer.features;
    if unknown != 0 {
        return Err(Refusal::Features(unknown));
    }
    if (features ^ device.features) & !virtio::F_LOG_ALL != 0
        && let Some(ring) = device.vrings.iter().position(Vring::is_running)
    {
        return Err(Refusal::FeaturesWhileRunning { ring });
    }
    log::switch(device, features)?;
    device.features = features;
    if features & virtio::F_PROTOCOL_FEATURES == 0 {
        for vring in &mut device.vrings {
            vring.enabled = true;
        }
    }
    Ok(Reaction::Act(Action::Features))
}

/// One connection has one owner, so there is nothing to remember; QEMU repeats it on some paths.
pub(crate) fn set_owner(_: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::Done)
}

/// Obsolete; the specification recommends to disable all rings and nothing else.
pub(crate) fn reset_owner(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    stop_rings(context.device);
    Ok(Reaction::Act(Action::Reset))
}

pub(crate) fn get_protocol_features(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::reply(context.offer.protocol_features))
}

pub(crate) fn set_protocol_features(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let features = u64_of(context.payload);
    let unknown = features & !context.offer.protocol_features;
    if unknown != 0 {
        return Err(Refusal::ProtocolFeatures(unknown));
    }
    context.device.protocol_features = features;
    Ok(Reaction::Done)
}

/// Counted in rings without the control queue: the rust-vmm family refuses ring numbers at or above
/// the answer. QEMU and DPDK take the answer for pairs; if they then use more rings than there are,
/// they are refused ring by ring.
pub(crate) fn get_queue_num(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::reply(u64::from(context.offer.queue_pairs) * 2))
}

/// The address is the first six bytes of the payload.
pub(crate) fn send_rarp(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let [a, b, c, d, e, f, ..] = u64_of(context.payload).to_ne_bytes();
    let mac = [a, b, c, d, e, f];
    if mac == [0; 6] || mac[0] & 1 != 0 {
        return Err(Refusal::Mac(mac));
    }
    Ok(Reaction::Act(Action::Rarp(mac)))
}

pub(crate) fn net_set_mtu(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let value = u64_of(context.payload);
    match u16::try_from(value) {
        Ok(mtu) if mtu >= 68 => {
            context.device.mtu = Some(mtu);
            Ok(Reaction::Done)
        }
        _ => Err(Refusal::Mtu(value)),
    }
}

pub(crate) fn set_backend_req_fd(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    context.device.backend_channel = context.fds.pop().map(Arc::new);
    Ok(Reaction::Done)
}

/// A range that is not there is answered by an empty payload, as the specification says.
pub(crate) fn get_config(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (wanted, room) = head::<ConfigHead>(context.payload);
    let range = config_range(wanted, context.offer.config.len());
    let room_matches = room.is_empty() || room.len() == wanted.size as usize;
    let Some(range) = range.filter(|_| room_matches) else {
        return Ok(Reaction::Reply(Vec::new()));
    };
    let mut payload = wanted.as_bytes().to_vec();
    payload.extend_from_slice(&context.offer.config[range]);
    Ok(Reaction::Reply(payload))
}

/// Nothing in a network device's configuration is the driver's to write since virtio 1.0.
pub(crate) fn set_config(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (wanted, bytes) = head::<ConfigHead>(context.payload);
    let len = context.offer.config.len();
    if wanted.flags > 1 {
        return Err(Refusal::ConfigFlags(wanted.flags));
    }
    if config_range(wanted, len).is_none() {
        return Err(Refusal::ConfigRange { offset: wanted.offset, size: wanted.size, len });
    }
    if bytes.len() != wanted.size as usize {
        return Err(Refusal::ConfigLength { got: bytes.len(), expected: wanted.size });
    }
    Err(Refusal::ConfigReadOnly)
}

/// Back to the state after connecting, but protocol features, memory and notifiers stay.
pub(crate) fn reset_device(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    stop_rings(context.device);
    context.device.features = 0;
    context.device.log = None;
    context.device.status = 0;
    Ok(Reaction::Act(Action::Reset))
}

/// Status 0 is the driver's reset (virtio 1.3 §2.1); other values are only remembered.
pub(crate) fn set_status(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let value = u64_of(context.payload);
    let status = u8::try_from(value).map_err(|_| Refusal::Status(value))?;
    if status == 0 {
        stop_rings(context.device);
        context.device.status = 0;
        return Ok(Reaction::Act(Action::Reset));
    }
    context.device.status = status;
    Ok(Reaction::Done)
}

pub(crate) fn get_status(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::reply(u64::from(context.device.status)))
}

fn stop_rings(device: &mut Device) {
    for vring in &mut device.vrings {
        vring.stop();
        vring.enabled = false;
    }
}

fn config_range(wanted: ConfigHead, len: usize) -> Option<std::ops::Range<usize>> {
    let start = wanted.offset as usize;
    let end = start.checked_add(wanted.size as usize)?;
    (end <= len).then_some(start..end)
}
