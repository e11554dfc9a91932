//! Worker threads and ports: where frames move.
//!
//! The control plane calls [`Datapath`]. Inside:
//!
//! ```text
//!  control ──► model ──► snapshot (immutable, swapped whole) ──┐
//!                                                               ▼
//!  port/vhost_user: frontends' messages ─► rings ──►  worker: poll ─► burst ─► decide ─► copy ─► publish, signal
//!  port/{tap,packet}: descriptors                        (switch::Bridge)
//!  port/internal: engines of the daemon
//! ```
//!
//! - `worker/` moves frames. It allocates nothing, waits for nobody and logs nothing while frames are in order.
//! - `port/vhost_user/` talks to frontends, maps guests' memory and builds rings (`virtio_ring`).
//! - `control/` holds bridges and ports and publishes them; `epoch` says when all workers have seen it.
//! - `balance/` decides which worker serves which queue.
//!
//! The datapath never touches the host's network configuration: it gets open descriptors.

mod balance;
mod config;
mod control;
mod counters;
mod epoch;
pub mod handover;
#[cfg(feature = "hot-path")]
pub mod hot_path;
pub mod offload;
pub mod port;
mod sleeper;
mod snapshot;
mod sync;
mod wake;
mod worker;

pub use config::{
    BridgeSpec, Config, Error, Event, FdbEntry, PortIo, PortSpec, PortState, PortStats, PortStatus,
    QueueStatus, VhostSocket, WorkerStatus,
};
pub use control::{Datapath, Imported, Inherited, Suspended};
pub use port::internal::{
    Closed, Egress, Ingress, InternalHandle, InternalPort, SendError, Waker, internal,
};
