//! Writing answers that fit.

use hickory_proto::op::{Edns, Message, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::Record;

use super::query::{MAX_UDP, Query};

/// The contents of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub code: ResponseCode,
    pub authoritative: bool,
    /// Recursion is not offered: in an isolated network.
    pub local_only: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

impl Answer {
    pub(super) fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

/// An answer without records.
pub(super) fn failure(query: &Query, code: ResponseCode) -> Vec<u8> {
    encode(query, Answer::code(code))
}

/// The message to send. What does not fit is left out: additional records silently, everything
/// with the TC bit if that is not enough (RFC 2181 §9).
pub(super) fn encode(query: &Query, answer: Answer) -> Vec<u8> {
    let mut message = Message::response(query.id, OpCode::Query);
    message.metadata.response_code = answer.code;
    message.metadata.authoritative = answer.authoritative;
    message.metadata.recursion_desired = query.recursion_desired;
    message.metadata.recursion_available = !answer.local_only;
    message.metadata.checking_disabled = query.checking_disabled;
    let mut question = Question::query(query.name.clone(), query.record_type);
    question.set_query_class(query.class);
    message.add_query(question);
    if let Some(client) = query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(client.dnssec_ok);
        edns.set_rcode_high(answer.code.high());
        message.set_edns(edns);
    }
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    let fits = |message: &Message| message.to_vec().ok().filter(|b| b.len() <= query.limit);
    if let Some(bytes) = fits(&message) {
        return bytes;
    }
    message.additionals.clear();
    if let Some(bytes) = fits(&message) {
        return bytes;
    }
    message.answers.clear();
    message.authorities.clear();
    message.metadata.truncation = true;
    // A header, one question and an OPT: at most 12 + 259 + 11 octets, of names that were decoded.
    message.to_vec().unwrap_or_default()
}
