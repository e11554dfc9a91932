//! Rings: size, addresses, start index, notifiers, start, stop, enable.
//!
//! A ring is configured while it does not run. Some frontends (User-mode Linux reloading its driver)
//! never send GET_VRING_BASE but disable the ring and set it up anew: configuring a started, disabled
//! ring stops it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Context, Reaction, head, u64_of};
use crate::device::{Device, Vring, VringAddr};
use crate::error::Refusal;
use crate::features::virtio;
use crate::message::{VringAddrPayload, VringState};
use crate::session::Action;

/// Of SET_VRING_KICK/CALL/ERR: no descriptor comes along, the ring is polled instead.
const NO_FD: u64 = 1 << 8;
/// VHOST_VRING_F_LOG of SET_VRING_ADDR: writes to the used ring are logged at the given guest address.
const FLAG_LOG: u32 = 1;

pub(crate) fn set_vring_num(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (VringState { index, num }, _) = head(context.payload);
    let max = context.offer.max_ring;
    let packed = context.device.has(virtio::F_RING_PACKED);
    let (ring, vring, action) = select(context.device, u64::from(index))?;
    // Only a split ring's size must be a power of two (virtio 1.3 §2.7, §2.8.10.1).
    let possible = |size: &u16| (1..=max).contains(size) && (packed || size.is_power_of_two());
    let size = u16::try_from(num).ok().filter(possible);
    let Some(size) = size else { return Err(Refusal::RingSize { ring, num, max }) };
    configure(ring, vring)?;
    vring.num = size;
    Ok(Reaction::Act(action))
}

/// While the ring runs only the same addresses are accepted; frontends repeat them when they switch the
/// logging of its used ring.
pub(crate) fn set_vring_addr(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (payload, _) = head::<VringAddrPayload>(context.payload);
    let VringAddrPayload { index, flags, desc, used, avail, log } = payload;
    let packed = context.device.has(virtio::F_RING_PACKED);
    let (ring, vring, action) = select(context.device, u64::from(index))?;
    if flags & !FLAG_LOG != 0 {
        return Err(Refusal::RingFlags { ring, flags });
    }
    check_alignment(packed, ring, desc, avail, used)?;
    let log = (flags & FLAG_LOG != 0).then_some(log);
    let addr = VringAddr { desc, used, avail, log };
    if vring.is_running() && vring.addr.is_some_and(|old| VringAddr { log, ..old } == addr) {
        vring.addr = Some(addr);
        return Ok(Reaction::Act(action));
    }
    // A kick may come before the addresses; then there is nothing to stop yet.
    if vring.addr.is_some() {
        configure(ring, vring)?;
    }
    vring.addr = Some(addr);
    Ok(Reaction::Act(action))
}

/// virtio 1.3 §2.7; of a packed ring, avail and used are the event suppression areas of driver and device (§2.8).
pub(crate) fn check_alignment(
    packed: bool,
    ring: usize,
    desc: u64,
    avail: u64,
    used: u64,
) -> Result<(), Refusal> {
    let avail_align = if packed { 4 } else { 2 };
    for (part, addr, align) in
        [("descriptor", desc, 16), ("available", avail, avail_align), ("used", used, 4)]
    {
        if !addr.is_multiple_of(align) {
            return Err(Refusal::RingAlignment { ring, part, addr, align });
        }
    }
    Ok(())
}

pub(crate) fn set_vring_base(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (VringState { index, num: base }, _) = head(context.payload);
    let packed = context.device.has(virtio::F_RING_PACKED);
    let (ring, vring, action) = select(context.device, u64::from(index))?;
    // A packed ring's index has the wrap counter in bit 15, and the used index in the upper half. Its size may come later.
    let at = base & 0x7fff;
    let impossible = if packed {
        vring.num != 0 && at >= u32::from(vring.num)
    } else {
        base > u32::from(u16::MAX)
    };
    if impossible {
        return Err(Refusal::RingBase { ring, base });
    }
    configure(ring, vring)?;
    vring.base = base;
    Ok(Reaction::Act(action))
}

/// Stops the ring. The request's `num` should be 0 and is not looked at.
pub(crate) fn get_vring_base(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (VringState { index, .. }, _) = head(context.payload);
    let (_, vring, action) = select(context.device, u64::from(index))?;
    let Action::Vring(index) = action else { return Err(Refusal::Unsupported) };
    vring.stop();
    Ok(Reaction::Act(Action::StopVring(index)))
}

/// Starts the ring (no kick is waited for) or replaces its kick descriptor.
pub(crate) fn set_vring_kick(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (vring, action, fd) = notifier(context)?;
    vring.kick = fd;
    vring.started = true;
    Ok(Reaction::Act(action))
}

pub(crate) fn set_vring_call(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (vring, action, fd) = notifier(context)?;
    vring.call = fd;
    Ok(Reaction::Act(action))
}

pub(crate) fn set_vring_err(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (vring, action, fd) = notifier(context)?;
    vring.err = fd;
    Ok(Reaction::Act(action))
}

pub(crate) fn set_vring_enable(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (VringState { index, num: value }, _) = head(context.payload);
    let (ring, vring, action) = select(context.device, u64::from(index))?;
    vring.enabled = match value {
        0 => false,
        1 => true,
        _ => return Err(Refusal::RingEnable { ring, value }),
    };
    Ok(Reaction::Act(action))
}

/// The ring of an index, checked.
fn select(device: &mut Device, index: u64) -> Result<(usize, &mut Vring, Action), Refusal> {
    let rings = device.vrings.len();
    let missing = Refusal::RingIndex { index, rings };
    let Ok(short) = u16::try_from(index) else { return Err(missing) };
    let ring = usize::from(short);
    match device.vrings.get_mut(ring) {
        Some(vring) => Ok((ring, vring, Action::Vring(short))),
        None => Err(missing),
    }
}

/// Refuses to touch a running ring, ends the run of a disabled one.
fn configure(ring: usize, vring: &mut Vring) -> Result<(), Refusal> {
    if vring.is_running() {
        return Err(Refusal::RingRunning { ring });
    }
    vring.stop();
    Ok(())
}

type Notifier<'a> = (&'a mut Vring, Action, Option<Arc<OwnedFd>>);

/// Ring and descriptor of SET_VRING_KICK/CALL/ERR.
fn notifier<'a>(context: &'a mut Context<'_>) -> Result<Notifier<'a>, Refusal> {
    let value = u64_of(context.payload);
    if value & !(NO_FD | 0xff) != 0 {
        return Err(Refusal::ReservedBits(value));
    }
    let Context { device, fds, .. } = context;
    let expected = usize::from(value & NO_FD == 0);
    if fds.len() != expected {
        return Err(Refusal::FdCount { got: fds.len(), expected });
    }
    let (_, vring, action) = select(device, value & 0xff)?;
    Ok((vring, action, fds.pop().map(Arc::new)))
}
