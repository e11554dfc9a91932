use vhost_user::{Action, MEM_SLOTS, Outcome, ProtocolError, Refusal, Request};

use crate::peer::{Peer, fd, fds, is_closed, slot, table, watched};

const MIB: u64 = 1 << 20;
const USER: u64 = 0x7f00_0000_0000;

fn set(peer: &mut Peer, regions: &[[u64; 4]]) -> Result<(), Refusal> {
    match peer.send_with(Request::SET_MEM_TABLE, 0, &table(regions), fds(regions.len())) {
        Ok(action) => {
            assert_eq!(action, Some(Action::Memory));
            Ok(())
        }
        Err(ProtocolError::Refused { refusal, .. }) => Err(refusal),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_table_replaces_all_regions_and_closes_the_old() {
    let mut peer = Peer::negotiated();
    let (old, old_end) = watched();
    peer.send_with(Request::SET_MEM_TABLE, 0, &table(&[[0, MIB, USER, 0]]), vec![old]).unwrap();
    let region = &peer.session.device().regions[0];
    assert_eq!((region.guest_addr, region.size, region.user_addr), (0, MIB, USER));
    set(&mut peer, &[[MIB, MIB, USER, 0], [0, MIB, USER + MIB, MIB]]).unwrap();
    assert!(is_closed(&old_end));
    let offsets: Vec<u64> =
        peer.session.device().regions.iter().map(|region| region.mmap_offset).collect();
    assert_eq!(offsets, [0, MIB], "in the order given");
}

/// User-mode Linux: room for two regions, one used.
#[test]
fn the_payload_may_be_longer_than_its_regions() {
    let mut peer = Peer::negotiated();
    let mut payload = table(&[[0, MIB, USER, 0]]);
    payload.resize(72, 0xee);
    peer.send_with(Request::SET_MEM_TABLE, 0, &payload, fds(1)).unwrap();
    assert_eq!(peer.session.device().regions.len(), 1);
    // The count rules, not the size: two regions need two descriptors.
    payload[0] = 2;
    let result = peer.send_with(Request::SET_MEM_TABLE, 0, &payload, fds(1));
    let refusal = Refusal::FdCount { got: 1, expected: 2 };
    let request = Request::SET_MEM_TABLE;
    assert_eq!(result, Err(ProtocolError::Refused { request, refusal }));
}

#[test]
fn count_and_length_must_agree() {
    let mut peer = Peer::negotiated();
    let mut payload = table(&[[0, MIB, USER, 0]]);
    payload[0] = 2;
    assert_eq!(peer.ack(Request::SET_MEM_TABLE, &payload, fds(2)), 1);
    payload[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(peer.ack(Request::SET_MEM_TABLE, &payload, fds(2)), 1);
    let refused = peer.session.take_refusal().unwrap();
    assert!(refused.to_string().contains("4294967295 memory regions"), "{refused}");
}

#[test]
fn thirty_two_regions_fit_and_none_empties_the_table() {
    let mut peer = Peer::negotiated();
    let regions: Vec<[u64; 4]> = (0..32).map(|n| [n * MIB, MIB, USER + n * MIB, n * MIB]).collect();
    set(&mut peer, &regions).unwrap();
    assert_eq!(peer.session.device().regions.len(), 32);
    set(&mut peer, &[]).unwrap();
    assert!(peer.session.device().regions.is_empty());
}

#[test]
fn bad_regions_are_refused_and_change_nothing() {
    let good = [0, MIB, USER, 0];
    let top = u64::MAX - MIB + 1;
    for (bad, expected) in [
        ([MIB, 0, USER + MIB, 0], Refusal::RegionEmpty { region: 1 }),
        (
            [top, MIB, USER + MIB, 0],
            Refusal::RegionOverflow { region: 1, what: "guest address", start: top, size: MIB },
        ),
        (
            [MIB, MIB, top, 0],
            Refusal::RegionOverflow { region: 1, what: "user address", start: top, size: MIB },
        ),
        (
            [MIB, MIB, USER + MIB, 1 << 63],
            Refusal::RegionOverflow { region: 1, what: "file offset", start: 1 << 63, size: MIB },
        ),
        (
            [MIB - 1, MIB, USER + MIB, 0],
            Refusal::RegionOverlap { first: 0, second: 1, what: "guest address" },
        ),
        (
            [MIB, MIB, USER + MIB - 1, 0],
            Refusal::RegionOverlap { first: 0, second: 1, what: "user address" },
        ),
        (good, Refusal::RegionOverlap { first: 0, second: 1, what: "guest address" }),
    ] {
        let mut peer = Peer::negotiated();
        set(&mut peer, &[[0, 4096, 0, 0]]).unwrap();
        assert_eq!(set(&mut peer, &[good, bad]), Err(expected));
        assert_eq!(peer.session.device().regions[0].size, 4096);
    }
}

#[test]
fn refused_descriptors_are_closed() {
    let mut peer = Peer::negotiated();
    let (read, write) = watched();
    peer.send_with(Request::SET_MEM_TABLE, 0, &table(&[[0, 0, 0, 0]]), vec![read]).unwrap_err();
    assert!(is_closed(&write));
}

#[test]
fn slots_are_added_and_removed() {
    let mut peer = Peer::negotiated();
    for n in 0..MEM_SLOTS as u64 {
        let region = slot([n * MIB, MIB, USER + n * MIB, 0]);
        assert_eq!(peer.ack(Request::ADD_MEM_REG, &region, fds(1)), 0);
    }
    let full = slot([1 << 40, MIB, 1 << 40, 0]);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &full, fds(1)), 1, "no slot left");

    // Found by addresses and size; the descriptor that comes along is closed.
    let (read, write) = watched();
    assert_eq!(peer.ack(Request::REM_MEM_REG, &slot([MIB, MIB, USER + MIB, 99]), vec![read]), 0);
    assert!(is_closed(&write));
    assert_eq!(peer.session.device().regions.len(), MEM_SLOTS - 1);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &full, fds(1)), 0);
    let part = slot([1 << 40, MIB - 1, 1 << 40, 0]);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &part, vec![fd()]), 1, "overlaps the last one");
}

/// QEMU 7.2 with several pairs of queues tells of each region once per pair.
#[test]
fn what_is_said_again_changes_nothing() {
    let mut peer = Peer::negotiated();
    let region = slot([0, MIB, USER, 0]);
    let (first, first_end) = watched();
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &region, vec![first]), 0);
    let (again, again_end) = watched();
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &region, vec![again]), 0);
    assert!(is_closed(&again_end) && !is_closed(&first_end));
    assert_eq!(peer.session.device().regions.len(), 1);
    let elsewhere = slot([0, MIB, USER, MIB]);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &elsewhere, fds(1)), 1, "another part of the file");

    let part = slot([0, MIB - 1, USER, 0]);
    assert_eq!(peer.ack(Request::REM_MEM_REG, &part, Vec::new()), 0);
    assert_eq!(peer.session.device().regions.len(), 1, "not what was named");
    for _ in 0..2 {
        assert_eq!(peer.ack(Request::REM_MEM_REG, &region, Vec::new()), 0);
        assert!(peer.session.device().regions.is_empty() && is_closed(&first_end));
    }
}

#[test]
fn a_region_that_cannot_be_mapped_is_forgotten() {
    let mut peer = Peer::negotiated();
    set(&mut peer, &[[0, MIB, USER, 0]]).unwrap();
    peer.outcome = Outcome::Failed;
    let (read, write) = watched();
    let region = slot([MIB, MIB, USER + MIB, 0]);
    assert_eq!(peer.ack(Request::ADD_MEM_REG, &region, vec![read]), 1);
    assert_eq!(peer.session.device().regions.len(), 1);
    assert!(is_closed(&write));
}
