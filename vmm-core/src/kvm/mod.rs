//! The one room that talks to `/dev/kvm`: the virtual machine, its interrupt routing, its vCPU.

mod cpuid;
mod vcpu;
mod wiring;

pub use vcpu::{Buses, Vcpu, VcpuEnd, VcpuHandle};
pub use wiring::KvmWiring;

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::layout;
use crate::memory::GuestMemory;

/// Why KVM does not give us a machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error(
        "there is no /dev/kvm: load the module kvm_intel or kvm_amd, or enable virtualization \
         in the firmware (inside a virtual machine: nested virtualization)"
    )]
    Missing,
    #[error("no permission for /dev/kvm: run as root or join the group kvm")]
    Permission,
    #[error("cannot use /dev/kvm")]
    Open(#[source] io::Error),
    #[error("this KVM has API version {0}, not 12")]
    Version(i32),
    #[error("this KVM lacks {0:?}, which is needed")]
    Capability(Cap),
    #[error("KVM refused to {what}")]
    Refused { what: &'static str, source: kvm_ioctls::Error },
}

pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused { what, source }
}

/// A virtual machine with in-kernel interrupt controllers and timer, and `memory` plugged in.
#[derive(Debug)]
pub struct KvmMachine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    /// Kept until the machine is gone: KVM uses the mapping.
    _memory: GuestMemory,
}

impl KvmMachine {
    /// # Errors
    /// [`KvmError`].
    pub fn new(memory: &GuestMemory) -> Result<Self, KvmError> {
        let kvm = open()?;
        let vm = kvm.create_vm().map_err(refused("create a virtual machine"))?;
        vm.set_tss_address(layout::KVM_TSS).map_err(refused("place the task state segment"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        vm.create_irq_chip().map_err(refused("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(refused("create the interval timer"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().expose_provenance() as u64,
            };
            // SAFETY: the mapping covers the slot, lives as long as `_memory`, and is only ever
            // accessed through vm-memory's volatile accessors.
            unsafe { vm.set_user_memory_region(slot) }.map_err(refused("plug memory in"))?;
        }
        Ok(Self { kvm, vm: Arc::new(vm), _memory: memory.clone() })
    }

    /// The connections that KVM keeps by itself.
    #[must_use]
    pub fn wiring(&self) -> KvmWiring {
        KvmWiring::new(self.vm.clone())
    }
}

fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| {
        let error = io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            io::ErrorKind::NotFound => KvmError::Missing,
            io::ErrorKind::PermissionDenied => KvmError::Permission,
            _ => KvmError::Open(error),
        }
    })?;
    match kvm.get_api_version() {
        12 => {}
        other => return Err(KvmError::Version(other)),
    }
    let needed = [
        Cap::Irqchip,
        Cap::UserMemory,
        Cap::Ioeventfd,
        Cap::IoeventfdNoLength,
        Cap::Irqfd,
        Cap::IrqRouting,
        Cap::Pit2,
        Cap::ImmediateExit,
        Cap::SetTssAddr,
    ];
    match needed.into_iter().find(|cap| !kvm.check_extension(*cap)) {
        Some(cap) => Err(KvmError::Capability(cap)),
        None => Ok(kvm),
    }
}
