//! Frames of one interface, through a packet socket: answers reach clients that have no address
//! yet, and the client's own MAC is seen.
//!
//! Beside it an ordinary UDP socket holds port 67 of the interface, unread, so that the kernel
//! does not tell clients that the port is closed, and a second DHCP server is noticed.

use std::ffi::c_void;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use dhcpd::{Egress, FrameIo, Ingress, Waker};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{Domain, Protocol, Socket, Type};
use uuid::Uuid;
use wire::MacAddr;

/// Longest frame that is taken: no DHCP message is longer than an Ethernet frame with a tag.
const MAX_FRAME: usize = 2048;
/// Frames handed over at once.
const BURST: usize = 256;

/// An Ethernet interface of this host.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    name: String,
    index: i32,
    pub(crate) mac: MacAddr,
}

impl Interface {
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One octet less: the name ends with a NUL.
        let room = request.ifr_name.len() - 1;
        if name.is_empty() || name.len() > room || name.contains('\0') {
            bail!("{name:?} is not the name of an interface");
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        ioctl(&socket, libc::SIOCGIFINDEX, &mut request)
            .with_context(|| format!("there is no interface {name}"))?;
        // SAFETY: SIOCGIFINDEX has filled this field of the union.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        ioctl(&socket, libc::SIOCGIFHWADDR, &mut request)
            .with_context(|| format!("cannot read the address of {name}"))?;
        // SAFETY: SIOCGIFHWADDR has filled this field of the union.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        if address.sa_family != libc::ARPHRD_ETHER {
            bail!("{name} is not an Ethernet interface");
        }
        let [a, b, c, d, e, f, ..] = address.sa_data.map(i8::cast_unsigned);
        Ok(Self { name: name.to_owned(), index, mac: MacAddr([a, b, c, d, e, f]) })
    }
}

fn ioctl(socket: &Socket, name: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both requests that are made here read and write one ifreq, which lives through the
    // call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), name, &raw mut *request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The packet socket.
#[derive(Debug)]
pub(crate) struct PacketIo {
    packet: OwnedFd,
    /// Holds the port.
    _udp: Socket,
    wake: Arc<OwnedFd>,
    buf: Vec<u8>,
}

impl PacketIo {
    pub(crate) fn open(interface: &Interface) -> anyhow::Result<Self> {
        let udp = hold_port(&interface.name).with_context(|| {
            format!(
                "cannot hold UDP port 67 on {}: is another DHCP server running?",
                interface.name
            )
        })?;
        let packet = open_packet(interface.index)
            .with_context(|| format!("cannot open a packet socket on {}", interface.name))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { packet, _udp: udp, wake: Arc::new(wake), buf: vec![0; MAX_FRAME] })
    }

    /// The next frame that is for us, if one is queued.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some((len, status)) = receive(&self.packet, &mut self.buf)? else {
                return Ok(None);
            };
            // Cut short, or of a VLAN interface on top of this one.
            if len > self.buf.len() || status & libc::TP_STATUS_VLAN_VALID != 0 {
                continue;
            }
            let mut frame = self.buf[..len].to_vec();
            if status & libc::TP_STATUS_CSUMNOTREADY != 0 {
                // Sent on this machine: the kernel left the checksum to hardware that is not
                // there, and the frame never was on a wire.
                clear_checksum(&mut frame);
            }
            return Ok(Some(frame));
        }
    }
}

impl FrameIo for PacketIo {
    fn recv(&mut self, out: &mut Vec<Ingress>, timeout: Option<Duration>) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds =
                [PollFd::new(&self.packet, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let (packet, woken) = (fds[0].revents(), fds[1].revents());
            if !woken.is_empty() {
                // It may have been reset by nobody else.
                let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
            }
            let before = out.len();
            while !packet.is_empty() && out.len() - before < BURST {
                match self.next() {
                    Ok(Some(frame)) => out.push(Ingress { port: Uuid::nil(), vlan: 0, frame }),
                    Ok(None) => break,
                    // The interface is down: it may come up again. Told once for each time.
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => break,
                    Err(error) => return Err(error),
                }
            }
            if out.len() > before || !woken.is_empty() {
                return Ok(());
            }
        }
    }

    fn send(&mut self, egress: Egress) -> io::Result<()> {
        rustix::io::write(&self.packet, &egress.frame)?;
        Ok(())
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Box::new(move || {
            // A full counter is awake already.
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        })
    }
}

fn hold_port(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67).into())?;
    // What fills its queue is not read; let it be small.
    socket.set_recv_buffer_size(0)?;
    Ok(socket)
}

/// IPv4, UDP, to port 67, not a later fragment.
const FILTER: [(u16, u8, u8, u32); 9] = [
    (0x28, 0, 0, 12),      // ldh [12]: EtherType
    (0x15, 0, 6, 0x0800),  // IPv4, else drop
    (0x30, 0, 0, 23),      // ldb [23]: protocol
    (0x15, 0, 4, 17),      // UDP, else drop
    (0xb1, 0, 0, 14),      // ldxb 4*([14]&0xf): length of the IP header
    (0x48, 0, 0, 16),      // ldh [x+16]: destination port
    (0x15, 0, 1, 67),      // 67, else drop
    (0x06, 0, 0, 0x40000), // take
    (0x06, 0, 0, 0),       // drop
];

fn open_packet(index: i32) -> io::Result<OwnedFd> {
    // Protocol 0: nothing arrives before the filter is there and the socket is bound.
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(0)))?;
    let mut filter = FILTER.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_IP).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the pointer and length describe `address`, which lives through the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

fn set_option<T>(socket: &Socket, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value: *const c_void = (&raw const *value).cast();
    // SAFETY: the pointer and length describe a value that lives through the call; the options
    // that are set here take the type that they are given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads one frame; its whole length (which may be above the buffer's) and the kernel's status
/// bits. `None`: nothing is queued.
fn receive(packet: &OwnedFd, buf: &mut [u8]) -> io::Result<Option<(usize, u32)>> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // Room for one message, aligned as its header must be.
    let mut control = [0_u64; 16];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header describes `buf` and `control`, which live through the call.
    let len = unsafe { libc::recvmsg(packet.as_raw_fd(), &raw mut header, libc::MSG_TRUNC) };
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    let mut status = 0;
    // SAFETY: the kernel has filled the header and `control`; the macros stay inside them.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header inside `control`.
        let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: a message of this type carries a tpacket_auxdata.
            let data: libc::tpacket_auxdata = unsafe {
                libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>().read_unaligned()
            };
            status = data.tp_status;
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(Some((len, status)))
}

/// Marks a UDP datagram over IPv4 as one without checksum.
fn clear_checksum(frame: &mut [u8]) {
    let Some(first) = frame.get(14) else { return };
    let udp = 14 + usize::from(first & 15) * 4;
    if let Some(checksum) = frame.get_mut(udp + 6..udp + 8) {
        checksum.fill(0);
    }
}
