//! Queues that move between workers under traffic, and where new ones go.

mod common;
mod leaf;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{BROADCAST, Bench, Nic, Options, PortOptions, eventually, frame, mac, udp};
use datapath::{BridgeSpec, Config, Datapath, Error, PortIo};
use switch::{DropReason, Role};
use uuid::Uuid;
use wire::VirtioNetHdr;

const PAIRS: usize = 4;

fn config(rebalance: Option<Duration>) -> Config {
    Config { workers: 2, rebalance, ..Config::default() }
}

fn bench(ports: usize, pairs: usize, rebalance: Option<Duration>) -> Bench {
    let queue_pairs = u16::try_from(pairs).unwrap();
    let options = PortOptions { queue_pairs, ..PortOptions::default() };
    Bench::with(config(rebalance), BridgeSpec::default(), &vec![options; ports])
}

fn card(bench: &Bench, port: usize, pairs: usize) -> Nic {
    let nic = bench.nic(port, &Options { pairs, ..Options::new(mac(port)) });
    let queues = || bench.datapath.port_status(bench.id(port)).unwrap().queue_pairs;
    assert!(eventually(|| usize::from(queues()) == pairs));
    nic
}

/// Ends the other threads of a test, also when this one fails.
struct Over(Arc<AtomicBool>);

impl Over {
    fn new() -> (Self, Arc<AtomicBool>) {
        let over = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&over)), over)
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Which worker has a queue; `None` while it is on its way.
fn worker_of(datapath: &Datapath, port: Uuid, queue: usize) -> Option<usize> {
    datapath
        .workers()
        .iter()
        .position(|worker| worker.queues.iter().any(|q| q.port == port && q.queue == queue))
}

/// The payload counts.
fn numbered(flow: u16, number: u32) -> Vec<u8> {
    let mut sent = udp(flow, number);
    sent[42..46].copy_from_slice(&number.to_be_bytes());
    sent
}

#[test]
fn frames_stay_in_order_while_their_queues_move_between_workers() {
    const FLOWS: u16 = 16;
    const ROUNDS: u32 = 1500;
    /// Fewer than the receiver has buffers for: a drop would be the switch's fault.
    const AHEAD: u64 = 100;
    let bench = bench(2, PAIRS, None);
    let (mut a, mut b) = (card(&bench, 0, PAIRS), card(&bench, 1, PAIRS));
    b.send(&frame(BROADCAST, b.mac, 60, 0));
    assert!(eventually(|| (0..PAIRS).any(|pair| a.try_recv(pair).is_some())));

    let (end, over) = Over::new();
    let (mut sent, mut received) = (0_u64, 0_u64);
    let mut next = [0; FLOWS as usize];
    let lost = || bench.drops(1, DropReason::TxContended);
    std::thread::scope(|scope| {
        let end = end;
        let (datapath, ports) = (bench.datapath.clone(), [bench.id(0), bench.id(1)]);
        let mover = scope.spawn({
            let over = Arc::clone(&over);
            move || {
                let mut moves = 0;
                while !over.load(Ordering::Relaxed) {
                    let (port, queue) = (ports[moves / 8 % 2], moves % PAIRS);
                    let worker = (moves / PAIRS + moves) % 2;
                    datapath.move_queue(port, queue, worker).unwrap();
                    moves += 1;
                }
                moves
            }
        });
        let mut take = |received: &mut u64| {
            for pair in 0..PAIRS {
                while let Some((_, got)) = b.try_recv(pair) {
                    let flow = u16::from_be_bytes([got[34], got[35]]);
                    let number = u32::from_be_bytes(got[42..46].try_into().unwrap());
                    assert_eq!(got, numbered(flow, number), "intact");
                    // One that a worker gave up on because the other was put aside with the ring is counted.
                    let next = &mut next[usize::from(flow)];
                    assert!(number >= *next, "flow {flow}: {number} comes after {next}");
                    *next = number + 1;
                    *received += 1;
                }
            }
        };
        for round in 0..ROUNDS {
            for flow in 0..FLOWS {
                a.send_with(
                    usize::from(flow) % PAIRS,
                    &VirtioNetHdr::default(),
                    &numbered(flow, round),
                );
                sent += 1;
            }
            let few = eventually(|| {
                take(&mut received);
                received + lost() + AHEAD >= sent
            });
            assert!(few, "{received} of {sent}: {:?}", bench.all_drops(1));
        }
        let all = eventually(|| {
            take(&mut received);
            received + lost() == sent
        });
        assert!(all, "{received} of {sent}: {:?} {:?}", bench.all_drops(0), bench.all_drops(1));
        drop(end);
        let moves = mover.join().unwrap();
        assert!(moves > 50, "queues have moved {moves} times only");
    });
    // Nothing came twice: each number was above the last. What is lost was lost with a reason, and hardly any was.
    assert!(lost() < sent / 10, "{} of {sent} lost", lost());
    // A sleeping driver is heard on whichever worker its ring ended.
    for pair in 0..PAIRS {
        assert!(eventually(|| a.wants_kick(pair)), "the worker does not come to rest");
        a.send_with(pair, &VirtioNetHdr::default(), &numbered(1, ROUNDS));
        assert!(eventually(|| (0..PAIRS).any(|pair| b.try_recv(pair).is_some())));
    }
}

#[test]
fn a_sleeping_guest_is_heard_after_every_move() {
    let bench = bench(2, 1, None);
    let (mut a, mut b) = (card(&bench, 0, 1), card(&bench, 1, 1));
    for number in 0..200 {
        // The kick may come before, during and after the move.
        let worker = usize::try_from(number % 2).unwrap();
        let (datapath, port) = (bench.datapath.clone(), bench.id(0));
        let mover = std::thread::spawn(move || datapath.move_queue(port, 0, worker).unwrap());
        let sent = frame(BROADCAST, a.mac, 60, number);
        a.send(&sent);
        assert_eq!(b.recv().expect("a frame arrives").1, sent);
        mover.join().unwrap();
        assert_eq!(worker_of(&bench.datapath, bench.id(0), 0), Some(worker));
    }
}

#[test]
fn new_queues_are_dealt_out_and_keep_their_worker() {
    let bench = bench(3, PAIRS, None);
    let mut cards: Vec<_> = (0..3).map(|port| card(&bench, port, PAIRS)).collect();
    let counts = || bench.datapath.workers().iter().map(|w| w.queues.len()).collect::<Vec<_>>();
    assert!(eventually(|| counts() == [6, 6]), "{:?}", bench.datapath.workers());
    // A guest goes, and its queues with it; another takes their place.
    cards.pop();
    assert!(eventually(|| counts().iter().sum::<usize>() == 8));
    cards.push(card(&bench, 2, PAIRS));
    assert!(eventually(|| counts() == [6, 6]), "{:?}", bench.datapath.workers());
    let (port, datapath) = (bench.id(0), &bench.datapath);
    assert!(matches!(
        datapath.move_queue(port, 0, 2),
        Err(Error::NoWorker { worker: 2, workers: 2 })
    ));
    assert!(matches!(datapath.move_queue(port, PAIRS, 0), Err(Error::NoQueue { queue: 4, .. })));
    let nobody = Uuid::new_v4();
    assert!(matches!(datapath.move_queue(nobody, 0, 0), Err(Error::NoQueue { .. })));
}

#[test]
fn busy_queues_part_by_themselves() {
    let bench = bench(3, 1, Some(Duration::from_secs(2)));
    let mut nics: Vec<_> = (0..3).map(|port| card(&bench, port, 1)).collect();
    for port in 0..2 {
        bench.datapath.move_queue(bench.id(port), 0, 0).unwrap();
    }
    let (end, over) = Over::new();
    std::thread::scope(|scope| {
        let end = end;
        for nic in &mut nics[..2] {
            let over = Arc::clone(&over);
            scope.spawn(move || {
                // To nobody: flooded.
                let sent = frame(mac(77), nic.mac, 9000, 1);
                while !over.load(Ordering::Relaxed) {
                    nic.send(&sent);
                    while nic.try_recv(0).is_some() {}
                }
            });
        }
        let worker = |port| worker_of(&bench.datapath, bench.id(port), 0);
        let parted = || matches!((worker(0), worker(1)), (Some(one), Some(two)) if one != two);
        let parted = eventually(parted);
        drop(end);
        assert!(parted, "{:?}", bench.datapath.workers());
    });
    let loads: Vec<_> = bench.datapath.workers().iter().map(|worker| worker.load_ppm).collect();
    assert!(loads.iter().all(|&load| load > 0), "{loads:?}");
}

#[test]
fn a_tap_queue_moves_without_losing_frames() {
    let bench = bench(1, 1, None);
    let netns = leaf::Netns::new();
    let queues = netns.run(|| datapath::port::tap::open_tap("tap0", 2)).unwrap();
    netns.ip("addr add 192.0.2.1/24 dev tap0");
    netns.ip("link set tap0 up");
    let tap = bench.add_kernel(Role::Guest, PortIo::Tap { queues });
    let mut nic = card(&bench, 0, 1);
    let [one, two] = [0, 1].map(|queue| worker_of(&bench.datapath, tap, queue).unwrap());
    assert_ne!(one, two, "each worker has a queue");
    let socket = netns.run(|| std::net::UdpSocket::bind("192.0.2.1:0").unwrap());
    netns.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:01:00 dev tap0 nud permanent");
    for number in 0_u32..400 {
        for queue in 0..2 {
            let worker = usize::try_from(number / 3).unwrap() % 2;
            bench.datapath.move_queue(tap, queue, worker).unwrap();
        }
        socket.send_to(&number.to_be_bytes(), "192.0.2.9:9").unwrap();
        loop {
            let (_, got) = nic.recv().expect("a frame comes out of the TAP");
            // The kernel has things of its own to say, as MLD reports.
            if got[12..14] == [8, 0] && got[23] == 17 {
                assert_eq!(got[42..46], number.to_be_bytes(), "in order, none missing");
                break;
            }
        }
    }
}
