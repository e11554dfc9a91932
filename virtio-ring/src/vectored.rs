//! Gathered writes to a file descriptor: private bytes first, then guest memory, read once by the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::GuestSlice;

/// Runs of guest memory in one write. A frame of more runs must be copied first.
const MAX_PARTS: usize = 64;

/// Writes the `private` parts in order, then `tail`, in one `writev`: one frame on a TAP or packet socket.
///
/// # Errors
/// What `writev` gives: `WouldBlock` when the queue is full, `EFAULT` when guest memory is gone (poisoned). More than 64 parts are
/// `InvalidInput`.
pub fn write_vectored(
    fd: BorrowedFd<'_>,
    private: &[&[u8]],
    tail: &[GuestSlice<'_>],
) -> io::Result<usize> {
    let mut parts = [libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; MAX_PARTS];
    let count = private.len() + tail.len();
    let Some(list) = parts.get_mut(..count) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (head, rest) = list.split_at_mut(private.len());
    for (part, bytes) in head.iter_mut().zip(private) {
        *part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    }
    for (part, slice) in rest.iter_mut().zip(tail) {
        *part = slice.as_iovec();
    }
    let count = libc::c_int::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the list has `count` parts; the private ones are borrowed slices, the others mapped by the invariant of
    // GuestSlice. The kernel only reads them.
    let written = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
