//! Network namespaces on threads, and frames between the kernels in them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod transfer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use datapath::port::packet::PacketSocket;
use datapath::port::tap::TapQueue;
use rustix::event::{PollFd, PollFlags, Timespec};
use wire::VirtioNetHdr;

/// How long a test waits for something that should take milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Large enough for every frame.
pub const BUFFER: usize = 65_536 + 64;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which ends with it. Its loopback is up.
pub struct Netns {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Netns {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, path) = mpsc::channel();
        let thread = thread::spawn(move || {
            // SAFETY: changes the namespace of this thread only, and no file descriptor table is unshared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a network namespace needs CAP_SYS_ADMIN");
            let (process, thread) = (rustix::process::getpid(), rustix::thread::gettid());
            let path = format!(
                "/proc/{}/task/{}/ns/net",
                process.as_raw_nonzero(),
                thread.as_raw_nonzero()
            );
            ready.send(path).unwrap();
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        let path = path.recv().expect("the namespace's thread ended");
        let netns = Self { jobs: Some(jobs), thread: Some(thread), path };
        netns.ip("link set lo up");
        netns
    }

    /// Something that other processes can name the namespace by while it lives.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Runs a job in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job).recv().expect("the job in the namespace panicked")
    }

    /// Starts a job in the namespace; jobs of one namespace run one after another.
    pub fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        let job = Box::new(move || {
            // Nobody waits any more when the test has failed.
            let _ = sender.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).expect("the namespace's thread ended");
        receiver
    }

    /// `ip` with these words.
    pub fn ip(&self, words: &str) -> String {
        let words = words.to_owned();
        self.run(move || {
            let output =
                Command::new("ip").args(words.split(' ')).output().expect("ip does not run");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {words}: {error}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !thread::panicking() {
                outcome.expect("a job in the namespace panicked");
            }
        }
    }
}

/// What a frame can be taken from and given to.
pub trait Link: AsFd {
    fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&mut self, hdr: &VirtioNetHdr, pieces: &[&[u8]]) -> io::Result<()>;
}

fn iovecs(pieces: &[&[u8]]) -> Vec<libc::iovec> {
    let piece = |piece: &&[u8]| libc::iovec {
        iov_base: piece.as_ptr().cast_mut().cast(),
        iov_len: piece.len(),
    };
    pieces.iter().map(piece).collect()
}

impl Link for TapQueue {
    fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize> {
        self.recv(hdr, buf)
    }

    fn send(&mut self, hdr: &VirtioNetHdr, pieces: &[&[u8]]) -> io::Result<()> {
        // SAFETY: the pieces are borrowed during the call.
        unsafe { self.send(hdr, &iovecs(pieces)) }
    }
}

impl Link for PacketSocket {
    fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize> {
        self.recv(hdr, buf)
    }

    fn send(&mut self, hdr: &VirtioNetHdr, pieces: &[&[u8]]) -> io::Result<()> {
        // SAFETY: the pieces are borrowed during the call.
        unsafe { self.send(hdr, &iovecs(pieces)) }
    }
}

/// Waits until one of the descriptors can be read, a moment at most.
pub fn wait(fds: &[BorrowedFd<'_>]) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let moment = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    rustix::event::poll(&mut fds, Some(&moment)).unwrap();
}

/// The next frame that `wanted` makes something of; others are passed over.
pub fn expect<T>(
    link: &mut impl Link,
    what: &str,
    mut wanted: impl FnMut(&VirtioNetHdr, &[u8]) -> Option<T>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    let mut buf = vec![0; BUFFER];
    let mut hdr = VirtioNetHdr::default();
    while Instant::now() < deadline {
        match link.recv(&mut hdr, &mut buf) {
            Ok(len) => {
                if let Some(found) = wanted(&hdr, &buf[..len]) {
                    return found;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&[link.as_fd()]),
            Err(error) => panic!("waiting for {what}: {error}"),
        }
    }
    panic!("no {what} came within {DEADLINE:?}");
}

/// Waits for something that shows only by looking.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
