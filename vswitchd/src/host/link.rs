//! Interfaces: finding, marking, changing and deleting them.
//!
//! An interface is ours when its alias is [`api::Instance::interface_alias`] of the object it
//! belongs to. Nothing else is ever adopted, changed beyond what a caller names, or deleted.

use api::Instance;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use uuid::Uuid;

use super::Host;
use super::error::{Error, Result};
use super::netlink::{NetlinkDoing, is_errno};
use super::netns::Namespace;

/// An interface of this instance in the daemon's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedLink {
    pub name: String,
    pub ifindex: u32,
    /// The network or port that the alias names.
    pub object: Uuid,
    /// Administratively up.
    pub up: bool,
}

/// What we read of an interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) kind: Option<InfoKind>,
    /// Its frames are Ethernet's, to and from others.
    pub(super) ethernet: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

impl Link {
    /// The object that our alias names.
    pub(super) fn object(&self, instance: &Instance) -> Option<Uuid> {
        let rest = self.alias.as_deref()?.strip_prefix("netloom:")?;
        let (name, object) = rest.split_once(':')?;
        (name == instance.name()).then(|| object.parse().ok())?
    }
}

/// Refuses names that the kernel, nft or a shell would take for something else.
pub(super) fn check_name(name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > 15 {
        "it is longer than 15 bytes"
    } else if name.starts_with(['.', '-']) {
        "it starts with '.' or '-'"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
        "it has other characters than letters, digits, '_', '-' and '.'"
    } else {
        return Ok(());
    };
    Err(Error::InvalidName { name: name.to_owned(), reason })
}

/// The interface of that name (alternative names count too: they are taken as well).
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>> {
    let answer = handle.link().get().match_name(name).execute().try_next().await;
    match answer {
        Ok(message) => Ok(message.map(Link::from)),
        // ERANGE, EINVAL: no interface can have such a name.
        Err(e)
            if [Errno::NODEV, Errno::RANGE, Errno::INVAL]
                .iter()
                .any(|&errno| is_errno(&e, errno)) =>
        {
            Ok(None)
        }
        Err(e) => Err(e).netlink_doing(|| format!("look up interface {name}")),
    }
}

/// The interface of that name, which must exist.
pub(super) async fn need(handle: &Handle, name: &str) -> Result<Link> {
    find(handle, name).await?.ok_or_else(|| Error::NoSuchInterface { name: name.to_owned() })
}

/// Every interface of the namespace.
pub(super) async fn all(handle: &Handle) -> Result<Vec<Link>> {
    handle
        .link()
        .get()
        .execute()
        .map_ok(Link::from)
        .try_collect()
        .await
        .netlink_doing(|| "list interfaces".into())
}

impl Host {
    /// Deletes an interface of `object`. `false`: there is none of that name, or its namespace is
    /// gone.
    ///
    /// # Errors
    /// [`Error::ForeignDevice`] when the interface is not ours.
    pub async fn delete_link(&self, name: &str, object: Uuid, netns: Option<&str>) -> Result<bool> {
        let namespace = match netns.map(Namespace::open) {
            None => self.home().clone(),
            Some(Ok(namespace)) => namespace,
            Some(Err(Error::NoSuchNamespace { .. })) => return Ok(false),
            Some(Err(e)) => return Err(e),
        };
        let name = name.to_owned();
        let alias = self.instance().interface_alias(object);
        namespace
            .netlink(async move |handle| {
                let Some(link) = find(&handle, &name).await? else { return Ok(false) };
                if link.alias.as_ref() != Some(&alias) || link.name != name {
                    return Err(Error::ForeignDevice { name });
                }
                match handle.link().del(link.index).execute().await {
                    Err(e) if is_errno(&e, Errno::NODEV) => Ok(false),
                    result => {
                        result.netlink_doing(|| format!("delete interface {name}"))?;
                        Ok(true)
                    }
                }
            })
            .await
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// When it does not exist or the kernel refuses.
    pub async fn set_up(&self, ifname: &str, up: bool) -> Result<()> {
        self.change(ifname, if up { "set up" } else { "set down" }, move |index| {
            let link = LinkUnspec::new_with_index(index);
            if up { link.up().build() } else { link.down().build() }
        })
        .await
    }

    async fn change(
        &self,
        ifname: &str,
        verb: &'static str,
        message: impl FnOnce(u32) -> LinkMessage + Send + 'static,
    ) -> Result<()> {
        let name = ifname.to_owned();
        self.home()
            .netlink(async move |handle| {
                let index = need(&handle, &name).await?.index;
                let result = handle.link().set(message(index)).execute().await;
                result.netlink_doing(|| format!("{verb} interface {name}"))
            })
            .await
    }

    /// Makes an interface a port of a Linux bridge; nothing changes when it is one already.
    ///
    /// # Errors
    /// When either does not exist or the kernel refuses.
    pub async fn enslave(&self, ifname: &str, bridge: &str) -> Result<()> {
        let (name, bridge) = (ifname.to_owned(), bridge.to_owned());
        self.home()
            .netlink(async move |handle| {
                let port = need(&handle, &name).await?.index;
                let master = need(&handle, &bridge).await?.index;
                let message = LinkUnspec::new_with_index(port).controller(master).build();
                let result = handle.link().set(message).execute().await;
                result.netlink_doing(|| format!("make {name} a port of bridge {bridge}"))
            })
            .await
    }

    /// Whether a Linux bridge of that name exists.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn bridge_exists(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        let link = self.home().netlink(async move |handle| find(&handle, &name).await).await?;
        Ok(link.is_some_and(|link| link.kind == Some(InfoKind::Bridge)))
    }

    /// Whether any interface has that name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link_exists(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        let link = self.home().netlink(async move |handle| find(&handle, &name).await).await?;
        Ok(link.is_some())
    }

    /// Interfaces of this instance in the daemon's own namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn owned_links(&self) -> Result<Vec<OwnedLink>> {
        let links = self.home().netlink(async |handle| all(&handle).await).await?;
        let owned = links.into_iter().filter_map(|link| {
            let object = link.object(self.instance())?;
            Some(OwnedLink { object, name: link.name, ifindex: link.index, up: link.up })
        });
        Ok(owned.collect())
    }
}

/// Multicast group messages about bridge membership come with this family; they are not about
/// the life of an interface.
pub(super) fn is_bridge_message(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}
