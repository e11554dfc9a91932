//! Whatever comes, the session neither panics nor holds more than its bounds.

use proptest::prelude::*;
use vhost_user::{Device, MEM_SLOTS, OUTPUT_LIMIT, Outcome, Session};

use crate::peer::{bytes, fds, offer};

/// A message that is often nearly right.
fn message() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let request = prop_oneof![9 => 0_u32..50, 1 => any::<u32>()];
    let flags = prop_oneof![20 => Just(1_u32), 20 => Just(9_u32), 1 => any::<u32>()];
    let payload = prop_oneof![
        Just(Vec::new()),
        small_words(2),
        small_words(10),
        small_words(18),
        proptest::collection::vec(any::<u8>(), 0..300),
    ];
    let count = prop_oneof![6 => 0_usize..3, 1 => 0_usize..34];
    (request, flags, payload, count, prop_oneof![30 => Just(0_u32), 1 => any::<u32>()]).prop_map(
        |(request, flags, payload, count, lie)| {
            let size = u32::try_from(payload.len()).unwrap().wrapping_add(lie);
            let mut stream = bytes([request, flags, size]);
            stream.extend(payload);
            (stream, count)
        },
    )
}

fn small_words(count: usize) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        6 => 0_u32..8,
        3 => Just(256_u32),
        2 => (0_u32..64).prop_map(|n| n * 4096),
        1 => any::<u32>(),
    ];
    proptest::collection::vec(word, count).prop_map(bytes)
}

fn check(device: &Device) {
    assert!(device.regions.len() <= MEM_SLOTS);
    assert_eq!(device.vrings.len(), 5);
    for (at, region) in device.regions.iter().enumerate() {
        assert!(region.size > 0);
        let end = region.guest_addr.checked_add(region.size).unwrap();
        region.user_addr.checked_add(region.size).unwrap();
        for other in &device.regions[..at] {
            assert!(end <= other.guest_addr || other.guest_addr + other.size <= region.guest_addr);
        }
    }
    for vring in &device.vrings {
        assert!(vring.num == 0 || vring.num.is_power_of_two() && vring.num <= 1024);
    }
}

/// Feeds a stream cut at odd places; ends at the first error, as a driver does.
fn feed(stream: &[(Vec<u8>, usize)], cut: usize, outcomes: &[Outcome]) {
    let mut session = Session::new(offer());
    let mut outcomes = outcomes.iter().cycle();
    for (bytes, count) in stream {
        let mut descriptors = Some(fds(*count));
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let take = session.wanted().min(cut).min(rest.len());
            if take == 0 {
                // Replies are read only when the session insists.
                assert!(session.output().len() >= OUTPUT_LIMIT);
                session.sent(usize::MAX);
                continue;
            }
            let (now, later) = rest.split_at(take);
            rest = later;
            if session.receive(now, descriptors.take().unwrap_or_default()).is_err() {
                return;
            }
            match session.poll() {
                Err(_) => return,
                Ok(None) => {}
                Ok(Some(_)) => {
                    assert_eq!(session.wanted(), 0);
                    if session.complete(*outcomes.next().unwrap()).is_err() {
                        return;
                    }
                }
            }
            assert!(session.output().len() < OUTPUT_LIMIT + 512);
            check(session.device());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nearly_right_messages(
        stream in proptest::collection::vec(message(), 1..60),
        cut in prop_oneof![Just(usize::MAX), 1_usize..20],
    ) {
        // Starting with everything negotiated reaches deeper; both ways are tried.
        for negotiated in [false, true] {
            let mut whole = Vec::new();
            if negotiated {
                let mut set = bytes([16_u32, 1, 8]);
                set.extend(bytes([vhost_user::features::protocol::SUPPORTED]));
                whole.push((set, 0));
            }
            whole.extend(stream.iter().cloned());
            feed(&whole, cut, &[Outcome::VringBase(3)]);
            feed(&whole, cut, &[Outcome::Done, Outcome::Failed, Outcome::VringBase(9)]);
        }
    }

    #[test]
    fn noise(stream in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..64) {
        feed(&[(stream, 0)], cut, &[Outcome::Done]);
    }
}
