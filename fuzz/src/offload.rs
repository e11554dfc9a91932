//! Checksum and segmentation work: what a sender asks for, and what becomes of it.

use datapath::offload::{Identifications, Offload, OffloadSet, complete_checksum, cut, validate};
use switch::{TagOp, Tci, WINDOW_LEN};
use wire::virtio_net::{F_NEEDS_CSUM, GSO_UDP, GSO_UDP_L4, HDR_LEN, VirtioNetHdr};
use wire::{checksum, ipv4, ipv6, tcp, udp};
use zerocopy::FromBytes;

use crate::input::Input;

/// Which tag operation, which features, the virtio header, how far the frame's last byte repeats, and the frame.
///
/// # Panics
/// When work was granted that cannot be done, a header for a receiver points outside of its frame, or the segments are
/// not the frame's payload with headers that fit.
pub fn offload(data: &[u8]) {
    let mut input = Input(data);
    let step = input.u8();
    let features = u64::from(input.u8()) | 1 << 56;
    let header: [u8; HDR_LEN] = input.array();
    let header = VirtioNetHdr::read_from_bytes(&header).expect("the array has its size");
    let repeat = usize::from(input.u16());
    let mut frame = input.0.to_vec();
    if frame.len() < 14 {
        return;
    }
    frame.resize((frame.len() + repeat).min(65_535 + 22), 0x5a);
    let allowed = if step & 0x80 == 0 {
        OffloadSet::ALL
    } else {
        OffloadSet::driver_leaves(features << 11 | features)
    };
    let window = &frame[..frame.len().min(WINDOW_LEN)];
    let Ok(offload) = validate(&header, window, frame.len(), allowed) else { return };
    assert!(offload.fits(allowed), "more than the sender may ask for");
    let told = offload.header();
    assert!(told.flags & !F_NEEDS_CSUM == 0);
    if offload.is_none() {
        assert_eq!(told, VirtioNetHdr::default());
        return;
    }
    let field = usize::from(told.csum_start.get()) + usize::from(told.csum_offset.get());
    assert!(field + 2 <= frame.len(), "a checksum behind the frame");
    assert!(usize::from(told.hdr_len.get()) <= frame.len());

    // What a receiver gets after a tag was put in, changed or taken off.
    let tagged = u16::from_be_bytes([frame[12], frame[13]]) == 0x8100 && frame.len() >= 18;
    let (offload, mut frame) = match step & 3 {
        1 => {
            let tci = Tci::from_vid(switch::Vid::new(5).expect("a VLAN"));
            let mut longer = frame[..12].to_vec();
            longer.extend([0x81, 0, 0, 5]);
            longer.extend(&frame[12..]);
            (offload.retagged(TagOp::Push(tci)), longer)
        }
        2 if tagged => {
            frame.drain(12..16);
            (offload.retagged(TagOp::Strip), frame)
        }
        _ => (offload, frame),
    };
    let told = offload.header();
    let field = usize::from(told.csum_start.get()) + usize::from(told.csum_offset.get());
    assert!(field + 2 <= frame.len(), "a checksum behind the frame with its new tag");
    if told.gso() == GSO_UDP {
        check_fragments(frame, &offload);
    } else if offload.is_gso() {
        check_segments(&mut frame, &offload);
    } else {
        let before = frame.clone();
        complete_checksum(&mut frame, &offload).expect("it was validated");
        let changed = (0..frame.len()).filter(|&at| frame[at] != before[at]);
        assert!(changed.into_iter().all(|at| at == field || at == field + 1));
    }
}

/// All payload once and in order, each segment with lengths and checksums of its own.
fn check_segments(frame: &mut [u8], offload: &Offload) {
    let told = offload.header();
    let headers_len = usize::from(told.hdr_len.get());
    let start = usize::from(told.csum_start.get());
    let mut payload = Vec::new();
    let mut emitted = 0;
    let mut emit = |headers: &[u8], piece: &[u8]| {
        assert_eq!(headers.len(), headers_len);
        assert!((1..=usize::from(told.gso_size.get())).contains(&piece.len()));
        payload.extend_from_slice(piece);
        emitted += 1;
        let whole = [headers, piece].concat();
        check_packet(&whole, start, told.gso() != GSO_UDP_L4);
    };
    match cut(frame, offload, &mut Identifications::default(), &mut emit) {
        Ok(count) => {
            assert_eq!(count, emitted);
            assert_eq!(payload, frame[headers_len..], "another payload");
        }
        // A frame whose tag made it longer than a packet can be.
        Err(_) => assert_eq!(emitted, 0),
    }
}

/// The datagram once and in order, with its checksum, in fragments with offsets and lengths of their own.
fn check_fragments(mut frame: Vec<u8>, offload: &Offload) {
    let told = offload.header();
    let size = usize::from(told.gso_size.get());
    assert!(size > 0 && size.is_multiple_of(8), "fragments of {size} bytes");
    let network = network(&frame);
    let is_v4 = frame[network] >> 4 == 4;
    let mut finished = frame.clone();
    complete_checksum(&mut finished, offload).expect("it was validated");
    let mut payload = Vec::new();
    let mut emitted = 0;
    let mut last = false;
    let mut emit = |headers: &[u8], piece: &[u8]| {
        assert!((1..=size).contains(&piece.len()) && !last);
        let packet = [&headers[network..], piece].concat();
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let offset = if is_v4 {
            let view = ipv4::Ipv4View::new_checked(&packet).expect("a fragment's IPv4 header");
            assert!(view.checksum_is_correct(), "the IPv4 header's checksum");
            assert_eq!(usize::from(word(2)), packet.len());
            last = word(6) & 0x2000 == 0;
            usize::from(word(6) & 0x1fff) * 8
        } else {
            assert_eq!(usize::from(word(4)) + ipv6::HEADER_LEN, packet.len());
            let found = ipv6::transport(&packet).expect("a fragment's headers");
            assert_eq!(found.protocol, ipv6::NEXT_FRAGMENT);
            assert_eq!(found.offset + 8, headers.len() - network);
            last = word(found.offset + 2) & 1 == 0;
            usize::from(word(found.offset + 2) & 0xfff8)
        };
        assert_eq!(offset, payload.len(), "the fragment's offset");
        payload.extend_from_slice(piece);
        emitted += 1;
    };
    match cut(&mut frame, offload, &mut Identifications::default(), &mut emit) {
        Ok(count) => {
            assert!(count == emitted && (2..=128).contains(&count) && last);
            assert!(finished.ends_with(&payload), "another datagram");
            assert!(payload.len() >= frame.len() - usize::from(told.csum_start.get()));
        }
        // A frame whose tag made it longer than a packet can be.
        Err(_) => assert_eq!(emitted, 0),
    }
}

/// The network header begins behind up to two tags, and one that was put in.
fn network(frame: &[u8]) -> usize {
    let mut places = [14, 18, 22, 26].into_iter();
    let found = places.find(|&at| {
        matches!(
            (u16::from_be_bytes([frame[at - 2], frame[at - 1]]), frame[at] >> 4),
            (0x0800, 4) | (0x86dd, 6)
        )
    });
    found.expect("a network header")
}

fn check_packet(frame: &[u8], transport: usize, is_tcp: bool) {
    let network = network(frame);
    let packet = &frame[network..];
    let covered = &frame[transport..];
    let protocol = if is_tcp { ipv4::PROTOCOL_TCP } else { ipv4::PROTOCOL_UDP };
    let (pseudo, end) = if packet[0] >> 4 == 4 {
        let view = ipv4::Ipv4View::new_checked(packet).expect("a segment's IPv4 header");
        assert!(view.checksum_is_correct(), "the IPv4 header's checksum");
        assert_eq!(view.protocol(), protocol);
        let length = u16::try_from(covered.len()).expect("below 64 KiB");
        let pseudo = checksum::pseudo_v4(view.src(), view.dst(), protocol, length);
        (pseudo, view.header_len() + view.payload().len())
    } else {
        let view = ipv6::Ipv6View::new_checked(packet).expect("a segment's IPv6 header");
        let length = u32::try_from(covered.len()).expect("below 64 KiB");
        let pseudo = checksum::pseudo_v6(view.src(), view.dst(), protocol, length);
        (pseudo, ipv6::HEADER_LEN + view.payload().len())
    };
    assert_eq!(end, packet.len(), "the packet's length");
    assert_eq!(checksum::finish(pseudo + checksum::sum(covered)), 0, "the segment's checksum");
    if is_tcp {
        tcp::TcpView::new_checked(covered).expect("a segment's TCP header");
    } else {
        let view = udp::UdpView::new_checked(covered).expect("a datagram's UDP header");
        assert_eq!(view.bytes().len(), covered.len(), "the datagram's length");
    }
}
