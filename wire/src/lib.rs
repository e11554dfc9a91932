//! Frame formats: headers, checked views and builders. `no_std`, no I/O, no allocation.
#![no_std]

mod mac;

pub use mac::{MacAddr, ParseMacError};
