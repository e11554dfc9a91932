//! Host interfaces as packet ports.

use std::os::fd::OwnedFd;

use super::Host;
use super::error::{Doing, Error, Result};
use super::link;
use super::netlink::connect;

impl Host {
    /// Opens an AF_PACKET socket on an interface of the daemon's namespace.
    ///
    /// # Errors
    /// When the interface does not exist, is not Ethernet or leads back into this switch, or the socket is refused.
    pub async fn open_packet(&self, ifname: &str) -> Result<OwnedFd> {
        let (name, instance) = (ifname.to_owned(), self.instance().clone());
        self.home()
            .run(move || {
                let link = connect(async |handle| link::need(&handle, &name).await)?;
                let reason = if !link.ethernet {
                    Some("its frames are not Ethernet's")
                } else if link.object(&instance).is_some() {
                    Some("it is a port of this switch already, and frames would go around")
                } else {
                    None
                };
                if let Some(reason) = reason {
                    return Err(Error::NoUplink { name, reason });
                }
                datapath::port::packet::open_packet(link.index)
                    .doing(|| format!("open a packet socket on {name}"))
            })
            .await
    }
}
