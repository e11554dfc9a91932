//! One bridge as one configuration has it.
//!
//! A [`Bridge`] does not change: a new configuration makes a new one around the same forwarding table, and workers
//! take it up between bursts. [`Bridge::decide`] allocates nothing, waits for nothing, and reads nothing of the frame
//! but the window it is given.

mod vlans;
mod window;

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use wire::{Tci, Vid};

use self::vlans::{Rules, Vlans};
use self::window::Headers;
pub use self::window::WINDOW_LEN;
use crate::decision::{Decision, Egress, Flood, TagOp, Verdict};
use crate::fdb::Key;
use crate::port::MAX_PORTS;
use crate::{DecisionCache, DropReason, Fdb, PortConfig, PortIndex, Seconds};

/// How frames find their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// To the port where the destination was last heard, to all ports of the VLAN while that is not known.
    #[default]
    Learning,
    /// To all ports of the VLAN, always; nothing is learned.
    Hub,
}

/// What a bridge is told besides its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    pub mode: Mode,
    /// How long a silent address is remembered, kept within [`BridgeConfig::AGEING_RANGE`].
    pub ageing: Duration,
    /// Addresses that one guest's port may own. Other ports are bounded by the table alone.
    pub max_entries_per_guest: usize,
    /// The internal port that gets what guests and uplinks send to DHCPv4 servers, by broadcast or to one of
    /// `gateway_v4`, in the VLANs that this port carries.
    pub trap_dhcp4: Option<PortIndex>,
    pub gateway_v4: Vec<Ipv4Addr>,
}

impl BridgeConfig {
    pub const AGEING_RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(15)..=Duration::from_secs(3600);
    pub const DEFAULT_MAX_ENTRIES_PER_GUEST: usize = 1024;
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Learning,
            ageing: Duration::from_secs(300),
            max_entries_per_guest: Self::DEFAULT_MAX_ENTRIES_PER_GUEST,
            trap_dhcp4: None,
            gateway_v4: Vec::new(),
        }
    }
}

/// See the module's documentation.
pub struct Bridge {
    config: BridgeConfig,
    /// The trap's port, and what it carries.
    trap: Option<(PortIndex, Rules)>,
    vlans: Vlans,
    fdb: Arc<Fdb>,
}

impl Bridge {
    /// # Panics
    /// When a port's index is not below [`MAX_PORTS`].
    #[must_use]
    pub fn new(config: BridgeConfig, ports: &[(PortIndex, PortConfig)], fdb: Arc<Fdb>) -> Self {
        for (port, _) in ports {
            assert!(usize::from(port.0) < MAX_PORTS, "port index {} out of range", port.0);
        }
        let vlans = Vlans::new(ports);
        let trap = config.trap_dhcp4.map(|port| (port, vlans.rules(port)));
        Self { config, trap, vlans, fdb }
    }

    #[must_use]
    pub fn config(&self) -> &BridgeConfig {
        &self.config
    }

    #[must_use]
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// Removes addresses that have been silent for the configured time from a part of the forwarding table
    /// ([`Fdb::expire`]). To be called about ten times a second, which looks at all of it every 3.2 s, from any
    /// thread that may wait for a moment. Returns how many.
    pub fn expire(&self, now: Seconds) -> usize {
        let (least, most) = BridgeConfig::AGEING_RANGE.into_inner();
        self.fdb.expire(now, self.config.ageing.clamp(least, most))
    }

    /// Says where a frame from `ingress` goes, and learns its source.
    ///
    /// `window` is the beginning of the frame: the whole of it or at least [`WINDOW_LEN`] bytes.
    #[inline]
    pub fn decide(&self, ingress: PortIndex, window: &[u8], now: Seconds) -> Decision<'_> {
        let Some(headers) = Headers::parse(window) else {
            return refuse(DropReason::TooShort);
        };
        let tag = headers.tag;
        let rules = self.vlans.rules(ingress);
        if !rules.is_present() {
            return refuse(DropReason::PortGone);
        }
        if !headers.src.is_station() {
            return refuse(DropReason::BadSourceMac);
        }
        if headers.dst.is_reserved() {
            return refuse(DropReason::ReservedMac);
        }
        let Some(vlan) = self.vlans.classify(rules, tag) else {
            return refuse(DropReason::VlanRefused);
        };
        let learning = self.config.mode == Mode::Learning;
        if learning && rules.learns() {
            let limit =
                if rules.is_limited() { self.config.max_entries_per_guest } else { usize::MAX };
            self.fdb.hear(Key::from_number(headers.src.0, vlan), ingress, limit, now);
        }
        let verdict = if let Some(port) = self.trap(rules, vlan, &headers, window) {
            Verdict::Trap(port)
        } else if !learning || headers.dst.is_multicast() {
            self.flood(ingress, rules, vlan, tag)
        } else {
            self.forward(ingress, rules, vlan, &headers)
        };
        Decision { vlan, verdict }
    }

    /// [`decide`](Self::decide) for a frame that leaves by one port and is like one that `cache` remembers; `None` when
    /// it is not. `cache` must have been told to [forget](DecisionCache::forget) other configurations.
    #[inline(always)]
    pub fn recall(
        &self,
        cache: &mut DecisionCache,
        ingress: PortIndex,
        window: &[u8],
        now: Seconds,
    ) -> Option<Egress> {
        cache.recall(&self.fdb, ingress, window, now)
    }

    /// Lets `cache` remember that [`decide`](Self::decide) sent a frame out by one port.
    pub fn remember(
        &self,
        cache: &mut DecisionCache,
        ingress: PortIndex,
        window: &[u8],
        vlan: Vid,
        egress: Egress,
        now: Seconds,
    ) {
        let rules = self.vlans.rules(ingress);
        let learning = self.config.mode == Mode::Learning && rules.learns();
        let Some(headers) = Headers::parse(window).filter(|_| learning) else { return };
        let trapped = self.trap.is_some() && rules.is_trapped();
        cache.keep(
            &self.fdb,
            (ingress, Key::from_number(headers.src.0, vlan)),
            (egress, Key::from_number(headers.dst.0, vlan)),
            trapped.then(|| headers.end()),
            window,
            now,
        );
    }

    #[inline]
    fn trap(&self, rules: Rules, vlan: Vid, headers: &Headers, window: &[u8]) -> Option<PortIndex> {
        let (port, carried) = self.trap?;
        if !rules.is_trapped() {
            return None;
        }
        let server = headers.dhcp4_server(window)?;
        let ours = server.is_broadcast() || self.config.gateway_v4.contains(&server);
        (ours && self.vlans.carries(carried, vlan)).then_some(port)
    }

    #[inline]
    fn forward(
        &self,
        ingress: PortIndex,
        rules: Rules,
        vlan: Vid,
        headers: &Headers,
    ) -> Verdict<'_> {
        let Some(port) = self.fdb.find(Key::from_number(headers.dst.0, vlan)) else {
            return self.flood(ingress, rules, vlan, headers.tag);
        };
        if port == ingress {
            return Verdict::Drop(DropReason::SamePort);
        }
        let out = self.vlans.rules(port);
        if !self.vlans.carries(out, vlan) {
            // Learned under an earlier configuration, and about to be flushed.
            return self.flood(ingress, rules, vlan, headers.tag);
        }
        if rules.is_isolated() && out.is_isolated() {
            return Verdict::Drop(DropReason::Isolated);
        }
        let tag = TagOp::between(headers.tag, vlan, out.leaves_tagged(vlan));
        Verdict::Unicast(Egress { port, tag })
    }

    #[inline]
    fn flood(
        &self,
        ingress: PortIndex,
        rules: Rules,
        vlan: Vid,
        tagged_in: Option<Tci>,
    ) -> Verdict<'_> {
        let members = self.vlans.flood(vlan, rules.is_isolated());
        if members.iter().all(|member| member.port == ingress) {
            return Verdict::Drop(DropReason::NoDestination);
        }
        Verdict::Flood(Flood { members, ingress, vlan, tagged_in })
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cold]
const fn refuse<'a>(reason: DropReason) -> Decision<'a> {
    Decision { vlan: Vid::NONE, verdict: Verdict::Drop(reason) }
}
