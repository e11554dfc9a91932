//! The world of a test: `host`, `inet`, and the wire between them.
//!
//! ```text
//!   ┌ inet ─────────────────┐        ┌ host ───────────────────────────────┐
//!   │ 203.0.113.1/24  web,  │  veth  │ 203.0.113.2/24   vswitchd ── ports ──┼── guests
//!   │ 2001:db8:113::1  DNS  ├────────┤ 2001:db8:113::2                      │
//!   └───────────────────────┘  wan   └──────────────────────────────────────┘
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::inet::{Dns, Web};
use crate::netns::Netns;
use crate::wait;

/// `host` with a running vswitchd, and `inet` behind it.
#[derive(Debug)]
pub struct Lab {
    pub daemon: Daemon,
    pub web: Web,
    pub dns: Dns,
    pub host: Arc<Netns>,
    pub inet: Netns,
}

/// Web and DNS server.
pub const INET: &str = "203.0.113.1";
pub const INET6: &str = "2001:db8:113::1";
/// The host's address outside: what NAT shows.
pub const HOST: &str = "203.0.113.2";
pub const HOST6: &str = "2001:db8:113::2";

/// vswitchd's configuration in the lab.
pub const CONFIG: &str = "[dns]\nupstreams = [\"203.0.113.1\"]\n";

impl Lab {
    /// # Errors
    /// When a part does not come up; what was made is removed again.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_config(CONFIG)
    }

    /// # Errors
    /// When a part does not come up; what was made is removed again.
    pub fn with_config(config: &str) -> anyhow::Result<Self> {
        let (host, inet) = world()?;
        let address: IpAddr = INET.parse()?;
        let address6: IpAddr = INET6.parse()?;
        let web = Web::start(&inet)?;
        let dns = Dns::start(&inet, address, address6)?;
        let host = Arc::new(host);
        let daemon = Daemon::start(&host, "lab", config)?;
        Ok(Self { daemon, web, dns, host, inet })
    }
}

/// The two namespaces, joined and addressed, without any server.
///
/// # Errors
/// When `ip` fails.
pub fn world() -> anyhow::Result<(Netns, Netns)> {
    let host = Netns::new("host")?;
    let inet = Netns::new("inet")?;
    // The default in a new namespace lets one forward rule kill bridged traffic too. The setting is
    // there only where br_netfilter is.
    let _ = host.sysctl("net.bridge.bridge-nf-call-iptables=0");
    inet.join("wan", &host, "wan")?;
    inet.ip(&format!("addr add {INET}/24 dev wan"))?;
    inet.ip(&format!("addr add {INET6}/64 dev wan nodad"))?;
    host.ip(&format!("addr add {HOST}/24 dev wan"))?;
    host.ip(&format!("addr add {HOST6}/64 dev wan nodad"))?;
    host.ip(&format!("route add default via {INET}"))?;
    host.ip(&format!("-6 route add default via {INET6}"))?;
    // The kernel's own link-local addresses are there before anybody looks.
    for netns in [&host, &inet] {
        wait::until("link-local addresses", Duration::from_secs(10), || {
            netns
                .ip("-6 -o addr show dev wan scope link")
                .is_ok_and(|text| !text.is_empty() && !text.contains("tentative"))
        })?;
    }
    Ok((host, inet))
}
