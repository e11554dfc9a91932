//! Waiting for whoever has a ring, another worker's burst or a frontend's change: boundedly.

use std::time::Duration;

/// Tries of some 10 ns each.
const SPINS: usize = 500;
/// Turns given to other threads afterwards: the holder may have been put aside for one on this processor.
const YIELDS: usize = 50;
/// Naps after that: the holder may have been put aside on another processor, for a time slice.
const NAPS: usize = 40;
const NAP: Duration = Duration::from_micros(50);

/// Asks again and again; `None` when that has been enough.
#[inline]
pub(crate) fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    if let Some(answer) = ask() {
        return Some(answer);
    }
    contended(ask)
}

#[cold]
fn contended<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..SPINS {
        std::hint::spin_loop();
        if let Some(answer) = ask() {
            return Some(answer);
        }
    }
    for _ in 0..YIELDS {
        std::thread::yield_now();
        if let Some(answer) = ask() {
            return Some(answer);
        }
    }
    for _ in 0..NAPS {
        std::thread::sleep(NAP);
        if let Some(answer) = ask() {
            return Some(answer);
        }
    }
    None
}
