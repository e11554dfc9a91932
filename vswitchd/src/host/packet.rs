//! Host interfaces as packet ports.

use std::os::fd::OwnedFd;

use super::Host;
use super::error::{Doing, Result};
use super::link;
use super::netlink::connect;

impl Host {
    /// Opens an AF_PACKET socket on an interface of the daemon's namespace.
    ///
    /// # Errors
    /// When the interface does not exist or the socket is refused.
    pub async fn open_packet(&self, ifname: &str) -> Result<OwnedFd> {
        let name = ifname.to_owned();
        self.home()
            .run(move || {
                let index = connect(async |handle| Ok(link::need(&handle, &name).await?.index))?;
                datapath::port::packet::open_packet(index)
                    .doing(|| format!("open a packet socket on {name}"))
            })
            .await
    }
}
