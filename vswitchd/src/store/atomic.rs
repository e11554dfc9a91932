//! Files that are either the old or the new version, never something between, whatever happens
//! to the process or the machine: write beside, fsync, rename, fsync the directory.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Suffix of a file that is being written. A crash may leave one behind; loaders skip them and
/// [`sweep`] removes them.
pub const SUFFIX: &str = ".new";

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Replaces the file (or creates it) with these bytes and this mode.
///
/// # Errors
/// Any I/O error; the old file is then still there, whole.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path);
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    if result.is_err() {
        // The error that matters is the first one; a leftover is swept at the next start.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Removes the file durably. A file that is not there is no error.
///
/// # Errors
/// Any other I/O error.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Replaces the symbolic link (or creates it) atomically.
///
/// # Errors
/// Any I/O error.
pub fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let temporary = beside(link);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary)?;
    std::fs::rename(&temporary, link)?;
    sync_parent(link)
}

/// Removes what an interrupted [`write()`] left in the directory.
///
/// # Errors
/// When the directory cannot be read or a leftover not removed.
pub fn sweep(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_leftover() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.xml");
        write(&path, b"old", 0o600).expect("first write");
        // A directory in the place of the temporary file makes the next write fail.
        std::fs::create_dir(dir.path().join("a.xml.new")).expect("obstacle");
        assert!(write(&path, b"new", 0o600).is_err());
        assert_eq!(std::fs::read(&path).expect("old file"), b"old");
    }

    #[test]
    fn replaces_content_and_mode() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a");
        write(&path, b"1", 0o644).expect("first");
        write(&path, b"2", 0o600).expect("second");
        assert_eq!(std::fs::read(&path).expect("read"), b"2");
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn sweep_removes_only_leftovers() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("x.xml.new"), "torn").expect("leftover");
        std::fs::write(dir.path().join("x.xml"), "whole").expect("file");
        sweep(dir.path()).expect("sweep");
        assert!(!dir.path().join("x.xml.new").exists());
        assert!(dir.path().join("x.xml").exists());
    }
}
