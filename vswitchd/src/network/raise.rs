//! Bringing one port up in an active network, by kind.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use api::{Code, PortKind, PortState, Problem};
use netdef::model;
use switch::Role;
use uuid::Uuid;

use super::dataplane::PortSettings;
use super::problem::{about, host, inner};
use super::tables::mtu;
use super::undo::Undo;
use super::{Manager, profile};
use crate::group;
use crate::host::TapSpec;
use crate::store::PortDocument;

/// Longest path that fits into `sun_path` with its final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A port that is up.
#[derive(Debug)]
pub(super) struct Raised {
    pub(super) undo: Vec<Undo>,
    pub(super) state: PortState,
    pub(super) reason: Option<String>,
}

impl Manager {
    /// # Errors
    /// What could not be made; the rest is undone.
    pub(super) async fn raise(
        &self,
        document: &PortDocument,
        network: &model::Network,
    ) -> Result<Raised, Problem> {
        let mut undo = Vec::new();
        match self.raise_into(document, network, &mut undo).await {
            Ok(state) => Ok(Raised { undo, state, reason: None }),
            Err(error) => {
                self.undo(undo).await;
                Err(error)
            }
        }
    }

    async fn raise_into(
        &self,
        document: &PortDocument,
        network: &model::Network,
        undo: &mut Vec<Undo>,
    ) -> Result<PortState, Problem> {
        let forwarding = profile::resolve(network, &document.profile)?;
        let uuid = document.uuid;
        let mut settings = PortSettings {
            id: uuid,
            name: document.name.clone(),
            bridge: document.network,
            mac: document.mac,
            role: Role::Guest,
            vlan: forwarding.vlan,
            isolated: forwarding.isolated,
            mtu: mtu(network),
        };
        match &document.port {
            PortKind::VhostUser { group, queue_pairs } => {
                let path = self.socket_path(&document.name)?;
                let group = group.as_ref().or(self.config.socket_group.as_ref());
                let listener = listen(&path, group.map(String::as_str))?;
                undo.push(Undo::Socket(path));
                self.dataplane.add_vhost_user(settings, listener, *queue_pairs).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(PortState::Listening)
            }
            PortKind::Namespace { netns, ifname } => {
                let spec = self.tap_spec(document, ifname, Some(netns), settings.mtu);
                let tap = self.host.create_tap(&spec).await.map_err(|error| host(&error))?;
                undo.push(Undo::Link {
                    name: ifname.clone(),
                    object: uuid,
                    netns: Some(netns.clone()),
                });
                self.dataplane.add_tap(settings, tap.queues).await?;
                undo.push(Undo::DataplanePort(uuid));
                self.host.watch_netns(netns, tap.netns);
                undo.push(Undo::Watch { netns: netns.clone(), port: uuid });
                Ok(PortState::Up)
            }
            PortKind::Tap { ifname } => {
                let spec = self.tap_spec(document, ifname, None, settings.mtu);
                let tap = self.host.create_tap(&spec).await.map_err(|error| host(&error))?;
                undo.push(Undo::Link { name: ifname.clone(), object: uuid, netns: None });
                self.dataplane.add_tap(settings, tap.queues).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(PortState::Up)
            }
            PortKind::Packet { ifname } => {
                // Other stations are behind it, not one guest.
                settings.role = Role::Uplink;
                let socket = self.host.open_packet(ifname).await.map_err(|error| host(&error))?;
                self.dataplane.add_packet(settings, socket).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(PortState::Up)
            }
        }
    }

    fn tap_spec(
        &self,
        document: &PortDocument,
        ifname: &str,
        netns: Option<&str>,
        mtu: u32,
    ) -> TapSpec {
        TapSpec {
            name: ifname.to_owned(),
            object: document.uuid,
            mac: Some(document.mac),
            mtu,
            queues: self.config.workers,
            netns: netns.map(str::to_owned),
            up: true,
        }
    }

    /// # Errors
    /// When the kernel could not bind it.
    pub(super) fn socket_path(&self, port: &str) -> Result<PathBuf, Problem> {
        let path = self.store.instance().port_socket(port);
        let length = path.as_os_str().len();
        if length <= MAX_SOCKET_PATH {
            return Ok(path);
        }
        let excess = length - MAX_SOCKET_PATH;
        Err(Problem {
            remedy: Some(format!(
                "shorten the port's name by {excess} characters, or start vswitchd with a shorter \
                 --root"
            )),
            ..about(
                Code::InvalidArgument,
                port,
                format!(
                    "the socket path {} has {length} bytes, {excess} more than a Unix socket can have",
                    path.display()
                ),
            )
        })
    }

    /// What else could be left of a port whose network is not active: a TAP with our alias.
    pub(super) fn leftover(document: &PortDocument) -> Option<(String, Uuid, Option<String>)> {
        match &document.port {
            PortKind::Namespace { netns, ifname } => {
                Some((ifname.clone(), document.uuid, Some(netns.clone())))
            }
            PortKind::Tap { ifname } => Some((ifname.clone(), document.uuid, None)),
            PortKind::VhostUser { .. } | PortKind::Packet { .. } => None,
        }
    }
}

/// A listening socket with mode 0660 and the group. A socket that is there is replaced when it is
/// nobody's any more.
fn listen(path: &Path, group: Option<&str>) -> Result<UnixListener, Problem> {
    let failed = |what: &str, error: &io::Error| {
        let mut problem = inner(error);
        problem.title = format!("cannot {what} {}: {}", path.display(), problem.title);
        problem
    };
    remove_stale(path)?;
    // The daemon's umask lets nobody else in until the mode is set.
    let listener = UnixListener::bind(path).map_err(|error| failed("listen on", &error))?;
    let dressed = (|| {
        if let Some(group) = group {
            let gid = group::id(group)
                .map_err(|error| about(Code::InvalidArgument, group, error.to_string()))?;
            std::os::unix::fs::chown(path, None, Some(gid))
                .map_err(|error| failed("change the group of", &error))?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(0o660))
            .map_err(|error| failed("set the mode of", &error))?;
        listener.set_nonblocking(true).map_err(|error| failed("listen on", &error))
    })();
    match dressed {
        Ok(()) => Ok(listener),
        Err(error) => {
            // What failed matters more than the socket file, which the next attempt removes.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Removes a socket on which nobody listens. Anything else in its place is an error.
pub(crate) fn remove_stale(path: &Path) -> Result<(), Problem> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(inner(&error)),
    };
    let shown = path.display();
    if !metadata.file_type().is_socket() {
        return Err(Problem {
            remedy: Some(format!("remove {shown}")),
            ..super::problem::internal(format!("{shown} is in the way and is not a socket"))
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| inner(&error))
        }
        _ => Err(super::problem::internal(format!("another process listens on {shown}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        drop(listen(&path, None).expect("first"));
        let live = listen(&path, None).expect("after a dead one");
        let mode = std::fs::metadata(&path).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(listen(&path, None).is_err(), "somebody listens");
        drop(live);
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        std::fs::write(&path, "precious").expect("file");
        assert!(listen(&path, None).is_err());
        assert_eq!(std::fs::read(&path).expect("file"), b"precious");
    }

    #[test]
    fn an_unknown_group_leaves_no_socket() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("web1");
        let error = listen(&path, Some("no-such-group-here")).expect_err("unknown group");
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(!path.exists());
    }
}
