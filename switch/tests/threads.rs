//! The forwarding table under many threads: no reader ever gets one entry's port for another entry's address.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use switch::{Fdb, MacAddr, PortIndex, Seconds, Vid};

const STATIONS: u32 = 4000;
const PORTS: u32 = 8;

fn mac(station: u32) -> MacAddr {
    let [_, a, b, c] = station.to_be_bytes();
    MacAddr([0x52, 0x54, 0, a, b, c])
}

fn vlan(station: u32) -> Vid {
    Vid::new(if station.is_multiple_of(3) { 0 } else { 4094 }).unwrap()
}

/// A station is only ever heard on this port and the next: everything else is somebody else's.
fn home(station: u32) -> u16 {
    u16::try_from(station % PORTS * 2).unwrap()
}

fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    u32::try_from(*state >> 32).unwrap()
}

#[test]
fn readers_never_see_a_mixed_entry() {
    // Far fewer entries than stations, so that places change their owners all the time.
    let fdb = Fdb::with_seed(300, [11, 12, 13, 14]);
    let done = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (1..=3u64)
            .map(|seed| {
                let fdb = &fdb;
                scope.spawn(move || {
                    let mut state = seed * 0x9e37_79b9;
                    for turn in 0..150_000u32 {
                        let station = random(&mut state) % STATIONS;
                        let port = home(station) + u16::from(turn % 5 == 0);
                        let limit = if turn % 2 == 0 { 30 } else { usize::MAX };
                        let now = Seconds(turn / 1000);
                        fdb.learn(mac(station), vlan(station), PortIndex(port), limit, now);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            // The control thread's share: expiry, flushes, static entries, listings.
            let mut state = 77;
            while !done.load(Ordering::Relaxed) {
                let station = random(&mut state) % STATIONS;
                match station % 6 {
                    0 => {
                        fdb.expire(Seconds(station / 10), Duration::from_secs(15));
                    }
                    1 => {
                        fdb.flush_port(PortIndex(home(station)));
                    }
                    2 => {
                        let port = PortIndex(home(station));
                        let _ = fdb.add_static(mac(station), vlan(station), port);
                    }
                    3 => {
                        for entry in fdb.entries() {
                            if entry.last_seen.is_none() {
                                fdb.remove_static(entry.mac, entry.vlan);
                            }
                        }
                    }
                    _ => {
                        for entry in fdb.entries() {
                            let [.., a, b, c] = entry.mac.0;
                            let station = u32::from_be_bytes([0, a, b, c]);
                            assert_eq!(entry.vlan, vlan(station));
                            assert_eq!(entry.port.0 & !1, home(station));
                        }
                    }
                }
                thread::yield_now();
            }
        });
        for seed in 5..=6u64 {
            let (fdb, done, found) = (&fdb, &done, &found);
            scope.spawn(move || {
                let mut state = seed;
                let mut hits = 0;
                while !done.load(Ordering::Relaxed) {
                    let station = random(&mut state) % STATIONS;
                    if let Some(port) = fdb.lookup(mac(station), vlan(station)) {
                        assert_eq!(port.0 & !1, home(station), "station {station}");
                        hits += 1;
                    }
                }
                found.fetch_add(hits, Ordering::Relaxed);
            });
        }
        let writers: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|outcome| outcome.unwrap());
    });
    assert!(found.load(Ordering::Relaxed) > 0, "the readers found nothing at all");

    // The books agree with the table.
    let entries = fdb.entries();
    let stats = fdb.stats();
    assert_eq!(stats.entries, entries.len());
    assert!(entries.len() <= 300, "{stats:?}");
    let keys: HashSet<_> = entries.iter().map(|entry| (entry.mac, entry.vlan)).collect();
    assert_eq!(keys.len(), entries.len(), "an address is in the table twice");
    let learned = entries.iter().filter(|entry| entry.last_seen.is_some()).count();
    assert_eq!(stats.static_entries, entries.len() - learned);
    assert_eq!(fdb.flush(), learned);
    for port in 0..u16::try_from(PORTS * 2).unwrap() {
        fdb.remove_port(PortIndex(port));
    }
    assert_eq!(fdb.stats().entries, 0);
    assert!(stats.learned > 1000 && stats.evicted > 0 && stats.moved > 0, "{stats:?}");
}

/// While somebody else writes, a frame's source is not waited for, and the next frame teaches it. The table grows meanwhile.
#[test]
fn two_workers_learn_all_that_they_hear() {
    const EACH: u32 = 15_000;
    let fdb = Fdb::new(65_536);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..2u32)
            .map(|worker| {
                let fdb = &fdb;
                scope.spawn(move || {
                    let stations = || (0..EACH).map(|station| station * 2 + worker);
                    let deadline = Instant::now() + Duration::from_secs(60);
                    while stations().any(|one| fdb.lookup(mac(one), vlan(one)).is_none()) {
                        assert!(Instant::now() < deadline, "{:?}", fdb.stats());
                        for one in stations() {
                            fdb.learn(
                                mac(one),
                                vlan(one),
                                PortIndex(home(one)),
                                16_384,
                                Seconds(1),
                            );
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let entries = fdb.entries();
                let keys: HashSet<_> =
                    entries.iter().map(|entry| (entry.mac, entry.vlan)).collect();
                assert_eq!(keys.len(), entries.len(), "an address is in the list twice");
                for entry in entries {
                    let [.., a, b, c] = entry.mac.0;
                    let station = u32::from_be_bytes([0, a, b, c]);
                    assert_eq!((entry.vlan, entry.port.0), (vlan(station), home(station)));
                }
            }
        });
        let workers: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|outcome| outcome.unwrap());
    });
    let stats = fdb.stats();
    assert_eq!(stats.entries, 2 * EACH as usize, "{stats:?}");
    assert_eq!((stats.moved, stats.evicted), (0, 0));
}
