//! A new daemon goes on where another one was, with its sockets, rings and tables, so that guests notice nothing.
//!
//! ```text
//!  old: workers end ─► Document (JSON in a sealed memfd) + descriptors ─► carrier ─► new: import ─► workers start
//! ```
//!
//! Two carriers bring the same stream ([`stream`]): a socket between two daemons that run ([`direct`],
//! `vswitchd --take-over`), and systemd's file descriptor store, where it waits between the end of one and the start of
//! the next ([`store`], `systemctl restart`). What is handed over is what guests would miss: connections with their
//! memory and rings, TAPs, learned addresses, counters, listening sockets. Everything else is read from disk as after any
//! restart ([`crate::network`]'s `restore`), while frames move already.
//!
//! Whatever cannot be handed over begins anew; a document that cannot be read makes an ordinary restart.

mod direct;
pub mod store;
mod stream;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context as _;
use api::Instance;
use datapath::handover::{Fds, State};
use serde::{Deserialize, Serialize};

pub use self::direct::{Caller, Estate, callers};
use crate::network::Legacy;
use crate::store::{InstanceLock, PortDocument};

/// Version of the document. Another one is not read.
const VERSION: u32 = 1;

/// What the new daemon gets. Descriptors are places in the list beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    datapath: State,
    api_socket: Option<u32>,
    dns_sockets: Vec<u32>,
    hub_sockets: Vec<u32>,
    /// Guests on hub sockets, which are on no disk.
    guests: Vec<PortDocument>,
    /// The instance's lock; where the old daemon still has it.
    lock: Option<u32>,
}

/// What the daemon leaves beside its datapath.
#[derive(Debug, Default)]
pub struct Rest {
    pub api: Option<OwnedFd>,
    pub legacy: Legacy,
}

/// What another daemon has left to this one.
#[derive(Debug)]
pub struct Inheritance {
    state: State,
    fds: Fds,
    rest: Rest,
    from: From,
}

#[derive(Debug)]
enum From {
    Store,
    Direct(direct::Successor, OwnedFd),
}

/// What there is to take over.
///
/// # Errors
/// When the daemon that runs cannot be replaced.
pub fn inherit(instance: &Instance, take_over: bool) -> anyhow::Result<Option<Inheritance>> {
    match store::take() {
        Ok(Some(delivery)) => match open(delivery, |_| Ok(From::Store)) {
            Ok(inheritance) => return Ok(Some(inheritance)),
            Err(error) => tracing::warn!("what the last daemon left cannot be used: {error:#}"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!("cannot look for what the last daemon left: {error}"),
    }
    if !take_over {
        return Ok(None);
    }
    let Some((successor, delivery)) = direct::succeed(instance)? else { return Ok(None) };
    let mut successor = Some(successor);
    let opened = open(delivery, |lock| {
        let lock = lock.context("without the instance's lock")?;
        Ok(From::Direct(successor.take().context("taken twice")?, lock))
    });
    match opened {
        Ok(inheritance) => Ok(Some(inheritance)),
        Err(error) => {
            tracing::warn!("what the running daemon hands over cannot be used: {error:#}");
            drop(successor);
            direct::replace(instance)?;
            Ok(None)
        }
    }
}

impl Inheritance {
    /// The datapath of the other daemon, moving frames, and the right to serve the instance.
    ///
    /// # Errors
    /// When the other daemon goes on by itself, or threads and descriptors cannot be had.
    pub fn enter(
        self,
        instance: &Instance,
        config: datapath::Config,
    ) -> anyhow::Result<(InstanceLock, Running, Rest)> {
        let Self { state, mut fds, rest, from } = self;
        let path = crate::store::Store::lock_path(instance);
        let import = |fds: &mut Fds| datapath::Datapath::import(config, state, fds);
        let (lock, running) = match from {
            From::Store => {
                let lock = InstanceLock::acquire(&path, instance.name())?;
                (lock, import(&mut fds)?.start()?)
            }
            From::Direct(mut successor, lock) => {
                let imported = import(&mut fds)?;
                successor.ready()?;
                let running = imported.start()?;
                successor.running()?;
                (InstanceLock::inherit(&path, lock)?, running)
            }
        };
        Ok((lock, running, rest))
    }
}

/// A datapath and its events.
pub type Running = (datapath::Datapath, crossbeam_channel::Receiver<datapath::Event>);

/// Puts the document and the list of descriptors together.
fn pack(
    state: State,
    mut fds: Fds,
    rest: &Rest,
    lock: Option<&InstanceLock>,
) -> io::Result<stream::Delivery> {
    let mut put = |fd: &OwnedFd| fds.put(fd);
    let api_socket = rest.api.as_ref().map(&mut put).transpose()?;
    let dns_sockets = rest.legacy.dns.iter().map(&mut put).collect::<io::Result<_>>()?;
    let hub_sockets = rest.legacy.hubs.iter().map(put).collect::<io::Result<_>>()?;
    let lock = lock.map(|lock| fds.put(lock.as_fd())).transpose()?;
    let guests = rest.legacy.guests.clone();
    let document = Document { datapath: state, api_socket, dns_sockets, hub_sockets, guests, lock };
    let document = serde_json::to_vec(&document)?;
    Ok(stream::Delivery { version: VERSION, document, fds: fds.into_vec() })
}

fn open(
    delivery: stream::Delivery,
    from: impl FnOnce(Option<OwnedFd>) -> anyhow::Result<From>,
) -> anyhow::Result<Inheritance> {
    let stream::Delivery { version, document, fds } = delivery;
    anyhow::ensure!(version == VERSION, "it is of version {version}, this daemon reads {VERSION}");
    let Document { datapath: state, api_socket, dns_sockets, hub_sockets, guests, lock } =
        serde_json::from_slice(&document).context("it does not say what it should")?;
    let mut fds = Fds::new(fds);
    let api = api_socket.map(|place| fds.take(place)).transpose()?;
    let mut take = |places: Vec<u32>| -> io::Result<Vec<OwnedFd>> {
        places.into_iter().map(|place| fds.take(place)).collect()
    };
    let legacy = Legacy { dns: take(dns_sockets)?, hubs: take(hub_sockets)?, guests };
    let lock = lock.map(|place| fds.take(place)).transpose()?;
    Ok(Inheritance { state, fds, rest: Rest { api, legacy }, from: from(lock)? })
}
