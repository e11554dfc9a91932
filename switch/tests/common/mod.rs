//! A bridge with named ports, frames to put in, and the answers in plain values.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use switch::{
    Bridge, BridgeConfig, Decision, DecisionCache, DropReason, Fdb, MacAddr, PortConfig, PortIndex,
    Role, Seconds, TagOp, Tci, Verdict, Vid, VidSet, VlanMode,
};

pub fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

pub fn vids(list: &[u16]) -> VidSet {
    list.iter().copied().map(vid).collect()
}

/// A tag as (VLAN, priority).
pub fn tci(vlan: u16, priority: u16) -> Tci {
    Tci(priority << 13 | vlan)
}

/// The station number `n`.
pub fn station(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

pub fn guest() -> PortConfig {
    PortConfig::new(Role::Guest)
}

pub fn with_vlan(vlan: VlanMode) -> PortConfig {
    PortConfig { vlan, ..guest() }
}

pub fn access(vlan: u16) -> PortConfig {
    with_vlan(VlanMode::Access(vid(vlan)))
}

pub fn trunk(native: Option<u16>, allowed: VidSet) -> PortConfig {
    with_vlan(VlanMode::trunk(native.map(vid), allowed))
}

pub fn isolated() -> PortConfig {
    PortConfig { isolated: true, ..guest() }
}

pub fn frame(src: MacAddr, dst: MacAddr, tag: Option<Tci>) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    if let Some(tci) = tag {
        frame.extend_from_slice(&[0x81, 0]);
        frame.extend_from_slice(&tci.0.to_be_bytes());
    }
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.resize(60, 0);
    frame
}

/// A whole UDP frame.
pub fn datagram(src: MacAddr, dst: MacAddr, to: (Ipv4Addr, u16), tag: Option<Vid>) -> Vec<u8> {
    let mut buf = vec![0; 400];
    let addresses = wire::udp::UdpV4 {
        src_mac: src,
        dst_mac: dst,
        vlan: tag,
        src: std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        dst: std::net::SocketAddrV4::new(to.0, to.1),
        ttl: 64,
    };
    let len = wire::udp::build_ipv4(&mut buf, &addresses, &[0; 300]).unwrap();
    buf.truncate(len);
    buf
}

/// What a frame turned into: for each port that gets it, with which tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Sent(BTreeMap<u16, Option<Tci>>),
    Trapped(u16),
    Dropped(DropReason),
}

/// Ports, all of which get the frame untagged.
pub fn untagged(ports: &[u16]) -> Seen {
    Seen::Sent(ports.iter().map(|&port| (port, None)).collect())
}

pub fn sent(ports: &[(u16, Option<Tci>)]) -> Seen {
    Seen::Sent(ports.iter().copied().collect())
}

pub fn dropped(reason: DropReason) -> Seen {
    Seen::Dropped(reason)
}

/// A bridge under test, on a clock of its own.
pub struct Lab {
    pub bridge: Bridge,
    pub ports: Vec<(PortIndex, PortConfig)>,
    pub now: Seconds,
    cache: DecisionCache,
}

impl Lab {
    /// Removes what is old from all of the forwarding table. Returns how many.
    pub fn expire(&self) -> usize {
        (0..Fdb::EXPIRE_PARTS).map(|_| self.bridge.expire(self.now)).sum()
    }

    /// Ports 1, 2, … in the order given.
    pub fn new(ports: impl IntoIterator<Item = PortConfig>) -> Self {
        Self::with_config(BridgeConfig::default(), Fdb::DEFAULT_MAX_ENTRIES, ports)
    }

    pub fn with_config(
        config: BridgeConfig,
        max_entries: usize,
        ports: impl IntoIterator<Item = PortConfig>,
    ) -> Self {
        let ports: Vec<_> = (1..).map(PortIndex).zip(ports).collect();
        let fdb = Arc::new(Fdb::with_seed(max_entries, [1, 2, 3, 4]));
        let bridge = Bridge::new(config, &ports, fdb);
        Self { bridge, ports, now: Seconds(1000), cache: DecisionCache::default() }
    }

    /// A new configuration around the same forwarding table.
    pub fn reconfigure(&mut self, port: u16, config: PortConfig) {
        let entry = self.ports.iter_mut().find(|(index, _)| index.0 == port).unwrap();
        entry.1 = config;
        self.bridge =
            Bridge::new(self.bridge.config().clone(), &self.ports, self.bridge.fdb().clone());
        self.cache.forget();
    }

    /// Puts a frame in and applies the decision to it, as the datapath would.
    pub fn put(&mut self, port: u16, frame: &[u8]) -> Seen {
        let port = PortIndex(port);
        let tagged_in = match frame.get(12..16) {
            Some(&[0x81, 0x00, a, b] | &[0x88, 0xa8, a, b]) => {
                Some(Tci(u16::from_be_bytes([a, b])))
            }
            _ => None,
        };
        let tag_out = |op| match (op, tagged_in) {
            (TagOp::Keep, tag) => tag,
            (TagOp::Strip, Some(_)) => None,
            (TagOp::Push(tci), None) | (TagOp::Rewrite(tci), Some(_)) => Some(tci),
            (op, tag) => panic!("{op:?} on a frame with the tag {tag:?}"),
        };
        if let Some(egress) = self.bridge.recall(&mut self.cache, port, frame, self.now) {
            return Seen::Sent([(egress.port.0, tag_out(egress.tag))].into_iter().collect());
        }
        let decision = self.bridge.decide(port, frame, self.now);
        match decision.verdict {
            Verdict::Unicast(egress) => {
                let Decision { vlan, .. } = decision;
                self.bridge.remember(&mut self.cache, port, frame, vlan, egress, self.now);
                Seen::Sent([(egress.port.0, tag_out(egress.tag))].into_iter().collect())
            }
            Verdict::Flood(flood) => {
                let copies: Vec<_> = flood.into_iter().collect();
                let sent: BTreeMap<_, _> =
                    copies.iter().map(|copy| (copy.port.0, tag_out(copy.tag))).collect();
                assert_eq!(sent.len(), copies.len(), "two copies for one port");
                assert!(!sent.is_empty(), "a flood to nobody");
                Seen::Sent(sent)
            }
            Verdict::Trap(port) => Seen::Trapped(port.0),
            Verdict::Drop(reason) => Seen::Dropped(reason),
        }
    }

    /// An untagged frame between stations; `dst` 0xff is broadcast.
    pub fn send(&mut self, port: u16, src: u8, dst: u8) -> Seen {
        self.send_tagged(port, src, dst, None)
    }

    pub fn send_tagged(&mut self, port: u16, src: u8, dst: u8, tag: Option<Tci>) -> Seen {
        let dst = if dst == 0xff { MacAddr::BROADCAST } else { station(dst) };
        self.put(port, &frame(station(src), dst, tag))
    }

    /// The forwarding table as (port, VLAN, station).
    pub fn learned(&self) -> Vec<(u16, u16, MacAddr)> {
        let entries = self.bridge.fdb().entries();
        entries.iter().map(|entry| (entry.port.0, entry.vlan.value(), entry.mac)).collect()
    }
}
