//! The transport as a driver sees it, with a device and a hypervisor that note what happens.

use std::sync::{Arc, Mutex};

use super::*;
use crate::memory;
use crate::virtio::Activation;
use crate::wiring::RecordedWiring;

const VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = VERSION_1 | 1 << 5;
const BASE: u64 = 0xc000_0000;

#[derive(Default)]
struct Log {
    active: Option<Activation>,
    activations: usize,
    resets: usize,
    refuse: bool,
    written: Vec<(usize, Vec<u8>)>,
}

struct Device(Arc<Mutex<Log>>);

impl VirtioDevice for Device {
    fn device_type(&self) -> u16 {
        1
    }
    fn pci_class(&self) -> u32 {
        0x02_0000
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 128]
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(offset.to_le_bytes()[0]);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.lock().unwrap().written.push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), Box<dyn std::error::Error>> {
        let mut log = self.0.lock().unwrap();
        if log.refuse {
            return Err("no backend".into());
        }
        log.activations += 1;
        log.active = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        let mut log = self.0.lock().unwrap();
        log.resets += 1;
        log.active = None;
    }
}

struct Driver {
    pci: VirtioPci,
    wiring: Arc<RecordedWiring>,
    log: Arc<Mutex<Log>>,
}

impl Driver {
    fn new() -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let wiring = Arc::new(RecordedWiring::default());
        let memory = memory::allocate(4 << 20).unwrap();
        let device = Box::new(Device(log.clone()));
        let mut pci = VirtioPci::new(device, memory, wiring.clone(), &WakeUps::default()).unwrap();
        pci.config_mut().place_bar(0, BASE);
        pci.config_mut().enable();
        pci.bars_changed();
        Self { pci, wiring, log }
    }

    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.pci.read_bar(BAR, offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        self.pci.write_bar(BAR, offset, &value.to_le_bytes()[..len]);
    }

    fn config(&mut self, offset: usize, len: usize) -> u64 {
        let mut data = [0; 8];
        self.pci.read_config(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn status(&mut self) -> u64 {
        self.read(20, 1)
    }

    fn accept(&mut self, features: u64) {
        self.write(20, 1, 3);
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(12, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(20, 1, 0xb);
    }

    fn set_queue(&mut self, index: u64, size: u64, descriptors: u64) {
        self.write(22, 2, index);
        self.write(24, 2, size);
        self.write(32, 8, descriptors);
        self.write(40, 4, descriptors.wrapping_add(0x1000) & 0xffff_ffff);
        self.write(44, 4, 0);
        self.write(48, 8, descriptors.wrapping_add(0x2000));
        self.write(28, 2, 1);
    }

    /// Fills MSI-X table entry `vector`, unmasked.
    fn fill_vector(&mut self, vector: u64, data: u64) {
        self.write(TABLE + vector * 16, 8, 0xfee0_0000);
        self.write(TABLE + vector * 16 + 8, 4, data);
        self.write(TABLE + vector * 16 + 12, 4, 0);
    }

    fn msix_control(&mut self, control: u16) {
        let at = self.pci.msix_capability + 2;
        self.pci.write_config(at, &control.to_le_bytes());
    }

    /// The GSI that the queue's call raises now.
    fn interrupt(&self, queue: usize) -> Option<u32> {
        self.wiring.interrupt_of(self.pci.queues[queue].call.source.event())
    }
}

#[test]
fn the_capabilities_lead_to_every_structure() {
    let mut driver = Driver::new();
    assert_eq!(driver.config(0, 4), 0x1041_1af4);
    let (mut kinds, mut msix) = (Vec::new(), false);
    let mut at = usize::try_from(driver.config(0x34, 1)).unwrap();
    while at != 0 {
        match driver.config(at, 1) {
            0x09 => {
                let (kind, offset) = (driver.config(at + 3, 1), driver.config(at + 8, 4));
                assert_eq!(driver.config(at + 4, 1), 0);
                kinds.push((kind, offset, driver.config(at + 12, 4)));
                if kind == 2 {
                    assert_eq!(driver.config(at + 2, 1), 20);
                    assert_eq!(driver.config(at + 16, 4), 4);
                }
            }
            0x11 => {
                msix = true;
                assert_eq!(driver.config(at + 2, 2) & 0x7ff, 2, "three vectors");
                assert_eq!(driver.config(at + 4, 4), TABLE);
                assert_eq!(driver.config(at + 8, 4), PENDING);
            }
            other => panic!("capability {other:#x}"),
        }
        at = usize::try_from(driver.config(at + 1, 1)).unwrap();
    }
    kinds.sort_unstable();
    let region = |kind, offset| (kind, offset, REGION);
    let expected =
        [region(1, COMMON), region(2, NOTIFY), region(3, ISR), region(4, DEVICE), (5, 0, 0)];
    assert_eq!(kinds, expected);
    assert!(msix);
    assert_eq!(driver.read(18, 2), 2, "queues");
}

#[test]
fn a_driver_negotiates_sets_queues_and_starts_the_device() {
    let mut driver = Driver::new();
    driver.write(0, 4, 1);
    assert_eq!(driver.read(4, 4), FEATURES >> 32);
    driver.write(0, 4, 2);
    assert_eq!(driver.read(4, 4), 0);
    driver.accept(VERSION_1);
    assert_eq!(driver.status(), 0xb);
    driver.write(22, 2, 1);
    assert_eq!(driver.read(24, 2), 128);
    assert_eq!(driver.read(30, 2), 1, "doorbell of queue 1");
    driver.set_queue(1, 64, 0x10_0000);
    assert_eq!(driver.read(28, 2), 1);
    driver.write(24, 2, 32);
    driver.write(32, 8, 0);
    assert_eq!(driver.read(24, 2), 64, "an enabled queue does not change");
    assert_eq!(driver.read(32, 8), 0x10_0000);
    driver.write(20, 1, 0xf);
    assert_eq!(driver.status(), 0xf);

    let log = driver.log.lock().unwrap();
    let active = log.active.as_ref().expect("active");
    assert_eq!(active.features, VERSION_1);
    assert_eq!(active.queues.len(), 1, "only enabled queues");
    let queue = &active.queues[0];
    assert_eq!((queue.index, queue.size), (1, 64));
    assert_eq!((queue.descriptors, queue.avail, queue.used), (0x10_0000, 0x10_1000, 0x10_2000));
    drop(log);

    driver.write(20, 1, 0xf);
    assert_eq!(driver.log.lock().unwrap().activations, 1, "DRIVER_OK counts once");
    driver.write(20, 1, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.log.lock().unwrap().resets, 1);
    assert_eq!((driver.read(28, 2), driver.read(24, 2)), (0, 256), "queue 0 is selected again");
    driver.write(20, 1, 0);
    assert_eq!(driver.log.lock().unwrap().resets, 1, "an inactive device is not reset");
}

#[test]
fn features_that_were_not_offered_or_no_version_1_are_refused() {
    for features in [VERSION_1 | 1 << 7, 1 << 5] {
        let mut driver = Driver::new();
        driver.accept(features);
        assert_eq!(driver.status(), 3, "FEATURES_OK does not stick");
        driver.write(20, 1, 7);
        assert_eq!(driver.status() & 0x40, 0x40, "and starting breaks the device");
        assert_eq!(driver.log.lock().unwrap().activations, 0);
    }
    let mut driver = Driver::new();
    driver.accept(FEATURES);
    driver.write(8, 4, 0);
    driver.write(12, 4, 0);
    assert_eq!(driver.read(12, 4), 1 << 5, "features are fixed after FEATURES_OK");
}

#[test]
fn queues_outside_memory_or_of_odd_sizes_do_not_start() {
    for descriptors in [0x40_0000, 0x3f_f000, 0x10_0008, u64::MAX - 0x0fff] {
        let mut driver = Driver::new();
        driver.accept(VERSION_1);
        driver.set_queue(0, 256, descriptors);
        driver.write(20, 1, 0xf);
        assert_eq!(driver.status() & 0x40, 0x40, "{descriptors:#x}");
        assert_eq!(driver.log.lock().unwrap().activations, 0);
        assert_eq!(driver.read(ISR, 1), 2, "the driver is told");
    }
    for size in [0, 3, 512, 65535] {
        let mut driver = Driver::new();
        driver.accept(VERSION_1);
        driver.set_queue(0, size, 0x10_0000);
        assert_eq!(driver.read(28, 2), 0, "size {size}");
    }
    let mut driver = Driver::new();
    driver.set_queue(2, 64, 0x10_0000);
    assert_eq!((driver.read(24, 2), driver.read(28, 2)), (0, 0), "there is no queue 2");
}

#[test]
fn a_device_that_cannot_start_needs_a_reset_and_may_start_after_it() {
    let mut driver = Driver::new();
    driver.log.lock().unwrap().refuse = true;
    driver.accept(VERSION_1);
    driver.write(20, 1, 0xf);
    assert_eq!(driver.status(), 0x4f);
    driver.log.lock().unwrap().refuse = false;
    driver.write(20, 1, 0);
    driver.accept(VERSION_1);
    driver.write(20, 1, 0xf);
    assert_eq!(driver.status(), 0xf);
    assert_eq!(driver.log.lock().unwrap().activations, 1);
}

#[test]
fn an_interrupt_is_connected_exactly_while_its_vector_delivers() {
    const ENABLE: u16 = 0x8000;
    const MASK: u16 = 0x4000;
    let mut driver = Driver::new();
    driver.write(22, 2, 1);
    driver.write(26, 2, 2);
    assert_eq!(driver.read(26, 2), 2);
    driver.fill_vector(2, 0x41);
    assert_eq!(driver.interrupt(1), None, "MSI-X is off");
    driver.msix_control(ENABLE);
    let gsi = driver.interrupt(1).expect("connected");
    let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
    assert_eq!(driver.wiring.routes().last(), Some(&(gsi, message)));
    assert_eq!(driver.interrupt(0), None);

    driver.msix_control(ENABLE | MASK);
    assert_eq!(driver.interrupt(1), None);
    assert_eq!(driver.read(PENDING, 8), 0);
    driver.pci.queues[1].call.source.event().write(1).unwrap();
    assert_eq!(driver.read(PENDING, 8), 1 << 2, "a call while masked is pending");
    driver.msix_control(ENABLE);
    assert_eq!(driver.interrupt(1), Some(gsi));
    assert_eq!(driver.wiring.routes().len(), 1, "the route did not change");

    driver.write(TABLE + 2 * 16 + 8, 4, 0x42);
    assert_eq!(driver.wiring.routes().last().unwrap().1.data, 0x42);
    driver.write(26, 2, 7);
    assert_eq!(driver.read(26, 2), u64::from(NO_VECTOR), "there is no vector 7");
    assert_eq!(driver.interrupt(1), None);
    driver.write(26, 2, 2);
    assert_eq!(driver.interrupt(1), Some(gsi));
    driver.write(20, 1, 0);
    assert_eq!(driver.interrupt(1), None, "a reset unmaps");
}

#[test]
fn doorbells_follow_the_bar_and_work_by_hand() {
    let mut driver = Driver::new();
    assert_eq!(driver.wiring.doorbells(), [BASE + NOTIFY, BASE + NOTIFY + 4]);
    driver.pci.write_config(0x10, &0xc800_0000_u32.to_le_bytes());
    driver.pci.bars_changed();
    let moved = 0xc800_0000 + NOTIFY;
    assert_eq!(driver.wiring.doorbells(), [moved, moved + 4]);
    driver.pci.write_config(0x04, &[0, 0]);
    driver.pci.bars_changed();
    assert!(driver.wiring.doorbells().is_empty());
    driver.write(NOTIFY + 4, 2, 1);
    assert_eq!(driver.pci.queues[1].kick.read().unwrap(), 1);
    assert!(driver.pci.queues[0].kick.read().is_err());
    driver.write(NOTIFY + 8, 2, 2);
}

#[test]
fn configuration_space_offers_a_window_on_the_bar() {
    let mut driver = Driver::new();
    let at = driver.pci.window_capability;
    driver.pci.write_config(at + CFG_WINDOW_OFFSET, &18_u32.to_le_bytes());
    driver.pci.write_config(at + CFG_WINDOW_LENGTH, &2_u32.to_le_bytes());
    assert_eq!(driver.config(at + CFG_WINDOW_DATA, 4) & 0xffff, 2, "number of queues");
    driver.pci.write_config(at + CFG_WINDOW_OFFSET, &22_u32.to_le_bytes());
    driver.pci.write_config(at + CFG_WINDOW_DATA, &[1, 0]);
    assert_eq!(driver.read(22, 2), 1);
    driver.pci.write_config(at + CFG_WINDOW_OFFSET, &0x8000_u32.to_le_bytes());
    driver.pci.write_config(at + CFG_WINDOW_DATA, &[7, 0]);
    driver.config(at + CFG_WINDOW_DATA, 2);
    assert_eq!(driver.read(22, 2), 1, "outside the BAR nothing happens");
}

#[test]
fn configuration_changes_are_counted_and_signalled() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(21, 1), 0);
    assert_eq!(driver.read(DEVICE + 6, 2), 0x0606);
    driver.write(DEVICE + 3, 1, 9);
    assert_eq!(driver.log.lock().unwrap().written, [(3, vec![9])]);
    driver.pci.config_change.notify();
    assert_eq!(driver.read(21, 1), 1);
    assert_eq!(driver.read(ISR, 1), 2);
    assert_eq!(driver.read(ISR, 1), 0, "reading clears");
}

#[test]
fn accesses_of_any_place_and_width_are_survived() {
    let mut driver = Driver::new();
    driver.accept(VERSION_1);
    driver.set_queue(0, 256, 0x10_0000);
    for offset in 0..BAR_SIZE {
        for len in [1, 2, 4, 8] {
            if offset + len as u64 <= BAR_SIZE {
                driver.read(offset, len);
                if offset != 20 {
                    driver.write(offset, len, u64::MAX);
                }
            }
        }
    }
    for offset in 0..256 {
        for len in [1, 2, 4] {
            driver.config(offset, len);
            driver.pci.write_config(offset, &[0xff; 4][..len]);
        }
    }
    driver.write(20, 1, 0);
    assert_eq!(driver.status(), 0);
}
