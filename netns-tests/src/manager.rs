//! A service manager in small: what systemd is to a service with `FileDescriptorStoreMax=`.
//!
//! It has a notify socket, keeps the descriptors that are sent to it (`FDSTORE=1`), forgets those whose peer is gone
//! unless told not to look (`FDPOLL=0`), answers barriers, and passes what it keeps to the next process
//! (`LISTEN_FDS`); see sd_notify(3), sd_listen_fds(3).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// See the module's documentation.
#[derive(Debug)]
pub struct ServiceManager {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// With name, and whether to forget it when its peer is gone.
    store: Vec<(String, bool, OwnedFd)>,
    ready: usize,
    /// What was sent that is not understood.
    strange: Vec<String>,
}

/// The first descriptor that is passed on (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

impl ServiceManager {
    /// # Errors
    /// When its socket cannot be made in `dir`.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).context("the notify socket")?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // It ends with the test's process.
        std::thread::spawn(move || while listen(&socket, &shared).is_ok() {});
        Ok(Self { socket: path, state })
    }

    /// How often a service has said that it is ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.lock().ready
    }

    /// How many descriptors are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.lock().store.len()
    }

    /// Keeps a descriptor that no service has sent.
    pub fn keep(&self, name: &str, fd: OwnedFd) {
        self.lock().store.push((name.to_owned(), false, fd));
    }

    /// The command as this manager starts it: with the notify socket and everything that is kept.
    ///
    /// # Errors
    /// When a service has sent what is not understood.
    pub fn dress(&self, command: &Command) -> anyhow::Result<Command> {
        let mut state = self.lock();
        ensure!(state.strange.is_empty(), "not understood: {:?}", state.strange);
        state.store.retain(|(_, polled, fd)| {
            let mut fds = [PollFd::new(fd, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            !(*polled && poll(&mut fds, Some(&now)).is_ok_and(|gone| gone != 0))
        });
        let mut dressed = Command::new("sh");
        // The process keeps its number through exec.
        dressed.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]).arg(command.get_program());
        dressed.args(command.get_args()).env("NOTIFY_SOCKET", &self.socket);
        if !state.store.is_empty() {
            let names: Vec<_> = state.store.iter().map(|(name, ..)| name.as_str()).collect();
            dressed.env("LISTEN_FDS", names.len().to_string());
            dressed.env("LISTEN_FDNAMES", names.join(":"));
        }
        // Far from where they are to go, so that none is overwritten before it is copied.
        let copies =
            state.store.iter().map(|(.., fd)| Ok(rustix::io::fcntl_dupfd_cloexec(fd, 500)?));
        let copies = copies.collect::<anyhow::Result<Vec<OwnedFd>>>()?;
        // SAFETY: dup2 is async-signal-safe; the descriptors are the closure's own.
        unsafe {
            dressed.pre_exec(move || {
                for (target, copy) in (FIRST..).zip(&copies) {
                    if libc::dup2(copy.as_raw_fd(), target) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        Ok(dressed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One datagram.
fn listen(socket: &UnixDatagram, state: &Mutex<State>) -> rustix::io::Result<()> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket.as_fd(), &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds: Vec<OwnedFd> = fds.flatten().collect();
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let name = value("FDNAME").unwrap_or("stored").to_owned();
    if value("FDSTORE") == Some("1") {
        let polled = value("FDPOLL") != Some("0");
        state.store.extend(fds.into_iter().map(|fd| (name.clone(), polled, fd)));
    } else if value("FDSTOREREMOVE") == Some("1") {
        state.store.retain(|(kept, ..)| *kept != name);
    } else if value("READY") == Some("1") {
        state.ready += 1;
    } else if value("BARRIER") != Some("1") && value("STOPPING") != Some("1") {
        state.strange.push(text);
    }
    // A barrier's descriptor is closed here.
    Ok(())
}
