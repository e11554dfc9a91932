//! PCI: configuration space, the host bridge with its two configuration ports, and MSI-X.
//!
//! There is one bus. The VMM places base address registers before the guest runs and follows
//! when the guest moves them. Functions have no interrupt pin: drivers use MSI-X or poll.

mod bus;
mod config;
mod msix;

pub use bus::{BDF_LIMIT, MemoryWindow, NoSlot, PciBus, PciDevice, PciPorts};
pub use config::{BAR_COUNT, ConfigSpace, Identity};
pub use msix::{Msix, NO_VECTOR};
