//! What is measured: one list of named cases, in groups.

use super::peer::{Name, Setup};

/// One thing to measure, of each of its peers.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Group and name: "c/1518".
    pub(super) name: &'static str,
    /// For people.
    pub(super) what: &'static str,
    pub(super) setup: Setup,
    pub(super) peers: &'static [Name],
    pub(super) kind: Kind,
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// `vhost-load run` with these options; frames or bits count.
    Rate { options: &'static [&'static str], unit: RateUnit },
    /// `vhost-load latency` with these options.
    Latency { options: &'static [&'static str] },
    /// DPDK's own driver on both ports.
    ClosedLoop { packed: bool },
    /// iperf3 from namespace to namespace.
    Iperf,
    /// CPU time and memory with silent frontends on all ports.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RateUnit {
    Mpps,
    Gbit,
}

use Name::{Forwarder, Limit, LinuxBridge, OvsDpdk, OvsDpdkSleep, Vswitchd};

const ALL: &[Name] = &[Vswitchd, OvsDpdk, Forwarder, Limit];
const SWITCHES: &[Name] = &[Vswitchd, OvsDpdk];
const SLEEPERS: &[Name] = &[Vswitchd, OvsDpdk, OvsDpdkSleep];
const TWO: Setup = Setup { ports: 2, tso: false };

const fn ports(ports: usize) -> Setup {
    Setup { ports, tso: false }
}

const fn mpps(options: &'static [&'static str]) -> Kind {
    Kind::Rate { options, unit: RateUnit::Mpps }
}

/// All cases. Those that share a set-up are measured in the same turn of a peer.
#[rustfmt::skip]
pub(super) fn all() -> Vec<Case> {
    let case = |name, what, setup, peers, kind| Case { name, what, setup, peers, kind };
    vec![
        case("a/split",     "64 B, one flow, split rings",                TWO, ALL, mpps(&[])),
        case("a/split-mrg", "64 B, one flow, split rings, mergeable",     TWO, ALL, mpps(&["--mergeable"])),
        case("a/packed",    "64 B, one flow, packed rings",               TWO, ALL, mpps(&["--packed"])),
        case("a/packed-mrg","64 B, one flow, packed rings, mergeable",    TWO, ALL, mpps(&["--packed", "--mergeable"])),
        case("a/dpdk",      "64 B, closed loop with DPDK's driver",       TWO, ALL, Kind::ClosedLoop { packed: false }),
        case("a/dpdk-packed","64 B, closed loop with DPDK's driver, packed", TWO, ALL, Kind::ClosedLoop { packed: true }),
        case("b/250",       "64 B, 250 address pairs",                    TWO, SWITCHES, mpps(&["--flows", "250"])),
        case("b/1024",      "64 B, 1,024 address pairs",                  TWO, SWITCHES, mpps(&["--flows", "1024"])),
        // A guest's port may own 1,024 addresses, so 62 silent ones hold all but those of the busy pair.
        case("b/64k",       "64 B, 1,024 address pairs, 64 k addresses known", ports(64), SWITCHES,
             mpps(&["--flows", "1024", "--addresses", "1024", "--pattern", "busy"])),
        case("c/1518",      "1,518 B, one flow, split rings",             TWO, ALL, mpps(&["--bytes", "1518"])),
        case("c/1518-packed","1,518 B, one flow, packed rings",           TWO, ALL, mpps(&["--bytes", "1518", "--packed"])),
        case("c/tso",       "64 KiB TSO frames, split rings",             Setup { ports: 2, tso: true }, &[Vswitchd, OvsDpdk, Limit],
             Kind::Rate { options: &["--tso"], unit: RateUnit::Gbit }),
        case("d/20us",      "round trip, a frame every 20 µs",            TWO, SLEEPERS, Kind::Latency { options: &["--gap", "20", "--samples", "20000"] }),
        case("d/10ms",      "round trip, a frame after 10 ms of silence", TWO, SLEEPERS, Kind::Latency { options: &["--gap", "10000", "--samples", "200"] }),
        case("d/load",      "round trip under 50 % load",                 TWO, SLEEPERS, Kind::Latency { options: &["--gap", "100", "--samples", "5000", "--load", "0.5"] }),
        case("e/one-way",   "64 B, one direction",                        TWO, ALL, mpps(&["--pattern", "one-way"])),
        case("e/8",         "64 B, 8 ports in pairs",                     ports(8), ALL, mpps(&[])),
        case("e/8-all",     "64 B, 8 ports, all to all",                  ports(8), SWITCHES, mpps(&["--pattern", "all-to-all"])),
        case("e/32",        "64 B, 32 ports in pairs",                    ports(32), ALL, mpps(&[])),
        case("e/32-all",    "64 B, 32 ports, all to all",                 ports(32), SWITCHES, mpps(&["--pattern", "all-to-all"])),
        case("e/256-busy",  "64 B, one busy pair among 256 ports",        ports(256), SWITCHES, mpps(&["--pattern", "busy"])),
        case("f/iperf",     "iperf3 between two namespaces",              ports(0), &[Vswitchd, OvsDpdk, LinuxBridge], Kind::Iperf),
        case("g/1",         "idle, 1 frontend",                           ports(1), &[Vswitchd, OvsDpdkSleep], Kind::Idle),
        case("g/32",        "idle, 32 frontends",                         ports(32), &[Vswitchd, OvsDpdkSleep], Kind::Idle),
        case("g/256",       "idle, 256 frontends",                        ports(256), &[Vswitchd, OvsDpdkSleep], Kind::Idle),
    ]
}

/// Those that were chosen: a group's letter, or the beginning of a name. None chosen are all.
pub(super) fn chosen(only: &[String]) -> anyhow::Result<Vec<Case>> {
    let all = all();
    for word in only {
        anyhow::ensure!(
            all.iter().any(|case| matches(case, word)),
            "no case is called {word:?}; `cargo xtask bench vhost --list` shows them"
        );
    }
    let wanted = |case: &Case| only.is_empty() || only.iter().any(|word| matches(case, word));
    Ok(all.into_iter().filter(wanted).collect())
}

/// "a" is a group, "a/split" one case and not "a/split-mrg".
fn matches(case: &Case, word: &str) -> bool {
    case.name == word || case.name.strip_prefix(word).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_group_and_by_name() {
        let names = |only: &[&str]| -> Vec<&str> {
            let only: Vec<String> = only.iter().map(|&word| word.to_owned()).collect();
            chosen(&only).unwrap().iter().map(|case| case.name).collect()
        };
        assert_eq!(names(&["a/split", "b"]), ["a/split", "b/250", "b/1024", "b/64k"]);
        assert_eq!(names(&[]).len(), all().len());
        assert!(chosen(&["x".to_owned()]).is_err());
    }
}
