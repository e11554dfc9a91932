//! A session as plain values, on its way to another process that serves the connection from there on.
//!
//! It may be taken between any two bytes of the stream: what was received of an unfinished message and what the peer has
//! not read yet go along. Only a pending action must be completed first.

use std::io;
use std::os::fd::OwnedFd;

use thiserror::Error;

use crate::device::{Device, Vring};
use crate::error::{ProtocolError, Refusal};
use crate::features;
use crate::handlers;
use crate::message::HEADER_LEN;
use crate::session::{Offer, Session};

/// Everything that a connection has come to.
#[derive(Debug, Default)]
pub struct Handover {
    pub device: Device,
    /// The beginning of a message.
    pub unread: Vec<u8>,
    /// Descriptors that came with it.
    pub unread_fds: Vec<OwnedFd>,
    /// Replies that the frontend has not taken.
    pub unsent: Vec<u8>,
}

/// A session that cannot be taken over: the frontend has to begin anew.
#[derive(Debug, Error)]
pub enum ImportError {
    #[error("it says what no frontend may say: {0}")]
    Device(#[from] Refusal),
    #[error("its unfinished message is none: {0}")]
    Message(#[from] ProtocolError),
    #[error("it has {got} rings, this port has {expected}")]
    Rings { got: usize, expected: usize },
}

impl Session {
    /// The session's state; it goes on as it was when nobody takes that over.
    ///
    /// # Errors
    /// While an action is pending, and when the process is out of descriptors.
    pub fn export(&self) -> io::Result<Handover> {
        if self.is_pending() {
            return Err(io::Error::other("an action of the session is pending"));
        }
        let (unread, fds) = self.framing().unfinished();
        let unread_fds = fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        let unsent = self.output().to_vec();
        Ok(Handover { device: self.device().clone(), unread, unread_fds, unsent })
    }

    /// Goes on with a session of another process. Everything is checked as if the frontend had said it, against what is
    /// offered now: the other process may have been another version.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn import(offer: Offer, handover: Handover) -> Result<Self, ImportError> {
        let Handover { device, unread, unread_fds, unsent } = handover;
        let mut session = Self::new(offer);
        check(&session, &device)?;
        session.resume(device, unsent);
        let (head, payload) = unread.split_at(unread.len().min(HEADER_LEN));
        session.receive(head, unread_fds)?;
        session.receive(payload, None)?;
        Ok(session)
    }
}

fn check(session: &Session, device: &Device) -> Result<(), ImportError> {
    let offer = session.offer();
    let expected = session.device().vrings.len();
    if device.vrings.len() != expected {
        return Err(ImportError::Rings { got: device.vrings.len(), expected });
    }
    let unknown = device.features & !offer.features;
    if unknown != 0 {
        return Err(Refusal::Features(unknown).into());
    }
    let unknown = device.protocol_features & !offer.protocol_features;
    if unknown != 0 {
        return Err(Refusal::ProtocolFeatures(unknown).into());
    }
    let mut regions = Vec::with_capacity(device.regions.len());
    for region in &device.regions {
        handlers::memory::add(&mut regions, region.clone())?;
    }
    handlers::log::check(device)?;
    let packed = device.has(features::virtio::F_RING_PACKED);
    for (ring, vring) in device.vrings.iter().enumerate() {
        let &Vring { num, addr, .. } = vring;
        if num != 0 && (!packed && !num.is_power_of_two() || num > offer.max_ring) {
            return Err(Refusal::RingSize { ring, num: num.into(), max: offer.max_ring }.into());
        }
        if let Some(addr) = addr {
            handlers::vring::check_alignment(packed, ring, addr.desc, addr.avail, addr.used)?;
        }
    }
    Ok(())
}
