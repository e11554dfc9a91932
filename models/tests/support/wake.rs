//! An eventfd as loom sees it: a count that ends one wait.

use loom::sync::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) struct WakeFd {
    written: Mutex<bool>,
    changed: Condvar,
}

impl WakeFd {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { written: Mutex::new(false), changed: Condvar::new() })
    }

    pub(crate) fn wake(&self) {
        *self.written.lock().expect("a lock of the model") = true;
        self.changed.notify_one();
    }

    /// What epoll or poll do: returns at once when it was written since the last time.
    pub(crate) fn wait(&self) {
        let mut written = self.written.lock().expect("a lock of the model");
        while !*written {
            written = self.changed.wait(written).expect("a lock of the model");
        }
        *written = false;
    }
}
