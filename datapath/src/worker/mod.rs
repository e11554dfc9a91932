//! A worker: polls rings and descriptors, moves frames, sleeps when there is nothing to do.
//!
//! One thread each. Between bursts a worker holds nothing, looks whether the configuration has changed
//! ([`crate::epoch`]), and goes on with the next source. It never waits for anybody: locks are tried, descriptors are
//! non-blocking.

mod adopt;
mod batch;
mod burst;
mod flow;
mod meter;
mod outputs;
mod patience;
mod poller;
mod shape;
mod source;
mod to_internal;
mod to_kernel;
mod to_vhost;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use switch::PortIndex;
use uuid::Uuid;

use crate::epoch::Epochs;
use crate::port::kernel::KernelPort;
use crate::port::vhost_user::VhostPort;
use crate::port::vhost_user::queue::Call;
use crate::snapshot::{Current, Port, Snapshot};
use crate::wake::WakeFd;

#[cfg(feature = "hot-path")]
pub(crate) use burst::Buffers;
pub(crate) use poller::Poller;
use to_vhost::Fault;

/// What workers and the control plane share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) current: Current,
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) stop: AtomicBool,
    /// Before the vhost-user thread: it frees workers that hang in a signal.
    pub(crate) stop_workers: AtomicBool,
    /// To the vhost-user thread, which is woken for it.
    pub(crate) notices: Sender<Notice>,
    pub(crate) notify: Arc<WakeFd>,
    /// How long a ring is polled after its last frame.
    pub(crate) spin: Duration,
    /// What each worker writes a signal to; see [`Shared::signalling`].
    pub(crate) signals: Box<[Signal]>,
}

/// A worker's signal in progress: the port's index + 1 in the low bits, 0 when there is none, and above them a
/// number that differs between signals.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Signal(AtomicU64);

/// Something that a worker found.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The port was quarantined; it knows why.
    Fault(Uuid),
    /// The device behind the port was deleted.
    Gone(Uuid),
}

impl Shared {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn workers_stopped(&self) -> bool {
        self.stop_workers.load(Ordering::Relaxed)
    }

    /// The signal that each worker is writing, and its port.
    pub(crate) fn signalling(&self) -> impl Iterator<Item = (u64, Option<PortIndex>)> {
        self.signals.iter().map(|signal| {
            let signal = signal.0.load(Ordering::Relaxed);
            let port = u16::try_from(signal & 0xffff).ok().and_then(|port| port.checked_sub(1));
            (signal, port.map(PortIndex))
        })
    }

    #[cold]
    fn notice(&self, notice: Notice) {
        // The receiver is gone only when the datapath stops.
        let _ = self.notices.send(notice);
        self.notify.wake();
    }
}

/// What a burst needs to know.
#[derive(Clone, Copy)]
pub(crate) struct Context<'s> {
    pub(crate) worker: usize,
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) shared: &'s Shared,
    pub(crate) now: switch::Seconds,
}

impl Context<'_> {
    /// Tells a driver to look. A frontend that makes the descriptor block is found out by the vhost-user thread.
    #[inline]
    fn signal(&self, port: &Port, call: &Call) {
        let signal = &self.shared.signals[self.worker].0;
        let number = (signal.load(Ordering::Relaxed) >> 16) + 1;
        signal.store(number << 16 | (u64::from(port.index.0) + 1), Ordering::Relaxed);
        call.signal();
        signal.store(number << 16, Ordering::Relaxed);
    }

    #[cold]
    fn quarantine(&self, port: &Port, vhost: &VhostPort, fault: &Fault) {
        if vhost.quarantine(fault.to_string()) {
            self.shared.notice(Notice::Fault(port.id));
        }
    }

    #[cold]
    fn gone(&self, port: &Port, kernel: &KernelPort) {
        if kernel.mark_gone() {
            self.shared.notice(Notice::Gone(port.id));
        }
    }
}
