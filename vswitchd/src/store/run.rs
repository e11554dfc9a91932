//! Run state: `state/UUID.json` in the run directory for every active network, so that a restart
//! within the same boot finds them; and the mark that this boot's autostart was done.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Loaded, Store, StoreError, atomic, documents, read};

const VERSION: u32 = 1;

/// An active network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDocument {
    version: u32,
    /// The kernel's boot id when the network was started: a document of another boot is stale.
    pub boot: String,
    pub uuid: Uuid,
    pub name: String,
    /// The live definition, complete: the persistent one may have changed since, or be absent.
    pub definition: String,
}

impl RunDocument {
    #[must_use]
    pub fn new(boot: String, uuid: Uuid, name: String, definition: String) -> Self {
        Self { version: VERSION, boot, uuid, name, definition }
    }
}

/// The kernel's boot id.
///
/// # Errors
/// When `/proc` is not there.
fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = std::fs::read_to_string(path).map_err(StoreError::io("read", path))?;
    Ok(id.trim().to_owned())
}

impl Store {
    fn run_path(&self, uuid: Uuid) -> PathBuf {
        self.run_state_dir().join(format!("{uuid}.json"))
    }

    fn autostarted_path(&self) -> PathBuf {
        self.instance().run_dir().join("autostarted")
    }

    /// The kernel's boot id.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn boot_id(&self) -> Result<String, StoreError> {
        boot_id()
    }

    /// The networks that were active in this boot. Documents of another boot are removed.
    ///
    /// # Errors
    /// When the directory cannot be listed or the boot id not be read.
    pub fn load_run_state(&self) -> Result<Loaded<RunDocument>, StoreError> {
        let boot = boot_id()?;
        let mut loaded = Loaded::default();
        for path in documents(&self.run_state_dir(), ".json")? {
            let document = read(&path).and_then(|bytes| {
                let corrupt = |detail| StoreError::Corrupt { path: path.clone(), detail };
                let document: RunDocument =
                    serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
                if document.version != VERSION {
                    return Err(corrupt(format!(
                        "version {} is not known to this daemon",
                        document.version
                    )));
                }
                Ok(document)
            });
            match document {
                Ok(document) if document.boot == boot => loaded.items.push(document),
                Ok(_) => atomic::remove(&path).map_err(StoreError::io("remove", &path))?,
                Err(error) => loaded.errors.push(error),
            }
        }
        Ok(loaded)
    }

    /// # Errors
    /// I/O errors.
    pub fn save_run_state(&self, document: &RunDocument) -> Result<(), StoreError> {
        let path = self.run_path(document.uuid);
        let bytes = serde_json::to_vec_pretty(document).map_err(|error| StoreError::Corrupt {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        atomic::write(&path, &bytes, 0o600).map_err(StoreError::io("write", &path))
    }

    /// # Errors
    /// I/O errors.
    pub fn remove_run_state(&self, uuid: Uuid) -> Result<(), StoreError> {
        let path = self.run_path(uuid);
        atomic::remove(&path).map_err(StoreError::io("remove", &path))
    }

    /// Whether autostart networks were already started in this boot.
    ///
    /// # Errors
    /// When the boot id cannot be read.
    pub fn autostarted(&self) -> Result<bool, StoreError> {
        let boot = boot_id()?;
        Ok(std::fs::read_to_string(self.autostarted_path()).is_ok_and(|mark| mark.trim() == boot))
    }

    /// # Errors
    /// I/O errors.
    pub fn mark_autostarted(&self) -> Result<(), StoreError> {
        let path = self.autostarted_path();
        atomic::write(&path, boot_id()?.as_bytes(), 0o644).map_err(StoreError::io("write", &path))
    }

    /// # Errors
    /// I/O errors.
    pub fn unmark_autostarted(&self) -> Result<(), StoreError> {
        let path = self.autostarted_path();
        atomic::remove(&path).map_err(StoreError::io("remove", &path))
    }

    /// Lease file of a network.
    #[must_use]
    pub fn lease_path(&self, network: Uuid) -> PathBuf {
        self.leases_dir().join(network.to_string())
    }

    /// Removes the leases of a network that is no more, with the files beside that the lease
    /// store made.
    ///
    /// # Errors
    /// I/O errors.
    pub fn remove_leases(&self, network: Uuid) -> Result<(), StoreError> {
        let dir = self.leases_dir();
        let prefix = network.to_string();
        for entry in std::fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let path = entry.path();
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                removed.map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}
