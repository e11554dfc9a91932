//! A datapath that goes on in another one, as it does in another process.

use std::time::{Duration, Instant};

use datapath::handover::{Fds, State};
use datapath::{Datapath, Imported, Suspended};
use serde_json::Value;

use super::Bench;

/// What one hands over as the other gets it: as text, the descriptors as copies.
pub(crate) fn carry(suspended: &mut Suspended) -> (Value, Fds) {
    let (state, fds) = suspended.export().unwrap();
    (serde_json::to_value(state).unwrap(), fds)
}

pub(crate) fn import(bench: &Bench, state: Value, fds: &mut Fds) -> Imported {
    let state: State = serde_json::from_value(state).unwrap();
    Datapath::import(bench.config(), state, fds).unwrap()
}

/// The bench's datapath is replaced by one that goes on in its place.
pub(crate) fn hand_over(bench: &mut Bench, change: impl FnOnce(&mut Value)) -> Duration {
    let start = Instant::now();
    let mut suspended = bench.datapath.suspend().unwrap();
    let (mut state, mut fds) = carry(&mut suspended);
    change(&mut state);
    let imported = import(bench, state, &mut fds);
    suspended.leave();
    (bench.datapath, bench.events) = imported.start().unwrap();
    start.elapsed()
}
