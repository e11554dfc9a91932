//! One connection: messages in, device state, actions and replies out.

use std::os::fd::OwnedFd;

use zerocopy::IntoBytes;

use crate::device::{Device, Vring};
use crate::error::{ProtocolError, Refusal};
use crate::features::{protocol, virtio};
use crate::framing::{Framing, Message};
use crate::handlers::{Context, Reaction};
use crate::message::{Header, Request, VringState};
use crate::table::{self, Answer, OnRefusal};

/// Most regions in one SET_MEM_TABLE.
pub const TABLE_REGIONS: usize = 32;
/// Most regions altogether, told to frontends that use ADD_MEM_REG.
pub const MEM_SLOTS: usize = 64;
/// Unread reply bytes above which no further message is read.
pub const OUTPUT_LIMIT: usize = 4096;

/// What the port offers to its frontend; fixed for the connection.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Device features. `F_PROTOCOL_FEATURES` is added, and `F_LOG_ALL` where LOG_SHMFD is offered.
    pub features: u64,
    /// Protocol features, masked with [`protocol::SUPPORTED`].
    pub protocol_features: u64,
    /// Pairs of RX and TX rings, at least 1.
    pub queue_pairs: u16,
    /// The device configuration (`struct virtio_net_config`, virtio 1.3 §5.1.4), little-endian.
    pub config: Vec<u8>,
    /// Largest ring, in descriptors.
    pub max_ring: u16,
}

/// Something the driver must do before the session reads on; ended by [`Session::complete`].
/// [`Session::device`] shows the new state already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// `features` changed (no ring with another layout runs), rings were enabled by it, or dirty logging was switched on
    /// or off.
    Features,
    /// The regions changed: map the new table, rebuild rings, unmap the old after quiescence.
    Memory,
    /// There is another dirty log: map it, and use it in place of the old one from the completion on.
    Log,
    /// Anything of this ring changed (size, addresses, base, notifiers, enabled, started): rebuild it.
    Vring(u16),
    /// Stop this ring and complete with [`Outcome::VringBase`].
    StopVring(u16),
    /// All rings are stopped and disabled: drop them. Memory stays.
    Reset,
    /// Send this guest's gratuitous RARP on its port.
    Rarp([u8; 6]),
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It could not be done and the driver goes on with the state before it;
    /// [`Session::device`] goes back to that, too.
    Failed,
    /// Answer to [`Action::StopVring`]: the next available index.
    VringBase(u32),
}

/// The state machine of one connection. See the crate's documentation for the flow.
#[derive(Debug)]
pub struct Session {
    offer: Offer,
    device: Device,
    framing: Framing,
    pending: Option<Pending>,
    output: Vec<u8>,
    refusal: Option<ProtocolError>,
}

/// The action that the driver works on.
#[derive(Debug)]
struct Pending {
    request: Request,
    action: Action,
    acknowledge: bool,
    /// The message's own answer.
    answer: Option<Vec<u8>>,
    before: Device,
}

impl Session {
    #[must_use]
    pub fn new(offer: Offer) -> Session {
        let mut offer = offer;
        offer.features |= virtio::F_PROTOCOL_FEATURES;
        offer.protocol_features &= protocol::SUPPORTED;
        if offer.protocol_features & protocol::LOG_SHMFD == 0 {
            offer.features &= !virtio::F_LOG_ALL;
        } else {
            offer.features |= virtio::F_LOG_ALL;
        }
        offer.queue_pairs = offer.queue_pairs.clamp(1, 127);
        let control = usize::from(offer.features & virtio::NET_F_CTRL_VQ != 0);
        let rings = usize::from(offer.queue_pairs) * 2 + control;
        let device = Device { vrings: vec![Vring::default(); rings], ..Device::default() };
        Session {
            offer,
            device,
            framing: Framing::default(),
            pending: None,
            output: Vec::new(),
            refusal: None,
        }
    }

    /// How many bytes to read from the socket next, at most; 0 while a message waits for
    /// [`Session::poll`], an action is pending or replies are unread. Reading just this many keeps each
    /// message's descriptors with its header.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.pending.is_some() || self.output.len() >= OUTPUT_LIMIT {
            return 0;
        }
        self.framing.wanted()
    }

    /// Takes bytes of the stream, up to [`Session::wanted`], and the descriptors that came with them.
    ///
    /// # Errors
    /// When the header is not one of a request that this backend accepts; the connection is over.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), ProtocolError> {
        self.framing.receive(bytes, fds)
    }

    /// Tells that the peer closed the stream.
    ///
    /// # Errors
    /// When it did so within a message.
    pub fn finish(&self) -> Result<(), ProtocolError> {
        self.framing.finish()
    }

    /// Handles the message received, if whole. `None`: nothing to do for the driver now, send
    /// [`Session::output`] and receive more.
    ///
    /// # Errors
    /// When the message is refused and the frontend cannot be told; the connection is over.
    pub fn poll(&mut self) -> Result<Option<Action>, ProtocolError> {
        if self.pending.is_some() {
            return Ok(None);
        }
        match self.framing.take() {
            Some(message) => self.handle(message),
            None => Ok(None),
        }
    }

    /// Ends the pending action and queues its answer. Without a pending action it does nothing.
    ///
    /// # Errors
    /// When the action failed and the frontend cannot be told; the connection is over.
    pub fn complete(&mut self, outcome: Outcome) -> Result<(), ProtocolError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let Pending { request, action, acknowledge, answer, before } = pending;
        match (action, outcome) {
            (Action::StopVring(index), Outcome::VringBase(base)) => {
                self.device.vrings[usize::from(index)].base = base;
                let state = VringState { index: u32::from(index), num: base };
                self.reply(request, state.as_bytes());
                Ok(())
            }
            (Action::StopVring(_), _) => {
                Err(ProtocolError::Failed { request, context: "the ring could not be stopped" })
            }
            (_, Outcome::Failed) => {
                self.device = before;
                self.refuse(request, acknowledge, OnRefusal::Close, Refusal::Failed)
            }
            (_, Outcome::Done | Outcome::VringBase(_)) => {
                match answer {
                    Some(answer) => self.reply(request, &answer),
                    None => self.acknowledge(request, acknowledge, 0),
                }
                Ok(())
            }
        }
    }

    /// Reply bytes to send.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Tells that the first `len` bytes of [`Session::output`] were sent.
    pub fn sent(&mut self, len: usize) {
        self.output.drain(..len.min(self.output.len()));
    }

    /// The checked state of the device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the port offers, as completed by [`Session::new`].
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The last message that was refused although the connection goes on, for the log.
    pub fn take_refusal(&mut self) -> Option<ProtocolError> {
        self.refusal.take()
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(crate) fn framing(&self) -> &Framing {
        &self.framing
    }

    /// Takes the place of a session that has come to this.
    pub(crate) fn resume(&mut self, device: Device, output: Vec<u8>) {
        self.device = device;
        self.output = output;
    }

    fn handle(&mut self, message: Message) -> Result<Option<Action>, ProtocolError> {
        let Message { request, need_reply, payload, fds } = message;
        let wants_ack = |device: &Device| need_reply && device.has_protocol(protocol::REPLY_ACK);
        let Some(rule) = table::rule(request) else {
            let acknowledge = wants_ack(&self.device);
            self.refuse(request, acknowledge, OnRefusal::Close, Refusal::Unsupported)?;
            return Ok(None);
        };
        // The handler works on a copy, so that a refusal leaves no trace.
        let mut next = self.device.clone();
        let reaction = if self.device.has_protocol(rule.wants) {
            (rule.handler)(&mut Context {
                offer: &self.offer,
                device: &mut next,
                payload: &payload,
                fds,
            })
        } else {
            Err(Refusal::NotNegotiated(rule.wants))
        };
        let acknowledge = rule.answer == Answer::Ack && wants_ack(&next);
        match reaction {
            Ok(Reaction::Done) => {
                self.device = next;
                self.acknowledge(request, acknowledge, 0);
                Ok(None)
            }
            Ok(Reaction::Reply(payload)) => {
                self.device = next;
                self.reply(request, &payload);
                Ok(None)
            }
            Ok(Reaction::Act(action)) => Ok(self.act(request, next, action, acknowledge, None)),
            Ok(Reaction::ActThenReply(action, answer)) => {
                Ok(self.act(request, next, action, acknowledge, Some(answer)))
            }
            Err(refusal) => {
                let acknowledge = rule.answer == Answer::Ack && wants_ack(&self.device);
                self.refuse(request, acknowledge, rule.refusal, refusal)?;
                Ok(None)
            }
        }
    }

    fn act(
        &mut self,
        request: Request,
        next: Device,
        action: Action,
        acknowledge: bool,
        answer: Option<Vec<u8>>,
    ) -> Option<Action> {
        let before = std::mem::replace(&mut self.device, next);
        self.pending = Some(Pending { request, action, acknowledge, answer, before });
        Some(action)
    }

    fn refuse(
        &mut self,
        request: Request,
        acknowledge: bool,
        otherwise: OnRefusal,
        refusal: Refusal,
    ) -> Result<(), ProtocolError> {
        let error = ProtocolError::Refused { request, refusal };
        if !acknowledge && otherwise == OnRefusal::Close {
            return Err(error);
        }
        self.acknowledge(request, acknowledge, 1);
        self.refusal = Some(error);
        Ok(())
    }

    fn acknowledge(&mut self, request: Request, wanted: bool, value: u64) {
        if wanted {
            self.reply(request, value.as_bytes());
        }
    }

    fn reply(&mut self, request: Request, payload: &[u8]) {
        self.output.extend_from_slice(Header::reply(request, payload.len()).as_bytes());
        self.output.extend_from_slice(payload);
    }
}
