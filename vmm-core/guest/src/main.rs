#![no_std]
#![no_main]

mod boot;
mod memory;
mod ports;
mod serial;

use core::panic::PanicInfo;

extern "C" fn start(_boot_params: u64) -> ! {
    let x = core::hint::black_box(1.5_f64) * 2.0;
    say!("hello from ring 3 {} tsc_khz={}", x as u32, ports::tsc_khz());
    ports::exit(0)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("panic {info}");
    ports::exit(101)
}
