//! A datapath goes on in another one, as it does in another process, and guests notice nothing.

mod common;

common::packed::on_both_layouts! {
    rings_tables_and_counters_go_on
    what_is_sent_meanwhile_is_forwarded_once
    who_is_not_relieved_goes_on
}

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::handover::{carry, hand_over, import};
use common::{Bench, DEADLINE, Nic, Options, PortOptions, eventually, frame, introduce, mac};
use datapath::{BridgeSpec, Error, Inherited, PortIo, PortSpec, PortState};
use serde_json::Value;
use switch::{Role, VlanMode};
use vhost::VhostBackend;

/// Cards that have heard each other.
fn talking<const N: usize>() -> (Bench, [Nic; N]) {
    let bench = Bench::new(N);
    let mut nics = std::array::from_fn(|at| bench.nic(at, &Options::new(mac(at))));
    introduce(&mut nics.iter_mut().collect::<Vec<_>>());
    (bench, nics)
}

fn exchange(a: &mut Nic, b: &mut Nic, seeds: std::ops::Range<u32>) {
    for seed in seeds {
        let sent = frame(b.mac, a.mac, 60 + seed as usize % 1400, seed);
        a.send(&sent);
        assert_eq!(b.recv().expect("the frame arrives").1, sent);
        let sent = frame(a.mac, b.mac, 60, seed);
        b.send(&sent);
        assert_eq!(a.recv().expect("the answer arrives").1, sent);
    }
}

fn rings_tables_and_counters_go_on() {
    let mut bench = Bench::new(2);
    let mut a = bench.nic(0, &Options { start: 65_000, ..Options::new(mac(0)) });
    let mut b = bench.nic(1, &Options { features: 0, ..Options::new(mac(1)) });
    introduce(&mut [&mut a, &mut b]);
    exchange(&mut a, &mut b, 0..300);
    for round in 1..=20 {
        // Counted after the guest has seen it.
        let count = u64::from(round - 1) * 40 + 301;
        assert!(eventually(|| bench.stats(1).rx_packets == count));
        let before = (bench.stats(0), bench.stats(1));
        let fdb = |bench: &Bench| {
            let mut fdb = bench.datapath.fdb(bench.bridge);
            fdb.iter_mut().for_each(|entry| entry.age = None);
            fdb
        };
        let learned = fdb(&bench);
        assert_eq!(learned.len(), 2);
        hand_over(&mut bench, |_| {});
        assert_eq!((bench.stats(0), bench.stats(1)), before);
        assert_eq!(fdb(&bench), learned);
        bench.wait_state(0, PortState::Up);
        exchange(&mut a, &mut b, round * 1000..round * 1000 + 40);
    }
    // The protocol goes on too.
    assert!(a.frontend.get_features().is_ok());
    let ring = &a.rings[1];
    let end = if a.is_packed() { ring.packed.avail.bits() } else { ring.avail };
    assert_eq!(a.stop_ring(1), end);
}

#[test]
fn ages_of_addresses_go_on() {
    let (mut bench, _nics) = talking::<2>();
    let heard = Instant::now();
    // Again and again: one that makes entries young would keep them so.
    let youngest =
        |bench: &Bench| bench.datapath.fdb(bench.bridge).iter().filter_map(|entry| entry.age).min();
    while youngest(&bench).is_none_or(|age| age < Duration::from_secs(2)) {
        assert!(heard.elapsed() < DEADLINE, "a hand-over makes entries young again");
        hand_over(&mut bench, |_| {});
    }
    for entry in bench.datapath.fdb(bench.bridge) {
        let age = entry.age.expect("a learned entry");
        assert!(age >= Duration::from_secs(2), "a hand-over made it young again: {age:?}");
        assert!(age <= heard.elapsed() + Duration::from_secs(2), "it has aged too fast: {age:?}");
    }
}

/// Frames that were sent while nobody looked are there, each once, and every descriptor comes back once.
fn what_is_sent_meanwhile_is_forwarded_once() {
    let (mut bench, [mut a, mut b]) = talking();
    for round in 0..10 {
        let mut suspended = bench.datapath.suspend().unwrap();
        let (state, mut fds) = carry(&mut suspended);
        // Kicks into nothing: the old one does not look any more.
        for seed in 0..40 {
            a.send(&frame(b.mac, a.mac, 60, round * 100 + seed));
        }
        let imported = import(&bench, state, &mut fds);
        suspended.leave();
        (bench.datapath, bench.events) = imported.start().unwrap();
        for seed in 0..40 {
            let (_, got) = b.recv().expect("a frame of the time between");
            assert_eq!(got, frame(b.mac, a.mac, 60, round * 100 + seed));
        }
        // One that came back twice would leave more than there are.
        assert!(eventually(|| a.is_reaped(0)));
        assert!(b.try_recv(0).is_none(), "a frame came twice");
    }
}

fn who_is_not_relieved_goes_on() {
    let (mut bench, [mut a, mut b]) = talking();
    for round in 0..10 {
        let mut suspended = bench.datapath.suspend().unwrap();
        assert!(matches!(bench.datapath.suspend(), Err(Error::Stopped)));
        let (state, mut fds) = carry(&mut suspended);
        a.send(&frame(b.mac, a.mac, 60, 7));
        if round % 2 == 0 {
            // The other one was ready, and died.
            drop(import(&bench, state, &mut fds));
        }
        drop(fds);
        std::thread::sleep(Duration::from_millis(5));
        assert!(b.try_recv(0).is_none(), "frames move in a datapath that is suspended");
        drop(suspended);
        b.recv().expect("a frame of the time between");
        exchange(&mut a, &mut b, 0..20);
    }
    let c = bench.add(PortOptions::default());
    let mut c = bench.nic(c, &Options::new(mac(2)));
    introduce(&mut [&mut a, &mut b, &mut c]);
}

#[test]
fn listeners_and_half_messages_go_along() {
    let mut bench = Bench::new(3);
    let mut b = bench.nic(1, &Options::new(mac(1)));
    let mut half = UnixStream::connect(bench.path(0)).unwrap();
    // GET_FEATURES: the first bytes of its header before, the rest after.
    let message: Vec<u8> = [1_u32, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    half.write_all(&message[..5]).unwrap();
    // The thread that answers the second of these has read what was there before the first.
    for _ in 0..2 {
        b.frontend.get_features().unwrap();
    }
    let waiting = UnixStream::connect(bench.path(2)).unwrap();
    drop(waiting);
    hand_over(&mut bench, |_| {});
    half.write_all(&message[5..]).unwrap();
    let mut answer = [0; 20];
    std::io::Read::read_exact(&mut half, &mut answer).expect("an answer to the whole message");
    assert_eq!(answer[..4], 1_u32.to_le_bytes());
    drop(half);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let mut c = bench.nic(2, &Options::new(mac(2)));
    introduce(&mut [&mut a, &mut b, &mut c]);
}

#[test]
fn what_nobody_asks_for_ends() {
    let (mut bench, [mut a, mut b]) = talking();
    hand_over(&mut bench, |_| {});
    let spec = |port: usize, isolated| PortSpec {
        id: bench.id(port),
        name: "again".to_owned(),
        bridge: bench.bridge,
        mac: mac(port),
        role: Role::Guest,
        vlan: VlanMode::transparent(),
        isolated,
        mtu: 65_535,
        io: PortIo::Inherited,
    };
    let found = bench.datapath.inherited(bench.id(0));
    assert!(matches!(found, Some(Inherited::VhostUser { queue_pairs: 1 })), "{found:?}");
    bench.datapath.add_bridge(bench.bridge, "bench", BridgeSpec::default()).unwrap();
    bench.datapath.add_port(spec(0, false)).unwrap();
    assert!(matches!(bench.datapath.add_port(spec(0, false)), Err(Error::NoPort(_))));
    exchange(&mut a, &mut b, 0..20);
    bench.datapath.disown();
    assert!(bench.datapath.port_status(bench.id(1)).is_none());
    assert!(b.frontend.get_features().is_err(), "the connection of a port that is no more");
    assert!(a.frontend.get_features().is_ok());
    bench.datapath.disown();
    assert_eq!(bench.datapath.port_status(bench.id(0)).unwrap().state, PortState::Up);
}

/// Another version, or a broken one, may have written anything: a port that makes no sense begins anew.
#[test]
fn nonsense_costs_one_port() {
    let vring = |state: &mut Value, at: usize, field: &str, value: Value| {
        for port in state["ports"].as_array_mut().unwrap() {
            if port["name"] == "port0" {
                let connection = &mut port["io"]["vhost-user"]["endpoint"]["connection"];
                connection["vrings"][at][field] = value;
                return;
            }
        }
        panic!("port0 is not in the state");
    };
    let changes: [(&str, Value); 5] = [
        ("num", 3.into()),
        ("num", 32.into()),
        ("kick", 4_000_000.into()),
        ("addr", serde_json::json!({"desc": 1, "used": 0, "avail": 0, "log": null})),
        ("addr", serde_json::json!({"desc": 1_u64 << 40, "used": 0, "avail": 0, "log": null})),
    ];
    for (field, value) in changes {
        let (mut bench, [a, mut b, mut c]) = talking();
        hand_over(&mut bench, |state| vring(state, 1, field, value.clone()));
        exchange(&mut b, &mut c, 0..20);
        if value != 32 {
            assert!(
                a.frontend.get_features().is_err(),
                "{field} {value}: the connection is closed"
            );
            let mut a = bench.nic(0, &Options::new(mac(0)));
            introduce(&mut [&mut a, &mut b, &mut c]);
        }
    }
    // A position that the ring contradicts is the guest's fault as far as anyone can tell.
    let (mut bench, [a, mut b, mut c]) = talking();
    hand_over(&mut bench, |state| vring(state, 1, "position", 30_000.into()));
    bench.wait_state(0, PortState::Quarantined);
    exchange(&mut b, &mut c, 0..20);
    // What is quarantined stays so, and its frontend can begin anew.
    hand_over(&mut bench, |_| {});
    bench.wait_state(0, PortState::Quarantined);
    drop(a);
    let mut a = bench.nic(0, &Options::new(mac(0)));
    introduce(&mut [&mut a, &mut b, &mut c]);
}

#[test]
fn frames_for_an_engine_wait_for_it() {
    let mut bench = Bench::new(1);
    let (port, handle) = datapath::internal(16);
    // A port may have the id of its bridge.
    let trap = bench.bridge;
    let spec = |io| PortSpec {
        id: trap,
        name: "dhcp".to_owned(),
        bridge: bench.bridge,
        mac: mac(9),
        role: Role::Internal,
        vlan: VlanMode::transparent(),
        isolated: false,
        mtu: 1500,
        io,
    };
    bench.datapath.add_port(spec(PortIo::Internal(port))).unwrap();
    bench.datapath.fdb_add(bench.bridge, mac(9), 0, trap).unwrap();
    let mut a = bench.nic(0, &Options::new(mac(0)));
    let spec = spec(PortIo::Inherited);
    hand_over(&mut bench, |_| {});
    drop(handle);
    let sent = frame(mac(9), a.mac, 100, 1);
    a.send(&sent);
    bench.datapath.add_bridge(bench.bridge, "bench", BridgeSpec::default()).unwrap();
    let id = bench.datapath.inherited_internal(bench.bridge).expect("the engine's port");
    assert_eq!(id, trap);
    let Some(Inherited::Internal(mut handle)) = bench.datapath.inherited(id) else {
        panic!("the engine's port is another one");
    };
    bench.datapath.add_port(spec).unwrap();
    let mut got = Vec::new();
    assert!(eventually(|| {
        handle.recv(&mut got, Some(Duration::from_millis(1))).unwrap();
        !got.is_empty()
    }));
    assert_eq!(got[0].frame, sent);
    let answer = frame(a.mac, mac(9), 80, 2);
    let egress = datapath::Egress { port: bench.id(0), vlan: 0, frame: answer.clone() };
    handle.send(egress).unwrap();
    assert_eq!(a.recv().expect("the engine's answer").1, answer);
}
