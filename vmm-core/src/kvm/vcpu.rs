//! The vCPU: its state before the first instruction, its thread, and how it is stopped.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_segment,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{KvmError, KvmMachine, cpuid, refused};
use crate::boot::{Entry, GDT_ENTRIES};
use crate::bus::Bus;
use crate::device::{EndSwitch, GuestEnd};
use crate::layout;

/// The two address spaces a vCPU accesses through exits.
#[derive(Debug)]
pub struct Buses {
    pub ports: Bus,
    pub memory: Bus,
}

/// Why a vCPU stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEnd {
    /// The guest ended itself.
    Guest(GuestEnd),
    /// [`VcpuHandle::stop`].
    Stopped,
    /// A fault that could not even be reported to the guest ("triple fault").
    Shutdown(String),
    /// KVM cannot go on; says where and why.
    Failed(String),
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    run: Arc<RunPage>,
    tsc_khz: u32,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("tsc_khz", &self.tsc_khz).finish_non_exhaustive()
    }
}

impl KvmMachine {
    /// Creates the boot processor, to start at `entry`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn vcpu(&self, entry: Entry) -> Result<Vcpu, KvmError> {
        let fd = self.vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let mut leaves = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell its CPUID"))?;
        let deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        cpuid::adapt(&mut leaves, 0, tsc_khz, deadline);
        fd.set_cpuid2(&leaves).map_err(refused("set CPUID"))?;
        set_msrs(&fd)?;
        set_registers(&fd, entry)?;
        set_local_interrupts(&fd)?;
        let run = RunPage::map(&fd, self.vm.run_size()).map_err(KvmError::Open)?;
        Ok(Vcpu { fd, run: Arc::new(run), tsc_khz })
    }
}

fn set_msrs(fd: &VcpuFd) -> Result<(), KvmError> {
    const MISC_ENABLE: u32 = 0x1a0;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    // Fast strings; memory is write-back by default.
    let entries = [entry(MISC_ENABLE, 1), entry(MTRR_DEF_TYPE, 1 << 11 | 6)];
    let msrs = Msrs::from_entries(&entries).expect("two entries fit");
    fd.set_msrs(&msrs).map_err(refused("set model-specific registers"))?;
    Ok(())
}

fn set_registers(fd: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    let mut sregs = fd.get_sregs().map_err(refused("read the system registers"))?;
    let data = segment(2);
    sregs.cs = segment(1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(3);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = u16::try_from(GDT_ENTRIES.len() * 8 - 1).expect("31");
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = 7;
    sregs.cr0 = CR0_PE_ET_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    fd.set_sregs(&sregs).map_err(refused("set the system registers"))?;
    fd.set_regs(&kvm_regs {
        rip: entry.rip,
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: 2,
        ..Default::default()
    })
    .map_err(refused("set the registers"))?;
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    fd.set_fpu(&fpu).map_err(refused("set the floating point unit"))
}

/// The segment register for entry `index` of the boot descriptor table.
fn segment(index: u16) -> kvm_segment {
    let [.., access, flags, _] = GDT_ENTRIES[usize::from(index)].to_le_bytes();
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: access & 0xf,
        s: access >> 4 & 1,
        dpl: access >> 5 & 3,
        present: access >> 7,
        avl: flags >> 4 & 1,
        l: flags >> 5 & 1,
        db: flags >> 6 & 1,
        g: flags >> 7,
        ..Default::default()
    }
}

/// LINT0 takes the PIC's interrupts, LINT1 is the NMI, as firmware leaves them.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    const LINT: [(usize, u16); 2] = [(0x350, 0x700), (0x360, 0x400)];
    let mut lapic: kvm_lapic_state = fd.get_lapic().map_err(refused("read the local APIC"))?;
    for (at, mode) in LINT {
        for (register, byte) in lapic.regs[at..at + 4].iter_mut().zip(u32::from(mode).to_le_bytes())
        {
            *register = byte.cast_signed();
        }
    }
    fd.set_lapic(&lapic).map_err(refused("set the local APIC"))
}

/// Our own mapping of the vCPU's run page, for the one byte that another thread may write while
/// the vCPU runs.
struct RunPage {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is only accessed atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(fd: &VcpuFd, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len })
    }

    /// Makes the vCPU leave the guest before its next instruction, or not enter it.
    fn exit_immediately(&self) {
        let at = std::mem::offset_of!(kvm_run, immediate_exit);
        debug_assert!(at < self.len);
        // SAFETY: the byte lies in the mapping, which lives as long as `self`; the kernel only
        // reads it, and nothing else in this process writes it.
        unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(at)) }.store(1, Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference to it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A running vCPU.
#[derive(Debug)]
pub struct VcpuHandle {
    thread: JoinHandle<VcpuEnd>,
    stop: Arc<AtomicBool>,
    run: Arc<RunPage>,
    stop_event: EventFd,
}

impl fmt::Debug for RunPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunPage").finish_non_exhaustive()
    }
}

extern "C" fn wake(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpu {
    /// Frequency of the time stamp counter; 0 when KVM does not know.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Runs it on a thread of its own. `ended` is signalled when it stops; `stop_event` is what
    /// devices that let the vCPU sleep watch.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        self,
        buses: Arc<Buses>,
        end: EndSwitch,
        ended: EventFd,
        stop_event: EventFd,
    ) -> io::Result<VcpuHandle> {
        register_signal_handler(SIGRTMIN(), wake)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (run, stopping) = (self.run.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("vcpu0".into()).spawn(move || {
            let outcome = self.run(&buses, &end, &stopping);
            // The counter cannot be full.
            let _ = ended.write(1);
            outcome
        })?;
        Ok(VcpuHandle { thread, stop, run, stop_event })
    }

    fn run(mut self, buses: &Buses, end: &EndSwitch, stop: &AtomicBool) -> VcpuEnd {
        loop {
            if let Some(end) = end.get() {
                return VcpuEnd::Guest(end);
            }
            if stop.load(Ordering::SeqCst) {
                tracing::debug!("the vCPU is stopped {}", self.where_it_stands());
                return VcpuEnd::Stopped;
            }
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    if !buses.ports.write(port.into(), data) {
                        tracing::debug!(port, ?data, "a write to a port where nothing is");
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    buses.ports.read(port.into(), data);
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    buses.memory.write(address, data);
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    buses.memory.read(address, data);
                }
                // With the in-kernel local APIC, HLT waits inside KVM.
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
                Ok(VcpuExit::Shutdown) => return VcpuEnd::Shutdown(self.where_it_stands()),
                Ok(VcpuExit::SystemEvent(kind, _)) => {
                    return VcpuEnd::Failed(format!("system event {kind}"));
                }
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: the exit reason says that KVM filled this variant of the union.
                    let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
                    let place = self.where_it_stands();
                    return VcpuEnd::Failed(format!(
                        "KVM cannot emulate the guest's instruction (internal error {}) {place}",
                        error.suberror
                    ));
                }
                Ok(other) => {
                    let what = format!("{other:?}");
                    return VcpuEnd::Failed(format!("{what} {}", self.where_it_stands()));
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                Err(error) => {
                    return VcpuEnd::Failed(format!("{error} {}", self.where_it_stands()));
                }
            }
        }
    }

    fn where_it_stands(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "at {:#x} (ring {}, rsp {:#x}, rflags {:#x}, cr2 {:#x}, cr3 {:#x})",
                regs.rip, sregs.cs.dpl, regs.rsp, regs.rflags, sregs.cr2, sregs.cr3
            ),
            _ => "at an unknown place".to_owned(),
        }
    }
}

impl VcpuHandle {
    /// Stops the vCPU. Returns how it ended: `None` when it does not leave a device's code
    /// within two seconds (a backend that hangs); its thread is then left behind.
    #[must_use]
    pub fn stop(self) -> Option<VcpuEnd> {
        self.stop.store(true, Ordering::SeqCst);
        self.run.exit_immediately();
        let _ = self.stop_event.write(1);
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                return None;
            }
            // The vCPU sees the run page's mark when it enters the guest; this is for one that
            // is inside, or waiting in a system call.
            let _ = self.thread.kill(SIGRTMIN());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.join()
    }

    /// How a vCPU that signalled its end has ended.
    #[must_use]
    pub fn join(self) -> Option<VcpuEnd> {
        let panicked = || VcpuEnd::Failed("its thread panicked".to_owned());
        Some(self.thread.join().unwrap_or_else(|_| panicked()))
    }
}
