//! Errors of the API: RFC 9457 problem details with stable codes.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, in one stable word; `netctl` renders virsh's wording from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The document is not well-formed XML or breaks libvirt's rules for it.
    XmlError,
    /// The document asks for something netloom does not do.
    Unsupported,
    /// A field of the request is malformed.
    InvalidArgument,
    NetworkNotFound,
    PortNotFound,
    /// The forwarding database has no entry of this address.
    FdbEntryNotFound,
    /// The name or UUID belongs to another network.
    NetworkExists,
    NetworkActive,
    NetworkInactive,
    /// The operation needs a persistent network.
    NetworkTransient,
    PortExists,
    /// The subnet overlaps a route of the host or another active network.
    SubnetConflict,
    /// Port 53 of a gateway address is taken by another process.
    PortConflict,
    /// A step of a start failed and everything was rolled back.
    StartFailed,
    /// If-Match did not match the current revision.
    RevisionMismatch,
    /// Another daemon is taking over; the same request will do in a moment.
    Restarting,
    /// The state on disk could not be read or written.
    Storage,
    Internal,
}

impl Code {
    /// HTTP status of the response.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::XmlError | Self::InvalidArgument | Self::Unsupported => 400,
            Self::NetworkNotFound | Self::PortNotFound | Self::FdbEntryNotFound => 404,
            Self::NetworkExists
            | Self::NetworkActive
            | Self::NetworkInactive
            | Self::NetworkTransient
            | Self::PortExists
            | Self::SubnetConflict
            | Self::PortConflict
            | Self::StartFailed => 409,
            Self::RevisionMismatch => 412,
            Self::Storage | Self::Internal => 500,
            Self::Restarting => 503,
        }
    }
}

/// `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub code: Code,
    pub status: u16,
    /// One sentence: what failed.
    pub title: String,
    /// Why, one line per cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The object it is about: a network or port name, an element path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    #[must_use]
    pub fn new(code: Code, title: impl Into<String>) -> Self {
        Self {
            code,
            status: code.status(),
            title: title.into(),
            causes: Vec::new(),
            object: None,
            line: None,
            column: None,
            remedy: None,
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)
    }
}

impl std::error::Error for Problem {}
