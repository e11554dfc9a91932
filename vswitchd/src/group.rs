//! Groups by name or number, for the sockets' group.

use std::ffi::CString;
use std::io;

use thiserror::Error;

/// A group that does not exist.
#[derive(Debug, Error)]
pub enum GroupError {
    #[error("there is no group {0:?}; create it or name another one")]
    Unknown(String),
    #[error("cannot look up group {name:?}: {source}")]
    Lookup { name: String, source: io::Error },
}

/// Group id of a group name, or of a number.
///
/// # Errors
/// When there is no such group.
pub fn id(name: &str) -> Result<u32, GroupError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let unknown = || GroupError::Unknown(name.to_owned());
    let c_name = CString::new(name).map_err(|_| unknown())?;
    // Groups with very many members need more room than one page.
    let mut buffer = vec![0_u8; 1 << 16];
    // SAFETY: an all-zero `group` is a valid value (null pointers and numbers); it is only read
    // after getgrnam_r has filled it.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::group = std::ptr::null_mut();
    // SAFETY: every pointer is to a live local of the right type, and the length is the buffer's.
    let status = unsafe {
        libc::getgrnam_r(
            c_name.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            &raw mut found,
        )
    };
    match (status, found.is_null()) {
        (0, false) => Ok(entry.gr_gid),
        (0 | libc::ENOENT | libc::ESRCH, _) => Err(unknown()),
        (errno, _) => Err(GroupError::Lookup {
            name: name.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(id("root").expect("root"), 0);
        assert_eq!(id("4711").expect("number"), 4711);
        assert!(matches!(id("no-such-group-here"), Err(GroupError::Unknown(_))));
        assert!(matches!(id("a\0b"), Err(GroupError::Unknown(_))));
    }
}
