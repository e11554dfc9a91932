//! Clients for the engine: messages built octet by octet, answers read by our own walker and by
//! dhcproto, time on a fake clock.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dhcpd::dhcp4::{Actions, Config, DropReason, Engine, IngressId, Range};
use dhcpd::{LeaseEvent, Now};
use dhcproto::{Decodable as _, Decoder, v4};
use uuid::Uuid;
use wire::udp::{UdpV4, build_ipv4, parse_ipv4};
use wire::{MacAddr, Vid};

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const SERVER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub(crate) const DISCOVER: u8 = 1;
pub(crate) const OFFER: u8 = 2;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const DECLINE: u8 = 4;
pub(crate) const ACK: u8 = 5;
pub(crate) const NAK: u8 = 6;
pub(crate) const RELEASE: u8 = 7;
pub(crate) const INFORM: u8 = 8;

pub(crate) fn ip(c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, c, d)
}

pub(crate) fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 1, n])
}

pub(crate) fn port(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// 10.77.0.0/16, addresses for anybody from 10.77.1.10 to 10.77.1.19.
pub(crate) fn config() -> Config {
    let mut config = Config::new(SERVER, "10.77.0.0/16".parse().expect("a prefix"), SERVER_MAC);
    config.ranges = vec![Range { start: ip(1, 10), end: ip(1, 19), lease: None }];
    config.router = Some(SERVER);
    config.dns = vec![SERVER];
    config.domain = Some("net77.test".to_owned());
    config.mtu = Some(1400);
    config
}

/// A message of a client.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) mac: MacAddr,
    pub(crate) src_mac: MacAddr,
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) vlan: Option<u16>,
    pub(crate) head: [u8; 240],
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    pub(crate) fn new(kind: u8, mac: MacAddr) -> Self {
        let mut head = [0; 240];
        head[..8].copy_from_slice(&[1, 1, 6, 0, 0xca, 0xfe, 0, mac.0[5]]);
        head[28..34].copy_from_slice(&mac.0);
        head[236..].copy_from_slice(&[99, 130, 83, 99]);
        Self {
            mac,
            src_mac: mac,
            src: Ipv4Addr::UNSPECIFIED,
            dst: Ipv4Addr::BROADCAST,
            vlan: None,
            head,
            options: vec![(53, vec![kind])],
        }
    }

    pub(crate) fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub(crate) fn requested(self, ip: Ipv4Addr) -> Self {
        self.option(50, &ip.octets())
    }

    pub(crate) fn server(self, ip: Ipv4Addr) -> Self {
        self.option(54, &ip.octets())
    }

    pub(crate) fn broadcast_flag(mut self) -> Self {
        self.head[10] = 0x80;
        self
    }

    pub(crate) fn ciaddr(mut self, ip: Ipv4Addr) -> Self {
        self.head[12..16].copy_from_slice(&ip.octets());
        self
    }

    pub(crate) fn giaddr(mut self, ip: Ipv4Addr) -> Self {
        self.head[24..28].copy_from_slice(&ip.octets());
        self
    }

    /// Unicast from the client's own address to the server, as a renewal is.
    pub(crate) fn unicast(mut self, from: Ipv4Addr) -> Self {
        self.src = from;
        self.dst = SERVER;
        self
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut bytes = self.head.to_vec();
        for (code, value) in &self.options {
            bytes.extend_from_slice(&[*code, u8::try_from(value.len()).expect("short")]);
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        bytes
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        self.frame_of(&self.payload())
    }

    pub(crate) fn frame_of(&self, payload: &[u8]) -> Vec<u8> {
        let to = UdpV4 {
            src_mac: self.src_mac,
            dst_mac: MacAddr::BROADCAST,
            vlan: self.vlan.and_then(Vid::new),
            src: SocketAddrV4::new(self.src, 68),
            dst: SocketAddrV4::new(self.dst, 67),
            ttl: 64,
        };
        let mut frame = vec![0; payload.len() + 64];
        let len = build_ipv4(&mut frame, &to, payload).expect("it fits");
        frame.truncate(len);
        frame
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) frame: Vec<u8>,
    pub(crate) durable: bool,
    pub(crate) dst_mac: MacAddr,
    pub(crate) src: SocketAddrV4,
    pub(crate) dst: SocketAddrV4,
    pub(crate) payload: Vec<u8>,
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

impl Answer {
    /// Reads a frame; its checksums, its padding and its options must be right, and dhcproto must
    /// read the same options.
    pub(crate) fn parse(durable: bool, frame: &[u8]) -> Self {
        let datagram = parse_ipv4(frame).expect("the server builds whole frames");
        assert_eq!(datagram.src_mac, SERVER_MAC);
        let at = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
        assert_ne!(frame[at + 26..at + 28], [0, 0], "the UDP checksum is there");
        let payload = datagram.payload.to_vec();
        assert!(payload.len() >= 300, "BOOTP clients want 300 octets");
        assert_eq!(payload[..3], [2, 1, 6]);
        let mut options = Vec::new();
        let mut rest = &payload[240..];
        loop {
            let (code, after) = rest.split_first().expect("options end with END");
            match code {
                255 => break,
                0 => rest = after,
                _ => {
                    let (value, after) = after[1..].split_at(usize::from(after[0]));
                    options.push((*code, value.to_vec()));
                    rest = after;
                }
            }
        }
        let oracle = v4::Message::decode(&mut Decoder::new(&payload)).expect("dhcproto reads it");
        let mut codes: Vec<u8> = options.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        // dhcproto reads option 81 in wire encoding only.
        codes.retain(|code| *code != 81);
        let theirs: Vec<u8> = oracle
            .opts()
            .iter()
            .map(|(code, _)| u8::from(*code))
            .filter(|code| *code != 81)
            .collect();
        assert_eq!(codes, theirs, "dhcproto sees the same options");
        Self {
            frame: frame.to_vec(),
            durable,
            dst_mac: datagram.dst_mac,
            src: datagram.src,
            dst: datagram.dst,
            payload,
            options,
        }
    }

    pub(crate) fn oracle(&self) -> v4::Message {
        v4::Message::decode(&mut Decoder::new(&self.payload)).expect("dhcproto reads it")
    }

    /// The option's instances joined.
    pub(crate) fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut of_code = self.options.iter().filter(|(c, _)| *c == code).peekable();
        of_code.peek()?;
        Some(of_code.flat_map(|(_, value)| value.clone()).collect())
    }

    pub(crate) fn u32(&self, code: u8) -> Option<u32> {
        let value = self.option(code)?;
        Some(u32::from_be_bytes(value.try_into().expect("four octets")))
    }

    pub(crate) fn kind(&self) -> u8 {
        self.option(53).expect("a message type")[0]
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        let octets: [u8; 4] = self.payload[at..at + 4].try_into().expect("four octets");
        octets.into()
    }

    pub(crate) fn ciaddr(&self) -> Ipv4Addr {
        self.address(12)
    }

    pub(crate) fn yiaddr(&self) -> Ipv4Addr {
        self.address(16)
    }

    pub(crate) fn siaddr(&self) -> Ipv4Addr {
        self.address(20)
    }
}

/// An engine, a clock, and what the engine did last.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) now: Now,
    pub(crate) done: Actions,
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        let now = Now { mono: Duration::from_secs(100), wall: Duration::from_secs(1_800_000_000) };
        let engine = Engine::new(config, [], now).expect("a good configuration");
        Self { engine, now, done: Actions::default() }
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
        self.now.wall += Duration::from_secs(seconds);
        self.done = Actions::default();
        self.engine.expire(self.now, &mut self.done);
    }

    /// Gives the engine a frame of port 1.
    pub(crate) fn frame(&mut self, frame: &[u8]) -> Option<Answer> {
        self.frame_from(port(1), 0, frame)
    }

    pub(crate) fn frame_from(&mut self, port: Uuid, vlan: u16, frame: &[u8]) -> Option<Answer> {
        self.done = Actions::default();
        self.engine.handle(self.now, IngressId { port, vlan }, frame, &mut self.done);
        assert!(self.done.replies.len() <= 1, "one answer at most");
        let reply = self.done.replies.first()?;
        assert_eq!(reply.to, IngressId { port, vlan });
        Some(Answer::parse(reply.durable, &reply.frame))
    }

    pub(crate) fn send(&mut self, message: &Message) -> Option<Answer> {
        self.frame(&message.frame())
    }

    pub(crate) fn send_from(&mut self, port: Uuid, message: &Message) -> Option<Answer> {
        self.frame_from(port, 0, &message.frame())
    }

    /// The message gets no answer and changes nothing, for this reason.
    pub(crate) fn dropped(&mut self, message: &Message, reason: DropReason) {
        self.dropped_frame(&message.frame(), reason);
    }

    pub(crate) fn dropped_frame(&mut self, frame: &[u8], reason: DropReason) {
        let before = self.engine.counters().dropped(reason);
        assert!(self.frame(frame).is_none(), "no answer is expected");
        let drops: Vec<_> = self.engine.counters().drops().collect();
        assert_eq!(self.engine.counters().dropped(reason), before + 1, "{reason:?}: {drops:?}");
        assert_eq!(self.done.changes, []);
    }

    /// DISCOVER to ACK on a port; the address.
    pub(crate) fn lease_on(&mut self, port: Uuid, mac: MacAddr, more: &[(u8, &[u8])]) -> Ipv4Addr {
        let with = |message: Message| {
            more.iter().fold(message, |message, (code, value)| message.option(*code, value))
        };
        let offer = self.send_from(port, &with(Message::new(DISCOVER, mac))).expect("an offer");
        assert_eq!(offer.kind(), OFFER);
        let request = with(Message::new(REQUEST, mac).requested(offer.yiaddr()).server(SERVER));
        let ack = self.send_from(port, &request).expect("an answer");
        assert_eq!(ack.kind(), ACK);
        assert_eq!(ack.yiaddr(), offer.yiaddr());
        assert!(ack.durable);
        ack.yiaddr()
    }

    pub(crate) fn lease(&mut self, mac: MacAddr) -> Ipv4Addr {
        self.lease_on(port(1), mac, &[])
    }

    pub(crate) fn leases(&self) -> Vec<dhcpd::lease::Lease> {
        let mut leases: Vec<_> = self.engine.leases(self.now).collect();
        leases.sort_by_key(|lease| lease.ip);
        leases
    }

    pub(crate) fn has_event(&self, matches: impl Fn(&LeaseEvent) -> bool) -> bool {
        self.done.events.iter().any(matches)
    }
}
