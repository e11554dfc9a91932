//! Two kernels whose frames we carry: what one sends in large segments and with partial checksums, the other gets cut
//! and complete, and accepts.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use datapath::offload::{Identifications, OffloadSet, complete_checksum, cut, validate};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use wire::VirtioNetHdr;

use super::{BUFFER, DEADLINE, Link, Netns, wait};

/// What went over.
#[derive(Debug, Default)]
pub struct Carried {
    pub frames: usize,
    /// Frames that had to be cut.
    pub large: usize,
    pub segments: usize,
    /// Frames whose checksum had to be completed.
    pub partial: usize,
    /// Frames that the receiver got as they were, with work left to do.
    pub passed_on: usize,
}

/// Every checksum of a finished frame is right, and it fits an Ethernet of 1,500 bytes.
pub fn assert_finished(frame: &[u8]) {
    assert!(frame.len() <= 1518, "a frame of {} bytes", frame.len());
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return };
    let (Some(net), Some(transport)) = (sliced.net, sliced.transport) else { return };
    let (found, expected) = match (&net, &transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            (tcp.checksum(), tcp.calc_checksum_ipv4(header.source(), header.destination()))
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header();
            (tcp.checksum(), tcp.calc_checksum_ipv6(header.source(), header.destination()))
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            (udp.checksum(), udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()))
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            (udp.checksum(), udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()))
        }
        _ => return,
    };
    assert_eq!(found, expected.unwrap(), "{frame:02x?}");
}

/// Carries what is waiting at `from` over to `to`, which takes over only the work in `takes`.
pub fn carry(from: &mut dyn Link, to: &mut dyn Link, takes: OffloadSet, carried: &mut Carried) {
    let mut buf = vec![0; BUFFER];
    let mut hdr = VirtioNetHdr::default();
    let done = VirtioNetHdr::default();
    let mut identifications = Identifications::default();
    loop {
        let len = match from.recv(&mut hdr, &mut buf) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        let frame = &mut buf[..len];
        let window = &frame[..len.min(switch::WINDOW_LEN)];
        let offload = validate(&hdr, window, len, OffloadSet::ALL)
            .unwrap_or_else(|reason| panic!("{reason}: {hdr:?} {window:02x?}"));
        carried.frames += 1;
        if offload.fits(takes) {
            carried.passed_on += usize::from(!offload.is_none());
            deliver(to, &offload.header(), &[frame]);
        } else if offload.is_gso() {
            carried.large += 1;
            carried.segments += cut(frame, &offload, &mut identifications, |headers, payload| {
                assert_finished(&[headers, payload].concat());
                deliver(to, &done, &[headers, payload]);
            })
            .unwrap();
        } else {
            carried.partial += 1;
            complete_checksum(frame, &offload).unwrap();
            assert_finished(frame);
            deliver(to, &done, &[frame]);
        }
    }
}

/// A full queue loses the frame, as a switch would; TCP sends it again.
fn deliver(to: &mut dyn Link, hdr: &VirtioNetHdr, pieces: &[&[u8]]) {
    match to.send(hdr, pieces) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
        Err(error) => panic!("{error}: {hdr:?}"),
    }
}

/// Sends `len` bytes by TCP from one kernel to the other and checks that they arrive.
pub fn transfer(
    (client, client_link): (&Netns, &mut dyn Link),
    (server, server_link): (&Netns, &mut dyn Link),
    address: SocketAddr,
    len: usize,
    takes: OffloadSet,
) -> Carried {
    let data: Vec<u8> = (0..=250u8).cycle().take(len).collect();
    let listener = server.run(move || TcpListener::bind(address).unwrap());
    let received = server.start(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let expected = data.clone();
    let sent = client.start(move || {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&data).unwrap();
    });
    let deadline = Instant::now() + DEADLINE;
    let mut carried = Carried::default();
    let received = loop {
        assert!(Instant::now() < deadline, "the transfer did not end: {carried:?}");
        carry(client_link, server_link, takes, &mut carried);
        carry(server_link, client_link, takes, &mut carried);
        if let Ok(received) = received.try_recv() {
            break received;
        }
        wait(&[client_link.as_fd(), server_link.as_fd()]);
    };
    assert!(received == expected, "{} bytes arrived, or not the same", received.len());
    sent.recv().expect("the client panicked");
    carried
}
