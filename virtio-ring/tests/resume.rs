//! A device that is killed between any two instructions, and the one after it.
//!
//! A child process runs the device one machine instruction at a time. What it shares with others, the guest's memory
//! and the resume record, is looked at after every instruction: that is what SIGKILL would leave there. Each state that ever was is
//! then given to a new device.

mod common;

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::packed::{Buffer, DESC, DISABLE, F_AVAIL, F_USED, PackedDriver, Place};
use common::{F_WRITE, GUEST, Guest};
use tempfile::TempDir;
use virtio_ring::{ChainBuf, Direction, Limit, ResumeFile, Ring};

const MEMORY: u64 = 1 << 16;
/// The ring lies in the first page, and so does its record.
const SHARED: usize = 4096;
const BUFFERS: u64 = 8192;
const LEN: u32 = 64;

#[derive(Clone, Copy, Debug)]
struct Kind {
    size: u16,
    start: Place,
    write: bool,
    in_order: bool,
    event_idx: bool,
}

/// What a killed device leaves.
#[derive(Clone, PartialEq)]
struct State {
    memory: Vec<u8>,
    record: Vec<u8>,
}

/// The driver's side: chains that are out, with their ID and how many descriptors they have.
#[derive(Clone)]
struct Station {
    driver: PackedDriver,
    /// Where the frontend says that the ring begins. It knows where it began, not how far it came (QEMU).
    base: Place,
    out: VecDeque<(u16, u16)>,
    next_id: u16,
    returned: usize,
}

impl Station {
    fn new(guest: &Guest, kind: Kind) -> Self {
        let driver = PackedDriver::new(guest, kind.size, kind.start);
        Self { driver, base: kind.start, out: VecDeque::new(), next_id: 100, returned: 0 }
    }

    fn offer(&mut self, guest: &Guest, kind: Kind, descriptors: u16) {
        let flags = if kind.write { F_WRITE } else { 0 };
        let buffer = |i| (GUEST + BUFFERS + u64::from(i) * u64::from(LEN), LEN, flags);
        let buffers: Vec<Buffer> = (0..descriptors).map(buffer).collect();
        self.driver.offer(guest, self.next_id, &buffers);
        self.out.push_back((self.next_id, descriptors));
        self.next_id += 1;
    }

    /// The frontend uses what is offered from its base on, and keeps in mind how far it came.
    fn drop_at_base(&mut self, guest: &Guest, kind: Kind) {
        for _ in 0..kind.size {
            let at = 16 * u64::from(self.base.at);
            let owner = if self.base.wrap { F_AVAIL } else { F_USED };
            if guest.u16(at + 14) & (F_AVAIL | F_USED) != owner {
                return;
            }
            guest.write(at + 8, &[0; 4]);
            guest.set_u16(at + 14, if self.base.wrap { F_AVAIL | F_USED } else { 0 });
            self.base.step(1, kind.size);
        }
    }

    /// Takes back what is used, in the order in which it was offered.
    fn reap(&mut self, guest: &Guest, kind: Kind) {
        while let Some((id, len, _)) = self.driver.peek(guest) {
            loop {
                let (offered, descriptors) =
                    self.out.pop_front().expect("nothing comes back twice");
                self.driver.used.step(descriptors, kind.size);
                self.returned += 1;
                let expected = if kind.write { LEN * u32::from(descriptors) } else { 0 };
                assert_eq!(len, expected, "chain {offered}");
                if offered == id {
                    break;
                }
                assert!(kind.in_order && !kind.write, "chain {offered} comes before {id}");
            }
        }
    }
}

struct Bench {
    guest: Guest,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { guest: Guest::new(MEMORY), dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("rings")
    }

    fn ring(&self, kind: Kind, station: &Station) -> Ring {
        ring(&self.guest, &self.path(), kind, station)
    }

    fn state(&self) -> State {
        let mut record = vec![0; SHARED];
        File::open(self.path()).unwrap().read_exact_at(&mut record, 0).unwrap();
        State { memory: self.guest.read(0, SHARED), record }
    }

    fn restore(&self, state: &State) {
        self.guest.write(0, &state.memory);
        let file = File::options().write(true).create(true).truncate(false).open(self.path());
        file.unwrap().write_all_at(&state.record, 0).unwrap();
    }

    /// Runs `f` in a child process, instruction by instruction, and returns every state that it goes through.
    fn states(&self, f: impl FnOnce()) -> Vec<State> {
        let mut states = vec![self.state()];
        // SAFETY: the child calls nothing but `f`, which neither allocates nor locks, and ends itself.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: plain system calls without memory of ours.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            f();
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let mut steps = 0;
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours; the child is traced by this thread.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            if libc::WIFEXITED(status) {
                assert_eq!(libc::WEXITSTATUS(status), 0);
                break;
            }
            assert!(libc::WIFSTOPPED(status), "the child ended by signal: {status:#x}");
            let state = self.state();
            if states.last() != Some(&state) {
                states.push(state);
            }
            steps += 1;
            // SAFETY: the child is stopped.
            assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0) }, 0);
        }
        assert!(steps > 100, "the child was stepped: {steps}");
        states
    }
}

fn ring(guest: &Guest, path: &Path, kind: Kind, station: &Station) -> Ring {
    let mut config = station.driver.config(kind.event_idx, true, kind.in_order);
    config.base = u32::from(station.base.bits());
    let record = ResumeFile::open(path, 1).unwrap().record(0, kind.size).unwrap();
    Ring::new(&guest.map(1), &config, Some(record)).unwrap()
}

/// Takes and returns up to so many chains.
fn serve(guest: &Guest, kind: Kind, ring: &mut Ring, buf: &mut ChainBuf, chains: usize) -> usize {
    let memory = guest.map(1);
    serve_in(&memory, kind, ring, buf, chains)
}

fn serve_in(
    memory: &virtio_ring::GuestMemory,
    kind: Kind,
    ring: &mut Ring,
    buf: &mut ChainBuf,
    chains: usize,
) -> usize {
    let direction = if kind.write { Direction::Writable } else { Direction::Readable };
    let taken = ring.gather(memory, direction, Limit { chains, bytes: u64::MAX }, buf).unwrap();
    for chain in taken.as_slice() {
        assert!(chain.error.is_none());
        ring.complete(chain.head, if kind.write { chain.len } else { 0 });
    }
    let n = taken.len();
    let _ = ring.publish();
    n
}

/// What happens between two devices.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    /// The driver goes on.
    Driver,
    /// The frontend asks for no kicks: QEMU, when it takes the kick descriptor back.
    Frontend,
    /// It asks for kicks, at the place that it knows of.
    FrontendAtBase,
}

impl Meanwhile {
    const ALL: [Self; 4] = [Self::Nothing, Self::Driver, Self::Frontend, Self::FrontendAtBase];

    fn happen(self, guest: &Guest, kind: Kind, station: &mut Station) {
        let area = station.driver.device;
        match self {
            Self::Nothing => {}
            Self::Driver => {
                station.reap(guest, kind);
                let out: u16 = station.out.iter().map(|chain| chain.1).sum();
                for _ in out..kind.size {
                    station.offer(guest, kind, 1);
                }
            }
            Self::Frontend => guest.set_u16(area + 2, DISABLE),
            Self::FrontendAtBase => {
                guest.set_u16(area, kind.start.bits());
                guest.set_u16(area + 2, DESC);
            }
        }
    }
}

/// A new device gets what a killed one left. Every chain comes back exactly once.
fn goes_on(state: &State, kind: Kind, station: &Station, meanwhile: Meanwhile, offered: usize) {
    let bench = Bench::new();
    bench.restore(state);
    let mut station = station.clone();
    let guest = &bench.guest;
    meanwhile.happen(guest, kind, &mut station);
    let mut ring = bench.ring(kind, &station);
    assert!(ring.was_resumed());
    let mut buf = ChainBuf::new();
    while serve(guest, kind, &mut ring, &mut buf, 2) > 0 {}
    station.reap(guest, kind);
    assert!(station.out.is_empty(), "{} chains are lost", station.out.len());
    assert!(station.returned >= offered);
    // The ring works on.
    for _ in 0..3 * kind.size {
        station.offer(guest, kind, 1);
        assert_eq!(serve(guest, kind, &mut ring, &mut buf, 64), 1);
        station.reap(guest, kind);
        assert!(station.out.is_empty());
    }
}

fn check(kind: Kind) {
    let bench = Bench::new();
    let mut station = Station::new(&bench.guest, kind);
    let mut first = bench.ring(kind, &station);
    assert!(!first.was_resumed(), "there is nothing to resume yet");
    first.suppress_kicks();
    let mut buf = ChainBuf::new();
    // Some history, then five chains of six descriptors.
    for _ in 0..2 {
        station.offer(&bench.guest, kind, 1);
        assert_eq!(serve(&bench.guest, kind, &mut first, &mut buf, 64), 1);
        station.reap(&bench.guest, kind);
    }
    for descriptors in [1, 2, 1, 1, 1] {
        station.offer(&bench.guest, kind, descriptors);
    }
    let offered = station.returned + 5;
    let memory = bench.guest.map(1);
    let states = bench.states(|| {
        assert_eq!(serve_in(&memory, kind, &mut first, &mut buf, 3), 3);
        let _ = first.arm();
        first.suppress_kicks();
        assert_eq!(serve_in(&memory, kind, &mut first, &mut buf, 3), 2);
        let _ = first.arm();
    });
    drop(first);
    // Two publications of several stores each, with the notes around them, and three changes of the area.
    assert!(states.len() > 20, "{} states", states.len());
    for (at, state) in states.iter().enumerate() {
        for meanwhile in Meanwhile::ALL {
            println!("{kind:?}, state {at} of {}, meanwhile: {meanwhile:?}", states.len());
            goes_on(state, kind, &station, meanwhile, offered);
        }
    }
    // A device that is killed while it takes over, in the middle of a publication and after it.
    let during = [states.len() / 3, states.len() / 2].map(|at| states[at].clone());
    for state in &during {
        let second = Bench::new();
        second.restore(state);
        let (path, station) = (second.path(), &station);
        let states = second.states(|| drop(ring(&second.guest, &path, kind, station)));
        for state in &states {
            goes_on(state, kind, station, Meanwhile::Nothing, offered);
        }
    }
}

/// QEMU takes the ring back from a device that is gone and drops what it finds where it knows that the ring began, in a TX ring.
fn the_frontend_drops_what_it_finds() {
    let start = Place { at: 0, wrap: true };
    let kind = Kind { size: 8, start, write: false, in_order: false, event_idx: true };
    // Chains before, so that the driver is near where the ring began, two turns later; and those that are out.
    for (before, out) in [(12, 8), (14, 5), (15, 2), (16, 3), (31, 8)] {
        let bench = Bench::new();
        let mut station = Station::new(&bench.guest, kind);
        let mut first = bench.ring(kind, &station);
        first.suppress_kicks();
        let mut buf = ChainBuf::new();
        for _ in 0..before {
            station.offer(&bench.guest, kind, 1);
            assert_eq!(serve(&bench.guest, kind, &mut first, &mut buf, 64), 1);
            station.reap(&bench.guest, kind);
        }
        for _ in 0..out {
            station.offer(&bench.guest, kind, 1);
        }
        let memory = bench.guest.map(1);
        let states = bench.states(|| {
            let _ = first.arm();
            assert!(serve_in(&memory, kind, &mut first, &mut buf, 2) > 0);
        });
        drop(first);
        for (at, state) in states.iter().enumerate() {
            // Once; and again after a device that was killed before it came so far.
            for again in [false, true] {
                println!(
                    "{before} before, {out} out, state {at} of {}, again: {again}",
                    states.len()
                );
                let second = Bench::new();
                second.restore(state);
                let mut station = station.clone();
                station.drop_at_base(&second.guest, kind);
                if again {
                    drop(second.ring(kind, &station));
                    station.drop_at_base(&second.guest, kind);
                }
                goes_on(&second.state(), kind, &station, Meanwhile::Nothing, out);
            }
        }
    }
}

#[test]
fn every_chain_comes_back_once_wherever_the_device_was_killed() {
    // The ring turns within the first publication, within the second, and not at all.
    for (at, write, in_order, event_idx) in
        [(3, false, false, false), (1, true, false, true), (0, false, true, true)]
    {
        let start = Place { at, wrap: at == 0 };
        check(Kind { size: 7, start, write, in_order, event_idx });
    }
    // In one test: a process that forks should do nothing else.
    the_frontend_drops_what_it_finds();
    a_record_of_another_ring_does_not_count();
}

fn a_record_of_another_ring_does_not_count() {
    let start = Place { at: 0, wrap: true };
    let kind = Kind { size: 8, start, write: false, in_order: false, event_idx: false };
    let run = |bench: &Bench| {
        let mut station = Station::new(&bench.guest, kind);
        let mut ring = bench.ring(kind, &station);
        ring.suppress_kicks();
        for _ in 0..3 {
            station.offer(&bench.guest, kind, 1);
            serve(&bench.guest, kind, &mut ring, &mut ChainBuf::new(), 64);
            station.reap(&bench.guest, kind);
        }
        assert_eq!(ring.next_index() & 0xffff, 0x8003);
        station
    };
    // The driver has set the ring up anew, in the same place: all zero (DPDK's net_virtio_user does so when it reconnects).
    let bench = Bench::new();
    run(&bench);
    bench.guest.write(0, &vec![0; SHARED]);
    let mut station = Station::new(&bench.guest, kind);
    bench.guest.write(0, &vec![0; SHARED]);
    station.offer(&bench.guest, kind, 1);
    let mut ring = bench.ring(kind, &station);
    assert!(!ring.was_resumed());
    assert_eq!(serve(&bench.guest, kind, &mut ring, &mut ChainBuf::new(), 64), 1);
    station.reap(&bench.guest, kind);
    assert_eq!(station.returned, 1);
    // The ring lies elsewhere, or is of another size.
    let bench = Bench::new();
    let station = run(&bench);
    let config = station.driver.config(false, true, false);
    for other in [
        virtio_ring::RingConfig { desc: config.desc + 16, ..config },
        virtio_ring::RingConfig { size: 7, ..config },
    ] {
        let file = ResumeFile::open(&bench.path(), 1).unwrap();
        let before = bench.state();
        let ring = Ring::new(&bench.guest.map(1), &other, file.record(0, other.size).ok()).unwrap();
        assert!(!ring.was_resumed());
        bench.restore(&before);
    }
    // It was stopped in order.
    assert!(bench.ring(kind, &station).was_resumed());
    ResumeFile::open(&bench.path(), 1).unwrap().forget(0);
    assert!(!bench.ring(kind, &station).was_resumed());
}
