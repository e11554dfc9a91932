//! The netloom KVM virtual machine monitor: just enough PC to run a guest on a network port.
//!
//! ```text
//! netloom-vmm ─► machine    builds the parts, waits for signals, input and lost backends
//!                  ├─ boot       kernel, command line, tables ─► memory (one memfd)
//!                  ├─ kvm        machine, vCPU thread, irqfd / ioeventfd / routing
//!                  └─ bus        ports and memory ─► device/{serial,i8042,paravirt}
//!                       └─ pci        host bridge, configuration, MSI-X
//!                            └─ virtio   transport ─► net ─► vhost-user backend
//! ```
//!
//! Frames never pass through this process: the backend maps the guest's memory and works on its
//! rings, KVM turns doorbells into kicks and calls into interrupts. What the VMM does is set-up,
//! control registers and the console.
//!
//! Invariants: a device is called with its own lock held and takes no other device's; only the
//! vCPU thread and the main loop call devices; guest memory is touched only through vm-memory.

pub mod boot;
pub mod bus;
pub mod device;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod virtio;
pub mod wiring;
