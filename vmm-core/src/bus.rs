//! Address ranges and the devices behind them, for ports and for memory alike.
//!
//! The map is built before the first vCPU runs and does not change afterwards; what moves (PCI
//! base address registers) is resolved by the PCI bus behind one fixed range.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device that answers accesses to a range of ports or memory.
///
/// `data` is one access of 1, 2, 4 or 8 bytes, little-endian; on ports it may also be the bytes
/// of a string instruction. `offset` counts from the start of the range.
pub trait BusDevice: Send {
    /// Fills `data`. Registers that do not exist read as all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`. Writes to registers that do not exist are ignored.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Two ranges overlap, or a range ends beyond the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus range {start:#x}+{len:#x} is empty, too long or taken")]
pub struct Overlap {
    pub start: u64,
    pub len: u64,
}

/// An address space.
#[derive(Default)]
pub struct Bus {
    /// By start address.
    ranges: BTreeMap<u64, Range>,
}

struct Range {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.ranges.iter().map(|(start, range)| (start, range.len)))
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// Puts `device` behind `start..start + len`. A device may sit behind several ranges.
    ///
    /// # Errors
    /// [`Overlap`] when the range is empty, wraps around or meets another one.
    pub fn insert(
        &mut self,
        start: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let overlap = Overlap { start, len };
        let last = len.checked_sub(1).and_then(|l| start.checked_add(l)).ok_or(overlap)?;
        if let Some((before, range)) = self.ranges.range(..=last).next_back()
            && before + (range.len - 1) >= start
        {
            return Err(overlap);
        }
        self.ranges.insert(start, Range { len, device });
        Ok(())
    }

    /// Reads all ones where no device answers, as a PC does. Returns whether one did.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, device)) = self.find(address) else { return false };
        lock(device).read(offset, data);
        true
    }

    /// Returns whether a device took the write.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(address) else { return false };
        lock(device).write(offset, data);
        true
    }

    fn find(&self, address: u64) -> Option<(u64, &Arc<Mutex<dyn BusDevice>>)> {
        let (start, range) = self.ranges.range(..=address).next_back()?;
        let offset = address - start;
        (offset < range.len).then_some((offset, &range.device))
    }
}

/// Locks a device. A panic in another thread ends the process, so a poisoned lock still guards
/// consistent data by the time anyone sees it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_of_its_range_with_its_offset() {
        let (a, b) =
            (Arc::new(Mutex::new(Recorder::default())), Arc::new(Mutex::new(Recorder::default())));
        let mut bus = Bus::default();
        bus.insert(0x10, 8, a.clone()).unwrap();
        bus.insert(0x18, 8, b.clone()).unwrap();
        assert!(bus.write(0x17, &[1]));
        assert!(bus.write(0x18, &[2, 3]));
        assert_eq!(a.lock().unwrap().0, [(7, vec![1])]);
        assert_eq!(b.lock().unwrap().0, [(0, vec![2, 3])]);
        let mut data = [0; 2];
        assert!(bus.read(0x1a, &mut data));
        assert_eq!(data, [2, 2]);
    }

    #[test]
    fn nobody_home_reads_all_ones() {
        let bus = Bus::default();
        let mut data = [0; 4];
        assert!(!bus.read(0x80, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0x80, &[0]));
    }

    #[test]
    fn ranges_may_touch_but_not_overlap() {
        let device = || Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, device()).unwrap();
        for (start, len) in [(0x100, 1), (0x10f, 1), (0xf8, 9), (0x0, 0x1000), (0x108, 0x100)] {
            assert_eq!(bus.insert(start, len, device()), Err(Overlap { start, len }));
        }
        assert!(bus.insert(5, 0, device()).is_err());
        assert!(bus.insert(u64::MAX, 2, device()).is_err());
        bus.insert(u64::MAX, 1, device()).unwrap();
        bus.insert(0xf8, 8, device()).unwrap();
        bus.insert(0x110, 8, device()).unwrap();
    }
}
