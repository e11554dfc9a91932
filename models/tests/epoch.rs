//! Snapshots and quiescence.

#![allow(dead_code, unreachable_pub, reason = "the model uses a part of the file")]

#[path = "../../datapath/src/epoch.rs"]
mod epoch;
#[path = "support/sync.rs"]
mod sync;
#[path = "support/wake.rs"]
mod wake;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use epoch::Epochs;

struct World {
    epochs: Epochs,
    /// Which snapshot is the newest.
    current: AtomicUsize,
    snapshots: [UnsafeCell<()>; 3],
    stop: AtomicBool,
}

impl World {
    fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            epochs: Epochs::new(workers).expect("a model has descriptors"),
            current: AtomicUsize::new(0),
            snapshots: [(); 3].map(UnsafeCell::new),
            stop: AtomicBool::new(false),
        })
    }

    /// As the control plane does: the new snapshot, then the wait, then the old one goes.
    fn publish(&self, snapshot: usize) {
        let old = self.current.swap(snapshot, Ordering::AcqRel);
        self.epochs.wait(self.epochs.advance());
        // Loom panics when a worker may still look at it.
        self.snapshots[old].with_mut(|_| ());
    }

    /// As the poller does between bursts.
    fn look(&self, worker: usize, epoch: &mut u64, snapshot: &mut usize) {
        let now = self.epochs.current();
        if now != *epoch {
            *snapshot = self.current.load(Ordering::Acquire);
            *epoch = now;
            self.epochs.seen(worker, now);
        }
    }
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// Workers in bursts while two configurations are published.
#[test]
fn nobody_looks_at_a_snapshot_that_is_gone() {
    model(2, || {
        let world = World::new(2);
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    let (mut epoch, mut snapshot) = (0, 0);
                    for _ in 0..2 {
                        world.look(worker, &mut epoch, &mut snapshot);
                        world.snapshots[snapshot].with(|_| ());
                    }
                    world.epochs.ended(worker);
                })
            })
            .collect();
        world.publish(1);
        for worker in workers {
            worker.join().expect("a worker");
        }
        world.publish(2);
    });
}

/// A worker without work sleeps until it is woken, and still lets go.
#[test]
fn a_sleeping_worker_is_woken_for_a_new_snapshot_and_for_the_end() {
    model(3, || {
        let world = World::new(1);
        let worker = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let (mut epoch, mut snapshot) = (0, 0);
                while !world.stop.load(Ordering::Relaxed) {
                    world.look(0, &mut epoch, &mut snapshot);
                    world.snapshots[snapshot].with(|_| ());
                    world.epochs.wake_fd(0).wait();
                }
                world.epochs.ended(0);
            }
        });
        world.publish(1);
        world.stop.store(true, Ordering::SeqCst);
        world.epochs.advance();
        worker.join().expect("a worker");
    });
}
