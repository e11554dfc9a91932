//! PCI through ports 0xcf8 and 0xcfc: find the network device and its virtio structures.

use crate::ports;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const VIRTIO_NET: u32 = 0x1041_1af4;
const CAPABILITY_VENDOR: u8 = 0x09;

/// A function of bus 0, by its slot.
#[derive(Clone, Copy)]
pub struct Function(u32);

/// Where one of the virtio structures is (virtio 1.3 §4.1.4).
#[derive(Clone, Copy)]
pub struct Structure {
    pub address: usize,
    /// What a notify structure has behind its header: the multiplier.
    pub extra: u32,
}

impl Function {
    pub fn find_network() -> Option<Self> {
        (0..32).map(Self).find(|function| function.read(0) == VIRTIO_NET)
    }

    pub fn slot(self) -> u32 {
        self.0
    }

    fn read(self, register: u8) -> u32 {
        ports::out32(ADDRESS, 0x8000_0000 | self.0 << 11 | u32::from(register & 0xfc));
        ports::in32(DATA)
    }

    fn byte(self, register: u8) -> u8 {
        self.read(register).to_le_bytes()[usize::from(register & 3)]
    }

    /// The first structure of type `kind`.
    pub fn structure(self, kind: u8) -> Option<Structure> {
        let mut at = self.byte(0x34);
        // A list cannot be longer than the space.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            if self.byte(at) == CAPABILITY_VENDOR && self.byte(at + 3) == kind {
                let bar = self.byte(at + 4);
                let base = self.bar(bar)?;
                let address = base.checked_add(u64::from(self.read(at + 8)))?;
                // The boot stub maps this much.
                let address = usize::try_from(address).ok().filter(|end| *end < 0xffff_0000)?;
                return Some(Structure { address, extra: self.read(at + 16) });
            }
            at = self.byte(at + 1);
        }
        None
    }

    fn bar(self, index: u8) -> Option<u64> {
        let register = 0x10 + index.checked_mul(4)?;
        let low = self.read(register);
        match low & 0x7 {
            0 => Some(u64::from(low & !0xf)),
            4 => Some(u64::from(self.read(register + 4)) << 32 | u64::from(low & !0xf)),
            _ => None,
        }
    }
}
