//! The VMM without a network: its console, its ends and its errors.

mod common;

use common::kernel;
use common::vmm::{Vmm, command, run_to_end};

#[test]
fn a_guest_boots_into_ring_3_and_ends_the_machine_with_its_value() {
    let vmm = Vmm::boot("once", &[]);
    let (status, console) = vmm.wait();
    let hello = console.first().expect("a line");
    assert!(hello.starts_with("netloom-guest ring=3 tsc_khz="), "{console:#?}");
    assert_eq!(console[1], "error no usable network device: there is no virtio network device");
    assert_eq!(status.code(), Some(16 + 3));
}

#[test]
fn the_console_goes_to_a_file_and_the_command_line_arrives() {
    common::require_kvm();
    let directory = tempfile::tempdir().unwrap();
    let console = directory.path().join("console");
    let mut vmm = command();
    vmm.arg("--kernel").arg(common::guest()).args([
        "--cmdline",
        "tsc_khz=1234567",
        "--memory",
        "8M",
    ]);
    vmm.arg("--console").arg(format!("file:{}", console.display()));
    let (status, said) = run_to_end(vmm);
    assert_eq!(status.code(), Some(16 + 3), "{said}");
    let console = std::fs::read_to_string(console).unwrap();
    assert!(console.starts_with("netloom-guest ring=3 tsc_khz=1234567\n"), "{console}");
}

#[test]
fn a_triple_fault_is_a_crash_that_says_where() {
    common::require_kvm();
    // ud2, without any handler.
    let kernel = kernel(&[0x0f, 0x0b]);
    let mut vmm = command();
    vmm.arg("--kernel").arg(kernel.path());
    let (status, said) = run_to_end(vmm);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("the guest crashed at 0x200000"), "{said}");
}

#[test]
fn a_reset_through_the_keyboard_controller_is_an_orderly_end() {
    common::require_kvm();
    // mov al, 0xfe; out 0x64, al; jmp to itself.
    let kernel = kernel(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]);
    let mut vmm = command();
    vmm.arg("--kernel").arg(kernel.path());
    let (status, said) = run_to_end(vmm);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn sigterm_stops_a_guest_that_never_leaves() {
    common::require_kvm();
    // Say 'x' on the console, then jmp to itself.
    let kernel = kernel(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xb0, b'\n', 0xee, 0xeb, 0xfe]);
    let mut vmm = command();
    vmm.arg("--kernel").arg(kernel.path());
    let mut vmm = Vmm::spawn(vmm);
    vmm.line("x");
    vmm.terminate();
    let (status, _) = vmm.wait();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn errors_say_what_failed_and_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("no.sock");
    let dead = directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let guest = common::guest();
    let guest = guest.to_str().unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--kernel", "/nonexistent"], "cannot read /nonexistent: No such file"),
        (&["--kernel", text.to_str().unwrap()], "text is not an ELF file; give an x86-64 ELF"),
        (&["--kernel", guest, "--memory", "1M"], "guest memory must be"),
        (&["--kernel", guest, "--net", missing.to_str().unwrap()], "port-add"),
        (&["--kernel", guest, "--net", dead.to_str().unwrap()], "nobody listens on"),
    ];
    for (args, expected) in cases {
        let mut vmm = command();
        vmm.args(args);
        let (status, said) = run_to_end(vmm);
        assert_eq!(status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let mut vmm = command();
    vmm.args(["--kernel", guest, "--net", "a,mac=ff:ff:ff:ff:ff:ff"]);
    let (status, said) = run_to_end(vmm);
    assert_eq!(status.code(), Some(2), "{said}");
}
