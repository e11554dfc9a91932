//! Who is at the other end of a hub's connection, and what its port is called.

use api::PortKind;
use uuid::Uuid;
use wire::MacAddr;

/// A process, as far as `/proc` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// `None` for one in another PID namespace.
    pid: Option<u32>,
    command: Option<String>,
    /// Clock ticks from the boot to its start: no two processes share PID and start.
    started: Option<u64>,
}

impl Peer {
    /// `pid` is from `SO_PEERCRED`.
    pub(super) fn of(pid: Option<i32>) -> Self {
        let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0);
        let Some(pid) = pid else { return Self::default() };
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (command, started) = parse(&stat).unzip();
        Self { pid: Some(pid), command, started }
    }

    pub(super) fn kind(&self, queue_pairs: u16) -> PortKind {
        PortKind::Hub { pid: self.pid, command: self.command.clone(), queue_pairs }
    }

    /// Name and UUID of the peer's port, the first of a row that is free. The same process gets the same ones again, so that
    /// its leases stay its own over a reconnect.
    pub(super) fn identity(
        &self,
        network: Uuid,
        free: impl Fn(&str, Uuid) -> bool,
    ) -> (String, Uuid) {
        let base = match (&self.command, self.pid) {
            (Some(command), Some(pid)) => format!("{}-{pid}", port_word(command)),
            _ => "vm".to_owned(),
        };
        let mut at: u16 = 1;
        loop {
            let name = match (at, self.command.is_some()) {
                (1, true) => base.clone(),
                _ => format!("{base}-{at}"),
            };
            let uuid = self.uuid(network, at);
            if free(&name, uuid) {
                return (name, uuid);
            }
            at = at.wrapping_add(1);
        }
    }

    fn uuid(&self, network: Uuid, at: u16) -> Uuid {
        let (Some(pid), Some(started)) = (self.pid, self.started) else { return Uuid::new_v4() };
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&started.to_be_bytes()[2..]);
        bytes[6..8].copy_from_slice(&network.as_bytes()[..2]);
        bytes[8..10].copy_from_slice(&at.to_be_bytes());
        bytes[10..12].copy_from_slice(&network.as_bytes()[2..4]);
        bytes[12..].copy_from_slice(&pid.to_be_bytes());
        Uuid::new_v8(bytes)
    }
}

/// Whether the process runs whose port this was.
pub(super) fn is_running(port: Uuid) -> bool {
    let [a, b, c, d, e, f, .., w, x, y, z] = *port.as_bytes();
    let (pid, started) = (u32::from_be_bytes([w, x, y, z]), [a, b, c, d, e, f]);
    let found = Peer::of(i32::try_from(pid).ok()).started;
    found.is_some_and(|ticks| ticks.to_be_bytes()[2..] == started)
}

/// The address that a guest without one of its own is offered.
pub(super) fn mac(port: Uuid) -> MacAddr {
    // The largest prime below 2²⁴: every bit counts.
    let [.., a, b, c] = (port.as_u128() % 16_777_213).to_be_bytes();
    MacAddr([0x52, 0x54, 0, a, b, c])
}

/// Command and start of `/proc/PID/stat`, see proc_pid_stat(5). A process chooses the bytes of its command.
fn parse(stat: &[u8]) -> Option<(String, u64)> {
    let open = stat.iter().position(|&b| b == b'(')?;
    let close = stat.iter().rposition(|&b| b == b')')?;
    let command = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    // The 22nd field; the one behind the command is the third.
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let started = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((command, started))
}

/// What ports' names may be made of.
fn port_word(command: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let word: String = command.chars().map(plain).take(15).collect();
    let word = word.trim_start_matches(['_', '.', '-']);
    if word.is_empty() { "vm".to_owned() } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(command: &str) -> Peer {
        Peer { pid: Some(1234), command: Some(command.to_owned()), started: Some(567) }
    }

    fn name(command: &str) -> String {
        peer(command).identity(Uuid::nil(), |_, _| true).0
    }

    #[test]
    fn a_port_is_named_after_its_process() {
        assert_eq!(name("qemu-system-x86"), "qemu-system-x86-1234");
        assert_eq!(name("a b/c\n"), "a_b_c_-1234");
        assert_eq!(name("-é-"), "vm-1234");
        assert_eq!(name("x".repeat(99).as_str()).len(), 20);
        let own = Peer::of(i32::try_from(std::process::id()).ok());
        assert!(own.started.is_some_and(|ticks| ticks > 0), "{own:?}");
        let (first, _) = own.identity(Uuid::nil(), |_, _| true);
        assert!(first.ends_with(&format!("-{}", std::process::id())), "{first}");
    }

    #[test]
    fn a_process_without_a_face_is_numbered() {
        for unknown in [Peer::of(None), Peer::of(Some(0)), Peer::of(Some(-1))] {
            let taken = |name: &str, _| name != "vm-1" && name != "vm-2";
            assert_eq!(unknown.identity(Uuid::nil(), taken).0, "vm-3");
        }
    }

    #[test]
    fn the_same_process_is_the_same_port_and_its_second_card_another() {
        let network = Uuid::from_u128(7);
        let first = peer("vmm").identity(network, |_, _| true);
        assert_eq!(peer("vmm").identity(network, |_, _| true), first);
        let second = peer("vmm").identity(network, |_, uuid| uuid != first.1);
        assert_eq!(second.0, "vmm-1234-2");
        assert_ne!(second.1, first.1);
        let later = Peer { started: Some(568), ..peer("vmm") };
        assert_ne!(later.identity(network, |_, _| true).1, first.1);
        assert_ne!(peer("vmm").identity(Uuid::from_u128(8 << 96), |_, _| true).1, first.1);
        assert_ne!(mac(first.1), mac(second.1));
        assert!(!is_running(first.1));
        let own = Peer::of(i32::try_from(std::process::id()).ok());
        assert!(is_running(own.identity(network, |_, _| true).1));
        assert!(mac(first.1).is_station());
    }

    #[test]
    fn commands_with_parentheses_are_read_to_their_end() {
        let stat = b"42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(parse(stat), Some(("a) b (c)".to_owned(), 777)));
        for bad in [&b""[..], b"42 (a", b")(", b"42 (a) S 1 2"] {
            assert_eq!(parse(bad), None);
        }
    }
}
