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
