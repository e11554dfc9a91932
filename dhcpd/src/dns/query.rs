//! What a client asks, checked at the edge.
//!
//! hickory-proto decodes; what it would take on faith (a count of 65,535 questions allocates
//! megabytes) is refused before.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::counters::DropReason;

/// Largest UDP payload that we send (DNS flag day 2020).
pub(super) const MAX_UDP: u16 = 1232;
const HEADER: usize = 12;

/// A query that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub id: u16,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// In the client's spelling.
    pub name: Name,
    /// Lower case, without a final dot.
    pub text: String,
    pub record_type: RecordType,
    pub class: DNSClass,
    pub edns: Option<ClientEdns>,
    /// Largest answer.
    pub limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientEdns {
    pub dnssec_ok: bool,
}

/// What to do with a message to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Query(Query),
    /// Answered at once.
    Error(Vec<u8>),
    Drop(DropReason),
}

/// Reads a message; `tcp` lifts the size limit.
pub(super) fn parse(bytes: &[u8], tcp: bool) -> Parsed {
    let Some(&[id0, id1, flags, _, qd0, qd1, an0, an1, ns0, ns1, ar0, ar1]) =
        bytes.first_chunk::<HEADER>()
    else {
        return Parsed::Drop(DropReason::Short);
    };
    if flags & 0x80 != 0 {
        // Never answer an answer.
        return Parsed::Drop(DropReason::Response);
    }
    let error = |code| Parsed::Error(header_only(bytes, code));
    match flags >> 3 & 15 {
        0 => {}
        // UPDATE
        5 => return error(ResponseCode::Refused),
        _ => return error(ResponseCode::NotImp),
    }
    let questions = u16::from_be_bytes([qd0, qd1]);
    let records = [[an0, an1], [ns0, ns1]].map(u16::from_be_bytes);
    if questions != 1 || records != [0, 0] || u16::from_be_bytes([ar0, ar1]) > 4 {
        return error(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(bytes) else { return error(ResponseCode::FormErr) };
    let Some(question) = message.queries.first() else { return error(ResponseCode::FormErr) };
    let edns = message.edns.as_ref();
    let limit = match edns {
        _ if tcp => usize::from(u16::MAX),
        Some(edns) => usize::from(edns.max_payload().clamp(512, MAX_UDP)),
        None => 512,
    };
    let query = Query {
        id: u16::from_be_bytes([id0, id1]),
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        text: text_of(question.name()),
        name: question.name().clone(),
        record_type: question.query_type(),
        class: question.query_class(),
        edns: edns.map(|edns| ClientEdns { dnssec_ok: edns.flags().dnssec_ok }),
        limit,
    };
    if edns.is_some_and(|edns| edns.version() > 0) {
        return Parsed::Error(super::respond::failure(&query, ResponseCode::BADVERS));
    }
    Parsed::Query(query)
}

/// A name as text: lower case, without a final dot, what is no letter, digit, hyphen or
/// underscore escaped.
pub(super) fn text_of(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// An answer of a header alone, for what could not be read.
fn header_only(bytes: &[u8], code: ResponseCode) -> Vec<u8> {
    // QR, and opcode and RD of the query.
    let flags = 0x80 | bytes[2] & 0x79;
    let mut answer = vec![bytes[0], bytes[1], flags, code.low()];
    answer.resize(HEADER, 0);
    answer
}
