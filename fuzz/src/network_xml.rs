//! Network documents.

use netdef::{parse, to_xml};

/// A document that is accepted comes back the same from its own canonical form.
///
/// # Panics
/// When it does not.
pub fn network_xml(data: &[u8]) {
    let Ok(parsed) = parse(data) else { return };
    let first = to_xml(&parsed.network);
    let again = match parse(first.as_bytes()) {
        Ok(again) => again.network,
        Err(error) => panic!("{error:#?}\nin\n{first}"),
    };
    assert_eq!(to_xml(&again), first);
}
