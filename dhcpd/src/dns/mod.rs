//! The DNS server of a network: local names first, the rest forwarded and cached.
//!
//! `listen` owns the sockets and the thread; `query` checks what comes in, `server` decides,
//! `names` and `local` answer what the network knows by itself, `cache`, `upstream` and `forward`
//! the rest, `respond` writes answers. Nothing a client or an upstream server sends ends more
//! than its own exchange.

mod cache;
mod config;
mod counters;
mod forward;
mod inherited;
mod listen;
mod local;
pub(crate) mod names;
mod query;
mod respond;
mod server;
mod upstream;

pub use config::{Config, Forwarder, Host, OwnAddresses, Srv, Txt};
pub use counters::{Counters, DropReason};
pub use inherited::InheritedSockets;
pub(crate) use listen::Dns;
pub use names::{Names, StaticNames};
pub use query::Query;
pub use server::{Decision, Server};
