//! vhost-user frontends of the tests: a small virtio-net driver ([`Nic`]), a loss probe between two
//! of them ([`Probe`]), a hostile one ([`hostile`]) and a load generator ([`load`]).
//!
//! They stand for guests where a whole kernel would be too slow or too well-behaved. The protocol side
//! is rust-vmm's `vhost` crate, so that the switch's own protocol code is never on both ends; the
//! hostile one writes its own bytes.
//!
//! Guest memory is a memfd of this process ([`Memory`]), mapped for guest addresses from
//! [`GUEST_BASE`] on: neither 0 nor the user address, so that a backend that mixes up the two address
//! spaces is found out.

pub mod hostile;
pub mod load;
mod memory;
mod nic;
pub mod placement;
mod probe;
mod ring;

pub use memory::{GUEST_BASE, Memory};
pub use nic::{Nic, Options, Received};
pub use probe::{Probe, Report};
pub use ring::{Gauge, Piece, Ring, RingLayout};
