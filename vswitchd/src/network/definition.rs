//! Definitions: identity, and what libvirt fills in (UUID, MAC address, bridge name).

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{Code, Problem};
use netdef::model;
use uuid::Uuid;
use wire::MacAddr;

use super::problem::about;
use super::tables::{gateway_interface, has_gateway};
use super::{Manager, problem, services};

/// Highest number that a bridge name template tries, as in libvirt.
const MAX_BRIDGE: u32 = 256;
/// A document that was read, not yet compared with what is there.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) model: model::Network,
    pub(super) warnings: Vec<String>,
}

/// Reads a document away from the threads that serve requests: it may be large.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) async fn parse(text: impl AsRef<[u8]> + Send + 'static) -> Result<Document, Problem> {
    tokio::task::spawn_blocking(move || parse_now(text.as_ref()))
        .await
        .map_err(|error| problem::inner(&error))?
}

/// # Errors
/// What is wrong with the document, and where.
pub(super) fn parse_now(text: &[u8]) -> Result<Document, Problem> {
    let parsed = netdef::parse(text).map_err(problem::document)?;
    let model = parsed.network;
    // What only the services would find out at start is found out now.
    services::check(&model).map_err(|error| Problem {
        causes: error.causes,
        ..about(
            Code::XmlError,
            &model.name,
            format!("XML error: {} in network '{}'", error.title, model.name),
        )
    })?;
    check_names(&model)?;
    Ok(Document { warnings: parsed.warnings.iter().map(ToString::to_string).collect(), model })
}

/// Longest interface name (IFNAMSIZ without the final zero).
const MAX_INTERFACE_NAME: usize = 15;

/// What [`is_interface_name`] wants, as a remedy.
pub(super) const INTERFACE_NAME_RULE: &str =
    "use 1 to 15 letters, digits, '_', '-' and '.', not starting with '.' or '-'";

/// Stricter than the kernel, so that a name is a name to every tool.
pub(super) fn is_interface_name(name: &str) -> bool {
    name.len() <= MAX_INTERFACE_NAME
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

fn check_names(model: &model::Network) -> Result<(), Problem> {
    let names = [model.bridge.name.as_deref(), model.forward.dev.as_deref()];
    for name in names.into_iter().flatten() {
        // The longest name that a template can come to.
        if !is_interface_name(&name.replacen("%d", "256", 1)) {
            return Err(Problem {
                remedy: Some(format!(
                    "{INTERFACE_NAME_RULE} (one '%d' stands for a number up to {MAX_BRIDGE})"
                )),
                ..about(
                    Code::XmlError,
                    name,
                    format!(
                        "XML error: '{}' cannot be the name of an interface",
                        name.escape_debug()
                    ),
                )
            });
        }
    }
    Ok(())
}

/// A random MAC address of the range that libvirt and QEMU use.
pub(super) fn random_mac() -> Result<MacAddr, Problem> {
    let mut random = [0; 3];
    getrandom::fill(&mut random)
        .map_err(|error| problem::internal(format!("no random numbers: {error}")))?;
    let [a, b, c] = random;
    Ok(MacAddr([0x52, 0x54, 0x00, a, b, c]))
}

impl Manager {
    /// The UUID that the document's network has or gets. A document without one means the
    /// network of its name, if there is one.
    ///
    /// # Errors
    /// libvirt's, when name and UUID belong to different networks.
    pub(super) fn identify(&self, document: &model::Network) -> Result<Uuid, Problem> {
        let tables = self.tables();
        let named = tables.network_named(&document.name);
        let Some(uuid) = document.uuid else {
            return Ok(named.map_or_else(Uuid::new_v4, |network| network.uuid));
        };
        if let Some(other) = tables.networks.get(&uuid).filter(|other| other.name != document.name)
        {
            return Err(about(
                Code::NetworkExists,
                &other.name,
                format!(
                    "operation failed: network '{}' is already defined with uuid {uuid}",
                    other.name
                ),
            ));
        }
        match named {
            Some(other) if other.uuid != uuid => Err(about(
                Code::NetworkExists,
                &other.name,
                format!(
                    "operation failed: network '{}' already exists with uuid {}",
                    other.name, other.uuid
                ),
            )),
            _ => Ok(uuid),
        }
    }

    /// Fills in what the document left open. What an earlier definition of the same network got
    /// stays, so that defining it again changes nothing.
    ///
    /// # Errors
    /// A bridge name that another network has; no free name for a template.
    pub(super) async fn complete(
        &self,
        uuid: Uuid,
        mut model: model::Network,
    ) -> Result<Arc<model::Network>, Problem> {
        model.uuid = Some(uuid);
        if !has_gateway(&model) {
            return Ok(Arc::new(model));
        }
        let earlier = {
            let tables = self.tables();
            tables.networks.get(&uuid).and_then(|network| {
                network.persistent.clone().or_else(|| Some(Arc::clone(network.current()?)))
            })
        };
        if model.mac.is_none() {
            model.mac = match earlier.as_ref().and_then(|earlier| earlier.mac) {
                Some(mac) => Some(mac),
                None => Some(random_mac()?),
            };
        }
        let earlier = earlier.as_deref().and_then(gateway_interface);
        model.bridge.name = Some(self.bridge_name(uuid, &model, earlier).await?);
        Ok(Arc::new(model))
    }

    async fn bridge_name(
        &self,
        uuid: Uuid,
        model: &model::Network,
        earlier: Option<&str>,
    ) -> Result<String, Problem> {
        let template = match &model.bridge.name {
            Some(name) if !name.contains("%d") => {
                if let Some(owner) = self.tables().bridge_owner(name, uuid) {
                    return Err(Problem {
                        causes: vec![format!("network '{}' has it", owner.name)],
                        ..about(
                            Code::InvalidArgument,
                            name,
                            format!("internal error: bridge name '{name}' already in use."),
                        )
                    });
                }
                return Ok(name.clone());
            }
            Some(template) => template.as_str(),
            None => "virbr%d",
        };
        let (before, after) = template.split_once("%d").unwrap_or((template, ""));
        if let Some(name) = earlier.filter(|name| {
            name.strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|number| number.parse::<u32>().is_ok())
        }) {
            return Ok(name.to_owned());
        }
        let taken: BTreeSet<String> = {
            let tables = self.tables();
            let definitions = tables.networks.values().flat_map(|network| {
                let live = network.live.as_ref().map(|live| &live.definition);
                live.into_iter().chain(network.persistent.as_ref())
            });
            definitions.filter_map(|definition| definition.bridge.name.clone()).collect()
        };
        for number in 0..=MAX_BRIDGE {
            let name = format!("{before}{number}{after}");
            if !taken.contains(&name)
                && !self.host.link_exists(&name).await.map_err(|error| problem::host(&error))?
            {
                return Ok(name);
            }
        }
        Err(problem::internal(format!(
            "internal error: Bridge generation exceeded max id {MAX_BRIDGE}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(bridge: &str) -> model::Network {
        let mut model = model::Network { name: "n".to_owned(), ..model::Network::default() };
        model.bridge.name = Some(bridge.to_owned());
        model
    }

    #[test]
    fn interface_names_that_the_kernel_would_refuse() {
        for bad in
            ["", ".", "..", "a/b", "a b", "a\nb", "sixteen-letters-", "%x", "template-long%d"]
        {
            assert!(check_names(&named(bad)).is_err(), "{bad:?}");
        }
        for good in ["virbr0", "virbr%d", "fifteen-letters", "table"] {
            check_names(&named(good)).expect(good);
        }
    }
}
