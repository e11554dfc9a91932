//! The MSI-X table and its masks (PCI Local Bus 3.0 §6.8.2).
//!
//! The table only says which message a vector delivers now, if any. Pending bits are not kept
//! here: a masked vector's event is left unread, and that is the bit.

use crate::wiring::MsiMessage;

/// The value by which virtio and others say "no vector".
pub const NO_VECTOR: u16 = 0xffff;

const ENTRY: usize = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    masked: bool,
}

/// A function's MSI-X state. All vectors start masked, the function disabled.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// # Panics
    /// When `vectors` is 0 or above 2048: an error of the device's author.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        assert!((1..=2048).contains(&vectors));
        let entry = Entry { message: MsiMessage::default(), masked: true };
        Self { entries: vec![entry; vectors.into()], enabled: false, masked: false }
    }

    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).expect("at most 2048 by construction")
    }

    /// Takes the message control word of the capability.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.masked = control & CONTROL_MASK != 0;
    }

    /// Whether the driver uses MSI-X at all.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The message that `vector` delivers now; `None` while it is masked, MSI-X is off or the
    /// vector does not exist.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        let entry = self.entries.get(usize::from(vector))?;
        (self.enabled && !self.masked && !entry.masked).then_some(entry.message)
    }

    /// Reads the table. Accesses must be aligned words or double words, as the standard asks;
    /// others read as all ones.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.entries.get(offset / ENTRY).map(Entry::bytes);
        match bytes {
            Some(bytes) if aligned(offset, data.len()) => {
                data.copy_from_slice(&bytes[offset % ENTRY..][..data.len()]);
            }
            _ => data.fill(0xff),
        }
    }

    /// Writes the table. Returns the vector whose entry may have changed.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) -> Option<u16> {
        let entry = self.entries.get_mut(offset / ENTRY).filter(|_| aligned(offset, data.len()))?;
        let mut bytes = entry.bytes();
        bytes[offset % ENTRY..][..data.len()].copy_from_slice(data);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        *entry = Entry {
            message: MsiMessage {
                address: u64::from(word(4)) << 32 | u64::from(word(0)),
                data: word(8),
            },
            masked: word(12) & ENTRY_MASKED != 0,
        };
        u16::try_from(offset / ENTRY).ok()
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12] = u8::from(self.masked);
        bytes
    }
}

fn aligned(offset: usize, len: usize) -> bool {
    (len == 4 || len == 8) && offset.is_multiple_of(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_delivers_only_when_nothing_masks_it() {
        let mut msix = Msix::new(2);
        assert_eq!(msix.write_table(16, &0xfee0_1000_u64.to_le_bytes()), Some(1));
        assert_eq!(msix.write_table(24, &0x41_u32.to_le_bytes()), Some(1));
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(msix.message(1), None, "entries start masked");
        msix.write_table(28, &[0; 4]);
        let message = MsiMessage { address: 0xfee0_1000, data: 0x41 };
        assert_eq!(msix.message(1), Some(message));
        assert_eq!(msix.message(0), None);
        assert_eq!(msix.message(2), None);
        assert_eq!(msix.message(NO_VECTOR), None);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
        assert_eq!(msix.message(1), None);
        msix.set_control(0);
        assert_eq!(msix.message(1), None);
        assert!(!msix.enabled());
    }

    #[test]
    fn the_table_reads_back_and_refuses_odd_accesses() {
        let mut msix = Msix::new(1);
        msix.write_table(8, &[1, 2, 3, 4, 0, 0, 0, 0]);
        let mut entry = [0; 8];
        msix.read_table(8, &mut entry);
        assert_eq!(entry, [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(msix.write_table(9, &[9; 4]), None);
        assert_eq!(msix.write_table(8, &[9]), None);
        assert_eq!(msix.write_table(16, &[9; 4]), None);
        let mut odd = [0; 2];
        msix.read_table(8, &mut odd);
        assert_eq!(odd, [0xff; 2]);
        let mut beyond = [0; 4];
        msix.read_table(16, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
    }
}
