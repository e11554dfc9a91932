//! What a worker can take frames from and give frames to.

pub mod gather;
pub mod internal;
pub(crate) mod kernel;
pub mod packet;
pub mod tap;
pub(crate) mod vhost_user;

pub use vhost_user::{ControlQueue, MAX_PAIRS};
