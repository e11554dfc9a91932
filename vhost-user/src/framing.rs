//! Cuts the byte stream into messages, at any split, holding one message at most.

use std::os::fd::OwnedFd;

use zerocopy::FromBytes;

use crate::error::ProtocolError;
use crate::message::{HEADER_LEN, Header, MAX_FDS, MAX_PAYLOAD, Request};
use crate::table;

/// One whole message, its sizes and descriptor count within the table's limits.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: Request,
    pub(crate) need_reply: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Message under construction.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    head: [u8; HEADER_LEN],
    head_len: usize,
    header: Option<Header>,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Framing {
    /// Bytes until the next boundary (end of header or of payload); 0 when a message is whole.
    pub(crate) fn wanted(&self) -> usize {
        match &self.header {
            None => HEADER_LEN - self.head_len,
            Some(header) => size_of_payload(header) - self.payload.len(),
        }
    }

    /// Takes up to [`Framing::wanted`] bytes, and the descriptors that came with them.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), ProtocolError> {
        // All of `fds` are closed on every early return: they are owned here.
        let mut fds = fds.into_iter();
        if bytes.len() > self.wanted() {
            return Err(ProtocolError::Overrun);
        }
        match &self.header {
            None => {
                for fd in fds.by_ref() {
                    if self.fds.len() == MAX_FDS {
                        return Err(ProtocolError::TooManyFds);
                    }
                    self.fds.push(fd);
                }
                self.head[self.head_len..self.head_len + bytes.len()].copy_from_slice(bytes);
                self.head_len += bytes.len();
                if self.head_len == HEADER_LEN {
                    let header = Header::read_from_bytes(&self.head)
                        .expect("the array has the header's size");
                    self.header = Some(check(header, self.fds.len())?);
                }
            }
            Some(header) => {
                let request = Request(header.request);
                if fds.next().is_some() {
                    return Err(ProtocolError::FdsWithPayload { request });
                }
                self.payload.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// The message, when it is whole.
    pub(crate) fn take(&mut self) -> Option<Message> {
        let header = self.header?;
        if self.wanted() != 0 {
            return None;
        }
        self.header = None;
        self.head_len = 0;
        Some(Message {
            request: Request(header.request),
            need_reply: header.need_reply(),
            payload: std::mem::take(&mut self.payload),
            fds: std::mem::take(&mut self.fds),
        })
    }

    /// What was received of a message that is not whole, and its descriptors.
    pub(crate) fn unfinished(&self) -> (Vec<u8>, &[OwnedFd]) {
        let mut bytes = self.head[..self.head_len].to_vec();
        bytes.extend_from_slice(&self.payload);
        (bytes, &self.fds)
    }

    /// Whether the stream may end here.
    pub(crate) fn finish(&self) -> Result<(), ProtocolError> {
        match &self.header {
            Some(header) => Err(ProtocolError::Truncated { request: Request(header.request) }),
            None if self.head_len != 0 => Err(ProtocolError::TruncatedHeader),
            None => Ok(()),
        }
    }
}

fn size_of_payload(header: &Header) -> usize {
    header.size as usize
}

/// What can be said from the header alone, before any payload is buffered.
fn check(header: Header, fds: usize) -> Result<Header, ProtocolError> {
    let request = Request(header.request);
    if header.version() != 1 {
        return Err(ProtocolError::Version { request, version: header.version() });
    }
    if !header.is_request() {
        return Err(ProtocolError::Flags { request, flags: header.flags });
    }
    if size_of_payload(&header) > MAX_PAYLOAD {
        return Err(ProtocolError::PayloadTooLong { request, size: header.size });
    }
    let Some(rule) = table::rule(request) else {
        // Unknown requests are drained: the frontend may have asked for an answer.
        return Ok(header);
    };
    let (min, max) = rule.payload;
    if !(min..=max).contains(&size_of_payload(&header)) {
        return Err(ProtocolError::PayloadSize { request, size: header.size, min, max });
    }
    let (min, max) = rule.fds;
    if !(min..=max).contains(&fds) {
        return Err(ProtocolError::Fds { request, got: fds, min, max });
    }
    Ok(header)
}
