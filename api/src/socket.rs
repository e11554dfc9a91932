//! Who may use a socket file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Owner, group, mode and SELinux context of a socket. Absent fields take what the daemon is configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketAccess {
    /// User who owns the socket, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Octal digits, as in `0660`. To connect takes the permission to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mode: Option<SocketMode>,
    /// SELinux context, as in `system_u:object_r:svirt_image_t:s0:c1,c2`; only on hosts that have SELinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
}

/// Permission bits of a socket file, written as octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketMode(u32);

impl SocketMode {
    /// `None` when there are bits beside the nine for owner, group and others.
    #[must_use]
    pub fn new(bits: u32) -> Option<Self> {
        (bits <= 0o777).then_some(Self(bits))
    }

    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// Not octal digits from 0 to 777.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidMode(String);

impl fmt::Display for InvalidMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not a mode: write octal digits from 0 to 777", self.0.escape_debug())
    }
}

impl std::error::Error for InvalidMode {}

impl FromStr for SocketMode {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|_| digits);
        bits.and_then(Self::new).ok_or_else(|| InvalidMode(text.to_owned()))
    }
}

impl TryFrom<String> for SocketMode {
    type Error = InvalidMode;

    fn try_from(text: String) -> Result<Self, InvalidMode> {
        text.parse()
    }
}

impl From<SocketMode> for String {
    fn from(mode: SocketMode) -> Self {
        mode.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_digits() {
        for (text, bits) in [("0660", 0o660), ("660", 0o660), ("0", 0), ("00777", 0o777)] {
            assert_eq!(text.parse::<SocketMode>().map(SocketMode::bits), Ok(bits));
        }
        for bad in ["", "8", "1000", "0o660", "+7", "-1", "rw"] {
            assert!(bad.parse::<SocketMode>().is_err(), "{bad}");
        }
        assert_eq!(SocketMode::new(0o60).map(|mode| mode.to_string()).as_deref(), Some("0060"));
    }

    #[test]
    fn a_socket_is_dressed_in_the_ports_own_fields() {
        let text = r#"{"kind":"vhost-user","group":"kvm","mode":"0600","queue_pairs":2}"#;
        let kind: crate::PortKind = serde_json::from_str(text).expect("a port");
        let access = SocketAccess {
            group: Some("kvm".to_owned()),
            mode: SocketMode::new(0o600),
            ..SocketAccess::default()
        };
        assert_eq!(kind, crate::PortKind::VhostUser { connect: None, access, queue_pairs: 2 });
        let again = serde_json::to_string(&kind).expect("serializes");
        assert_eq!(serde_json::from_str::<crate::PortKind>(&again).expect("a port"), kind);
    }
}
