//! What was made, as a list that is run backwards: by a start that fails, by `net-destroy` and by
//! `port-del`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::Problem;
use uuid::Uuid;

use super::hub::Hub;
use super::services::Services;
use super::{Manager, problem};
use crate::host::{FirewallNetwork, RouteSpec};

/// One thing that was made, with what is needed to remove it.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    /// The bridge in the datapath.
    Bridge(Uuid),
    /// A port in the datapath; its file descriptors are closed with it.
    DataplanePort(Uuid),
    /// An interface with our alias.
    Link {
        name: String,
        object: Uuid,
        netns: Option<String>,
    },
    /// The watch on a namespace that a port is in.
    Watch {
        netns: String,
        port: Uuid,
    },
    /// A socket of ours.
    Socket(PathBuf),
    /// What serves the network's hub socket.
    Hub(Arc<Hub>),
    Route(RouteSpec),
    /// The network's rules.
    Firewall,
    /// DHCP and DNS.
    Services(Arc<Services>),
}

impl Undo {
    fn describe(&self) -> String {
        match self {
            Self::Bridge(_) => "removing the bridge".to_owned(),
            Self::DataplanePort(id) => format!("removing port {id} from the datapath"),
            Self::Link { name, netns: None, .. } => format!("deleting interface {name}"),
            Self::Link { name, netns: Some(netns), .. } => {
                format!("deleting interface {name} in namespace {netns}")
            }
            Self::Watch { netns, .. } => format!("unwatching namespace {netns}"),
            Self::Socket(path) => format!("removing socket {}", path.display()),
            Self::Hub(_) => "stopping the hub".to_owned(),
            Self::Route(route) => format!("removing the route to {}", route.net),
            Self::Firewall => "removing the firewall rules".to_owned(),
            Self::Services(_) => "stopping DHCP and DNS".to_owned(),
        }
    }
}

impl Manager {
    /// Runs the list backwards. What cannot be removed is logged and does not keep the rest from
    /// being removed; the next start of the daemon removes orphans.
    pub(super) async fn undo(&self, list: Vec<Undo>) {
        for item in list.into_iter().rev() {
            let what = item.describe();
            if let Err(error) = self.undo_one(item).await {
                tracing::error!(causes = ?error.causes, "{what} failed: {error}");
            }
        }
    }

    async fn undo_one(&self, item: Undo) -> Result<(), Problem> {
        let host = |error| problem::host(&error);
        match item {
            Undo::Bridge(id) => self.dataplane.remove_bridge(id).await,
            Undo::DataplanePort(id) => self.dataplane.remove_port(id).await,
            Undo::Link { name, object, netns } => {
                self.host.delete_link(&name, object, netns.as_deref()).await.map_err(host)?;
                Ok(())
            }
            Undo::Watch { netns, port } => {
                let shared = self.tables().ports.values().any(|other| {
                    other.document.uuid != port
                        && other
                            .undo
                            .iter()
                            .any(|undo| matches!(undo, Undo::Watch { netns: n, .. } if *n == netns))
                });
                if !shared {
                    self.host.unwatch_netns(&netns);
                }
                Ok(())
            }
            Undo::Socket(path) => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(problem::inner(&error))
                }
                _ => Ok(()),
            },
            Undo::Hub(hub) => {
                hub.stop();
                Ok(())
            }
            Undo::Route(route) => {
                self.host.del_route(&route).await.map_err(host)?;
                Ok(())
            }
            Undo::Firewall if self.restoring.load(Ordering::Relaxed) => Ok(()),
            // The network that goes is not in the tables any more (or not yet).
            Undo::Firewall => self.apply_firewall(None).await,
            Undo::Services(services) => tokio::task::spawn_blocking(move || services.stop())
                .await
                .map_err(|error| problem::inner(&error)),
        }
    }

    /// Replaces the instance's table by what the active networks need, and `extra`.
    pub(super) async fn apply_firewall(
        &self,
        extra: Option<&FirewallNetwork>,
    ) -> Result<(), Problem> {
        let mut networks = self.tables().firewall();
        networks.extend(extra.cloned());
        // The same networks make the same table.
        networks.sort_by(|a, b| a.interface.cmp(&b.interface));
        self.host.apply_firewall(&networks).await.map_err(|error| problem::host(&error))
    }
}
