//! Warnings about other people's rules that will drop guests' traffic.
//!
//! An accept in our table cannot overrule a drop in another one (nftables evaluates every base
//! chain of a hook), so all we can do is to say which chain it is. Rules are never parsed, only
//! the policies of base chains.

use serde_json::Value;

use super::nft;
use crate::host::sysctl;

/// One sentence per foreign chain that drops by policy.
pub(super) fn warnings(own_table: &str, interface: &str) -> Vec<String> {
    let Ok(Some(listing)) = nft::list(&["chains"]) else { return Vec::new() };
    let dropping = dropping(&listing, own_table);
    let mut warnings: Vec<String> =
        dropping.iter().map(|chain| sentence(chain, interface)).collect();
    let forward = dropping.iter().find(|chain| chain.hook == "forward");
    if let Some(chain) = forward {
        let bridged = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"]
            .iter()
            .any(|key| sysctl::value(key).is_some_and(|value| value == "1"));
        if bridged {
            warnings.push(format!(
                "net.bridge.bridge-nf-call-iptables is 1: table {} {}, chain {} also drops frames \
                 between ports of Linux bridges; set it to 0 unless something needs it",
                chain.family, chain.table, chain.name
            ));
        }
    }
    warnings
}

fn sentence(chain: &Dropping, interface: &str) -> String {
    let Dropping { family, table, name, hook } = chain;
    let (what, directions): (_, &[&str]) = if hook == "input" {
        ("that guests send to this host, DNS queries among them,", &["iifname"])
    } else {
        ("that guests send or receive", &["iifname", "oifname"])
    };
    let commands: Vec<String> = directions
        .iter()
        .map(|key| format!("nft insert rule {family} {table} {name} {key} {interface} accept"))
        .collect();
    format!(
        "table {family} {table}, chain {name} drops packets {what} unless a rule there accepts them \
         (policy drop); to accept them: {}",
        commands.join("; ")
    )
}

#[derive(Debug, PartialEq, Eq)]
struct Dropping {
    family: String,
    table: String,
    name: String,
    hook: String,
}

/// Base chains with policy drop at the hooks that guests' packets pass; whatever else the
/// listing holds, also of newer nft versions, is passed over.
fn dropping(listing: &str, own_table: &str) -> Vec<Dropping> {
    let Ok(document) = serde_json::from_str::<Value>(listing) else { return Vec::new() };
    let objects = document["nftables"].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for object in &objects {
        let chain = &object["chain"];
        let text = |field: &str| chain[field].as_str().unwrap_or_default().to_owned();
        let (family, table, hook) = (text("family"), text("table"), text("hook"));
        let ours = family == "inet" && table == own_table;
        let passed = matches!(family.as_str(), "ip" | "ip6" | "inet")
            && matches!(hook.as_str(), "forward" | "input");
        if text("policy") == "drop" && passed && !ours {
            found.push(Dropping { family, table, name: text("name"), hook });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dropping_base_chains_of_others_count() {
        let listing = r#"{"nftables":[
            {"metainfo":{"version":"9"}}, 5, {"chain":null}, {"novelty":{"a":[1]}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"in","hook":"input","policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"out","hook":"output","policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"fwd","hook":"forward","policy":"accept"}},
            {"chain":{"family":"bridge","table":"b","name":"fwd","hook":"forward","policy":"drop"}},
            {"chain":{"family":"inet","table":"netloom","name":"x","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"filter","name":"plain"}}]}"#;
        let names: Vec<String> =
            dropping(listing, "netloom").into_iter().map(|chain| chain.name).collect();
        assert_eq!(names, ["FORWARD", "in"]);
        assert!(dropping("not json", "netloom").is_empty());
        assert!(dropping(r#"{"nftables":7}"#, "netloom").is_empty());
    }
}
