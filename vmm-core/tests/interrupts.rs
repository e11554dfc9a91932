//! KVM's own connections, on real KVM: a doorbell write signals an event without an exit, and an
//! event raises a message-signalled interrupt.

mod common;

use std::arch::global_asm;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_core::boot::{self, BootSource};
use vmm_core::bus::{Bus, BusDevice};
use vmm_core::device::{EndSwitch, GuestEnd, PARAVIRT_PORTS, Paravirt};
use vmm_core::kvm::{Buses, KvmMachine, VcpuEnd};
use vmm_core::wiring::{MsiMessage, Wiring as _, event};
use vmm_core::{layout, memory};

/// An address where no device is.
const DOORBELL: u64 = 0xc000_3000;
const READY_PORT: u16 = 0x80;
const VECTOR: u32 = 0x41;

// Ring 0: an interrupt gate for the vector, the local APIC on, one write to the doorbell, 'ready',
// then HLT until the handler ends the machine with 5. Position-independent.
global_asm!(
    r#"
    .section .rodata
    .global interrupt_guest, interrupt_guest_end
interrupt_guest:
    lea rax, [rip + 2f]
    mov edi, 0x300410               # the table at 0x300000, entry 0x41
    mov [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    sub rsp, 16
    mov word ptr [rsp], 0xfff
    mov qword ptr [rsp + 2], 0x300000
    lidt [rsp]
    mov eax, 0xfee000f0             # spurious interrupt vector: enable
    mov dword ptr [rax], 0x1ff
    mov eax, 0xc0003000
    mov word ptr [rax], 1
    mov al, 1
    out 0x80, al
    sti
3:  hlt
    jmp 3b
2:  mov edx, 0x504
    mov eax, 5
    out dx, eax
    jmp 2b
interrupt_guest_end:
    .text
"#
);

fn guest_code() -> &'static [u8] {
    unsafe extern "C" {
        static interrupt_guest: u8;
        static interrupt_guest_end: u8;
    }
    let (start, end) = (&raw const interrupt_guest, &raw const interrupt_guest_end);
    // SAFETY: the two labels enclose bytes of one read-only section.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

struct Ready(std::sync::mpsc::Sender<()>);

impl BusDevice for Ready {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, _data: &[u8]) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_doorbell_signals_and_an_event_interrupts_the_guest() {
    common::require_kvm();
    let kernel = common::kernel(guest_code());
    let memory = memory::allocate(4 << 20).unwrap();
    let source =
        BootSource { kernel: kernel.path().to_owned(), initrd: None, command_line: String::new() };
    let entry = boot::load(&memory, &source).unwrap();
    let machine = KvmMachine::new(&memory).unwrap();
    let vcpu = machine.vcpu(entry).unwrap();
    let wiring = machine.wiring();

    let doorbell = event().unwrap();
    wiring.connect_doorbell(DOORBELL, &doorbell).unwrap();
    // Another route first, so that the table is replaced while interrupts are connected.
    let (call, other) = (event().unwrap(), event().unwrap());
    let (gsi, other_gsi) = (wiring.allocate_gsi().unwrap(), wiring.allocate_gsi().unwrap());
    assert_ne!(gsi, other_gsi);
    wiring.route_msi(gsi, MsiMessage { address: 0xfee0_0000, data: VECTOR }).unwrap();
    wiring.connect_interrupt(gsi, &call).unwrap();
    wiring.route_msi(other_gsi, MsiMessage { address: 0xfee0_0000, data: 0x50 }).unwrap();
    wiring.connect_interrupt(other_gsi, &other).unwrap();
    wiring.disconnect_interrupt(other_gsi, &other).unwrap();

    let (end, stop, ended) = (EndSwitch::default(), event().unwrap(), event().unwrap());
    let mut ports = Bus::default();
    let paravirt = Paravirt::new(end.clone(), 0, Arc::default(), stop.try_clone().unwrap());
    let paravirt = Arc::new(Mutex::new(paravirt));
    ports.insert(layout::PARAVIRT_PORT.into(), PARAVIRT_PORTS.into(), paravirt).unwrap();
    let (sender, ready) = std::sync::mpsc::channel();
    ports.insert(READY_PORT.into(), 1, Arc::new(Mutex::new(Ready(sender)))).unwrap();
    let buses = Arc::new(Buses { ports, memory: Bus::default() });
    let vcpu = vcpu.start(buses, end, ended.try_clone().unwrap(), stop).unwrap();

    ready.recv_timeout(common::vmm::PATIENCE).expect("the guest gets there");
    assert_eq!(doorbell.read().unwrap(), 1, "the doorbell rang without an exit");
    assert!(ended.read().is_err(), "it waits in HLT");
    other.write(1).unwrap();
    call.write(1).unwrap();
    let deadline = Instant::now() + common::vmm::PATIENCE;
    while ended.read().is_err() {
        assert!(Instant::now() < deadline, "the interrupt does not arrive: {:?}", vcpu.stop());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(vcpu.join(), Some(VcpuEnd::Guest(GuestEnd::Exit(5))));
    wiring.disconnect_interrupt(gsi, &call).unwrap();
    wiring.disconnect_doorbell(DOORBELL, &doorbell).unwrap();
}
