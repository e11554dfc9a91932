//! Where things are in the guest's address spaces. The README draws the same map.
//!
//! ```text
//! guest physical memory                          ports
//! 0x0000_0500  GDT, IDT word                     0x0060, 0x0064  i8042 (reset)
//! 0x0000_7000  zero page (boot_params)           0x0061          system control B
//! 0x0000_8ff0  boot stack, growing down          0x03f8..0x03ff  serial console
//! 0x0000_9000  boot page tables (6 pages)        0x0500..0x0503  idle        (paravirtual)
//! 0x0002_0000  command line                      0x0504..0x0507  exit        (paravirtual)
//! 0x0009_fc00  end of low memory                 0x0508..0x050b  TSC kHz     (paravirtual)
//! 0x0010_0000  kernel                            0x0cf8..0x0cff  PCI configuration
//!      ...     initrd at the top of low RAM
//! 0xc000_0000  hole below 4 GiB: PCI memory
//! 0xe000_0000  kept for ECAM
//! 0xfec0_0000  IOAPIC, 0xfee0_0000 local APIC
//! 0xfffb_c000  KVM's identity map page and TSS
//! 0x1_0000_0000  the rest of RAM
//! ```

/// Global descriptor table of the boot state.
pub const GDT: u64 = 0x500;
/// Empty interrupt descriptor table of the boot state.
pub const IDT: u64 = 0x520;
/// `boot_params`, whose address a kernel gets in RSI.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the boot stack.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page map level 4; the next level and four page directories follow, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// NUL-terminated kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its NUL: Linux's limit on x86.
pub const COMMAND_LINE_MAX: usize = 2048;
/// Conventional memory ends here (the extended BIOS data area of a PC begins).
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// First address of the memory above 1 MiB, where kernels live.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// RAM leaves this hole free below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM goes on here when it does not fit below the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Memory of PCI base address registers.
pub const PCI_MEMORY_START: u64 = HOLE_START;
/// End (exclusive) of [`PCI_MEMORY_START`]'s window; 256 MiB of ECAM may follow.
pub const PCI_MEMORY_END: u64 = 0xe000_0000;

/// One page for KVM on processors that cannot run real mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment, for the same reason.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Base of the 16550, and its interrupt.
pub const SERIAL_PORT: u16 = 0x3f8;
pub const SERIAL_GSI: u32 = 4;

/// First port of [`crate::device::Paravirt`].
pub const PARAVIRT_PORT: u16 = 0x500;

/// GSIs below belong to the legacy interrupt controllers; message-signalled ones start here.
pub const FIRST_MSI_GSI: u32 = 24;
