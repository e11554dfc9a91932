//! The forwarding table grows by a bucket beside a reader.

#![allow(dead_code, unreachable_pub, reason = "the model uses a part of the files")]

#[path = "../../switch/src/fdb/key.rs"]
mod key;
#[path = "support/sync.rs"]
mod sync;
#[path = "../../switch/src/fdb/table.rs"]
mod table;

mod port {
    pub(crate) use switch::MAX_PORTS;
}
pub(crate) use switch::PortIndex;

use loom::sync::Arc;
use loom::thread;
use wire::{MacAddr, Vid};

use key::{Hash, Key};
use table::{Table, Word};

const SEED: [u64; 4] = [1, 2, 3, 4];
const PORT: PortIndex = PortIndex(3);
/// Of a table that has more buckets to come than it begins with.
const ENTRIES: usize = 8192;

/// A key that the last of `count + 1` buckets takes over.
fn key_that_moves(count: usize) -> Key {
    let hash = Hash::new(SEED);
    let keys = (0_u32..).map(|number| {
        let [a, b, c, d] = number.to_be_bytes();
        Key::new(MacAddr([2, 0, a, b, c, d]), Vid::NONE)
    });
    let moves = |key: &Key| hash.place(*key).bucket(0, count + 1) == count;
    keys.take(1 << 20).find(moves).expect("one in some thousand keys")
}

/// Who reads the new number of buckets finds what has moved; who reads the old one finds it, or nothing.
#[test]
fn an_entry_that_moves_is_found_by_the_new_number_of_buckets() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let table = Arc::new(Table::new(ENTRIES, SEED));
        let before = table.count();
        let key = key_that_moves(before);
        let (slot, word) = table.room(key, PORT, false).expect("an empty table");
        table.put(slot, word);
        let reader = reader(&table, move |table| {
            let grown = table.count() > before;
            let found = table.find(key).map(|(_, word)| word.port());
            assert!(matches!(found, None | Some(PORT)), "{found:?}");
            assert!(!grown || found.is_some(), "missed in the bucket that it has moved to");
        });
        let moved = table.grow(usize::MAX).into_iter().flatten().count();
        reader.join().expect("a reader");
        assert_eq!(moved, 1);
        let found = table.find(key).map(|(slot, word)| (slot.parts().0, word.port()));
        assert_eq!(found, Some((before, PORT)));
        assert_eq!(table.word(slot), Word::EMPTY, "it is in the old bucket, too");
    });
}

/// Loom looks for races with the last access only: a writer that reads before it writes would hide its readers', unless
/// these come second.
fn reader(
    table: &Arc<Table>,
    read: impl FnOnce(&Table) + Send + 'static,
) -> thread::JoinHandle<()> {
    let table = Arc::clone(table);
    thread::spawn(move || read(&table))
}
