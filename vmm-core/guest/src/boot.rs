//! From the VMM's 64-bit entry (ring 0) to Rust in ring 3.
//!
//! The stub maps the low 4 GiB one to one for ring 3, turns SSE on, and leaves ring 0 with all
//! ports allowed and interrupts off: a KVM that interprets ring 0 runs ring 3 at full speed. Ports
//! are allowed by the task state's bitmap as well as by I/O privilege 3, because such a KVM's
//! `iretq` keeps the privilege at 0. Ring 0 is entered again only by an exception, whose handler
//! goes straight back to ring 3, to [`fault`], with vector, error code and addresses.

use core::arch::global_asm;

use crate::{ports, serial};

global_asm!(
    r#"
    .section .boot, "ax"
    .global _start
_start:
    cli
    cld
    mov r15, rsi                    # boot_params
    lea rsp, [boot_stack_end]

    # Page tables: one PML4, one PDPT, four directories of 2 MiB pages, user and writable.
    lea rdi, [page_tables]
    lea rax, [rdi + 0x1007]
    mov [rdi], rax
    lea rbx, [rdi + 0x1000]
    lea rax, [rdi + 0x2007]
    mov ecx, 4
2:  mov [rbx], rax
    add rbx, 8
    add rax, 0x1000
    dec ecx
    jnz 2b
    lea rbx, [rdi + 0x2000]
    mov eax, 0x87
    mov ecx, 2048
3:  mov [rbx], rax
    add rbx, 8
    add rax, 0x200000
    dec ecx
    jnz 3b
    mov cr3, rdi

    # SSE: CR4.OSFXSR and OSXMMEXCPT, CR0.MP without EM and TS.
    mov rax, cr4
    or eax, 0x600
    mov cr4, rax
    mov rax, cr0
    and eax, 0xfffffff3
    or eax, 2
    mov cr0, rax

    # Task state: only the stack of ring 0. Its descriptor's base is filled in here.
    lea rax, [boot_stack_end]
    mov [tss + 4], rax
    lea rax, [tss]
    lea rbx, [gdt + 0x28]
    mov [rbx + 2], ax
    shr rax, 16
    mov [rbx + 4], al
    mov [rbx + 7], ah
    lea rax, [gdt]
    mov [gdt_register + 2], rax
    lgdt [gdt_register]
    mov ax, 0x28
    ltr ax

    # Interrupt gates for the 32 exceptions.
    lea rdi, [idt]
    lea rax, [exception_entries]
    mov ecx, 32
4:  mov [rdi], ax
    mov word ptr [rdi + 2], 0x08
    mov word ptr [rdi + 4], 0x8e00
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    mov dword ptr [rdi + 8], 0
    mov dword ptr [rdi + 12], 0
    add rdi, 16
    add rax, 16
    dec ecx
    jnz 4b
    lea rax, [idt]
    mov [idt_register + 2], rax
    lidt [idt_register]

    lea rbx, [{main}]
    lea rdx, [user_stack_end - 8]
    mov rdi, r15
    jmp to_user

    # To ring 3 at rbx with the stack rdx: rdi, rsi and r8 are arguments.
to_user:
    push 0x23                       # user data
    push rdx
    push 0x3002                     # I/O privilege 3, interrupts off
    push 0x1b                       # user code
    push rbx
    mov ax, 0x23
    mov ds, ax
    mov es, ax
    iretq

    .balign 16
exception_entries:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    nop
    nop
    .else
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
    .endr
    .balign 16
exception:
    pop rdi                         # vector
    pop rsi                         # error code
    pop rdx                         # instruction
    mov r8, rdx
    mov r9, cr2
    lea rsp, [boot_stack_end]
    lea rbx, [{fault}]
    lea rdx, [fault_stack_end - 8]
    jmp to_user

    .section .data
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 08 code, ring 0
    .quad 0x00cf93000000ffff        # 10 data, ring 0
    .quad 0x00affb000000ffff        # 18 code, ring 3
    .quad 0x00cff3000000ffff        # 20 data, ring 3
    .quad 0x0000890000002068        # 28 task state, two entries
    .quad 0
gdt_register:
    .word 55
    .quad 0
idt_register:
    .word 511
    .quad 0
    .balign 16
tss:
    .skip 0x66
    .word 0x68

    .skip 8192                      # I/O bitmap: every port is allowed
    .byte 0xff

    .section .bss
    .balign 4096
page_tables:
    .skip 6 * 4096
idt:
    .skip 512
    .balign 16
    .skip 4096
boot_stack_end:
    .skip 16384
fault_stack_end:
    .skip 262144
user_stack_end:
    .text
"#,
    main = sym crate::start,
    fault = sym fault,
);

/// Says what happened, and ends the machine.
extern "C" fn fault(
    vector: u64,
    error: u64,
    _rdx: u64,
    _rcx: u64,
    instruction: u64,
    address: u64,
) -> ! {
    serial::line(format_args!(
        "fault vector={vector} error={error:#x} rip={instruction:#x} address={address:#x}"
    ));
    ports::exit(100)
}
