//! A frontend made of bytes, joined to a session without sockets.

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost_user::features::{protocol, virtio};
use vhost_user::{Action, HEADER_LEN, Offer, Outcome, ProtocolError, Request, Session};

pub(crate) const NEED_REPLY: u32 = 1 << 3;
pub(crate) const FEATURES: u64 = virtio::F_VERSION_1
    | virtio::F_PROTOCOL_FEATURES
    | virtio::F_INDIRECT_DESC
    | virtio::F_EVENT_IDX
    | virtio::NET_F_MRG_RXBUF
    | virtio::NET_F_MQ
    | virtio::NET_F_CTRL_VQ;

pub(crate) fn offer() -> Offer {
    Offer {
        features: FEATURES,
        protocol_features: protocol::SUPPORTED,
        queue_pairs: 2,
        config: (0..24).collect(),
        max_ring: 1024,
    }
}

pub(crate) struct Peer {
    pub(crate) session: Session,
    /// What the driver answers to the next actions.
    pub(crate) outcome: Outcome,
}

/// One reply as the frontend sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) request: Request,
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    pub(crate) fn value(&self) -> u64 {
        u64::from_ne_bytes(self.payload.as_slice().try_into().expect("a reply of 8 bytes"))
    }
}

impl Peer {
    pub(crate) fn new() -> Peer {
        Peer { session: Session::new(offer()), outcome: Outcome::Done }
    }

    /// A peer that has negotiated everything.
    pub(crate) fn negotiated() -> Peer {
        let mut peer = Peer::new();
        peer.send(Request::SET_PROTOCOL_FEATURES, &bytes([protocol::SUPPORTED])).unwrap();
        peer.send(Request::SET_FEATURES, &bytes([FEATURES])).unwrap();
        peer
    }

    pub(crate) fn send(
        &mut self,
        request: Request,
        payload: &[u8],
    ) -> Result<Option<Action>, ProtocolError> {
        self.send_with(request, 0, payload, Vec::new())
    }

    /// Sends with need_reply and returns the acknowledgement's value.
    pub(crate) fn ack(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> u64 {
        self.send_with(request, NEED_REPLY, payload, fds).expect("the connection goes on");
        let reply = self.reply().expect("an acknowledgement");
        assert_eq!(reply.request, request);
        assert!(self.reply().is_none(), "one message, one answer");
        reply.value()
    }

    pub(crate) fn send_with(
        &mut self,
        request: Request,
        flags: u32,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Action>, ProtocolError> {
        let size = u32::try_from(payload.len()).unwrap();
        let header = bytes([request.0, 1 | flags, size]);
        self.session.receive(&header, fds)?;
        if !payload.is_empty() {
            self.session.receive(payload, [])?;
        }
        let action = self.session.poll()?;
        if let Some(action) = action {
            assert_eq!(self.session.wanted(), 0, "nothing is read while an action is pending");
            assert!(self.session.poll()?.is_none());
            let outcome = match action {
                Action::StopVring(_) => Outcome::VringBase(7),
                _ => self.outcome,
            };
            self.session.complete(outcome)?;
        }
        Ok(action)
    }

    pub(crate) fn call(&mut self, request: Request, payload: &[u8]) -> Reply {
        self.send(request, payload).expect("the connection goes on");
        self.reply().expect("a reply")
    }

    pub(crate) fn reply(&mut self) -> Option<Reply> {
        let output = self.session.output();
        if output.is_empty() {
            return None;
        }
        let word = |at: usize| u32::from_ne_bytes(output[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 1 | 1 << 2, "version 1, reply");
        let size = word(8) as usize;
        let request = Request(word(0));
        let payload = output[HEADER_LEN..HEADER_LEN + size].to_vec();
        self.session.sent(HEADER_LEN + size);
        Some(Reply { request, payload })
    }
}

pub(crate) trait Word {
    fn put(&self, out: &mut Vec<u8>);
}

impl Word for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_ne_bytes());
    }
}

impl Word for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_ne_bytes());
    }
}

pub(crate) fn bytes<W: Word>(words: impl IntoIterator<Item = W>) -> Vec<u8> {
    let mut out = Vec::new();
    words.into_iter().for_each(|word| word.put(&mut out));
    out
}

/// Payload of SET_MEM_TABLE: (guest address, size, user address, file offset).
pub(crate) fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut out = bytes([u32::try_from(regions.len()).unwrap(), 0]);
    regions.iter().for_each(|region| out.extend(bytes(*region)));
    out
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
pub(crate) fn slot(region: [u64; 4]) -> Vec<u8> {
    let mut out = bytes([0_u64]);
    out.extend(bytes(region));
    out
}

/// Payload of SET_VRING_ADDR.
pub(crate) fn addr(ring: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut out = bytes([ring, 0]);
    out.extend(bytes([desc, used, avail, 0]));
    out
}

pub(crate) fn fd() -> OwnedFd {
    File::open("/dev/null").expect("/dev/null opens").into()
}

pub(crate) fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| fd()).collect()
}

/// A pipe whose write end tells when all copies of the read end are closed (EPIPE).
pub(crate) fn watched() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().expect("a pipe")
}

/// Whether the descriptor given to the session is closed by now.
pub(crate) fn is_closed(write_end: &OwnedFd) -> bool {
    let mut poll = [rustix::event::PollFd::new(write_end, rustix::event::PollFlags::OUT)];
    rustix::event::poll(&mut poll, Some(&rustix::time::Timespec::default())).expect("poll works");
    poll[0].revents().contains(rustix::event::PollFlags::ERR)
}
