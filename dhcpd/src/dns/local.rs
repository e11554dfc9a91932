//! Answers from the names that the server knows by itself.

use std::str::FromStr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::names::{Entry, Known, Names};
use super::query::Query;
use super::respond::Answer;

/// Seconds that clients may keep a local name; a lease can end any time.
const TTL: u32 = 30;
/// Seconds that clients may remember that a local name does not exist: a guest that boots should
/// be found soon.
const NEGATIVE_TTL: u32 = 5;

/// What the server can say by itself.
pub(super) enum Local {
    Answer(Answer),
    Refuse,
    /// Ask upstream.
    Elsewhere,
}

pub(super) fn answer(query: &Query, names: &Names) -> Local {
    if query.class != DNSClass::IN
        || matches!(query.record_type, RecordType::AXFR | RecordType::IXFR)
    {
        return Local::Refuse;
    }
    match names.find(&query.text) {
        Known::Entry(entry) => Local::Answer(from_entry(query, &entry, names)),
        Known::Empty => Local::Answer(negative(ResponseCode::NoError, &query.text)),
        Known::Nothing { zone } if zone.is_empty() && is_infrastructure(query.record_type) => {
            Local::Elsewhere
        }
        Known::Nothing { zone } => Local::Answer(negative(ResponseCode::NXDomain, &zone)),
        // RFC 8482: nobody needs ANY but those who want large answers.
        Known::Elsewhere if query.record_type == RecordType::ANY => {
            Local::Answer(answer_with(vec![any_record(query)], false))
        }
        Known::Elsewhere => Local::Elsewhere,
    }
}

/// Types that are asked of top-level domains; everything else about a plain name is a search for
/// a host.
fn is_infrastructure(record_type: RecordType) -> bool {
    matches!(record_type, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY)
}

fn from_entry(query: &Query, entry: &Entry, names: &Names) -> Answer {
    let record = |data| Record::from_rdata(query.name.clone(), TTL, data);
    let a = || entry.a.iter().map(|ip| record(RData::A(A(*ip))));
    let aaaa = || entry.aaaa.iter().map(|ip| record(RData::AAAA(AAAA(*ip))));
    let records: Vec<Record> = match query.record_type {
        RecordType::A => a().collect(),
        RecordType::AAAA => aaaa().collect(),
        RecordType::ANY if !entry.a.is_empty() => a().collect(),
        RecordType::ANY if !entry.aaaa.is_empty() => aaaa().collect(),
        RecordType::ANY => vec![any_record(query)],
        RecordType::TXT => entry.txt.iter().map(|text| record(RData::TXT(txt(text)))).collect(),
        RecordType::PTR => {
            let name = entry.ptr.as_deref().and_then(absolute);
            name.map(|name| record(RData::PTR(PTR(name)))).into_iter().collect()
        }
        RecordType::SRV => {
            let data = entry.srv.iter().filter_map(|srv| {
                let target = absolute(&srv.target)?;
                Some(record(RData::SRV(SRV::new(srv.priority, srv.weight, srv.port, target))))
            });
            data.collect()
        }
        _ => Vec::new(),
    };
    if records.is_empty() {
        return negative(ResponseCode::NoError, &query.text);
    }
    let mut answer = answer_with(records, true);
    if query.record_type == RecordType::SRV {
        for srv in &entry.srv {
            let Some(target) = absolute(&srv.target) else { continue };
            let (a, aaaa) = names.addresses(&srv.target);
            let a = a.into_iter().map(|ip| RData::A(A(ip)));
            let aaaa = aaaa.into_iter().map(|ip| RData::AAAA(AAAA(ip)));
            let data = a.chain(aaaa).map(|data| Record::from_rdata(target.clone(), TTL, data));
            answer.additionals.extend(data);
        }
    }
    answer
}

fn answer_with(answers: Vec<Record>, authoritative: bool) -> Answer {
    Answer { authoritative, answers, ..Answer::default() }
}

fn any_record(query: &Query) -> Record {
    let data = HINFO::new("RFC8482".to_owned(), String::new());
    Record::from_rdata(query.name.clone(), TTL, RData::HINFO(data))
}

/// No such name, or none of this type; the SOA says for how long (RFC 2308).
fn negative(code: ResponseCode, zone: &str) -> Answer {
    let zone = absolute(zone).unwrap_or_else(Name::root);
    let seconds = |seconds: u32| i32::try_from(seconds).unwrap_or(i32::MAX);
    let minimum = NEGATIVE_TTL;
    let soa = SOA::new(
        zone.clone(),
        zone.clone(),
        1,
        seconds(3600),
        seconds(600),
        seconds(86_400),
        minimum,
    );
    let soa = Record::from_rdata(zone, minimum, RData::SOA(soa));
    Answer { code, authoritative: true, authorities: vec![soa], ..Answer::default() }
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_str(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Strings of at most 255 octets.
fn txt(text: &str) -> TXT {
    let strings: Vec<&[u8]> = text.as_bytes().chunks(255).collect();
    TXT::from_bytes(if strings.is_empty() { vec![b"".as_slice()] } else { strings })
}
