//! A guest for tests of netloom: boots in milliseconds, gets an address, pings, echoes.
//!
//! It runs on any KVM, even one that interprets ring 0, because everything but the first few
//! instructions runs in ring 3 (`boot`). There are no interrupts: the virtio driver polls, and
//! between polls the VMM lets the vCPU sleep (`ports::idle`). There is no heap. The README has
//! the words of the command line and the lines on the console.
#![no_std]
#![no_main]

mod app;
mod boot;
mod command_line;
mod memory;
mod pci;
mod ping;
mod ports;
mod serial;
mod time;
mod virtio;

use core::panic::PanicInfo;

use command_line::CommandLine;
use time::Clock;

/// Ring 3 begins here.
extern "C" fn start(boot_params: u64) -> ! {
    let line = CommandLine::from_boot_params(boot_params);
    let clock = Clock::new(line.number("tsc_khz"));
    say!("netloom-guest ring=3 tsc_khz={}", clock.khz());
    match virtio::Network::find() {
        Ok(network) => app::run(network, &line, &clock),
        Err(error) => {
            say!("error no usable network device: {error}");
            ports::exit(3)
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("panic {info}");
    ports::exit(101)
}
