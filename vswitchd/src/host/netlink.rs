//! A route netlink connection for the length of one piece of work.
//!
//! The socket belongs to the namespace of the thread that opens it, so it is opened on the thread
//! that did `setns` ([`super::netns`]) and driven by a small runtime there.

use std::future::Future;
use std::io;

use rtnetlink::Handle;

use super::error::{Doing, Result};
use super::netns::Namespace;

impl Namespace {
    /// Runs `work` inside, with a netlink connection of that namespace.
    pub(super) async fn netlink<T, F, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
        W: FnOnce(Handle) -> F + Send + 'static,
    {
        self.run(move || connect(work)).await
    }
}

/// Runs `work` on the calling thread with a netlink connection of its namespace.
pub(super) fn connect<T, F: Future<Output = Result<T>>>(
    work: impl FnOnce(Handle) -> F,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .doing(|| "start a netlink runtime".into())?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// The kernel's error number, where netlink carried one.
pub(super) fn to_io(error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// [`Doing`] for netlink results.
pub(super) trait NetlinkDoing<T> {
    fn netlink_doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> NetlinkDoing<T> for Result<T, rtnetlink::Error> {
    fn netlink_doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| to_io(&e)).doing(action)
    }
}

/// Whether the kernel answered with this error number.
pub(super) fn is_errno(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    to_io(error).raw_os_error() == Some(errno.raw_os_error())
}
