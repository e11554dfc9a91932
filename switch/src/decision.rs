//! What the bridge says about a frame.

use wire::{Tci, Vid};

use crate::{DropReason, PortIndex};

/// The bridge's answer for one frame.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The VLAN that the frame belongs to; 0 when it was refused before that was known.
    pub vlan: Vid,
    pub verdict: Verdict<'a>,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// To one port.
    Unicast(Egress),
    /// To at least one port; a copy each.
    Flood(Flood<'a>),
    /// To an internal port's engine and nowhere else, as it arrived.
    Trap(PortIndex),
    /// Nowhere.
    Drop(DropReason),
}

/// One copy of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    pub port: PortIndex,
    pub tag: TagOp,
}

/// What happens to the frame's outermost VLAN tag on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOp {
    /// The frame leaves as it arrived.
    Keep,
    /// The outermost tag is taken off: 4 bytes less, at offset 12.
    Strip,
    /// A customer tag (0x8100) is put in at offset 12: 4 bytes more.
    Push(Tci),
    /// The outermost tag keeps its EtherType and gets this control information (2 bytes at offset 14).
    Rewrite(Tci),
}

impl TagOp {
    /// From how a frame arrived to how it leaves.
    #[inline]
    pub(crate) fn between(tagged_in: Option<Tci>, vlan: Vid, tagged_out: bool) -> Self {
        match (tagged_in, tagged_out) {
            (None, false) => Self::Keep,
            (None, true) => Self::Push(Tci::from_vid(vlan)),
            (Some(_), false) => Self::Strip,
            (Some(tci), true) if tci.raw_vid() == vlan.value() => Self::Keep,
            (Some(tci), true) => Self::Rewrite(tci.with_vid(vlan)),
        }
    }
}

/// A port in a flood set, and whether the set's VLAN leaves it with a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub(crate) port: PortIndex,
    pub(crate) tagged: bool,
}

/// The copies of a flooded frame: every port of its VLAN but the one that it came from. Iterate over it, again for a
/// second round; the order is that of the bridge's ports, with isolated ports last.
#[derive(Clone, Copy, Debug)]
pub struct Flood<'a> {
    pub(crate) members: &'a [Member],
    pub(crate) ingress: PortIndex,
    pub(crate) vlan: Vid,
    pub(crate) tagged_in: Option<Tci>,
}

impl Flood<'_> {
    /// The outermost tag of a copy as it leaves.
    #[must_use]
    pub fn tag_out(&self, copy: Egress) -> Option<Tci> {
        match copy.tag {
            TagOp::Keep => self.tagged_in,
            TagOp::Strip => None,
            TagOp::Push(tci) | TagOp::Rewrite(tci) => Some(tci),
        }
    }
}

impl<'a> IntoIterator for Flood<'a> {
    type Item = Egress;
    type IntoIter = FloodIter<'a>;

    #[inline]
    fn into_iter(self) -> FloodIter<'a> {
        FloodIter {
            members: self.members.iter(),
            ingress: self.ingress,
            untagged: TagOp::between(self.tagged_in, self.vlan, false),
            tagged: TagOp::between(self.tagged_in, self.vlan, true),
        }
    }
}

/// See [`Flood`].
#[derive(Clone, Debug)]
pub struct FloodIter<'a> {
    members: core::slice::Iter<'a, Member>,
    ingress: PortIndex,
    untagged: TagOp,
    tagged: TagOp,
}

impl Iterator for FloodIter<'_> {
    type Item = Egress;

    #[inline]
    fn next(&mut self) -> Option<Egress> {
        let member = self.members.find(|member| member.port != self.ingress)?;
        let tag = if member.tagged { self.tagged } else { self.untagged };
        Some(Egress { port: member.port, tag })
    }
}
