//! Which servers are asked for a name.

use std::collections::HashMap;
use std::fs::Metadata;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::config::Config;
use super::names::is_in;

/// resolv.conf is looked at this often at most.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A server that did not answer comes after the others for this long.
const SHUN: Duration = Duration::from_secs(30);
/// Servers of resolv.conf beyond this are left out.
const MAX_SERVERS: usize = 8;

/// The way to the servers, and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    checked: Option<Duration>,
    stamp: Option<(u64, i64, i64, u64)>,
    resolv_conf: Vec<SocketAddr>,
    shunned: HashMap<SocketAddr, Duration>,
}

impl Upstreams {
    /// Servers for a name, in the order in which to ask them. Empty: nobody to ask.
    pub(super) fn servers(
        &mut self,
        config: &Config,
        name: &str,
        now: Duration,
    ) -> Vec<SocketAddr> {
        let mut servers = self.configured(config, name, now);
        servers.retain(|server| server.port() != 53 || !config.own_addresses.contains(server.ip()));
        self.shunned.retain(|_, until| *until > now);
        // A stable sort: the configured order among those that answer.
        servers.sort_by_key(|server| self.shunned.contains_key(server));
        servers
    }

    pub(super) fn no_answer(&mut self, server: SocketAddr, now: Duration) {
        self.shunned.insert(server, now + SHUN);
    }

    pub(super) fn answered(&mut self, server: SocketAddr) {
        self.shunned.remove(&server);
    }

    fn configured(&mut self, config: &Config, name: &str, now: Duration) -> Vec<SocketAddr> {
        let domain = |domain: &Option<String>| {
            domain.as_ref().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase())
        };
        let special = config.forwarders.iter().filter_map(|f| Some((domain(&f.domain)?, f.addr)));
        let special = special.filter(|(domain, _)| is_in(name, domain));
        let special: Vec<(String, Option<SocketAddr>)> = special.collect();
        if let Some(longest) = special.iter().map(|(domain, _)| domain.len()).max() {
            let of_longest = special.iter().filter(|(domain, _)| domain.len() == longest);
            let servers: Vec<SocketAddr> = of_longest.filter_map(|(_, addr)| *addr).collect();
            if !servers.is_empty() {
                return servers;
            }
        }
        let general = config.forwarders.iter().filter(|forwarder| forwarder.domain.is_none());
        let general: Vec<SocketAddr> = general.filter_map(|forwarder| forwarder.addr).collect();
        if !general.is_empty() {
            return general;
        }
        if !config.default_upstreams.is_empty() {
            return config.default_upstreams.clone();
        }
        if let Some(path) = &config.resolv_conf {
            self.reread(path, now);
            return self.resolv_conf.clone();
        }
        Vec::new()
    }

    fn reread(&mut self, path: &Path, now: Duration) {
        if self.checked.is_some_and(|checked| now < checked + CHECK_EVERY) {
            return;
        }
        self.checked = Some(now);
        // Without the file there is nobody to ask; it may come back.
        let stamp = |meta: Metadata| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
        let stamp = std::fs::metadata(path).ok().map(stamp);
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let text = std::fs::read(path).unwrap_or_default();
        self.resolv_conf = nameservers(&String::from_utf8_lossy(&text));
    }
}

/// The servers that a resolv.conf names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    lines.filter_map(server).take(MAX_SERVERS).collect()
}

/// An address, with `%interface` if it is link-local.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((ip, scope)) = text.split_once('%') else {
        return text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53));
    };
    let scope = scope.parse().ok().or_else(|| crate::sys::interface_index(scope))?;
    Some(SocketAddrV6::new(ip.parse().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::super::config::Forwarder;
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn order_of_sources() {
        let mut config = Config::new(Vec::new());
        config.resolv_conf = None;
        let mut upstreams = Upstreams::default();
        let mut ask = |config: &Config, name| upstreams.servers(config, name, Duration::ZERO);
        assert_eq!(ask(&config, "a.test"), []);
        config.default_upstreams = vec![addr("192.0.2.1:53")];
        assert_eq!(ask(&config, "a.test"), [addr("192.0.2.1:53")]);
        let to = |domain: Option<&str>, to: Option<&str>| Forwarder {
            domain: domain.map(str::to_owned),
            addr: to.map(addr),
        };
        config.forwarders = vec![
            to(Some("Corp.test"), Some("192.0.2.2:53")),
            to(Some("lab.corp.test"), Some("192.0.2.3:5353")),
            to(Some("www.corp.test."), None),
        ];
        assert_eq!(ask(&config, "x.test"), [addr("192.0.2.1:53")]);
        assert_eq!(ask(&config, "xcorp.test"), [addr("192.0.2.1:53")]);
        assert_eq!(ask(&config, "corp.test"), [addr("192.0.2.2:53")]);
        assert_eq!(ask(&config, "a.lab.corp.test"), [addr("192.0.2.3:5353")]);
        assert_eq!(ask(&config, "www.corp.test"), [addr("192.0.2.1:53")]);
        config.forwarders.push(to(None, Some("192.0.2.4:53")));
        assert_eq!(ask(&config, "x.test"), [addr("192.0.2.4:53")]);
        config.own_addresses.insert("192.0.2.4".parse().expect("an address"));
        assert_eq!(ask(&config, "x.test"), []);
    }

    #[test]
    fn silent_servers_come_last() {
        let mut config = Config::new(Vec::new());
        config.default_upstreams = vec![addr("192.0.2.1:53"), addr("192.0.2.2:53")];
        let mut upstreams = Upstreams::default();
        upstreams.no_answer(addr("192.0.2.1:53"), Duration::ZERO);
        let later = Duration::from_secs(29);
        let [second, first] = [addr("192.0.2.2:53"), addr("192.0.2.1:53")];
        assert_eq!(upstreams.servers(&config, "x.test", later), [second, first]);
        let later = Duration::from_secs(31);
        assert_eq!(upstreams.servers(&config, "x.test", later), [first, second]);
    }

    #[test]
    fn resolv_conf_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        let mut config = Config::new(Vec::new());
        config.resolv_conf = Some(path.clone());
        let mut upstreams = Upstreams::default();
        assert_eq!(upstreams.servers(&config, "x", Duration::ZERO), []);
        std::fs::write(&path, "# c\nsearch x\nnameserver 192.0.2.7\nnameserver\t2001:db8::1\n")
            .expect("it can be written");
        let later = Duration::from_secs(2);
        let expected = [addr("192.0.2.7:53"), addr("[2001:db8::1]:53")];
        assert_eq!(upstreams.servers(&config, "x", later), expected);
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(upstreams.servers(&config, "x", Duration::from_secs(4)), []);
    }

    #[test]
    fn odd_lines() {
        let text = "nameserver\nnameserver x\nnameserver fe80::1%7\n;nameserver 1.2.3.4\n";
        let expected = SocketAddrV6::new("fe80::1".parse().expect("v6"), 53, 0, 7);
        assert_eq!(nameservers(text), [SocketAddr::V6(expected)]);
    }
}
