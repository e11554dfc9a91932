//! The control API of vswitchd: its types, errors and events, the instance paths that daemon and
//! tools share, and the client.
//!
//! REST and JSON under `/v1` on the instance's Unix socket ([`Instance::api_socket`]); errors are
//! RFC 9457 problem details ([`Problem`]); `GET /v1/events` is a server-sent event stream of
//! [`Event`].

#![forbid(unsafe_code)]

pub mod client;
mod event;
mod instance;
mod problem;
mod socket;
mod types;

pub use client::{Client, ClientError};
pub use event::{Event, EventKind};
pub use instance::{Instance, InvalidInstance};
pub use problem::{Code, Problem};
pub use socket::{InvalidMode, SocketAccess, SocketMode};
pub use types::*;
