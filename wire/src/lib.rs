//! Frame formats: headers, checked views and builders. `no_std`, no I/O, no allocation.
//!
//! Every other crate reads and writes frames through this one. Headers are zerocopy structs in network byte order;
//! a `…View` is a borrowed packet whose lengths were checked once by `new_checked`, so that its accessors cannot
//! fail; builders write into a caller's buffer and say how much they wrote. Nothing here panics on input, keeps state,
//! or knows where a frame came from.

#![forbid(unsafe_code)]
#![no_std]

pub mod arp;
pub mod checksum;
mod error;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
mod mac;
pub mod tcp;
pub mod udp;
pub mod virtio_net;
pub mod vlan;

pub use error::{BufferTooSmall, Malformed};
pub use mac::{MacAddr, ParseMacError};
pub use virtio_net::VirtioNetHdr;
pub use vlan::{Tci, Vid};
