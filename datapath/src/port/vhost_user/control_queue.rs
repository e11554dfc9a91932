//! The control queue, where the frontend leaves it to us (User-mode Linux does and waits for the answer).
//!
//! Served by the vhost-user thread, not by workers. What the driver says of the frames that it wants holds before it is
//! answered (virtio 1.3 §5.1.6.5.2.2): see [`super::rx_filter`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use switch::Vid;
use virtio_ring::{ChainBuf, Cursor, Direction, DirtyLog, GuestMemory, Limit, Ring, RingError};
use wire::MacAddr;

use super::call::Call;
use super::rx_filter::{Addresses, MAX_ADDRESSES, RxModes};

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;
const MQ_PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERR: u8 = 1;

/// Requests that are answered in one go.
const BATCH: usize = 16;
/// Addresses in one table of MAC_TABLE_SET. More than are kept are understood, too many are not.
const MAX_TABLE: u32 = 4096;

/// One guest's control queue.
#[derive(Debug)]
pub struct ControlQueue {
    pub(super) ring: Ring,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) call: Option<Call>,
    pub(super) kick: Option<Arc<OwnedFd>>,
    chains: ChainBuf,
    max_pairs: u16,
    pub(super) pairs: u16,
    pub(super) modes: RxModes,
}

impl ControlQueue {
    /// For a device with `max_pairs` pairs of rings. Nothing is signalled and nothing waited for yet.
    #[must_use]
    pub fn new(ring: Ring, memory: Arc<GuestMemory>, max_pairs: u16) -> Self {
        let chains = ChainBuf::new();
        let modes = RxModes::default();
        Self { ring, memory, log: None, call: None, kick: None, chains, max_pairs, pairs: 1, modes }
    }

    pub(super) fn max_pairs(&self) -> u16 {
        self.max_pairs.max(1)
    }

    /// Pairs that the driver has chosen to use; one to begin with (virtio 1.3 §5.1.6.5.6).
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Answers what is there, then asks for a kick. True when there is more, which must be asked for again. Before the
    /// answers are seen, `apply` is called if the driver wants to receive something else than before.
    ///
    /// # Errors
    /// The ring is broken and must be taken out of service.
    pub fn serve(&mut self, apply: impl FnOnce(&Self)) -> Result<bool, RingError> {
        let limit = Limit { chains: BATCH, bytes: u64::MAX };
        let Self { ring, memory, log, chains, max_pairs, pairs, modes, .. } = self;
        let before = modes.clone();
        let taken = ring.gather(memory, Direction::Both, limit, chains)?;
        for chain in taken.as_slice() {
            let (request, answer) = taken.split(chain);
            let written = if chain.error.is_some() || answer.is_empty() {
                0
            } else {
                let ack = execute(&mut Cursor::new(request), *max_pairs, pairs, modes);
                let written = Cursor::new(answer).write(&[ack]);
                if let Some(log) = log {
                    log.mark_slices(memory, answer, written);
                }
                written
            };
            ring.complete(chain.head, u32::try_from(written).unwrap_or(0));
        }
        if self.modes != before {
            apply(self);
        }
        if self.memory.is_poisoned() {
            self.ring.rollback();
            return Ok(false); // The workers find it too.
        }
        if self.ring.publish()
            && let Some(call) = &self.call
        {
            call.signal();
        }
        self.ring.arm()
    }
}

/// One request: class, command, data.
fn execute(
    request: &mut Cursor<'_, '_>,
    max_pairs: u16,
    pairs: &mut u16,
    modes: &mut RxModes,
) -> u8 {
    let Some(head) = take(request) else { return ERR };
    let done = match head {
        [CLASS_RX, command] => take(request).and_then(|[on]| {
            let mode = match command {
                0 => &mut modes.switches.promiscuous,
                1 => &mut modes.switches.all_multicast,
                2 => &mut modes.switches.all_unicast,
                3 => &mut modes.switches.no_multicast,
                4 => &mut modes.switches.no_unicast,
                5 => &mut modes.switches.no_broadcast,
                _ => return None,
            };
            *mode = on != 0;
            Some(())
        }),
        [CLASS_MAC, MAC_TABLE_SET] => addresses(request).zip(addresses(request)).map(|tables| {
            (modes.unicast, modes.multicast) = tables;
        }),
        [CLASS_MAC, MAC_ADDR_SET] => {
            let mac = take(request).map(MacAddr).filter(|mac| mac.is_station());
            mac.map(|mac| modes.mac = Some(mac))
        }
        [CLASS_VLAN, command @ (VLAN_ADD | VLAN_DEL)] => {
            let vlan = take(request).and_then(|vlan| Vid::new(u16::from_le_bytes(vlan)));
            vlan.map(|vlan| match command {
                VLAN_ADD => modes.vlans.insert(vlan),
                _ => modes.vlans.remove(vlan),
            })
        }
        [CLASS_ANNOUNCE, 0] => Some(()),
        [CLASS_MQ, MQ_PAIRS_SET] => {
            let wanted = take(request).map(u16::from_le_bytes);
            wanted.filter(|wanted| (1..=max_pairs).contains(wanted)).map(|wanted| *pairs = wanted)
        }
        _ => None,
    };
    if done.is_some() { OK } else { ERR }
}

/// `None` when there are fewer bytes.
fn take<const N: usize>(request: &mut Cursor<'_, '_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (request.read(&mut bytes) == N).then_some(bytes)
}

/// A table of addresses: their number, then six bytes each. `None` when it is not complete.
fn addresses(request: &mut Cursor<'_, '_>) -> Option<Addresses> {
    let count = u32::from_le_bytes(take(request)?);
    if count > MAX_TABLE {
        return None;
    }
    let count = count as usize;
    if count > MAX_ADDRESSES {
        return (request.skip(count * 6) == count * 6).then_some(None);
    }
    (0..count).map(|_| take(request).map(MacAddr)).collect::<Option<Vec<_>>>().map(Some)
}
