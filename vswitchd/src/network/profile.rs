//! How a port forwards: its own profile, over the portgroup's settings, over the network's.

use api::{Code, PortProfile, Problem};
use netdef::model;
use switch::{Native, VidSet, VlanMode};
use wire::Vid;

use super::problem::about;

/// What a port's profile comes to in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forwarding {
    pub(super) vlan: VlanMode,
    pub(super) isolated: bool,
}

fn vid(value: u16) -> Result<Vid, Problem> {
    Vid::new(value).ok_or_else(|| {
        Problem::new(Code::InvalidArgument, format!("VLAN {value} is out of range"))
            .with_remedy("use a VLAN from 1 to 4094, or 0 for untagged")
    })
}

fn of_api(vlan: &api::Vlan) -> Result<VlanMode, Problem> {
    match vlan {
        api::Vlan::Access(value) => Ok(VlanMode::Access(vid(*value)?)),
        api::Vlan::Trunk { native, allowed } => {
            let native = native.map(vid).transpose()?;
            let allowed = if allowed.is_empty() {
                VidSet::all()
            } else {
                allowed.iter().copied().map(vid).collect::<Result<VidSet, _>>()?
            };
            Ok(VlanMode::trunk(native, allowed))
        }
    }
}

/// One tag without trunk is an access VLAN, as in libvirt.
fn of_model(vlan: &model::Vlan) -> Result<VlanMode, Problem> {
    let mut native = None;
    let mut allowed = VidSet::empty();
    for tag in &vlan.tags {
        let vlan = vid(tag.id)?;
        allowed.insert(vlan);
        if let Some(mode) = tag.native_mode {
            native = Some(Native { vlan, tagged: mode == model::NativeMode::Tagged });
        }
    }
    match (vlan.trunk, vlan.tags.as_slice()) {
        (false, [only]) if only.native_mode.is_none() => Ok(VlanMode::Access(vid(only.id)?)),
        _ => Ok(VlanMode::Trunk { native, allowed }),
    }
}

/// # Errors
/// A portgroup that the network does not have; a VLAN out of range.
pub(super) fn resolve(
    network: &model::Network,
    profile: &PortProfile,
) -> Result<Forwarding, Problem> {
    let group = match &profile.portgroup {
        Some(name) => {
            let found = network.portgroups.iter().find(|group| group.name == *name);
            Some(found.ok_or_else(|| {
                let names: Vec<_> =
                    network.portgroups.iter().map(|group| group.name.as_str()).collect();
                let remedy = if names.is_empty() {
                    "its definition has no <portgroup>".to_owned()
                } else {
                    format!("it has {}", names.join(", "))
                };
                let title = format!("network '{}' has no portgroup '{name}'", network.name);
                about(Code::InvalidArgument, name, title).with_remedy(remedy)
            })?)
        }
        None => network.portgroups.iter().find(|group| group.default),
    };
    let inherited = group.and_then(|group| group.vlan.as_ref()).or(network.vlan.as_ref());
    let vlan = match (&profile.vlan, inherited) {
        (Some(own), _) => of_api(own)?,
        (None, Some(inherited)) => of_model(inherited)?,
        (None, None) => VlanMode::transparent(),
    };
    let isolated = profile.isolated.or(network.port_isolated).unwrap_or(false);
    Ok(Forwarding { vlan, isolated })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan_of(id: u16) -> Vid {
        Vid::new(id).expect("a VLAN")
    }

    fn tags(trunk: bool, tags: &[(u16, Option<model::NativeMode>)]) -> model::Vlan {
        let tags =
            tags.iter().map(|&(id, native_mode)| model::VlanTag { id, native_mode }).collect();
        model::Vlan { trunk, tags }
    }

    fn group(name: &str, default: bool, vlan: u16) -> model::PortGroup {
        model::PortGroup {
            name: name.to_owned(),
            default,
            vlan: Some(tags(false, &[(vlan, None)])),
            trust_guest_rx_filters: None,
            virtualport: None,
        }
    }

    #[test]
    fn own_settings_beat_the_group_and_the_group_the_network() {
        let network = model::Network {
            vlan: Some(tags(false, &[(10, None)])),
            port_isolated: Some(true),
            portgroups: vec![group("a", false, 20), group("b", true, 30)],
            ..model::Network::default()
        };
        let access = |profile: &PortProfile| resolve(&network, profile).expect("resolves").vlan;

        let mut profile = PortProfile::default();
        assert_eq!(access(&profile), VlanMode::Access(vlan_of(30)), "the default group");
        profile.portgroup = Some("a".to_owned());
        assert_eq!(access(&profile), VlanMode::Access(vlan_of(20)));
        profile.vlan = Some(api::Vlan::Access(40));
        assert_eq!(access(&profile), VlanMode::Access(vlan_of(40)));
        assert!(resolve(&network, &profile).expect("resolves").isolated);
        profile.isolated = Some(false);
        assert!(!resolve(&network, &profile).expect("resolves").isolated);
        profile.portgroup = Some("c".to_owned());
        assert!(resolve(&network, &profile).is_err());
    }

    #[test]
    fn native_vlans_of_trunks() {
        let network = model::Network {
            vlan: Some(tags(true, &[(5, None), (6, Some(model::NativeMode::Untagged))])),
            ..model::Network::default()
        };
        let mode = resolve(&network, &PortProfile::default()).expect("resolves").vlan;
        let allowed = [vlan_of(5), vlan_of(6)].into_iter().collect();
        assert_eq!(mode, VlanMode::trunk(Some(vlan_of(6)), allowed));
    }

    #[test]
    fn without_any_setting_every_vlan_passes() {
        let forwarding =
            resolve(&model::Network::default(), &PortProfile::default()).expect("resolves");
        assert_eq!(forwarding, Forwarding { vlan: VlanMode::transparent(), isolated: false });
    }

    #[test]
    fn a_vlan_out_of_range_is_refused() {
        let profile = PortProfile { vlan: Some(api::Vlan::Access(4095)), ..PortProfile::default() };
        assert!(resolve(&model::Network::default(), &profile).is_err());
    }
}
