//! Moves queues between workers, one step at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tracing::{debug, info};
use uuid::Uuid;

use super::assign::{QueueLoad, assign, least_loaded};
use super::{Place, in_service, loads};
use crate::worker::Shared;

/// How long workers are waited for before the thread goes on with other things.
const PATIENCE: Duration = Duration::from_micros(200);

/// A queue that somebody wants to be elsewhere.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) port: Uuid,
    pub(crate) queue: usize,
    pub(crate) worker: usize,
    /// Told when the queue has its worker: false when there is no such queue in service.
    pub(crate) done: Sender<bool>,
}

/// Queues that are nobody's once the epoch has been seen.
#[derive(Debug)]
struct Moving {
    epoch: u64,
    /// Where to; `None`: the least loaded worker.
    queues: Vec<(Place, Option<usize>)>,
    done: Option<Sender<bool>>,
}

#[derive(Debug)]
pub(crate) struct Balancer {
    shared: Arc<Shared>,
    /// Between two looks at whether queues should move; `None`: they stay.
    interval: Option<Duration>,
    looked: Instant,
    sampled: Instant,
    moving: Option<Moving>,
    moves: VecDeque<Move>,
    /// There may be queues that are nobody's.
    unplaced: bool,
}

impl Balancer {
    pub(crate) fn new(shared: Arc<Shared>, interval: Option<Duration>, now: Instant) -> Self {
        Self {
            shared,
            interval,
            looked: now,
            sampled: now,
            moving: None,
            moves: VecDeque::new(),
            // Those that were taken over from another datapath.
            unplaced: true,
        }
    }

    /// Rings have come or gone.
    pub(crate) fn rings_changed(&mut self) {
        self.unplaced = true;
    }

    pub(crate) fn request(&mut self, wanted: Move) {
        self.moves.push_back(wanted);
    }

    /// [`step`](Self::step) has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        self.moving.is_some() || self.unplaced || !self.moves.is_empty()
    }

    /// Does what can be done without waiting for long.
    pub(crate) fn step(&mut self) {
        while self.is_busy() {
            let Some(moving) = self.moving.take() else {
                self.begin();
                continue;
            };
            let start = Instant::now();
            while !self.shared.epochs.all_seen(moving.epoch) {
                if start.elapsed() > PATIENCE {
                    self.moving = Some(moving);
                    return;
                }
                std::hint::spin_loop();
            }
            self.finish(moving);
        }
    }

    /// Takes the next queues from their workers.
    fn begin(&mut self) {
        let snapshot = self.shared.current.load_full();
        let (queues, done) = if std::mem::take(&mut self.unplaced) {
            let orphans = in_service(&snapshot).filter(|place| place.duty().owner().is_none());
            (orphans.map(|place| (place, None)).collect::<Vec<_>>(), None)
        } else {
            let Some(Move { port, queue, worker, done }) = self.moves.pop_front() else { return };
            let found =
                in_service(&snapshot).find(|place| place.port == port && place.queue == queue);
            let Some(place) = found.filter(|_| worker < self.shared.epochs.workers()) else {
                let _ = done.send(false);
                return;
            };
            (vec![(place, Some(worker))], Some(done))
        };
        if !queues.is_empty() {
            self.withdraw(queues, done);
        }
    }

    fn withdraw(&mut self, queues: Vec<(Place, Option<usize>)>, done: Option<Sender<bool>>) {
        for (place, _) in &queues {
            place.duty().withdraw();
        }
        let epoch = self.shared.epochs.advance();
        self.moving = Some(Moving { epoch, queues, done });
    }

    /// Every worker has let go of the queues: their new ones may begin.
    fn finish(&self, moving: Moving) {
        let workers = self.shared.epochs.workers();
        let mut taken = loads(&self.shared.current.load_full());
        for (place, to) in moving.queues {
            let duty = place.duty();
            let worker = to.unwrap_or_else(|| least_loaded(&taken, workers));
            duty.give(worker);
            taken.push(QueueLoad { worker, load: duty.load() });
            debug!(port = %place.port, queue = place.queue, worker, "a queue has its worker");
        }
        self.shared.epochs.advance();
        if let Some(done) = moving.done {
            let _ = done.send(true);
        }
    }

    /// To be called about once a second.
    pub(crate) fn housekeeping(&mut self) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.sampled);
        self.sampled = now;
        let snapshot = self.shared.current.load_full();
        let places: Vec<Place> = in_service(&snapshot).collect();
        for place in &places {
            place.duty().sample(elapsed);
        }
        let Some(interval) = self.interval else { return };
        if now.duration_since(self.looked) < interval || self.is_busy() {
            return;
        }
        self.looked = now;
        let serving = places.into_iter().filter_map(|place| {
            let (worker, load) = (place.duty().owner()?, place.duty().load());
            Some((place, QueueLoad { worker, load }))
        });
        let (places, queues): (Vec<_>, Vec<_>) = serving.unzip();
        let Some(new) = assign(&queues, self.shared.epochs.workers()) else { return };
        let all = places.into_iter().zip(queues).zip(new);
        let moves = all.filter(|((_, queue), worker)| queue.worker != *worker);
        let moves: Vec<_> = moves.map(|((place, _), worker)| (place, Some(worker))).collect();
        info!(queues = moves.len(), "moving queues to workers with less to do");
        if !moves.is_empty() {
            self.withdraw(moves, None);
            self.step();
        }
    }
}
