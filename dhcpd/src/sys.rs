//! The few system calls that no crate of ours wraps.

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// Index of a network interface in the calling thread's namespace.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    let any =
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    netdevice::name_to_index(any, name).ok()
}
