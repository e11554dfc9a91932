//! The state machine fed with raw messages: framing, every row of the table, orders of messages as
//! known frontends send them, and random streams.

mod framing;
mod handover;
mod log;
mod memory;
mod orders;
mod peer;
mod random;
mod rings;
mod setup;
