//! Who is disturbed by what others do?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Nic, frame, introduce};

/// A steady stream between two cards that must lose nothing.
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Probe {
    pub(crate) fn start(mut from: Nic, mut to: Nic) -> Self {
        introduce(&mut [&mut from, &mut to]);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seed = 0;
            while !stopped.load(Ordering::Relaxed) || seed < 100 {
                let sent = frame(to.mac, from.mac, 200, seed);
                from.send(&sent);
                // Floods of the others pass by.
                let got = loop {
                    let (_, got) = to.recv().unwrap_or_else(|| panic!("probe {seed} is lost"));
                    if got[6..12] == from.mac.0 {
                        break got;
                    }
                };
                assert_eq!(got, sent);
                seed += 1;
                std::thread::sleep(Duration::from_micros(300));
            }
            seed
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.take().unwrap().join().expect("the probe lost nothing");
        assert!(sent >= 100);
    }
}
