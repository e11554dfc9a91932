//! The DHCPv4 engine on a fake clock: what clients send and what they get.

mod common;
mod exchange;
mod hostile;
mod hosts;
mod options;
mod properties;
