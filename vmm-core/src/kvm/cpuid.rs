//! What the guest's CPUID says: all that KVM supports, for one processor.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR_LEAVES: u32 = 0x4000_0000;
/// Leaf with the frequency of the time stamp counter, in kHz, as VMware defined it and Linux
/// reads it under KVM.
const TIMING_LEAF: u32 = 0x4000_0010;

/// Adapts `cpuid` for vCPU `id` of a machine with one processor.
pub(super) fn adapt(cpuid: &mut CpuId, id: u8, tsc_khz: u32, tsc_deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | u32::from(id) << 24 | 1 << 16;
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            0xb | 0x1f => {
                entry.edx = u32::from(id);
                // One thread, one core.
                entry.eax = 0;
                entry.ebx = u32::from(entry.index < 2);
            }
            HYPERVISOR_LEAVES => entry.eax = entry.eax.max(TIMING_LEAF),
            TIMING_LEAF => entry.eax = tsc_khz,
            _ => {}
        }
    }
    if !cpuid.as_slice().iter().any(|entry| entry.function == TIMING_LEAF) {
        let entry = kvm_cpuid_entry2 { function: TIMING_LEAF, eax: tsc_khz, ..Default::default() };
        // A full table means a guest that measures the frequency itself.
        let _ = cpuid.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_one_processor_under_a_hypervisor_with_a_known_clock() {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 1,
            ebx: 0xffff_0800,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[
            leaf(1, 0),
            leaf(0xb, 0),
            leaf(0xb, 1),
            leaf(HYPERVISOR_LEAVES, 0),
        ])
        .unwrap();
        adapt(&mut cpuid, 0, 2_100_000, true);
        let entries = cpuid.as_slice();
        assert_eq!(entries[0].ebx, 0x0001_0800);
        assert_eq!(entries[0].ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!((entries[1].eax, entries[1].ebx), (0, 1));
        assert_eq!(entries[3].eax, TIMING_LEAF);
        assert_eq!((entries[4].function, entries[4].eax), (TIMING_LEAF, 2_100_000));
    }
}
