//! What users do to ports: add, change and delete.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use api::{
    Code, EventKind, MAX_QUEUE_PAIRS, PortAdd, PortInfo, PortKind, PortSet, PortState, Problem,
    SocketAccess,
};
use uuid::Uuid;

use super::commit::Write;
use super::definition::{INTERFACE_NAME_RULE, is_interface_name, random_mac};
use super::hub::is_transient;
use super::problem::{self, about};
use super::raise::Raised;
use super::tables::{Network, Port};
use super::undo::Undo;
use super::{Manager, Operation, profile};
use crate::socket;
use crate::store::PortDocument;

/// Names of ports: `[A-Za-z0-9][A-Za-z0-9_.-]{0,31}`.
fn is_port_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.len() <= 32
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

fn invalid(object: &str, title: String, remedy: &str) -> Problem {
    about(Code::InvalidArgument, object, title).with_remedy(remedy)
}

fn check_ifname(name: &str) -> Result<(), Problem> {
    if is_interface_name(name) {
        return Ok(());
    }
    Err(invalid(
        name,
        format!("'{}' cannot be the name of an interface", name.escape_debug()),
        INTERFACE_NAME_RULE,
    ))
}

/// A socket on which the VMM is to listen.
fn check_connect(name: &str, path: &Path, access: &SocketAccess) -> Result<(), Problem> {
    let bytes = path.as_os_str().as_bytes();
    let shown = path.display().to_string();
    if !path.is_absolute() || bytes.contains(&0) {
        return Err(invalid(
            name,
            format!("'{}' is not the path of a socket", shown.escape_debug()),
            "write the whole path, from '/' on",
        ));
    }
    if bytes.len() > socket::MAX_PATH {
        return Err(invalid(
            name,
            format!(
                "the socket path {shown} has {} bytes, {} more than a Unix socket can have",
                bytes.len(),
                bytes.len() - socket::MAX_PATH
            ),
            "let the VMM listen on a shorter path",
        ));
    }
    if *access != SocketAccess::default() {
        return Err(invalid(
            name,
            format!("{shown} is the VMM's socket, and so are its owner, group and mode"),
            "leave them out, or let the VMM connect to a socket of ours",
        ));
    }
    Ok(())
}

impl Manager {
    /// Adds a port; in an active network it comes up.
    ///
    /// # Errors
    /// A bad or taken name, a setting that the network does not have, what could not be made.
    /// Nothing is left of a port that was not added.
    pub async fn add_port(
        &self,
        _operation: &Operation<'_>,
        network: &str,
        request: PortAdd,
    ) -> Result<PortInfo, Problem> {
        let (network, live, definition) = {
            let tables = self.tables();
            let found = tables.network(network)?;
            let live = found.live.as_ref().map(|live| live.definition.clone());
            (found.uuid, live, found.current().cloned())
        };
        self.check_request(&request)?;
        if let Some(definition) = &definition {
            profile::resolve(definition, &request.profile)?;
        }
        let mac = match request.mac {
            Some(mac) if mac.is_station() => mac,
            Some(mac) => {
                return Err(invalid(
                    &mac.to_string(),
                    format!("{mac} cannot be a guest's MAC address"),
                    "use a unicast address that is not zero, or none to get one",
                ));
            }
            None => self.free_mac()?,
        };
        let uuid = request.uuid.unwrap_or_else(Uuid::new_v4);
        let document =
            PortDocument::new(uuid, request.name, network, request.port, mac, request.profile);
        let raised = match &live {
            Some(definition) => self.raise(&document, definition).await?,
            None => Raised { undo: Vec::new(), state: PortState::Down, reason: None },
        };
        let undo = raised.undo.clone();
        let name = document.name.clone();
        let committed = self
            .commit(vec![Write::Port(document.clone())], |tables| {
                let network = tables
                    .networks
                    .get(&network)
                    .map_or_else(|| network.to_string(), |network| network.name.clone());
                let Raised { undo, state, reason } = raised;
                tables.ports.insert(uuid, Port { document, state, reason, undo });
                vec![EventKind::PortAdded { network, port: name.clone(), uuid }]
            })
            .await;
        if let Err(error) = committed {
            self.undo(undo).await;
            return Err(error);
        }
        self.settle_state(uuid);
        let info = self.port(&uuid.to_string())?;
        tracing::info!(network = %info.network, port = %name, mac = %mac, %uuid, "port added");
        Ok(info)
    }

    fn check_request(&self, request: &PortAdd) -> Result<(), Problem> {
        let name = &request.name;
        if !is_port_name(name) {
            return Err(invalid(
                name,
                format!("invalid port name '{}'", name.escape_debug()),
                "use 1 to 32 letters, digits, '_', '.' and '-', starting with a letter or digit",
            ));
        }
        {
            let tables = self.tables();
            let taken = tables
                .port_named(name)
                .or_else(|| tables.ports.get(&request.uuid.unwrap_or_default()));
            if let Some(port) = taken {
                let network = tables.networks.get(&port.document.network);
                let network = network.map_or("?", |network| network.name.as_str());
                let title = format!(
                    "port '{}' already exists in network '{network}' with uuid {}",
                    port.document.name, port.document.uuid
                );
                let remedy = format!(
                    "choose another name, or remove it: netctl port-del {}",
                    port.document.name
                );
                return Err(about(Code::PortExists, &port.document.name, title).with_remedy(remedy));
            }
        }
        // The UUIDs of networks name their gateway interfaces and ports.
        if let Some(uuid) = request.uuid
            && (uuid.is_nil() || self.tables().networks.contains_key(&uuid))
        {
            return Err(invalid(
                name,
                format!("{uuid} cannot be a port's UUID"),
                "use another one, or none to get one",
            ));
        }
        match &request.port {
            PortKind::VhostUser { connect, access, queue_pairs } => {
                let path = match connect {
                    Some(path) => {
                        check_connect(name, path, access)?;
                        path.clone()
                    }
                    None => self.socket_path(name)?,
                };
                let access = self.access(access)?;
                access.check_host(&path).map_err(|error| problem::socket(&error))?;
                if !(1..=MAX_QUEUE_PAIRS).contains(queue_pairs) {
                    return Err(invalid(
                        name,
                        format!("{queue_pairs} queue pairs are not possible"),
                        &format!("use 1 to {MAX_QUEUE_PAIRS}"),
                    ));
                }
                Ok(())
            }
            PortKind::Namespace { netns, ifname } => {
                if netns.is_empty() || netns.contains('\0') {
                    return Err(invalid(
                        name,
                        "the network namespace has no name".to_owned(),
                        "name one in /run/netns, or give a path",
                    ));
                }
                check_ifname(ifname)
            }
            PortKind::Tap { ifname } | PortKind::Packet { ifname } => check_ifname(ifname),
            PortKind::Hub { .. } => Err(invalid(
                name,
                "a port of the kind hub cannot be added".to_owned(),
                "let the VMM connect to the network's hub socket: it gets its port then",
            )),
        }
    }

    pub(super) fn free_mac(&self) -> Result<wire::MacAddr, Problem> {
        loop {
            let mac = random_mac()?;
            if self.is_free_mac(mac) {
                return Ok(mac);
            }
        }
    }

    /// No network and no other port has it.
    pub(super) fn is_free_mac(&self, mac: wire::MacAddr) -> bool {
        let tables = self.tables();
        let definitions = tables.networks.values().filter_map(|network| network.current()?.mac);
        let ports = tables.ports.values().map(|port| port.document.mac);
        definitions.chain(ports).all(|taken| taken != mac)
    }

    /// Changes a port's profile; frames of an active network are forwarded by it when this returns.
    ///
    /// # Errors
    /// When there is no such port, or the network does not have a setting. Nothing is changed then.
    pub async fn set_port(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
        change: PortSet,
    ) -> Result<PortInfo, Problem> {
        let (mut document, network, definition, in_datapath, transient) = {
            let tables = self.tables();
            let port = tables.port(wanted)?;
            let document = port.document.clone();
            let network = tables.networks.get(&document.network);
            let in_datapath = port.undo.iter().any(|undo| matches!(undo, Undo::DataplanePort(_)));
            let definition = network.and_then(Network::current).cloned();
            let name = network.map_or_else(|| document.network.to_string(), |it| it.name.clone());
            (document, name, definition, in_datapath, is_transient(port))
        };
        let (uuid, name) = (document.uuid, document.name.clone());
        let profile = change.applied_to(&document.profile);
        if profile == document.profile {
            return self.port(wanted);
        }
        let forwarding = |of| definition.as_ref().map(|it| profile::resolve(it, of)).transpose();
        let (old, new) = (forwarding(&document.profile), forwarding(&profile)?);
        if let (Some(new), true) = (new, in_datapath) {
            self.dataplane.set_port(uuid, new).await?;
        }
        document.profile = profile.clone();
        // A port of the hub socket is as it is until its VMM leaves.
        let writes = if transient { Vec::new() } else { vec![Write::Port(document)] };
        let committed = self
            .commit(writes, |tables| {
                if let Some(port) = tables.ports.get_mut(&uuid) {
                    port.document.profile = profile.clone();
                }
                vec![EventKind::PortChanged { network, port: name.clone(), uuid, profile }]
            })
            .await;
        if let Err(error) = committed {
            if let (Ok(Some(old)), true) = (old, in_datapath) {
                self.dataplane.set_port(uuid, old).await?;
            }
            return Err(error);
        }
        let info = self.port(&uuid.to_string())?;
        tracing::info!(network = %info.network, port = %name, %uuid, "port changed");
        Ok(info)
    }

    /// Deletes a port and everything that it made.
    ///
    /// # Errors
    /// When there is none.
    pub async fn delete_port(
        &self,
        _operation: &Operation<'_>,
        wanted: &str,
    ) -> Result<(), Problem> {
        let (uuid, name, network_uuid) = {
            let tables = self.tables();
            let port = tables.port(wanted)?;
            (port.document.uuid, port.document.name.clone(), port.document.network)
        };
        // The document goes last: it says where to look for what a crash has left.
        let mut undo = Vec::new();
        self.note(|tables| {
            let port = tables.ports.get_mut(&uuid)?;
            port.state = PortState::Down;
            undo = std::mem::take(&mut port.undo);
            None
        });
        self.undo(undo).await;
        let mut services = None;
        let mut network_name = String::new();
        self.commit(vec![Write::RemovePort(uuid)], |tables| {
            tables.ports.remove(&uuid);
            if let Some(network) = tables.networks.get(&network_uuid) {
                network_name.clone_from(&network.name);
                services = network.live.as_ref().and_then(|live| live.services.clone());
            }
            let network = network_name.clone();
            vec![EventKind::PortDeleted { network, port: name.clone(), uuid }]
        })
        .await?;
        if let Some(services) = services {
            // Its leases end with it. The engine answers on its own thread.
            let _ = tokio::task::spawn_blocking(move || services.port_removed(uuid)).await;
        }
        tracing::info!(network = %network_name, port = %name, %uuid, "port deleted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names() {
        for good in ["a", "web1", "0-a_b.c", &"x".repeat(32)] {
            assert!(is_port_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "a\n", "é", &"x".repeat(33)] {
            assert!(!is_port_name(bad), "{bad:?}");
        }
    }
}
