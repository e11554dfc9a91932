//! One network's services: a thread for DHCP, a thread for DNS, and the names between them.

use std::net::SocketAddr;
use std::path::PathBuf;

use uuid::Uuid;

use crate::dhcp4;
use crate::dns;
use crate::event::LeaseEvent;
use crate::frame_io::FrameIo;
use crate::lease::Lease;

/// What one network's services do.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Name of the network, for logs.
    pub network: String,
    pub dhcp4: Option<dhcp4::Config>,
    pub dns: Option<dns::Config>,
    /// The lease journal; made, with mode 0600, when it does not exist. Its directory must.
    pub lease_file: PathBuf,
}

/// Why services did not start or take a new configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Another socket has the address, or port 53 of the wildcard.
    #[error("{addr} is in use by another process")]
    PortBusy { addr: SocketAddr },
    #[error("cannot listen on {addr}")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Dhcp4(#[from] dhcp4::ConfigError),
    #[error(
        "the listening addresses, the lease file and the presence of DHCP cannot change while running"
    )]
    NotReloadable,
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// The running services of one network. Dropping it stops them.
#[derive(Debug)]
pub struct Service {}

impl Service {
    /// Starts DHCP on `io` and DNS on sockets bound in the calling thread's network namespace.
    ///
    /// # Errors
    /// Nothing is left running.
    pub fn start(
        config: ServiceConfig,
        io: Option<Box<dyn FrameIo>>,
        events: impl Fn(LeaseEvent) + Send + 'static,
    ) -> Result<Self, ServiceError> {
        let _ = (config, io, events);
        Ok(Self {})
    }

    /// The current leases, by address.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        Vec::new()
    }

    /// Takes a new configuration; leases and the DNS cache stay.
    ///
    /// # Errors
    /// The old configuration stays in force.
    pub fn reload(&self, config: &ServiceConfig) -> Result<(), ServiceError> {
        let _ = config;
        Ok(())
    }

    /// Frees the addresses that were taken through a port that is no more.
    pub fn port_removed(&self, port: Uuid) {
        let _ = port;
    }

    /// Stops answering; leases stay on disk.
    pub fn stop(self) {}
}
