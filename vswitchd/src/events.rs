//! The event stream: a bounded ring with numbers, from which any number of readers read at their
//! own pace. A reader that falls out of the ring is told how much it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use api::{Event, EventKind};
use tokio::sync::watch;

use crate::store::Counters;

/// Events kept for readers that come back with `since`.
const CAPACITY: usize = 4096;

/// Publishes events and hands out revisions. Shared by everything that changes state.
#[derive(Debug)]
pub struct EventBus {
    ring: Mutex<Ring>,
    /// Number of the last event, to wake readers.
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    counters: Counters,
    events: VecDeque<Arc<Event>>,
}

impl EventBus {
    #[must_use]
    pub fn new(counters: Counters) -> Self {
        let last = watch::Sender::new(counters.event());
        Self { ring: Mutex::new(Ring { counters, events: VecDeque::new() }), last }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole after every statement that can panic.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration has changed: one new revision for all these events.
    pub fn changed(&self, kinds: impl IntoIterator<Item = EventKind>) -> u64 {
        let mut ring = self.ring();
        let revision = ring.counters.next_revision();
        for kind in kinds {
            ring.push(kind, revision);
        }
        self.last.send_replace(ring.counters.event());
        revision
    }

    /// Something happened that changes no configuration (a lease, a port's state).
    pub fn happened(&self, kind: EventKind) {
        let mut ring = self.ring();
        let revision = ring.counters.revision();
        ring.push(kind, revision);
        self.last.send_replace(ring.counters.event());
    }

    #[must_use]
    pub fn revision(&self) -> u64 {
        self.ring().counters.revision()
    }

    /// A reader of everything after event `since`; without it, of what is to come.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, since: Option<u64>) -> Subscription {
        let last = self.last.subscribe();
        let seen = since.unwrap_or_else(|| self.ring().counters.event());
        Subscription { bus: Arc::clone(self), seen, last }
    }
}

impl Ring {
    fn push(&mut self, kind: EventKind, revision: u64) {
        let seq = self.counters.next_event();
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(Event { seq, time: unix_millis(), revision, kind }));
    }

    /// The event after `seen`, or the gap before the oldest kept one.
    fn after(&self, seen: u64) -> Option<Arc<Event>> {
        let newest = self.counters.event();
        if seen >= newest {
            return None;
        }
        let oldest = self.events.front().map_or(newest + 1, |event| event.seq);
        if seen + 1 < oldest {
            // Its number is that of the last event missed, so that `since` works with it.
            return Some(Arc::new(Event {
                seq: oldest - 1,
                time: unix_millis(),
                revision: self.counters.revision(),
                kind: EventKind::Gap { missed: oldest - 1 - seen },
            }));
        }
        let index = usize::try_from(seen + 1 - oldest).ok()?;
        self.events.get(index).cloned()
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One reader's place in the stream.
#[derive(Debug)]
pub struct Subscription {
    bus: Arc<EventBus>,
    seen: u64,
    last: watch::Receiver<u64>,
}

impl Subscription {
    /// The next event, when there is one. `None` when the bus is no more.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            self.last.borrow_and_update();
            let event = self.bus.ring().after(self.seen);
            if let Some(event) = event {
                self.seen = event.seq;
                return Some(event);
            }
            self.last.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn bus() -> (tempfile::TempDir, Arc<EventBus>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let instance = api::Instance::new("t", dir.path()).expect("instance");
        let store = Store::open(&instance).expect("store");
        let bus = Arc::new(EventBus::new(store.counters().expect("counters")));
        (dir, bus)
    }

    fn kind(number: u64) -> EventKind {
        EventKind::NetworkStarted {
            network: number.to_string(),
            uuid: uuid::Uuid::from_u128(number.into()),
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_a_gap_and_then_what_is_kept() {
        let (_dir, bus) = bus();
        let mut reader = bus.subscribe(None);
        let total = u64::try_from(CAPACITY).expect("small") + 10;
        for number in 0..total {
            bus.happened(kind(number));
        }
        let gap = reader.next().await.expect("gap");
        assert_eq!(gap.kind, EventKind::Gap { missed: 10 });
        let next = reader.next().await.expect("oldest");
        assert_eq!((next.seq, &next.kind), (gap.seq + 1, &kind(10)));
    }

    #[tokio::test]
    async fn since_replays_and_the_future_follows() {
        let (_dir, bus) = bus();
        let revision = bus.changed([kind(1), kind(2)]);
        assert_eq!(revision, 1);
        let mut reader = bus.subscribe(Some(0));
        let first = reader.next().await.expect("first");
        assert_eq!((first.seq, first.revision), (1, 1));
        assert_eq!(reader.next().await.expect("second").seq, 2);
        bus.happened(kind(3));
        let third = reader.next().await.expect("third");
        assert_eq!((third.seq, third.revision), (3, 1));
    }

    #[tokio::test]
    async fn a_reader_from_before_a_restart_gets_a_gap() {
        let (dir, old) = bus();
        old.happened(kind(1));
        let instance = api::Instance::new("t", dir.path()).expect("instance");
        let store = Store::open(&instance).expect("store");
        let new = Arc::new(EventBus::new(store.counters().expect("counters")));
        let mut reader = new.subscribe(Some(1));
        assert!(matches!(reader.next().await.expect("gap").kind, EventKind::Gap { .. }));
        new.happened(kind(2));
        assert_eq!(reader.next().await.expect("next").kind, kind(2));
    }
}
