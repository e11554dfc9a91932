//! Users and groups by name or number, for the owners of sockets.

use std::io;

use nix::unistd::{Group, User};
use thiserror::Error;

/// An account that does not exist.
#[derive(Debug, Error)]
pub enum AccountError {
    #[error("there is no {kind} {name:?}; create it or name another one")]
    Unknown { kind: &'static str, name: String },
    #[error("cannot look up {kind} {name:?}: {source}")]
    Lookup { kind: &'static str, name: String, source: io::Error },
}

/// User id of a user name, or of a number.
///
/// # Errors
/// When there is no such user.
pub fn user(name: &str) -> Result<u32, AccountError> {
    let find = |name: &str| Ok(User::from_name(name)?.map(|user| user.uid.as_raw()));
    look_up("user", name, find)
}

/// Group id of a group name, or of a number.
///
/// # Errors
/// When there is no such group.
pub fn group(name: &str) -> Result<u32, AccountError> {
    let find = |name: &str| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    look_up("group", name, find)
}

fn look_up(
    kind: &'static str,
    name: &str,
    find: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, AccountError> {
    // All bits set means "leave as it is" to chown(2).
    if let Some(number) = name.parse().ok().filter(|&number| number != u32::MAX) {
        return Ok(number);
    }
    let unknown = || AccountError::Unknown { kind, name: name.to_owned() };
    if name.contains('\0') {
        return Err(unknown());
    }
    match find(name) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(unknown()),
        Err(errno) => {
            Err(AccountError::Lookup { kind, name: name.to_owned(), source: errno.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for id in [user, group] {
            assert_eq!(id("root").expect("root"), 0);
            assert_eq!(id("4711").expect("number"), 4711);
            for unknown in ["no-such-name-here", "a\0b", "", "4294967295"] {
                assert!(matches!(id(unknown), Err(AccountError::Unknown { .. })), "{unknown:?}");
            }
        }
    }
}
