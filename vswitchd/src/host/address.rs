//! Addresses of gateway interfaces.
//!
//! Ours carry a mark (IFA_PROTO, Linux 5.18), so that setting the wanted ones removes what an
//! older definition left and nothing that an administrator added.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use rustix::io::Errno;

use super::Host;
use super::error::Result;
use super::link;
use super::netlink::{NetlinkDoing, is_errno};

/// Value of IFA_PROTO on addresses that we set (below 4 is the kernel's).
const OURS: AddressProtocol = AddressProtocol::Other(0x6e);

impl Host {
    /// Gives an interface exactly these addresses of ours: missing ones are added, ours that are
    /// not wanted any more are removed, others are left alone. An [`IpNet`] is the address with
    /// its prefix length. IPv6 addresses are usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// When the interface does not exist or the kernel refuses an address.
    pub async fn set_addresses(&self, ifname: &str, addresses: &[IpNet]) -> Result<()> {
        let name = ifname.to_owned();
        let wanted = addresses.to_vec();
        self.home()
            .netlink(async move |handle| {
                let index = link::need(&handle, &name).await?.index;
                set(&handle, &name, index, &wanted).await
            })
            .await
    }
}

async fn set(handle: &Handle, name: &str, index: u32, wanted: &[IpNet]) -> Result<()> {
    let present: Vec<AddressMessage> = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .netlink_doing(|| format!("list addresses of {name}"))?;

    let stale = present.iter().filter(|message| {
        is_ours(message) && address_of(message).is_none_or(|address| !wanted.contains(&address))
    });
    for message in stale {
        match handle.address().del(message.clone()).execute().await {
            Err(e) if is_errno(&e, Errno::ADDRNOTAVAIL) => {}
            result => result.netlink_doing(|| format!("remove an address from {name}"))?,
        }
    }
    for &address in wanted {
        if present.iter().any(|message| address_of(message) == Some(address)) {
            continue;
        }
        let mut request = handle.address().add(index, address.addr(), address.prefix_len());
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Protocol(OURS));
        if address.addr().is_ipv6() {
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Err(e) if is_errno(&e, Errno::EXIST) => {}
            result => result.netlink_doing(|| format!("add address {address} to {name}"))?,
        }
    }
    Ok(())
}

fn is_ours(message: &AddressMessage) -> bool {
    message.attributes.iter().any(
        |attribute| matches!(attribute, AddressAttribute::Protocol(protocol) if *protocol == OURS),
    )
}

/// IFA_LOCAL where there is one (point-to-point), else IFA_ADDRESS.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let mut found: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => found = Some(*ip),
            AddressAttribute::Address(ip) if found.is_none() => found = Some(*ip),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}
