//! What a machine and a namespace hold, before and after: the proof that nothing was left.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::netns::{Netns, command};

/// One line per thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Links, routes, rulesets and sockets of the machine's own namespace, and the machine's
    /// namespaces, mounts, hugepages and children of this process.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn machine() -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        network(&mut lines, &[])?;
        for name in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = name.file_name().to_string_lossy().into_owned();
            if !of_another_run(&name) {
                lines.insert(format!("netns {name}"));
            }
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            // Identifiers change when a mount is made again; the rest must not.
            let mount: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
            if !mount.iter().any(|word| of_another_run(word)) {
                lines.insert(format!("mount {}", mount.join(" at ")));
            }
        }
        for line in fs::read_to_string("/proc/meminfo")?.lines() {
            if line.starts_with("HugePages_") {
                lines.insert(line.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
        lines.extend(children().into_iter().map(|child| format!("process {child}")));
        Ok(Self(lines))
    }

    /// Links, routes, rulesets and sockets of a namespace.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn namespace(netns: &Netns) -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        network(&mut lines, &["ip", "netns", "exec", netns.name()])?;
        Ok(Self(lines))
    }

    /// Lines only in `self` (gone, `-`) and only in `after` (new, `+`).
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let gone = self.0.difference(&after.0).map(|line| format!("- {line}"));
        let new = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Namespaces of other processes of the lab come and go beside this one.
fn of_another_run(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let Some((pid, _)) = name.strip_prefix("nl").and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id())
}

fn network(lines: &mut BTreeSet<String>, prefix: &[&str]) -> anyhow::Result<()> {
    let tools: [(&str, &[&str]); 6] = [
        ("link", &["ip", "-o", "link", "show"]),
        ("address", &["ip", "-o", "address", "show", "scope", "global"]),
        ("route", &["ip", "route", "show", "table", "all"]),
        ("route6", &["ip", "-6", "route", "show", "table", "all"]),
        ("nft", &["nft", "list", "ruleset"]),
        ("socket", &["ss", "-H", "-a", "-n", "-t", "-u", "-w", "-0"]),
    ];
    for (what, words) in tools {
        let words = [prefix, words].concat();
        let text = command(Command::new(words[0]).args(&words[1..]))?;
        lines.extend(text.lines().map(|line| format!("{what} {}", stable(what, line))));
    }
    Ok(())
}

/// The line without what changes by itself.
fn stable(what: &str, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match what {
        // Name and address.
        "link" => [words.get(1), words.iter().rev().nth(2)]
            .into_iter()
            .flatten()
            .copied()
            .collect::<Vec<_>>()
            .join(" "),
        "address" => words.iter().skip(1).take(3).copied().collect::<Vec<_>>().join(" "),
        "route6" => {
            let end = words.iter().position(|word| *word == "expires").unwrap_or(words.len());
            words[..end].join(" ")
        }
        // Protocol, state and local address; queues come and go.
        "socket" => words
            .iter()
            .enumerate()
            .filter(|(n, _)| ![2, 3].contains(n))
            .map(|(_, word)| *word)
            .collect::<Vec<_>>()
            .join(" "),
        _ => words.join(" "),
    }
}

/// Command names of this process's children.
fn children() -> Vec<String> {
    let me = std::process::id().to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, fields)) = stat.rsplit_once(')') else { continue };
        let parent = fields.split_whitespace().nth(1);
        if parent == Some(&me)
            && let Some((_, name)) = head.split_once('(')
        {
            names.push(name.to_owned());
        }
    }
    names
}
