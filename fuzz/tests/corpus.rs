//! Every corpus is replayed, and mutated with a fixed seed: what the fuzzers found stays found.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuzz::{TARGETS, Target};

/// Mutations of each corpus in a test run. Each is one call, some microseconds long.
const MUTATIONS: usize = 2000;
const MAX_LEN: usize = 4096;

/// A generator whose numbers are always the same (Marsaglia, "Xorshift RNGs").
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let read = |path: &Path| (path.display().to_string(), fs::read(path).expect("a readable file"));
    files.iter().map(|path| read(path)).collect()
}

/// Runs one input; a panic names it and shows its bytes, to be put into the corpus.
fn run(target: Target, what: &str, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        panic!("{what} breaks a rule: {bytes:02x?}");
    }
}

fn mutate(bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let end = (at + 1 + numbers.below(16)).min(bytes.len());
        match numbers.below(7) {
            0 if at < bytes.len() => bytes[at] = numbers.byte(),
            1 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            3 => drop(bytes.drain(at.min(end)..end)),
            4 => {
                let new: Vec<u8> = (0..=numbers.below(8)).map(|_| numbers.byte()).collect();
                bytes.splice(at..at, new);
            }
            5 => {
                let piece = bytes[at.min(end)..end].to_vec();
                let to = numbers.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let (_, other) = &others[numbers.below(others.len())];
                let from = numbers.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(MAX_LEN);
}

fn check(name: &str) {
    let (_, target) = TARGETS.iter().find(|(other, _)| *other == name).expect("a target");
    let seeds = corpus(name);
    assert!(!seeds.is_empty(), "no corpus");
    for (path, bytes) in &seeds {
        run(*target, path, bytes);
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        let (path, bytes) = &seeds[numbers.below(seeds.len())];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, &seeds, &mut numbers);
        run(*target, &format!("mutation {round}, of {path},"), &bytes);
    }
}

/// One test for each, so that they run beside each other and a failure has a name.
macro_rules! corpora {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

corpora! { control_queue dhcp dns headers network_xml offload packed_ring session split_ring window }
