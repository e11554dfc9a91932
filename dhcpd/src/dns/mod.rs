//! The DNS server of a network: local names first, the rest forwarded and cached.

mod config;
pub(crate) mod names;

pub use config::{Config, Forwarder, Host, OwnAddresses, Srv, Txt};
