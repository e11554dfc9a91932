//! Who listens on an address: the process to name when port 53 is taken.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Host;

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: u32,
    /// The kernel's short name of it (`comm`).
    pub name: String,
}

impl fmt::Display for ProcessInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl Host {
    /// The process with a UDP socket, or a listening TCP socket, that keeps `address` from being
    /// bound: on that address or on the wildcard. `None` when there is none or it is not visible
    /// (another PID namespace).
    pub async fn port_owner(&self, address: SocketAddr) -> Option<ProcessInfo> {
        self.home().run(move || Ok(find(address))).await.ok().flatten()
    }
}

/// For the namespace of the calling thread.
fn find(wanted: SocketAddr) -> Option<ProcessInfo> {
    let mut inodes = Vec::new();
    for (file, tcp) in [("udp", false), ("udp6", false), ("tcp", true), ("tcp6", true)] {
        let Ok(table) = fs::read_to_string(format!("/proc/thread-self/net/{file}")) else {
            continue;
        };
        let sockets = table.lines().skip(1).filter_map(|line| parse(line, tcp));
        inodes.extend(sockets.filter(|(local, _)| collide(*local, wanted)).map(|(_, inode)| inode));
    }
    if inodes.is_empty() { None } else { owner(&inodes) }
}

/// A line of /proc/net/{udp,tcp}[6]: local address and inode, of a socket that takes the port.
fn parse(line: &str, tcp: bool) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    if tcp && state != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each 32-bit word is printed as the machine's integer of the bytes in network order.
    let word = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

/// Whether a socket on `local` is in the way of one on `wanted`. An IPv6 wildcard may take IPv4
/// too; the table does not tell, so it counts.
fn collide(local: SocketAddr, wanted: SocketAddr) -> bool {
    let same = local.ip().to_canonical() == wanted.ip();
    let wildcard = local.ip().is_unspecified() && (local.is_ipv6() || wanted.is_ipv4());
    local.port() == wanted.port() && (same || wildcard)
}

fn owner(inodes: &[u64]) -> Option<ProcessInfo> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Processes come and go, and some may not be looked into.
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = fds.flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(ProcessInfo { pid, name: name.trim_end().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_socket_tables() {
        let udp = "  512: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 20315 2 0000000000000000 0";
        let listening = "   0: 017AA8C0:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0000000000000000 100 0 0 10 0";
        let connected = listening.replace(" 0A ", " 01 ");
        assert_eq!(parse(udp, false), Some(("127.0.0.53:53".parse().unwrap(), 20315)));
        assert_eq!(parse(listening, true), Some(("192.168.122.1:53".parse().unwrap(), 777)));
        assert_eq!(parse(&connected, true), None);
        let v6 = "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 42 2 0 0";
        assert_eq!(parse(v6, false), Some(("[::1]:53".parse().unwrap(), 42)));
        assert_eq!(parse("garbage", false), None);
    }

    #[test]
    fn wildcards_collide_with_specific_addresses() {
        let hit =
            |local: &str, wanted: &str| collide(local.parse().unwrap(), wanted.parse().unwrap());
        assert!(hit("0.0.0.0:53", "192.168.122.1:53"));
        assert!(hit("[::]:53", "192.168.122.1:53"));
        assert!(hit("[::]:53", "[fd00::1]:53"));
        assert!(hit("192.168.122.1:53", "192.168.122.1:53"));
        assert!(!hit("0.0.0.0:53", "[fd00::1]:53"));
        assert!(!hit("127.0.0.53:53", "192.168.122.1:53"));
        assert!(!hit("0.0.0.0:5353", "192.168.122.1:53"));
    }
}
