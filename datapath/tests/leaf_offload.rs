//! Validation, completion and segmentation against etherparse, and against headers that lie.

use datapath::offload::{Identifications, Offload, OffloadSet, complete_checksum, cut, validate};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use switch::{DropReason, TagOp, Tci};
use wire::Malformed;
use wire::virtio_net::{
    F_DATA_VALID, F_NEEDS_CSUM, F_RSC_INFO, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP,
    GSO_UDP_L4, VirtioNetHdr,
};

const SRC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    fn gso(self) -> u8 {
        match self {
            Self::Tcp4 => GSO_TCPV4,
            Self::Tcp6 => GSO_TCPV6,
            Self::Udp4 | Self::Udp6 => GSO_UDP_L4,
        }
    }

    fn needs(self) -> OffloadSet {
        OffloadSet::CHECKSUM.union(match self {
            Self::Tcp4 => OffloadSet::TSO4,
            Self::Tcp6 => OffloadSet::TSO6,
            Self::Udp4 => OffloadSet::USO4,
            Self::Udp6 => OffloadSet::USO6,
        })
    }
}

/// A large frame as a sender's stack leaves it, with its header.
#[derive(Clone, Debug)]
struct Large {
    kind: Kind,
    tagged: bool,
    frame: Vec<u8>,
    hdr: VirtioNetHdr,
    payload: Vec<u8>,
    sequence: u32,
}

fn large(
    kind: Kind,
    tagged: bool,
    payload: Vec<u8>,
    gso_size: u16,
    sequence: u32,
    id: u16,
) -> Large {
    let ethernet = PacketBuilder::ethernet2(SRC, DST);
    let mut ip4 =
        etherparse::Ipv4Header::new(0, 64, 6.into(), [192, 0, 2, 1], [192, 0, 2, 2]).unwrap();
    ip4.identification = id;
    let ip4 = etherparse::IpHeaders::Ipv4(ip4, etherparse::Ipv4Extensions::default());
    let ip6 = etherparse::IpHeaders::Ipv6(
        etherparse::Ipv6Header {
            source: [1; 16],
            destination: [2; 16],
            hop_limit: 64,
            ..Default::default()
        },
        etherparse::Ipv6Extensions::default(),
    );
    let ip = if matches!(kind, Kind::Tcp4 | Kind::Udp4) { ip4 } else { ip6 };
    let ip =
        if tagged { ethernet.single_vlan(7.try_into().unwrap()).ip(ip) } else { ethernet.ip(ip) };
    let mut frame = Vec::new();
    if kind.is_tcp() {
        let mut tcp = etherparse::TcpHeader::new(1000, 2000, sequence, 500);
        (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, true, true);
        // Two no-ops and a timestamp, as Linux sends them.
        tcp.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        ip.tcp_header(tcp).write(&mut frame, &payload).unwrap();
    } else {
        ip.udp(1000, 2000).write(&mut frame, &payload).unwrap();
    }
    let headers = frame.len() - payload.len();
    let transport = headers - if kind.is_tcp() { 32 } else { 8 };
    let field = if kind.is_tcp() { 16u16 } else { 6 };
    // The field holds the folded sum of the pseudo-header; nobody may rely on more.
    let at = transport + usize::from(field);
    let len = u32::try_from(frame.len() - transport).unwrap();
    let protocol = if kind.is_tcp() { 6u8 } else { 17 };
    let pseudo = if matches!(kind, Kind::Tcp4 | Kind::Udp4) {
        let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        wire::checksum::pseudo_v4(src, dst, protocol, u16::try_from(len).unwrap())
    } else {
        wire::checksum::pseudo_v6([1; 16].into(), [2; 16].into(), protocol, len)
    };
    frame[at..at + 2].copy_from_slice(&wire::checksum::fold(pseudo).to_be_bytes());
    let mut hdr = VirtioNetHdr { flags: F_NEEDS_CSUM, gso_type: kind.gso(), ..Default::default() };
    hdr.hdr_len.set(u16::try_from(headers).unwrap());
    hdr.gso_size.set(gso_size);
    hdr.csum_start.set(u16::try_from(transport).unwrap());
    hdr.csum_offset.set(field);
    Large { kind, tagged, frame, hdr, payload, sequence }
}

fn window(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(switch::WINDOW_LEN)]
}

fn check(frame: &[u8], hdr: &VirtioNetHdr, allowed: OffloadSet) -> Result<Offload, DropReason> {
    validate(hdr, window(frame), frame.len(), allowed)
}

/// Takes a finished frame apart: IPv4 identification, transport payload, TCP header. Every checksum has to be right.
fn verify(frame: &[u8]) -> (Option<u16>, Vec<u8>, Option<etherparse::TcpHeader>) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a segment that does not parse");
    let net = sliced.net.expect("no IP");
    let id = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            Some(header.identification)
        }
        _ => None,
    };
    match sliced.transport.expect("no transport header") {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let expected = match &net {
                NetSlice::Ipv4(ip) => {
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                }
                NetSlice::Ipv6(ip) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                }
                NetSlice::Arp(_) => unreachable!(),
            };
            assert_eq!(header.checksum, expected.unwrap());
            (id, tcp.payload().to_vec(), Some(header))
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let expected = match &net {
                NetSlice::Ipv4(ip) => header.calc_checksum_ipv4_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                ),
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                ),
                NetSlice::Arp(_) => unreachable!(),
            };
            assert_eq!(header.checksum, expected.unwrap());
            assert_eq!(usize::from(header.length), udp.payload().len() + 8);
            (id, udp.payload().to_vec(), None)
        }
        other => panic!("{other:?}"),
    }
}

fn segments(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut frame = frame.to_vec();
    let count = cut(&mut frame, offload, &mut Identifications::default(), |headers, payload| {
        out.push([headers, payload].concat());
    });
    assert_eq!(count, Ok(out.len()));
    out
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6])
}

prop_compose! {
    fn any_large()(
        kind in kind(), tagged in any::<bool>(), gso_size in 48u16..3000, sequence in any::<u32>(),
        id in any::<u16>(), count in 1usize..40, last in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) -> Large {
        let len = (count * usize::from(gso_size) + last.index(usize::from(gso_size)) + 1).min(65_000);
        let payload = (0..=250u8).cycle().take(len).map(|n| byte.wrapping_add(n)).collect();
        large(kind, tagged, payload, gso_size, sequence, id)
    }
}

proptest! {
    #[test]
    fn segments_are_what_a_stack_would_have_sent(large in any_large()) {
        let offload = check(&large.frame, &large.hdr, OffloadSet::ALL).unwrap();
        prop_assert!(offload.is_gso());
        prop_assert!(offload.fits(large.kind.needs()));
        prop_assert!(!offload.fits(OffloadSet::CHECKSUM));
        prop_assert!(!offload.fits(OffloadSet::NONE));
        let size = usize::from(large.hdr.gso_size.get());
        let out = segments(&large.frame, &offload);
        prop_assert_eq!(out.len(), large.payload.len().div_ceil(size));
        let mut together = Vec::new();
        let first = verify(&out[0]);
        for (index, frame) in out.iter().enumerate() {
            let (id, payload, tcp) = verify(frame);
            let is_last = index + 1 == out.len();
            prop_assert_eq!(payload.len(), if is_last { large.payload.len() - index * size } else { size });
            prop_assert_eq!(&frame[..14], &large.frame[..14]);
            if large.tagged {
                prop_assert_eq!(&frame[14..18], &large.frame[14..18]);
            }
            if let Some(id) = id {
                prop_assert_eq!(id, first.0.unwrap().wrapping_add(u16::try_from(index).unwrap()));
            }
            if let Some(tcp) = tcp {
                let offset = u32::try_from(together.len()).unwrap();
                prop_assert_eq!(tcp.sequence_number, large.sequence.wrapping_add(offset));
                prop_assert_eq!((tcp.psh, tcp.fin), (is_last, is_last));
                prop_assert_eq!(tcp.cwr, index == 0);
                prop_assert!(tcp.ack);
                prop_assert_eq!(tcp.options.as_slice(), [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
            }
            together.extend_from_slice(&payload);
        }
        prop_assert_eq!(together, large.payload);
    }

    #[test]
    fn partial_checksums_are_completed(large in any_large(), len in 0usize..1400) {
        let Large { kind, tagged, payload, .. } = large;
        let small = crate::large(kind, tagged, payload[..len.min(payload.len())].to_vec(), 0, 1, 1);
        let hdr = VirtioNetHdr { gso_type: GSO_NONE, ..small.hdr };
        let offload = check(&small.frame, &hdr, OffloadSet::CHECKSUM).unwrap();
        prop_assert!(!offload.is_gso() && !offload.is_none() && offload.fits(OffloadSet::CHECKSUM));
        let mut frame = small.frame.clone();
        complete_checksum(&mut frame, &offload).unwrap();
        verify(&frame);
        // Completing is all that changes.
        let field = usize::from(hdr.csum_start.get() + hdr.csum_offset.get());
        frame[field..field + 2].copy_from_slice(&small.frame[field..field + 2]);
        prop_assert_eq!(frame, small.frame);
    }

    #[test]
    fn the_header_is_built_anew(large in any_large(), hdr_len in any::<u16>(), flags in any::<u8>(), num_buffers in any::<u16>()) {
        // Hints and flags of others do not get through.
        let mut hdr = VirtioNetHdr { flags: flags | F_NEEDS_CSUM, ..large.hdr };
        hdr.hdr_len.set(hdr_len);
        hdr.num_buffers.set(num_buffers);
        let offload = check(&large.frame, &hdr, OffloadSet::ALL).unwrap();
        prop_assert_eq!(offload.header(), large.hdr);
        prop_assert_eq!(check(&large.frame, &offload.header(), OffloadSet::ALL), Ok(offload));
    }

    #[test]
    fn offsets_follow_the_tag(large in any_large()) {
        let offload = check(&large.frame, &large.hdr, OffloadSet::ALL).unwrap();
        let (frame, tag) = if large.tagged {
            ([&large.frame[..12], &large.frame[16..]].concat(), TagOp::Strip)
        } else {
            ([&large.frame[..12], &[0x81, 0, 0, 5], &large.frame[12..]].concat(), TagOp::Push(Tci(5)))
        };
        let moved = offload.retagged(tag);
        prop_assert_eq!(check(&frame, &moved.header(), OffloadSet::ALL), Ok(moved));
        for frame in segments(&frame, &moved) {
            verify(&frame);
        }
        prop_assert_eq!(offload.retagged(TagOp::Keep), offload);
        prop_assert_eq!(Offload::NONE.retagged(tag), Offload::NONE);
    }

    /// Whatever passes validation can be done without a panic and without leaving the frame.
    #[test]
    fn hostile_headers_and_frames(
        large in any_large(), bytes in any::<[u8; 12]>(), changes in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
        fields in any::<u16>(), end in any::<prop::sample::Index>(), allowed in any::<u64>(),
    ) {
        use zerocopy::FromBytes;
        let mut frame = large.frame;
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) { *place = byte; }
        }
        // Each field is either the honest one or anything.
        let mut honest = [0; 12];
        honest.copy_from_slice(zerocopy::IntoBytes::as_bytes(&large.hdr));
        for (index, byte) in honest.iter_mut().enumerate() {
            if fields >> index & 1 != 0 { *byte = bytes[index]; }
        }
        let hdr = VirtioNetHdr::read_from_bytes(&honest).unwrap();
        let allowed = if allowed & 1 == 0 { OffloadSet::ALL } else { OffloadSet::driver_leaves(allowed) };
        let outcome = check(&frame, &hdr, allowed);
        if let Ok(offload) = outcome {
            prop_assert!(offload.fits(allowed));
            if offload.is_gso() {
                let total: usize = segments(&frame, &offload).iter().map(Vec::len).sum();
                // 128 bytes of headers for each 48 of payload is the worst that one frame can grow to.
                prop_assert!(total <= frame.len() * 4 + 128 * 128);
            } else {
                complete_checksum(&mut frame.clone(), &offload).unwrap();
            }
            // A frame that became another one meanwhile is an error at worst.
            let mut shorter = frame[..end.index(frame.len())].to_vec();
            let _ = cut(&mut shorter, &offload, &mut Identifications::default(), |_, _| {});
            let _ = complete_checksum(&mut shorter, &offload);
        } else {
            prop_assert_eq!(outcome, Err(DropReason::BadOffload));
        }
    }
}

#[test]
fn a_header_that_asks_for_nothing_is_nothing() {
    let frame = large(Kind::Tcp4, false, vec![1; 100], 0, 1, 1).frame;
    let mut hdr = VirtioNetHdr { flags: F_DATA_VALID | F_RSC_INFO | 0xf0, ..Default::default() };
    hdr.hdr_len.set(9999);
    hdr.csum_start.set(9999);
    hdr.gso_size.set(9999);
    let offload = check(&frame, &hdr, OffloadSet::NONE).unwrap();
    assert_eq!(offload, Offload::NONE);
    assert!(offload.is_none() && !offload.is_gso() && offload.fits(OffloadSet::NONE));
    assert_eq!(offload.header(), VirtioNetHdr::default());
    let mut same = frame.clone();
    complete_checksum(&mut same, &offload).unwrap();
    assert_eq!(same, frame);
}

#[test]
fn what_does_not_fit_is_refused() {
    const ALL: OffloadSet = OffloadSet::ALL;
    let base = large(Kind::Tcp4, false, vec![7; 4000], 1000, 1, 1);
    let refused = |what: &str, change: &dyn Fn(&mut Large)| {
        let mut changed = base.clone();
        change(&mut changed);
        assert_eq!(check(&changed.frame, &changed.hdr, ALL), Err(DropReason::BadOffload), "{what}");
    };
    assert!(check(&base.frame, &base.hdr, ALL).is_ok());
    refused("segmentation without a checksum", &|large| large.hdr.flags = 0);
    refused("another family", &|large| large.hdr.gso_type = GSO_TCPV6);
    refused("another protocol", &|large| large.hdr.gso_type = GSO_UDP_L4);
    refused("fragmentation offload", &|large| large.hdr.gso_type = GSO_UDP);
    refused("an unknown type", &|large| large.hdr.gso_type = 2);
    refused("congestion notification of nothing", &|large| large.hdr.gso_type = GSO_ECN);
    refused("segments of nothing", &|large| large.hdr.gso_size.set(0));
    refused("tiny segments", &|large| large.hdr.gso_size.set(47));
    refused("a checksum elsewhere", &|large| large.hdr.csum_start.set(35));
    refused("a checksum in another field", &|large| large.hdr.csum_offset.set(14));
    refused("a checksum beyond the frame", &|large| large.hdr.csum_start.set(4065));
    refused("a checksum in the addresses", &|large| {
        large.hdr.gso_type = GSO_NONE;
        large.hdr.csum_start.set(13);
    });
    refused("a field beyond the frame", &|large| {
        large.hdr.gso_type = GSO_NONE;
        large.hdr.csum_offset.set(4032);
    });
    refused("offsets that wrap", &|large| {
        large.hdr.gso_type = GSO_NONE;
        large.hdr.csum_start.set(u16::MAX);
        large.hdr.csum_offset.set(u16::MAX);
    });
    refused("a fragment", &|large| large.frame[20] = 0x20);
    refused("a TCP header shorter than one", &|large| large.frame[14 + 20 + 12] = 0x40);
    refused("a TCP header beyond the frame", &|large| {
        large.frame.truncate(60);
        large.frame[14 + 20 + 12] = 0xf0;
    });
    refused("another version", &|large| large.frame[14] = 0x65);
    refused("an IP header shorter than one", &|large| large.frame[14] = 0x44);
    refused("more than an IP packet can hold", &|large| large.frame.resize(14 + 65_536, 0));

    let datagrams = large(Kind::Udp4, false, vec![7; 12_900], 100, 1, 1);
    assert_eq!(
        check(&datagrams.frame, &datagrams.hdr, ALL),
        Err(DropReason::BadOffload),
        "129 datagrams"
    );
    let datagrams = large(Kind::Udp4, false, vec![7; 12_800], 100, 1, 1);
    assert!(check(&datagrams.frame, &datagrams.hdr, ALL).is_ok(), "128 datagrams");
    let ecn = VirtioNetHdr { gso_type: GSO_UDP_L4 | GSO_ECN, ..datagrams.hdr };
    assert_eq!(check(&datagrams.frame, &ecn, ALL), Err(DropReason::BadOffload));
}

#[test]
fn only_what_was_negotiated_is_allowed() {
    for kind in [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6] {
        let one = large(kind, false, vec![7; 4000], 1000, 1, 1);
        assert!(check(&one.frame, &one.hdr, kind.needs()).is_ok(), "{kind:?}");
        for allowed in [OffloadSet::NONE, OffloadSet::CHECKSUM] {
            assert_eq!(
                check(&one.frame, &one.hdr, allowed),
                Err(DropReason::BadOffload),
                "{kind:?}"
            );
        }
    }
    let one = large(Kind::Tcp4, false, vec![7; 4000], 1000, 1, 1);
    let ecn = VirtioNetHdr { gso_type: GSO_TCPV4 | GSO_ECN, ..one.hdr };
    assert_eq!(check(&one.frame, &ecn, Kind::Tcp4.needs()), Err(DropReason::BadOffload));
    let offload = check(&one.frame, &ecn, OffloadSet::ALL).unwrap();
    assert!(!offload.fits(Kind::Tcp4.needs()) && offload.fits(OffloadSet::KERNEL_TAKES));
    assert_eq!(offload.header().gso_type, GSO_TCPV4 | GSO_ECN);

    // Feature bits of virtio 1.3 §5.1.3.
    assert_eq!(OffloadSet::driver_leaves(1), OffloadSet::CHECKSUM);
    assert_eq!(OffloadSet::driver_leaves(1 | 1 << 11), Kind::Tcp4.needs());
    assert_eq!(OffloadSet::driver_leaves(1 << 11), OffloadSet::NONE, "segments need checksums");
    assert_eq!(OffloadSet::driver_takes(1 << 1 | 1 << 8), Kind::Tcp6.needs());
    assert_eq!(
        OffloadSet::driver_takes(1 | 1 << 11),
        OffloadSet::NONE,
        "the other direction's bits"
    );
    let everything = 1 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 56;
    assert_eq!(OffloadSet::driver_leaves(everything), OffloadSet::ALL);
    let everything = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 54 | 1 << 55;
    assert_eq!(OffloadSet::driver_takes(everything), OffloadSet::ALL);
}

#[test]
fn one_segment_is_no_segmentation() {
    let one = large(Kind::Tcp4, false, vec![7; 1000], 1000, 1, 1);
    let offload = check(&one.frame, &one.hdr, OffloadSet::ALL).unwrap();
    assert!(!offload.is_gso() && offload.fits(OffloadSet::CHECKSUM));
    assert_eq!(offload.header().gso_type, GSO_NONE);
    let mut frame = one.frame;
    complete_checksum(&mut frame, &offload).unwrap();
    verify(&frame);
}

#[test]
fn headers_beyond_the_window_are_refused_and_inner_tags_are_not() {
    // IPv6 with destination options that push TCP out of the window.
    let plain = large(Kind::Tcp6, false, vec![7; 4000], 1000, 1, 1);
    let with_options = |words: u8| {
        let mut changed = plain.clone();
        let len = usize::from(words) * 8 + 8;
        let mut options = vec![0; len];
        options[0] = 6;
        options[1] = words;
        changed.frame.splice(54..54, options);
        changed.frame[20] = 60;
        changed.hdr.csum_start.set(54 + u16::try_from(len).unwrap());
        changed
    };
    let near = with_options(4);
    let offload = check(&near.frame, &near.hdr, OffloadSet::ALL).unwrap();
    let out = segments(&near.frame, &offload);
    assert_eq!(out.len(), 4);
    assert!(out.iter().all(|frame| frame[54..94] == near.frame[54..94]));
    assert_eq!(out[3][18..20], 1072u16.to_be_bytes());
    let far = with_options(5);
    assert_eq!(check(&far.frame, &far.hdr, OffloadSet::ALL), Err(DropReason::BadOffload));

    let mut double = large(Kind::Tcp4, true, vec![7; 4000], 1000, 1, 1);
    double.frame.splice(12..12, [0x88, 0xa8, 0, 9]);
    double.hdr.csum_start.set(double.hdr.csum_start.get() + 4);
    let offload = check(&double.frame, &double.hdr, OffloadSet::ALL).unwrap();
    for frame in segments(&double.frame, &offload) {
        verify(&frame);
    }
}

#[test]
fn a_checksum_of_zero_is_written_as_ones_in_udp_alone() {
    for (kind, expected) in [(Kind::Udp4, [0xff, 0xff]), (Kind::Tcp4, [0, 0])] {
        let mut one = large(kind, false, vec![0; 100], 0, 1, 1);
        one.hdr.gso_type = GSO_NONE;
        let offload = check(&one.frame, &one.hdr, OffloadSet::ALL).unwrap();
        let mut done = one.frame.clone();
        complete_checksum(&mut done, &offload).unwrap();
        // The last word takes up what the checksum was.
        let field = usize::from(one.hdr.csum_start.get() + one.hdr.csum_offset.get());
        let len = one.frame.len();
        one.frame[len - 2..].copy_from_slice(&done[field..field + 2]);
        complete_checksum(&mut one.frame, &offload).unwrap();
        assert_eq!(one.frame[field..field + 2], expected, "{kind:?}");
        verify(&one.frame);
    }
}

#[test]
fn segmenting_what_is_not_to_be_segmented_is_an_error() {
    let one = large(Kind::Tcp4, false, vec![7; 1000], 1000, 1, 1);
    for offload in [Offload::NONE, check(&one.frame, &one.hdr, OffloadSet::ALL).unwrap()] {
        let mut emitted = 0;
        let outcome =
            cut(&mut one.frame.clone(), &offload, &mut Identifications::default(), |_, _| {
                emitted += 1;
            });
        assert_eq!(outcome, Err(Malformed::Length));
        assert_eq!(emitted, 0);
    }
}
