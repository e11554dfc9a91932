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
use crate::host::{TapHandle, TapSpec};
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
                let path = match connect {
                    Some(_) => None,
                    None => Some(self.socket_path(&document.name)?),
                };
                if self.dataplane.adopt_vhost_user(&settings, *queue_pairs).await? {
                    undo.extend(path.map(Undo::Socket));
                    undo.push(Undo::DataplanePort(uuid));
                    // The datapath knows better.
                    return Ok(PortState::Listening);
                }
                let (socket, state) = match (connect, path) {
                    (Some(path), _) => (VhostSocket::Connect(path.clone()), PortState::Connecting),
                    (None, path) => {
                        let path = path.unwrap_or_default();
                        let listener = self.listen(&path, access)?;
                        undo.push(Undo::Socket(path));
                        (VhostSocket::Listen(listener), PortState::Listening)
                    }
                };
                self.dataplane.add_vhost_user(settings, socket, *queue_pairs).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(state)
            }
            PortKind::Namespace { netns, ifname } => {
                let spec = self.tap_spec(document, ifname, Some(netns), settings.mtu);
                let tap = self.tap(&spec).await?;
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
                let tap = self.tap(&spec).await?;
                undo.push(Undo::Link { name: ifname.clone(), object: uuid, netns: None });
                self.dataplane.add_tap(settings, tap.queues).await?;
                undo.push(Undo::DataplanePort(uuid));
                Ok(PortState::Up)
            }
            PortKind::Packet { ifname } => {
                // Other stations are behind it, not one guest.
                settings.role = Role::Uplink;
                if !self.dataplane.adopt_packet(&settings).await? {
                    let socket = self.host.open_packet(ifname).await;
                    let socket = socket.map_err(|error| host(&error))?;
                    self.dataplane.add_packet(settings, socket).await?;
                }
                undo.push(Undo::DataplanePort(uuid));
                Ok(PortState::Up)
            }
            PortKind::Hub { queue_pairs, .. } => {
                if self.dataplane.adopt_vhost_user(&settings, *queue_pairs).await? {
                    undo.push(Undo::DataplanePort(uuid));
                    return Ok(PortState::Connected);
                }
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

    /// A TAP: the one that another daemon has handed over, where it still is as it should be, else one that is made or
    /// opened. The datapath has the queues when the handle has none.
    pub(super) async fn tap(&self, spec: &TapSpec) -> Result<TapHandle, Problem> {
        if self.dataplane.inherits_tap(spec.object, spec.queues.max(1)) {
            match self.host.keep_tap(spec).await {
                Ok(tap) => return Ok(tap),
                Err(error) => {
                    tracing::warn!(interface = %spec.name, "not taken over: {error}");
                    self.dataplane.remove_port(spec.object).await?;
                }
            }
        }
        self.host.create_tap(spec).await.map_err(|error| host(&error))
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
            selinux: wanted.selinux.clone().or_else(|| self.config.socket_context.clone()),
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
