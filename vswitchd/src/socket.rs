//! Sockets that others connect to: made with exactly the owner, group, mode and SELinux context
//! that they are to have.
//!
//! A socket file is made without any permission and nobody listens on it until it is as it should
//! be, so at no time can anybody connect who may not.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use api::SocketAccess;
use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

use crate::account::{self, AccountError};
use crate::selinux::{self, SelinuxError};

/// Longest path that fits into `sun_path` with its final zero (unix(7)).
pub const MAX_PATH: usize = 107;
const SELINUX_XATTR: &str = "security.selinux";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no socket, or not the one that was wanted.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error("{} is in the way and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("another process listens on {}", .0.display())]
    InUse(PathBuf),
    #[error("cannot see whether anybody listens on {}: {source}", path.display())]
    Unseen { path: PathBuf, source: io::Error },
    #[error("cannot give {} the context {context:?}: {source}", path.display())]
    Context { path: PathBuf, context: String, source: SelinuxError },
    #[error("SELinux does not let {} have the context {context:?}: {source}", path.display())]
    Relabel { path: PathBuf, context: String, source: io::Error },
}

impl SocketError {
    /// How to mend it, where that is not plain.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NotASocket(path) => Some(format!("remove {}", path.display())),
            Self::Unseen { path, .. } => Some(format!(
                "let the daemon write to {0} (its SELinux domain too), or remove {0} if nobody listens",
                path.display()
            )),
            Self::Context { source: SelinuxError::Absent, .. } => {
                Some("leave the context out; owner, group and mode say who may connect".to_owned())
            }
            Self::Context { source: SelinuxError::Unknown, .. } => Some(
                "write USER:ROLE:TYPE:LEVEL as the loaded policy knows them, for example \
                 system_u:object_r:svirt_image_t:s0"
                    .to_owned(),
            ),
            Self::Relabel { .. } => Some(
                "the daemon's domain needs the permissions relabelfrom and relabelto for sock_file; \
                 `ausearch -m avc -c vswitchd` shows what was denied"
                    .to_owned(),
            ),
            Self::Context { source: SelinuxError::Io(_), .. }
            | Self::Io { .. }
            | Self::Account(_)
            | Self::InUse(_) => None,
        }
    }

    /// Whether it is what was asked for that is wrong, not the host.
    #[must_use]
    pub fn is_request(&self) -> bool {
        matches!(
            self,
            Self::Account(AccountError::Unknown { .. })
                | Self::Context { source: SelinuxError::Absent | SelinuxError::Unknown, .. }
                | Self::Relabel { .. }
        )
    }
}

/// What to make of a [`SocketAccess`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    owner: Option<u32>,
    group: Option<u32>,
    mode: u32,
    selinux: Option<String>,
}

impl Access {
    /// # Errors
    /// An account that does not exist.
    pub fn new(wanted: &SocketAccess, mode: u32) -> Result<Self, AccountError> {
        Ok(Self {
            owner: wanted.owner.as_deref().map(account::user).transpose()?,
            group: wanted.group.as_deref().map(account::group).transpose()?,
            mode: wanted.mode.map_or(mode, api::SocketMode::bits),
            selinux: wanted.selinux.clone(),
        })
    }

    /// Whether the host knows the context.
    ///
    /// # Errors
    /// [`SocketError::Context`].
    pub fn check_host(&self, path: &Path) -> Result<(), SocketError> {
        let Some(context) = &self.selinux else { return Ok(()) };
        selinux::check(context).map_err(|source| SocketError::Context {
            path: path.to_owned(),
            context: context.clone(),
            source,
        })
    }
}

/// A listening socket. One that is there is replaced when it is nobody's any more.
///
/// # Errors
/// See [`SocketError`]; nothing is left then.
pub fn listen(path: &Path, access: &Access) -> Result<UnixListener, SocketError> {
    let failed =
        |what| move |source: io::Error| SocketError::Io { what, path: path.to_owned(), source };
    access.check_host(path)?;
    remove_stale(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed("make")(error.into()))?;
    // What the socket's own inode has is what the file is made with.
    rustix::fs::fchmod(&socket, Mode::empty()).map_err(|error| failed("make")(error.into()))?;
    SocketAddrUnix::new(path)
        .and_then(|address| rustix::net::bind(&socket, &address))
        .map_err(|error| failed("listen on")(error.into()))?;
    let dressed = dress(path, access).and_then(|()| {
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed("listen on")(error.into()))
    });
    match dressed {
        Ok(()) => Ok(socket.into()),
        Err(error) => {
            // What failed matters more than the socket file, which the next attempt removes.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Whether a socket of another process was bound to this path.
#[must_use]
pub fn is_bound_to(socket: &OwnedFd, path: &Path) -> bool {
    let address = rustix::net::getsockname(socket).map(SocketAddrUnix::try_from);
    let Ok(Ok(address)) = address else { return false };
    address.path_bytes() == Some(path.as_os_str().as_bytes())
}

/// Goes on with a socket of another process that listens on this path; `None` when it does not any more.
///
/// # Errors
/// When it cannot be made as it should be.
pub fn keep(
    inherited: OwnedFd,
    path: &Path,
    access: &Access,
) -> Result<Option<UnixListener>, SocketError> {
    let failed =
        |what| move |source: io::Error| SocketError::Io { what, path: path.to_owned(), source };
    let is_there = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if !is_bound_to(&inherited, path) || !is_there {
        return Ok(None);
    }
    let listener = UnixListener::from(inherited);
    access.check_host(path)?;
    dress(path, access)?;
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    Ok(Some(listener))
}

/// Gives the socket's file its owner, context and mode.
fn dress(path: &Path, access: &Access) -> Result<(), SocketError> {
    let failed =
        |what| move |source: io::Error| SocketError::Io { what, path: path.to_owned(), source };
    if access.owner.is_some() || access.group.is_some() {
        chown(path, access.owner, access.group).map_err(failed("change the owner of"))?;
    }
    if let Some(context) = &access.selinux {
        // As libselinux writes it: with the final zero.
        let value = [context.as_bytes(), &[0]].concat();
        rustix::fs::setxattr(path, SELINUX_XATTR, &value, XattrFlags::empty()).map_err(
            |error| SocketError::Relabel {
                path: path.to_owned(),
                context: context.clone(),
                source: error.into(),
            },
        )?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(access.mode))
        .map_err(failed("set the mode of"))
}

/// Removes a socket on which nobody listens.
///
/// # Errors
/// When there is anything else in its place.
pub fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed =
        |what| move |source: io::Error| SocketError::Io { what, path: path.to_owned(), source };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    // One that listens and accepts nothing is not waited for.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let found = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| rustix::net::connect(&socket, &SocketAddrUnix::new(path)?));
    match found {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed("remove")),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            Err(SocketError::Unseen { path: path.to_owned(), source: error.into() })
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn access(mode: u32) -> Access {
        Access { owner: None, group: None, mode, selinux: None }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("socket").permissions().mode() & 0o777
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        drop(listen(&path, &access(0o660)).expect("first"));
        let live = listen(&path, &access(0o660)).expect("after a dead one");
        assert_eq!(mode(&path), 0o660);
        let error = listen(&path, &access(0o660)).expect_err("somebody listens");
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        drop(live);
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        std::fs::write(&path, "precious").expect("file");
        let error = listen(&path, &access(0o660)).expect_err("a file is in the way");
        assert!(error.remedy().is_some_and(|text| text.starts_with("remove ")), "{error}");
        assert_eq!(std::fs::read(&path).expect("file"), b"precious");
    }

    #[test]
    fn the_mode_is_the_one_asked_for_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for wanted in [0o600, 0o660, 0o666, 0o060, 0o777, 0] {
            let path = dir.path().join(format!("{wanted:o}"));
            let _listener = listen(&path, &access(wanted)).expect("listens");
            assert_eq!(mode(&path), wanted);
        }
    }

    #[test]
    fn owner_and_group_are_those_asked_for() {
        // Only root can give a socket away.
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let (uid, gid) =
            if user.is_root() { (4711, 4712) } else { (user.as_raw(), group.as_raw()) };
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        let wanted = SocketAccess {
            owner: Some(uid.to_string()),
            group: Some(gid.to_string()),
            ..SocketAccess::default()
        };
        let _listener =
            listen(&path, &Access::new(&wanted, 0o600).expect("known")).expect("listens");
        let found = std::fs::metadata(&path).expect("socket");
        assert_eq!((found.uid(), found.gid(), mode(&path)), (uid, gid, 0o600));
    }

    #[test]
    fn nobody_gets_in_before_the_socket_is_as_it_should_be() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        let seen = std::thread::scope(|scope| {
            let (path, (stop, stopped)) = (&path, std::sync::mpsc::channel::<()>());
            let watcher = scope.spawn(move || {
                let mut seen = std::collections::BTreeSet::new();
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    if let Ok(metadata) = std::fs::metadata(path) {
                        seen.insert(metadata.permissions().mode() & 0o777);
                    }
                }
                seen
            });
            for _ in 0..2000 {
                drop(listen(path, &access(0o640)).expect("listens"));
            }
            drop(stop);
            watcher.join().expect("watcher")
        });
        assert!(seen.iter().all(|mode| [0, 0o640].contains(mode)), "{seen:?}");
    }

    #[test]
    fn a_context_that_the_host_does_not_know_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        let selinux = Some("no:such:context".to_owned());
        let error = listen(&path, &Access { selinux, ..access(0o660) }).expect_err("refused");
        assert!(error.is_request() && error.remedy().is_some(), "{error}");
        assert!(!path.exists());
    }
}
