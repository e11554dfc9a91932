//! The host: the only module that touches network namespaces, netlink, nftables and sysctls.
//!
//! Called by `network/` and `control/`; it knows no network or port objects, only names, UUIDs
//! and addresses. It never keeps state of its own beyond what the kernel holds (the firewall's
//! last transaction aside), so a new daemon finds everything again by alias.
//!
//! Invariants:
//! - Work happens in the namespace of the thread that called [`Host::new`], or in one that a
//!   caller names, always on a short-lived thread that enters it ([`netns`]).
//! - Only interfaces with our alias are adopted or deleted ([`link`], [`tap`]).
//! - Firewall rules live in the instance's own table, changed in one transaction ([`firewall`]).

mod address;
mod directories;
mod error;
mod firewall;
mod link;
mod netlink;
mod netns;
mod packet;
mod port_owner;
mod route;
mod sysctl;
mod tap;
mod watch;

use std::sync::Arc;

use api::Instance;

pub use error::{Error, Result};
pub use firewall::FirewallNetwork;
pub use link::OwnedLink;
pub use netns::NetnsId;
pub use port_owner::ProcessInfo;
pub use route::{Conflict, RouteSpec};
pub use tap::{TapHandle, TapSpec};
pub use watch::HostEvent;

use netns::Namespace;

/// A handle on the host, for one instance. Clones share it.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    instance: Instance,
    home: Namespace,
    applied: Arc<firewall::Applied>,
    watched: Arc<watch::Watched>,
}

impl Host {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` does not show it.
    pub fn new(instance: Instance) -> Result<Self> {
        let shared = Shared {
            instance,
            home: Namespace::current()?,
            applied: Arc::default(),
            watched: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Identity of a namespace given by name or path.
    ///
    /// # Errors
    /// [`Error::NoSuchNamespace`].
    pub fn netns_id(&self, netns: &str) -> Result<NetnsId> {
        Ok(Namespace::open(netns)?.id())
    }

    fn instance(&self) -> &Instance {
        &self.shared.instance
    }

    fn home(&self) -> &Namespace {
        &self.shared.home
    }

    fn applied(&self) -> &firewall::Applied {
        &self.shared.applied
    }
}
