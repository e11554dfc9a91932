//! The bridge's decision about a frame, from its first bytes.

use std::collections::HashSet;
use std::sync::Arc;

use switch::{
    Bridge, BridgeConfig, Fdb, MacAddr, Native, PortConfig, PortIndex, Role, Seconds, TagOp,
    Verdict, Vid, VidSet, VlanMode, WINDOW_LEN,
};

use crate::input::Input;

const PORTS: u16 = 5;
const ENGINE: PortIndex = PortIndex(4);
const STEPS: usize = 200;
/// Learned addresses of a guest.
const SHARE: usize = 8;

/// Frames from any port of a bridge with access, trunk, isolated and trapped ports.
///
/// # Panics
/// When a copy goes where no copy may go, a tag operation does not fit the frame, or a table outgrows its limits.
pub fn window(data: &[u8]) {
    let bridge = bridge();
    let mut input = Input(data);
    let mut now = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let head = input.u8();
        let ingress = PortIndex(u16::from(head) % (PORTS + 1));
        now += u32::from(head >> 5) * 40;
        let bytes = input.sized();
        let frame = &bytes[..bytes.len().min(WINDOW_LEN)];
        let decision = bridge.decide(ingress, frame, Seconds(now));
        // A tag that is cut off is none; the operations below must fit the frame as it is.
        let tagged =
            frame.len() >= 18 && wire::vlan::is_tpid(u16::from_be_bytes([frame[12], frame[13]]));
        match decision.verdict {
            Verdict::Unicast(egress) => {
                assert_ne!(egress.port, ingress, "back to where it came from");
                check(egress.tag, tagged);
            }
            Verdict::Flood(flood) => {
                let mut seen = HashSet::new();
                for egress in flood {
                    assert_ne!(egress.port, ingress, "back to where it came from");
                    assert!(egress.port.0 < PORTS, "to a port that is not there");
                    assert!(seen.insert(egress.port), "two copies to one port");
                    let isolated = |port: PortIndex| matches!(port.0, 2 | 3);
                    let both = isolated(ingress) && isolated(egress.port);
                    assert!(!both, "between isolated ports");
                    check(egress.tag, tagged);
                }
                assert!(!seen.is_empty());
            }
            Verdict::Trap(port) => assert_eq!(port, ENGINE),
            Verdict::Drop(_) => {}
        }
        if head & 0x10 != 0 {
            bridge.expire(Seconds(now));
        }
    }
    let entries = bridge.fdb().entries();
    assert!(entries.iter().all(|entry| entry.mac.is_station() && entry.port.0 < PORTS));
    for port in 0..PORTS {
        let owned = entries.iter().filter(|entry| entry.port == PortIndex(port)).count();
        assert!(owned <= SHARE + 1, "port {port} owns {owned} entries");
    }
}

fn bridge() -> Bridge {
    let vid = |vid| Vid::new(vid).expect("a VLAN");
    let guest = || PortConfig::new(Role::Guest);
    let allowed: VidSet = [vid(1), vid(2), vid(4094)].into_iter().collect();
    let native = Native { vlan: vid(2), tagged: true };
    let ports = [
        guest(),
        PortConfig { vlan: VlanMode::Trunk { native: Some(native), allowed }, ..guest() },
        PortConfig { isolated: true, ..guest() },
        PortConfig { isolated: true, vlan: VlanMode::Access(vid(1)), ..guest() },
        PortConfig::new(Role::Internal),
    ];
    let config = BridgeConfig {
        trap_dhcp4: Some(ENGINE),
        gateway_v4: vec![[10, 0, 0, 1].into()],
        max_entries_per_guest: SHARE,
        ..BridgeConfig::default()
    };
    let fdb = Arc::new(Fdb::with_seed(32, [1, 2, 3, 4]));
    let gateway = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    fdb.add_static(gateway, Vid::NONE, PortIndex(0)).expect("a station's address");
    let ports: Vec<_> = (0..).map(PortIndex).zip(ports).collect();
    Bridge::new(config, &ports, fdb)
}

fn check(tag: TagOp, tagged: bool) {
    match tag {
        TagOp::Keep => {}
        TagOp::Strip | TagOp::Rewrite(_) => assert!(tagged, "no tag to change"),
        TagOp::Push(tci) => assert!(!tagged && tci.0 & 0xfff != 0, "a second tag, or none"),
    }
}
