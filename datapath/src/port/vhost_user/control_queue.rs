//! The control queue, where the frontend leaves it to us (User-mode Linux does and waits for the answer).
//!
//! Served by the vhost-user thread, not by workers. Receive filters are accepted and not applied: a device may
//! pass more than was asked for (virtio 1.3 §5.1.6.5.1).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_ring::{ChainBuf, Cursor, Direction, DirtyLog, GuestMemory, Limit, Ring, RingError};

use super::call::Call;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const MQ_PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERR: u8 = 1;

/// Requests that are answered in one go.
const BATCH: usize = 16;
/// Addresses in one table of MAC_TABLE_SET; Linux overflows to "all" far below.
const MAX_ADDRESSES: u32 = 4096;

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
}

impl ControlQueue {
    /// For a device with `max_pairs` pairs of rings. Nothing is signalled and nothing waited for yet.
    #[must_use]
    pub fn new(ring: Ring, memory: Arc<GuestMemory>, max_pairs: u16) -> Self {
        let chains = ChainBuf::new();
        Self { ring, memory, log: None, call: None, kick: None, chains, max_pairs, pairs: 1 }
    }

    pub(super) fn max_pairs(&self) -> u16 {
        self.max_pairs.max(1)
    }

    /// Pairs that the driver has chosen to use; one to begin with (virtio 1.3 §5.1.6.5.6).
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Answers what is there, then asks for a kick. True when there is more, which must be asked for again.
    ///
    /// # Errors
    /// The ring is broken and must be taken out of service.
    pub fn serve(&mut self) -> Result<bool, RingError> {
        let limit = Limit { chains: BATCH, bytes: u64::MAX };
        let Self { ring, memory, log, chains, max_pairs, pairs, .. } = self;
        let taken = ring.gather(memory, Direction::Both, limit, chains)?;
        for chain in taken.as_slice() {
            let (request, answer) = taken.split(chain);
            let written = if chain.error.is_some() || answer.is_empty() {
                0
            } else {
                let ack = execute(&mut Cursor::new(request), *max_pairs, pairs);
                let written = Cursor::new(answer).write(&[ack]);
                if let Some(log) = log {
                    log.mark_slices(memory, answer, written);
                }
                written
            };
            ring.complete(chain.head, u32::try_from(written).unwrap_or(0));
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
fn execute(request: &mut Cursor<'_, '_>, max_pairs: u16, pairs: &mut u16) -> u8 {
    let mut head = [0; 2];
    if request.read(&mut head) != head.len() {
        return ERR;
    }
    let done = match head {
        // All of them switch one thing on or off.
        [CLASS_RX, 0..=5] => request.read(&mut [0]) == 1,
        [CLASS_MAC, MAC_TABLE_SET] => addresses(request) && addresses(request),
        [CLASS_MAC, MAC_ADDR_SET] => request.read(&mut [0; 6]) == 6,
        [CLASS_VLAN, 0 | 1] => request.read(&mut [0; 2]) == 2,
        [CLASS_ANNOUNCE, 0] => true,
        [CLASS_MQ, MQ_PAIRS_SET] => {
            let mut wanted = [0; 2];
            let complete = request.read(&mut wanted) == wanted.len();
            let wanted = u16::from_le_bytes(wanted);
            let possible = complete && (1..=max_pairs).contains(&wanted);
            if possible {
                *pairs = wanted;
            }
            possible
        }
        _ => false,
    };
    if done { OK } else { ERR }
}

/// A table of addresses: their number, then six bytes each.
fn addresses(request: &mut Cursor<'_, '_>) -> bool {
    let mut count = [0; 4];
    if request.read(&mut count) != count.len() {
        return false;
    }
    let count = u32::from_le_bytes(count);
    let bytes = count as usize * 6;
    count <= MAX_ADDRESSES && request.skip(bytes) == bytes
}
