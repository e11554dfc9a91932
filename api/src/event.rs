//! Events of `GET /v1/events`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One change. `seq` grows by one per event, and jumps when the daemon starts again: it never
/// repeats. A reader that was too slow, or comes back after a restart, gets [`EventKind::Gap`] in
/// place of what it missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub seq: u64,
    /// Unix milliseconds.
    pub time: u64,
    /// State revision after the change.
    pub revision: u64,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    NetworkDefined {
        network: String,
        uuid: Uuid,
    },
    NetworkUndefined {
        network: String,
        uuid: Uuid,
    },
    NetworkStarted {
        network: String,
        uuid: Uuid,
    },
    NetworkStopped {
        network: String,
        uuid: Uuid,
    },
    NetworkAutostart {
        network: String,
        uuid: Uuid,
        autostart: bool,
    },
    PortAdded {
        network: String,
        port: String,
        uuid: Uuid,
    },
    /// Its profile.
    PortChanged {
        network: String,
        port: String,
        uuid: Uuid,
        profile: crate::PortProfile,
    },
    PortDeleted {
        network: String,
        port: String,
        uuid: Uuid,
    },
    PortState {
        network: String,
        port: String,
        uuid: Uuid,
        state: crate::PortState,
        reason: Option<String>,
    },
    LeaseAdded {
        network: String,
        lease: crate::Lease,
    },
    LeaseRemoved {
        network: String,
        lease: crate::Lease,
    },
    /// Somebody else had changed or removed our firewall rules; they are back.
    FirewallRepaired,
    /// Somebody else has changed or removed our firewall rules, and they could not be put back.
    FirewallBroken {
        reason: String,
    },
    /// `missed` events were not kept for this reader.
    Gap {
        missed: u64,
    },
}
