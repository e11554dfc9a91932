//! A worker: polls rings and descriptors, moves frames, sleeps when there is nothing to do.
//!
//! One thread each. Between bursts a worker holds nothing, looks whether the configuration has changed
//! ([`crate::epoch`]), and goes on with the next source. It never waits for anybody: locks are tried, descriptors are
//! non-blocking.

mod batch;
mod burst;
mod flow;
mod outputs;
mod patience;
mod poller;
mod shape;
mod source;
mod to_internal;
mod to_kernel;
mod to_vhost;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use uuid::Uuid;

use crate::epoch::{Epochs, WakeFd};
use crate::port::kernel::KernelPort;
use crate::port::vhost_user::VhostPort;
use crate::snapshot::{Current, Port, Snapshot};

pub(crate) use poller::Poller;
use to_vhost::Fault;

/// What workers and the control plane share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) current: Current,
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) stop: AtomicBool,
    /// To the vhost-user thread, which is woken for it.
    pub(crate) notices: Sender<Notice>,
    pub(crate) notify: Arc<WakeFd>,
    /// How long a ring is polled after its last frame.
    pub(crate) spin: Duration,
}

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
