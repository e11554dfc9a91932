//! Ports that connect to VMMs, and ports of one connection.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Bench, Nic, Options, PortOptions, Probe, eventually, introduce, mac};
use datapath::{Error, PortState, VhostSocket};
use tempfile::TempDir;
use vhost::vhost_user::Frontend;

/// A VMM that listens, and a port that connects to it.
struct Dialed {
    bench: Bench,
    dir: TempDir,
}

impl Dialed {
    /// Port 0 is dialled, port 1 listens.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(0);
        let path = dir.path().join("vmm");
        assert_eq!(bench.add_with(VhostSocket::Connect(path), PortOptions::default()), 0);
        bench.add(PortOptions::default());
        Self { bench, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("vmm")
    }

    fn reason(&self) -> String {
        self.bench.datapath.port_status(self.bench.id(0)).unwrap().reason.unwrap_or_default()
    }

    fn wait_reason(&self, words: &str) {
        assert!(eventually(|| self.reason().contains(words)), "{words}: {}", self.reason());
    }

    /// Listens anew, as a VMM does that starts.
    fn listen(&self) -> UnixListener {
        let _ = std::fs::remove_file(self.path());
        UnixListener::bind(self.path()).unwrap()
    }

    fn nic(&self, listener: &UnixListener) -> Nic {
        let (stream, _) = listener.accept().unwrap();
        let options = Options::new(mac(0));
        let nic = Nic::negotiate(Frontend::from_stream(stream, 2), &options);
        self.bench.wait_state(0, PortState::Up);
        nic
    }
}

/// Whether the other end has hung up.
fn closed(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match (&mut &*stream).read(&mut [0; 64]) {
        Ok(0) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    }
}

#[test]
fn a_vmm_that_listens_is_found_whenever_it_comes() {
    let lab = Dialed::new();
    let mut b = lab.bench.nic(1, &Options::new(mac(1)));
    lab.wait_reason("waiting for a VMM to listen");
    lab.bench.wait_state(0, PortState::Connecting);
    for _ in 0..5 {
        let listener = lab.listen();
        let mut a = lab.nic(&listener);
        introduce(&mut [&mut a, &mut b]);
        // It is killed: its socket stays, and nobody listens on it.
        drop((a, listener));
        lab.bench.wait_state(0, PortState::Connecting);
        lab.wait_reason("nobody listens");
    }
}

#[test]
fn a_vmm_that_goes_on_listening_is_connected_to_again() {
    let lab = Dialed::new();
    let mut b = lab.bench.nic(1, &Options::new(mac(1)));
    let listener = lab.listen();
    for _ in 0..5 {
        let mut a = lab.nic(&listener);
        introduce(&mut [&mut a, &mut b]);
        drop(a);
    }
}

#[test]
fn a_peer_that_closes_at_once_is_not_connected_to_without_pause() {
    let lab = Dialed::new();
    let listener = lab.listen();
    let start = Instant::now();
    // The pauses are 50, 100, 200, 400 and 500 ms: less means that one was left out.
    for _ in 0..6 {
        drop(listener.accept().unwrap());
    }
    assert!(start.elapsed() >= Duration::from_millis(1250), "{:?}", start.elapsed());
    lab.wait_reason("closed the connection");
    // It is not held against who comes then.
    lab.nic(&listener);
}

#[test]
fn a_peer_that_says_nothing_is_named_and_others_go_on() {
    let mut lab = Dialed::new();
    lab.bench.add(PortOptions::default());
    let listener = lab.listen();
    let (silent, _) = listener.accept().unwrap();
    lab.wait_reason("has not said anything yet");
    lab.bench.wait_state(0, PortState::Connecting);
    let mut b = lab.bench.nic(1, &Options::new(mac(1)));
    let mut c = lab.bench.nic(2, &Options::new(mac(2)));
    introduce(&mut [&mut b, &mut c]);
    // One that talks nonsense is left.
    (&mut &silent).write_all(&[0xff; 64]).unwrap();
    assert!(eventually(|| closed(&silent)));
    lab.nic(&listener);
}

#[test]
fn a_port_is_removed_while_it_connects() {
    let lab = Dialed::new();
    lab.wait_reason("waiting");
    lab.bench.datapath.remove_port(lab.bench.id(0)).unwrap();
    let listener = lab.listen();
    listener.set_nonblocking(true).unwrap();
    // Longer than the longest pause between two attempts.
    std::thread::sleep(Duration::from_secs(1));
    let found = listener.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(found, Err(ErrorKind::WouldBlock), "nobody connects any more");
    assert!(matches!(lab.bench.datapath.remove_port(lab.bench.id(0)), Err(Error::NoPort(_))));
}

#[test]
fn a_port_of_one_connection_is_gone_with_it() {
    let mut bench = Bench::new(1);
    let mut b = bench.nic(0, &Options::new(mac(0)));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let port = bench.add_with(VhostSocket::Connected(theirs), PortOptions::default());
    bench.wait_state(port, PortState::Connected);
    let mut a = Nic::negotiate(Frontend::from_stream(ours, 2), &Options::new(mac(1)));
    bench.wait_state(port, PortState::Up);
    introduce(&mut [&mut a, &mut b]);
    drop(a);
    bench.wait_state(port, PortState::Gone);
    bench.datapath.remove_port(bench.id(port)).unwrap();
}

#[test]
fn a_port_of_one_connection_that_says_nothing_is_gone_after_a_while() {
    let mut bench = Bench::new(0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let silent = bench.add_with(VhostSocket::Connected(theirs), PortOptions::default());
    let (other, theirs) = UnixStream::pair().unwrap();
    let speaking = bench.add_with(VhostSocket::Connected(theirs), PortOptions::default());
    let _nic = Nic::negotiate(Frontend::from_stream(other, 2), &Options::new(mac(1)));
    bench.wait_state(silent, PortState::Gone);
    let reason = bench.datapath.port_status(bench.id(silent)).unwrap().reason;
    assert!(reason.is_some_and(|reason| reason.contains("nothing was said for 10 s")));
    assert!(closed(&ours));
    bench.wait_state(speaking, PortState::Up);
}

#[test]
fn a_vmm_restarted_again_and_again_loses_nothing_between_others() {
    let mut lab = Dialed::new();
    lab.bench.add(PortOptions::default());
    let from = lab.bench.nic(1, &Options::new(mac(1)));
    let probe = Probe::start(from, lab.bench.nic(2, &Options::new(mac(2))));
    for _ in 0..10 {
        let listener = lab.listen();
        drop(lab.nic(&listener));
    }
    probe.finish();
}
