//! Models of what threads do to each other without locks: each test in `tests/` compiles a file of the product itself, with
//! loom's atomics and locks in place of the system's, and lets loom run it in every order that the memory model allows
//! (up to a number of preemptions that the test names).
//!
//! | test | file of the product | what holds in every order |
//! |---|---|---|
//! | `epoch` | `datapath/src/epoch.rs` | nobody touches an old snapshot after the wait for its successor; a sleeping worker is woken for it |
//! | `sleeper` | `datapath/src/sleeper.rs` | nothing that was given lies there while its taker sleeps |
//! | `quarantine` | `datapath/src/port/vhost_user/quarantine.rs` | one of several faults is told; a port that is out of service has a reason |
//! | `fdb` | `switch/src/fdb/` | a reader gets a port that was stored for its key; a station has one entry, which is in the books; who asks after a change is told |
//! | `table` | `switch/src/fdb/table.rs` | who reads a new number of buckets finds what has moved there |
//!
//! A model counts when it was seen to fail: `docs/security.md` says of each what was broken for that. Loom compares an access with
//! the last one of the same place only. A thread that reads what it then writes hides its other readers' races,
//! unless it comes first: so the writer is the model's own thread, and the readers are those that it starts.
//!
//! The product's files take these types from their crate's `sync` module; a test provides one of its own.
