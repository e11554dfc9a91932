//! Device side of virtqueues on raw guest memory: the one place of the workspace that touches it.
//!
//! Called by the datapath's workers (rings) and its vhost-user thread (mapping memory, building rings). Split rings
//! (virtio 1.3 §2.7) and packed ones (§2.8) behind one type, with indirect descriptors, in-order use and both forms of
//! notification suppression.
//!
//! The driver on the other side is hostile and runs at the same time. What that means here:
//!
//! - Guest memory is never a Rust reference. A [`GuestSlice`] is an address range that was checked as a whole against
//!   the mapped regions and borrows the [`GuestMemory`], so it cannot outlive the mapping. Bytes move only through the
//!   copy routines of `copy`, which the compiler cannot see into: it can neither drop a copy nor read its source twice.
//! - Every descriptor is read once into private memory and validated there. Chains are bounded by the ring's size and by
//!   [`MAX_CHAIN`]. A bad chain is reported with its head, so that the caller can return it and count it; an avail
//!   index out of range or a head that is no descriptor is a [`RingError`] that takes the ring out of service.
//! - A frontend may shrink the file behind its memory. [`MappedRegion::map`] installs a SIGBUS handler that puts
//!   anonymous memory in the region's place and marks it; [`GuestMemory::is_poisoned`] must be asked before
//!   anything that was read from it is published.
//!
//! Used entries are collected in private memory and published with one store that the driver waits for ([`Ring::publish`]), in the order of
//! [`Ring::complete`]. Nothing here allocates, locks or makes a system call per frame.

mod chain;
mod copy;
mod cursor;
mod descriptor;
mod journal;
mod log;
mod mapping;
mod memory;
mod packed;
mod poison;
mod position;
mod region;
mod ring;
mod slice;
mod split;

pub use chain::{Chain, ChainBuf, ChainError, Chains, Direction, MAX_BURST, MAX_CHAIN};
pub use cursor::Cursor;
pub use journal::{ResumeFile, ResumeRecord};
pub use log::{DirtyLog, LOG_PAGE};
pub use mapping::MapError;
pub use memory::GuestMemory;
pub use region::{MappedRegion, MemoryError, RegionSpec};
pub use ring::{Limit, Ring, RingConfig, RingError};
pub use slice::GuestSlice;
