//! Connects to VMMs that listen.
//!
//! A thread of its own, which exists once a port wants it: connect(2) on a Unix socket does not wait for the peer when it is
//! non-blocking, but it walks the path, which may lead into a file system that does not answer. Attempts cost a system call each and
//! come after longer and longer, up to [`LAST`]: a VMM that is back is found within that time.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::wake::WakeFd;

/// Between a first attempt that failed and the second.
pub(super) const FIRST: Duration = Duration::from_millis(50);
/// Between two attempts, at most.
const LAST: Duration = Duration::from_millis(500);

/// Attempts wait for the next of these after their time, so that many ports wake the thread no more often than one.
const TICK: Duration = Duration::from_millis(50);

/// How long to wait after the attempt that was made after `delay`.
pub(super) fn longer(delay: Duration) -> Duration {
    (delay * 2).clamp(FIRST, LAST)
}

#[derive(Debug)]
enum Order {
    Dial { key: u64, path: Arc<Path>, delay: Duration },
    Forget(u64),
}

/// What became of an order.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) key: u64,
    /// Connected, or why not so far; failures go on being tried, and are told when they are others than before.
    pub(super) result: Result<UnixStream, String>,
}

/// A handle to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Dialer {
    orders: Option<Sender<Order>>,
    dialed: Sender<Dialed>,
    notify: Arc<WakeFd>,
}

impl Dialer {
    /// Results go to `dialed`, and `notify` is woken for each.
    pub(super) fn new(dialed: Sender<Dialed>, notify: Arc<WakeFd>) -> Self {
        Self { orders: None, dialed, notify }
    }

    /// Connects after `delay`, and again until it works.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn dial(&mut self, key: u64, path: &Arc<Path>, delay: Duration) -> io::Result<()> {
        let orders = match &self.orders {
            Some(orders) => orders,
            None => {
                let (orders, orders_out) = crossbeam_channel::unbounded();
                let (dialed, notify) = (self.dialed.clone(), Arc::clone(&self.notify));
                // Nobody joins it: it may hang in a path.
                std::thread::Builder::new()
                    .name("vhost-dial".to_owned())
                    .spawn(move || run(&orders_out, &dialed, &notify))?;
                self.orders.insert(orders)
            }
        };
        // The thread lives as long as the sender.
        let _ = orders.send(Order::Dial { key, path: Arc::clone(path), delay });
        Ok(())
    }

    pub(super) fn forget(&self, key: u64) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order::Forget(key));
        }
    }
}

struct Job {
    path: Arc<Path>,
    delay: Duration,
    due: Instant,
    /// What was told last.
    failure: Option<String>,
}

fn run(orders: &Receiver<Order>, dialed: &Sender<Dialed>, notify: &WakeFd) {
    let mut jobs: HashMap<u64, Job> = HashMap::new();
    let start = Instant::now();
    loop {
        let order = match jobs.values().map(|job| job.due).min() {
            Some(due) => orders.recv_deadline(due),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match order {
            Ok(Order::Dial { key, path, delay }) => {
                let due = Instant::now() + delay;
                jobs.insert(key, Job { path, delay, due, failure: None });
            }
            Ok(Order::Forget(key)) => {
                jobs.remove(&key);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        jobs.retain(|&key, job| {
            if job.due > now {
                return true;
            }
            let result = dial(&job.path);
            let failure = result.as_ref().err().cloned();
            if failure.is_none() || failure != job.failure {
                let _ = dialed.send(Dialed { key, result });
                notify.wake();
            }
            job.delay = longer(job.delay);
            job.due = on_tick(start, Instant::now() + job.delay);
            let again = failure.is_some();
            job.failure = failure;
            again
        });
    }
}

/// The first tick that is not before `due`.
fn on_tick(start: Instant, due: Instant) -> Instant {
    let since = due.duration_since(start).as_nanos() % TICK.as_nanos();
    match u64::try_from(since) {
        Ok(since @ 1..) => due + TICK - Duration::from_nanos(since),
        _ => due,
    }
}

/// One attempt, for which nobody is waited.
fn dial(path: &Path) -> Result<UnixStream, String> {
    let shown = path.display();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| format!("cannot make a socket: {error}"))?;
    let connected = SocketAddrUnix::new(path).and_then(|address| connect(&stream, &address));
    match connected {
        Ok(()) => Ok(stream.into()),
        Err(Errno::NOENT) => Err(format!("waiting for a VMM to listen on {shown}")),
        // The kernel says the same of what is not a socket.
        Err(Errno::CONNREFUSED) => Err(match path.metadata() {
            Ok(metadata) if !is_socket(&metadata) => {
                format!("{shown} is not a socket: remove it, then the VMM can listen there")
            }
            _ => format!("nobody listens on {shown}: the VMM that made it has ended"),
        }),
        Err(Errno::AGAIN) => {
            Err(format!("the VMM on {shown} takes no more connections: it may have a backend"))
        }
        Err(Errno::PROTOTYPE) => Err(format!("{shown} is not a stream socket")),
        Err(error) => {
            let error = io::Error::from(error);
            Err(format!("cannot connect to {shown}: {error}"))
        }
    }
}

fn is_socket(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_socket()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn attempts_come_after_longer_and_longer() {
        let mut delay = Duration::ZERO;
        let delays: Vec<_> = std::iter::repeat_with(|| {
            delay = longer(delay);
            delay.as_millis()
        })
        .take(6)
        .collect();
        assert_eq!(delays, [50, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn attempts_of_many_ports_come_together() {
        let start = Instant::now();
        let after = |ms| on_tick(start, start + Duration::from_millis(ms)) - start;
        for (due, tick) in [(0, 0), (1, 50), (50, 50), (51, 100), (120, 150)] {
            assert_eq!(after(due).as_millis(), tick, "{due}");
        }
    }

    #[test]
    fn a_failure_says_what_is_wrong_with_the_path() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let failure = |words: &str| {
            let failure = dial(&path).expect_err(words);
            assert!(failure.contains(words), "{failure}");
        };
        failure("waiting for a VMM");
        std::fs::write(&path, "").expect("file");
        failure("is not a socket");
        std::fs::remove_file(&path).expect("file");
        drop(UnixDatagram::bind(&path).expect("datagram socket"));
        failure("nobody listens");
        std::fs::remove_file(&path).expect("socket");
        let datagram = UnixDatagram::bind(&path).expect("datagram socket");
        failure("not a stream socket");
        drop(datagram);
        std::fs::remove_file(&path).expect("socket");
        let listener = UnixListener::bind(&path).expect("listener");
        let stream = dial(&path).expect("connected");
        drop(stream);
        drop(listener);
        failure("nobody listens");
        let long = dir.path().join("x".repeat(200));
        assert!(dial(&long).expect_err("too long").contains("cannot connect"), "too long");
    }

    #[test]
    fn a_peer_with_a_full_backlog_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let listener =
            rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("socket");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).expect("path")).expect("bind");
        rustix::net::listen(&listener, 0).expect("listen");
        let _first = dial(&path).expect("one waits in the backlog");
        let failure = dial(&path).expect_err("the backlog is full");
        assert!(failure.contains("takes no more connections"), "{failure}");
    }
}
