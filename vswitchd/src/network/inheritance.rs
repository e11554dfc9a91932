//! What one daemon leaves to the next beside the datapath: sockets that are listened on, and guests that are on no
//! disk.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use api::{PortState, Problem, SocketAccess};
use dhcpd::dns::InheritedSockets;

use super::hub::is_transient;
use super::tables::Port;
use super::{Manager, problem};
use crate::socket;
use crate::store::PortDocument;

/// For the daemon after this one.
#[derive(Debug, Default)]
pub struct Legacy {
    pub dns: Vec<OwnedFd>,
    pub hubs: Vec<OwnedFd>,
    /// Guests on hub sockets.
    pub guests: Vec<PortDocument>,
}

/// What is left of the daemon before this one, until everything is back.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    pub(super) dns: InheritedSockets,
    rest: Mutex<(Vec<OwnedFd>, Vec<PortDocument>)>,
}

impl Manager {
    /// Sockets and guests of a daemon before this one, for the networks that come back.
    pub fn inherit(&self, legacy: Legacy) {
        self.inheritance.dns.put(legacy.dns);
        let mut rest = self.inheritance.rest.lock().unwrap_or_else(PoisonError::into_inner);
        *rest = (legacy.hubs, legacy.guests);
    }

    /// Copies of the sockets, and the guests.
    #[must_use]
    pub fn legacy(&self) -> Legacy {
        let tables = self.tables();
        let mut legacy = Legacy::default();
        for live in tables.networks.values().filter_map(|network| network.live.as_ref()) {
            let dns = live.services.as_ref().map(|services| services.dns_sockets()).transpose();
            let hub = live.hub.as_ref().map(|hub| hub.socket()).transpose();
            match (dns, hub) {
                (Ok(dns), Ok(hub)) => {
                    legacy.dns.extend(dns.into_iter().flatten());
                    legacy.hubs.extend(hub);
                }
                (Err(error), _) | (_, Err(error)) => tracing::warn!(
                    network = %live.definition.name, "its sockets are not handed over: {error}"
                ),
            }
        }
        let guests = tables.ports.values().filter(|port| is_transient(port));
        legacy.guests = guests.map(|port| port.document.clone()).collect();
        legacy
    }

    /// The guests are ports like those from disk from here on.
    pub(super) fn load_guests(&self) {
        let guests = {
            let mut rest = self.inheritance.rest.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut rest.1)
        };
        self.note(|tables| {
            for document in guests {
                let taken = tables.port_named(&document.name).is_some()
                    || tables.ports.contains_key(&document.uuid);
                if tables.networks.contains_key(&document.network) && !taken {
                    let (state, undo) = (PortState::Down, Vec::new());
                    let port = Port { document, state, reason: None, undo };
                    tables.ports.insert(port.document.uuid, port);
                }
            }
            None
        });
    }

    /// The hub socket of this path.
    ///
    /// # Errors
    /// When it cannot be made as it should be.
    pub(super) fn inherited_hub(&self, path: &Path) -> Result<Option<UnixListener>, Problem> {
        let found = {
            let mut rest = self.inheritance.rest.lock().unwrap_or_else(PoisonError::into_inner);
            let is_it = |fd: &OwnedFd| socket::is_bound_to(fd, path);
            rest.0.iter().position(is_it).map(|at| rest.0.swap_remove(at))
        };
        let Some(found) = found else { return Ok(None) };
        let access = self.access(&SocketAccess::default())?;
        socket::keep(found, path, &access).map_err(|error| problem::socket(&error))
    }

    /// What nobody has asked for goes.
    pub(super) async fn disown(&self) -> Result<(), Problem> {
        self.inheritance.dns.close();
        {
            let mut rest = self.inheritance.rest.lock().unwrap_or_else(PoisonError::into_inner);
            *rest = (Vec::new(), Vec::new());
        }
        self.change(super::hub::forget_lost);
        self.dataplane.disown().await
    }
}
