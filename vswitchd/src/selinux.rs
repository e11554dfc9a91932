//! What SELinux is asked, through its own file system.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use thiserror::Error;

/// Takes a context and answers whether the loaded policy knows it; there only while SELinux is enabled.
const CONTEXT: &str = "/sys/fs/selinux/context";

/// Why a context cannot be given to anything.
#[derive(Debug, Error)]
pub enum SelinuxError {
    #[error("this host has no SELinux")]
    Absent,
    #[error("the loaded SELinux policy does not know this context")]
    Unknown,
    #[error("cannot ask SELinux: {0}")]
    Io(#[from] io::Error),
}

/// Whether a file can have this context.
///
/// To be asked before it is written to a file: while SELinux is permissive, it takes any text there (of a process with
/// `CAP_MAC_ADMIN`), and nobody may use the file when it is enforced again.
///
/// # Errors
/// See [`SelinuxError`].
pub fn check(context: &str) -> Result<(), SelinuxError> {
    if !Path::new(CONTEXT).exists() {
        return Err(SelinuxError::Absent);
    }
    match File::options().write(true).open(CONTEXT).and_then(|mut file| {
        // One write is one question.
        file.write_all(context.as_bytes())
    }) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(SelinuxError::Unknown),
        // A policy may keep its contexts to itself (security:check_context). It is enforced then, and refuses the file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error.into()),
    }
}
