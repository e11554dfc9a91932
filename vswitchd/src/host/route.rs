//! Routes: static ones through guests, and whether a subnet is in use already.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use rustix::io::Errno;

use super::Host;
use super::error::Result;
use super::link::{self, Link};
use super::netlink::{NetlinkDoing, is_errno};

/// A static route of the main table through a guest (`<route>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    pub net: IpNet,
    pub gateway: IpAddr,
    pub interface: String,
    pub metric: Option<u32>,
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} dev {}", self.net.trunc(), self.gateway, self.interface)
    }
}

/// A route of the host that overlaps a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The route as `ip route` would name it: `10.0.0.0/8 via 192.0.2.1`.
    pub route: String,
    pub interface: Option<String>,
    pub table: u32,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.route)?;
        if let Some(interface) = &self.interface {
            write!(f, " of interface {interface}")?;
        }
        match self.table {
            254 => Ok(()),
            255 => f.write_str(" (table local)"),
            table => write!(f, " (table {table})"),
        }
    }
}

impl Host {
    /// Adds a route; nothing changes when it is there.
    ///
    /// # Errors
    /// When the interface does not exist, the gateway is not on it, or another route has the
    /// same destination and metric.
    pub async fn add_route(&self, route: &RouteSpec) -> Result<()> {
        let route = route.clone();
        self.home()
            .netlink(async move |handle| {
                let index = link::need(&handle, &route.interface).await?.index;
                match handle.route().add(message(&route, index)).execute().await {
                    Err(e)
                        if is_errno(&e, Errno::EXIST)
                            && present(&handle, &route, index).await? =>
                    {
                        Ok(())
                    }
                    result => result.netlink_doing(|| format!("add route {route}")),
                }
            })
            .await
    }

    /// Removes a route. `false`: it was not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_route(&self, route: &RouteSpec) -> Result<bool> {
        let route = route.clone();
        self.home()
            .netlink(async move |handle| {
                let Some(link) = link::find(&handle, &route.interface).await? else {
                    return Ok(false);
                };
                match handle.route().del(message(&route, link.index)).execute().await {
                    Err(e) if is_errno(&e, Errno::SRCH) => Ok(false),
                    result => {
                        result.netlink_doing(|| format!("remove route {route}"))?;
                        Ok(true)
                    }
                }
            })
            .await
    }

    /// The first route, of any table, whose destination overlaps `net`. Default routes (also
    /// halved ones as VPN clients set them) are no conflict, nor are interfaces of this instance
    /// and `except_interface`. An address of another interface within `net` is one, whatever its
    /// prefix.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn subnet_conflict(
        &self,
        net: IpNet,
        except_interface: Option<&str>,
    ) -> Result<Option<Conflict>> {
        let except = except_interface.map(str::to_owned);
        let instance = self.instance().clone();
        self.home()
            .netlink(async move |handle| {
                let links: HashMap<u32, Link> =
                    link::all(&handle).await?.into_iter().map(|link| (link.index, link)).collect();
                let skip = |index: &u32| {
                    links.get(index).is_some_and(|link| {
                        link.object(&instance).is_some() || except.as_ref() == Some(&link.name)
                    })
                };
                let request = query(net.addr());
                let mut routes = std::pin::pin!(handle.route().get(request).execute());
                while let Some(route) =
                    routes.try_next().await.netlink_doing(|| "list routes".to_owned())?
                {
                    let Some(destination) = destination(&route) else { continue };
                    let counts = matches!(route.header.kind, RouteType::Unicast | RouteType::Local)
                        && !is_default(destination)
                        && overlap(destination, net);
                    let devices = devices(&route);
                    if counts && (devices.is_empty() || !devices.iter().all(skip)) {
                        let device = devices.iter().find(|index| !skip(index));
                        return Ok(Some(Conflict {
                            route: describe(destination, &route),
                            interface: device
                                .and_then(|index| links.get(index))
                                .map(|link| link.name.clone()),
                            table: table(&route),
                        }));
                    }
                }
                Ok(None)
            })
            .await
    }
}

fn query(family_of: IpAddr) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family =
        if family_of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request
}

fn message(route: &RouteSpec, index: u32) -> RouteMessage {
    let length = route.net.prefix_len();
    let mut message = match (route.net.network(), route.gateway) {
        (IpAddr::V4(net), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net, length)
            .gateway(gateway)
            .output_interface(index)
            .build(),
        (IpAddr::V4(net), IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net, length)
            .via(gateway)
            .output_interface(index)
            .build(),
        (IpAddr::V6(net), gateway) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net, length)
                .output_interface(index);
            match gateway {
                IpAddr::V6(gateway) => builder.gateway(gateway).build(),
                IpAddr::V4(gateway) => builder.gateway(gateway.to_ipv6_mapped()).build(),
            }
        }
    };
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

async fn present(handle: &Handle, wanted: &RouteSpec, index: u32) -> Result<bool> {
    let mut routes = std::pin::pin!(handle.route().get(query(wanted.net.addr())).execute());
    while let Some(route) = routes.try_next().await.netlink_doing(|| "list routes".to_owned())? {
        let same = destination(&route) == Some(wanted.net.trunc())
            && table(&route) == u32::from(RouteHeader::RT_TABLE_MAIN)
            && devices(&route) == [index]
            && gateway(&route) == Some(wanted.gateway);
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// `None` when there is none, which means a default route.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let ip = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(ip) => address(ip),
        _ => None,
    })?;
    IpNet::new(ip, route.header.destination_prefix_length).ok().map(|net| net.trunc())
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(ip) => address(ip),
        _ => None,
    })
}

fn devices(route: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}

fn table(route: &RouteMessage) -> u32 {
    let wide = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or_else(|| route.header.table.into())
}

/// A default route, or a part of one: VPN clients replace the default by two halves, and the
/// IPv6 one by 2000::/3 or quarters of it and fc00::/7.
fn is_default(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() <= 1,
        IpNet::V6(net) => net.prefix_len() <= 7,
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.trunc()) || b.contains(&a)
}

fn describe(destination: IpNet, route: &RouteMessage) -> String {
    let kind = if route.header.kind == RouteType::Local { "local " } else { "" };
    let host = destination.prefix_len() == destination.max_prefix_len();
    let net = if host { destination.addr().to_string() } else { destination.to_string() };
    match gateway(route) {
        Some(gateway) => format!("{kind}{net} via {gateway}"),
        None => format!("{kind}{net}"),
    }
}
