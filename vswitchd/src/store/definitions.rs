//! Network definitions: `networks/NAME.xml`, and `networks/autostart/NAME.xml` as a symbolic link
//! to the definition, as libvirt has them.

use std::path::{Path, PathBuf};

use super::{Loaded, Store, StoreError, atomic, documents, read};

/// A definition as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDefinition {
    /// From the file name.
    pub name: String,
    pub path: PathBuf,
    pub xml: Vec<u8>,
    pub autostart: bool,
}

impl Store {
    fn definition_path(&self, name: &str) -> PathBuf {
        self.networks_dir().join(format!("{name}.xml"))
    }

    fn autostart_path(&self, name: &str) -> PathBuf {
        self.autostart_dir().join(format!("{name}.xml"))
    }

    /// # Errors
    /// Only when the directory itself cannot be listed.
    pub fn load_definitions(&self) -> Result<Loaded<StoredDefinition>, StoreError> {
        let mut loaded = Loaded::default();
        for path in documents(&self.networks_dir(), ".xml")? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".xml"));
            let Some(name) = name.map(str::to_owned) else {
                loaded.errors.push(StoreError::Corrupt {
                    path,
                    detail: "the file name is not UTF-8".to_owned(),
                });
                continue;
            };
            match read(&path) {
                Ok(xml) => {
                    let autostart = self.autostart_path(&name).symlink_metadata().is_ok();
                    loaded.items.push(StoredDefinition { name, path, xml, autostart });
                }
                Err(error) => loaded.errors.push(error),
            }
        }
        Ok(loaded)
    }

    /// # Errors
    /// I/O errors; the old definition is then still there.
    pub fn save_definition(&self, name: &str, xml: &str) -> Result<(), StoreError> {
        let path = self.definition_path(name);
        atomic::write(&path, xml.as_bytes(), 0o600).map_err(StoreError::io("write", &path))
    }

    /// Removes the autostart flag with it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn remove_definition(&self, name: &str) -> Result<(), StoreError> {
        self.save_autostart(name, false)?;
        let path = self.definition_path(name);
        atomic::remove(&path).map_err(StoreError::io("remove", &path))
    }

    /// # Errors
    /// I/O errors.
    pub fn save_autostart(&self, name: &str, autostart: bool) -> Result<(), StoreError> {
        let link = self.autostart_path(name);
        if autostart {
            let target = Path::new("..").join(format!("{name}.xml"));
            atomic::symlink(&target, &link).map_err(StoreError::io("link", &link))
        } else {
            atomic::remove(&link).map_err(StoreError::io("remove", &link))
        }
    }
}
