//! The state as it is written down. Descriptors are places in [`Fds`](super::Fds); times are seconds since the first
//! datapath of the succession started.
//!
//! Fields may be added with a default; what changes its meaning is another version of the whole.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use switch::{DropReason, Native, Role, Vid, VidSet, VlanMode};
use uuid::Uuid;
use wire::MacAddr;

use crate::port::vhost_user::rx_filter::{MAX_ADDRESSES, RxModes, RxSwitches};

/// Bridges and ports of a datapath, with everything that guests would miss.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// How long the datapath has run.
    pub(crate) uptime: Duration,
    pub(crate) bridges: Vec<BridgeState>,
    pub(crate) ports: Vec<PortState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BridgeState {
    pub(crate) id: Uuid,
    pub(crate) hub: bool,
    pub(crate) ageing: Duration,
    pub(crate) mtu: u32,
    pub(crate) trap_dhcp4: bool,
    pub(crate) gateway_v4: Vec<Ipv4Addr>,
    pub(crate) fdb: Vec<FdbState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FdbState {
    pub(crate) mac: MacAddr,
    pub(crate) vlan: u16,
    pub(crate) port: Uuid,
    /// In seconds; `None` for a static entry.
    pub(crate) last_seen: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PortState {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) bridge: Uuid,
    pub(crate) mac: MacAddr,
    pub(crate) role: RoleState,
    pub(crate) vlan: VlanState,
    pub(crate) isolated: bool,
    pub(crate) mtu: u32,
    pub(crate) counters: CounterState,
    pub(crate) io: IoState,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RoleState {
    Guest,
    Gateway,
    Uplink,
    Internal,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VlanState {
    Access {
        vlan: u16,
    },
    /// `allowed` are ranges, both ends included.
    Trunk {
        native: Option<u16>,
        native_tagged: bool,
        allowed: Vec<(u16, u16)>,
    },
}

/// Drops by the reasons' names; those that a version does not know are forgotten.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CounterState {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) drops: Vec<(String, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IoState {
    VhostUser { queue_pairs: u16, endpoint: Box<EndpointState> },
    Tap { queues: Vec<u32> },
    Packet { socket: u32 },
    Internal,
}

/// A vhost-user port.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EndpointState {
    pub(crate) origin: OriginState,
    /// Why the port is quarantined.
    pub(crate) fault: Option<String>,
    /// A guest that is still to be announced.
    pub(crate) announcement: Option<MacAddr>,
    pub(crate) connection: Option<ConnectionState>,
}

/// Where frontends come from.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OriginState {
    Listener {
        listener: u32,
    },
    /// The VMM listens.
    Dialer {
        path: PathBuf,
    },
    /// The connection is all there is.
    Hub,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    pub(crate) stream: u32,
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    pub(crate) mtu: Option<u16>,
    pub(crate) status: u8,
    pub(crate) backend_channel: Option<u32>,
    pub(crate) regions: Vec<RegionState>,
    /// The dirty log of a migration under way.
    pub(crate) log: Option<LogState>,
    pub(crate) vrings: Vec<VringState>,
    /// Queue pairs that the driver has chosen over the control queue.
    pub(crate) control_pairs: u16,
    /// What it has said of the frames that it wants to receive.
    #[serde(default)]
    pub(crate) rx_modes: Option<RxModesState>,
    /// Rings are not to be built before the frontend has stopped one.
    pub(crate) broken: bool,
    /// The frontend has said something.
    pub(crate) heard: bool,
    /// What was refused last.
    pub(crate) refusal: Option<String>,
    /// The beginning of a message, and its descriptors.
    pub(crate) unread: Vec<u8>,
    pub(crate) unread_fds: Vec<u32>,
    /// Replies that the frontend has not taken.
    pub(crate) unsent: Vec<u8>,
}

/// See [`RxModes`]. Tables of addresses are absent when they had too many; `vlans` are ranges, both ends included.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RxModesState {
    #[serde(flatten)]
    pub(crate) switches: RxSwitches,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) unicast: Option<Vec<MacAddr>>,
    pub(crate) multicast: Option<Vec<MacAddr>>,
    pub(crate) vlans: Vec<(u16, u16)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RegionState {
    pub(crate) guest_addr: u64,
    pub(crate) size: u64,
    pub(crate) user_addr: u64,
    pub(crate) mmap_offset: u64,
    pub(crate) file: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LogState {
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) file: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VringState {
    pub(crate) num: u16,
    pub(crate) addr: Option<AddrState>,
    pub(crate) base: u32,
    pub(crate) kick: Option<u32>,
    pub(crate) call: Option<u32>,
    pub(crate) err: Option<u32>,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
    /// Everything before it is complete; of a ring that is in use.
    pub(crate) position: Option<u32>,
    /// Where a ring ended that was taken out of use.
    pub(crate) ended: Option<u32>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct AddrState {
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    /// Where writes to the used ring are logged.
    pub(crate) log: Option<u64>,
}

impl From<Role> for RoleState {
    fn from(role: Role) -> Self {
        match role {
            Role::Guest => Self::Guest,
            Role::Gateway => Self::Gateway,
            Role::Uplink => Self::Uplink,
            Role::Internal => Self::Internal,
        }
    }
}

impl From<RoleState> for Role {
    fn from(role: RoleState) -> Self {
        match role {
            RoleState::Guest => Self::Guest,
            RoleState::Gateway => Self::Gateway,
            RoleState::Uplink => Self::Uplink,
            RoleState::Internal => Self::Internal,
        }
    }
}

impl From<&VlanMode> for VlanState {
    fn from(mode: &VlanMode) -> Self {
        match mode {
            VlanMode::Access(vlan) => Self::Access { vlan: vlan.value() },
            VlanMode::Trunk { native, allowed } => Self::Trunk {
                native: native.map(|native| native.vlan.value()),
                native_tagged: native.is_some_and(|native| native.tagged),
                allowed: ranges(allowed.iter().map(Vid::value)),
            },
        }
    }
}

impl From<&RxModes> for RxModesState {
    fn from(modes: &RxModes) -> Self {
        Self {
            switches: modes.switches,
            mac: modes.mac,
            unicast: modes.unicast.clone(),
            multicast: modes.multicast.clone(),
            vlans: ranges(modes.vlans.iter().map(Vid::value)),
        }
    }
}

impl RxModesState {
    /// `None` when it names a VLAN that cannot be.
    pub(crate) fn modes(self) -> Option<RxModes> {
        let few = |table: &Vec<MacAddr>| table.len() <= MAX_ADDRESSES;
        Some(RxModes {
            switches: self.switches,
            mac: self.mac,
            unicast: self.unicast.filter(few),
            multicast: self.multicast.filter(few),
            vlans: vids(&self.vlans)?,
        })
    }
}

/// The VLANs of ranges; `None` when one of them cannot be.
fn vids(ranges: &[(u16, u16)]) -> Option<VidSet> {
    ranges.iter().flat_map(|&(first, last)| first..=last).map(Vid::new).collect()
}

/// Numbers in ascending order as ranges.
fn ranges(numbers: impl Iterator<Item = u16>) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

impl VlanState {
    /// `None` when it names a VLAN that cannot be.
    pub(crate) fn mode(&self) -> Option<VlanMode> {
        Some(match self {
            Self::Access { vlan } => VlanMode::Access(Vid::new(*vlan)?),
            Self::Trunk { native, native_tagged, allowed } => {
                let native = native
                    .map(|vlan| Vid::new(vlan).map(|vlan| Native { vlan, tagged: *native_tagged }));
                VlanMode::Trunk {
                    native: match native {
                        Some(native) => Some(native?),
                        None => None,
                    },
                    allowed: vids(allowed)?,
                }
            }
        })
    }
}

impl From<crate::PortStats> for CounterState {
    fn from(stats: crate::PortStats) -> Self {
        let drops = stats.drops.iter().filter(|(_, n)| *n != 0);
        Self {
            rx_packets: stats.rx_packets,
            rx_bytes: stats.rx_bytes,
            tx_packets: stats.tx_packets,
            tx_bytes: stats.tx_bytes,
            drops: drops.map(|(reason, n)| (reason.as_str().to_owned(), *n)).collect(),
        }
    }
}

impl CounterState {
    /// Counters that go on from here.
    pub(crate) fn restore(&self, counters: &crate::counters::Counters) {
        counters.rx_packets.add(self.rx_packets);
        counters.rx_bytes.add(self.rx_bytes);
        counters.tx_packets.add(self.tx_packets);
        counters.tx_bytes.add(self.tx_bytes);
        for (name, n) in &self.drops {
            if let Some(&reason) = DropReason::ALL.iter().find(|reason| reason.as_str() == name) {
                counters.drop(reason, *n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_come_back_as_they_were() {
        let vid = |vlan| Vid::new(vlan).expect("a VLAN");
        let some: VidSet = [1, 2, 3, 7, 4093, 4094].map(vid).into_iter().collect();
        let modes = [
            VlanMode::transparent(),
            VlanMode::Access(vid(20)),
            VlanMode::trunk(None, some.clone()),
            VlanMode::Trunk { native: Some(Native { vlan: vid(5), tagged: true }), allowed: some },
            VlanMode::trunk(Some(vid(9)), VidSet::empty()),
        ];
        for mode in modes {
            assert_eq!(VlanState::from(&mode).mode(), Some(mode));
        }
        let VlanState::Trunk { allowed, .. } = VlanState::from(&VlanMode::transparent()) else {
            panic!("a trunk");
        };
        assert_eq!(allowed, [(1, 4094)]);
        assert!(VlanState::Access { vlan: 4095 }.mode().is_none());
        let wrong =
            VlanState::Trunk { native: None, native_tagged: false, allowed: vec![(9, 5000)] };
        assert!(wrong.mode().is_none());
    }
}
