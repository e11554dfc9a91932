//! Opening the file descriptors that ports live on, in the calling thread's namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Queues of a TAP with virtio-net headers, non-blocking, made when there is none of that name.
pub(super) fn open_tap(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
    const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
    let mut fds = Vec::new();
    for _ in 0..queues {
        let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
        let fd = OwnedFd::from(file);
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        request.ifr_ifru.ifru_flags =
            libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        let size: libc::c_int = 12;
        // SAFETY: the fd is open; each argument is what the request reads.
        let ok = unsafe {
            libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) >= 0
                && libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) >= 0
                && libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(libc::TUN_F_CSUM))
                    >= 0
        };
        if !ok {
            return Err(io::Error::last_os_error());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        fds.push(fd);
    }
    Ok(fds)
}

/// A packet socket on an interface, non-blocking.
pub(super) fn open_packet(ifindex: u32) -> io::Result<OwnedFd> {
    let protocol = u16::to_be(libc::ETH_P_ALL.try_into().unwrap_or(0));
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or(0);
    address.sll_protocol = protocol;
    address.sll_ifindex = ifindex.cast_signed();
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the address lives through the call and has the given size.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}
