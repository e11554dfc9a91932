//! A guest's rings where workers find them.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::ArcSwapOption;
use switch::Tci;
use virtio_ring::{DirtyLog, GuestMemory, Ring};
use wire::MacAddr;

pub(crate) use super::call::Call;
use super::quarantine::Quarantine;
use super::resume::ResumeRecords;
use super::rx_filter::{RxFilter, RxModes};
use crate::balance::Duty;
use crate::offload::OffloadSet;

/// A ring in use, with everything that a burst needs of it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) ring: Ring,
    pub(crate) memory: Arc<GuestMemory>,
    /// Where writes to buffers are noted while the guest is being migrated; the ring notes its own.
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// Signals the driver; `None` when it polls.
    pub(crate) call: Option<Call>,
    /// Started, but SET_VRING_ENABLE said no: frames of the guest are discarded, none go to it.
    pub(crate) enabled: bool,
    /// What the driver may leave undone in frames it sends (TX), or takes undone (RX).
    pub(crate) accept: OffloadSet,
    /// Frames may span several chains (RX).
    pub(crate) mergeable: bool,
    /// Bytes of the virtio header: 12, or 10 for a legacy driver without mergeable buffers.
    pub(crate) hdr_len: usize,
}

impl Live {
    /// What was noted in the log did not reach the frontend.
    #[inline]
    pub(crate) fn log_is_lost(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.is_poisoned())
    }
}

/// One ring's place. Whoever touches the ring holds the lock.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Queue(Mutex<Option<Live>>);

impl Queue {
    /// `None` while somebody else has it.
    #[inline(always)]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Option<Live>>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// What a worker needs to know to poll a TX ring and wait for it.
#[derive(Clone, Debug)]
pub(crate) struct TxSetup {
    pub(crate) queue: u16,
    /// Differs whenever the ring is another one: then it is polled first.
    pub(crate) generation: u64,
    /// `None`: the driver does not kick.
    pub(crate) kick: Option<Arc<OwnedFd>>,
}

/// The rings of one port.
#[derive(Debug)]
pub(crate) struct VhostPort {
    /// To the guest, by pair.
    rx: Box<[Queue]>,
    /// From the guest, by pair.
    tx: Box<[Queue]>,
    /// RX rings in use: the first ones.
    rx_active: AtomicU16,
    tx_setup: Mutex<Vec<TxSetup>>,
    /// Of the TX rings.
    duties: Arc<[Duty]>,
    /// A guest that the workers have to announce: its address, above that a one. 0 when there is none.
    announcement: AtomicU64,
    quarantine: Quarantine,
    /// The address in the device's configuration; zero when there is none.
    mac: MacAddr,
    /// What the guest wants of frames that go to several ports; `None`: all of them.
    rx_filter: ArcSwapOption<RxFilter>,
    pub(crate) resume: ResumeRecords,
}

impl VhostPort {
    pub(crate) fn new(pairs: u16, mac: MacAddr, resume: ResumeRecords) -> Self {
        let queues = || (0..pairs).map(|_| Queue::default()).collect();
        Self {
            rx: queues(),
            tx: queues(),
            rx_active: AtomicU16::new(0),
            tx_setup: Mutex::default(),
            duties: Duty::of(usize::from(pairs)),
            announcement: AtomicU64::new(0),
            quarantine: Quarantine::default(),
            mac,
            rx_filter: ArcSwapOption::empty(),
            resume,
        }
    }

    pub(crate) fn pairs(&self) -> usize {
        self.rx.len()
    }

    #[inline(always)]
    pub(crate) fn rx(&self, pair: usize) -> Option<&Queue> {
        self.rx.get(pair)
    }

    #[inline(always)]
    pub(crate) fn tx(&self, pair: usize) -> Option<&Queue> {
        self.tx.get(pair)
    }

    #[inline(always)]
    pub(crate) fn rx_active(&self) -> usize {
        usize::from(self.rx_active.load(Ordering::Relaxed))
    }

    pub(crate) fn set_rx_active(&self, pairs: u16) {
        self.rx_active.store(pairs, Ordering::Relaxed);
    }

    /// Whether the guest wants a frame for `to` that goes to several ports; see [`RxFilter::passes`].
    #[inline]
    pub(crate) fn wants(&self, to: MacAddr, tag: Option<Tci>) -> bool {
        self.rx_filter.load().as_ref().is_none_or(|filter| filter.passes(to, tag))
    }

    /// From here on the guest gets what its driver, with these features, wants.
    pub(super) fn set_rx_modes(&self, modes: Option<&RxModes>, features: u64) {
        let filter = modes.and_then(|modes| modes.filter(features, self.mac));
        self.rx_filter.store(filter.map(Arc::new));
    }

    pub(crate) fn tx_setup(&self) -> Vec<TxSetup> {
        self.tx_setup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A ring that is no more has no worker either.
    pub(crate) fn set_tx_setup(&self, setup: Vec<TxSetup>) {
        for (pair, duty) in self.duties.iter().enumerate() {
            if setup.iter().all(|setup| usize::from(setup.queue) != pair) {
                duty.withdraw();
            }
        }
        *self.tx_setup.lock().unwrap_or_else(PoisonError::into_inner) = setup;
    }

    pub(crate) fn duties(&self) -> &Arc<[Duty]> {
        &self.duties
    }

    /// Has the workers announce a guest at their next look at the configuration.
    pub(super) fn announce(&self, mac: MacAddr) {
        let [a, b, c, d, e, f] = mac.0;
        let word = u64::from_be_bytes([0, 1, a, b, c, d, e, f]);
        self.announcement.store(word, Ordering::Release);
    }

    /// For one worker.
    pub(crate) fn take_announcement(&self) -> Option<MacAddr> {
        address(self.announcement.swap(0, Ordering::Acquire))
    }

    /// Who is still to be announced.
    pub(super) fn announcement(&self) -> Option<MacAddr> {
        address(self.announcement.load(Ordering::Acquire))
    }

    /// A worker found a fault that takes the port out of service. True the first time; the vhost-user thread must be told.
    #[cold]
    pub(crate) fn quarantine(&self, reason: String) -> bool {
        self.quarantine.begin(reason)
    }

    #[inline(always)]
    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantine.is_on()
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.quarantine.reason()
    }

    /// The guest starts anew.
    pub(crate) fn release(&self) {
        self.quarantine.end();
    }
}

/// Of [`VhostPort::announcement`].
fn address(word: u64) -> Option<MacAddr> {
    let [_, some, a, b, c, d, e, f] = word.to_be_bytes();
    (some != 0).then_some(MacAddr([a, b, c, d, e, f]))
}
