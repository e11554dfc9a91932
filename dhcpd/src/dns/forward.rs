//! Asking upstream servers.
//!
//! A small forwarder of our own over hickory-proto's messages, not hickory-resolver: a network's
//! resolver must share one question among its clients, keep per-client limits, follow changes of
//! resolv.conf and per-domain servers without being rebuilt, and hand on what it was told instead
//! of resolving it anew; what is left after that is the exchange below.
//!
//! Each query goes out of a socket of its own, connected to its server, with a random id: a
//! forged answer must guess port, id and question at once (RFC 5452). Whatever does not match is
//! ignored while the right answer may still come.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::cache::Reply;
use super::query::{MAX_UDP, Query};

/// How long the servers of a list get, one after the other; the last value repeats.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(800), Duration::from_millis(1200), Duration::from_millis(2000)];
/// A client is told that nobody answered after this.
const DEADLINE: Duration = Duration::from_millis(4500);
/// So many messages that are not the answer mean that somebody guesses: ask over TCP.
const MAX_STRANGERS: u32 = 32;

/// What became of a server that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answered,
    Silent,
}

/// An answer and its length on the wire.
#[derive(Debug)]
pub(super) struct Got {
    pub reply: Reply,
    pub octets: usize,
}

/// Asks the servers in their order until one answers. `None`: none did. A server's refusal or
/// failure is its answer only when no other server has a better one.
pub(super) async fn ask(
    query: &Query,
    servers: &[SocketAddr],
    mut verdict: impl FnMut(SocketAddr, Verdict),
) -> Option<Got> {
    let deadline = Instant::now() + DEADLINE;
    let mut refused = vec![false; servers.len()];
    let rounds = PATIENCE.len().div_ceil(servers.len().max(1)).max(1);
    let mut attempt = 0;
    for _ in 0..rounds {
        for (index, server) in servers.iter().enumerate() {
            if refused[index] {
                continue;
            }
            let patience = PATIENCE[attempt.min(PATIENCE.len() - 1)];
            attempt += 1;
            let until = deadline.min(Instant::now() + patience);
            match timeout_at(until, exchange(query, *server)).await {
                Ok(Ok((message, octets))) => {
                    verdict(*server, Verdict::Answered);
                    let code = message.metadata.response_code;
                    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        refused[index] = true;
                        continue;
                    }
                    let reply = Reply::new(query, code, message.answers, message.authorities);
                    return Some(Got { reply, octets });
                }
                Ok(Err(error)) if is_ours(&error) => {
                    tracing::warn!(%error, "no socket for an upstream DNS query");
                    return None;
                }
                Ok(Err(error)) => {
                    // Unreachable, or nobody listens.
                    tracing::debug!(%server, %error, "upstream DNS server");
                    verdict(*server, Verdict::Silent);
                    refused[index] = true;
                }
                Err(_) => verdict(*server, Verdict::Silent),
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }
    None
}

/// The fault is on our side: no descriptors or no memory are left.
fn is_ours(error: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| ours.contains(&code))
}

async fn exchange(query: &Query, server: SocketAddr) -> io::Result<(Message, usize)> {
    let id = random_id()?;
    let request = request(query, id)?;
    match over_udp(query, server, id, &request).await? {
        Some((message, octets)) if !message.metadata.truncation => Ok((message, octets)),
        _ => over_tcp(query, server, id, &request).await,
    }
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u16::from_ne_bytes(id))
}

/// The question, without anything else that the client sent.
fn request(query: &Query, id: u16) -> io::Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = query.checking_disabled;
    message.add_query(Question::query(query.name.clone(), query.record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns.set_dnssec_ok(query.edns.is_some_and(|edns| edns.dnssec_ok));
    message.set_edns(edns);
    message.to_vec().map_err(io::Error::other)
}

/// Decodes the answer to our question; anything else is `None`.
fn accept(query: &Query, id: u16, bytes: &[u8]) -> Option<Message> {
    // The count is checked before the decoder reserves memory for it.
    if bytes.get(..2)? != id.to_be_bytes() || bytes.get(4..6)? != [0, 1] {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let question = message.queries.first()?;
    let matches = message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && question.name() == &query.name
        && question.query_type() == query.record_type
        && question.query_class() == query.class;
    matches.then_some(message)
}

/// The answer over UDP; `None` when somebody seems to be guessing.
async fn over_udp(
    query: &Query,
    server: SocketAddr,
    id: u16,
    request: &[u8],
) -> io::Result<Option<(Message, usize)>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel picks a random free port for each socket.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buf = vec![0; 4096];
    for _ in 0..MAX_STRANGERS {
        let len = socket.recv(&mut buf).await?;
        if let Some(message) = accept(query, id, &buf[..len]) {
            return Ok(Some((message, len)));
        }
    }
    Ok(None)
}

async fn over_tcp(
    query: &Query,
    server: SocketAddr,
    id: u16,
    request: &[u8],
) -> io::Result<(Message, usize)> {
    let mut stream = timeout(DEADLINE, TcpStream::connect(server)).await??;
    let len = u16::try_from(request.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(request);
    stream.write_all(&framed).await?;
    let mut buf = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buf).await?;
    let message = accept(query, id, &buf);
    let message = message.ok_or_else(|| io::Error::other("the answer is not to the question"))?;
    Ok((message, buf.len()))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{Name, RData, Record};
    use proptest::prelude::*;

    use super::super::query::{Parsed, parse};
    use super::*;

    fn query() -> Query {
        let bytes = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x04test\0\0\x01\0\x01";
        match parse(bytes, false) {
            Parsed::Query(query) => query,
            other => panic!("{other:?}"),
        }
    }

    fn good() -> Vec<u8> {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Question::query(query().name, query().record_type));
        let name = |text: &str| Name::from_ascii(text).expect("a name");
        let alias = RData::CNAME(CNAME(name("x.test.")));
        message.add_answer(Record::from_rdata(name("www.test."), 60, alias));
        let a = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        message.add_answer(Record::from_rdata(name("x.test."), 60, a));
        message.set_edns(Edns::new());
        message.to_vec().expect("it can be written")
    }

    #[test]
    fn only_the_answer_is_accepted() {
        assert!(accept(&query(), 7, &good()).is_some());
        assert!(accept(&query(), 8, &good()).is_none());
        for len in 0..good().len() {
            assert!(accept(&query(), 7, &good()[..len]).is_none(), "cut at {len}");
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good();
            bytes[at] = value;
            bytes
        };
        // A query, another opcode, two questions, ANCOUNT 65,535, another name, type and class.
        let wrong = [(2, 0), (2, 0x90), (5, 2), (6, 255), (13, b'x'), (24, 28), (25, 3)];
        for (at, value) in wrong {
            assert!(accept(&query(), 7, &with(at, value)).is_none(), "{value} at {at}");
        }
    }

    proptest! {
        #[test]
        fn mutated(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = good();
            for (index, value) in at {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
            if let Some(message) = accept(&query(), 7, &bytes) {
                let code = message.metadata.response_code;
                let reply = Reply::new(&query(), code, message.answers, message.authorities);
                let answer = super::super::respond::encode(&query(), reply.answer(1));
                prop_assert!(answer.len() <= query().limit);
            }
        }
    }
}
