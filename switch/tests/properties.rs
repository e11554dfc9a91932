//! Whatever the ports and whatever the frames: the bridge against a model that is too simple to be wrong.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::*;
use proptest::prelude::*;
use switch::{
    BridgeConfig, DropReason, MacAddr, Mode, Native, PortConfig, Role, Tci, VidSet, VlanMode,
};

/// Few VLANs, so that ports share them; two far ones, so that words of a set differ.
fn vlan() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![1u16, 2, 3, 64, 4094])
}

fn allowed() -> impl Strategy<Value = VidSet> {
    prop_oneof![
        Just(VidSet::all()),
        Just(VidSet::empty()),
        proptest::collection::vec(vlan(), 1..4).prop_map(|list| vids(&list)),
    ]
}

fn mode() -> impl Strategy<Value = VlanMode> {
    prop_oneof![
        Just(VlanMode::transparent()),
        prop_oneof![Just(0), vlan()].prop_map(|own| VlanMode::Access(vid(own))),
        (proptest::option::of((prop_oneof![Just(0), vlan()], any::<bool>())), allowed()).prop_map(
            |(native, allowed)| {
                let native = native.map(|(own, tagged)| Native { vlan: vid(own), tagged });
                VlanMode::Trunk { native, allowed }
            }
        ),
    ]
}

fn port() -> impl Strategy<Value = PortConfig> {
    let role = prop::sample::select(vec![
        Role::Guest,
        Role::Guest,
        Role::Gateway,
        Role::Uplink,
        Role::Internal,
    ]);
    (role, mode(), any::<bool>()).prop_map(|(role, vlan, isolated)| PortConfig {
        role,
        vlan,
        isolated,
        mac: None,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Frame { port: prop::sample::Index, src: u8, dst: u8, tag: Option<Tci> },
    Wait(u32),
    Reconfigure { port: prop::sample::Index, to: Box<PortConfig> },
}

fn step() -> impl Strategy<Value = Step> {
    let tag = proptest::option::of((prop_oneof![Just(0), vlan(), Just(4095)], 0u16..8))
        .prop_map(|tag| tag.map(|(vlan, priority)| tci(vlan, priority)));
    let frame = (any::<prop::sample::Index>(), 1u8..6, prop_oneof![1u8..6, Just(0xff)], tag)
        .prop_map(|(port, src, dst, tag)| Step::Frame { port, src, dst, tag });
    let reconfigure = (any::<prop::sample::Index>(), port())
        .prop_map(|(port, to)| Step::Reconfigure { port, to: Box::new(to) });
    prop_oneof![20 => frame, 1 => (1u32..400).prop_map(Step::Wait), 1 => reconfigure]
}

/// The rules in their plainest form, one port and one frame at a time.
struct Model {
    hub: bool,
    ports: BTreeMap<u16, PortConfig>,
    heard: HashMap<(u16, u8), (u16, u32)>,
}

impl Model {
    fn isolated(&self, port: u16) -> bool {
        self.ports[&port].role == Role::Guest && self.ports[&port].isolated
    }

    /// The VLAN of a frame, if the port takes it.
    fn vlan_in(&self, port: u16, tag: Option<Tci>) -> Option<u16> {
        let raw = tag.map_or(0, |tag| tag.0 & 0xfff);
        match &self.ports[&port].vlan {
            VlanMode::Access(own) => (raw == 0).then_some(own.value()),
            VlanMode::Trunk { native, .. } if raw == 0 => native.map(|native| native.vlan.value()),
            VlanMode::Trunk { .. } => (raw != 4095 && self.carries(port, raw)).then_some(raw),
        }
    }

    fn carries(&self, port: u16, vlan: u16) -> bool {
        match &self.ports[&port].vlan {
            VlanMode::Access(own) => own.value() == vlan,
            VlanMode::Trunk { native, allowed } => {
                native.is_some_and(|native| native.vlan.value() == vlan)
                    || vlan != 0 && allowed.iter().any(|one| one.value() == vlan)
            }
        }
    }

    fn tag_out(&self, port: u16, vlan: u16, tag: Option<Tci>) -> Option<Tci> {
        let VlanMode::Trunk { native, .. } = &self.ports[&port].vlan else { return None };
        let untagged = native.is_some_and(|native| native.vlan.value() == vlan && !native.tagged);
        (vlan != 0 && !untagged).then(|| Tci(tag.map_or(0, |tag| tag.0 & 0xf000) | vlan))
    }

    fn put(&mut self, now: u32, from: u16, src: u8, dst: u8, tag: Option<Tci>) -> Seen {
        let Some(vlan) = self.vlan_in(from, tag) else {
            return Seen::Dropped(DropReason::VlanRefused);
        };
        if !self.hub && self.ports[&from].role != Role::Internal {
            self.heard.insert((vlan, src), (from, now));
        }
        if let Some(&(to, _)) = self.heard.get(&(vlan, dst)).filter(|_| dst != 0xff) {
            if to == from {
                return Seen::Dropped(DropReason::SamePort);
            }
            if self.carries(to, vlan) {
                return if self.isolated(from) && self.isolated(to) {
                    Seen::Dropped(DropReason::Isolated)
                } else {
                    sent(&[(to, self.tag_out(to, vlan, tag))])
                };
            }
        }
        let everybody: Vec<_> = self
            .ports
            .iter()
            .filter(|&(&to, config)| {
                to != from
                    && config.role != Role::Internal
                    && self.carries(to, vlan)
                    && !(self.isolated(from) && self.isolated(to))
            })
            .map(|(&to, _)| (to, self.tag_out(to, vlan, tag)))
            .collect();
        if everybody.is_empty() {
            Seen::Dropped(DropReason::NoDestination)
        } else {
            sent(&everybody)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_bridge_does_what_the_rules_say(
        ports in proptest::collection::vec(port(), 1..8),
        hub in prop::bool::weighted(0.1),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let config = BridgeConfig {
            mode: if hub { Mode::Hub } else { Mode::Learning },
            ..BridgeConfig::default()
        };
        let mut model = Model { hub, ports: (1..).zip(ports.clone()).collect(), heard: HashMap::new() };
        let count = ports.len();
        let mut lab = Lab::with_config(config, 1000, ports);
        for step in steps {
            match step {
                Step::Frame { port, src, dst, tag } => {
                    let from = u16::try_from(port.index(count) + 1).unwrap();
                    let seen = lab.send_tagged(from, src, dst, tag);
                    let expected = model.put(lab.now.0, from, src, dst, tag);
                    prop_assert_eq!(&seen, &expected, "from {} src {} dst {} tag {:?}", from, src, dst, tag);
                    // What must hold even if the model were wrong.
                    if let Seen::Sent(copies) = &seen {
                        for (&to, form) in copies {
                            prop_assert_ne!(to, from);
                            prop_assert!(!(model.isolated(from) && model.isolated(to)));
                            let inner = model.vlan_in(to, *form);
                            prop_assert_eq!(inner, model.vlan_in(from, tag), "another VLAN at port {}", to);
                        }
                    }
                }
                Step::Wait(seconds) => {
                    lab.now.0 += seconds;
                    lab.expire();
                    let now = lab.now.0;
                    model.heard.retain(|_, (_, seen)| now - *seen < 300);
                }
                Step::Reconfigure { port, to } => {
                    let port = u16::try_from(port.index(count) + 1).unwrap();
                    model.ports.insert(port, (*to).clone());
                    lab.reconfigure(port, *to);
                }
            }
            prop_assert_eq!(lab.bridge.fdb().stats().entries, model.heard.len());
        }
    }

    #[test]
    fn no_frame_panics_and_no_frame_comes_back(
        ports in proptest::collection::vec(port(), 1..8),
        frames in proptest::collection::vec((1u16..9, proptest::collection::vec(any::<u8>(), 0..140)), 1..20),
    ) {
        let mut lab = Lab::new(ports);
        for (port, frame) in frames {
            if let Seen::Sent(copies) = lab.put(port, &frame) {
                prop_assert!(!copies.contains_key(&port));
            }
        }
    }
}

/// Native VLANs that leave tagged come back in as the same VLAN, so the property above can hold for them; VLAN 0 and
/// priority tags are the exception that shows in the form alone.
#[test]
fn vlan_0_never_leaves_tagged() {
    let native = VlanMode::Trunk {
        native: Some(Native { vlan: vid(0), tagged: true }),
        allowed: VidSet::all(),
    };
    let mut lab = Lab::new([guest(), with_vlan(native)]);
    assert_eq!(lab.put(1, &frame(station(1), MacAddr::BROADCAST, Some(tci(0, 3)))), untagged(&[2]));
}
