//! The carrier between two daemons that run: `vswitchd --take-over`.
//!
//! ```text
//!  new                                 old (`/run/netloom/handover.sock`, for root alone)
//!   Hello { versions } ───────────────►  holds back changes, stops its workers
//!   ◄─────────── Document, Descriptors   (or Refused: it goes on)
//!   maps, builds; Ready ──────────────►
//!   ◄────────────────────────────── Go
//!   starts its workers; Running ──────►  puts its services away, ends
//!   ◄───────────────────── end of file
//!   loads the rest
//! ```
//!
//! Only one of the two touches rings at any time, and one always does in the end: until `Running` the old one goes on
//! when the new one's end of the socket closes (nobody else holds it, so that process is gone); the new one starts
//! nothing without `Go`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::Instance;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::stream::{self, Delivery, Message};
use super::{Rest, VERSION, pack};
use crate::store::{InstanceLock, Store};

/// How long the new daemon may take for its next word while no frames move.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the old one may take to put its services away, or to stop in the ordinary way.
const LEAVE: Duration = Duration::from_secs(15);
/// How long a daemon may take from its start until it can be called.
const DOOR: Duration = Duration::from_secs(2);
/// After accept(2) failed, as it does without descriptors.
const PAUSE: Duration = Duration::from_secs(1);

fn path(instance: &Instance) -> PathBuf {
    instance.run_dir().join("handover.sock")
}

fn socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn tell(socket: impl AsFd, message: &Message) -> io::Result<()> {
    stream::send(socket, message, &[], SendFlags::empty())
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {message:?}"))
}

/// Where successors of this daemon call.
#[derive(Debug)]
struct Door {
    listener: OwnedFd,
}

/// What the daemon gives away.
#[derive(Debug)]
pub struct Estate {
    pub datapath: datapath::Datapath,
    pub rest: Rest,
    pub lock: Arc<InstanceLock>,
}

impl Door {
    /// In the instance's run directory, whose lock the caller holds: a socket that is there is nobody's.
    fn open(instance: &Instance) -> io::Result<Self> {
        let path = path(instance);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = socket()?;
        // The daemon's umask makes it root's alone.
        bind(&listener, &SocketAddrUnix::new(&path)?)?;
        listen(&listener, 4)?;
        Ok(Self { listener })
    }

    /// Waits for a successor of the same user.
    fn wait(&self) -> io::Result<Caller> {
        loop {
            let connection = accept_with(&self.listener, SocketFlags::CLOEXEC)?;
            match Caller::new(connection) {
                Ok(caller) => return Ok(caller),
                Err(error) => tracing::warn!("refused to hand over: {error}"),
            }
        }
    }
}

/// Daemons that want to take over, one at a time.
///
/// # Errors
/// When nobody can be listened for.
pub fn callers(instance: &Instance) -> io::Result<tokio::sync::mpsc::Receiver<Caller>> {
    let door = Door::open(instance)?;
    let (sender, callers) = tokio::sync::mpsc::channel(1);
    let wait = move || {
        loop {
            match door.wait() {
                Ok(caller) => {
                    if sender.blocking_send(caller).is_err() {
                        return; // Nobody wants to know any more.
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot listen for a successor: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    };
    std::thread::Builder::new().name("handover".to_owned()).spawn(wait)?;
    Ok(callers)
}

/// A daemon that wants to take over.
#[derive(Debug)]
pub struct Caller {
    connection: OwnedFd,
    process: OwnedFd,
}

impl Caller {
    fn new(connection: OwnedFd) -> io::Result<Self> {
        let peer = socket_peercred(&connection)?;
        if peer.uid != geteuid() {
            let who = format!("process {} of user {}", peer.pid, peer.uid.as_raw());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, who));
        }
        let process = pidfd_open(peer.pid, PidfdFlags::empty())?;
        stream::patience(&connection, PATIENCE)?;
        let refuse = |reason: String| {
            // It may be gone already.
            let _ = tell(&connection, &Message::Refused { reason: reason.clone() });
            Err(io::Error::new(io::ErrorKind::Unsupported, reason))
        };
        match stream::receive(&connection)?.0 {
            Message::Hello { versions } if versions.contains(&VERSION) => {
                Ok(Self { connection, process })
            }
            Message::Hello { versions } => {
                refuse(format!("the new daemon reads {versions:?}, this one writes {VERSION}"))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Hands over. On an error this daemon goes on as if nothing had been.
    ///
    /// # Errors
    /// Why it goes on.
    pub fn hand_over(self, estate: &Estate) -> io::Result<()> {
        let begun = Instant::now();
        let mut suspended = estate.datapath.suspend().map_err(io::Error::other)?;
        let result = self.deliver(&mut suspended, estate);
        match &result {
            Ok(()) => suspended.leave(),
            Err(error) => {
                let _ = tell(&self.connection, &Message::Refused { reason: error.to_string() });
                // From here on that process cannot be told anything: it must not hear `Go` late.
                drop(self.connection);
                drop(suspended);
            }
        }
        let stood_still = begun.elapsed();
        tracing::info!(?stood_still, done = result.is_ok(), "hand-over");
        result
    }

    fn deliver(&self, suspended: &mut datapath::Suspended, estate: &Estate) -> io::Result<()> {
        let (state, fds) = suspended.export()?;
        let delivery = pack(state, fds, &estate.rest, Some(&estate.lock))?;
        stream::deliver(&self.connection, &delivery, SendFlags::empty())?;
        drop(delivery);
        match stream::receive(&self.connection)?.0 {
            Message::Ready => {}
            Message::Refused { reason } => return Err(io::Error::other(reason)),
            other => return Err(unexpected(&other)),
        }
        tell(&self.connection, &Message::Go)?;
        match stream::receive(&self.connection) {
            Ok((Message::Running, _)) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(error),
            // It may have started: nobody goes on before it is gone for certain.
            other => {
                let _ = pidfd_send_signal(&self.process, Signal::KILL);
                wait_for_end(self.process.as_fd(), None)?;
                Err(other.map_or_else(|error| error, |(message, _)| unexpected(&message)))
            }
        }
    }
}

/// The new daemon's end.
#[derive(Debug)]
pub(super) struct Successor {
    connection: OwnedFd,
    predecessor: OwnedFd,
}

/// Calls the daemon that runs, if one does. One that cannot hand over is stopped in the ordinary way.
///
/// # Errors
/// When it neither hands over nor ends.
pub(super) fn succeed(instance: &Instance) -> anyhow::Result<Option<(Successor, Delivery)>> {
    let Some(connection) = call(instance)? else {
        replace(instance)?;
        return Ok(None);
    };
    let predecessor = pidfd_open(socket_peercred(&connection)?.pid, PidfdFlags::empty())?;
    stream::patience(&connection, LEAVE)?;
    tell(&connection, &Message::Hello { versions: vec![VERSION] })?;
    let (message, file) = stream::receive(&connection).context("the running daemon broke off")?;
    match message {
        Message::Document { version, descriptors } => {
            let delivery = stream::accept(&connection, (version, descriptors), file)
                .context("the running daemon broke off")?;
            Ok(Some((Successor { connection, predecessor }, delivery)))
        }
        Message::Refused { reason } => {
            tracing::warn!("the running daemon cannot hand over: {reason}");
            replace(instance)?;
            Ok(None)
        }
        other => Err(unexpected(&other).into()),
    }
}

/// A connection to the daemon that runs; `None` when none does, or it has no door.
fn call(instance: &Instance) -> anyhow::Result<Option<OwnedFd>> {
    let path = path(instance);
    let lock = Store::lock_path(instance);
    let begun = Instant::now();
    loop {
        let connection = socket()?;
        let Err(error) = connect(&connection, &SocketAddrUnix::new(&path)?) else {
            return Ok(Some(connection));
        };
        let runs = InstanceLock::acquire(&lock, instance.name()).is_err();
        if !runs || begun.elapsed() > DOOR {
            tracing::info!(runs, "nobody hands over at {}: {error}", path.display());
            return Ok(None);
        }
        // One that has just taken over itself opens its door soon.
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Successor {
    /// Everything is made. Returns when the old daemon touches nothing any more.
    ///
    /// # Errors
    /// When it goes on by itself.
    pub(super) fn ready(&mut self) -> anyhow::Result<()> {
        let asked = tell(&self.connection, &Message::Ready);
        match asked.and_then(|()| stream::receive(&self.connection)) {
            Ok((Message::Go, _)) => Ok(()),
            Ok((Message::Refused { reason }, _)) => {
                anyhow::bail!("the running daemon goes on: {reason}")
            }
            Ok((other, _)) => Err(unexpected(&other).into()),
            // Nobody but this process is left to go on.
            Err(_) if wait_for_end(self.predecessor.as_fd(), Some(Duration::ZERO))? => Ok(()),
            Err(error) => Err(error).context("the running daemon goes on"),
        }
    }

    /// Frames move. Returns when the old daemon has put its services away.
    ///
    /// # Errors
    /// When it does not end.
    pub(super) fn running(self) -> anyhow::Result<()> {
        // It may have died meanwhile, which is as good.
        let _ = tell(&self.connection, &Message::Running);
        anyhow::ensure!(
            wait_for_end(self.predecessor.as_fd(), Some(LEAVE))?,
            "the old daemon has handed over and does not end; end it and restart this one"
        );
        Ok(())
    }
}

/// Ends the daemon that holds the instance's lock, if one does, as a service manager would.
pub(super) fn replace(instance: &Instance) -> anyhow::Result<()> {
    let path = Store::lock_path(instance);
    let Some(pid) = holder(&path) else { return Ok(()) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context(format!("process {}", pid.as_raw_nonzero())),
    };
    // It may have ended since, and its number may be another's: the lock tells.
    if InstanceLock::acquire(&path, instance.name()).is_ok() {
        return Ok(());
    }
    tracing::warn!("restarting in the ordinary way: guests that cannot reconnect lose the network");
    pidfd_send_signal(&process, Signal::TERM)?;
    let ended = wait_for_end(process.as_fd(), Some(LEAVE))?;
    anyhow::ensure!(ended, "process {} does not end", pid.as_raw_nonzero());
    Ok(())
}

/// The process in the lock file.
fn holder(path: &Path) -> Option<Pid> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Whether the process of a pidfd ends in time.
fn wait_for_end(process: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? != 0),
        }
    }
}
