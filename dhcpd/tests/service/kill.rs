//! `kill -9` while leases are written: what was committed before is there afterwards.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use dhcpd::lease::{Change, Store};

use crate::durable::lease;

const PATH: &str = "NETLOOM_TEST_LEASES";

/// Not a test but the process that is killed: it commits leases for ever and says which.
#[test]
fn child() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let mut store = Store::open(path.as_ref()).expect("it opens").store;
    let mut out = std::io::stdout();
    for n in 0.. {
        // A few hundred addresses and many renewals, so that the file is also put anew.
        let group = (0..97).map(|k| Change::Put(lease((n * 97 + k) % 300)));
        store.append(group);
        store.commit().expect("it is written");
        writeln!(out, "\ncommitted {n}").expect("the parent listens");
    }
}

#[test]
fn committed_leases_survive() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..20_u16 {
        let path = dir.path().join(format!("leases{round}"));
        let mut child = Command::new(std::env::current_exe().expect("we run"))
            .args(["--exact", "kill::child", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut last = None;
        // Kill at another moment in each round; after 60 groups the file has been put anew.
        let rounds = 1 + round * 7;
        let mut seen = 0;
        while seen < rounds {
            let line = lines.next().expect("it goes on").expect("it is text");
            if let Some(n) = line.strip_prefix("committed ") {
                last = Some(n.parse::<u16>().expect("a number"));
                seen += 1;
            }
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        // What it committed while we looked away counts too.
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("committed ").and_then(|n| n.parse().ok()) {
                last = Some(n);
            }
        }
        let last = last.expect("it committed");
        let opened = Store::open(&path).expect("a killed writer damages nothing");
        let there: HashSet<_> = opened.leases.iter().map(|lease| lease.ip).collect();
        for n in 0..=last {
            for k in 0..97 {
                let lease = lease((n * 97 + k) % 300);
                assert!(there.contains(&lease.ip), "round {round}: {} was committed", lease.ip);
            }
        }
        assert!(there.len() <= 300);
    }
}
