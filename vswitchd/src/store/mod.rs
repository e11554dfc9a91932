//! What the daemon keeps on disk, and nothing else: definitions (XML, in the configuration
//! directory), ports and counters (the state directory), run state and the lock (the run
//! directory).
//!
//! Called by `network` only. It never decides anything: it loads and saves documents. Every save
//! is atomic and durable ([`atomic`]); a document that cannot be read is reported with its path
//! and does not keep the others from loading. All calls block.

pub mod atomic;
mod counters;
mod definitions;
mod lock;
mod ports;
mod run;

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::Instance;
use thiserror::Error;

pub use counters::Counters;
pub use definitions::StoredDefinition;
pub use lock::{InstanceLock, LockError};
pub use ports::PortDocument;
pub use run::RunDocument;

/// A document that could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
}

impl StoreError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// What could be loaded, and what could not.
#[derive(Debug)]
pub struct Loaded<T> {
    pub items: Vec<T>,
    pub errors: Vec<StoreError>,
}

impl<T> Default for Loaded<T> {
    fn default() -> Self {
        Self { items: Vec::new(), errors: Vec::new() }
    }
}

/// The documents of one instance.
#[derive(Clone, Debug)]
pub struct Store {
    instance: Instance,
}

impl Store {
    /// For reading only: makes nothing.
    #[must_use]
    pub fn at(instance: &Instance) -> Self {
        Self { instance: instance.clone() }
    }

    /// Creates the directories that are missing, with the modes that they need.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(instance: &Instance) -> Result<Self, StoreError> {
        let store = Self { instance: instance.clone() };
        for dir in [instance.config_dir(), instance.state_dir(), instance.run_dir()] {
            directory(&dir)?;
        }
        for dir in [
            store.networks_dir(),
            store.autostart_dir(),
            store.ports_dir(),
            store.leases_dir(),
            store.run_state_dir(),
            store.sockets_dir(),
            store.hubs_dir(),
        ] {
            directory(&dir)?;
            atomic::sweep(&dir).map_err(StoreError::io("clean", &dir))?;
        }
        Ok(store)
    }

    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    fn networks_dir(&self) -> PathBuf {
        self.instance.config_dir().join("networks")
    }

    fn autostart_dir(&self) -> PathBuf {
        self.networks_dir().join("autostart")
    }

    fn ports_dir(&self) -> PathBuf {
        self.instance.state_dir().join("ports")
    }

    fn leases_dir(&self) -> PathBuf {
        self.instance.state_dir().join("leases")
    }

    fn run_state_dir(&self) -> PathBuf {
        self.instance.run_dir().join("state")
    }

    /// Where the sockets of vhost-user ports are.
    #[must_use]
    pub fn sockets_dir(&self) -> PathBuf {
        self.instance.run_dir().join("port")
    }

    /// Where the hub sockets of networks are.
    #[must_use]
    pub fn hubs_dir(&self) -> PathBuf {
        self.instance.run_dir().join("hub")
    }

    /// What is in [`Self::sockets_dir`] and [`Self::hubs_dir`].
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        [self.sockets_dir(), self.hubs_dir()]
            .iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
            .collect()
    }

    /// Where the resume records of ports with packed rings are.
    #[must_use]
    pub fn rings_dir(instance: &Instance) -> PathBuf {
        instance.run_dir().join("rings")
    }

    /// Resume records, each with its port.
    pub fn rings(&self) -> impl Iterator<Item = (uuid::Uuid, PathBuf)> + use<> {
        let entries = std::fs::read_dir(Self::rings_dir(&self.instance)).into_iter().flatten();
        entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_stem()?.to_str()?.parse().ok()?, path))
        })
    }

    /// Lock file of the instance.
    #[must_use]
    pub fn lock_path(instance: &Instance) -> PathBuf {
        instance.run_dir().join("lock")
    }
}

/// A directory that everybody may enter and only we may write, whatever the umask; also the ones
/// above it that are missing. Existing ones keep their mode.
///
/// # Errors
/// When one cannot be made or given its mode.
pub fn directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
    {
        directory(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(0o755))
            .map_err(StoreError::io("set the mode of", path)),
        // Two instances may start side by side under one root.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(source) => {
            Err(StoreError::Io { what: "create directory", path: path.to_owned(), source })
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(StoreError::io("read", path))
}

/// Paths in the directory with this extension, in order of name.
fn documents(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(paths),
        Err(source) => {
            return Err(StoreError::Io { what: "list", path: dir.to_owned(), source });
        }
    };
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(extension))
            && !path.is_dir()
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
