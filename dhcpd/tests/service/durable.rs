//! The lease file: what was committed is there, what is damaged is refused, a full disk is no
//! promise.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use dhcpd::lease::{Change, Lease, LeaseState, Store, StoreError};

use crate::common::{ip, mac};
use crate::support;

pub(crate) fn lease(n: u16) -> Lease {
    let [c, d] = n.to_be_bytes();
    Lease {
        ip: ip(c, d),
        mac: mac(d),
        client_id: Some(vec![1, c, d]),
        hostname: Some(format!("vm{n}")),
        expiry: Some(Duration::from_secs(1_900_000_000)),
        time: Some(Duration::from_secs(3600)).into(),
        port: None,
        state: LeaseState::Bound,
    }
}

fn open(path: &Path) -> (Store, Vec<Lease>) {
    let opened = Store::open(path).expect("it opens");
    assert_eq!(opened.torn, 0);
    (opened.store, opened.leases)
}

#[test]
fn leases_are_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (mut store, leases) = open(&path);
    assert_eq!(leases, []);
    assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    for n in 0..10 {
        store.append([Change::Put(lease(n))]);
        store.commit().expect("it is written");
    }
    store.append([Change::Remove(lease(3).ip), Change::Put(lease(4))]);
    store.commit().expect("it is written");
    store.append([Change::Put(lease(99))]);
    drop(store);
    let (_, leases) = open(&path);
    let expected: Vec<Lease> = (0..10).filter(|n| *n != 3).map(lease).collect();
    assert_eq!(leases, expected, "and nothing that was not committed");
}

#[test]
fn one_server_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (mut store, _) = open(&path);
    assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })));
    // Still so when the file was put anew.
    for n in 0..6000 {
        store.append([Change::Put(lease(n % 7))]);
    }
    store.commit().expect("it is written");
    assert!(matches!(Store::open(&path), Err(StoreError::Locked { .. })));
    drop(store);
    assert_eq!(open(&path).1.len(), 7);
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (mut store, _) = open(&path);
    let mut largest = 0;
    for round in 0..40 {
        for n in 0..500 {
            store.append([Change::Put(lease(n % 50))]);
        }
        store.commit().expect("it is written");
        largest = largest.max(path.metadata().expect("it is there").len());
        assert!(largest < 2 << 20, "round {round}");
    }
    drop(store);
    assert_eq!(open(&path).1.len(), 50);
}

#[test]
fn a_torn_tail_is_cut_at_every_length() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (mut store, _) = open(&path);
    let mut ends = vec![path.metadata().expect("it is there").len()];
    for n in 0..3 {
        store.append([Change::Put(lease(n))]);
        store.commit().expect("it is written");
        ends.push(path.metadata().expect("it is there").len());
    }
    drop(store);
    let whole = std::fs::read(&path).expect("it can be read");
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).expect("it can be written");
        let opened = Store::open(&path).expect("a torn tail is no damage");
        let position = u64::try_from(len).expect("small");
        let complete = ends.iter().filter(|end| **end <= position).count().saturating_sub(1);
        assert_eq!(opened.leases.len(), complete, "cut at {len}");
        // It goes on from there.
        let mut store = opened.store;
        store.append([Change::Put(lease(500))]);
        store.commit().expect("it is written");
        drop(store);
        assert_eq!(open(&path).1.len(), complete + 1, "cut at {len}");
    }
}

#[test]
fn damage_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("leases");
    let (mut store, _) = open(&path);
    let first = path.metadata().expect("it is there").len();
    for n in 0..3 {
        store.append([Change::Put(lease(n))]);
        store.commit().expect("it is written");
    }
    drop(store);
    let mut bytes = std::fs::read(&path).expect("it can be read");
    let at = usize::try_from(first).expect("small") + 40;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).expect("it can be written");
    let error = Store::open(&path).expect_err("it is damaged");
    assert!(
        matches!(error, StoreError::Damaged { offset, .. } if offset == usize::try_from(first).expect("small"))
    );
    assert!(error.to_string().contains(&format!("offset {first}")), "{error}");
    assert_eq!(std::fs::read(&path).expect("it can be read"), bytes);
    std::fs::write(&path, "something else\n").expect("it can be written");
    assert!(matches!(Store::open(&path), Err(StoreError::Foreign { .. })));
    std::fs::write(&path, "netloom-leases 9\n").expect("it can be written");
    assert!(
        matches!(Store::open(&path), Err(StoreError::Version { version, .. }) if version == "9")
    );
}

#[test]
fn a_full_disk_is_told_and_recovered_from() {
    support::isolated(|| {
        let dir = tempfile::tempdir().expect("a directory");
        support::small_disk(dir.path(), 32 << 10);
        let path = dir.path().join("leases");
        let (mut store, _) = open(&path);
        std::fs::write(dir.path().join("filler"), vec![0; 16 << 10]).expect("there is room");
        let mut good = 0;
        let mut n = 0;
        let error = loop {
            store.append([Change::Put(lease(n))]);
            n += 1;
            match store.commit() {
                Ok(()) => good = n,
                Err(error) => break error,
            }
            assert!(n < 5000, "the disk never filled");
        };
        assert!(matches!(error, StoreError::Write { .. }), "{error:?}");
        assert!(store.is_failed());
        assert!(store.commit().is_err(), "still full");
        // What was committed is there, whatever the failed writes left behind.
        let copy = dir.path().join("../copy-of-leases");
        std::fs::copy(&path, &copy).expect("it can be copied");
        let opened = Store::open(&copy).expect("it is not damaged");
        assert!(opened.leases.len() >= usize::from(good));
        drop(opened);
        std::fs::remove_file(&copy).expect("it is there");
        std::fs::remove_file(dir.path().join("filler")).expect("it is there");
        store.append([Change::Put(lease(4999))]);
        store.commit().expect("there is room again");
        assert!(!store.is_failed());
        drop(store);
        assert_eq!(open(&path).1.len(), usize::from(n) + 1);
    });
}
