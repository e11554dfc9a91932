//! A network of its own for one test: a namespace with a TAP, its address, and dnsmasq on it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) const GATEWAY: &str = "10.77.0.1";
pub(crate) const PREFIX: &str = "10.77.0.";

/// Runs `test` in a thread that is alone in a new network namespace.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        // SAFETY: only this thread changes its namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(
            result,
            0,
            "this test makes a network namespace and must run as root: {}",
            io::Error::last_os_error()
        );
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args}");
}

/// Makes the TAP `t0` in the calling thread's namespace, up, with the gateway's address.
pub(crate) fn tap() -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("this test needs /dev/net/tun");
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"t0");
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("small flags");
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is an `ifreq` in size and layout: a name and flags.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "making a TAP: {}", io::Error::last_os_error());
    // SAFETY: a flag of our own descriptor.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(result, 0);
    ip("link set lo up");
    ip(&format!("address add {GATEWAY}/24 dev t0"));
    ip("link set t0 up");
    file.into()
}

/// dnsmasq for the calling thread's namespace: DHCP and the name `peer.test`.
pub(crate) struct Dnsmasq(Child);

impl Dnsmasq {
    pub(crate) fn start(directory: &Path) -> Self {
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--interface=t0",
                "--bind-interfaces",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
                "--pid-file=",
                "--dhcp-authoritative",
                "--dhcp-range=10.77.0.50,10.77.0.99,255.255.255.0,1h",
                "--address=/peer.test/10.77.0.1",
            ])
            .arg(format!("--dhcp-leasefile={}", directory.join("leases").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs dnsmasq (Debian package dnsmasq-base)");
        Self(child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
