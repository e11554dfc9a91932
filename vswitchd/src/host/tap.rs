//! TAP interfaces: the gateway of a network, and attachments inside namespaces.
//!
//! A TAP for a namespace is opened and named inside it: one that was moved there later could
//! not be attached to again from outside (the kernel would silently make a new one). It becomes
//! persistent as the last step, so a daemon that dies half-way leaves nothing without an owner.

use std::os::fd::OwnedFd;

use rtnetlink::packet_route::link::{InfoKind, LinkAttribute};
use rtnetlink::{Handle, LinkUnspec};
use rustix::ioctl::{IntegerSetter, Opcode, opcode};
use uuid::Uuid;
use wire::MacAddr;

use super::Host;
use super::error::{Doing, Error, Result};
use super::link::{self, check_name};
use super::netlink::{NetlinkDoing, connect};
use super::netns::{Namespace, NetnsId};

/// What [`Host::create_tap`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    pub name: String,
    /// The network or port that the interface belongs to; goes into the alias.
    pub object: Uuid,
    /// The interface's own address; the kernel chooses one when absent.
    pub mac: Option<MacAddr>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Number of queue pairs, at least 1.
    pub queues: usize,
    /// Namespace by name in `/run/netns` or by path; the daemon's own when absent.
    pub netns: Option<String>,
    /// A gateway starts down: [`Host::gateway_sysctls`] and the addresses come before
    /// [`Host::set_up`], or it would take a guest's router advertisement in between.
    pub up: bool,
}

/// An open TAP. Dropping the queues leaves the interface, without carrier.
#[derive(Debug)]
pub struct TapHandle {
    /// One non-blocking fd per queue.
    pub queues: Vec<OwnedFd>,
    pub ifindex: u32,
    /// It existed, with our alias.
    pub adopted: bool,
    /// The namespace it is in.
    pub netns: NetnsId,
}

impl Host {
    /// Makes a TAP, or takes back one that carries our alias for the same object (after a
    /// restart), and gives it the address, MTU and state asked for.
    ///
    /// # Errors
    /// [`Error::ForeignDevice`] when an interface of that name exists without our alias;
    /// [`Error::NoSuchNamespace`]; [`Error::InvalidName`]; what the kernel refuses. A TAP that
    /// was new is gone again then.
    pub async fn create_tap(&self, spec: &TapSpec) -> Result<TapHandle> {
        check_name(&spec.name)?;
        let namespace = match &spec.netns {
            Some(netns) => Namespace::open(netns)?,
            None => self.home().clone(),
        };
        let netns = namespace.id();
        let alias = self.instance().interface_alias(spec.object);
        let spec = spec.clone();
        namespace
            .run(move || connect(async move |handle| create(&handle, &spec, alias, netns).await))
            .await
    }

    /// Makes sure that a TAP whose queues are open elsewhere is there, ours, and as it should be. The handle has no
    /// queues.
    ///
    /// # Errors
    /// As [`Self::create_tap`]; [`Error::ForeignDevice`] also when there is none.
    pub async fn keep_tap(&self, spec: &TapSpec) -> Result<TapHandle> {
        let namespace = match &spec.netns {
            Some(netns) => Namespace::open(netns)?,
            None => self.home().clone(),
        };
        let netns = namespace.id();
        let alias = self.instance().interface_alias(spec.object);
        let spec = spec.clone();
        namespace
            .run(move || connect(async move |handle| keep(&handle, &spec, &alias, netns).await))
            .await
    }
}

fn is_ours(found: &link::Link, spec: &TapSpec, alias: &str) -> bool {
    found.alias.as_deref() == Some(alias)
        && found.kind == Some(InfoKind::Tun)
        && found.name == spec.name
}

async fn keep(handle: &Handle, spec: &TapSpec, alias: &str, netns: NetnsId) -> Result<TapHandle> {
    let found = link::find(handle, &spec.name).await?;
    let Some(found) = found.filter(|found| is_ours(found, spec, alias)) else {
        return Err(Error::ForeignDevice { name: spec.name.clone() });
    };
    configure(handle, spec, &found, None).await?;
    Ok(TapHandle { queues: Vec::new(), ifindex: found.index, adopted: true, netns })
}

async fn create(
    handle: &Handle,
    spec: &TapSpec,
    alias: String,
    netns: NetnsId,
) -> Result<TapHandle> {
    let name = &spec.name;
    let existing = link::find(handle, name).await?;
    if existing.as_ref().is_some_and(|found| !is_ours(found, spec, &alias)) {
        return Err(Error::ForeignDevice { name: name.clone() });
    }
    let adopted = existing.is_some();

    let queues = datapath::port::tap::open_tap(name, spec.queues.max(1))
        .doing(|| format!("open TAP {name}"))?;
    let found = link::need(handle, name).await?;

    configure(handle, spec, &found, (!adopted).then_some(alias)).await?;
    if let Some(queue) = queues.first() {
        persist(queue).doing(|| format!("make TAP {name} persistent"))?;
    }
    Ok(TapHandle { queues, ifindex: found.index, adopted, netns })
}

/// Address, MTU, state, and the alias of a new one.
async fn configure(
    handle: &Handle,
    spec: &TapSpec,
    found: &link::Link,
    alias: Option<String>,
) -> Result<()> {
    let mut message = LinkUnspec::new_with_index(found.index);
    if let Some(alias) = alias {
        message = message.append_extra_attribute(LinkAttribute::IfAlias(alias));
    }
    if let Some(mac) = spec.mac.filter(|mac| mac.0 != found.mac.as_slice()) {
        message = message.address(mac.0.to_vec());
    }
    if found.mtu != spec.mtu {
        message = message.mtu(spec.mtu);
    }
    if found.up != spec.up {
        message = if spec.up { message.up() } else { message.down() };
    }
    let result = handle.link().set(message.build()).execute().await;
    result.netlink_doing(|| format!("configure TAP {} (MTU {})", spec.name, spec.mtu))
}

/// TUNSETPERSIST: the interface outlives its queues.
fn persist(queue: &OwnedFd) -> rustix::io::Result<()> {
    const SET_PERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { rustix::ioctl::ioctl(queue, IntegerSetter::<SET_PERSIST>::new_usize(1)) }
}
