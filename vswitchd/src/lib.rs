//! The netloom daemon: `control` (HTTP on a Unix socket) → `network` (the life of networks and
//! ports) → the datapath, `host` (namespaces, links, nftables) and `store` (state on disk).
//!
//! A library only so that its tests can reach the parts; the binary calls [`daemon::main`].

pub mod account;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod handover;
pub mod host;
pub mod log;
pub mod network;
pub mod selinux;
pub mod socket;
pub mod store;
