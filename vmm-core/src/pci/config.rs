//! The 256 bytes of a function's configuration space (PCI Local Bus 3.0, chapter 6).
//!
//! Each bit is writable or not, and that is all there is to it: a base address register whose
//! low bits are read-only answers the sizing write of all ones with its size.

/// Base address registers of a type 0 header.
pub const BAR_COUNT: usize = 6;

const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const FIRST_BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// Memory decoding and bus mastering.
const COMMAND_WRITABLE: u16 = 0x0406;
const COMMAND_MEMORY: u8 = 0x02;
const STATUS_CAPABILITIES: u16 = 0x10;
const BAR_64_BIT: u32 = 0x04;

/// Who a function is: the read-only part of its header.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass, programming interface from the high byte down.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// A function's configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<u64>; BAR_COUNT],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A type 0 header with no base address register, no capability and no interrupt pin.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BAR_COUNT],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        // Cache line size and interrupt line are the driver's notes.
        space.writable[0x0c] = 0xff;
        space.writable[0x3c] = 0xff;
        space
    }

    /// Adds a 64-bit memory BAR of `size` bytes in registers `index` and `index + 1`.
    ///
    /// # Panics
    /// When `size` is no power of two of at least 16, or the registers are taken: errors of the
    /// device's author.
    pub fn add_memory_bar(&mut self, index: usize, size: u64) {
        assert!(size.is_power_of_two() && size >= 16 && index + 1 < BAR_COUNT);
        assert!(self.bars[index].is_none() && self.bars[index + 1].is_none());
        self.bars[index] = Some(size);
        let at = FIRST_BAR + index * 4;
        self.put(at, &BAR_64_BIT.to_le_bytes());
        self.writable[at..at + 8].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability of type `id` with `body` after its two header bytes; the bits set in
    /// `writable` (may be shorter than `body`) can be written by the guest. Returns its offset.
    ///
    /// # Panics
    /// When the space is full: an error of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len(), "the configuration space is full");
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        let link = u8::try_from(at).expect("asserted to be below 256");
        self.put(self.last_link, &[link]);
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        at
    }

    /// Reads `data.len()` bytes at `offset`; what lies beyond the space reads as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + i).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of `data` at `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate() {
            if let (Some(to), Some(mask)) =
                (self.bytes.get_mut(offset + i), self.writable.get(offset + i))
            {
                *to = *to & !mask | byte & mask;
            }
        }
    }

    /// Sets bytes whatever their mask says: for the VMM.
    ///
    /// # Panics
    /// When they lie beyond the space: an error of the device's author.
    pub fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Size of the BAR that starts in register `index`.
    #[must_use]
    pub fn bar_size(&self, index: usize) -> Option<u64> {
        self.bars.get(index).copied().flatten()
    }

    /// Places a BAR, as firmware would.
    pub fn place_bar(&mut self, index: usize, address: u64) {
        self.write(FIRST_BAR + index * 4, &address.to_le_bytes());
    }

    /// Turns memory decoding and bus mastering on, as firmware would.
    pub fn enable(&mut self) {
        self.write(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
    }

    /// Where the BAR answers now: `None` while it does not exist or decoding is off.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let size = self.bar_size(index)?;
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let mut low = [0; 8];
        self.read(FIRST_BAR + index * 4, &mut low);
        Some(u64::from_le_bytes(low) & !(size - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    fn word(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_says_who_it_is_and_cannot_be_changed() {
        let mut space = space();
        space.write(0, &[0; 16]);
        space.write(0x2c, &[0; 4]);
        assert_eq!(word(&space, 0), 0x1041_1af4);
        assert_eq!(word(&space, 8), 0x0200_0001);
        assert_eq!(word(&space, 0x2c), 0x1100_1af4);
        assert_eq!(word(&space, 0x3c) & 0xff00, 0, "no interrupt pin");
        let mut beyond = [0; 4];
        space.read(254, &mut beyond);
        assert_eq!(beyond, [0, 0, 0xff, 0xff]);
        space.write(254, &[1, 2, 3, 4]);
    }

    #[test]
    fn a_bar_tells_its_size_moves_and_answers_only_while_decoding_is_on() {
        let mut space = space();
        space.add_memory_bar(0, 0x8000);
        space.place_bar(0, 0xc000_0000);
        assert_eq!(space.bar_address(0), None);
        space.enable();
        assert_eq!(space.bar_address(0), Some(0xc000_0000));
        assert_eq!(word(&space, 0x10), 0xc000_0004);

        space.write(COMMAND, &[0, 0]);
        space.write(0x10, &u32::MAX.to_le_bytes());
        space.write(0x14, &u32::MAX.to_le_bytes());
        assert_eq!(word(&space, 0x10), 0xffff_8004);
        assert_eq!(word(&space, 0x14), 0xffff_ffff);
        space.write(0x10, &0xc800_0000_u32.to_le_bytes());
        space.write(0x14, &1_u32.to_le_bytes());
        assert_eq!(space.bar_address(0), None);
        space.write(COMMAND, &[6, 0]);
        assert_eq!(space.bar_address(0), Some(0x1_c800_0000));
        assert_eq!(space.bar_address(1), None);
        assert_eq!(space.bar_address(6), None);
    }

    #[test]
    fn capabilities_form_a_list_with_only_the_given_bits_writable() {
        let mut space = space();
        let first = space.add_capability(0x11, &[1, 2, 3], &[]);
        let second = space.add_capability(0x09, &[0, 0xff, 0, 0], &[0, 0x0f]);
        assert_eq!(word(&space, 4) >> 16 & 0x10, 0x10);
        assert_eq!((word(&space, 0x34) & 0xff) as usize, first);
        assert_eq!(second % 4, 0);
        assert_eq!(
            word(&space, first),
            u32::from_le_bytes([0x11, u8::try_from(second).unwrap(), 1, 2])
        );
        assert_eq!(word(&space, second) & 0xffff, 0x09, "the list ends");
        space.write(second, &[0xaa, 0xaa, 0xaa, 0x00]);
        assert_eq!(word(&space, second), 0xf000_0009);
    }
}
