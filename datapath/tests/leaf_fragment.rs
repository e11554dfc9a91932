//! UDP datagrams cut into IP fragments (UFO), against a receiver that puts them together.

use datapath::offload::{Identifications, Offload, OffloadSet, cut, validate};
use proptest::prelude::*;
use switch::{DropReason, TagOp, Tci};
use wire::virtio_net::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_UDP, VirtioNetHdr};
use wire::{checksum, ipv4, udp};

const UFO: OffloadSet = OffloadSet::CHECKSUM.union(OffloadSet::UFO);
const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// A datagram as a stack without fragmentation of its own leaves it, with its header.
#[derive(Clone, Debug)]
struct Datagram {
    frame: Vec<u8>,
    hdr: VirtioNetHdr,
    /// Where the IP header begins, and where the UDP header does.
    network: usize,
    transport: usize,
}

/// What stands between the IP header and UDP: options of IPv4, or the kinds of IPv6 extension headers.
#[derive(Clone, Debug)]
enum Between {
    V4(Vec<u8>),
    V6(Vec<u8>),
}

fn be(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap().to_be_bytes()
}

fn datagram(between: &Between, tagged: bool, payload: &[u8], gso_size: usize) -> Datagram {
    let mut frame = ADDRESSES.to_vec();
    if tagged {
        frame.extend([0x81, 0, 0, 7]);
    }
    let len = payload.len() + udp::HEADER_LEN;
    let (network, pseudo) = match between {
        Between::V4(options) => {
            frame.extend([8, 0]);
            let network = frame.len();
            let header_len = ipv4::HEADER_LEN + options.len();
            frame.extend([0x40 | u8::try_from(header_len / 4).unwrap(), 0]);
            frame.extend(be(header_len + len));
            frame.extend([0x12, 0x34, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
            frame.extend(options);
            let sum = checksum::ipv4_header(&frame[network..]);
            frame[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
            let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
            (network, checksum::pseudo_v4(src, dst, 17, u16::try_from(len).unwrap()))
        }
        Between::V6(kinds) => {
            frame.extend([0x86, 0xdd]);
            let network = frame.len();
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(be(kinds.len() * 8 + len));
            frame.extend([*kinds.first().unwrap_or(&17), 64]);
            frame.extend([[1; 16], [2; 16]].concat());
            for at in 0..kinds.len() {
                frame.extend([*kinds.get(at + 1).unwrap_or(&17), 0, 1, 4, 0, 0, 0, 0]);
            }
            let len = u32::try_from(len).unwrap();
            (network, checksum::pseudo_v6([1; 16].into(), [2; 16].into(), 17, len))
        }
    };
    let transport = frame.len();
    frame.extend([3, 0xe8, 7, 0xd0]);
    frame.extend(be(len));
    frame.extend(checksum::fold(pseudo).to_be_bytes());
    frame.extend(payload);
    let hdr = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP,
        hdr_len: u16::try_from(transport + 8).unwrap().into(),
        gso_size: u16::try_from(gso_size).unwrap().into(),
        csum_start: u16::try_from(transport).unwrap().into(),
        csum_offset: 6.into(),
        ..VirtioNetHdr::default()
    };
    Datagram { frame, hdr, network, transport }
}

fn check(datagram: &Datagram, allowed: OffloadSet) -> Result<Offload, DropReason> {
    let Datagram { frame, hdr, .. } = datagram;
    validate(hdr, &frame[..frame.len().min(switch::WINDOW_LEN)], frame.len(), allowed)
}

fn fragments(frame: &[u8], offload: &Offload, ids: &mut Identifications) -> Vec<Vec<u8>> {
    let (mut out, mut frame) = (Vec::new(), frame.to_vec());
    let count = cut(&mut frame, offload, ids, |headers, payload| {
        out.push([headers, payload].concat());
    });
    assert_eq!(count, Ok(out.len()));
    out
}

/// Puts fragments in any order together, as RFC 791 §3.2 and RFC 8200 §4.5 have it: the datagram from its UDP header on (or the
/// extension headers that are not in every fragment), and the identification. Headers and lengths have to be right.
fn reassemble(fragments: &[Vec<u8>], network: usize, payload_size: usize) -> (Vec<u8>, u32) {
    let mut pieces = Vec::new();
    let mut identifications = Vec::new();
    let mut total = None;
    for frame in fragments {
        let packet = &frame[network..];
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (start, offset, more) = if packet[0] >> 4 == 4 {
            let header_len = usize::from(packet[0] & 15) * 4;
            assert_eq!(checksum::ipv4_header(&packet[..header_len]), 0, "the header's checksum");
            assert_eq!(usize::from(word(2)), packet.len());
            assert_eq!(packet[9], 17);
            identifications.push(u32::from(word(4)));
            assert_eq!(word(6) & 0xc000, 0);
            (header_len, usize::from(word(6) & 0x1fff) * 8, word(6) & 0x2000 != 0)
        } else {
            assert_eq!(usize::from(word(4)), packet.len() - 40);
            let (mut next, mut at) = (packet[6], 40);
            while next != 44 {
                assert!([0, 43, 60].contains(&next), "{next} before the Fragment header");
                (next, at) = (packet[at], at + 8 * (usize::from(packet[at + 1]) + 1));
            }
            assert_eq!((packet[at + 1], word(at + 2) & 6), (0, 0), "reserved bits");
            identifications.push(u32::from(word(at + 4)) << 16 | u32::from(word(at + 6)));
            (at + 8, usize::from(word(at + 2) & 0xfff8), word(at + 2) & 1 != 0)
        };
        let piece = &packet[start..];
        assert!(!piece.is_empty() && piece.len() <= payload_size);
        if more {
            assert_eq!(piece.len(), payload_size, "all but the last are full");
        } else {
            assert_eq!(total.replace(offset + piece.len()), None, "two last fragments");
        }
        pieces.push((offset, piece));
    }
    pieces.sort_unstable_by_key(|(offset, _)| *offset);
    let mut whole = Vec::new();
    for (offset, piece) in pieces {
        assert_eq!(offset, whole.len(), "a hole, or an overlap");
        whole.extend_from_slice(piece);
    }
    assert_eq!(total, Some(whole.len()));
    assert!(identifications.iter().all(|id| *id == identifications[0]), "{identifications:x?}");
    (whole, identifications[0])
}

/// The UDP part of a datagram whose checksum is complete.
fn finished(datagram: &Datagram) -> Vec<u8> {
    let mut udp = datagram.frame[datagram.transport..].to_vec();
    let sum = checksum::finish_udp(checksum::sum(&udp));
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    udp
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        prop::sample::select(vec![0, 4, 20, 40]).prop_map(|len| Between::V4(vec![1; len])),
        prop::collection::vec(prop::sample::select(vec![0, 43, 60]), 0..4).prop_map(Between::V6),
    ]
}

prop_compose! {
    fn any_datagram()(
        between in between(), tagged in any::<bool>(), size in 40usize..3000, count in 1usize..45,
        last in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) -> Datagram {
        let len = (count * size + 1 + last.index(size)).min(65_400);
        let payload: Vec<u8> = (0..=250u8).cycle().take(len).map(|n| byte.wrapping_add(n)).collect();
        datagram(&between, tagged, &payload, size)
    }
}

proptest! {
    #[test]
    fn together_fragments_are_the_datagram_with_its_checksum(datagram in any_datagram()) {
        let offload = check(&datagram, UFO).unwrap();
        prop_assert!(offload.is_gso() && offload.fits(UFO) && !offload.fits(OffloadSet::CHECKSUM));
        prop_assert!(offload.fits(OffloadSet::KERNEL_TAKES));
        let size = usize::from(datagram.hdr.gso_size.get()) / 8 * 8;
        // Whoever takes it as it is gets the size that it will be cut to.
        let told = VirtioNetHdr { gso_size: u16::try_from(size).unwrap().into(), ..datagram.hdr };
        prop_assert_eq!(offload.header(), told);
        let mut ids = Identifications::default();
        let mut out = fragments(&datagram.frame, &offload, &mut ids);
        for frame in &out {
            prop_assert_eq!(&frame[..datagram.network], &datagram.frame[..datagram.network]);
        }
        out.reverse();
        let (whole, id) = reassemble(&out, datagram.network, size);
        let udp = finished(&datagram);
        prop_assert!(whole.ends_with(&udp));
        // In front of it, what the first fragment alone has.
        let rest = whole.len() - udp.len();
        prop_assert_eq!(&whole[..rest], &datagram.frame[datagram.transport - rest..datagram.transport]);
        if datagram.frame[datagram.network] >> 4 == 4 {
            prop_assert_eq!(id, 0x1234);
        }
    }

    #[test]
    fn offsets_follow_the_tag(mut datagram in any_datagram()) {
        let offload = check(&datagram, UFO).unwrap();
        let tag = if datagram.network == 18 {
            datagram.frame.drain(12..16);
            TagOp::Strip
        } else {
            datagram.frame.splice(12..12, [0x81, 0, 0, 5]);
            TagOp::Push(Tci(5))
        };
        let moved = offload.retagged(tag);
        datagram.hdr = moved.header();
        prop_assert_eq!(check(&datagram, UFO), Ok(moved));
        let network = if tag == TagOp::Strip { 14 } else { 18 };
        let out = fragments(&datagram.frame, &moved, &mut Identifications::default());
        reassemble(&out, network, usize::from(moved.header().gso_size.get()));
    }

    /// Whatever passes validation can be cut, into a bounded number of pieces.
    #[test]
    fn hostile_headers_and_frames(
        mut datagram in any_datagram(), changes in prop::collection::vec((0usize..100, any::<u8>()), 0..4),
        gso_size in prop::option::of(any::<u16>()), cut_at in any::<prop::sample::Index>(),
    ) {
        for (at, byte) in changes {
            if let Some(place) = datagram.frame.get_mut(at) { *place = byte; }
        }
        if let Some(size) = gso_size { datagram.hdr.gso_size.set(size); }
        match check(&datagram, OffloadSet::ALL) {
            Ok(offload) if offload.is_gso() => {
                let mut ids = Identifications::default();
                prop_assert!((2..=128).contains(&fragments(&datagram.frame, &offload, &mut ids).len()));
                let mut shorter = datagram.frame[..cut_at.index(datagram.frame.len())].to_vec();
                let _ = cut(&mut shorter, &offload, &mut ids, |_, _| {});
            }
            Ok(offload) => prop_assert!(offload.fits(OffloadSet::CHECKSUM)),
            Err(reason) => prop_assert_eq!(reason, DropReason::BadOffload),
        }
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let v4 = datagram(&Between::V4(vec![]), false, &[7; 4000], 1480);
    let v6 = datagram(&Between::V6(vec![]), false, &[7; 4000], 1448);
    let refused = |what: &str, base: &Datagram, change: &dyn Fn(&mut Datagram)| {
        assert!(check(base, UFO).unwrap().is_gso());
        let mut changed = base.clone();
        change(&mut changed);
        assert_eq!(check(&changed, OffloadSet::ALL), Err(DropReason::BadOffload), "{what}");
    };
    for base in [&v4, &v6] {
        refused("no checksum", base, &|it| it.hdr.flags = 0);
        refused("no size", base, &|it| it.hdr.gso_size.set(0));
        refused("less than a unit", base, &|it| it.hdr.gso_size.set(7));
        refused("congestion notification", base, &|it| it.hdr.gso_type = GSO_UDP | GSO_ECN);
        refused("a checksum elsewhere", base, &|it| it.hdr.csum_offset.set(8));
        refused("a shorter frame", base, &|it| it.frame.truncate(3000));
        refused("a longer frame", base, &|it| it.frame.push(0));
        refused("another UDP length", base, &|it| it.frame[it.transport + 5] ^= 1);
        refused("129 fragments", base, &|it| it.hdr.gso_size.set(24));
        for allowed in [OffloadSet::NONE, OffloadSet::CHECKSUM, OffloadSet::USO4, OffloadSet::USO6]
        {
            let allowed = allowed.union(OffloadSet::CHECKSUM);
            assert_eq!(check(base, allowed), Err(DropReason::BadOffload), "{allowed:?}");
        }
    }
    refused("more fragments", &v4, &|it| it.frame[it.network + 6] = 0x20);
    refused("a later fragment", &v4, &|it| it.frame[it.network + 7] = 1);
    refused("not to be cut", &v4, &|it| it.frame[it.network + 6] = 0x40);
    refused("another packet length", &v4, &|it| it.frame[it.network + 3] ^= 1);
    refused("another payload length", &v6, &|it| it.frame[it.network + 5] ^= 1);
    refused("TCP", &v4, &|it| it.frame[it.network + 9] = 6);
    refused("a fragment", &datagram(&Between::V6(vec![0]), false, &[7; 4000], 1448), &|it| {
        it.frame[it.network + 6] = 44;
    });
    // RFC 7112: headers in the second fragment.
    let headers = Between::V6(vec![60, 60]);
    assert!(check(&datagram(&headers, false, &[7; 100], 24), UFO).unwrap().is_gso());
    let late = datagram(&headers, false, &[7; 100], 16);
    assert_eq!(check(&late, UFO), Err(DropReason::BadOffload));
    // Fragments longer than a packet can be.
    let long = |size| datagram(&Between::V6(vec![]), false, &[7; 65_487], size);
    assert!(check(&long(65_480), UFO).unwrap().is_gso());
    assert_eq!(check(&long(65_488), UFO), Err(DropReason::BadOffload));
    let packet = datagram(&Between::V6(vec![]), false, &[7; 65_488], 1448);
    assert_eq!(check(&packet, UFO), Err(DropReason::BadOffload), "more than a packet can hold");
    let datagram = datagram(&Between::V4(vec![]), false, &[7; 65_507], 1480);
    assert!(check(&datagram, UFO).unwrap().is_gso(), "the longest datagram");
}

#[test]
fn one_fragment_is_no_fragment() {
    for between in [Between::V4(vec![]), Between::V6(vec![])] {
        let datagram = datagram(&between, false, &[7; 1000], 1008);
        let offload = check(&datagram, UFO).unwrap();
        assert!(!offload.is_gso() && offload.fits(OffloadSet::CHECKSUM));
        assert_eq!(offload.header().gso_type, GSO_NONE);
    }
}

#[test]
fn later_fragments_have_only_the_options_that_are_to_be_copied() {
    // Record route (7) is not copied, the router alert (148) is (RFC 791 §3.1, RFC 2113).
    let options = vec![7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0];
    let datagram = datagram(&Between::V4(options.clone()), false, &[7; 5000], 1000);
    let offload = check(&datagram, UFO).unwrap();
    let out = fragments(&datagram.frame, &offload, &mut Identifications::default());
    assert_eq!(out[0][34..46], options[..]);
    for later in &out[1..] {
        assert_eq!(later[34..46], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0]);
    }
    reassemble(&out, 14, 1000);
    // Options that lie about their length are left as they are.
    for lie in [[7, 0, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7], [148, 1, 7, 9]] {
        let datagram = crate::datagram(&Between::V4(lie.to_vec()), false, &[7; 5000], 1000);
        let offload = check(&datagram, UFO).unwrap();
        reassemble(
            &fragments(&datagram.frame, &offload, &mut Identifications::default()),
            14,
            1000,
        );
    }
}

#[test]
fn identifications_of_ipv6_follow_no_pattern() {
    let datagram = datagram(&Between::V6(vec![]), false, &[7; 3000], 1448);
    let offload = check(&datagram, UFO).unwrap();
    let mut seen = std::collections::HashSet::new();
    let mut steps = std::collections::HashSet::new();
    // Two workers.
    for mut ids in [Identifications::default(), Identifications::default()] {
        let mut last = 0u32;
        for _ in 0..100 {
            let out = fragments(&datagram.frame, &offload, &mut ids);
            let (_, id) = reassemble(&out, 14, 1448);
            seen.insert(id);
            steps.insert(id.wrapping_sub(last));
            last = id;
        }
    }
    // Two of 200 random numbers are the same in one of 200,000 runs.
    assert!(seen.len() >= 199 && steps.len() >= 199, "{} and {}", seen.len(), steps.len());
}
