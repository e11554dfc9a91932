//! The one PCI bus, its host bridge and the two ways in: configuration through ports 0xcf8 and
//! 0xcfc (configuration mechanism #1), memory through the window below 4 GiB.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::{BAR_COUNT, ConfigSpace, Identity};
use crate::bus::{BusDevice, lock};
use crate::layout;

/// Slots of the bus; the host bridge takes the first.
pub const BDF_LIMIT: usize = 32;

const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A function on the bus. The bus calls it with its lock held, from the vCPU that accesses it.
pub trait PciDevice: Send {
    fn config(&self) -> &ConfigSpace;
    /// For the bus to place BARs before the guest runs.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// Reads the configuration space; devices with registers behind it override this.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }
    /// Writes the configuration space; devices that act on it override this.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }
    /// Reads at `offset` of BAR `bar`; the whole access lies within it.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);
    /// Writes at `offset` of BAR `bar`; the whole access lies within it.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);
    /// BARs were placed or moved, or decoding was switched: called after the change.
    fn bars_changed(&mut self);
}

struct HostBridge(ConfigSpace);

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn read_bar(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
    fn bars_changed(&mut self) {}
}

/// The bus is full: no slot or no window left for the BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PCI bus has no room for another device")]
pub struct NoSlot;

/// The bus with its devices.
pub struct PciBus {
    devices: Vec<Arc<Mutex<dyn PciDevice>>>,
    /// Next free address of the memory window.
    next_address: u64,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl Default for PciBus {
    fn default() -> Self {
        let bridge = HostBridge(ConfigSpace::new(&HOST_BRIDGE));
        Self { devices: vec![Arc::new(Mutex::new(bridge))], next_address: layout::PCI_MEMORY_START }
    }
}

impl PciBus {
    /// Puts `device` into the next slot, places its BARs and switches decoding on. Returns the
    /// slot.
    ///
    /// # Errors
    /// [`NoSlot`].
    pub fn add(&mut self, device: Arc<Mutex<dyn PciDevice>>) -> Result<usize, NoSlot> {
        if self.devices.len() == BDF_LIMIT {
            return Err(NoSlot);
        }
        let mut next = self.next_address;
        {
            let mut device = lock(&*device);
            for index in 0..BAR_COUNT {
                let Some(size) = device.config().bar_size(index) else { continue };
                let address = next.next_multiple_of(size);
                next = address.checked_add(size).ok_or(NoSlot)?;
                if next > layout::PCI_MEMORY_END {
                    return Err(NoSlot);
                }
                device.config_mut().place_bar(index, address);
            }
            device.config_mut().enable();
            device.bars_changed();
        }
        self.next_address = next;
        self.devices.push(device);
        Ok(self.devices.len() - 1)
    }

    /// The device of a configuration address, and the register.
    fn at(&self, address: u32) -> Option<(&Mutex<dyn PciDevice>, usize)> {
        let [register, devfn, bus, enable] = address.to_le_bytes();
        if enable & 0x80 == 0 || bus != 0 || devfn & 7 != 0 {
            return None;
        }
        let device = self.devices.get(usize::from(devfn >> 3))?;
        Some((&**device, usize::from(register & 0xfc)))
    }

    fn read_config(&self, address: u32, offset: usize, data: &mut [u8]) {
        match self.at(address) {
            Some((device, register)) => lock(device).read_config(register + offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, address: u32, offset: usize, data: &[u8]) {
        let Some((device, register)) = self.at(address) else { return };
        let mut device = lock(device);
        let addresses = |device: &dyn PciDevice| -> [Option<u64>; BAR_COUNT] {
            std::array::from_fn(|index| device.config().bar_address(index))
        };
        let before = addresses(&*device);
        device.write_config(register + offset, data);
        if addresses(&*device) != before {
            device.bars_changed();
        }
    }

    /// The device, BAR and offset of a memory access that lies within one BAR.
    fn memory(&self, address: u64, len: usize) -> Option<(&Mutex<dyn PciDevice>, usize, u64)> {
        for device in &self.devices {
            let guard = lock(&**device);
            for index in 0..BAR_COUNT {
                let (Some(base), Some(size)) =
                    (guard.config().bar_address(index), guard.config().bar_size(index))
                else {
                    continue;
                };
                let Some(offset) = address.checked_sub(base) else { continue };
                if offset.checked_add(len as u64).is_some_and(|end| end <= size) {
                    return Some((&**device, index, offset));
                }
            }
        }
        None
    }
}

/// Ports 0xcf8 to 0xcff.
#[derive(Debug)]
pub struct PciPorts {
    bus: Arc<PciBus>,
    address: u32,
}

impl PciPorts {
    #[must_use]
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus, address: 0 }
    }
}

const DATA: u64 = 4;

/// Byte of the data register that a port accesses.
fn register(offset: u64) -> usize {
    usize::from((offset & 3).to_le_bytes()[0])
}

impl BusDevice for PciPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (DATA..=7, 1 | 2 | 4) => {
                self.bus.read_config(self.address, register(offset), data);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
            (DATA..=7, _) if matches!(data.len(), 1 | 2 | 4) => {
                self.bus.write_config(self.address, register(offset), data);
            }
            _ => {}
        }
    }
}

/// The memory window: [`layout::PCI_MEMORY_START`] to [`layout::PCI_MEMORY_END`].
#[derive(Debug)]
pub struct MemoryWindow(pub Arc<PciBus>);

impl BusDevice for MemoryWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.0.memory(layout::PCI_MEMORY_START + offset, data.len()) {
            Some((device, bar, offset)) => lock(device).read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((device, bar, offset)) =
            self.0.memory(layout::PCI_MEMORY_START + offset, data.len())
        {
            lock(device).write_bar(bar, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch {
        config: ConfigSpace,
        memory: [u8; 64],
        moves: Vec<Option<u64>>,
    }

    impl PciDevice for Scratch {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.memory[at..at + data.len()]);
        }
        fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
            let at = usize::try_from(offset).unwrap();
            self.memory[at..at + data.len()].copy_from_slice(data);
        }
        fn bars_changed(&mut self) {
            self.moves.push(self.config.bar_address(0));
        }
    }

    fn scratch() -> Arc<Mutex<Scratch>> {
        let mut config = ConfigSpace::new(&Identity { device: 0x1234, ..HOST_BRIDGE });
        config.add_memory_bar(0, 64);
        Arc::new(Mutex::new(Scratch { config, memory: [0; 64], moves: Vec::new() }))
    }

    fn read(ports: &mut PciPorts, slot: u32, register: u32) -> u32 {
        ports.write(0, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        let mut data = [0; 4];
        ports.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn enumeration_finds_the_bridge_and_the_devices_only() {
        let mut bus = PciBus::default();
        assert_eq!(bus.add(scratch()), Ok(1));
        let mut ports = PciPorts::new(Arc::new(bus));
        assert_eq!(read(&mut ports, 0, 0), 0x0008_1b36);
        assert_eq!(read(&mut ports, 0, 8) >> 16, 0x0600);
        assert_eq!(read(&mut ports, 1, 0), 0x1234_1b36);
        for slot in 2..32 {
            assert_eq!(read(&mut ports, slot, 0), u32::MAX);
        }
        assert_eq!(read(&mut ports, 1 << 5, 0), u32::MAX, "there is no second bus");
        ports.write(0, &(0x8000_0100_u32).to_le_bytes());
        let mut data = [0; 4];
        ports.read(DATA, &mut data);
        assert_eq!(data, [0xff; 4], "nor a second function");
        ports.write(0, &0_u32.to_le_bytes());
        ports.read(DATA, &mut data);
        assert_eq!(data, [0xff; 4], "the enable bit counts");
    }

    #[test]
    fn narrow_configuration_accesses_reach_their_bytes() {
        let mut ports = PciPorts::new(Arc::new(PciBus::default()));
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        let (mut word, mut byte) = ([0; 2], [0; 1]);
        ports.read(DATA + 2, &mut word);
        assert_eq!(word, [0x08, 0x00]);
        ports.read(DATA + 1, &mut byte);
        assert_eq!(byte, [0x1b]);
        let mut address = [0; 4];
        ports.read(0, &mut address);
        assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
    }

    #[test]
    fn a_moved_bar_is_followed_and_reported() {
        let device = scratch();
        let mut bus = PciBus::default();
        bus.add(device.clone()).unwrap();
        let bus = Arc::new(bus);
        let (mut ports, mut window) = (PciPorts::new(bus.clone()), MemoryWindow(bus));
        window.write(8, &[1, 2, 3, 4]);
        assert_eq!(device.lock().unwrap().memory[8..12], [1, 2, 3, 4]);

        ports.write(0, &0x8000_0810_u32.to_le_bytes());
        ports.write(DATA, &0xc000_1000_u32.to_le_bytes());
        let mut data = [0; 4];
        window.read(8, &mut data);
        assert_eq!(data, [0xff; 4]);
        window.read(0x1008, &mut data);
        assert_eq!(data, [1, 2, 3, 4]);
        window.read(0x103e, &mut data);
        assert_eq!(data, [0xff; 4], "an access beyond the BAR's end");

        ports.write(0, &0x8000_0804_u32.to_le_bytes());
        ports.write(DATA, &[0, 0]);
        ports.write(DATA, &[0, 0]);
        window.read(0x1008, &mut data);
        assert_eq!(data, [0xff; 4]);
        let moves = &device.lock().unwrap().moves;
        assert_eq!(moves[..], [Some(0xc000_0000), Some(0xc000_1000), None]);
    }

    #[test]
    fn the_bus_fills_up() {
        let mut bus = PciBus::default();
        for slot in 1..BDF_LIMIT {
            assert_eq!(bus.add(scratch()), Ok(slot));
        }
        assert_eq!(bus.add(scratch()), Err(NoSlot));
    }
}
