//! The running service over a queue in place of a network, and the lease file under failures.

#[path = "../dhcp4/common.rs"]
#[expect(dead_code, reason = "shared with the engine's tests, which use all of it")]
mod common;
#[path = "../support/mod.rs"]
mod support;

mod durable;
mod io;
mod kill;
mod threads;
