//! The API's socket and clients that say nothing, or half of something.

mod daemon_env;
mod host_env;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use daemon_env::{DEADLINE, Daemon, wait};
use host_env::machine;

/// As many as are served at a time.
const PLACES: usize = 1024;

/// Half of a head, and half of a body.
const HALVES: [&str; 2] = [
    "POST /v1/networks HTTP/1.1\r\nHost: localhost\r\nContent-Le",
    "POST /v1/networks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4294967296\r\n\r\n<net",
];

fn raise_limit_of_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("a limit");
}

fn half(daemon: &Daemon, at: usize) -> UnixStream {
    let mut stream = daemon.connect().expect("the daemon listens");
    let sent = stream.write_all(HALVES[at % HALVES.len()].as_bytes());
    // One that is too many may be closed before it has spoken.
    assert!(sent.is_ok() || at >= PLACES, "{at}: {sent:?}");
    stream
}

#[test]
fn half_requests_end_and_leave_their_places_to_others() {
    machine(async || {
        raise_limit_of_descriptors();
        let root = tempfile::tempdir().expect("a temporary directory");
        let daemon = Daemon::start("api", root.path());
        let descriptors = || {
            let list = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
            list.expect("the daemon runs").count()
        };
        let before = descriptors();
        let mut halves: Vec<_> = (0..PLACES + 200).map(|at| half(&daemon, at)).collect();
        // Those that are about to be closed are few at a time.
        let open = descriptors();
        assert!(open < before + PLACES + 20, "{open} descriptors, {before} before");
        let mut answers = Vec::new();
        for (at, stream) in halves.iter_mut().enumerate() {
            let mut answer = String::new();
            // A reset is an end as well.
            let ended = stream.read_to_string(&mut answer).map_err(|error| error.kind());
            assert_ne!(
                ended,
                Err(std::io::ErrorKind::WouldBlock),
                "{at} is open after {DEADLINE:?}"
            );
            answers.push(answer);
        }
        let told = answers.iter().filter(|answer| answer.contains("it did not come in time"));
        assert!(told.count() > PLACES / 3, "{:?}", answers.iter().find(|it| !it.is_empty()));
        wait("the places to be free", || (descriptors() <= before).then_some(()));
        assert_eq!(daemon.get("/v1/networks"), serde_json::json!([]));
        assert!(daemon.log().contains("clients are connected to the API"), "{}", daemon.log());
    });
}

#[test]
fn half_requests_do_not_keep_the_daemon_from_its_end() {
    machine(async || {
        let root = tempfile::tempdir().expect("a temporary directory");
        let daemon = Daemon::start("api", root.path());
        let halves: Vec<_> = (0..2).map(|at| half(&daemon, at)).collect();
        // They have been accepted: so has what came after them.
        daemon.get("/v1/instance");
        daemon.stop();
        drop(halves);
    });
}
