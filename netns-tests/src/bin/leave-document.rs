//! Leaves something in the store of the service manager that runs it, in the place of what a daemon leaves for the next one.
//!
//! Run it before the daemon (`ExecStartPre=`, with `NotifyAccess=all`). What it leaves is in its directory: the message
//! `words`, with the file `document` as a descriptor if there is one. Without `words` it leaves nothing.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use netns_tests::document;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sd_notify::NotifyState;

/// Puts a document into the service manager's store.
#[derive(Debug, Parser)]
#[command(name = "leave-document")]
struct Cli {
    /// Directory of the document
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Cli { directory } = Cli::parse();
    let Some(words) = read(&directory.join("words"))? else { return Ok(()) };
    let document = read(&directory.join("document"))?;
    let document = document.map(|text| document::sealed(&text)).transpose()?;
    let (ours, stored) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    document::send(&ours, &words, document.as_ref())?;
    let state =
        [NotifyState::FdStore, NotifyState::FdName("handover"), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[stored.as_fd()]).context("the notify socket")
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        text => text.map(Some).with_context(|| path.display().to_string()),
    }
}
