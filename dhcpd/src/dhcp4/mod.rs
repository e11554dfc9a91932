//! The DHCPv4 server (RFC 2131, 2132): frames and a time in, frames, lease changes and events out.
//!
//! Called by the service's DHCP thread; knows no socket, file or clock.

mod config;

pub use config::{
    Boot, ClientRoute, Config, ConfigError, LeaseTime, MAX_ADDRESSES, Range, StaticHost,
};
