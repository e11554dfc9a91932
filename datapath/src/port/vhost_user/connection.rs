//! One frontend's connection: bytes to session, session's actions to device, answers back.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use vhost_user::socket::{self, Read};
use vhost_user::{Action, Foreign, Offer, Session};

use super::device::{Busy, DeviceState};
use super::queue::VhostPort;
use crate::PortState;

/// Messages that are handled before other ports get their turn.
const MESSAGES: usize = 64;
/// How long a frontend may leave answers unread.
const UNREAD: Duration = Duration::from_secs(5);

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the frontend closed the connection")]
    Closed,
    #[error(transparent)]
    Socket(#[from] socket::Error),
    #[error(transparent)]
    Protocol(#[from] vhost_user::ProtocolError),
    #[error("answers were left unread for {} s", UNREAD.as_secs())]
    Unread,
    #[error("nothing was said for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the file behind the guest's memory was cut short, or has no pages left")]
    Memory,
    #[error("the file behind the dirty log was cut short")]
    Log,
}

/// What the thread has to do for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Come back when the socket is ready.
    Socket,
    /// Come back soon: a worker holds a ring, or there are more messages.
    Soon,
}

pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) session: Session,
    pub(super) device: DeviceState,
    pub(super) since: Instant,
    /// The frontend has said something.
    pub(super) heard: bool,
    /// Rings have moved frames.
    pub(super) was_up: bool,
    /// How the port is once the rings are taken away.
    pub(super) farewell: Option<(PortState, Option<String>)>,
    action: Option<Action>,
    /// Since when answers have been waiting for the frontend to read them.
    unread: Option<Instant>,
    /// A reason for the operator: the last thing that was refused.
    pub(super) refusal: Option<String>,
    /// Quarantined by a worker: the rings are still to be taken away.
    breaking: bool,
    /// Closes what must not be held; see [`Connection::dispose`].
    closing: Option<JoinHandle<()>>,
}

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        offer: Offer,
        vhost: Arc<VhostPort>,
        generation: u64,
    ) -> Self {
        Self {
            stream,
            session: Session::new(offer),
            device: DeviceState::new(vhost, generation),
            since: Instant::now(),
            heard: false,
            was_up: false,
            farewell: None,
            action: None,
            unread: None,
            refusal: None,
            breaking: false,
            closing: None,
        }
    }

    /// A connection of another process.
    pub(super) fn import(
        stream: UnixStream,
        session: Session,
        device: DeviceState,
        heard: bool,
        refusal: Option<String>,
    ) -> Self {
        Self {
            stream,
            session,
            device,
            since: Instant::now(),
            heard,
            was_up: false,
            farewell: None,
            action: None,
            unread: None,
            refusal,
            breaking: false,
            closing: None,
        }
    }

    /// Does what was waiting for a worker. None may run.
    pub(super) fn settle(&mut self, port: &str) -> Result<(), End> {
        self.quarantine()?;
        self.act(port).map(drop)
    }

    /// The port was quarantined.
    pub(super) fn break_off(&mut self) {
        self.breaking = true;
    }

    /// Closes descriptors that a frontend must not send, in a thread of their own: their owner may hold whoever does. There
    /// is one such thread for a port, because the port takes no further connection until it has ended.
    pub(super) fn dispose(&mut self, foreign: Foreign) {
        let close = std::thread::Builder::new().name("close".to_owned());
        // Without a thread they were closed with the closure.
        self.closing = close.spawn(move || drop(foreign)).ok();
    }

    /// Descriptors of the connection are still being closed.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The socket must be watched for room to write.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// Does what can be done without waiting.
    pub(super) fn drive(&mut self, port: &str) -> Result<Wait, End> {
        if self.quarantine()? == Wait::Soon {
            return Ok(Wait::Soon);
        }
        for _ in 0..MESSAGES {
            if self.act(port)? == Wait::Soon {
                return Ok(Wait::Soon);
            }
            self.action = self.session.poll()?;
            if let Some(refusal) = self.session.take_refusal() {
                info!(port, %refusal, "refused a message of the frontend");
                self.refusal = Some(refusal.to_string());
            }
            if self.action.is_some() {
                continue;
            }
            let sent =
                socket::write(&self.stream, &mut self.session).map_err(socket::Error::from)?;
            if sent {
                self.unread = None;
            } else if self.unread.get_or_insert_with(Instant::now).elapsed() > UNREAD {
                return Err(End::Unread);
            }
            match socket::read(&self.stream, &mut self.session)? {
                Read::Received => self.heard = true,
                Read::Empty | Read::Paused => return Ok(Wait::Socket),
                Read::Closed => return Err(End::Closed),
            }
        }
        Ok(Wait::Soon)
    }

    /// Takes the rings away after a fault.
    fn quarantine(&mut self) -> Result<Wait, End> {
        if self.breaking {
            if self.device.is_poisoned() {
                return Err(End::Memory);
            }
            if self.device.is_log_poisoned() {
                return Err(End::Log);
            }
            if self.device.break_off(self.session.device()).is_err() {
                return Ok(Wait::Soon);
            }
            self.breaking = false;
        }
        Ok(Wait::Socket)
    }

    /// Does what the session has asked for.
    fn act(&mut self, port: &str) -> Result<Wait, End> {
        let Some(action) = self.action else { return Ok(Wait::Socket) };
        match self.device.apply(self.session.device(), action) {
            Err(Busy) => return Ok(Wait::Soon),
            Ok(Ok(outcome)) => {
                debug!(port, ?action, ?outcome, "vhost-user");
                self.action = None;
                self.session.complete(outcome)?;
            }
            Ok(Err(error)) => {
                self.action = None;
                self.refusal = Some(error.to_string());
                info!(port, ?action, %error, "refused what the frontend asked for");
                self.session.complete(vhost_user::Outcome::Failed)?;
                // The session only knows that it failed.
                let _ = self.session.take_refusal();
            }
        }
        Ok(Wait::Socket)
    }
}
