//! The wide checksum loop against the definition of RFC 1071, and against etherparse.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use wire::checksum;

/// Word by word, as RFC 1071 §1 says.
fn by_definition(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

proptest! {
    #[test]
    fn sum_is_the_sum_of_words(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(checksum::fold(checksum::sum(&bytes)), by_definition(&bytes));
        prop_assert!(checksum::sum(&bytes) <= 0xffff);
    }

    #[test]
    fn sums_of_even_pieces_add_up(
        first in proptest::collection::vec(any::<[u8; 2]>(), 0..100),
        second in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let first = first.concat();
        let whole = [first.clone(), second.clone()].concat();
        prop_assert_eq!(
            checksum::fold(checksum::sum(&first) + checksum::sum(&second)),
            checksum::fold(checksum::sum(&whole))
        );
    }

    #[test]
    fn pseudo_headers_agree_with_etherparse(
        v4 in any::<([u8; 4], [u8; 4])>(), v6 in any::<([u8; 16], [u8; 16])>(),
        ports in any::<(u16, u16)>(), payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let len = u16::try_from(payload.len() + 8).unwrap();
        let header = etherparse::UdpHeader {
            source_port: ports.0, destination_port: ports.1, length: len, checksum: 0,
        };
        let own = checksum::sum(&header.to_bytes()) + checksum::sum(&payload);
        let pseudo = checksum::pseudo_v4(Ipv4Addr::from(v4.0), Ipv4Addr::from(v4.1), 17, len);
        prop_assert_eq!(
            checksum::finish_udp(pseudo + own),
            header.calc_checksum_ipv4_raw(v4.0, v4.1, &payload).unwrap()
        );
        let pseudo = checksum::pseudo_v6(Ipv6Addr::from(v6.0), Ipv6Addr::from(v6.1), 17, len.into());
        prop_assert_eq!(
            checksum::finish_udp(pseudo + own),
            header.calc_checksum_ipv6_raw(v6.0, v6.1, &payload).unwrap()
        );
    }

    #[test]
    fn an_update_is_a_new_sum(mut words in proptest::collection::vec(any::<u16>(), 1..40), at in any::<prop::sample::Index>(), new in any::<u16>()) {
        let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        // Something other than zero stays, as in every real header.
        words.push(0x4500);
        let at = at.index(words.len() - 1);
        let before = checksum::finish(checksum::sum(&bytes(&words)));
        let old = std::mem::replace(&mut words[at], new);
        prop_assert_eq!(
            checksum::update(before, old, new),
            checksum::finish(checksum::sum(&bytes(&words)))
        );
    }
}

#[test]
fn extremes() {
    assert_eq!(checksum::sum(&[]), 0);
    assert_eq!(checksum::sum(&[0xff; 65_535]), u32::from(by_definition(&[0xff; 65_535])));
    assert_eq!(checksum::sum(&[0xab]), 0xab00);
    // Computed zero is sent as all ones in UDP, and in UDP alone.
    assert_eq!(checksum::finish(0xffff), 0);
    assert_eq!(checksum::finish_udp(0xffff), 0xffff);
    // Carries out of the upper half, twice.
    assert_eq!(checksum::fold(u32::MAX), 0xffff);
    assert_eq!(checksum::fold(0x1_fffe), 0xffff);
    assert_eq!(checksum::fold(0xffff_0001), 1);
}
