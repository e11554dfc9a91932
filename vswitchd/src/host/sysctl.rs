//! Kernel settings in `/proc/sys/net` of the daemon's namespace.
//!
//! A value is written only when it differs, so a read-only `/proc/sys` that already says what is
//! wanted is fine. Forwarding is turned on when a network needs it and never off: others may
//! rely on it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};

use super::Host;
use super::error::{Doing, Error, Result};
use super::link::{self, check_name};
use super::netlink::{NetlinkDoing, connect};

const ROOT: &str = "/proc/sys/net";

fn read(key: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new(ROOT).join(key))?.trim().to_owned())
}

fn write(key: &Path, value: &str) -> Result<()> {
    let same = read(key).is_ok_and(|current| current == value);
    if same {
        return Ok(());
    }
    fs::write(Path::new(ROOT).join(key), value)
        .doing(|| format!("set {ROOT}/{} to {value}", key.display()))
}

fn ipv6_conf(interface: &str, setting: &str) -> PathBuf {
    ["ipv6/conf", interface, setting].iter().collect()
}

/// One setting of the daemon's namespace, for warnings; `None` when the kernel lacks it.
pub(super) fn value(key: &str) -> Option<String> {
    read(Path::new(key)).ok()
}

impl Host {
    /// Turns IP forwarding on where it is not.
    ///
    /// # Errors
    /// [`Error::RouterAdvertisement`] when IPv6 forwarding would cut off an interface that lives
    /// on router advertisements (`accept_ra` 1 becomes ineffective on a router).
    pub async fn enable_forwarding(&self, v4: bool, v6: bool) -> Result<()> {
        self.home()
            .run(move || {
                if v4 {
                    write(Path::new("ipv4/ip_forward"), "1")?;
                }
                let all = ipv6_conf("all", "forwarding");
                if v6 && !read(&all).is_ok_and(|current| current == "1") {
                    connect(async |handle| guard_router_advertisements(&handle).await)?;
                    write(&all, "1")?;
                }
                Ok(())
            })
            .await
    }

    /// Settings of a gateway interface: it takes no router advertisements, and has IPv6 only when
    /// the network has an IPv6 address. Call it before the addresses are set.
    ///
    /// # Errors
    /// When the interface does not exist or the settings cannot be written.
    pub async fn gateway_sysctls(&self, ifname: &str, ipv6: bool) -> Result<()> {
        check_name(ifname)?;
        let name = ifname.to_owned();
        self.home()
            .run(move || {
                if !Path::new(ROOT).join("ipv6").exists() {
                    // A kernel without IPv6 needs no closing; addresses will fail by name.
                    return Ok(());
                }
                if !Path::new(ROOT).join(ipv6_conf(&name, "")).exists() {
                    return Err(Error::NoSuchInterface { name });
                }
                write(&ipv6_conf(&name, "accept_ra"), "0")?;
                write(&ipv6_conf(&name, "autoconf"), "0")?;
                write(&ipv6_conf(&name, "disable_ipv6"), if ipv6 { "0" } else { "1" })
            })
            .await
    }
}

/// Refuses when an interface has routes from router advertisements and does not take them any
/// more once it forwards.
async fn guard_router_advertisements(handle: &Handle) -> Result<()> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet6;
    let mut routes = std::pin::pin!(handle.route().get(request).execute());
    let mut learned = BTreeSet::new();
    while let Some(route) =
        routes.try_next().await.netlink_doing(|| "list IPv6 routes".to_owned())?
    {
        if route.header.protocol == RouteProtocol::Ra {
            learned.extend(route.attributes.iter().filter_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            }));
        }
    }
    if learned.is_empty() {
        return Ok(());
    }
    for found in link::all(handle).await? {
        let exposed = learned.contains(&found.index)
            && read(&ipv6_conf(&found.name, "accept_ra")).is_ok_and(|value| value == "1");
        if exposed {
            return Err(Error::RouterAdvertisement { interface: found.name });
        }
    }
    Ok(())
}
