//! The revision of the state and the number of the next event. Both only ever grow, over
//! restarts and crashes too, so that an old ETag or an old `since` never names something else.
//!
//! Numbers are reserved on disk in blocks: a restart skips what was left of the block.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, atomic};

const BLOCK: u64 = 1024;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Reserved {
    revision: u64,
    event: u64,
}

/// Hands out revisions and event numbers.
#[derive(Debug)]
pub struct Counters {
    path: PathBuf,
    reserved: Reserved,
    revision: u64,
    event: u64,
}

impl Store {
    /// # Errors
    /// When the reservation cannot be written.
    pub fn counters(&self) -> Result<Counters, StoreError> {
        let path = self.instance().state_dir().join("counters.json");
        let stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                // Seconds since 1970 are more than any number that was handed out before.
                tracing::warn!(path = %path.display(), %error, "counters unreadable, restarting them");
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Reserved { revision: now.as_secs(), event: now.as_secs() }
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Reserved { revision: 0, event: 0 }
            }
            Err(source) => return Err(StoreError::Io { what: "read", path, source }),
        };
        let mut counters =
            Counters { path, reserved: stored, revision: stored.revision, event: stored.event };
        counters.reserve()?;
        Ok(counters)
    }
}

impl Counters {
    fn reserve(&mut self) -> Result<(), StoreError> {
        let reserved = Reserved { revision: self.revision + BLOCK, event: self.event + BLOCK };
        let text = serde_json::json!(reserved).to_string();
        atomic::write(&self.path, text.as_bytes(), 0o600)
            .map_err(StoreError::io("write", &self.path))?;
        self.reserved = reserved;
        Ok(())
    }

    fn reserve_if_used_up(&mut self) {
        if (self.revision >= self.reserved.revision || self.event >= self.reserved.event)
            && let Err(error) = self.reserve()
        {
            // The numbers stay unique in this process; only a crash could repeat some.
            tracing::error!(%error, "cannot reserve revision and event numbers");
        }
    }

    /// The current revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Number of the last event.
    #[must_use]
    pub fn event(&self) -> u64 {
        self.event
    }

    /// The state has changed.
    pub fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.reserve_if_used_up();
        self.revision
    }

    pub fn next_event(&mut self) -> u64 {
        self.event += 1;
        self.reserve_if_used_up();
        self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_over_restarts_and_over_blocks() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let instance = api::Instance::new("t", dir.path()).expect("instance");
        let store = Store::open(&instance).expect("store");
        let mut first = store.counters().expect("counters");
        let mut last = 0;
        for _ in 0..(BLOCK + 10) {
            let next = first.next_event();
            assert!(next > last);
            last = next;
        }
        drop(first);
        let mut second = store.counters().expect("counters again");
        assert!(second.next_event() > last);
    }
}
