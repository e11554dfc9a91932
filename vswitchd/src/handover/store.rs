//! The carrier through systemd's file descriptor store (`FileDescriptorStoreMax=`, `sd_pid_notify_with_fds(3)`).
//!
//! One descriptor is stored: a socket in whose queue the whole delivery waits. So order and number of descriptors are
//! ours, whatever the manager does with its list.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use sd_notify::NotifyState;

use super::stream::{self, Message};
use super::{Rest, pack};

/// Name of the descriptor in the store.
const NAME: &str = "handover";
/// Room in the socket: each message with 253 descriptors takes about a kilobyte.
const ROOM: usize = 16 << 20;
/// How long the manager may take to say that it has read what was sent to it.
const BARRIER: Duration = Duration::from_millis(500);

/// Whether a service manager listens that might store something.
#[must_use]
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Leaves a suspended datapath to the manager, for the next daemon.
///
/// # Errors
/// When it cannot be stored; then the next daemon starts without.
pub fn leave(suspended: &mut datapath::Suspended, rest: &Rest) -> io::Result<()> {
    let (state, fds) = suspended.export()?;
    let delivery = pack(state, fds, rest, None)?;
    let kind = SocketType::SEQPACKET;
    let (ours, stored) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_send_buffer_size_force(&ours, ROOM)?;
    stream::deliver(&ours, &delivery, SendFlags::DONTWAIT)?;
    // Without FDPOLL=0 the manager forgets it as soon as our end is closed.
    let state = [NotifyState::FdStore, NotifyState::FdName(NAME), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[stored.as_fd()])?;
    barrier()
}

/// Returns when the manager has read everything that was sent to it (`sd_notify_barrier(3)`), or does not answer.
fn barrier() -> io::Result<()> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[write.as_fd()])?;
    drop(write);
    let limit = Timespec::try_from(BARRIER).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&read, PollFlags::empty())];
    poll(&mut fds, Some(&limit))?;
    Ok(())
}

/// What the daemon before has left, if anything. It is taken: the store is empty then.
///
/// # Errors
/// When it cannot be read.
pub(super) fn take() -> io::Result<Option<stream::Delivery>> {
    let mut found = None;
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: the manager has put the descriptor there for this process (sd_listen_fds(3)), which asks once, before
        // it opens anything.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if name == NAME {
            found = Some(fd);
        }
    }
    let Some(socket) = found else { return Ok(None) };
    let remove = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];
    sd_notify::notify(&remove)?;
    stream::patience(&socket, Duration::from_millis(100))?;
    match stream::receive(&socket)? {
        (Message::Document { version, descriptors }, file) => {
            stream::accept(&socket, (version, descriptors), file).map(Some)
        }
        (other, _) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}"))),
    }
}
