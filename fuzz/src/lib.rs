//! What input from guests, frontends, the network and files must not do: one function per kind of input.
//!
//! Each takes any bytes, gives them to the product's own code and panics when a rule is broken. They are called by
//! libFuzzer (`libfuzzer/`, see the README) for as long as one likes, and by this crate's tests with the
//! corpora in `corpus/` and with mutations of them (`tests/corpus.rs`), which is part of every test run.

#![forbid(unsafe_code)]

mod control_queue;
mod dhcp;
mod dns;
mod guest;
mod headers;
mod input;
mod network_xml;
mod offload;
mod ring;
mod session;
mod window;

pub use control_queue::control_queue;
pub use dhcp::dhcp;
pub use dns::dns;
pub use headers::headers;
pub use network_xml::network_xml;
pub use offload::offload;
pub use ring::{packed_ring, split_ring};
pub use session::session;
pub use window::window;

/// A target takes whatever comes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("control_queue", control_queue),
    ("dhcp", dhcp),
    ("dns", dns),
    ("headers", headers),
    ("network_xml", network_xml),
    ("offload", offload),
    ("packed_ring", packed_ring),
    ("session", session),
    ("split_ring", split_ring),
    ("window", window),
];
