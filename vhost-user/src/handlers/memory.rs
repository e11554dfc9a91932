//! The memory table. Only numbers are checked here; who maps a region checks its file.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Context, Reaction, head, log};
use crate::device::Region;
use crate::error::Refusal;
use crate::message::{RegionPayload, SlotPayload, TableHead};
use crate::session::{Action, MEM_SLOTS, TABLE_REGIONS};

/// Replaces all regions. The payload may be longer than its region count needs.
pub(crate) fn set_mem_table(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let (table, mut rest) = head::<TableHead>(context.payload);
    let count = table.regions as usize;
    if count > TABLE_REGIONS {
        return Err(Refusal::RegionCount { count: u64::from(table.regions), max: TABLE_REGIONS });
    }
    if rest.len() < count * size_of::<RegionPayload>() {
        let size = context.payload.len();
        return Err(Refusal::TableTooShort { count: table.regions, size });
    }
    if context.fds.len() != count {
        return Err(Refusal::FdCount { got: context.fds.len(), expected: count });
    }
    let mut regions = Vec::with_capacity(count);
    for fd in context.fds.drain(..) {
        let (payload, tail) = head::<RegionPayload>(rest);
        rest = tail;
        add(&mut regions, region(payload, fd))?;
    }
    context.device.regions = regions;
    log::check(context.device)?;
    Ok(Reaction::Act(Action::Memory))
}

pub(crate) fn get_max_mem_slots(_: &mut Context<'_>) -> Result<Reaction, Refusal> {
    Ok(Reaction::reply(MEM_SLOTS as u64))
}

/// A region that is there already is fine: QEMU before 8.1 sends each once per pair of queues.
pub(crate) fn add_mem_reg(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let RegionPayload { guest_addr, size, user_addr, mmap_offset } =
        head::<SlotPayload>(context.payload).0.region;
    let regions = &mut context.device.regions;
    let known = regions.iter().any(|region| {
        (region.guest_addr, region.size, region.user_addr, region.mmap_offset)
            == (guest_addr, size, user_addr, mmap_offset)
    });
    if known {
        return Ok(Reaction::Done);
    }
    if regions.len() >= MEM_SLOTS {
        return Err(Refusal::RegionCount { count: regions.len() as u64 + 1, max: MEM_SLOTS });
    }
    let Some(fd) = context.fds.pop() else {
        return Err(Refusal::FdCount { got: 0, expected: 1 });
    };
    add(regions, region(head::<SlotPayload>(context.payload).0.region, fd))?;
    log::check(context.device)?;
    Ok(Reaction::Act(Action::Memory))
}

/// The region is named by its addresses and size; one that is not there is fine, for the same QEMU
/// removes once per pair of queues too. A descriptor that comes along is closed.
pub(crate) fn rem_mem_reg(context: &mut Context<'_>) -> Result<Reaction, Refusal> {
    let RegionPayload { guest_addr, size, user_addr, .. } =
        head::<SlotPayload>(context.payload).0.region;
    let regions = &mut context.device.regions;
    let found = regions.iter().position(|region| {
        (region.guest_addr, region.size, region.user_addr) == (guest_addr, size, user_addr)
    });
    let Some(found) = found else { return Ok(Reaction::Done) };
    regions.remove(found);
    Ok(Reaction::Act(Action::Memory))
}

fn region(payload: RegionPayload, fd: OwnedFd) -> Region {
    let RegionPayload { guest_addr, size, user_addr, mmap_offset } = payload;
    Region { guest_addr, size, user_addr, mmap_offset, fd: Arc::new(fd) }
}

/// Adds a region to those that are there, when it fits in beside them.
pub(crate) fn add(regions: &mut Vec<Region>, new: Region) -> Result<(), Refusal> {
    let Region { guest_addr, size, user_addr, mmap_offset, .. } = new;
    let region = regions.len();
    if size == 0 {
        return Err(Refusal::RegionEmpty { region });
    }
    for (what, start) in
        [("guest address", guest_addr), ("user address", user_addr), ("file offset", mmap_offset)]
    {
        let end = start.checked_add(size);
        // File sizes are signed; addresses may reach the very end.
        let limit = if what == "file offset" { i64::MAX.unsigned_abs() } else { u64::MAX };
        if end.is_none_or(|end| end > limit) {
            return Err(Refusal::RegionOverflow { region, what, start, size });
        }
    }
    for (first, other) in regions.iter().enumerate() {
        let overlap = |a: u64, b: u64| a < b + other.size && b < a + size;
        for (what, overlaps) in [
            ("guest address", overlap(guest_addr, other.guest_addr)),
            ("user address", overlap(user_addr, other.user_addr)),
        ] {
            if overlaps {
                return Err(Refusal::RegionOverlap { first, second: region, what });
            }
        }
    }
    regions.push(new);
    Ok(())
}
