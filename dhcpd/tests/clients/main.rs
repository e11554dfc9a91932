//! `netloom-dhcpd` with the clients that people have: udhcpc, dhclient, dig; and under `kill -9`.

#[path = "../dhcp4/common.rs"]
#[expect(dead_code, reason = "shared with the engine's tests, which use all of it")]
mod common;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with tests that use all of it")]
mod support;

mod kill;
mod lab;
mod programs;
