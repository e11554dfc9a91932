//! The host's firewall: one nftables table `inet` per instance, replaced as a whole in one
//! transaction whenever the set of active networks changes.
//!
//! What was applied last is remembered, with the kernel's listing of it: a foreign
//! `nft flush ruleset` (or any other change to our table) shows as a difference, and the watcher
//! ([`super::watch`]) puts the table back.

mod foreign;
mod legacy;
mod monitor;
mod nft;
mod ruleset;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

pub(super) use monitor::Monitor;
pub use ruleset::FirewallNetwork;

use super::Host;
use super::error::{Error, Result};

/// What this process applied last.
#[derive(Debug, Default)]
pub(super) struct Applied(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    transaction: Value,
    /// The kernel's view right after; compared as text, never parsed.
    listing: String,
}

impl Applied {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        // A panic elsewhere leaves at worst an old state, which the next check repairs.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, table: &str, transaction: Value) -> Result<()> {
        let mut state = self.lock();
        nft::apply(&transaction)?;
        let listing = nft::list(&["table", "inet", table])?.unwrap_or_default();
        *state = Some(State { transaction, listing });
        Ok(())
    }

    fn remove(&self, table: &str) -> Result<()> {
        let mut state = self.lock();
        nft::apply(&ruleset::remove(table))?;
        *state = None;
        Ok(())
    }

    fn intact(state: &State, table: &str) -> Result<bool> {
        Ok(nft::list(&["table", "inet", table])?.is_some_and(|now| now == state.listing))
    }

    fn present(&self, table: &str) -> Result<bool> {
        self.lock().as_ref().map_or(Ok(true), |state| Self::intact(state, table))
    }

    /// Puts back what somebody else changed. `true`: something was changed. Runs on a thread in
    /// the daemon's namespace.
    pub(super) fn repair(&self, table: &str) -> Result<bool> {
        let mut state = self.lock();
        let Some(state) = state.as_mut() else { return Ok(false) };
        if Self::intact(state, table)? {
            return Ok(false);
        }
        nft::apply(&state.transaction)?;
        state.listing = nft::list(&["table", "inet", table])?.unwrap_or_default();
        Ok(true)
    }
}

/// Names of interfaces that are not ours may be odd, but in a rule nft would take some for a
/// pattern, a set or a string with escapes.
fn check_foreign_name(name: &str) -> Result<()> {
    let literal = !name.is_empty()
        && name.len() <= 15
        && !name.starts_with('@')
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"*\"\\/".contains(&byte));
    if literal {
        return Ok(());
    }
    let reason = "a firewall rule cannot name it";
    Err(Error::InvalidName { name: name.to_owned(), reason })
}

impl Host {
    /// Makes the instance's table say what `networks`, all the active ones, need. Without
    /// networks the table is removed.
    ///
    /// # Errors
    /// [`Error::NftMissing`], [`Error::Nft`]; the table is then as it was before.
    pub async fn apply_firewall(&self, networks: &[FirewallNetwork]) -> Result<()> {
        for network in networks {
            super::link::check_name(&network.interface)?;
            network.forward_dev.as_deref().map_or(Ok(()), check_foreign_name)?;
        }
        if networks.iter().all(|network| !ruleset::needs_rules(network)) {
            return self.remove_firewall().await;
        }
        let table = self.instance().nft_table();
        let transaction = ruleset::replace(&table, networks);
        let host = self.clone();
        self.home().run(move || host.applied().apply(&table, transaction)).await
    }

    /// Removes the instance's table; fine when there is none.
    ///
    /// # Errors
    /// As [`Host::apply_firewall`].
    pub async fn remove_firewall(&self) -> Result<()> {
        let table = self.instance().nft_table();
        let host = self.clone();
        self.home().run(move || host.applied().remove(&table)).await
    }

    /// Whether the table is still what this process applied (`true` when it applied none).
    ///
    /// # Errors
    /// When nft cannot be run.
    pub async fn firewall_present(&self) -> Result<bool> {
        let table = self.instance().nft_table();
        let host = self.clone();
        self.home().run(move || host.applied().present(&table)).await
    }

    /// Other tables that will drop traffic of the guests behind `ifname`, one sentence each.
    pub async fn firewall_warnings(&self, ifname: &str) -> Vec<String> {
        let (table, interface) = (self.instance().nft_table(), ifname.to_owned());
        let found = self.home().run(move || Ok(foreign::warnings(&table, &interface))).await;
        found.unwrap_or_default()
    }
}
