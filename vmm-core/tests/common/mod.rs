//! What the tests on real guests share: the guest, the VMM as a process, a network with a
//! vhost-user backend that is not ours.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod backend;
pub(crate) mod network;
pub(crate) mod vmm;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The test guest, built once per test binary by its own cargo invocation.
pub(crate) fn guest() -> PathBuf {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST
        .get_or_init(|| {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/guest");
            let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/guest");
            let output = Command::new(env!("CARGO"))
                .args(["build", "--release", "--locked"])
                .current_dir(directory)
                .env("CARGO_TARGET_DIR", target)
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_BUILD_TARGET")
                .output()
                .expect("cargo runs");
            assert!(
                output.status.success(),
                "the test guest does not build:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            PathBuf::from(target).join("release/netloom-guest")
        })
        .clone()
}

/// Fails where a guest cannot run, saying what is missing.
pub(crate) fn require_kvm() {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        panic!("this test runs a virtual machine and needs /dev/kvm: {error}");
    }
}

/// An executable of a few bytes at 2 MiB, the first of which is run in ring 0.
pub(crate) fn kernel(code: &[u8]) -> tempfile::NamedTempFile {
    use std::io::Write as _;
    let address = 0x20_0000_u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for value in [address, 64, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let size = code.len() as u64;
    for value in [120, address, address, size, size, 4096] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}
