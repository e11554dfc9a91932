//! Port instructions, and the VMM's paravirtual ports: the same numbers as `netloom-vmm`'s
//! `layout::PARAVIRT_PORT`.

use core::arch::asm;

const IDLE: u16 = 0x500;
const EXIT: u16 = 0x504;
const TSC_KHZ: u16 = 0x508;

pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write has no effect on this program's memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as above; devices that use memory are told where by registers, not by ports.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: a port read has no effect on this program's memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// Sleeps until the time has passed or the network device has news.
pub fn idle(microseconds: u32) {
    out32(IDLE, microseconds);
}

/// Ends the machine.
pub fn exit(code: u32) -> ! {
    loop {
        out32(EXIT, code);
    }
}

/// Frequency of the time stamp counter, 0 when the VMM does not know.
pub fn tsc_khz() -> u32 {
    in32(TSC_KHZ)
}
