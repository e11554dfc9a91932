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
pub struct Query {
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    /// In the client's spelling.
    pub(super) name: Name,
    /// Lower case, without a final dot.
    pub(super) text: String,
    pub(super) record_type: RecordType,
    pub(super) class: DNSClass,
    pub(super) edns: Option<ClientEdns>,
    /// Largest answer.
    pub(super) limit: usize,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `www.Example.test`, A, IN, recursion desired.
    fn plain() -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(b"\x03www\x07Example\x04test\0\0\x01\0\x01");
        bytes
    }

    fn with_opt(size: u16, version: u8) -> Vec<u8> {
        let mut bytes = plain();
        bytes[11] += 1;
        bytes.extend_from_slice(&[0, 0, 41]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0, version, 0, 0, 0, 0]);
        bytes
    }

    fn code(bytes: &[u8]) -> u8 {
        match parse(bytes, false) {
            Parsed::Error(reply) => {
                assert_eq!(reply[..2], bytes[..2], "the id is echoed");
                assert_ne!(reply[2] & 0x80, 0);
                reply[3] & 15
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good() {
        let Parsed::Query(query) = parse(&plain(), false) else { panic!("it is good") };
        assert_eq!(query.text, "www.example.test");
        assert_eq!(query.name.to_ascii(), "www.Example.test.");
        assert_eq!((query.id, query.limit, query.edns), (0xabcd, 512, None));
        for (size, limit) in [(100, 512), (512, 512), (1000, 1000), (4096, 1232)] {
            let Parsed::Query(query) = parse(&with_opt(size, 0), false) else { panic!("{size}") };
            assert_eq!(query.limit, limit);
        }
        let Parsed::Query(query) = parse(&plain(), true) else { panic!("it is good") };
        assert_eq!(query.limit, 65_535);
        let mut garbage = plain();
        garbage.extend_from_slice(b"garbage");
        assert!(matches!(parse(&garbage, false), Parsed::Query(_)));
    }

    #[test]
    fn bad() {
        for len in 0..12 {
            assert_eq!(parse(&plain()[..len], false), Parsed::Drop(DropReason::Short));
        }
        for len in 12..plain().len() {
            assert_eq!(code(&plain()[..len]), 1, "cut at {len}");
        }
        let with = |at: usize, value: u8| {
            let mut bytes = plain();
            bytes[at] = value;
            bytes
        };
        assert_eq!(parse(&with(2, 0x81), false), Parsed::Drop(DropReason::Response));
        for opcode in [1, 2, 3, 4, 6, 15] {
            assert_eq!(code(&with(2, opcode << 3)), 4);
        }
        assert_eq!(code(&with(2, 5 << 3)), 5, "UPDATE");
        for (at, value) in [(5, 0), (5, 2), (4, 0xff), (7, 1), (9, 1), (10, 0xff)] {
            assert_eq!(code(&with(at, value)), 1);
        }
        let mut two = with_opt(1232, 0);
        let opt = two[plain().len()..].to_vec();
        two.extend_from_slice(&opt);
        two[11] += 1;
        assert_eq!(code(&two), 1, "two OPT records");
        let Parsed::Error(reply) = parse(&with_opt(1232, 1), false) else { panic!("version 1") };
        let reply = Message::from_vec(&reply).expect("it can be read");
        assert_eq!(u16::from(reply.metadata.response_code), 16, "BADVERS");
    }

    #[test]
    fn names_that_turn_in_circles() {
        for target in [12_u8, 13, 14, 28, 0, 255] {
            let mut bytes = plain();
            bytes.truncate(12);
            bytes.extend_from_slice(&[1, b'a', 0xc0, target, 0, 1, 0, 1]);
            assert!(!matches!(parse(&bytes, false), Parsed::Query(_)), "{target}");
        }
        for kind in [0x40, 0x80] {
            let mut bytes = plain();
            bytes[12] = kind | 3;
            assert_eq!(code(&bytes), 1);
        }
        let mut long = plain();
        long.truncate(12);
        long.extend(b"\x01a".repeat(130));
        long.extend_from_slice(&[0, 0, 1, 0, 1]);
        assert_eq!(code(&long), 1, "more than 255 octets");
    }

    proptest! {
        #[test]
        fn anything(bytes in prop::collection::vec(any::<u8>(), 0..200), tcp in any::<bool>()) {
            parse(&bytes, tcp);
        }

        #[test]
        fn mutated(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut bytes = with_opt(1232, 0);
            for (index, value) in at {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            if let Parsed::Query(query) = parse(&bytes, false) {
                let reply = super::super::respond::failure(&query, ResponseCode::ServFail);
                prop_assert!(reply.len() >= 12 && reply.len() <= query.limit);
            }
        }
    }
}
