//! Which frames a guest wants (virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3).
//!
//! The driver says so over the control queue; the vhost-user thread keeps that ([`RxModes`]) and gives the workers
//! what follows from it ([`RxFilter`]). They ask it for the copies of frames that go to several ports. What the forwarding table
//! sends to one port is for a station that was heard there, and is not asked about: a device may pass more than the driver wants.
//!
//! A device is promiscuous from its reset until its driver switches that off, as QEMU's is: a driver that sends no
//! command loses nothing. Then unicast frames pass for the device's own address and those in the table, multicast ones
//! for those in the table, and tagged ones of VLANs that were added, where the driver accepted VLAN filtering. Where the
//! device's own address is not known for certain, all unicast frames pass.

use serde::{Deserialize, Serialize};
use switch::{Tci, Vid, VidSet};
use vhost_user::features::virtio;
use wire::MacAddr;

/// Addresses that are kept of a table; with more all pass.
pub(crate) const MAX_ADDRESSES: usize = 256;

/// One half of the MAC table; `None` had too many.
pub(crate) type Addresses = Option<Vec<MacAddr>>;

/// What a driver switches on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the standard's commands, one for each")]
pub(crate) struct RxSwitches {
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) all_unicast: bool,
    pub(crate) no_multicast: bool,
    pub(crate) no_unicast: bool,
    pub(crate) no_broadcast: bool,
}

impl RxSwitches {
    /// Of a device that was reset.
    const RESET: Self = Self {
        promiscuous: true,
        all_multicast: false,
        all_unicast: false,
        no_multicast: false,
        no_unicast: false,
        no_broadcast: false,
    };
}

/// What a driver has said of the frames that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RxModes {
    pub(crate) switches: RxSwitches,
    /// By VIRTIO_NET_CTRL_MAC_ADDR_SET.
    pub(crate) mac: Option<MacAddr>,
    pub(crate) unicast: Addresses,
    pub(crate) multicast: Addresses,
    pub(crate) vlans: VidSet,
}

impl Default for RxModes {
    /// Of a device that was reset.
    fn default() -> Self {
        Self {
            switches: RxSwitches::RESET,
            mac: None,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            vlans: VidSet::empty(),
        }
    }
}

impl RxModes {
    /// What the workers ask; `None` when every frame passes. `offered` is the address in the device's configuration,
    /// zero when there is none.
    pub(crate) fn filter(&self, features: u64, offered: MacAddr) -> Option<RxFilter> {
        let on = &self.switches;
        if on.promiscuous {
            return None;
        }
        // A driver that can say so says which address it uses instead of the one that it was given.
        let told = virtio::NET_F_MAC | virtio::NET_F_CTRL_MAC_ADDR;
        let given = (features & told == told && offered != MacAddr::ZERO).then_some(offered);
        let own = self.mac.or(given);
        let unicast = match (&self.unicast, own) {
            _ if on.no_unicast => Group::None,
            (Some(table), Some(own)) if !on.all_unicast => Group::some(table, Some(own)),
            _ => Group::All,
        };
        let multicast = match &self.multicast {
            _ if on.no_multicast => Group::None,
            Some(table) if !on.all_multicast => Group::some(table, None),
            _ => Group::All,
        };
        let vlans = (features & virtio::NET_F_CTRL_VLAN != 0).then(|| self.vlans.clone());
        Some(RxFilter { unicast, multicast, broadcast: !on.no_broadcast, vlans })
    }
}

/// Which addresses pass.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Group {
    All,
    None,
    /// In ascending order.
    Some(Box<[MacAddr]>),
}

impl Group {
    fn some(table: &[MacAddr], own: Option<MacAddr>) -> Self {
        let mut addresses: Vec<_> = table.iter().copied().chain(own).collect();
        addresses.sort_unstable();
        Self::Some(addresses.into())
    }

    fn has(&self, address: MacAddr) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Some(addresses) => addresses.binary_search(&address).is_ok(),
        }
    }
}

/// What of the frames that go to several ports a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RxFilter {
    unicast: Group,
    multicast: Group,
    broadcast: bool,
    /// VLANs whose tags pass; `None`: all.
    vlans: Option<VidSet>,
}

impl RxFilter {
    /// Whether a frame for `to` passes that leaves with a tag or without.
    pub(crate) fn passes(&self, to: MacAddr, tag: Option<Tci>) -> bool {
        // A tag of VLAN 0 is a priority alone.
        let vlan = tag.map(Tci::raw_vid).filter(|&vlan| vlan != 0);
        if let (Some(vlans), Some(vlan)) = (&self.vlans, vlan)
            && !Vid::new(vlan).is_some_and(|vlan| vlans.contains(vlan))
        {
            return false;
        }
        if to.is_broadcast() {
            self.broadcast
        } else if to.is_multicast() {
            self.multicast.has(to)
        } else {
            self.unicast.has(to)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const GROUP: MacAddr = MacAddr([0x33, 0x33, 0xff, 0, 0, 1]);
    const OTHER_GROUP: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    const FEATURES: u64 = virtio::NET_F_MAC | virtio::NET_F_CTRL_MAC_ADDR | virtio::NET_F_CTRL_VLAN;

    const QUIET: RxSwitches = RxSwitches { promiscuous: false, ..RxSwitches::RESET };

    fn quiet() -> RxModes {
        RxModes { switches: QUIET, ..RxModes::default() }
    }

    /// Who of the four and the broadcast address passes.
    fn passing(modes: &RxModes, features: u64) -> [bool; 5] {
        let filter = modes.filter(features, OWN);
        [OWN, OTHER, GROUP, OTHER_GROUP, MacAddr::BROADCAST]
            .map(|to| filter.as_ref().is_none_or(|filter| filter.passes(to, None)))
    }

    #[test]
    fn a_device_that_was_reset_wants_everything() {
        assert_eq!(RxModes::default().filter(FEATURES, OWN), None);
    }

    #[test]
    fn each_mode_does_what_the_standard_says() {
        let tables =
            RxModes { unicast: Some(vec![OTHER]), multicast: Some(vec![GROUP]), ..quiet() };
        let with = |switches| RxModes { switches, ..tables.clone() };
        let alone = |switches| RxModes { switches, ..quiet() };
        for (modes, expected) in [
            (quiet(), [true, false, false, false, true]),
            (tables.clone(), [true, true, true, false, true]),
            (alone(RxSwitches { all_multicast: true, ..QUIET }), [true, false, true, true, true]),
            (alone(RxSwitches { all_unicast: true, ..QUIET }), [true, true, false, false, true]),
            (with(RxSwitches { no_multicast: true, ..QUIET }), [true, true, false, false, true]),
            (with(RxSwitches { no_unicast: true, ..QUIET }), [false, false, true, false, true]),
            (with(RxSwitches { no_broadcast: true, ..QUIET }), [true, true, true, false, false]),
            (with(RxSwitches { promiscuous: true, no_unicast: true, ..QUIET }), [true; 5]),
            // Too many addresses.
            (RxModes { unicast: None, ..quiet() }, [true, true, false, false, true]),
            (RxModes { multicast: None, ..quiet() }, [true, false, true, true, true]),
            // Another address of its own.
            (RxModes { mac: Some(OTHER), ..quiet() }, [false, true, false, false, true]),
        ] {
            assert_eq!(passing(&modes, FEATURES), expected, "{modes:?}");
        }
    }

    #[test]
    fn a_driver_that_cannot_tell_its_address_gets_all_unicast_frames() {
        for features in [0, virtio::NET_F_MAC, virtio::NET_F_CTRL_MAC_ADDR] {
            assert_eq!(passing(&quiet(), features), [true, true, false, false, true]);
        }
        let filter = quiet().filter(FEATURES, MacAddr::ZERO).expect("a filter");
        assert!(filter.passes(OTHER, None));
    }

    #[test]
    fn tags_pass_whose_vlan_was_added() {
        let vid = |vid| Vid::new(vid).expect("a VLAN");
        let modes = RxModes { vlans: [7].map(vid).into_iter().collect(), ..quiet() };
        let filter = modes.filter(FEATURES, OWN).expect("a filter");
        let passes = |tag: Option<u16>| filter.passes(MacAddr::BROADCAST, tag.map(Tci));
        let priority = 5 << 13;
        assert_eq!(
            [None, Some(7), Some(priority | 7), Some(priority), Some(8), Some(4095)].map(passes),
            [true, true, true, true, false, false]
        );
        let without = modes.filter(FEATURES & !virtio::NET_F_CTRL_VLAN, OWN).expect("a filter");
        assert!(without.passes(MacAddr::BROADCAST, Some(Tci(8))));
    }
}
