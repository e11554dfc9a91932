//! The network model: libvirt network XML in, validated types, libvirt's canonical XML out.
//!
//! The daemon and the tools call [`parse`] on what users wrote and [`to_xml`] for what they read
//! and for what is stored. No I/O, no clock, no randomness: a missing UUID, MAC or bridge name
//! stays missing until the daemon fills it in.

#![forbid(unsafe_code)]

mod error;
pub mod model;
mod position;
mod read;
mod scan;
mod syntax;
mod write;

pub use error::{Error, ErrorKind, Warning};
pub use read::{Parsed, parse};
pub use scan::MAX_DOCUMENT;
pub use write::to_xml;
