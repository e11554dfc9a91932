//! A whole machine: its parts put together, its main loop, its end.

mod console;
mod signals;

pub use console::Console;
pub use signals::StopSignals;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError, BootSource};
use crate::bus::{Bus, BusDevice, Overlap, lock};
use crate::device::{
    EndSwitch, GuestEnd, I8042, I8042_PORTS, PARAVIRT_PORTS, Paravirt, SERIAL_PORTS, SerialConsole,
};
use crate::kvm::{Buses, KvmError, KvmMachine, VcpuEnd, VcpuHandle};
use crate::layout;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::pci::{MemoryWindow, NoSlot, PciBus, PciPorts};
use crate::virtio::{NetConfig, NetError, VhostUserNet, VirtioPci};
use crate::wiring::{WakeUps, borrow, event};

/// How often a lost backend is looked for.
const RECONNECT_EVERY: Duration = Duration::from_millis(100);

/// What to build.
#[derive(Debug)]
pub struct MachineConfig {
    /// Bytes of RAM, a whole number of MiB.
    pub memory: u64,
    pub boot: BootSource,
    pub nets: Vec<NetConfig>,
    pub console: Console,
}

/// Why a machine cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Pci(#[from] NoSlot),
    #[error(transparent)]
    Bus(#[from] Overlap),
    #[error("cannot open the console {what}")]
    Console { what: String, source: io::Error },
    #[error("cannot set up {what}")]
    Setup { what: &'static str, source: io::Error },
}

fn setup(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Setup { what, source }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Guest(GuestEnd),
    /// A signal asked for it.
    Stopped,
    /// The guest crashed beyond what it could handle itself; says where.
    Crashed(String),
    /// KVM cannot go on.
    Failed(String),
}

impl Outcome {
    /// The process's exit status: 0 for a guest that reset itself or wrote 0 to the exit port
    /// and for a stop by signal, 3 for a crash, 4 for a failure, 16 + value (at most 255) for
    /// another value at the exit port.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Guest(GuestEnd::Reset | GuestEnd::Exit(0)) | Self::Stopped => 0,
            Self::Crashed(_) => 3,
            Self::Failed(_) => 4,
            Self::Guest(GuestEnd::Exit(value)) => {
                u8::try_from(value.saturating_add(16)).unwrap_or(u8::MAX)
            }
        }
    }
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    vcpu: VcpuHandle,
    serial: Arc<Mutex<SerialConsole>>,
    pci_devices: Vec<Arc<Mutex<VirtioPci>>>,
    nets: Vec<VhostUserNet>,
    ended: EventFd,
    reads_stdin: bool,
    /// Kept until the vCPU has stopped.
    _kvm: KvmMachine,
    _memory: GuestMemory,
}

impl Machine {
    /// Builds the machine and starts its vCPU. Nothing of the guest runs before everything else
    /// is in place: backends connected, kernel loaded.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn start(config: MachineConfig) -> Result<Self, MachineError> {
        let memory = memory::allocate(config.memory)?;
        let entry = boot::load(&memory, &config.boot)?;
        let kvm = KvmMachine::new(&memory)?;
        let vcpu = kvm.vcpu(entry)?;
        let wiring = Arc::new(kvm.wiring());
        let wake_ups = Arc::new(WakeUps::default());
        let (end, stop, ended) = (
            EndSwitch::default(),
            event().map_err(setup("events"))?,
            event().map_err(setup("events"))?,
        );

        let mut ports = Bus::default();
        let mut insert = |first: u16, count: u16, device: Arc<Mutex<dyn BusDevice>>| {
            ports.insert(first.into(), count.into(), device)
        };
        let clone = |event: &EventFd| event.try_clone().map_err(setup("events"));
        let interrupt = event().map_err(setup("the serial interrupt"))?;
        wiring
            .connect_legacy(layout::SERIAL_GSI, &interrupt)
            .map_err(setup("the serial interrupt"))?;
        let reads_stdin = config.console.reads_stdin();
        let serial = Arc::new(Mutex::new(SerialConsole::new(interrupt, config.console.open()?)));
        insert(layout::SERIAL_PORT, SERIAL_PORTS, serial.clone())?;
        let (first, count) = I8042_PORTS;
        insert(first, count, Arc::new(Mutex::new(I8042::new(end.clone()))))?;
        let paravirt = Paravirt::new(end.clone(), vcpu.tsc_khz(), wake_ups.clone(), clone(&stop)?);
        insert(layout::PARAVIRT_PORT, PARAVIRT_PORTS, Arc::new(Mutex::new(paravirt)))?;

        let mut bus = PciBus::default();
        let (mut pci_devices, mut nets) = (Vec::new(), Vec::new());
        for net in config.nets {
            let net = VhostUserNet::connect(net)?;
            nets.push(net.clone());
            let device = VirtioPci::new(Box::new(net), memory.clone(), wiring.clone(), &wake_ups)
                .map_err(setup("a network device"))?;
            let device = Arc::new(Mutex::new(device));
            bus.add(device.clone())?;
            pci_devices.push(device);
        }
        let bus = Arc::new(bus);
        insert(0xcf8, 8, Arc::new(Mutex::new(PciPorts::new(bus.clone()))))?;
        let mut memory_bus = Bus::default();
        memory_bus.insert(
            layout::PCI_MEMORY_START,
            layout::PCI_MEMORY_END - layout::PCI_MEMORY_START,
            Arc::new(Mutex::new(MemoryWindow(bus))),
        )?;

        let buses = Arc::new(Buses { ports, memory: memory_bus });
        let vcpu =
            vcpu.start(buses, end, clone(&ended)?, stop).map_err(setup("the vCPU's thread"))?;
        Ok(Self { vcpu, serial, pci_devices, nets, ended, reads_stdin, _kvm: kvm, _memory: memory })
    }

    /// Serves the machine until it ends or `stop` becomes readable.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> Result<Outcome, MachineError> {
        let stopped = self.wait(stop).map_err(setup("waiting for events"))?;
        let Self { vcpu, pci_devices, .. } = self;
        let end = if stopped { vcpu.stop() } else { vcpu.join() };
        let outcome = match end {
            Some(VcpuEnd::Guest(end)) => Outcome::Guest(end),
            Some(VcpuEnd::Stopped) => Outcome::Stopped,
            Some(VcpuEnd::Shutdown(place)) => Outcome::Crashed(place),
            Some(VcpuEnd::Failed(why)) => Outcome::Failed(why),
            None => {
                // The vCPU may hold a device's lock for as long as its backend hangs.
                tracing::warn!("the vCPU does not stop; leaving without resetting devices");
                return Ok(Outcome::Stopped);
            }
        };
        for device in pci_devices {
            lock(&*device).reset();
        }
        Ok(outcome)
    }

    /// Returns whether `stop` ended the wait (and not the vCPU).
    fn wait(&mut self, stop: BorrowedFd<'_>) -> io::Result<bool> {
        let mut reported = vec![false; self.nets.len()];
        loop {
            let backends: Vec<Option<UnixStream>> =
                self.nets.iter().map(VhostUserNet::watched).collect();
            let stdin = io::stdin();
            let wants_input = self.reads_stdin && lock(&self.serial).room() > 0;
            let mut fds = vec![
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(borrow(&self.ended), PollFlags::IN),
            ];
            if wants_input {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            }
            let first_backend = fds.len();
            for backend in backends.iter().flatten() {
                fds.push(PollFd::from_borrowed_fd(backend.as_fd(), PollFlags::RDHUP));
            }
            // A full console is looked at again, as is a lost backend.
            let incomplete =
                backends.iter().any(Option::is_none) || self.reads_stdin && !wants_input;
            let timeout = incomplete.then_some(Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(RECONNECT_EVERY.subsec_nanos()),
            });
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[1].revents().is_empty() {
                return Ok(false);
            }
            if !fds[0].revents().is_empty() {
                return Ok(true);
            }
            let typed = wants_input && !fds[2].revents().is_empty();
            let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            let mut hung_up = fds[first_backend..].iter().map(|fd| fd.revents().intersects(gone));
            let lost: Vec<_> = backends
                .iter()
                .map(|backend| backend.is_some() && hung_up.next().unwrap_or(false))
                .collect();
            drop(hung_up);
            drop(fds);
            if typed {
                self.read_input()?;
            }
            for (index, net) in self.nets.iter().enumerate() {
                if lost[index] {
                    tracing::warn!(socket = %net.socket().display(), "the backend hung up; the link is down");
                    net.disconnected();
                    reported[index] = false;
                } else if backends[index].is_none() {
                    reconnect(net, &mut reported[index]);
                }
            }
        }
    }

    fn read_input(&mut self) -> io::Result<()> {
        let mut serial = lock(&self.serial);
        let mut bytes = [0; 64];
        let room = serial.room().min(bytes.len());
        let read = rustix::io::read(io::stdin(), &mut bytes[..room]);
        match read {
            Ok(0) => self.reads_stdin = false,
            Ok(len) => {
                serial.input(&bytes[..len])?;
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            // A terminal that is gone, or one that this process may not read in the background.
            Err(_) => self.reads_stdin = false,
        }
        Ok(())
    }
}

fn reconnect(net: &VhostUserNet, reported: &mut bool) {
    match net.reconnect() {
        Ok(()) => {
            tracing::info!(socket = %net.socket().display(), "the backend is back; the link is up");
            *reported = false;
        }
        Err(error) if !*reported => {
            tracing::info!(%error, "waiting for the backend");
            *reported = true;
        }
        Err(_) => {}
    }
}
