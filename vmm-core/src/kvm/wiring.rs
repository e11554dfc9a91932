//! irqfd, ioeventfd and the GSI routing table.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::lock;
use crate::layout;
use crate::wiring::{MsiMessage, Wiring};

/// [`Wiring`] by KVM.
pub struct KvmWiring {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

struct Routes {
    /// One past the last GSI given out.
    next: u32,
    messages: Vec<(u32, MsiMessage)>,
}

impl fmt::Debug for KvmWiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmWiring").finish_non_exhaustive()
    }
}

impl KvmWiring {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        let routes = Routes { next: layout::FIRST_MSI_GSI, messages: Vec::new() };
        Self { vm, routes: Mutex::new(routes) }
    }

    /// Makes `event` raise one of the legacy interrupts.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn connect_legacy(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(into_io)
    }
}

/// The legacy interrupts where a PC has them: 16 at the PICs, 24 at the IOAPIC.
fn legacy() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let pics = (0..16).map(move |gsi| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        entry(gsi, chip, gsi % 8)
    });
    let ioapic = (0..layout::FIRST_MSI_GSI).map(move |gsi| {
        // The timer (0) comes in at pin 2, as firmware usually says.
        entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi })
    });
    pics.chain(ioapic)
}

impl Wiring for KvmWiring {
    fn allocate_gsi(&self) -> io::Result<u32> {
        let mut routes = lock(&self.routes);
        // Every GSI can need an entry, beside the 40 legacy ones.
        if routes.next as usize + 40 >= KVM_MAX_IRQ_ROUTES {
            return Err(io::Error::other("there is no interrupt number left"));
        }
        routes.next += 1;
        Ok(routes.next - 1)
    }

    fn route_msi(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        routes.messages.retain(|(other, _)| *other != gsi);
        routes.messages.push((gsi, message));
        let msis = routes.messages.iter().map(|(gsi, message)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([a, b, c, d]),
                address_hi: u32::from_le_bytes([e, f, g, h]),
                data: message.data,
                ..Default::default()
            };
            entry
        });
        let entries: Vec<_> = legacy().chain(msis).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::other("there are too many interrupt routes"))?;
        self.vm.set_gsi_routing(&table).map_err(into_io)
    }

    fn connect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd(event, gsi).map_err(into_io)
    }

    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(event, gsi).map_err(into_io)
    }

    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(into_io)
    }

    fn disconnect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(into_io)
    }
}

fn into_io(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
