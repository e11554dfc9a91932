//! A FUSE file system of one file, `file`, whose server does not answer the process whose number it reads from its
//! standard input, with which it ends.
//!
//! It mounts on the given directory; run it in a mount namespace of its own (`unshare --mount`), so that nothing else of
//! the machine can get stuck in it. With the server the kernel ends what waits for its answers. It prints the number
//! of each request that it does not answer (`enum fuse_opcode` of linux/fuse.h).

use std::io::{BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// A FUSE server that does not answer everybody.
#[derive(Debug, Parser)]
#[command(name = "silent-fuse")]
struct Cli {
    /// An empty directory
    directory: PathBuf,
}

/// Nobody's test takes longer.
const LONGEST: Duration = Duration::from_secs(180);
/// Larger than any request of a kernel that was told of writes of 4 KiB.
const REQUEST: usize = 64 * 1024;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;

const ROOT: u64 = 1;
const FILE: u64 = 2;
const FILE_BYTES: u64 = 64 << 20;

fn main() -> anyhow::Result<()> {
    let Cli { directory } = Cli::parse();
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    let mut device = device.context("/dev/fuse: `modprobe fuse`?")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("silent", &directory, "fuse", flags, Some(options)).context("mount")?;
    println!("mounted");

    let victim = Arc::new(AtomicU32::new(0));
    std::thread::spawn({
        let victim = Arc::clone(&victim);
        move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if let Ok(process) = line.trim().parse() {
                    victim.store(process, Ordering::SeqCst);
                    println!("silent");
                }
            }
            std::process::exit(0);
        }
    });
    std::thread::spawn(|| {
        std::thread::sleep(LONGEST);
        std::process::exit(1);
    });
    let mut request = vec![0; REQUEST];
    loop {
        let len = match device.read(&mut request) {
            Ok(len) => len,
            Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => continue,
            Err(error) => return Err(error).context("/dev/fuse"),
        };
        let opcode = word(&request[..len], 4)?;
        // Who asks is named by thread.
        let thread = word(&request[..len], 32)?;
        let task = format!("/proc/{}/task/{thread}", victim.load(Ordering::SeqCst));
        if Path::new(&task).exists() {
            println!("{opcode}");
        } else if let Some(answer) = answer(opcode, &request[..len])? {
            device.write_all(&answer).context("an answer")?;
        }
    }
}

/// A word of the request.
fn word(request: &[u8], at: usize) -> anyhow::Result<u32> {
    let bytes = request.get(at..at + 4).context("half a request")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

/// `struct fuse_out_header` and what belongs to the request.
fn answer(opcode: u32, request: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let unique = request.get(8..16).context("half a request")?;
    let node = u64::from(word(request, 16)?);
    let (error, body) = match opcode {
        FORGET | BATCH_FORGET => return Ok(None),
        INIT => (0, init()),
        LOOKUP => (0, [&words64([FILE, 0, 0, 0, 0])[..], &attributes(FILE)].concat()),
        GETATTR => (0, [&words64([0, 0])[..], &attributes(node)].concat()),
        OPEN => (0, vec![0; 16]),
        FLUSH | RELEASE => (0, Vec::new()),
        _ => (Errno::NOSYS.raw_os_error(), Vec::new()),
    };
    let len = u32::try_from(16 + body.len())?;
    Ok(Some([&len.to_ne_bytes()[..], &(-error).to_ne_bytes(), unique, &body].concat()))
}

/// `struct fuse_init_out`, version 7.31: no read-ahead, no features, writes of 4 KiB.
fn init() -> Vec<u8> {
    let mut body: Vec<u8> = [7_u32, 31, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    // Requests in the background, and from when on that is many.
    body.extend([8_u16, 4].iter().flat_map(|half| half.to_ne_bytes()));
    body.extend(4096_u32.to_ne_bytes());
    body.resize(64, 0);
    body
}

/// `struct fuse_attr`: a directory, or a file with a size.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (0o40_755_u32, 0) } else { (0o100_644, FILE_BYTES) };
    let mut body = words64([node, size, size / 512, 0, 0, 0]);
    // Nanoseconds of three times, mode, links, user, group, device, block size, flags.
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn words64<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
