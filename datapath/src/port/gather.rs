//! One frame out of several pieces of memory into a descriptor, in one call.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Pieces that one frame may consist of. A frame of more has to be made one's own first.
pub const MAX_PIECES: usize = 64;

/// Writes a header and the pieces as one frame.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_PIECES`] pieces, otherwise the kernel's.
///
/// # Safety
/// Every piece lies in memory that stays mapped during the call, or whose absence the kernel reports by `EFAULT`. Its
/// bytes may change meanwhile.
pub(super) unsafe fn write_frame(
    fd: BorrowedFd<'_>,
    header: &[u8],
    pieces: &[libc::iovec],
) -> io::Result<()> {
    let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES + 1];
    let Some(rest) = iovecs.get_mut(1..=pieces.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    for (to, piece) in rest.iter_mut().zip(pieces) {
        to.write(*piece);
    }
    // The kernel only reads through the pointer.
    let base = header.as_ptr().cast_mut().cast();
    iovecs[0].write(libc::iovec { iov_base: base, iov_len: header.len() });
    // At most 65.
    let count = libc::c_int::try_from(pieces.len() + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: the first `count` elements were written above; the header is borrowed during the call, and the
        // caller vouches for the pieces.
        // WHY UNSAFE: no `IoSlice` may point to guest memory, and a copy of each frame costs as much as the write
        // saves.
        let written = unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr().cast(), count) };
        if written >= 0 {
            // TAPs and packet sockets take a frame whole or not at all.
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
