//! The DNS server over real sockets, each test in a network namespace of its own.

#[path = "../dhcp4/common.rs"]
#[expect(dead_code, reason = "shared with the engine's tests, which use all of it")]
mod common;
#[path = "../service/io.rs"]
mod io;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with tests that use all of it")]
mod support;

mod forwarding;
mod lab;
mod local;
