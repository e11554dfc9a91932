//! The forwarding table: readers without locks beside writers.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "the model uses a part of the files")]

#[path = "../../switch/src/fdb/mod.rs"]
mod fdb;
#[path = "support/sync.rs"]
mod sync;

mod port {
    pub(crate) use switch::MAX_PORTS;
}

use loom::sync::Arc;
use loom::thread;
use switch::{PortIndex, Seconds};
use wire::{MacAddr, Vid};

use fdb::{Fdb, Key, Learned};

const ONE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const TWO: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NOW: Seconds = Seconds(7);

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(run);
}

fn learn(fdb: &Fdb, mac: MacAddr, port: u16, limit: usize) -> Learned {
    fdb.learn(mac, Vid::NONE, PortIndex(port), limit, NOW)
}

fn find(fdb: &Fdb, mac: MacAddr) -> Option<u16> {
    fdb.lookup(mac, Vid::NONE).map(|port| port.0)
}

/// A station moves, then gives way to another one of its port, which takes its place.
#[test]
fn a_reader_gets_a_port_that_was_stored_for_its_key() {
    model(|| {
        let fdb = Arc::new(Fdb::with_seed(10, [1, 2, 3, 4]));
        learn(&fdb, ONE, 1, 8);
        // Loom looks for races with the last access only: a writer that reads before it writes would hide its
        // readers', unless these come second.
        let reader = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || {
                let one = find(&fdb, ONE);
                assert!(matches!(one, None | Some(1 | 2)), "{one:?}");
                let two = find(&fdb, TWO);
                assert!(matches!(two, None | Some(2)), "{two:?}");
            }
        });
        learn(&fdb, ONE, 2, 1);
        learn(&fdb, TWO, 2, 1);
        reader.join().expect("a reader");
        assert_eq!((find(&fdb, ONE), find(&fdb, TWO)), (None, Some(2)));
    });
}

/// The same station is heard on two ports at a time.
#[test]
fn a_station_has_one_entry() {
    model(|| {
        let fdb = Arc::new(Fdb::with_seed(10, [1, 2, 3, 4]));
        let worker = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || learn(&fdb, ONE, 1, 8)
        });
        let here = learn(&fdb, ONE, 2, 8);
        let there = worker.join().expect("a worker");
        let entries = fdb.entries();
        assert_eq!(entries.len(), 1, "{here:?} {there:?}");
        assert_eq!(fdb.stats().entries, 1);
        assert!([here, there].contains(&Learned::New));
        assert_eq!(find(&fdb, ONE), Some(entries[0].port.0));
    });
}

/// A station is removed while it is heard on another port: its entry goes with the books of its port, or it is new.
#[test]
fn a_removal_beside_a_move_leaves_books_that_agree() {
    model(|| {
        let fdb = Arc::new(Fdb::with_seed(10, [1, 2, 3, 4]));
        learn(&fdb, ONE, 1, 8);
        let worker = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || learn(&fdb, ONE, 2, 8)
        });
        assert!(fdb.remove(ONE, Vid::NONE), "it was there all the time");
        let learned = worker.join().expect("a worker");
        let left = find(&fdb, ONE);
        assert_eq!(left, (learned == Learned::New).then_some(2), "{learned:?}");
        assert_eq!(fdb.stats().entries, fdb.entries().len());
        assert_eq!(fdb.flush(), fdb.entries().len() + usize::from(left.is_some()));
    });
}

/// What is learned while the table is emptied is there, or is not.
#[test]
fn a_flush_beside_learning_leaves_a_table_that_agrees_with_itself() {
    model(|| {
        let fdb = Arc::new(Fdb::with_seed(10, [1, 2, 3, 4]));
        learn(&fdb, TWO, 1, 8);
        let worker = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || learn(&fdb, ONE, 2, 8)
        });
        fdb.remove(TWO, Vid::NONE);
        worker.join().expect("a worker");
        assert_eq!(find(&fdb, TWO), None);
        assert_eq!(fdb.stats().entries, fdb.entries().len());
        assert_eq!(find(&fdb, ONE).is_some(), fdb.entries().len() == 1);
    });
}

/// A conversation is looked at again while its destination moves: whoever asks after the move is told.
#[test]
fn a_pair_that_was_looked_at_during_a_change_is_not_good_after_it() {
    model(|| {
        let fdb = Arc::new(Fdb::with_seed(10, [1, 2, 3, 4]));
        learn(&fdb, ONE, 1, 8);
        learn(&fdb, TWO, 2, 8);
        let key = |mac: MacAddr| {
            let [a, b, c, d, e, f] = mac.0;
            Key::from_number(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), Vid::NONE)
        };
        let ends = ((key(ONE), PortIndex(1)), (key(TWO), PortIndex(2)));
        let mut pair = fdb.pair(ends.0, ends.1, NOW).expect("both are there");
        let next = Seconds(NOW.0 + 1);
        let worker = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || {
                fdb.is_still(&mut pair, next);
                pair
            }
        });
        learn(&fdb, TWO, 3, 8);
        let mut pair = worker.join().expect("a worker");
        assert!(!fdb.is_still(&mut pair, next), "the destination is elsewhere");
    });
}
