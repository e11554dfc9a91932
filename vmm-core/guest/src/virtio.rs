//! The virtio network driver: modern PCI, two split rings, polled.
//!
//! Offloads are not accepted, so frames have complete checksums both ways and fit one buffer.
//! Rings and buffers are statics at their physical addresses; the device reads and writes them
//! while the driver runs, so rings are accessed through volatile pointers only.

use core::cell::UnsafeCell;
use core::ptr::{self, addr_of, addr_of_mut};
use core::sync::atomic::{AtomicBool, Ordering, fence};

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::pci::{Function, Structure};

const RING: usize = 64;
const BUFFER: usize = 2048;
/// `struct virtio_net_hdr_v1`: all zero for a frame without offloads.
const HEADER: usize = 12;
const ETHERNET_HEADER: usize = 14;
const MTU: usize = 1500;

const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;
const FEATURE_VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

const DESCRIPTOR_WRITE: u16 = 2;
const USED_NO_NOTIFY: u16 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UsedElement {
    id: u32,
    len: u32,
}

/// One split ring and its buffers (virtio 1.3 §2.7).
#[repr(C, align(4096))]
struct Memory {
    descriptors: [Descriptor; RING],
    avail_flags: u16,
    avail_index: u16,
    avail: [u16; RING],
    unused_event: u16,
    padding: u16,
    used_flags: u16,
    used_index: u16,
    used: [UsedElement; RING],
    buffers: [[u8; BUFFER]; RING],
}

/// The used ring must be aligned to 4.
const _: () = assert!(core::mem::offset_of!(Memory, used_flags) % 4 == 0);

struct Shared(UnsafeCell<Memory>);
// SAFETY: there is one thread, and `Network::find` hands each out once.
unsafe impl Sync for Shared {}

const EMPTY: Memory = Memory {
    descriptors: [Descriptor { address: 0, len: 0, flags: 0, next: 0 }; RING],
    avail_flags: 0,
    avail_index: 0,
    avail: [0; RING],
    unused_event: 0,
    padding: 0,
    used_flags: 0,
    used_index: 0,
    used: [UsedElement { id: 0, len: 0 }; RING],
    buffers: [[0; BUFFER]; RING],
};
static RECEIVE: Shared = Shared(UnsafeCell::new(EMPTY));
static TRANSMIT: Shared = Shared(UnsafeCell::new(EMPTY));
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The driver's end of one ring. Descriptor `i` is always buffer `i`.
struct Ring {
    memory: *mut Memory,
    doorbell: *mut u16,
    index: u16,
    /// Our copies of the indices that we publish and that we have seen.
    avail_index: u16,
    used_index: u16,
    /// Buffers were made available that the device was not told of.
    untold: bool,
}

impl Ring {
    fn new(shared: &'static Shared, doorbell: usize, index: u16) -> Self {
        let memory = shared.0.get();
        Self {
            memory,
            doorbell: ptr::with_exposed_provenance_mut(doorbell),
            index,
            avail_index: 0,
            used_index: 0,
            untold: false,
        }
    }

    fn buffer(&self, id: u16) -> *mut [u8; BUFFER] {
        // SAFETY: `id` is below RING (callers), so this stays within the memory.
        unsafe { addr_of_mut!((*self.memory).buffers).cast::<[u8; BUFFER]>().add(id.into()) }
    }

    /// Gives buffer `id` to the device: `len` bytes that it reads, or may write.
    fn offer(&mut self, id: u16, len: usize, flags: u16) {
        let address = self.buffer(id).expose_provenance() as u64;
        let descriptor = Descriptor { address, len: len as u32, flags, next: 0 };
        let slot = usize::from(self.avail_index) % RING;
        // SAFETY: both indices are below RING; the memory is static. The device does not read
        // the entry before the index says so, which the release fence orders.
        unsafe {
            let descriptors = addr_of_mut!((*self.memory).descriptors).cast::<Descriptor>();
            descriptors.add(id.into()).write_volatile(descriptor);
            addr_of_mut!((*self.memory).avail).cast::<u16>().add(slot).write_volatile(id);
            fence(Ordering::Release);
            self.avail_index = self.avail_index.wrapping_add(1);
            addr_of_mut!((*self.memory).avail_index).write_volatile(self.avail_index);
        }
        self.untold = true;
    }

    /// Tells the device about what was offered, if it wants to be told.
    fn tell(&mut self) {
        if !self.untold {
            return;
        }
        self.untold = false;
        // The index must be visible before we look whether the device sleeps.
        fence(Ordering::SeqCst);
        // SAFETY: the memory is static; the doorbell is the device's, found in its structure.
        unsafe {
            if addr_of!((*self.memory).used_flags).read_volatile() & USED_NO_NOTIFY == 0 {
                self.doorbell.write_volatile(self.index);
            }
        }
    }

    fn has_used(&self) -> bool {
        // SAFETY: the memory is static.
        unsafe { addr_of!((*self.memory).used_index).read_volatile() != self.used_index }
    }

    /// The next buffer that the device is done with, and the bytes that it wrote.
    fn take_used(&mut self) -> Option<(u16, usize)> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = usize::from(self.used_index) % RING;
        // SAFETY: the slot is below RING; the memory is static.
        let element = unsafe {
            addr_of!((*self.memory).used).cast::<UsedElement>().add(slot).read_volatile()
        };
        self.used_index = self.used_index.wrapping_add(1);
        let id = u16::try_from(element.id).ok().filter(|id| usize::from(*id) < RING);
        Some((id.expect("the device returned a buffer that it never had"), element.len as usize))
    }
}

/// Registers of a structure in a BAR.
#[derive(Clone, Copy)]
struct Registers(usize);

impl Registers {
    fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: within a structure of the device, naturally aligned (virtio 1.3 §4.1.4.3).
        unsafe { ptr::with_exposed_provenance::<T>(self.0 + offset).read_volatile() }
    }

    fn write<T>(self, offset: usize, value: T) {
        // SAFETY: as above.
        unsafe { ptr::with_exposed_provenance_mut::<T>(self.0 + offset).write_volatile(value) }
    }
}

/// The network device, driven.
pub struct Network {
    device: Registers,
    receive: Ring,
    transmit: Ring,
    /// Transmit buffers that the device does not have.
    free: u64,
    pub mac: EthernetAddress,
    pub mtu: usize,
    pub features: u64,
    has_status: bool,
}

impl Network {
    /// Finds the first network device and starts it.
    pub fn find() -> Result<Self, &'static str> {
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err("it is driven already");
        }
        let function = Function::find_network().ok_or("there is no virtio network device")?;
        let structure = |kind| function.structure(kind).ok_or("a virtio structure is missing");
        let common = Registers(structure(1)?.address);
        let notify = structure(2)?;
        let device = Registers(structure(4)?.address);
        crate::say!(
            "pci slot={} common={:#x} notify={:#x}",
            function.slot(),
            common.0,
            notify.address
        );

        common.write::<u8>(20, 0);
        while common.read::<u8>(20) != 0 {}
        common.write::<u8>(20, ACKNOWLEDGE | DRIVER);
        let features = negotiate(common)?;
        let receive = start_ring(common, notify, &RECEIVE, 0)?;
        let transmit = start_ring(common, notify, &TRANSMIT, 1)?;
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        common.write::<u8>(20, status);
        if common.read::<u8>(20) & NEEDS_RESET != 0 {
            return Err("the device cannot start");
        }
        let mtu = match features & FEATURE_MTU {
            0 => MTU,
            _ => usize::from(device.read::<u16>(10)).min(MTU),
        };
        let mac = EthernetAddress(core::array::from_fn(|i| device.read::<u8>(i)));
        let has_status = features & FEATURE_STATUS != 0;
        let free = u64::MAX;
        let mut network = Self { device, receive, transmit, free, mac, mtu, features, has_status };
        for id in 0..RING as u16 {
            network.receive.offer(id, BUFFER, DESCRIPTOR_WRITE);
        }
        network.receive.tell();
        Ok(network)
    }

    /// Whether the backend is there, as the device says.
    pub fn link_up(&self) -> bool {
        !self.has_status || self.device.read::<u16>(6) & 1 != 0
    }

    /// Whether a frame waits.
    pub fn has_news(&self) -> bool {
        self.receive.has_used()
    }

    /// Tells the device about buffers that it got back.
    pub fn tell(&mut self) {
        self.receive.tell();
    }

    fn reclaim(&mut self) {
        while let Some((id, _)) = self.transmit.take_used() {
            self.free |= 1 << id;
        }
    }
}

const _: () = assert!(RING == u64::BITS as usize, "`free` is a mask");

fn negotiate(common: Registers) -> Result<u64, &'static str> {
    let mut offered = 0_u64;
    for half in 0..2_u32 {
        common.write(0, half);
        offered |= u64::from(common.read::<u32>(4)) << (32 * half);
    }
    let wanted = FEATURE_VERSION_1 | FEATURE_MAC | FEATURE_STATUS | FEATURE_MTU;
    let accepted = offered & wanted;
    if accepted & (FEATURE_VERSION_1 | FEATURE_MAC) != FEATURE_VERSION_1 | FEATURE_MAC {
        return Err("it is a legacy device or has no MAC address");
    }
    for half in 0..2_u32 {
        common.write(8, half);
        common.write(12, (accepted >> (32 * half)) as u32);
    }
    common.write::<u8>(20, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if common.read::<u8>(20) & FEATURES_OK == 0 {
        return Err("it refuses the features that it offered");
    }
    Ok(accepted)
}

fn start_ring(
    common: Registers,
    notify: Structure,
    shared: &'static Shared,
    index: u16,
) -> Result<Ring, &'static str> {
    common.write(22, index);
    if usize::from(common.read::<u16>(24)) < RING {
        return Err("a queue is too short");
    }
    common.write(24, RING as u16);
    let memory = shared.0.get();
    let start = memory.expose_provenance();
    let parts = [
        (32, core::mem::offset_of!(Memory, descriptors)),
        (40, core::mem::offset_of!(Memory, avail_flags)),
        (48, core::mem::offset_of!(Memory, used_flags)),
    ];
    for (register, offset) in parts {
        let address = (start + offset) as u64;
        common.write(register, address as u32);
        common.write(register + 4, (address >> 32) as u32);
    }
    common.write::<u16>(28, 1);
    if common.read::<u16>(28) != 1 {
        return Err("a queue does not start");
    }
    let doorbell = usize::from(common.read::<u16>(30)) * notify.extra as usize;
    Ok(Ring::new(shared, notify.address + doorbell, index))
}

pub struct Receive<'a> {
    ring: &'a mut Ring,
    id: u16,
    len: usize,
}

impl RxToken for Receive<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // SAFETY: the device returned the buffer, so it is ours until it is offered again.
        let buffer = unsafe { &*self.ring.buffer(self.id) };
        let end = self.len.clamp(HEADER, BUFFER);
        let result = f(&buffer[HEADER..end]);
        self.ring.offer(self.id, BUFFER, DESCRIPTOR_WRITE);
        result
    }
}

pub struct Transmit<'a> {
    ring: &'a mut Ring,
    free: &'a mut u64,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let id = self.free.trailing_zeros() as u16;
        *self.free &= !(1 << id);
        // SAFETY: the buffer is marked free (there is a token), so the device does not have it.
        let buffer = unsafe { &mut *self.ring.buffer(id) };
        buffer[..HEADER].fill(0);
        let result = f(&mut buffer[HEADER..HEADER + len]);
        self.ring.offer(id, HEADER + len, 0);
        self.ring.tell();
        result
    }
}

impl Device for Network {
    type RxToken<'a> = Receive<'a>;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Receive<'_>, Transmit<'_>)> {
        self.reclaim();
        if self.free == 0 {
            return None;
        }
        let (id, len) = self.receive.take_used()?;
        Some((
            Receive { ring: &mut self.receive, id, len },
            Transmit { ring: &mut self.transmit, free: &mut self.free },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Transmit<'_>> {
        self.reclaim();
        (self.free != 0).then_some(Transmit { ring: &mut self.transmit, free: &mut self.free })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER;
        capabilities
    }
}
