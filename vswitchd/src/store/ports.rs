//! Ports: `ports/UUID.json`, their configuration only, never live state.

use std::path::PathBuf;

use api::{PortKind, PortProfile};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::MacAddr;

use super::{Loaded, Store, StoreError, atomic, documents, read};

const VERSION: u32 = 1;

/// A port as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortDocument {
    /// Version of this document's form.
    version: u32,
    pub uuid: Uuid,
    pub name: String,
    /// The network it belongs to.
    pub network: Uuid,
    pub port: PortKind,
    pub mac: MacAddr,
    #[serde(default)]
    pub profile: PortProfile,
}

impl PortDocument {
    #[must_use]
    pub fn new(
        uuid: Uuid,
        name: String,
        network: Uuid,
        port: PortKind,
        mac: MacAddr,
        profile: PortProfile,
    ) -> Self {
        Self { version: VERSION, uuid, name, network, port, mac, profile }
    }
}

impl Store {
    fn port_path(&self, uuid: Uuid) -> PathBuf {
        self.ports_dir().join(format!("{uuid}.json"))
    }

    /// # Errors
    /// Only when the directory itself cannot be listed.
    pub fn load_ports(&self) -> Result<Loaded<PortDocument>, StoreError> {
        let mut loaded = Loaded::default();
        for path in documents(&self.ports_dir(), ".json")? {
            let document = read(&path).and_then(|bytes| {
                let corrupt = |detail| StoreError::Corrupt { path: path.clone(), detail };
                let document: PortDocument =
                    serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
                if document.version != VERSION {
                    return Err(corrupt(format!(
                        "version {} is not known to this daemon",
                        document.version
                    )));
                }
                if self.port_path(document.uuid) != path {
                    return Err(corrupt(format!("it holds port {} instead", document.uuid)));
                }
                Ok(document)
            });
            match document {
                Ok(document) => loaded.items.push(document),
                Err(error) => loaded.errors.push(error),
            }
        }
        Ok(loaded)
    }

    /// # Errors
    /// I/O errors.
    pub fn save_port(&self, document: &PortDocument) -> Result<(), StoreError> {
        let path = self.port_path(document.uuid);
        let bytes = serde_json::to_vec_pretty(document).map_err(|error| StoreError::Corrupt {
            path: path.clone(),
            detail: error.to_string(),
        })?;
        atomic::write(&path, &bytes, 0o600).map_err(StoreError::io("write", &path))
    }

    /// # Errors
    /// I/O errors.
    pub fn remove_port(&self, uuid: Uuid) -> Result<(), StoreError> {
        let path = self.port_path(uuid);
        atomic::remove(&path).map_err(StoreError::io("remove", &path))
    }
}
