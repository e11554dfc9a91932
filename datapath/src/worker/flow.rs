//! Which of a port's queues a frame belongs to: frames of one flow stay in order.

use wire::vlan;

/// A number that is the same for all frames of a flow: from addresses and ports where they can be read, else from the MAC
/// addresses. Fragments have no ports.
pub(crate) fn hash(head: &[u8]) -> u32 {
    let word = |at: usize| -> u64 {
        head.get(at..at + 4).map_or(0, |b| u64::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]])))
    };
    let short =
        |at: usize| -> u16 { head.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])) };
    let mut network = 14;
    let mut ethertype = short(12);
    while vlan::is_tpid(ethertype) && network < 22 {
        ethertype = short(network + 2);
        network += vlan::TAG_LEN;
    }
    let mut sum = match ethertype {
        0x0800 => {
            let protocol = head.get(network + 9).copied().unwrap_or(0);
            let header = usize::from(head.get(network).copied().unwrap_or(0) & 15) * 4;
            let fragment = short(network + 6) & 0x3fff != 0;
            let ports =
                if matches!(protocol, 6 | 17) && !fragment { word(network + header) } else { 0 };
            mix(word(network + 12) << 32 | word(network + 16)) ^ ports
        }
        0x86dd => {
            let protocol = head.get(network + 6).copied().unwrap_or(0);
            let ports = if matches!(protocol, 6 | 17) { word(network + 40) } else { 0 };
            let address = |at: usize| {
                mix(word(at) << 32 | word(at + 4)) ^ mix(word(at + 8) << 32 | word(at + 12))
            };
            address(network + 8) ^ address(network + 24).rotate_left(17) ^ ports
        }
        _ => word(0) << 32 ^ word(4) << 16 ^ word(8),
    };
    sum = mix(sum);
    (sum >> 32) as u32
}

/// Spreads every bit over the upper half.
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: u16, vlan: bool) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if vlan {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(source.to_be_bytes());
        frame.extend([0, 80, 0, 20, 0, 0]);
        frame
    }

    #[test]
    fn flows_spread_over_queues_and_stay_together() {
        let mut queues = [0; 4];
        for port in 0..4000 {
            queues[hash(&udp(port, false)) as usize % 4] += 1;
            assert_eq!(hash(&udp(port, false)), hash(&udp(port, false)));
            assert_eq!(hash(&udp(port, true)), hash(&udp(port, false)));
        }
        assert!(queues.iter().all(|&n| (800..1200).contains(&n)), "{queues:?}");
    }

    #[test]
    fn every_cut_of_a_frame_has_a_hash() {
        let frame = udp(7, true);
        for len in 0..frame.len() {
            hash(&frame[..len]);
        }
    }
}
