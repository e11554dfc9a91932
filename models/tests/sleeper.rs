//! Whoever sleeps is woken for what it was given.

#![allow(dead_code, unreachable_pub, reason = "the model uses a part of the file")]

#[path = "../../datapath/src/sleeper.rs"]
mod sleeper;
#[path = "support/sync.rs"]
mod sync;
#[path = "support/wake.rs"]
mod wake;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use sleeper::Sleeper;

/// A queue that only counts, with no more order between threads than a queue without locks has.
#[derive(Default)]
struct Queue(AtomicUsize);

impl Queue {
    fn push(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

fn run(givers: usize, each: usize) {
    let shared = Arc::new((Queue::default(), Sleeper::new().expect("a model has descriptors")));
    let givers: Vec<_> = (0..givers)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for _ in 0..each {
                    shared.0.push();
                    shared.1.given();
                }
            })
        })
        .collect();
    let (queue, sleeper) = &*shared;
    let mut got = 0;
    // A wake-up that is lost leaves the taker asleep: loom reports that nobody can go on.
    while got < givers.len() * each {
        match queue.take() {
            0 => {
                sleeper.sleep_unless(
                    || !queue.is_empty(),
                    |wake| {
                        wake.wait();
                        true
                    },
                );
            }
            some => got += some,
        }
    }
    for giver in givers {
        giver.join().expect("a giver");
    }
}

#[test]
fn one_giver() {
    loom::model(|| run(1, 2));
}

#[test]
fn two_givers() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| run(2, 1));
}
