//! One network's services: a thread for DHCP, a thread for DNS, and the names between them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use uuid::Uuid;

use crate::dhcp_thread::{Command, DhcpThread, Shared};
use crate::dhcp4::{self, Counters, Engine};
use crate::dns;
use crate::dns::Dns;
use crate::dns::names::{Names, StaticNames};
use crate::event::LeaseEvent;
use crate::frame_io::{FrameIo, Waker};
use crate::lease::{Lease, Store, StoreError};
use crate::time::Now;

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
    #[error("DHCP needs a port to the network")]
    NoFrameIo,
    #[error(transparent)]
    Dhcp4(#[from] dhcp4::ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "whether there is DHCP or DNS, where it listens and the lease file cannot change while running"
    )]
    NotReloadable,
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("the services have stopped")]
    Stopped,
}

/// The running services of one network. Dropping it stops them.
pub struct Service {
    config: Mutex<ServiceConfig>,
    names: Arc<Names>,
    dhcp: Option<Dhcp>,
    dns: Option<Dns>,
}

/// The handle of the DHCP thread.
struct Dhcp {
    commands: Sender<Command>,
    wake: Waker,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts DHCP on `io` and DNS on sockets bound in the calling thread's network namespace.
    /// `events` is called on the DHCP thread and must not block.
    ///
    /// # Errors
    /// Nothing is left running.
    pub fn start(
        config: ServiceConfig,
        io: Option<Box<dyn FrameIo>>,
        events: impl Fn(LeaseEvent) + Send + 'static,
    ) -> Result<Self, ServiceError> {
        let names = Arc::new(Names::default());
        if let Some(dns) = &config.dns {
            names.configure(dns, &static_names(config.dhcp4.as_ref()));
        }
        let dns = config.dns.as_ref().map(|dns| Dns::start(dns, names.clone())).transpose()?;
        let dhcp = match &config.dhcp4 {
            None => None,
            Some(dhcp4) => {
                let io = io.ok_or(ServiceError::NoFrameIo)?;
                Some(Dhcp::start(&config, dhcp4.clone(), io, Box::new(events), &names)?)
            }
        };
        Ok(Self { config: Mutex::new(config), names, dhcp, dns })
    }

    /// The current leases, by address.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        self.dhcp.as_ref().map(|dhcp| dhcp.shared.leases()).unwrap_or_default()
    }

    /// What the DHCP engine has seen and done.
    #[must_use]
    pub fn dhcp4_counters(&self) -> Option<Counters> {
        self.dhcp.as_ref().map(|dhcp| dhcp.shared.counters())
    }

    /// What the DNS server has seen and done.
    #[must_use]
    pub fn dns_counters(&self) -> Option<&dns::Counters> {
        self.dns.as_ref().map(|dns| &*dns.counters)
    }

    /// The sockets of DNS, for another process that takes them over (see [`dns::InheritedSockets`]).
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn dns_sockets(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.dns.as_ref().map_or(Ok(Vec::new()), Dns::sockets)
    }

    /// Takes a new configuration; leases and the DNS cache stay.
    ///
    /// # Errors
    /// The old configuration stays in force.
    pub fn reload(&self, config: ServiceConfig) -> Result<(), ServiceError> {
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let listen = |config: &ServiceConfig| {
            config.dns.as_ref().map(|dns| (dns.listen.clone(), dns.port, dns.interface.clone()))
        };
        if config.dhcp4.is_some() != current.dhcp4.is_some()
            || config.lease_file != current.lease_file
            || listen(&config) != listen(&current)
        {
            return Err(ServiceError::NotReloadable);
        }
        if let (Some(dhcp), Some(dhcp4)) = (&self.dhcp, &config.dhcp4) {
            let (done, result) = crossbeam_channel::bounded(1);
            dhcp.command(Command::Reload(Box::new(dhcp4.clone()), done));
            result.recv().map_err(|_| ServiceError::Stopped)??;
        }
        if let Some(dns) = &config.dns {
            self.names.configure(dns, &static_names(config.dhcp4.as_ref()));
            if let Some(running) = &self.dns {
                running.reload(dns);
            }
        }
        *current = config;
        Ok(())
    }

    /// Frees the addresses that were taken through a port that is no more.
    pub fn port_removed(&self, port: Uuid) {
        if let Some(dhcp) = &self.dhcp {
            dhcp.command(Command::PortRemoved(port));
        }
    }

    /// Stops answering; leases stay on disk.
    pub fn stop(self) {}
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Dhcp {
    fn start(
        config: &ServiceConfig,
        dhcp4: dhcp4::Config,
        io: Box<dyn FrameIo>,
        events: Box<dyn Fn(LeaseEvent) + Send>,
        names: &Arc<Names>,
    ) -> Result<Self, ServiceError> {
        dhcp4.check()?;
        let opened = Store::open(&config.lease_file)?;
        if opened.torn > 0 {
            tracing::warn!(
                network = config.network,
                file = %config.lease_file.display(),
                octets = opened.torn,
                "cut an unfinished record off the lease file"
            );
        }
        let engine = Engine::new(dhcp4, opened.leases, Now::read())?;
        let (commands, receiver) = crossbeam_channel::unbounded();
        let wake = io.waker();
        let shared = Arc::new(Shared::default());
        let thread = DhcpThread {
            network: config.network.clone(),
            engine,
            store: opened.store,
            io,
            commands: receiver,
            shared: shared.clone(),
            names: names.clone(),
            events,
            untold: Vec::new(),
        };
        thread.publish_loaded();
        let builder = std::thread::Builder::new().name("dhcp".to_owned());
        let thread = builder.spawn(move || thread.run()).map_err(ServiceError::Thread)?;
        Ok(Self { commands, wake, shared, thread: Some(thread) })
    }

    fn command(&self, command: Command) {
        // A thread that has ended has logged why.
        let _ = self.commands.send(command);
        (self.wake)();
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn static_names(dhcp4: Option<&dhcp4::Config>) -> StaticNames {
    let hosts = dhcp4.map(|config| config.hosts.as_slice()).unwrap_or_default();
    hosts.iter().filter_map(|host| Some((host.ip, host.name.clone()?))).collect()
}
