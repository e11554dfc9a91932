//! Hostile guests against a running vswitchd: each attack gets a clear trace at the attacker's own port,
//! and a probe of 1,000 frames per second between two other guests loses nothing meanwhile.

mod control;
mod flood;
mod header;
mod log;
mod memory;
mod protocol;
mod rings;
mod scene;
mod vanish;
