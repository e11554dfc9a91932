//! Which ports carry which VLAN: per-port rules in a form made for one look, and flood sets made beforehand.

use std::collections::HashMap;

use wire::{Tci, Vid};

use crate::decision::Member;
use crate::port::{PortConfig, PortIndex, Role, VidSet, VlanMode};

const VIDS: usize = 4096;

/// In place of a port's native VLAN: there is none.
const NO_VLAN: u16 = u16::MAX;

/// A port's rules, as the hot path reads them.
#[derive(Clone, Copy, Default)]
pub(super) struct Rules {
    flags: u16,
    /// The VLAN of untagged frames.
    native: u16,
    /// Index of the allowed set.
    allowed: u16,
}

impl Rules {
    const PRESENT: u16 = 1;
    const TRUNK: u16 = 1 << 1;
    /// Every VLAN is allowed.
    const ALL: u16 = 1 << 2;
    const NATIVE_TAGGED: u16 = 1 << 3;
    const ISOLATED: u16 = 1 << 4;
    const LEARNS: u16 = 1 << 5;
    const LIMITED: u16 = 1 << 6;
    const TRAPPED: u16 = 1 << 7;

    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(super) const fn is_present(self) -> bool {
        self.has(Self::PRESENT)
    }

    #[inline]
    pub(super) const fn is_isolated(self) -> bool {
        self.has(Self::ISOLATED)
    }

    /// Frames teach the forwarding table.
    #[inline]
    pub(super) const fn learns(self) -> bool {
        self.has(Self::LEARNS)
    }

    /// The port may own only so many entries.
    #[inline]
    pub(super) const fn is_limited(self) -> bool {
        self.has(Self::LIMITED)
    }

    /// What its station asks of servers goes to our engines.
    #[inline]
    pub(super) const fn is_trapped(self) -> bool {
        self.has(Self::TRAPPED)
    }

    #[inline]
    pub(super) const fn leaves_tagged(self, vlan: Vid) -> bool {
        self.has(Self::TRUNK)
            && !vlan.is_none()
            && (vlan.value() != self.native || self.has(Self::NATIVE_TAGGED))
    }
}

/// All ports' rules.
pub(super) struct Vlans {
    rules: Box<[Rules]>,
    allowed: Box<[VidSet]>,
    /// VLANs with the same ports in the same form share a class.
    class: Box<[u16; VIDS]>,
    classes: Box<[FloodSet]>,
    members: Box<[Member]>,
}

/// A class's members: those of isolated ports at the end.
#[derive(Clone, Copy)]
struct FloodSet {
    start: u32,
    isolated: u32,
    end: u32,
}

impl Vlans {
    pub(super) fn new(ports: &[(PortIndex, PortConfig)]) -> Self {
        let size = ports.iter().map(|(port, _)| usize::from(port.0) + 1).max().unwrap_or(0);
        let mut rules = vec![Rules::default(); size];
        let mut allowed = Vec::new();
        let mut known: HashMap<&VidSet, u16> = HashMap::new();
        for (port, config) in ports {
            let set = match &config.vlan {
                VlanMode::Access(_) => 0,
                VlanMode::Trunk { allowed: set, .. } => *known.entry(set).or_insert_with(|| {
                    allowed.push(set.clone());
                    // There are no more sets than ports, of which an index has 16 bits.
                    u16::try_from(allowed.len() - 1).unwrap_or(u16::MAX)
                }),
            };
            rules[usize::from(port.0)] = compile(config, set);
        }
        let (class, representatives) = classes(ports, &allowed);
        let (classes, members) = flood_sets(ports, &representatives);
        Self {
            rules: rules.into_boxed_slice(),
            allowed: allowed.into_boxed_slice(),
            class,
            classes,
            members,
        }
    }

    /// A port's rules; those of an absent port are present in nothing.
    #[inline]
    pub(super) fn rules(&self, port: PortIndex) -> Rules {
        self.rules.get(usize::from(port.0)).copied().unwrap_or_default()
    }

    /// The VLAN of a frame that came in; `None` when the port refuses it.
    #[inline]
    pub(super) fn classify(&self, rules: Rules, tag: Option<Tci>) -> Option<Vid> {
        let raw = tag.map_or(0, Tci::raw_vid);
        if raw == 0 {
            return Vid::new(rules.native);
        }
        let vlan = Vid::new(raw)?;
        (rules.has(Rules::TRUNK) && self.carries(rules, vlan)).then_some(vlan)
    }

    /// The port sends and receives the VLAN.
    #[inline]
    pub(super) fn carries(&self, rules: Rules, vlan: Vid) -> bool {
        if vlan.value() == rules.native {
            return rules.is_present();
        }
        if !rules.has(Rules::TRUNK) || vlan.is_none() {
            return false;
        }
        rules.has(Rules::ALL)
            || self.allowed.get(usize::from(rules.allowed)).is_some_and(|set| set.contains(vlan))
    }

    /// The ports of a VLAN; without the isolated ones when the frame comes from one of those.
    #[inline]
    pub(super) fn flood(&self, vlan: Vid, from_isolated: bool) -> &[Member] {
        // Masked so that no bounds check is needed; a Vid has 12 bits.
        let class = self.class[usize::from(vlan.value()) & (VIDS - 1)];
        let Some(set) = self.classes.get(usize::from(class)) else { return &[] };
        let end = if from_isolated { set.isolated } else { set.end };
        self.members.get(set.start as usize..end as usize).unwrap_or(&[])
    }
}

fn compile(config: &PortConfig, allowed: u16) -> Rules {
    let mut flags = Rules::PRESENT;
    let mut set = |flag, condition| {
        if condition {
            flags |= flag;
        }
    };
    set(Rules::ISOLATED, config.role == Role::Guest && config.isolated);
    set(Rules::LEARNS, config.role != Role::Internal);
    set(Rules::LIMITED, config.role == Role::Guest);
    set(Rules::TRAPPED, matches!(config.role, Role::Guest | Role::Uplink));
    if let VlanMode::Trunk { native, allowed } = &config.vlan {
        set(Rules::TRUNK, true);
        set(Rules::ALL, *allowed == VidSet::all());
        set(Rules::NATIVE_TAGGED, native.is_some_and(|native| native.tagged));
    }
    let native = config.vlan.untagged_vlan().map_or(NO_VLAN, Vid::value);
    Rules { flags, native, allowed }
}

/// Sorts VLANs into classes that no port tells apart. Returns each VLAN's class and one VLAN of each class.
fn classes(ports: &[(PortIndex, PortConfig)], allowed: &[VidSet]) -> (Box<[u16; VIDS]>, Vec<Vid>) {
    // A VLAN that is named as somebody's own is told apart from all others at once.
    let mut class: Box<[u16; VIDS]> = Box::new([1; VIDS]);
    class[0] = 0;
    let mut next = 2;
    for vlan in ports.iter().filter_map(|(_, config)| config.vlan.untagged_vlan()) {
        let class = &mut class[usize::from(vlan.value())];
        if *class == 1 {
            *class = next;
            next += 1;
        }
    }
    // Each set cuts every class in two at most: those inside it and those outside.
    for set in allowed.iter().filter(|set| **set != VidSet::all() && !set.is_empty()) {
        let mut split: HashMap<u16, (bool, Option<u16>)> = HashMap::new();
        for vid in (1..=Vid::MAX.value()).filter_map(Vid::new) {
            let class = &mut class[usize::from(vid.value())];
            let inside = set.contains(vid);
            let (first, other) = split.entry(*class).or_insert((inside, None));
            if inside != *first {
                *class = *other.get_or_insert_with(|| {
                    next += 1;
                    next - 1
                });
            }
        }
    }
    // There are at most as many classes as VLANs, but numbers of classes whose VLANs all left stay unused.
    let mut representatives = Vec::new();
    let mut renumbered: HashMap<u16, u16> = HashMap::new();
    for vid in (0..=Vid::MAX.value()).filter_map(Vid::new) {
        let class = &mut class[usize::from(vid.value())];
        *class = *renumbered.entry(*class).or_insert_with(|| {
            representatives.push(vid);
            u16::try_from(representatives.len() - 1).unwrap_or(u16::MAX)
        });
    }
    (class, representatives)
}

fn flood_sets(
    ports: &[(PortIndex, PortConfig)],
    representatives: &[Vid],
) -> (Box<[FloodSet]>, Box<[Member]>) {
    let mut members = Vec::new();
    let offset = |members: &Vec<Member>| u32::try_from(members.len()).unwrap_or(u32::MAX);
    let mut sets = Vec::with_capacity(representatives.len());
    for &vlan in representatives {
        let start = offset(&members);
        let mut add = |isolated: bool| {
            let chosen = ports.iter().filter(|(_, config)| {
                config.role != Role::Internal
                    && isolated == (config.isolated && config.role == Role::Guest)
                    && config.vlan.carries(vlan)
            });
            members.extend(chosen.map(|(port, config)| Member {
                port: *port,
                tagged: config.vlan.leaves_tagged(vlan),
            }));
            offset(&members)
        };
        let isolated = add(false);
        let end = add(true);
        sets.push(FloodSet { start, isolated, end });
    }
    (sets.into_boxed_slice(), members.into_boxed_slice())
}
