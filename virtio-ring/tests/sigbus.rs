//! Files that shrink under their mapping. Each scenario runs in a process of its own, as handlers belong to
//! the process.

mod common;

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Driver, GUEST, Guest};
use virtio_ring::{ChainBuf, Cursor, Direction, GuestSlice, Limit, Ring};

const ALL: Limit = Limit { chains: 64, bytes: u64::MAX };
const MEMORY: u64 = 1 << 20;

/// Runs the test of this name again with `SCENARIO` set.
fn in_a_process(test: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SCENARIO", test)
        .status()
        .unwrap()
}

fn is_child() -> bool {
    std::env::var_os("SCENARIO").is_some()
}

#[test]
fn a_shrunk_file_reads_as_zeros_and_poisons_only_its_memory() {
    let victim = Guest::new(MEMORY);
    let driver = Driver::new(Guest::new(MEMORY), 8, 0);
    let mut driver = driver;
    let memory = driver.guest.map(1);
    let other = victim.map(1);
    let mut ring = Ring::new(&memory, &driver.config(false, false), None).unwrap();
    driver.guest.write(MEMORY - 8, b"not zero");
    driver.set_desc(0, GUEST + MEMORY - 8, 8, 0, 0);
    driver.push(0);
    driver.publish();
    let mut buf = ChainBuf::new();
    let chains = ring.gather(&memory, Direction::Readable, ALL, &mut buf).unwrap();
    let slices: Vec<GuestSlice<'_>> = chains.slices(&chains.chain(0)).to_vec();
    let mut bytes = [0xff; 8];
    Cursor::new(&slices).read(&mut bytes);
    assert_eq!(&bytes, b"not zero");
    assert!(!memory.is_poisoned());
    driver.guest.shrink(4096);
    Cursor::new(&slices).read(&mut bytes);
    assert_eq!(bytes, [0; 8]);
    assert!(memory.is_poisoned());
    assert!(!other.is_poisoned(), "another guest's memory is its own");
    // Writing goes nowhere; the ring's own pages are anonymous now, too.
    Cursor::new(&slices).write(b"anything");
    ring.complete(0, 0);
    let _ = ring.publish();
    // A new table over the same file starts clean.
    driver.guest.shrink(MEMORY);
    let again = driver.guest.map(1);
    assert!(!again.is_poisoned());
}

#[test]
fn a_file_that_shrinks_under_a_busy_reader_kills_nobody() {
    let guest = Guest::new(MEMORY);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let memory = guest.map(1);
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let driver = Driver::new(Guest::new(MEMORY), 8, 0);
                let ring_memory = driver.guest.map(1);
                let mut ring = Ring::new(&ring_memory, &driver.config(false, false), None).unwrap();
                let mut driver = driver;
                driver.set_desc(0, GUEST, 1 << 20, 0, 0);
                let mut bytes = vec![0; 1 << 20];
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) || rounds == 0 {
                    driver.push(0);
                    driver.publish();
                    let mut buf = ChainBuf::new();
                    let chains = ring.gather(&memory, Direction::Readable, ALL, &mut buf).unwrap();
                    Cursor::new(chains.slices(&chains.chain(0))).read(&mut bytes);
                    ring.complete(0, 0);
                    let _ = ring.publish();
                    rounds += 1;
                }
                memory.is_poisoned()
            })
        })
        .collect();
    for _ in 0..200 {
        guest.shrink(0);
        guest.shrink(MEMORY);
    }
    guest.shrink(0);
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap(), "the reader saw the mark");
    }
}

/// A mapping that is not ours, behind the end of its file.
fn foreign_fault() {
    let guest = Guest::new(4096);
    let fd = guest.fd();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            8192,
            rustix::mm::ProtFlags::READ,
            rustix::mm::MapFlags::SHARED,
            &fd,
            0,
        )
    }
    .unwrap();
    // SAFETY: mapped; the access raises SIGBUS, which is the point.
    unsafe { address.cast::<u8>().add(4096).read_volatile() };
}

#[test]
fn a_foreign_fault_still_kills() {
    if is_child() {
        let _memory = Guest::new(MEMORY).map(1);
        foreign_fault();
        return;
    }
    let status = in_a_process("a_foreign_fault_still_kills");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS));
}

#[test]
fn a_foreign_fault_goes_to_the_handler_that_was_there_before() {
    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(42) };
    }
    if is_child() {
        let handler: extern "C" fn(libc::c_int) = leave;
        // SAFETY: installs a handler that only ends the process.
        unsafe { libc::signal(libc::SIGBUS, handler as *const () as usize) };
        let guest = Guest::new(MEMORY);
        let memory = guest.map(1);
        guest.shrink(0);
        // Ours is handled by us ...
        let driver = Driver::new(Guest::new(MEMORY), 8, 0);
        let mut driver = driver;
        let ring_memory = driver.guest.map(1);
        let mut ring = Ring::new(&ring_memory, &driver.config(false, false), None).unwrap();
        driver.set_desc(0, GUEST, 8, 0, 0);
        driver.push(0);
        driver.publish();
        let mut buf = ChainBuf::new();
        let chains = ring.gather(&memory, Direction::Readable, ALL, &mut buf).unwrap();
        Cursor::new(chains.slices(&chains.chain(0))).read(&mut [0; 8]);
        assert!(memory.is_poisoned());
        // ... and another is not.
        foreign_fault();
        return;
    }
    let status = in_a_process("a_foreign_fault_goes_to_the_handler_that_was_there_before");
    assert_eq!(status.code(), Some(42));
}

#[test]
fn a_signal_that_was_sent_still_kills() {
    if is_child() {
        let _memory = Guest::new(MEMORY).map(1);
        // SAFETY: sends a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    let status = in_a_process("a_signal_that_was_sent_still_kills");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGBUS));
}
