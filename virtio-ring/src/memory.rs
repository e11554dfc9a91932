//! A guest's memory: the regions of one frontend.

use std::sync::Arc;

use crate::{GuestSlice, MappedRegion, MemoryError};

/// The regions of a guest, sorted by guest address. Immutable: another table is another `GuestMemory`, which may share regions
/// with the old one.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// What the hot path reads, apart from the mappings: guest address, size, host address.
    index: Box<[Place]>,
    regions: Box<[Arc<MappedRegion>]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    guest: u64,
    size: u64,
    host: *mut u8,
}

impl Place {
    /// A region that holds nothing.
    const NONE: Self = Self { guest: 0, size: 0, host: core::ptr::null_mut() };

    /// Where a range of guest addresses lies in the region, if it holds all of it.
    #[inline(always)]
    pub(crate) fn offset(&self, addr: u64, len: u32) -> Option<u64> {
        let offset = addr.wrapping_sub(self.guest);
        (offset < self.size && self.size - offset >= u64::from(len)).then_some(offset)
    }
}

// SAFETY: `host` is an address in a mapping that `regions` keeps; see MappedRegion.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

/// The region that was found last, by position: guests use few regions at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hint(usize);

impl GuestMemory {
    /// # Errors
    /// [`MemoryError::Overlap`] when two regions share guest addresses.
    pub fn new(mut regions: Vec<Arc<MappedRegion>>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.spec().guest_addr);
        for pair in regions.windows(2) {
            let (first, second) = (pair[0].spec(), pair[1].spec());
            // The sum was checked when the region was mapped.
            if first.guest_addr + first.size > second.guest_addr {
                return Err(MemoryError::Overlap {
                    first: first.guest_addr,
                    second: second.guest_addr,
                });
            }
        }
        let index = regions
            .iter()
            .map(|region| Place {
                guest: region.spec().guest_addr,
                size: region.spec().size,
                host: region.host(),
            })
            .collect();
        Ok(Self { index, regions: regions.into() })
    }

    #[must_use]
    pub fn regions(&self) -> &[Arc<MappedRegion>] {
        &self.regions
    }

    /// The file behind a region was cut short. What was read since may be zeros that the guest never wrote.
    #[must_use]
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.is_poisoned())
    }

    /// Marks the memory as poisoned: a system call reported EFAULT for it.
    pub fn poison(&self) {
        for region in &self.regions {
            region.poison();
        }
    }

    /// The range of guest addresses, if one region holds all of it.
    #[inline(always)]
    pub(crate) fn slice(&self, addr: u64, len: u32, hint: &mut Hint) -> Option<GuestSlice<'_>> {
        if let Some(slice) = self.slice_of(&self.place(*hint), addr, len) {
            return Some(slice);
        }
        let (found, place) = self.find(addr)?;
        *hint = found;
        self.slice_of(&place, addr, len)
    }

    /// The region at a position; one that holds nothing where there is none.
    #[inline(always)]
    pub(crate) fn place(&self, hint: Hint) -> Place {
        self.index.get(hint.0).copied().unwrap_or(Place::NONE)
    }

    /// The last region that begins at or below an address.
    #[inline(never)]
    pub(crate) fn find(&self, addr: u64) -> Option<(Hint, Place)> {
        let at = self.index.partition_point(|place| place.guest <= addr).checked_sub(1)?;
        Some((Hint(at), *self.index.get(at)?))
    }

    /// The range of guest addresses, if a region that [`place`](Self::place) gave holds all of it.
    #[inline(always)]
    pub(crate) fn slice_of(&self, place: &Place, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        let offset = place.offset(addr, len)?;
        // Not truncated: the region is mapped, so its size fits usize.
        #[expect(clippy::cast_possible_truncation, reason = "below the size of a mapping")]
        let host = place.host.wrapping_add(offset as usize);
        // SAFETY: `offset + len` is inside the region, whose mapping `self.regions` keeps as long as `self` is borrowed: places
        // come from `self.index`, or hold nothing.
        Some(unsafe { GuestSlice::new(host, len as usize) })
    }

    /// The guest address of a byte in one of the regions. For dirty logging: the search costs more than a look-up of a
    /// guest address.
    pub(crate) fn guest_addr(&self, host: *const u8) -> Option<u64> {
        self.index.iter().find_map(|place| {
            let offset = host.addr().checked_sub(place.host.addr())? as u64;
            (offset < place.size).then(|| place.guest + offset)
        })
    }

    /// The host address of a range of the frontend's own addresses, if one region holds all of it and the host address is a multiple of
    /// `align`. Valid while the memory lives.
    pub(crate) fn user_range(&self, addr: u64, len: u64, align: usize) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let spec = region.spec();
            let offset = addr.checked_sub(spec.user_addr)?;
            let fits = offset < spec.size && spec.size - offset >= len;
            let host = region.host().wrapping_add(usize::try_from(offset).ok().filter(|_| fits)?);
            host.addr().is_multiple_of(align).then_some(host)
        })
    }
}
