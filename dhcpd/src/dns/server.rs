//! What happens to a query: answered from local names, from the cache, or forwarded.
//!
//! Lives on the DNS thread alone (`Rc`, no locks of its own). Several clients that ask the same
//! question at the same time wait for one upstream exchange.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use tokio::sync::oneshot;

use super::cache::{Cache, Key, Reply};
use super::config::Config;
use super::counters::{Counters, DropReason, Fate};
use super::forward::{self, Verdict};
use super::local::{self, Local};
use super::names::Names;
use super::query;
use super::query::{Parsed, Query};
use super::respond::{Answer, encode, failure};
use super::upstream::Upstreams;
use crate::time::Now;

/// Forwarded queries of one client that are under way.
const MAX_PER_CLIENT: usize = 64;
/// Of all clients.
const MAX_WAITING: usize = 2048;
/// Different questions that are under way; each has a socket.
const MAX_FLIGHTS: usize = 512;

type Outcome = Option<Rc<Reply>>;

/// What to do with a message.
#[derive(Debug)]
pub enum Decision {
    /// Send this answer.
    Reply(Vec<u8>),
    /// Nobody here knows: ask an upstream server.
    Forward(Box<Query>),
    Drop,
}

/// The server of one network: what it knows, and what is under way.
#[derive(Debug)]
pub struct Server {
    config: RefCell<Arc<Config>>,
    names: Arc<Names>,
    pub(super) counters: Arc<Counters>,
    cache: RefCell<Cache>,
    upstreams: RefCell<Upstreams>,
    flights: RefCell<HashMap<Key, Vec<oneshot::Sender<Outcome>>>>,
    waiting: RefCell<Waiting>,
}

/// Queries that wait for an upstream server.
#[derive(Debug, Default)]
struct Waiting {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

impl Server {
    #[must_use]
    pub fn new(config: Arc<Config>, names: Arc<Names>, counters: Arc<Counters>) -> Self {
        Self {
            config: RefCell::new(config),
            names,
            counters,
            cache: RefCell::default(),
            upstreams: RefCell::default(),
            flights: RefCell::default(),
            waiting: RefCell::default(),
        }
    }

    pub(super) fn reload(&self, config: &Arc<Config>) {
        let old = self.config.replace(config.clone());
        if (&old.forwarders, &old.default_upstreams)
            != (&config.forwarders, &config.default_upstreams)
        {
            // Other servers may see other names.
            self.cache.borrow_mut().clear();
        }
    }

    /// Decides on one message of a client, which came over TCP or over UDP. Does no I/O.
    pub fn decide(&self, bytes: &[u8], client: IpAddr, tcp: bool) -> Decision {
        self.counters.query();
        if !self.may_ask(client) {
            self.counters.count_drop(DropReason::Client);
            return Decision::Drop;
        }
        let query = match query::parse(bytes, tcp) {
            Parsed::Query(query) => query,
            Parsed::Error(reply) => {
                self.counters.fate(Fate::Malformed);
                return Decision::Reply(reply);
            }
            Parsed::Drop(reason) => {
                self.counters.count_drop(reason);
                return Decision::Drop;
            }
        };
        match local::answer(&query, &self.names) {
            Local::Answer(mut answer) => {
                self.counters.fate(Fate::Local);
                answer.local_only = !self.config.borrow().forward;
                return Decision::Reply(encode(&query, answer));
            }
            Local::Refuse => return self.refuse(&query),
            Local::Elsewhere => {}
        }
        if !self.config.borrow().forward {
            return self.refuse(&query);
        }
        if let Some(answer) = self.cache.borrow_mut().find(&Key::new(&query), Now::read().mono) {
            self.counters.fate(Fate::Cached);
            return Decision::Reply(encode(&query, answer));
        }
        if !query.recursion_desired {
            return self.refuse(&query);
        }
        Decision::Forward(Box::new(query))
    }

    fn refuse(&self, query: &Query) -> Decision {
        self.counters.fate(Fate::Refused);
        let local_only = !self.config.borrow().forward;
        let answer = Answer { local_only, ..Answer::code(ResponseCode::Refused) };
        Decision::Reply(encode(query, answer))
    }

    /// An open resolver is a weapon: only the network itself and this host may ask.
    fn may_ask(&self, client: IpAddr) -> bool {
        let config = self.config.borrow();
        config.clients.is_empty()
            || config.clients.iter().any(|net| net.contains(&client))
            || client.is_loopback()
            || matches!(client, IpAddr::V6(ip) if ip.is_unicast_link_local())
            || config.listen.contains(&client)
            || config.own_addresses.contains(client)
    }

    /// The answer to a forwarded query; `None` when the client has too many under way.
    pub(super) async fn forward(self: &Rc<Self>, query: &Query, client: IpAddr) -> Option<Vec<u8>> {
        let _place = self.take_place(client)?;
        let Some(outcome) = self.ask_once(query) else {
            self.counters.count_drop(DropReason::TotalLimit);
            return None;
        };
        // The flight always ends; a lost sender counts as no answer.
        let Ok(Some(reply)) = outcome.await else {
            self.counters.fate(Fate::Failed);
            return Some(failure(query, ResponseCode::ServFail));
        };
        Some(encode(query, reply.answer(0)))
    }

    /// Joins the exchange about this question, or starts one.
    fn ask_once(self: &Rc<Self>, query: &Query) -> Option<oneshot::Receiver<Outcome>> {
        let (sender, receiver) = oneshot::channel();
        let key = Key::new(query);
        let mut flights = self.flights.borrow_mut();
        if let Some(waiters) = flights.get_mut(&key) {
            waiters.push(sender);
            return Some(receiver);
        }
        if flights.len() >= MAX_FLIGHTS {
            return None;
        }
        flights.insert(key.clone(), vec![sender]);
        let (server, query) = (self.clone(), query.clone());
        tokio::task::spawn_local(async move {
            let outcome = server.fly(&query, key.clone()).await;
            let waiters = server.flights.borrow_mut().remove(&key);
            for waiter in waiters.into_iter().flatten() {
                // A client that is gone needs no answer.
                let _ = waiter.send(outcome.clone());
            }
        });
        Some(receiver)
    }

    async fn fly(&self, query: &Query, key: Key) -> Outcome {
        let mono = || Now::read().mono;
        let servers = {
            let config = self.config.borrow();
            self.upstreams.borrow_mut().servers(&config, &query.text, mono())
        };
        if servers.is_empty() {
            tracing::debug!(name = query.text, "no upstream DNS server");
            return None;
        }
        self.counters.fate(Fate::Forwarded);
        let got = forward::ask(query, &servers, |server, verdict| {
            let mut upstreams = self.upstreams.borrow_mut();
            match verdict {
                Verdict::Answered => upstreams.answered(server),
                Verdict::Silent => upstreams.no_answer(server, mono()),
            }
        });
        let got = got.await?;
        let reply = Rc::new(got.reply);
        self.cache.borrow_mut().store(key, reply.clone(), got.octets, mono());
        Some(reply)
    }

    fn take_place(self: &Rc<Self>, client: IpAddr) -> Option<Place> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.total >= MAX_WAITING {
            self.counters.count_drop(DropReason::TotalLimit);
            return None;
        }
        let count = waiting.by_client.entry(client).or_default();
        if *count >= MAX_PER_CLIENT {
            self.counters.count_drop(DropReason::ClientLimit);
            return None;
        }
        *count += 1;
        waiting.total += 1;
        Some(Place { server: self.clone(), client })
    }

    /// The answer for a client that is over its limit.
    pub(super) fn overloaded(&self, query: &Query) -> Vec<u8> {
        encode(query, Answer::code(ResponseCode::Refused))
    }
}

/// One waiting query of a client; leaves when dropped.
struct Place {
    server: Rc<Server>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.server.waiting.borrow_mut();
        waiting.total -= 1;
        if let Some(count) = waiting.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.by_client.remove(&self.client);
            }
        }
    }
}
