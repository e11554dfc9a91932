//! Dirty logging, which a frontend needs to migrate a running guest. Only numbers are checked here; who maps the log checks its
//! file.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Context, Reaction, head};
use crate::device::{Device, Log};
use crate::error::Refusal;
use crate::features::{protocol, virtio};
use crate::message::LogPayload;
use crate::session::Action;

/// Covers 256 TiB, as much as processors address.
const MAX_LOG: u64 = 8 << 30;

/// A new log replaces the one before; the frontend may drop the old one when it is answered. QEMU and rust-vmm wait
/// for the answer whatever REPLY_ACK says, the latter for the message's own payload.
pub(crate) fn set_log_base(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (payload, _) = head::<LogPayload>(context.payload);
    let LogPayload { size, offset } = payload;
    let Some(fd) = context.fds.pop() else {
        return Err(Refusal::FdCount { got: 0, expected: 1 });
    };
    // File sizes are signed.
    let fits = offset.checked_add(size).is_some_and(|end| end <= i64::MAX.unsigned_abs());
    if size == 0 || size > MAX_LOG || !fits {
        return Err(Refusal::LogSize { size, offset });
    }
    let log = Log { size, offset, fd: Arc::new(fd) };
    covers(&log, context.device)?;
    context.device.log = Some(log);
    Ok(Reaction::ActThenReply(Action::Log, payload.as_bytes().to_vec()))
}

/// The frontend would be told when the log changes. None needs it: they read the log at their own pace, and no backend
/// that is in use says it. The descriptor is closed.
pub(crate) fn set_log_fd(_: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::Done)
}

/// Whether logging may be switched as these features say.
///
/// Once rings are started there must be a log. Before that it may still come: QEMU names the log last when a device starts
/// in the middle of a migration.
pub(super) fn switch(device: &mut Device, features: u64) -> Result<(), Refusal> {
    if features & virtio::F_LOG_ALL == 0 {
        if device.is_logging() {
            device.log = None;
        }
        return Ok(());
    }
    if !device.has_protocol(protocol::LOG_SHMFD) {
        return Err(Refusal::NotNegotiated(protocol::LOG_SHMFD));
    }
    let started = device.vrings.iter().position(|vring| vring.started);
    match (&device.log, started) {
        (Some(log), _) => covers(log, device),
        (None, Some(ring)) if !device.is_logging() => Err(Refusal::NoLog { ring }),
        (None, _) => Ok(()),
    }
}

/// Memory that has changed must be covered by a log that is in use.
pub(crate) fn check(device: &Device) -> Result<(), Refusal> {
    match &device.log {
        Some(log) if device.is_logging() => covers(log, device),
        _ => Ok(()),
    }
}

fn covers(log: &Log, device: &Device) -> Result<(), Refusal> {
    let (end, needed) = (log.end(), device.guest_end());
    if end < needed { Err(Refusal::LogTooSmall { end, needed }) } else { Ok(()) }
}
