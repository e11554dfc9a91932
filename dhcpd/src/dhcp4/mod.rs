//! The DHCPv4 server (RFC 2131, 2132): frames and a time in, frames, lease changes and events out.
//!
//! Called by the service's DHCP thread; knows no socket, file or clock. [`Engine`] decides,
//! `message` reads what clients send, `reply` writes answers, `table` knows who has which address
//! and `pool` which ones are free.

mod config;
mod convert;
mod drop;
mod engine;
mod hosts;
mod message;
mod pool;
mod reply;
mod table;

pub use config::{
    Boot, ClientRoute, Config, ConfigError, LeaseTime, MAX_ADDRESSES, Range, StaticHost,
};
pub use drop::{Counters, DropReason};
pub use engine::{Actions, Engine, IngressId, Reply};
