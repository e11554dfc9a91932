//! Packet sockets: a host interface as a port.
//!
//! The socket sees every frame that the interface receives, also those for other stations (promiscuous mode lasts as
//! long as the socket), but not what it or the host's own stack sends. Frames carry the virtio header, so that what the
//! kernel has coalesced or left without checksum is known as such. A VLAN tag that the kernel or the card has taken out
//! of the frame is put back.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use wire::{VirtioNetHdr, ethernet, vlan};
use zerocopy::IntoBytes;

use super::gather;

/// Bytes of the header on packet sockets: [`VirtioNetHdr`] without its last field.
const HEADER_LEN: usize = 10;

/// Where a tag stands in a frame.
const TAG_OFFSET: usize = ethernet::HEADER_LEN - 2;

/// Bytes that the kernel may hold for us between two bursts.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Opens a packet socket on an interface of the calling thread's network namespace: non-blocking, with virtio headers,
/// promiscuous until it is closed.
///
/// # Errors
/// The kernel's: `ENODEV` for an index that no interface has, `EPERM` without CAP_NET_RAW.
pub fn open_packet(ifindex: u32) -> io::Result<OwnedFd> {
    let ifindex = libc::c_int::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 receives nothing until the socket is bound, so that no frame comes in before the options are set, or
    // from another interface.
    let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
        set_option(&fd, libc::SOL_PACKET, option, &1 as &libc::c_int)?;
    }
    // Beyond the administrator's limit where that is allowed, else up to it.
    set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)
        .or_else(|_| set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER))?;
    bind(&fd, ifindex)?;
    let membership = libc::packet_mreq {
        mr_ifindex: ifindex,
        mr_type: PROMISCUOUS,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(fd)
}

const PROMISCUOUS: libc::c_ushort = 1;
const _: () = assert!(PROMISCUOUS as libc::c_int == libc::PACKET_MR_PROMISC);

const ALL_PROTOCOLS: u16 = 3;
const _: () = assert!(ALL_PROTOCOLS as libc::c_int == libc::ETH_P_ALL);

fn bind(fd: &OwnedFd, ifindex: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = ALL_PROTOCOLS.to_be();
    address.sll_ifindex = ifindex;
    // SAFETY: the address is a whole `sockaddr_ll`, and the length is its size.
    check(unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length_of::<libc::sockaddr_ll>())
    })
}

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and size are those of one borrowed value.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), length_of::<T>())
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the size of a small structure")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A packet socket as a port.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// Room for one `tpacket_auxdata` control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

impl PacketSocket {
    /// From a descriptor of [`open_packet`].
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Takes one frame: its header, and its bytes with the VLAN tag in place to the start of `buf`. Returns the frame's
    /// length. The header is the kernel's word and has to be validated like anyone's.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` when one was lost because it is longer than `buf` or cannot be
    /// described by a virtio header; `ENETDOWN` once after the interface went down or away.
    pub fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize> {
        // Leaves room for a tag.
        let Some(room) = buf.len().checked_sub(vlan::TAG_LEN) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        *hdr = VirtioNetHdr::default();
        let mut iovecs = [
            libc::iovec { iov_base: hdr.as_mut_bytes().as_mut_ptr().cast(), iov_len: HEADER_LEN },
            libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: room },
        ];
        let mut control = MaybeUninit::<Control>::uninit();
        // SAFETY: all-zero is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = iovecs.len();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>();
        let read = loop {
            // SAFETY: the message points to two exclusively borrowed buffers and the control buffer, with their sizes.
            let read = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
            if let Ok(read) = usize::try_from(read) {
                break read;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The frame is of a kind of segmentation that has no virtio header, and is lost.
                Some(libc::EINVAL) => return Err(io::ErrorKind::InvalidData.into()),
                _ => return Err(error),
            }
        };
        let len = match read.checked_sub(HEADER_LEN) {
            Some(len) if message.msg_flags & libc::MSG_TRUNC == 0 => len,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        // SAFETY: the message is as recvmsg left it, its control buffer still there.
        match unsafe { removed_tag(&message) } {
            Some(tag) if len >= TAG_OFFSET => {
                insert_tag(hdr, buf, len, tag);
                Ok(len + vlan::TAG_LEN)
            }
            _ => Ok(len),
        }
    }

    /// Sends one frame: `hdr`, then the bytes of at most [`gather::MAX_PIECES`] pieces.
    ///
    /// # Errors
    /// `WouldBlock` or `ENOBUFS` when the interface's queue is full; `EMSGSIZE` for a frame longer than its MTU that
    /// is not to be segmented; `InvalidInput` for too many pieces or a header that does not fit the frame; `EFAULT`
    /// when a piece cannot be read any more; `ENETDOWN`, `ENXIO` when the interface is down or gone.
    ///
    /// # Safety
    /// Every piece lies in memory that stays mapped during the call or gives a fault that the process survives. It may
    /// change meanwhile, as guest memory does; the kernel then sends either version of each byte.
    pub unsafe fn send(&mut self, hdr: &VirtioNetHdr, pieces: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: the caller vouches for the pieces in the same words.
        unsafe { gather::write_frame(self.fd.as_fd(), &hdr.as_bytes()[..HEADER_LEN], pieces) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The tag that the kernel took out of the frame, EtherType first.
///
/// # Safety
/// `message` is as a successful `recvmsg` left it.
unsafe fn removed_tag(message: &libc::msghdr) -> Option<[u8; vlan::TAG_LEN]> {
    // SAFETY: control messages inside the buffer that the kernel has filled, walked by its own macros.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: not null, so it points to a whole header inside the buffer.
    while let Some(found) = unsafe { header.as_ref() } {
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: the kernel's payload of this type is one `tpacket_auxdata`, perhaps not aligned.
            let data: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            let has_tpid = data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let tpid = if has_tpid { data.tp_vlan_tpid } else { vlan::TPID_CUSTOMER };
            let ([a, b], [c, d]) = (tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
            return Some([a, b, c, d]);
        }
        // SAFETY: `header` is a control message of this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// Puts a tag into a frame of `len` bytes, behind which there is room for it, and moves the header's offsets along.
fn insert_tag(hdr: &mut VirtioNetHdr, buf: &mut [u8], len: usize, tag: [u8; vlan::TAG_LEN]) {
    buf.copy_within(TAG_OFFSET..len, TAG_OFFSET + vlan::TAG_LEN);
    buf[TAG_OFFSET..TAG_OFFSET + vlan::TAG_LEN].copy_from_slice(&tag);
    let (needs_csum, is_gso) = (hdr.needs_csum(), hdr.is_gso());
    for (present, field) in [(needs_csum, &mut hdr.csum_start), (is_gso, &mut hdr.hdr_len)] {
        if present {
            field.set(field.get().saturating_add(4));
        }
    }
}
