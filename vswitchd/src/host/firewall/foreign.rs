//! Warnings about other people's rules that will drop guests' traffic.
//!
//! An accept in our table cannot overrule a drop in another one (nftables evaluates every base
//! chain of a hook), so all we can do is to say which chain it is. Rules are never parsed, only
//! the policies of base chains.

use serde_json::Value;

use super::legacy::{self, Filter};
use super::nft;
use crate::host::sysctl;

/// One sentence per foreign chain that drops by policy.
pub(super) fn warnings(own_table: &str, interface: &str) -> Vec<String> {
    let listing = nft::list(&["chains"]).ok().flatten().unwrap_or_default();
    let Foreign { dropping, firewalld } = read(&listing, own_table);
    let mut warnings: Vec<String> =
        dropping.iter().map(|chain| sentence(chain, interface)).collect();
    if firewalld {
        warnings.push(format!(
            "firewalld is active (table inet firewalld) and refuses what no zone allows: firewall-cmd \
             --zone=trusted --add-interface={interface}"
        ));
    }
    let mut forward = dropping
        .iter()
        .find(|chain| chain.hook == "forward")
        .map(|chain| format!("table {} {}, chain {}", chain.family, chain.table, chain.name));
    for (program, filter) in legacy::filters() {
        if let Filter::Dropping(chains) = &filter
            && chains.iter().any(|chain| chain == "FORWARD")
        {
            forward.get_or_insert(format!("{program}-legacy, chain FORWARD"));
        }
        warnings.extend(legacy_sentences(program, &filter, interface));
    }
    if let Some(chain) = forward {
        let bridged = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"]
            .iter()
            .any(|key| sysctl::value(key).is_some_and(|value| value == "1"));
        if bridged {
            warnings.push(format!(
                "net.bridge.bridge-nf-call-iptables is 1: {chain} also drops frames between ports \
                 of Linux bridges; set it to 0 unless something needs it"
            ));
        }
    }
    warnings
}

fn sentence(chain: &Dropping, interface: &str) -> String {
    let Dropping { family, table, name, hook } = chain;
    let what = lost(hook == "input");
    let directions: &[&str] = if hook == "input" { &["iifname"] } else { &["iifname", "oifname"] };
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

/// Which packets of guests a chain drops.
fn lost(input: bool) -> &'static str {
    if input {
        "that guests send to this host, DNS queries among them,"
    } else {
        "that guests send or receive"
    }
}

fn legacy_sentences(program: &str, filter: &Filter, interface: &str) -> Vec<String> {
    let Filter::Dropping(chains) = filter else {
        return vec![format!(
            "{program}-legacy has a filter table, whose policies cannot be read without \
             {program}-legacy-save (Debian package iptables): if they are DROP, packets of guests \
             are dropped"
        )];
    };
    let of_chain = |chain: &String| {
        let input = chain == "INPUT";
        let directions: &[&str] = if input { &["-i"] } else { &["-i", "-o"] };
        let commands: Vec<String> = directions
            .iter()
            .map(|way| format!("{program}-legacy -I {chain} {way} {interface} -j ACCEPT"))
            .collect();
        format!(
            "{program}-legacy, chain {chain} drops packets {} unless a rule there accepts them \
             (policy DROP); to accept them: {}",
            lost(input),
            commands.join("; ")
        )
    };
    chains.iter().map(of_chain).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Dropping {
    family: String,
    table: String,
    name: String,
    hook: String,
}

/// What a listing of chains shows of other people's firewalls.
#[derive(Debug, Default)]
struct Foreign {
    /// Base chains with policy drop at the hooks that guests' packets pass.
    dropping: Vec<Dropping>,
    /// It accepts by policy and refuses by rules, so its policies tell nothing.
    firewalld: bool,
}

/// Whatever else the listing holds, also of newer nft versions, is passed over.
fn read(listing: &str, own_table: &str) -> Foreign {
    let mut foreign = Foreign::default();
    let Ok(document) = serde_json::from_str::<Value>(listing) else { return foreign };
    for object in document["nftables"].as_array().into_iter().flatten() {
        let chain = &object["chain"];
        let text = |field: &str| chain[field].as_str().unwrap_or_default().to_owned();
        let (family, table, hook) = (text("family"), text("table"), text("hook"));
        let ours = family == "inet" && table == own_table;
        let passed = matches!(family.as_str(), "ip" | "ip6" | "inet")
            && matches!(hook.as_str(), "forward" | "input");
        foreign.firewalld |= passed && table == "firewalld";
        if text("policy") == "drop" && passed && !ours {
            foreign.dropping.push(Dropping { family, table, name: text("name"), hook });
        }
    }
    foreign
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_chains_are_named_with_the_way_out() {
        let forward = Filter::Dropping(vec!["FORWARD".to_owned()]);
        let sentences = legacy_sentences("iptables", &forward, "virbr0");
        assert_eq!(
            sentences,
            ["iptables-legacy, chain FORWARD drops packets that guests send or receive unless a \
              rule there accepts them (policy DROP); to accept them: iptables-legacy -I FORWARD -i \
              virbr0 -j ACCEPT; iptables-legacy -I FORWARD -o virbr0 -j ACCEPT"]
        );
        let unread = legacy_sentences("ip6tables", &Filter::Unread, "virbr0");
        assert!(unread[0].contains("ip6tables-legacy-save"), "{unread:?}");
        assert!(legacy_sentences("iptables", &Filter::Dropping(vec![]), "virbr0").is_empty());
    }

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
        let foreign = read(listing, "netloom");
        let names: Vec<&str> = foreign.dropping.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["FORWARD", "in"]);
        assert!(!foreign.firewalld);
        assert!(read("not json", "netloom").dropping.is_empty());
        assert!(read(r#"{"nftables":7}"#, "netloom").dropping.is_empty());
    }

    #[test]
    fn firewalld_is_known_by_its_table() {
        let listing = r#"{"nftables":[{"chain":{"family":"inet","table":"firewalld",
            "name":"filter_FORWARD","hook":"forward","policy":"accept"}}]}"#;
        let foreign = read(listing, "netloom");
        assert!(foreign.firewalld && foreign.dropping.is_empty());
    }
}
