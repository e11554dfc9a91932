//! What threads meet at, in one place: the models (crate `models`) put loom's versions here.

pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

/// These are the real ones, whose sizes matter.
pub(crate) const MODELLED: bool = false;
