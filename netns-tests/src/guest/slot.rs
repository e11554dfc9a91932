//! At most two emulated guests at once on the machine, over all runs: a file lock per slot.

use std::fs::{File, OpenOptions};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::wait;

#[derive(Debug)]
pub(super) struct Slot {
    _lock: File,
}

impl Slot {
    pub(super) fn take() -> anyhow::Result<Self> {
        std::fs::create_dir_all("/tmp/netloom-lab")?;
        wait::some("one of two slots for emulated guests", Duration::from_secs(600), || {
            (0..2).find_map(|n| {
                let lock = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(format!("/tmp/netloom-lab/slot.{n}"))
                    .ok()?;
                flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
                Some(Self { _lock: lock })
            })
        })
    }
}
