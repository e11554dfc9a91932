//! Worker threads and ports.

pub mod offload;
pub mod port;
