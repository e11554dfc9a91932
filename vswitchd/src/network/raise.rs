//! Bringing one port up in an active network, by kind.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use api::{Code, PortKind, PortState, Problem, SocketAccess};
use datapath::VhostSocket;
use netdef::model;
use switch::Role;
use uuid::Uuid;

use super::dataplane::PortSettings;
use super::problem::{self, about, host};
use super::tables::mtu;
use super::undo::Undo;
use super::{Manager, profile};
use crate::host::TapSpec;
use crate::socket::{self, Access};
use crate::store::PortDocument;

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
        let uuid = document.uuid;
        let mut settings = Self::settings(document, network)?;
        match &document.port {
            PortKind::VhostUser { connect, access, queue_pairs } => {
                let (socket, state) = if let Some(path) = connect {
                    (VhostSocket::Connect(path.clone()), PortState::Connecting)
                } else {
                    let path = self.socket_path(&document.name)?;
                    let listener = self.listen(&path, access)?;
                    undo.push(Undo::Socket(path));
                    (VhostSocket::Listen(listener), PortState::Listening)
                };
                self.dataplane.add_vhost_user(settings, socket, *queue_pairs).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(state)
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
            PortKind::Hub { .. } => {
                Err(problem::internal("a guest on the hub socket cannot be brought back"))
            }
        }
    }

    /// A guest's port as the datapath is to have it.
    ///
    /// # Errors
    /// A profile that the network does not have.
    pub(super) fn settings(
        document: &PortDocument,
        network: &model::Network,
    ) -> Result<PortSettings, Problem> {
        let forwarding = profile::resolve(network, &document.profile)?;
        Ok(PortSettings {
            id: document.uuid,
            name: document.name.clone(),
            bridge: document.network,
            mac: document.mac,
            role: Role::Guest,
            vlan: forwarding.vlan,
            isolated: forwarding.isolated,
            mtu: mtu(network),
        })
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

    /// Who may use a socket: what is wanted, over what the daemon is configured with.
    ///
    /// # Errors
    /// An account that does not exist.
    pub(super) fn access(&self, wanted: &SocketAccess) -> Result<Access, Problem> {
        let wanted = SocketAccess {
            owner: wanted.owner.clone().or_else(|| self.config.socket_owner.clone()),
            group: wanted.group.clone().or_else(|| self.config.socket_group.clone()),
            ..wanted.clone()
        };
        Access::new(&wanted, self.config.socket_mode)
            .map_err(|error| problem::socket(&error.into()))
    }

    pub(super) fn listen(
        &self,
        path: &Path,
        access: &SocketAccess,
    ) -> Result<UnixListener, Problem> {
        let access = self.access(access)?;
        socket::listen(path, &access).map_err(|error| problem::socket(&error))
    }

    /// # Errors
    /// When the kernel could not bind it.
    pub(super) fn socket_path(&self, port: &str) -> Result<PathBuf, Problem> {
        Self::fitting(port, self.store.instance().port_socket(port), "the port's name")
    }

    /// The path of the socket of `object`, whose name (`what`) it ends in.
    ///
    /// # Errors
    /// When the kernel could not bind it.
    pub(super) fn fitting(object: &str, path: PathBuf, what: &str) -> Result<PathBuf, Problem> {
        let length = path.as_os_str().len();
        if length <= socket::MAX_PATH {
            return Ok(path);
        }
        let excess = length - socket::MAX_PATH;
        Err(Problem {
            remedy: Some(format!(
                "shorten {what} by {excess} characters, or start vswitchd with a shorter \
                 --root"
            )),
            ..about(
                Code::InvalidArgument,
                object,
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
            PortKind::VhostUser { .. } | PortKind::Packet { .. } | PortKind::Hub { .. } => None,
        }
    }
}
