//! The one place where the state changes: disk, then memory, then the event.

use std::sync::PoisonError;

use api::{EventKind, Problem};
use uuid::Uuid;

use super::tables::Tables;
use super::{Manager, problem};
use crate::store::{PortDocument, RunDocument, Store, StoreError};

/// One write to disk.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Definition { name: String, xml: String },
    RemoveDefinition { name: String },
    Autostart { name: String, autostart: bool },
    Port(PortDocument),
    RemovePort(Uuid),
    RunState(RunDocument),
    RemoveRunState(Uuid),
    RemoveLeases(Uuid),
}

impl Write {
    fn apply(&self, store: &Store) -> Result<(), StoreError> {
        match self {
            Self::Definition { name, xml } => store.save_definition(name, xml),
            Self::RemoveDefinition { name } => store.remove_definition(name),
            Self::Autostart { name, autostart } => store.save_autostart(name, *autostart),
            Self::Port(document) => store.save_port(document),
            Self::RemovePort(uuid) => store.remove_port(*uuid),
            Self::RunState(document) => store.save_run_state(document),
            Self::RemoveRunState(uuid) => store.remove_run_state(*uuid),
            Self::RemoveLeases(uuid) => store.remove_leases(*uuid),
        }
    }
}

impl Manager {
    /// Writes in order, and only when all succeeded changes the tables and tells the events that
    /// `apply` returns, as one revision.
    ///
    /// # Errors
    /// When a write fails; memory is then unchanged.
    pub(super) async fn commit(
        &self,
        writes: Vec<Write>,
        apply: impl FnOnce(&mut Tables) -> Vec<EventKind>,
    ) -> Result<u64, Problem> {
        self.write(writes).await?;
        Ok(self.change(apply))
    }

    /// The second half of [`Self::commit`], after a [`Self::write()`] of its own.
    pub(super) fn change(&self, apply: impl FnOnce(&mut Tables) -> Vec<EventKind>) -> u64 {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let events = apply(&mut tables);
        // Under the lock, so that events come in the order of the changes.
        self.bus.changed(events)
    }

    /// Writes in order, up to the first that fails.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), Problem> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            writes.iter().try_for_each(|write| write.apply(&store))
        })
        .await
        .map_err(|error| problem::inner(&error))??;
        Ok(())
    }

    /// A change of live state only: an event, if any, but no new revision.
    pub(super) fn note(&self, apply: impl FnOnce(&mut Tables) -> Option<EventKind>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = apply(&mut tables) {
            self.bus.happened(event);
        }
    }
}
