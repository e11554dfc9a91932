//! Answers of upstream servers, kept for their time to live.
//!
//! Bounded in entries and in octets; when full, the entry that was used least recently (by a
//! clock's second chance) goes. Local names are not in here.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::query::Query;
use super::respond::Answer;

const MAX_ENTRIES: usize = 10_000;
const MAX_OCTETS: usize = 8 << 20;
/// A longer time to live counts as this.
const MAX_TTL: u32 = 86_400;
/// For answers that say that there is nothing (RFC 2308 §5 advises 1 to 3 hours at most).
const MAX_NEGATIVE_TTL: u32 = 3600;

/// What makes two questions the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Box<str>,
    record_type: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    pub(super) fn new(query: &Query) -> Self {
        Self {
            name: query.text.as_str().into(),
            record_type: query.record_type,
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: query.checking_disabled,
        }
    }
}

/// What an upstream server answered, cut down to what the question is about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Reply {
    /// Keeps the records that belong to the question: the chain of aliases from its name and what
    /// the last one has; the SOA of a negative answer; with DNSSEC, signatures and proofs.
    /// Everything else an upstream server could slip in is left out (RFC 5452 §6).
    pub(super) fn new(
        query: &Query,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
    ) -> Self {
        let dnssec = query.edns.is_some_and(|edns| edns.dnssec_ok);
        let mut owner = query.name.clone();
        let mut owners: Vec<Name> = vec![owner.clone()];
        while let Some(target) = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == owner => Some(alias.0.clone()),
            _ => None,
        }) {
            if query.record_type == RecordType::CNAME || owners.contains(&target) {
                break;
            }
            owners.push(target.clone());
            owner = target;
            if owners.len() > MAX_ALIASES {
                break;
            }
        }
        let wanted = |record: &Record| {
            let kind = record.record_type();
            kind == query.record_type
                || kind == RecordType::CNAME
                || dnssec && kind == RecordType::RRSIG
        };
        let answers: Vec<Record> = answers
            .into_iter()
            .filter(|record| wanted(record) && owners.contains(&record.name))
            .collect();
        let negative = !answers.iter().any(|record| record.record_type() == query.record_type);
        let authorities = authorities
            .into_iter()
            .filter(|record| match record.record_type() {
                RecordType::SOA => negative && record.name.zone_of(&owner),
                RecordType::NSEC | RecordType::NSEC3 | RecordType::DS | RecordType::RRSIG => dnssec,
                _ => false,
            })
            .collect();
        Self { code, answers, authorities }
    }

    /// Seconds for which it may be kept; 0 for not at all.
    fn ttl(&self) -> u32 {
        let ttl = |record: &Record| {
            // RFC 2181 §8: with the first bit set it counts as zero.
            if record.ttl > i32::MAX.unsigned_abs() { 0 } else { record.ttl.min(MAX_TTL) }
        };
        let records = self.answers.iter().map(ttl).min();
        if self.code == ResponseCode::NoError
            && self.answers.iter().any(|record| record.record_type() != RecordType::CNAME)
        {
            return records.unwrap_or(0);
        }
        if !matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return 0;
        }
        let soa = self.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(ttl(record).min(soa.minimum).min(MAX_NEGATIVE_TTL)),
            _ => None,
        });
        soa.unwrap_or(0).min(records.unwrap_or(u32::MAX))
    }

    /// The answer, `age` seconds after it came.
    pub(super) fn answer(&self, age: u32) -> Answer {
        let aged = |records: &[Record]| {
            let aged = records.iter().cloned().map(|mut record| {
                record.ttl = record.ttl.min(MAX_TTL).saturating_sub(age);
                record
            });
            aged.collect()
        };
        Answer {
            code: self.code,
            answers: aged(&self.answers),
            authorities: aged(&self.authorities),
            ..Answer::default()
        }
    }
}

/// Longest chain of aliases that is followed.
const MAX_ALIASES: usize = 16;

#[derive(Debug)]
struct Entry {
    reply: Rc<Reply>,
    octets: usize,
    stored: Duration,
    ends: Duration,
    used: bool,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Rc<Key>, Entry>,
    clock: VecDeque<Rc<Key>>,
    octets: usize,
}

impl Cache {
    /// The answer that is kept, aged to `now`.
    pub(super) fn find(&mut self, key: &Key, now: Duration) -> Option<Answer> {
        let entry = self.entries.get_mut(key).filter(|entry| now < entry.ends)?;
        entry.used = true;
        let age = now.saturating_sub(entry.stored).as_secs();
        Some(entry.reply.answer(u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps an answer if it may be kept. `octets`: its length on the wire.
    pub(super) fn store(&mut self, key: Key, reply: Rc<Reply>, octets: usize, now: Duration) {
        let ttl = reply.ttl();
        if ttl == 0 {
            return;
        }
        let records = reply.answers.len() + reply.authorities.len();
        // A record in memory is larger than on the wire.
        let octets = octets + records * size_of::<Record>() + 2 * key.name.len() + 256;
        if octets > MAX_OCTETS / 16 {
            return;
        }
        let key = Rc::new(key);
        let ends = now + Duration::from_secs(u64::from(ttl));
        let entry = Entry { reply, octets, stored: now, ends, used: false };
        self.octets += octets;
        match self.entries.insert(key.clone(), entry) {
            Some(old) => self.octets -= old.octets,
            None => self.clock.push_back(key),
        }
        while self.entries.len() > MAX_ENTRIES || self.octets > MAX_OCTETS {
            self.evict(now);
        }
    }

    fn evict(&mut self, now: Duration) {
        while let Some(key) = self.clock.pop_front() {
            if let Some(entry) = self.entries.get_mut(&key)
                && entry.used
                && now < entry.ends
            {
                entry.used = false;
                self.clock.push_back(key);
                continue;
            }
            if let Some(entry) = self.entries.remove(&key) {
                self.octets -= entry.octets;
            }
            return;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::str::FromStr;

    use hickory_proto::rr::DNSClass;
    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA};

    use super::super::query::{ClientEdns, text_of};
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_str(text).expect("a name")
    }

    fn query(text: &str) -> Query {
        Query {
            id: 1,
            recursion_desired: true,
            checking_disabled: false,
            name: name(text),
            text: text_of(&name(text)),
            record_type: RecordType::A,
            class: DNSClass::IN,
            edns: None,
            limit: 512,
        }
    }

    fn a(owner: &str, ttl: u32, d: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, d))))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
        let soa = SOA::new(name(owner), name(owner), 1, 1, 1, 1, minimum);
        Record::from_rdata(name(owner), ttl, RData::SOA(soa))
    }

    fn reply(answers: Vec<Record>) -> Reply {
        Reply::new(&query("www.test."), ResponseCode::NoError, answers, Vec::new())
    }

    fn nothing(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Reply {
        Reply::new(&query("www.test."), code, answers, authorities)
    }

    #[test]
    fn ages() {
        let mut cache = Cache::default();
        let key = Key::new(&query("www.test."));
        let start = Duration::from_secs(1000);
        cache.store(
            key.clone(),
            Rc::new(reply(vec![a("www.test.", 60, 1), a("www.test.", 50, 2)])),
            100,
            start,
        );
        let ttls = |cache: &mut Cache, after: u64| {
            let found = cache.find(&key, start + Duration::from_secs(after))?;
            Some(found.answers.iter().map(|record| record.ttl).collect::<Vec<_>>())
        };
        assert_eq!(ttls(&mut cache, 2), Some(vec![58, 48]));
        assert_eq!(ttls(&mut cache, 49), Some(vec![11, 1]));
        assert_eq!(ttls(&mut cache, 50), None);
        let other =
            Key::new(&Query { edns: Some(ClientEdns { dnssec_ok: true }), ..query("www.test.") });
        assert!(cache.find(&other, start).is_none(), "with DNSSEC it is another question");
        let same = Key::new(&query("WWW.Test."));
        assert!(cache.find(&same, start).is_some());
    }

    #[test]
    fn how_long_answers_are_kept() {
        let no_error = ResponseCode::NoError;
        for (reply, ttl) in [
            (reply(vec![a("www.test.", 0, 1)]), 0),
            (reply(vec![a("www.test.", 0x8000_0000, 1)]), 0),
            (reply(vec![a("www.test.", u32::MAX, 1)]), 0),
            (reply(vec![a("www.test.", i32::MAX.unsigned_abs(), 1)]), MAX_TTL),
            (reply(vec![alias("www.test.", 5, "x.test."), a("x.test.", 60, 1)]), 5),
            (nothing(ResponseCode::NXDomain, vec![], vec![soa("test.", 600, 30)]), 30),
            (nothing(ResponseCode::NXDomain, vec![], vec![soa("test.", 20, 30)]), 20),
            (nothing(no_error, vec![], vec![soa("test.", 600, 30)]), 30),
            (
                nothing(
                    no_error,
                    vec![alias("www.test.", 9, "x.test.")],
                    vec![soa("test.", 600, 30)],
                ),
                9,
            ),
            (
                nothing(
                    ResponseCode::NXDomain,
                    vec![],
                    vec![soa("test.", u32::MAX >> 1, u32::MAX)],
                ),
                3600,
            ),
            (nothing(ResponseCode::NXDomain, vec![], vec![]), 0),
            (nothing(ResponseCode::NXDomain, vec![], vec![soa("other.", 600, 30)]), 0),
            (nothing(ResponseCode::ServFail, vec![], vec![soa("test.", 600, 30)]), 0),
        ] {
            assert_eq!(reply.ttl(), ttl, "{reply:?}");
        }
    }

    #[test]
    fn what_was_not_asked_is_left_out() {
        let ns = Record::from_rdata(name("test."), 60, RData::NS(NS(name("evil.test."))));
        let answers = vec![
            alias("www.test.", 60, "x.test."),
            a("other.test.", 60, 9),
            a("x.test.", 60, 1),
            ns.clone(),
        ];
        let reply = Reply::new(
            &query("www.test."),
            ResponseCode::NoError,
            answers,
            vec![ns, soa("test.", 1, 1)],
        );
        assert_eq!(reply.answers, [alias("www.test.", 60, "x.test."), a("x.test.", 60, 1)]);
        assert_eq!(reply.authorities, []);
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let answers = vec![alias("www.test.", 60, "x.test."), alias("x.test.", 60, "www.test.")];
        assert_eq!(reply(answers).answers.len(), 2);
        let chain =
            (0..100).map(|n| alias(&format!("n{n}.test."), 60, &format!("n{}.test.", n + 1)));
        let answers = std::iter::once(alias("www.test.", 60, "n0.test.")).chain(chain).collect();
        assert!(reply(answers).answers.len() <= MAX_ALIASES + 2);
    }

    #[test]
    fn bounded() {
        let mut cache = Cache::default();
        let now = Duration::from_secs(1);
        let key = |n: usize| Key::new(&query(&format!("n{n}.test.")));
        for n in 0..MAX_ENTRIES + 500 {
            cache.store(key(n), Rc::new(reply(vec![a("www.test.", 60, 1)])), 100, now);
            // One that is used again and again stays.
            assert!(cache.find(&key(0), now).is_some(), "{n}");
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert_eq!(cache.clock.len(), MAX_ENTRIES);
        for n in 0..2000 {
            cache.store(key(n), Rc::new(reply(vec![a("www.test.", 60, 1)])), 60_000, now);
        }
        assert!(cache.octets <= MAX_OCTETS);
        assert_eq!(cache.octets, cache.entries.values().map(|entry| entry.octets).sum::<usize>());
        cache.store(key(9), Rc::new(reply(vec![a("www.test.", 60, 1)])), MAX_OCTETS, now);
        assert!(cache.octets <= MAX_OCTETS);
    }
}
