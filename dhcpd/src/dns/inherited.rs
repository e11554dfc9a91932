//! Sockets that another process has served, so that queries that come between the two wait instead of being refused.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Socket, Type};

/// Sockets without a server; one that is to listen on the same address takes them. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct InheritedSockets(Arc<Mutex<Vec<Socket>>>);

impl InheritedSockets {
    /// Adds some.
    pub fn put(&self, fds: impl IntoIterator<Item = OwnedFd>) {
        self.lock().extend(fds.into_iter().map(Socket::from));
    }

    /// Closes those that nobody has taken.
    pub fn close(&self) {
        self.lock().clear();
    }

    pub(super) fn take(&self, addr: SocketAddr, kind: Type) -> Option<Socket> {
        let mut sockets = self.lock();
        let is_it = |socket: &Socket| {
            socket.r#type().is_ok_and(|found| found == kind)
                && socket.local_addr().is_ok_and(|found| found.as_socket() == Some(addr))
        };
        let at = sockets.iter().position(is_it)?;
        Some(sockets.swap_remove(at))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
