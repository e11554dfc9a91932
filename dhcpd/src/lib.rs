//! DHCP and DNS for virtual networks.
//!
//! Engines are sans-I/O: they take bytes and a time and return what to do ([`dhcp4`]).
//! [`Service`] runs them for one network: vswitchd gives it the switch's internal port, the
//! binary `netloom-dhcpd` a packet socket.

pub mod dhcp4;
mod dhcp_thread;
pub mod dns;
mod event;
mod frame_io;
pub mod lease;
pub mod name;
mod service;
mod sys;
mod time;

pub use event::{LeaseEvent, Removal};
pub use frame_io::{Egress, FrameIo, Ingress, Waker};
pub use service::{Service, ServiceConfig, ServiceError};
pub use time::Now;
