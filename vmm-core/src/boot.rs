//! From files to a guest that can start: the kernel, its command line and initrd, and what the
//! 64-bit boot protocol of Linux/x86 wants in memory (Documentation/arch/x86/boot.rst §1.13).
//!
//! Kernel formats are [`Loader`]s. Whatever the format, the vCPU starts in long mode at the
//! entry, with memory below 4 GiB mapped one to one and RSI pointing at `boot_params`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{Elf, KernelLoader as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::layout;
use crate::memory::{self, GuestMemory};

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootSource {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
}

/// Where the vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub rip: u64,
}

/// Why the guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{} is {found}; give an x86-64 ELF kernel (vmlinux, or the test guest)", path.display()
    )]
    Format { path: PathBuf, found: &'static str },
    #[error("cannot load the kernel {} into {memory} bytes of memory", path.display())]
    Load { path: PathBuf, memory: u64, source: linux_loader::loader::Error },
    #[error(
        "the kernel {} wants {address:#x}, which is not in the memory above 1 MiB; \
         give the guest more --memory", path.display()
    )]
    Place { path: PathBuf, address: u64 },
    #[error(
        "the initrd {} ({size} bytes) does not fit behind the kernel; give the guest more --memory",
        path.display()
    )]
    Initrd { path: PathBuf, size: u64 },
    #[error("the kernel command line has {0} bytes; at most 2047 and no NUL are possible")]
    CommandLine(usize),
    #[error("cannot write boot data into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A kernel in memory.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    pub entry: u64,
    /// First byte after the kernel and its zeroed data.
    pub end: u64,
    /// The header of formats that bring one.
    pub header: Option<setup_header>,
}

/// A kernel format.
pub trait Loader: Sync {
    /// Whether a file that starts with `head` (up to 1 KiB) is of this format.
    fn recognises(&self, head: &[u8]) -> bool;
    /// # Errors
    /// When the file is broken or does not fit.
    fn load(
        &self,
        memory: &GuestMemory,
        file: &mut File,
    ) -> Result<LoadedKernel, linux_loader::loader::Error>;
}

/// ELF executables for x86-64, loaded at their physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct ElfLoader;

impl Loader for ElfLoader {
    fn recognises(&self, head: &[u8]) -> bool {
        const MACHINE_X86_64: [u8; 2] = [62, 0];
        head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&MACHINE_X86_64)
    }

    fn load(
        &self,
        memory: &GuestMemory,
        file: &mut File,
    ) -> Result<LoadedKernel, linux_loader::loader::Error> {
        let loaded = Elf::load(memory, None, file, None)?;
        Ok(LoadedKernel { entry: loaded.kernel_load.0, end: loaded.kernel_end, header: None })
    }
}

const LOADERS: [&dyn Loader; 1] = [&ElfLoader];

/// Fills guest memory with everything that `source` says and the boot protocol needs.
///
/// # Errors
/// [`BootError`].
pub fn load(memory: &GuestMemory, source: &BootSource) -> Result<Entry, BootError> {
    let kernel = load_kernel(memory, &source.kernel)?;
    let initrd = match &source.initrd {
        Some(path) => Some(load_initrd(memory, path, kernel.end)?),
        None => None,
    };
    write_command_line(memory, &source.command_line)?;
    write_zero_page(memory, &kernel, initrd, source.command_line.len())?;
    write_tables(memory)?;
    Ok(Entry { rip: kernel.entry })
}

fn load_kernel(memory: &GuestMemory, path: &Path) -> Result<LoadedKernel, BootError> {
    let failed = |source| BootError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(1024).read_to_end(&mut head).map_err(failed)?;
    let Some(loader) = LOADERS.iter().find(|loader| loader.recognises(&head)) else {
        return Err(BootError::Format { path: path.to_owned(), found: describe(&head) });
    };
    let low = memory::low_size(memory);
    let kernel = loader.load(memory, &mut file).map_err(|source| BootError::Load {
        path: path.to_owned(),
        memory: low,
        source,
    })?;
    for address in [kernel.entry, kernel.end.saturating_sub(1)] {
        if !(layout::HIGH_MEMORY..low).contains(&address) {
            return Err(BootError::Place { path: path.to_owned(), address });
        }
    }
    Ok(kernel)
}

/// What a file that no loader takes looks like.
fn describe(head: &[u8]) -> &'static str {
    if head.is_empty() {
        "empty"
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        "a bzImage, which cannot be booted yet"
    } else if head.starts_with(b"\x7fELF") {
        "an ELF file for another processor"
    } else if head.starts_with(&[0x1f, 0x8b]) {
        "a gzip file"
    } else {
        "not an ELF file"
    }
}

/// Puts the initrd at the top of low memory. Returns its address and size.
fn load_initrd(memory: &GuestMemory, path: &Path, after: u64) -> Result<(u64, u64), BootError> {
    let failed = |source| BootError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let too_big = || BootError::Initrd { path: path.to_owned(), size };
    let address = memory::low_size(memory).checked_sub(size).ok_or_else(too_big)? & !0xfff;
    if address < after || u32::try_from(address + size).is_err() {
        return Err(too_big());
    }
    let len = usize::try_from(size).map_err(|_| too_big())?;
    memory.read_exact_volatile_from(GuestAddress(address), &mut file, len)?;
    Ok((address, size))
}

fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    if line.len() >= layout::COMMAND_LINE_MAX || line.contains('\0') {
        return Err(BootError::CommandLine(line.len()));
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

/// A 64-bit address whose 32 low bits a boot protocol field takes.
fn low(address: u64) -> u32 {
    u32::try_from(address).expect("all boot data lies below 4 GiB")
}

fn write_zero_page(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    initrd: Option<(u64, u64)>,
    command_line_len: usize,
) -> Result<(), BootError> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let mut params =
        boot_params { hdr: kernel.header.unwrap_or_default(), ..boot_params::default() };
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.kernel_alignment = 0x0100_0000;
    params.hdr.cmd_line_ptr = low(layout::COMMAND_LINE);
    params.hdr.cmdline_size = low(command_line_len as u64);
    if let Some((address, size)) = initrd {
        params.hdr.ramdisk_image = low(address);
        params.hdr.ramdisk_size = low(size);
    }
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, RAM),
        (layout::LOW_MEMORY_END, layout::HIGH_MEMORY, RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0;
        map.push((start.max(layout::HIGH_MEMORY), start + region.len(), RAM));
    }
    for (entry, (start, end, kind)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: *start, size: end - start, r#type: *kind };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// Flat segments of the boot state, as their descriptors: null, code, data, task.
pub(crate) const GDT_ENTRIES: [u64; 4] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

/// The descriptor table, and page tables that map the low 4 GiB one to one in 2 MiB pages.
fn write_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const PAGE: u64 = 0x1000;
    const PRESENT_WRITABLE: u64 = 0x03;
    const LARGE: u64 = 0x80;
    for (index, entry) in GDT_ENTRIES.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    memory.write_obj(0_u64, GuestAddress(layout::IDT))?;
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4 + PAGE;
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + (gib + 1) * PAGE;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        for page in 0..512 {
            let entry = gib << 30 | page << 21 | LARGE | PRESENT_WRITABLE;
            memory.write_obj(entry, GuestAddress(directory + page * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF executable with one segment of `code` and `bss` zeroed bytes at `address`.
    fn elf(address: u64, code: &[u8], bss: u64) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for value in [address, 64, 0] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        let size = code.len() as u64;
        for value in [120, address, address, size, size + bss, 4096] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(code);
        elf
    }

    fn source(kernel: &Path) -> BootSource {
        BootSource { kernel: kernel.to_owned(), initrd: None, command_line: "once".into() }
    }

    #[test]
    fn a_kernel_its_initrd_and_its_command_line_end_up_where_boot_params_says() {
        let memory = memory::allocate(16 * MIB).unwrap();
        let kernel = file(&elf(0x20_0000, b"code", 100));
        let initrd = file(&[7; 5000]);
        let mut boot = source(kernel.path());
        boot.initrd = Some(initrd.path().to_owned());
        assert_eq!(load(&memory, &boot).unwrap(), Entry { rip: 0x20_0000 });

        let mut code = [0; 4];
        memory.read_slice(&mut code, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(&code, b"code");
        let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let hdr = params.hdr;
        let (image, size) = (hdr.ramdisk_image, hdr.ramdisk_size);
        assert_eq!((u64::from(image), size), (16 * MIB - 8192, 5000));
        let mut first = [0];
        memory.read_slice(&mut first, GuestAddress(image.into())).unwrap();
        assert_eq!(first, [7]);
        let mut line = [0xff; 5];
        memory.read_slice(&mut line, GuestAddress(hdr.cmd_line_ptr.into())).unwrap();
        assert_eq!(&line, b"once\0");
        assert_eq!(params.e820_entries, 3);
        let last = params.e820_table[2];
        let (addr, size) = (last.addr, last.size);
        assert_eq!((addr, addr + size), (MIB, 16 * MIB));
    }

    #[test]
    fn the_low_4_gib_are_mapped_one_to_one() {
        let memory = memory::allocate(2 * MIB).unwrap();
        write_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress((table & !0xfff) + index * 8)).unwrap()
        };
        for address in [0_u64, 0x1234_5678, 0xc000_0000, 0xffe0_0000] {
            let directory = entry(entry(layout::PAGE_TABLES, 0), address >> 30);
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
            assert_eq!(page & 0x83, 0x83, "present, writable, large");
        }
    }

    #[test]
    fn files_that_are_no_kernel_are_named_for_what_they_are() {
        let memory = memory::allocate(2 * MIB).unwrap();
        let mut bzimage = vec![0; 1024];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let mut arm = elf(MIB, b"", 0);
        arm[18] = 183;
        for (bytes, expected) in [
            (&b""[..], "is empty"),
            (&b"#!/bin/sh"[..], "not an ELF file"),
            (&bzimage[..], "a bzImage"),
            (&arm[..], "another processor"),
            (&[0x1f, 0x8b, 8, 0][..], "gzip"),
        ] {
            let kernel = file(bytes);
            let error = load(&memory, &source(kernel.path())).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = load(&memory, &source(Path::new("/nonexistent/vmlinux"))).unwrap_err();
        assert!(matches!(error, BootError::File { .. }));
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let memory = memory::allocate(4 * MIB).unwrap();
        for kernel in [elf(0x1000, b"low", 0), elf(3 * MIB, b"big", 2 * MIB)] {
            let kernel = file(&kernel);
            let error = load(&memory, &source(kernel.path())).unwrap_err();
            assert!(matches!(error, BootError::Place { .. }), "{error}");
        }
        let beyond = file(&elf(5 * MIB, b"beyond", 0));
        let error = load(&memory, &source(beyond.path())).unwrap_err();
        assert!(matches!(error, BootError::Load { .. }), "{error}");
        let truncated = elf(MIB, b"some code", 0);
        let truncated = file(&truncated[..truncated.len() - 3]);
        let error = load(&memory, &source(truncated.path())).unwrap_err();
        assert!(matches!(error, BootError::Load { .. }), "{error}");

        let kernel = file(&elf(MIB, b"fits", 0));
        let mut boot = source(kernel.path());
        boot.command_line = "x".repeat(2048);
        assert!(matches!(load(&memory, &boot), Err(BootError::CommandLine(2048))));
        let initrd = file(&vec![0; 3 << 20]);
        let mut boot = source(kernel.path());
        boot.initrd = Some(initrd.path().to_owned());
        assert!(matches!(load(&memory, &boot), Err(BootError::Initrd { .. })));
    }
}
