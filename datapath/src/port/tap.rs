//! TAP devices: opening their queues, and moving frames through them.
//!
//! One file descriptor is one queue. Frames carry the 12-byte virtio header in both directions, so that large
//! segments and partial checksums pass as they are. A queue blocks nobody: reads and writes return `WouldBlock`. This
//! module creates or attaches the device; addresses, state, persistence and removal are the host's business.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, opcode};
use wire::VirtioNetHdr;
use zerocopy::IntoBytes;

use super::gather;

const TUN: u8 = b'T';
const SET_IFF: Opcode = opcode::write::<libc::c_int>(TUN, 202);
const SET_OFFLOAD: Opcode = opcode::write::<libc::c_uint>(TUN, 208);
const SET_VNET_HDR_SIZE: Opcode = opcode::write::<libc::c_int>(TUN, 216);
const SET_VNET_LITTLE_ENDIAN: Opcode = opcode::write::<libc::c_int>(TUN, 220);

const HEADER_SIZE: libc::c_int = 12;
const _: () = assert!(HEADER_SIZE as usize == wire::virtio_net::HDR_LEN);

/// What the kernel may leave to us: checksums and TCP segmentation.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation too, which kernels have since 6.2.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Opens `queues` queues of the TAP device `name` in the calling thread's network namespace. A device that is not
/// there is created and goes away with its last descriptor unless made persistent; one that is there has to be a TAP
/// with multiple queues. `name` may hold one `%d` for a number that the kernel chooses.
///
/// # Errors
/// `InvalidInput` for a name that no interface can have; otherwise the kernel's error as it is (`EINVAL`: the device
/// is no multi-queue TAP; `EBUSY`: its queues are in use).
pub fn open_tap(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let mut request = interface_request(name)?;
    (0..queues.max(1)).map(|_| open_queue(&mut request)).collect()
}

/// `ifreq` as TUNSETIFF reads it, with the padding of its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

fn interface_request(text: &str) -> io::Result<InterfaceRequest> {
    // The last byte stays zero.
    let valid = !text.is_empty()
        && text.len() < libc::IFNAMSIZ
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if !valid {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{text:?} is not an interface name: expected 1 to 15 letters, digits, '-', '_' or '.'"
            ),
        ));
    }
    let mut name = [0; libc::IFNAMSIZ];
    name[..text.len()].copy_from_slice(text.as_bytes());
    // IFF_MULTI_QUEUE is needed again on every later attachment to the same device.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(InterfaceRequest { name, flags, rest: [0; 22] })
}

/// Opens one queue and leaves the device's real name in the request.
fn open_queue(request: &mut InterfaceRequest) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, whose size the request has; the other two read one `int` each.
    unsafe {
        rustix::ioctl::ioctl(&fd, Updater::<SET_IFF, _>::new(request))?;
        rustix::ioctl::ioctl(&fd, Setter::<SET_VNET_HDR_SIZE, libc::c_int>::new(HEADER_SIZE))?;
        rustix::ioctl::ioctl(&fd, Setter::<SET_VNET_LITTLE_ENDIAN, libc::c_int>::new(1))?;
    }
    // Offloads belong to the device, so the last queue's say counts; all say the same.
    set_offload(&fd, OFFLOADS | UDP_OFFLOADS).or_else(|_| set_offload(&fd, OFFLOADS))?;
    Ok(fd)
}

fn set_offload(fd: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself and touches no memory.
    unsafe {
        rustix::ioctl::ioctl(fd, IntegerSetter::<SET_OFFLOAD>::new_usize(offloads as usize))?;
    }
    Ok(())
}

/// One queue of a TAP device.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
}

impl TapQueue {
    /// From a descriptor of [`open_tap`].
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Takes one frame out of the queue: its header, and its bytes to the start of `buf`. Returns the frame's length.
    /// The header is the kernel's word and has to be validated like anyone's.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is empty; `InvalidData` when a frame was lost because it filled `buf` and may have
    /// been cut (64 KiB and the Ethernet header and tag are enough for every frame), or because no virtio header can
    /// describe it; otherwise the kernel's error, as `EBADFD` when the device is gone.
    pub fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize> {
        let size = buf.len();
        let mut slices = [IoSliceMut::new(hdr.as_mut_bytes()), IoSliceMut::new(buf)];
        let read = match rustix::io::retry_on_intr(|| rustix::io::readv(&self.fd, &mut slices)) {
            Err(Errno::INVAL) => return Err(io::ErrorKind::InvalidData.into()),
            read => read?,
        };
        match read.checked_sub(wire::virtio_net::HDR_LEN) {
            Some(len) if len < size => Ok(len),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Puts one frame into the queue: `hdr`, then the bytes of at most [`gather::MAX_PIECES`] pieces.
    ///
    /// # Errors
    /// `WouldBlock` when the device's queue is full; `InvalidInput` for too many pieces or a header that does not fit
    /// the frame; `EFAULT` when a piece cannot be read any more; `EIO` while the device is down.
    ///
    /// # Safety
    /// Every piece lies in memory that stays mapped during the call or gives a fault that the process survives. It may
    /// change meanwhile, as guest memory does; the kernel then sends either version of each byte.
    pub unsafe fn send(&mut self, hdr: &VirtioNetHdr, pieces: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: the caller vouches for the pieces in the same words.
        unsafe { gather::write_frame(self.fd.as_fd(), hdr.as_bytes(), pieces) }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
