//! An engine of the daemon as a port: frames that the bridge traps, and the engine's answers.
//!
//! Both ways are bounded queues without locks. The engine's thread sleeps on a descriptor; the workers wake it when the
//! queue was empty, and it wakes the worker that serves it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use crate::epoch::Epochs;
use crate::sleeper::Sleeper;

/// A frame for the engine, as it came from the guest (a VLAN tag included), with complete checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The port that it came from.
    pub port: Uuid,
    /// The VLAN that it belongs to.
    pub vlan: u16,
    pub frame: Vec<u8>,
}

/// A frame of the engine, to leave on one port as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    pub port: Uuid,
    /// For the engine's own use; nothing is done with it.
    pub vlan: u16,
    pub frame: Vec<u8>,
}

/// The port was removed or the datapath has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the port was removed")]
pub struct Closed;

/// Why a frame was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the queue to the switch is full")]
    Full(Egress),
    #[error("the port was removed")]
    Closed,
}

/// What both sides share.
#[derive(Debug)]
pub(crate) struct Internal {
    to_engine: ArrayQueue<Ingress>,
    to_switch: ArrayQueue<Egress>,
    engine: Sleeper,
    closed: AtomicBool,
    /// Frames that the workers have to look for.
    pending: AtomicUsize,
    switch: OnceLock<Arc<Epochs>>,
}

/// The datapath's side, for [`PortIo::Internal`](crate::PortIo::Internal).
#[derive(Debug)]
pub struct InternalPort(pub(crate) Arc<Internal>);

/// The engine's side.
#[derive(Debug)]
pub struct InternalHandle(Arc<Internal>);

/// Wakes a [`InternalHandle::recv`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Internal>);

/// The worker that takes the engines' frames.
pub(crate) const WORKER: usize = 0;

/// An internal port, with room for `capacity` frames each way.
///
/// # Panics
/// When the process is out of file descriptors.
#[must_use]
pub fn internal(capacity: usize) -> (InternalPort, InternalHandle) {
    let shared = Arc::new(Internal {
        to_engine: ArrayQueue::new(capacity.max(1)),
        to_switch: ArrayQueue::new(capacity.max(1)),
        engine: Sleeper::new().expect("an eventfd can be made"),
        closed: AtomicBool::new(false),
        pending: AtomicUsize::new(0),
        switch: OnceLock::new(),
    });
    (InternalPort(Arc::clone(&shared)), InternalHandle(shared))
}

impl Internal {
    /// From now on frames of the engine wake the workers.
    pub(crate) fn attach(&self, epochs: Arc<Epochs>) {
        let _ = self.switch.set(epochs);
    }

    /// For workers. False when the engine has not kept up.
    pub(crate) fn punt(&self, ingress: Ingress) -> bool {
        if self.closed.load(Ordering::Relaxed) || self.to_engine.push(ingress).is_err() {
            return false;
        }
        self.engine.given();
        true
    }

    #[inline]
    pub(crate) fn has_frames(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// For the one worker that serves engines.
    pub(crate) fn take(&self) -> Option<Egress> {
        let egress = self.to_switch.pop()?;
        self.pending.fetch_sub(1, Ordering::AcqRel);
        Some(egress)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.engine.wake();
    }
}

impl InternalHandle {
    /// The engine's side of a port whose engine has not been there yet.
    pub(crate) fn of(internal: &Arc<Internal>) -> Self {
        Self(Arc::clone(internal))
    }

    /// Waits for frames and appends them to `out`. Returns without any when the time is over or a [`Waker`] was used.
    ///
    /// # Errors
    /// [`Closed`] when the port was removed and nothing is left.
    pub fn recv(
        &mut self,
        out: &mut Vec<Ingress>,
        timeout: Option<Duration>,
    ) -> Result<(), Closed> {
        let internal = &*self.0;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let before = out.len();
        loop {
            out.extend(std::iter::from_fn(|| internal.to_engine.pop()));
            if out.len() > before {
                return Ok(());
            }
            if internal.closed.load(Ordering::SeqCst) {
                return Err(Closed);
            }
            let ready = || !internal.to_engine.is_empty() || internal.closed.load(Ordering::SeqCst);
            let woken = internal.engine.sleep_unless(ready, |wake| {
                let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
                // Longer than anyone waits.
                let left = left.map(|left| {
                    Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
                });
                let mut fds = [PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
                // An interrupted wait is a wake-up without frames.
                let woken = poll(&mut fds, left.as_ref()).is_ok_and(|ready| ready != 0);
                wake.clear();
                woken
            });
            if !internal.to_engine.is_empty() {
                continue;
            }
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if (woken || late) && !internal.closed.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Hands a frame to the switch.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, egress: Egress) -> Result<(), SendError> {
        let internal = &*self.0;
        if internal.closed.load(Ordering::Relaxed) {
            return Err(SendError::Closed);
        }
        internal.to_switch.push(egress).map_err(SendError::Full)?;
        if internal.pending.fetch_add(1, Ordering::AcqRel) == 0
            && let Some(epochs) = internal.switch.get()
        {
            epochs.wake(WORKER);
        }
        Ok(())
    }

    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }
}

impl Waker {
    pub fn wake(&self) {
        self.0.engine.wake();
    }
}
