//! What a worker can take frames from and give frames to.

pub mod gather;
pub mod packet;
pub mod tap;
