//! Leases as JSON, one array of changes in each record of the journal: readable with `strings`,
//! and a later version can add fields.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::MacAddr;

use super::{Change, Lease, LeaseState};
use crate::dhcp4::LeaseTime;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Entry {
    Put(Put),
    Remove(Ipv4Addr),
}

#[derive(Serialize, Deserialize)]
struct Put {
    ip: Ipv4Addr,
    mac: MacAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    /// Unix seconds; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiry: Option<u64>,
    /// Seconds; absent: infinite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<Uuid>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
}

/// The payload of one record.
pub(super) fn encode(changes: &[Change]) -> Result<Vec<u8>, serde_json::Error> {
    let entries: Vec<Entry> = changes.iter().map(Entry::from).collect();
    serde_json::to_vec(&entries)
}

/// What is wrong, in words, when the payload is not what this version writes.
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Change>, String> {
    let entries: Vec<Entry> = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    entries.into_iter().map(Change::try_from).collect()
}

impl From<&Change> for Entry {
    fn from(change: &Change) -> Self {
        match change {
            Change::Remove(ip) => Self::Remove(*ip),
            Change::Put(lease) => Self::Put(Put {
                ip: lease.ip,
                mac: lease.mac,
                client_id: lease.client_id.as_deref().map(hex),
                hostname: lease.hostname.clone(),
                // Rounded up: a lease must not end on disk before it ends for the client.
                expiry: lease.expiry.map(|t| t.as_secs() + u64::from(t.subsec_nanos() > 0)),
                time: match lease.time {
                    LeaseTime::Finite(time) => Some(time.as_secs()),
                    LeaseTime::Infinite => None,
                },
                port: lease.port,
                quarantined: lease.state == LeaseState::Quarantined,
            }),
        }
    }
}

impl TryFrom<Entry> for Change {
    type Error = String;

    fn try_from(entry: Entry) -> Result<Self, String> {
        match entry {
            Entry::Remove(ip) => Ok(Self::Remove(ip)),
            Entry::Put(put) => Ok(Self::Put(Lease {
                ip: put.ip,
                mac: put.mac,
                client_id: put.client_id.as_deref().map(unhex).transpose()?,
                hostname: put.hostname,
                expiry: put.expiry.map(Duration::from_secs),
                time: put.time.map(Duration::from_secs).into(),
                port: put.port,
                state: if put.quarantined { LeaseState::Quarantined } else { LeaseState::Bound },
            })),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("client_id {text:?} is not hexadecimal");
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong());
    (0..text.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any lease that an engine can write, with whole seconds.
    pub(in crate::lease) fn lease() -> impl Strategy<Value = Lease> {
        let id = prop::option::of(prop::collection::vec(any::<u8>(), 2..=255));
        let name = prop::option::of("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?");
        let time = prop::option::of(1_u64..u64::from(u32::MAX));
        (any::<u32>(), any::<[u8; 6]>(), id, name, time, any::<Option<u128>>(), any::<bool>())
            .prop_map(|(ip, mac, client_id, hostname, time, port, quarantined)| Lease {
                ip: ip.into(),
                mac: MacAddr(mac),
                client_id,
                hostname,
                expiry: time.map(|time| Duration::from_secs(1_800_000_000 + time)),
                time: time.map(Duration::from_secs).into(),
                port: port.map(Uuid::from_u128),
                state: if quarantined { LeaseState::Quarantined } else { LeaseState::Bound },
            })
    }

    proptest! {
        #[test]
        fn round_trip(lease in lease(), ip in any::<u32>()) {
            let changes = vec![Change::Put(lease), Change::Remove(ip.into())];
            let bytes = encode(&changes).expect("leases are encodable");
            prop_assert_eq!(decode(&bytes), Ok(changes));
        }

        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            // Arrays of nothing are the only short payloads that mean something.
            if let Ok(changes) = decode(&bytes) {
                prop_assert!(changes.is_empty());
            }
        }
    }

    #[test]
    fn bad_client_id() {
        for text in ["a", "zz", "+1", "é0"] {
            assert!(unhex(text).is_err(), "{text}");
        }
    }
}
