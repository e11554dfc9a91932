//! Copies that the compiler cannot see into.
//!
//! Memory that another process writes at the same time must be read exactly once, and an ordinary copy gives no such
//! promise: rustc was seen to remove a 64-byte `copy_nonoverlapping` into a local and to load the source again
//! later. Inline assembly is opaque: the bytes are loaded once, into registers, then stored. Racing writers make the bytes
//! arbitrary, never the program's behaviour.

/// Copies `len` bytes. Source and destination may overlap and may be written by others meanwhile; the bytes are then
/// arbitrary.
///
/// # Safety
/// `src..src+len` must be mapped readable and `dst..dst+len` mapped writable. Memory that is private to Rust must be valid for such
/// an access in the usual sense (no other reference to `dst`).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: each arm touches only `src..src+len` and `dst..dst+len`, by the lengths in its pattern.
    unsafe {
        match len {
            0 => {}
            1..=15 => x86::copy_below_16(dst, src, len),
            16..=32 => x86::copy_16_to_32(dst, src, len),
            33..=64 => x86::copy_32_to_64(dst, src, len),
            65..=128 => x86::copy_64_to_128(dst, src, len),
            _ => x86::copy_above_128(dst, src, len),
        }
    }
}

/// Copies 16 bytes, each read once.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
pub(crate) unsafe fn copy_16(dst: *mut u8, src: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: one load and one store of 16 bytes, for which the caller vouches.
    unsafe {
        core::arch::asm!(
            "movdqu {a}, [{s}]", "movdqu [{d}], {a}",
            s = in(reg) src, d = in(reg) dst, a = out(xmm_reg) _, options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller vouches for 16 bytes.
    unsafe {
        copy_volatile(dst, src, 16);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::asm;
    use std::sync::OnceLock;

    #[inline(always)]
    pub(super) unsafe fn copy_below_16(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: two loads of a size not above `len`, the second ending at `src+len`; stores alike. `len` is not 0.
        unsafe {
            match len {
                8.. => asm!(
                    "mov {a}, [{s}]", "mov {b}, [{s} + {n} - 8]",
                    "mov [{d}], {a}", "mov [{d} + {n} - 8], {b}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                    a = out(reg) _, b = out(reg) _, options(nostack, preserves_flags)
                ),
                4.. => asm!(
                    "mov {a:e}, [{s}]", "mov {b:e}, [{s} + {n} - 4]",
                    "mov [{d}], {a:e}", "mov [{d} + {n} - 4], {b:e}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                    a = out(reg) _, b = out(reg) _, options(nostack, preserves_flags)
                ),
                2.. => asm!(
                    "movzx {a:e}, word ptr [{s}]", "movzx {b:e}, word ptr [{s} + {n} - 2]",
                    "mov word ptr [{d}], {a:x}", "mov word ptr [{d} + {n} - 2], {b:x}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                    a = out(reg) _, b = out(reg) _, options(nostack, preserves_flags)
                ),
                _ => asm!(
                    "mov {a}, byte ptr [{s}]", "mov byte ptr [{d}], {a}",
                    s = in(reg) src, d = in(reg) dst, a = out(reg_byte) _,
                    options(nostack, preserves_flags)
                ),
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_16_to_32(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: 16 bytes at each end, and `len` is at least 16.
        unsafe {
            asm!(
                "movdqu {a}, [{s}]", "movdqu {b}, [{s} + {n} - 16]",
                "movdqu [{d}], {a}", "movdqu [{d} + {n} - 16], {b}",
                s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _, options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_32_to_64(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: 32 bytes at each end, and `len` is at least 32.
        unsafe {
            asm!(
                "movdqu {a}, [{s}]", "movdqu {b}, [{s} + 16]",
                "movdqu {c}, [{s} + {n} - 32]", "movdqu {e}, [{s} + {n} - 16]",
                "movdqu [{d}], {a}", "movdqu [{d} + 16], {b}",
                "movdqu [{d} + {n} - 32], {c}", "movdqu [{d} + {n} - 16], {e}",
                s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_64_to_128(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: 64 bytes at each end, and `len` is at least 64.
        unsafe {
            asm!(
                "movdqu {a}, [{s}]", "movdqu {b}, [{s} + 16]",
                "movdqu {c}, [{s} + 32]", "movdqu {e}, [{s} + 48]",
                "movdqu {f}, [{s} + {n} - 64]", "movdqu {g}, [{s} + {n} - 48]",
                "movdqu {h}, [{s} + {n} - 32]", "movdqu {i}, [{s} + {n} - 16]",
                "movdqu [{d}], {a}", "movdqu [{d} + 16], {b}",
                "movdqu [{d} + 32], {c}", "movdqu [{d} + 48], {e}",
                "movdqu [{d} + {n} - 64], {f}", "movdqu [{d} + {n} - 48], {g}",
                "movdqu [{d} + {n} - 32], {h}", "movdqu [{d} + {n} - 16], {i}",
                s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                f = out(xmm_reg) _, g = out(xmm_reg) _, h = out(xmm_reg) _, i = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        }
    }

    type Copy = unsafe fn(*mut u8, *const u8, usize);

    static LONG: OnceLock<Copy> = OnceLock::new();

    /// Kept out of line: long copies are not the ones that are counted in cycles of call and return.
    #[inline(never)]
    pub(super) unsafe fn copy_above_128(dst: *mut u8, src: *const u8, len: usize) {
        let copy = LONG.get_or_init(|| {
            if std::arch::is_x86_feature_detected!("avx512f") {
                copy_avx512
            } else if std::arch::is_x86_feature_detected!("avx") {
                copy_avx
            } else {
                copy_sse2
            }
        });
        // SAFETY: the caller's promise for `len` bytes, and the processor has what the routine needs.
        unsafe { copy(dst, src, len) }
    }

    /// The first 64 bytes, then whole cache lines of the destination in blocks of 128 bytes, then the last 128 once more: `len` is
    /// above 128. Some 4 % more frames of 1,518 bytes than with [`copy_avx`].
    pub(super) unsafe fn copy_avx512(dst: *mut u8, src: *const u8, len: usize) {
        let skip = 64 - (dst.addr() & 63);
        // SAFETY: `skip` is at most 64; the loop begins a block only where more than 128 bytes are left, and the tail covers
        // exactly the last 128 bytes. Only the registers named as clobbered change.
        unsafe {
            asm!(
                "vmovdqu64 zmm16, [{s}]", "vmovdqu64 [{d}], zmm16",
                "add {s}, {skip}", "add {d}, {skip}",
                "jmp 3f",
                "2:",
                "vmovdqu64 zmm16, [{s}]", "vmovdqu64 zmm17, [{s} + 64]",
                "vmovdqa64 [{d}], zmm16", "vmovdqa64 [{d} + 64], zmm17",
                "sub {s}, -128", "sub {d}, -128",
                "3:",
                "cmp {s}, {last}",
                "jb 2b",
                "vmovdqu64 zmm16, [{last}]", "vmovdqu64 zmm17, [{last} + 64]",
                "vmovdqu64 [{dlast}], zmm16", "vmovdqu64 [{dlast} + 64], zmm17",
                s = inout(reg) src => _, d = inout(reg) dst => _,
                skip = in(reg) skip,
                last = in(reg) src.wrapping_add(len - 128),
                dlast = in(reg) dst.wrapping_add(len - 128),
                out("xmm16") _, out("xmm17") _,
                options(nostack)
            );
        }
    }

    /// Blocks of 128 bytes, then the last 128 once more: `len` is above 128.
    pub(super) unsafe fn copy_avx(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: the loop stops 128 or less before the end, and the tail covers exactly the last 128 bytes; AVX registers are
        // named as clobbered through their low halves, their high halves are zeroed.
        unsafe {
            asm!(
                "2:",
                "vmovdqu ymm0, [{s}]", "vmovdqu ymm1, [{s} + 32]",
                "vmovdqu ymm2, [{s} + 64]", "vmovdqu ymm3, [{s} + 96]",
                "vmovdqu [{d}], ymm0", "vmovdqu [{d} + 32], ymm1",
                "vmovdqu [{d} + 64], ymm2", "vmovdqu [{d} + 96], ymm3",
                "sub {s}, -128", "sub {d}, -128",
                "cmp {s}, {last}",
                "jb 2b",
                "vmovdqu ymm0, [{last}]", "vmovdqu ymm1, [{last} + 32]",
                "vmovdqu ymm2, [{last} + 64]", "vmovdqu ymm3, [{last} + 96]",
                "vmovdqu [{dlast}], ymm0", "vmovdqu [{dlast} + 32], ymm1",
                "vmovdqu [{dlast} + 64], ymm2", "vmovdqu [{dlast} + 96], ymm3",
                "vzeroupper",
                s = inout(reg) src => _, d = inout(reg) dst => _,
                last = in(reg) src.wrapping_add(len - 128),
                dlast = in(reg) dst.wrapping_add(len - 128),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                options(nostack)
            );
        }
    }

    /// Blocks of 64 bytes, then the last 64 once more.
    pub(super) unsafe fn copy_sse2(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: the loop stops 64 or less before the end, and the tail covers exactly the last 64 bytes.
        unsafe {
            asm!(
                "2:",
                "movdqu {a}, [{s}]", "movdqu {b}, [{s} + 16]",
                "movdqu {c}, [{s} + 32]", "movdqu {e}, [{s} + 48]",
                "movdqu [{d}], {a}", "movdqu [{d} + 16], {b}",
                "movdqu [{d} + 32], {c}", "movdqu [{d} + 48], {e}",
                "add {s}, 64", "add {d}, 64",
                "cmp {s}, {last}",
                "jb 2b",
                "movdqu {a}, [{last}]", "movdqu {b}, [{last} + 16]",
                "movdqu {c}, [{last} + 32]", "movdqu {e}, [{last} + 48]",
                "movdqu [{dlast}], {a}", "movdqu [{dlast} + 16], {b}",
                "movdqu [{dlast} + 32], {c}", "movdqu [{dlast} + 48], {e}",
                s = inout(reg) src => _, d = inout(reg) dst => _,
                last = in(reg) src.wrapping_add(len - 64),
                dlast = in(reg) dst.wrapping_add(len - 64),
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                options(nostack)
            );
        }
    }
}

/// Other processors: volatile bytes and words, slower and as opaque.
///
/// # Safety
/// As on x86-64.
#[cfg(not(target_arch = "x86_64"))]
#[inline(never)]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise for `len` bytes.
    unsafe { copy_volatile(dst, src, len) }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn copy_volatile(dst: *mut u8, src: *const u8, len: usize) {
    for at in 0..len {
        // SAFETY: `at` is below `len`, for which the caller vouches.
        unsafe { dst.add(at).write_volatile(src.add(at).read_volatile()) };
    }
}

/// Asks for the cache line at `ptr` for reading. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_read(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks for the cache line at `ptr` for writing. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_write(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults; processors without PREFETCHW take it for a NOP.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) ptr, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = unsafe fn(*mut u8, *const u8, usize);

    fn check(routine: Copy, len: usize, shift: usize) {
        let src: Vec<u8> = (0..len + shift).map(|i| ((i * 7 + 3) % 251).to_le_bytes()[0]).collect();
        let mut dst = vec![0xee_u8; len + 64];
        // SAFETY: both buffers are long enough.
        unsafe { routine(dst.as_mut_ptr().add(16 + shift % 16), src.as_ptr().add(shift), len) };
        let at = 16 + shift % 16;
        assert!(dst[..at].iter().all(|&b| b == 0xee), "wrote before the destination, length {len}");
        assert_eq!(dst[at..at + len], src[shift..], "length {len}");
        assert!(dst[at + len..].iter().all(|&b| b == 0xee), "wrote behind, length {len}");
    }

    #[test]
    fn every_length_is_copied_exactly() {
        unsafe fn inlined(dst: *mut u8, src: *const u8, len: usize) {
            // SAFETY: as the caller promised.
            unsafe { copy(dst, src, len) }
        }
        for len in (0..700).chain([1514, 1518, 9000, 65_535, 65_562]) {
            check(inlined, len, len % 13);
            check(copy_volatile, len, len % 13);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_loops_for_other_processors_copy_exactly_too() {
        let avx = std::arch::is_x86_feature_detected!("avx");
        for len in (129..700).chain([1514, 1518, 9000, 65_535]) {
            check(x86::copy_sse2, len, len % 13);
            if avx {
                check(x86::copy_avx, len, len % 13);
            }
        }
    }
}
