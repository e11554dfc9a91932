//! What can go wrong on the host, with the object it is about and a remedy.

use std::io;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on the host failed. The text says what failed; the cause is in `source()`;
/// [`Error::remedy`] says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid interface name {name:?}: {reason}")]
    InvalidName { name: String, reason: &'static str },

    #[error("interface {name} exists and does not belong to this netloom instance")]
    ForeignDevice { name: String },

    #[error("interface {name} does not exist")]
    NoSuchInterface { name: String },

    #[error("interface {name} cannot be a port: {reason}")]
    NoUplink { name: String, reason: &'static str },

    #[error("network namespace {netns} does not exist")]
    NoSuchNamespace { netns: String, source: io::Error },

    #[error("cannot enter network namespace {netns}")]
    EnterNamespace { netns: String, source: io::Error },

    #[error("cannot {action}")]
    System { action: String, source: io::Error },

    #[error(
        "interface {interface} has routes learned from IPv6 router advertisements, and turning on \
         IPv6 forwarding would make the kernel remove them"
    )]
    RouterAdvertisement { interface: String },

    #[error("the program nft was not found")]
    NftMissing,

    #[error("nft refused the rules: {message}")]
    Nft { message: String },
}

impl Error {
    /// How to mend it, when there is a known way.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::InvalidName { .. } => {
                "use 1 to 15 letters, digits, '_', '-' and '.', not starting with '.' or '-'".into()
            }
            Self::ForeignDevice { name } => {
                format!("choose another interface name, or remove it: ip link delete {name}")
            }
            Self::NoSuchInterface { .. } => "`ip link` lists the interfaces that there are".into(),
            Self::NoUplink { .. } => "use an Ethernet interface that leads out of this host".into(),
            Self::NoSuchNamespace { netns, .. } if !netns.contains('/') => {
                format!("create it: ip netns add {netns}")
            }
            Self::RouterAdvertisement { interface } => {
                format!("set net.ipv6.conf.{interface}.accept_ra=2")
            }
            Self::NftMissing => "install the Debian package nftables".into(),
            Self::System { action, source }
                if action.contains("TAP") && source.kind() == io::ErrorKind::NotFound =>
            {
                "the kernel needs TUN/TAP support: /dev/net/tun".into()
            }
            Self::System { source, .. } | Self::EnterNamespace { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run the daemon as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN".into()
            }
            _ => return None,
        })
    }
}

/// Names the action that an I/O result belongs to.
pub(super) trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::System { action: action(), source: e.into() })
    }
}
