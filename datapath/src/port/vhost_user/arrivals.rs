//! How connections come about and end, for every kind of [`Origin`].

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tracing::{debug, info, warn};
use vhost_user::socket;

use super::connection::{Connection, End};
use super::origin::Origin;
use super::thread::{CONNECTION, LISTENER, Thread};
use crate::PortState;

/// A hub's connection on which nothing is said for so long ends, and its port with it.
const SILENCE: Duration = Duration::from_secs(10);
/// After accept(2) failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Thread {
    /// The port is without a connection: sees to it that it gets one. Who waits in a listener's queue is taken when epoll
    /// says so: a queue full of connections that have ended already is not gone through from call to call.
    pub(super) fn await_frontend(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let failed = match &mut endpoint.origin {
            Origin::Listener { listener, .. } => {
                let data = epoll::EventData::new_u64(key << 2 | LISTENER);
                let watched = listener.set_nonblocking(true).and_then(|()| {
                    Ok(epoll::add(&self.epoll, &*listener, data, epoll::EventFlags::IN)?)
                });
                watched.err().map(|error| format!("cannot listen: {error}"))
            }
            Origin::Dialer { path, delay } => {
                let ordered = self.dialer.dial(key, path, *delay);
                ordered.err().map(|error| format!("cannot connect: {error}"))
            }
            Origin::Hub => return,
        };
        if let Some(reason) = failed {
            warn!(port = endpoint.name, reason, "no frontend can be served");
            self.status.set(endpoint.id, PortState::Gone, Some(reason));
        }
    }

    /// Wants no connection from there, for now.
    pub(super) fn ignore(&self, key: u64, origin: &Origin) {
        match origin {
            Origin::Listener { listener, .. } => {
                let _ = epoll::delete(&self.epoll, listener);
            }
            Origin::Dialer { .. } => self.dialer.forget(key),
            Origin::Hub => {}
        }
    }

    pub(super) fn accept(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Origin::Listener { listener, paused } = &mut endpoint.origin else { return };
        if endpoint.connection.is_some() || endpoint.leaving.is_some() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => self.connected(key, stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!(port = endpoint.name, %error, "cannot accept a frontend");
                let _ = epoll::delete(&self.epoll, &*listener);
                *paused = Some(Instant::now() + ACCEPT_PAUSE);
                endpoint.soon = true;
            }
        }
    }

    pub(super) fn dialed(&mut self, key: u64, result: Result<UnixStream, String>) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        match result {
            Ok(stream) => self.connected(key, stream),
            Err(reason) => {
                debug!(port = endpoint.name, reason, "no connection");
                self.status.set(endpoint.id, PortState::Connecting, Some(reason));
            }
        }
    }

    /// A frontend is there.
    pub(super) fn connected(&mut self, key: u64, stream: UnixStream) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let data = epoll::EventData::new_u64(key << 2 | CONNECTION);
        let ready = stream
            .set_nonblocking(true)
            .and_then(|()| Ok(epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?));
        if let Err(error) = ready {
            warn!(port = endpoint.name, %error, "cannot serve the frontend");
            drop(stream);
            endpoint.origin.ended(false);
            match endpoint.origin {
                // The listener is still watched.
                Origin::Listener { .. } => {}
                Origin::Dialer { .. } => self.await_frontend(key),
                Origin::Hub => {
                    let reason = Some(format!("cannot serve the frontend: {error}"));
                    self.status.set(endpoint.id, PortState::Gone, reason);
                }
            }
            return;
        }
        debug!(port = endpoint.name, "a frontend is connected");
        if let Origin::Listener { listener, .. } = &endpoint.origin {
            // One frontend at a time: the next waits in the listener's queue.
            let _ = epoll::delete(&self.epoll, listener);
        }
        endpoint.vhost.release();
        endpoint.connection = Some(Connection::new(
            stream,
            endpoint.offer.clone(),
            Arc::clone(&endpoint.vhost),
            endpoint.generation,
        ));
        endpoint.watched_for_writing = false;
        self.drive(key);
    }

    pub(super) fn hang_up(&mut self, key: u64, end: End) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(mut connection) = endpoint.connection.take() else { return };
        let _ = epoll::delete(&self.epoll, &connection.stream);
        // The peer learns it at once, even while a worker holds a ring.
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        if let Some(kick) = endpoint.control_kick.take() {
            let _ = epoll::delete(&self.epoll, &kick);
        }
        endpoint.soon = false;
        endpoint.origin.ended(connection.was_up);
        let idle = endpoint.origin.idle();
        if matches!(end, End::Socket(socket::Error::Descriptor(_))) {
            // Worse than what was refused before.
            connection.refusal = Some(end.to_string());
        }
        let (state, reason) = match &end {
            End::Closed => {
                debug!(port = endpoint.name, "the frontend disconnected");
                // Whoever listens is told nothing else; who waits for the VMM wants to know why.
                let closed = (idle != PortState::Listening).then(|| end.to_string());
                (idle, connection.refusal.clone().or(closed))
            }
            End::Memory | End::Log if idle != PortState::Gone => {
                (PortState::Quarantined, Some(end.to_string()))
            }
            _ => {
                info!(port = endpoint.name, error = %end, "closed the frontend's connection");
                let refusal = connection.refusal.clone();
                (idle, Some(refusal.unwrap_or_else(|| end.to_string())))
            }
        };
        if let End::Socket(socket::Error::Descriptor(foreign)) = end {
            connection.dispose(foreign);
        }
        connection.farewell = Some((state, reason));
        endpoint.leaving = Some(connection);
        self.leave(key);
    }

    /// Takes a closed connection's rings away, then is ready for the next one.
    pub(super) fn leave(&mut self, key: u64) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let Some(mut connection) = endpoint.leaving.take() else { return };
        let gone = connection.device.remove_all(connection.session.device());
        if connection.device.take_changed() {
            self.shared.epochs.advance();
            self.balancer.rings_changed();
        }
        // Whoever reads the state may rely on it that no frame goes to the guest any more.
        if gone.is_ok()
            && let Some((state, reason)) = connection.farewell.take()
        {
            self.status.set(endpoint.id, state, reason);
        }
        if gone.is_err() || connection.is_closing() {
            endpoint.leaving = Some(connection);
            return;
        }
        endpoint.generation = connection.device.generation();
        self.await_frontend(key);
    }

    /// Nothing has come from the peer since it connected.
    pub(super) fn silent(&mut self, key: u64, silent: Duration) {
        let Some(endpoint) = self.endpoints.get(&key) else { return };
        match endpoint.origin {
            Origin::Dialer { .. } => {
                let reason = "the VMM has not said anything yet: it may have another backend";
                self.status.set(endpoint.id, PortState::Connecting, Some(reason.to_owned()));
            }
            Origin::Hub if silent > SILENCE => self.hang_up(key, End::Silent(SILENCE)),
            Origin::Listener { .. } | Origin::Hub => {}
        }
    }
}
