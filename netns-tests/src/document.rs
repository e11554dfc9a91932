//! Documents as one daemon leaves them for the next, written by somebody else.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A file as documents travel in.
///
/// # Errors
/// When there is no memory.
pub fn sealed(text: &[u8]) -> anyhow::Result<OwnedFd> {
    let file = memfd_create("document", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)?;
    rustix::io::write(&file, text)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK)?;
    Ok(file)
}

/// Sends `words`, with a document if there is one.
///
/// # Errors
/// When nobody listens.
pub fn send(socket: &OwnedFd, words: &[u8], document: Option<&OwnedFd>) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = document.iter().map(|file| file.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(words)], &mut control, SendFlags::empty())?;
    Ok(())
}
