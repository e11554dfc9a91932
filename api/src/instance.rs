//! An instance: the name from which every path, table and interface alias derives.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// One netloom daemon on a host. Two instances share nothing but the kernel.
///
/// The default instance `netloom` lives in `/etc/netloom`, `/var/lib/netloom` and `/run/netloom`;
/// instance `NAME` in `/etc/netloom-NAME` and so on; `root` is put before all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
    root: PathBuf,
}

/// Instance names are `[a-z0-9][a-z0-9-]{0,15}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidInstance(pub String);

impl fmt::Display for InvalidInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid instance name {:?}: use 1 to 16 lower-case letters, digits and hyphens, \
             starting with a letter or digit",
            self.0
        )
    }
}

impl std::error::Error for InvalidInstance {}

impl Instance {
    pub const DEFAULT: &str = "netloom";

    /// # Errors
    /// When the name is not an instance name.
    pub fn new(name: &str, root: impl Into<PathBuf>) -> Result<Self, InvalidInstance> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !first || !rest || name.len() > 16 {
            return Err(InvalidInstance(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), root: root.into() })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn dir(&self, base: &str) -> PathBuf {
        let leaf = if self.name == Self::DEFAULT {
            Self::DEFAULT.to_owned()
        } else {
            format!("{}-{}", Self::DEFAULT, self.name)
        };
        self.root.join(base).join(leaf)
    }

    /// Configuration file and network definitions.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir("etc")
    }

    /// Leases and what else must survive a reboot.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir("var/lib")
    }

    /// Sockets, locks and what must not survive a reboot.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir("run")
    }

    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// Socket of a vhost-user port.
    #[must_use]
    pub fn port_socket(&self, port: &str) -> PathBuf {
        self.run_dir().join("port").join(port)
    }

    /// Hub socket of a network, on which any guest gets a port.
    #[must_use]
    pub fn hub_socket(&self, network: &str) -> PathBuf {
        self.run_dir().join("hub").join(format!("{network}.sock"))
    }

    /// Name of the instance's nftables table (family `inet`).
    #[must_use]
    pub fn nft_table(&self) -> String {
        if self.name == Self::DEFAULT {
            Self::DEFAULT.to_owned()
        } else {
            format!("{}-{}", Self::DEFAULT, self.name)
        }
    }

    /// Alias that marks an interface as ours, for the object with this UUID.
    #[must_use]
    pub fn interface_alias(&self, object: Uuid) -> String {
        format!("netloom:{}:{object}", self.name)
    }
}
