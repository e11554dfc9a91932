//! Configuration: command line over `NETLOOM_*` over `vswitchd.toml` over defaults.
//!
//! The file is optional; a key that is not known is refused with its line, because a misspelt
//! key would otherwise be ignored in silence.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use api::MAX_QUEUE_PAIRS;
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use switch::{BridgeConfig, Fdb};
use thiserror::Error;

/// The netloom daemon: virtual networks for KVM guests.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "vswitchd", version)]
pub struct Args {
    /// Name of this daemon on the host; paths, tables and interfaces derive from it
    #[arg(long, env = "NETLOOM_INSTANCE", default_value = api::Instance::DEFAULT)]
    pub instance: String,
    /// Directory that stands for / in all paths of the instance
    #[arg(long, env = "NETLOOM_ROOT", default_value = "/")]
    pub root: PathBuf,
    /// Configuration file [default: vswitchd.toml in the instance's configuration directory]
    #[arg(long, env = "NETLOOM_CONFIG")]
    pub config: Option<PathBuf>,
    /// Check configuration and definitions, print what is wrong, and exit
    #[arg(long)]
    pub check: bool,
    /// Remove everything that this instance made on the host, and exit
    #[arg(long, conflicts_with = "check")]
    pub teardown: bool,
    /// Replace the daemon that runs, without guests noticing: the new one goes on with its connections
    #[arg(long, conflicts_with_all = ["check", "teardown"])]
    pub take_over: bool,

    /// Datapath worker threads
    #[arg(long, env = "NETLOOM_WORKERS")]
    pub workers: Option<usize>,
    /// CPUs for the workers, one each [default: not pinned]
    #[arg(long, env = "NETLOOM_CPUS", value_delimiter = ',')]
    pub cpus: Option<Vec<usize>>,
    /// How long a worker polls idle rings before it sleeps, in microseconds
    #[arg(long, env = "NETLOOM_SPIN_US")]
    pub spin_us: Option<u32>,
    /// How often queues may move from a busy worker to one with less to do, in seconds; 0: never
    #[arg(long, env = "NETLOOM_REBALANCE_S")]
    pub rebalance_s: Option<u32>,
    /// Addresses that the forwarding table of one network can hold
    #[arg(long, env = "NETLOOM_FDB_ENTRIES", value_name = "N")]
    pub fdb_entries: Option<usize>,
    /// Addresses that one guest's port may own in it
    #[arg(long, env = "NETLOOM_FDB_ENTRIES_PER_GUEST", value_name = "N")]
    pub fdb_entries_per_guest: Option<usize>,
    /// What to log: a level, or per-module filters
    #[arg(long, env = "NETLOOM_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// How to write the log
    #[arg(long, env = "NETLOOM_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Group that may use the API socket
    #[arg(long, env = "NETLOOM_API_GROUP")]
    pub api_group: Option<String>,
    /// Mode of the API socket, octal
    #[arg(long, env = "NETLOOM_API_MODE", value_parser = octal)]
    pub api_mode: Option<u32>,
    /// DNS servers for names that are not ours, in place of resolv.conf's
    #[arg(long, env = "NETLOOM_DNS_UPSTREAMS", value_delimiter = ',')]
    pub dns_upstreams: Option<Vec<Upstream>>,
    /// Addresses that one port may hold
    #[arg(long, env = "NETLOOM_DHCP_LEASES_PER_PORT", value_name = "N")]
    pub dhcp_leases_per_port: Option<usize>,
    /// Owner of vhost-user sockets, where the port names none
    #[arg(long, env = "NETLOOM_SOCKET_OWNER", value_name = "USER")]
    pub socket_owner: Option<String>,
    /// Group of vhost-user sockets, where the port names none
    #[arg(long, env = "NETLOOM_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Mode of vhost-user sockets, octal, where the port names none
    #[arg(long, env = "NETLOOM_SOCKET_MODE", value_name = "MODE", value_parser = octal)]
    pub socket_mode: Option<u32>,
    /// SELinux context of vhost-user sockets, where the port names none
    #[arg(long, env = "NETLOOM_SOCKET_CONTEXT", value_name = "CONTEXT")]
    pub socket_context: Option<String>,
    /// Guests that a network's hub socket takes; 0: no hub sockets
    #[arg(long, env = "NETLOOM_HUB_GUESTS", value_name = "N")]
    pub hub_guests: Option<usize>,
    /// Pairs of queues offered to a guest on a hub socket
    #[arg(long, env = "NETLOOM_HUB_QUEUE_PAIRS", value_name = "N")]
    pub hub_queue_pairs: Option<u16>,
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not an octal mode from 0 to 777".to_owned()),
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A DNS server: an address, with or without a port (53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream(pub SocketAddr);

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(SocketAddr::new(ip, 53)));
        }
        text.parse()
            .map(Self)
            .map_err(|_| format!("{text:?} is not an address, ADDRESS:PORT or [IPV6-ADDRESS]:PORT"))
    }
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    datapath: FileDatapath,
    fdb: FileFdb,
    log: FileLog,
    api: FileApi,
    dns: FileDns,
    dhcp: FileDhcp,
    ports: FilePorts,
    hub: FileHub,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileDatapath {
    workers: Option<usize>,
    cpus: Option<Vec<usize>>,
    spin_us: Option<u32>,
    rebalance_s: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileFdb {
    entries: Option<usize>,
    entries_per_guest: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    level: Option<String>,
    format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileApi {
    group: Option<String>,
    #[serde(deserialize_with = "file_mode")]
    mode: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileDns {
    upstreams: Option<Vec<Upstream>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileDhcp {
    leases_per_port: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FilePorts {
    socket_owner: Option<String>,
    socket_group: Option<String>,
    #[serde(deserialize_with = "file_mode")]
    socket_mode: Option<u32>,
    socket_context: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileHub {
    guests: Option<usize>,
    queue_pairs: Option<u16>,
}

/// What holds after all sources were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub workers: usize,
    pub cpus: Vec<usize>,
    pub spin: Duration,
    /// `None`: queues stay with their worker.
    pub rebalance: Option<Duration>,
    /// Of one network.
    pub fdb_entries: usize,
    /// So that none can take the whole table.
    pub fdb_entries_per_guest: usize,
    pub log_level: String,
    pub log_format: LogFormat,
    pub api_group: Option<String>,
    pub api_mode: u32,
    /// Empty: from resolv.conf.
    pub dns_upstreams: Vec<SocketAddr>,
    /// Addresses that one guest may hold, so that none can take a whole range.
    pub dhcp_leases_per_port: usize,
    pub socket_owner: Option<String>,
    pub socket_group: Option<String>,
    pub socket_mode: u32,
    pub socket_context: Option<String>,
    /// How many guests a hub socket takes; without any there are no hub sockets.
    pub hub_guests: usize,
    pub hub_queue_pairs: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            cpus: Vec::new(),
            spin: Duration::from_micros(50),
            rebalance: Some(Duration::from_secs(10)),
            fdb_entries: Fdb::DEFAULT_MAX_ENTRIES,
            fdb_entries_per_guest: BridgeConfig::DEFAULT_MAX_ENTRIES_PER_GUEST,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            api_group: None,
            api_mode: 0o660,
            dns_upstreams: Vec::new(),
            dhcp_leases_per_port: 16,
            socket_owner: None,
            socket_group: None,
            socket_mode: 0o660,
            socket_context: None,
            hub_guests: 64,
            hub_queue_pairs: 1,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}, line {line}: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{key}: {message}")]
    Value { key: &'static str, message: String },
}

impl Config {
    /// # Errors
    /// An unreadable file (a missing one only when it was asked for by name), an unknown key, a
    /// value out of range.
    pub fn load(args: &Args, config_dir: &Path) -> Result<Self, ConfigError> {
        let path = args.config.clone().unwrap_or_else(|| config_dir.join("vswitchd.toml"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.config.is_none() => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let file: FileConfig = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            line: error.span().map_or(1, |span| {
                1 + text.as_bytes().iter().take(span.start).filter(|&&b| b == b'\n').count()
            }),
            message: words(error.message()),
            path,
        })?;
        Self::merge(args, file)
    }

    fn merge(args: &Args, file: FileConfig) -> Result<Self, ConfigError> {
        let default = Self::default();
        let config = Self {
            workers: args.workers.or(file.datapath.workers).unwrap_or(default.workers),
            cpus: args.cpus.clone().or(file.datapath.cpus).unwrap_or_default(),
            spin: args
                .spin_us
                .or(file.datapath.spin_us)
                .map_or(default.spin, |us| Duration::from_micros(us.into())),
            rebalance: args
                .rebalance_s
                .or(file.datapath.rebalance_s)
                .map_or(default.rebalance, |s| (s > 0).then(|| Duration::from_secs(s.into()))),
            fdb_entries: args.fdb_entries.or(file.fdb.entries).unwrap_or(default.fdb_entries),
            fdb_entries_per_guest: args
                .fdb_entries_per_guest
                .or(file.fdb.entries_per_guest)
                .unwrap_or(default.fdb_entries_per_guest),
            log_level: args.log_level.clone().or(file.log.level).unwrap_or(default.log_level),
            log_format: args.log_format.or(file.log.format).unwrap_or_default(),
            api_group: args.api_group.clone().or(file.api.group),
            api_mode: args.api_mode.or(file.api.mode).unwrap_or(default.api_mode),
            dns_upstreams: args
                .dns_upstreams
                .clone()
                .or(file.dns.upstreams)
                .unwrap_or_default()
                .into_iter()
                .map(|upstream| upstream.0)
                .collect(),
            dhcp_leases_per_port: args
                .dhcp_leases_per_port
                .or(file.dhcp.leases_per_port)
                .unwrap_or(default.dhcp_leases_per_port),
            socket_owner: args.socket_owner.clone().or(file.ports.socket_owner),
            socket_group: args.socket_group.clone().or(file.ports.socket_group),
            socket_mode: args.socket_mode.or(file.ports.socket_mode).unwrap_or(default.socket_mode),
            socket_context: args.socket_context.clone().or(file.ports.socket_context),
            hub_guests: args.hub_guests.or(file.hub.guests).unwrap_or(default.hub_guests),
            hub_queue_pairs: args
                .hub_queue_pairs
                .or(file.hub.queue_pairs)
                .unwrap_or(default.hub_queue_pairs),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value =
            |key, message: &str| Err(ConfigError::Value { key, message: message.to_owned() });
        if !(1..=64).contains(&self.workers) {
            return value("datapath.workers", "must be from 1 to 64");
        }
        if !self.cpus.is_empty() && self.cpus.len() != self.workers {
            return value("datapath.cpus", "must name one CPU for each worker");
        }
        let twice = |(at, cpu)| self.cpus[..at].contains(cpu);
        if self.cpus.iter().enumerate().any(twice) {
            return value("datapath.cpus", "must name each CPU once");
        }
        if self.spin > Duration::from_secs(1) {
            return value("datapath.spin_us", "must be at most 1000000");
        }
        if !(1024..=Fdb::MAX_ENTRIES).contains(&self.fdb_entries) {
            return value("fdb.entries", "must be from 1024 to 1000000");
        }
        if !(1..=self.fdb_entries).contains(&self.fdb_entries_per_guest) {
            return value("fdb.entries_per_guest", "must be from 1 to fdb.entries");
        }
        for (key, mode) in [("api.mode", self.api_mode), ("ports.socket_mode", self.socket_mode)] {
            if mode > 0o777 {
                return value(key, "must be a file mode such as 0o660");
            }
        }
        if self.dhcp_leases_per_port == 0 {
            return value("dhcp.leases_per_port", "must be at least 1");
        }
        if self.hub_guests > 4096 {
            return value("hub.guests", "must be from 0 to 4096");
        }
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.hub_queue_pairs) {
            return Err(ConfigError::Value {
                key: "hub.queue_pairs",
                message: format!("must be from 1 to {MAX_QUEUE_PAIRS}"),
            });
        }
        crate::log::filter(&self.log_level)
            .map_err(|message| ConfigError::Value { key: "log.level", message })?;
        for (key, group) in
            [("api.group", &self.api_group), ("ports.socket_group", &self.socket_group)]
        {
            if let Some(group) = group {
                crate::account::group(group)
                    .map_err(|error| ConfigError::Value { key, message: error.to_string() })?;
            }
        }
        if let Some(owner) = &self.socket_owner {
            crate::account::user(owner).map_err(|error| ConfigError::Value {
                key: "ports.socket_owner",
                message: error.to_string(),
            })?;
        }
        if let Some(context) = &self.socket_context {
            crate::selinux::check(context).map_err(|error| ConfigError::Value {
                key: "ports.socket_context",
                message: error.to_string(),
            })?;
        }
        Ok(())
    }
}

/// serde names Rust's types.
fn words(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "usize" | "u16" | "u32" => "a whole number",
        "a sequence" => "a list",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    };
    format!("{found}, expected {expected}")
}

/// The bits of a file mode, which TOML writes as 0o660.
fn file_mode<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    struct Bits;
    impl serde::de::Visitor<'_> for Bits {
        type Value = u32;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a file mode such as 0o660, without quotes")
        }

        fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<u32, E> {
            let refused = || E::invalid_value(serde::de::Unexpected::Signed(value), &self);
            u32::try_from(value).map_err(|_| refused())
        }
    }
    deserializer.deserialize_u32(Bits).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, args: &Args) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("vswitchd.toml"), text).expect("configuration file");
        Config::load(args, dir.path())
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = load("[datapath]\nworkers = 1\nspin = 5\n", &Args::default())
            .expect_err("unknown key")
            .to_string();
        assert!(error.contains("line 3") && error.contains("spin"), "{error}");
    }

    #[test]
    fn the_flag_beats_the_file_and_the_file_the_default() {
        let text = "[datapath]\nworkers = 2\nspin_us = 7\nrebalance_s = 0\n[dns]\nupstreams = ['192.0.2.1']\n";
        let args = Args { workers: Some(3), ..Args::default() };
        let config = load(text, &args).expect("configuration");
        assert_eq!(config.workers, 3);
        assert_eq!(config.spin, Duration::from_micros(7));
        assert_eq!(config.rebalance, None);
        assert_eq!(config.dns_upstreams, ["192.0.2.1:53".parse().expect("address")]);
        assert_eq!(config.log_level, "info");
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        Config::load(&Args::default(), dir.path()).expect("defaults");
        let args = Args { config: Some(dir.path().join("absent.toml")), ..Args::default() };
        assert!(matches!(Config::load(&args, dir.path()), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (text, key) in [
            ("[datapath]\nworkers = 0\n", "datapath.workers"),
            ("[datapath]\ncpus = [0, 1]\n", "datapath.cpus"),
            ("[datapath]\nworkers = 2\ncpus = [1, 1]\n", "datapath.cpus"),
            ("[fdb]\nentries = 100\n", "fdb.entries"),
            ("[fdb]\nentries = 2000\nentries_per_guest = 2001\n", "fdb.entries_per_guest"),
            ("[log]\nlevel = 'vswitchd=loud'\n", "log.level"),
            ("[log]\nlevel = 'loud'\n", "log.level"),
            ("[log]\nlevel = 'info,loud'\n", "log.level"),
            ("[api]\ngroup = 'no-such-group-here'\n", "api.group"),
            ("[api]\nmode = 0o7777\n", "api.mode"),
            ("[ports]\nsocket_mode = 0o1660\n", "ports.socket_mode"),
            ("[hub]\nguests = 5000\n", "hub.guests"),
            ("[hub]\nqueue_pairs = 0\n", "hub.queue_pairs"),
            ("[ports]\nsocket_owner = 'no-such-user-here'\n", "ports.socket_owner"),
            ("[ports]\nsocket_context = 'no:such:context'\n", "ports.socket_context"),
        ] {
            let error = load(text, &Args::default()).expect_err(text).to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn wrong_types_are_named_in_words_of_the_file() {
        for (text, words) in [
            ("datapath = 3\n", "line 1: invalid type: integer `3`, expected a table"),
            (
                "\n[datapath]\nworkers = 'two'\n",
                "line 3: invalid type: string \"two\", expected a whole",
            ),
            ("[datapath]\nspin_us = 1.5\n", "expected a whole number"),
            ("[hub]\nguests = -1\n", "integer `-1`, expected a whole number"),
            ("[dns]\nupstreams = '192.0.2.1'\n", "expected a list"),
            ("[api]\nmode = '0660'\n", "expected a file mode such as 0o660, without quotes"),
            ("[ports]\nsocket_mode = -1\n", "expected a file mode such as 0o660"),
            ("[log]\nformat = 'xml'\n", "expected `text` or `json`"),
            ("[api\n", "line 1: "),
        ] {
            let error = load(text, &Args::default()).expect_err(text).to_string();
            assert!(error.contains("vswitchd.toml") && error.contains(words), "{error}");
        }
        load("[log]\nlevel = 'warn,vswitchd::network=debug'\n", &Args::default()).expect("filters");
    }

    #[test]
    fn the_shipped_example_is_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/vswitchd.toml");
        let text = std::fs::read_to_string(path).expect("example");
        assert_eq!(load(&text, &Args::default()).expect("example"), Config::default());
        // Every commented setting is one that exists.
        let all: String = text
            .lines()
            .map(|line| {
                let bare = line.strip_prefix('#').unwrap_or(line);
                if bare.contains(" = ") && !bare.starts_with(' ') { bare } else { line }
            })
            .filter(|line| !["group", "owner", "context"].iter().any(|word| line.contains(word)))
            .fold(String::new(), |all, line| all + line + "\n");
        load(&all, &Args::default()).expect("example with everything switched on");
    }
}
