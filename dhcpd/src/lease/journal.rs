//! The format of the lease file, and the difference between a torn tail and damage.
//!
//! ```text
//! file   = "netloom-leases 1\n" record*
//! record = magic "NLR1" | length u32 | CRC-32 of the payload | CRC-32 of the 12 octets before | payload
//! ```
//!
//! Numbers are little-endian. One record is one group commit, so a write that a crash cut short
//! tears the last record only. Damage with an intact record after it cannot come from a crash:
//! it is refused, because what follows it may be leases that clients hold.

use std::ops::Range;

use super::Change;
use super::record;

pub(super) const MAGIC: &[u8] = b"netloom-leases 1\n";
const FAMILY: &[u8] = b"netloom-leases ";
const RECORD: [u8; 4] = *b"NLR1";
const HEADER: usize = 16;
/// A record is never longer; the writer splits.
const MAX_PAYLOAD: usize = 1 << 24;

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub changes: Vec<Change>,
    /// Records read.
    pub records: usize,
    /// Octets up to the end of the last intact record.
    pub good: usize,
}

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// It does not begin as a lease file does.
    NotALeaseFile,
    /// Written by a version that this one does not know.
    Version(String),
    /// The record at this offset is damaged, and intact ones follow it.
    Record { offset: usize, what: String },
}

/// Reads a whole file. A tail that a crash tore is left out ([`Scan::good`] ends before it).
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, Damage> {
    let mut scan = Scan::default();
    if bytes.len() < MAGIC.len() && MAGIC.starts_with(bytes) {
        // Empty, or torn while it was made.
        return Ok(scan);
    }
    if !bytes.starts_with(MAGIC) {
        let line = bytes.strip_prefix(FAMILY).and_then(|rest| rest.split(|b| *b == b'\n').next());
        return Err(match line {
            Some(version) if version.len() < 16 && version.iter().all(u8::is_ascii_digit) => {
                Damage::Version(String::from_utf8_lossy(version).into_owned())
            }
            _ => Damage::NotALeaseFile,
        });
    }
    scan.good = MAGIC.len();
    while scan.good < bytes.len() {
        match payload(bytes, scan.good) {
            Ok(range) => {
                let end = range.end;
                let changes = record::decode(&bytes[range]);
                let offset = scan.good;
                // Its checksum is right, so this is not a torn write.
                scan.changes.extend(changes.map_err(|what| Damage::Record { offset, what })?);
                scan.records += 1;
                scan.good = end;
            }
            Err(what) => {
                let mut later = scan.good + 1..bytes.len();
                if later.any(|offset| payload(bytes, offset).is_ok()) {
                    return Err(Damage::Record { offset: scan.good, what: what.to_owned() });
                }
                break;
            }
        }
    }
    Ok(scan)
}

/// Where the payload of the record at `offset` is, when the record is intact.
fn payload(bytes: &[u8], offset: usize) -> Result<Range<usize>, &'static str> {
    let header: &[u8; HEADER] =
        bytes[offset..].first_chunk().ok_or("the record's header is cut short")?;
    let [a, b, c, d, l0, l1, l2, l3, p0, p1, p2, p3, h0, h1, h2, h3] = *header;
    if [a, b, c, d] != RECORD {
        return Err("no record begins here");
    }
    if crc32fast::hash(&header[..12]) != u32::from_le_bytes([h0, h1, h2, h3]) {
        return Err("the checksum of the record's header is wrong");
    }
    let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let start = offset + HEADER;
    let end = start.checked_add(len).filter(|end| len <= MAX_PAYLOAD && *end <= bytes.len());
    let end = end.ok_or("the record is cut short")?;
    if crc32fast::hash(&bytes[start..end]) != u32::from_le_bytes([p0, p1, p2, p3]) {
        return Err("the checksum of the record is wrong");
    }
    Ok(start..end)
}

/// Most changes in one record.
const MAX_CHANGES: usize = 4096;

/// Appends the records that hold `changes`; returns how many.
pub(super) fn append(buf: &mut Vec<u8>, changes: &[Change]) -> Result<usize, serde_json::Error> {
    let mut records = 0;
    for chunk in changes.chunks(MAX_CHANGES) {
        let payload = record::encode(chunk)?;
        // A change takes less than 1 KiB, so a chunk is below MAX_PAYLOAD.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&RECORD);
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        let check = crc32fast::hash(&header);
        header.extend_from_slice(&check.to_le_bytes());
        buf.append(&mut header);
        buf.extend_from_slice(&payload);
        records += 1;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::tests::lease;
    use super::*;

    fn file(groups: &[Vec<Change>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = MAGIC.to_vec();
        let mut ends = vec![bytes.len()];
        for group in groups {
            append(&mut bytes, group).expect("changes are encodable");
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<Change>>> {
        let change = prop_oneof![
            lease().prop_map(Change::Put),
            any::<u32>().prop_map(|ip| Change::Remove(ip.into())),
        ];
        prop::collection::vec(prop::collection::vec(change, 1..4), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever the length at which a file was cut: the whole groups before the cut are
        /// there, and nothing of the torn one.
        #[test]
        fn cut_anywhere(groups in groups()) {
            let (bytes, ends) = file(&groups);
            for len in 0..=bytes.len() {
                let whole = ends.iter().filter(|end| **end <= len).count().saturating_sub(1);
                let scan = scan(&bytes[..len]).expect("a torn tail is no damage");
                prop_assert_eq!(&scan.changes, &groups[..whole].concat());
                prop_assert_eq!(scan.records, whole);
                let good = if len < MAGIC.len() { 0 } else { ends[whole] };
                prop_assert_eq!(scan.good, good);
            }
        }

        /// A tail of zeros is what a file system leaves when a crash lost the data of a write.
        #[test]
        fn zeros_at_the_end(groups in groups(), zeros in 1_usize..5000) {
            let (mut bytes, ends) = file(&groups);
            bytes.resize(bytes.len() + zeros, 0);
            let scan = scan(&bytes).expect("a torn tail is no damage");
            prop_assert_eq!(scan.good, *ends.last().expect("it has an end"));
        }

        /// One wrong octet: refused with its record's offset when records follow, cut when it is
        /// in the last one.
        #[test]
        fn wrong_octet(groups in groups(), at in any::<prop::sample::Index>(), bits in 1_u8..) {
            let (mut bytes, ends) = file(&groups);
            let at = MAGIC.len() + at.index(bytes.len() - MAGIC.len());
            bytes[at] ^= bits;
            let damaged = ends.iter().filter(|end| **end <= at).count() - 1;
            match scan(&bytes) {
                Ok(scan) => {
                    prop_assert_eq!(damaged, groups.len() - 1);
                    prop_assert_eq!(&scan.changes, &groups[..damaged].concat());
                }
                Err(Damage::Record { offset, .. }) => {
                    prop_assert!(damaged < groups.len() - 1);
                    prop_assert_eq!(offset, ends[damaged]);
                }
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn other_files() {
        assert_eq!(scan(b"netloom-leases 2\nxyz"), Err(Damage::Version("2".to_owned())));
        assert_eq!(
            scan(b"1700000000 52:54:00:00:00:01 10.0.0.2 vm *\n"),
            Err(Damage::NotALeaseFile)
        );
        assert_eq!(scan(b""), Ok(Scan::default()));
        assert_eq!(scan(b"netloom-le"), Ok(Scan::default()));
    }

    #[test]
    fn payload_of_another_kind_is_damage() {
        let mut bytes = MAGIC.to_vec();
        let payload = b"{\"later\":1}";
        let mut header = RECORD.to_vec();
        header.extend_from_slice(&11_u32.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        let Err(Damage::Record { offset, .. }) = scan(&bytes) else { panic!("it was accepted") };
        assert_eq!(offset, MAGIC.len());
    }
}
