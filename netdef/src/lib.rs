//! The network model: libvirt network XML in, validated types, libvirt's canonical XML out. No I/O.
pub mod model;
