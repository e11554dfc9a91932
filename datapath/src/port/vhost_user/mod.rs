//! Guests over vhost-user.
//!
//! One thread ([`thread`]) holds every listener and connection, none of which it waits for ([`dialer`] connects to VMMs that listen): it feeds each connection's protocol
//! state machine (`vhost_user::Session`), maps the guest's memory, and puts finished rings into the port's queues ([`queue`]), where
//! the workers find them. A ring is changed only under its queue's lock, which a worker holds for the length of a burst at most;
//! between bursts nothing is in flight. So when a message that stops a ring or replaces memory is answered, no worker touches the
//! old one. When a lock cannot be had at once the reply stays pending and the thread goes on with other ports.

pub(crate) mod announce;
mod arrivals;
mod call;
mod config_space;
mod connection;
mod control_queue;
mod device;
mod dialer;
mod handover;
mod logging;
mod origin;
mod quarantine;
pub(crate) mod queue;
pub(crate) mod resume;
pub(crate) mod rx_filter;
pub(crate) mod thread;

pub(crate) use config_space::offer;
pub use control_queue::ControlQueue;
pub(crate) use queue::VhostPort;

/// Queue pairs that a port can offer.
pub const MAX_PAIRS: u16 = 16;
/// The largest ring that is accepted, in descriptors: what virtio allows.
pub(crate) const MAX_RING: u16 = 32_768;
