//! Worker threads and ports.

pub mod port;
