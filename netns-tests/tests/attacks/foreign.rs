//! Files whose owner decides when a call on them ends, and memory that is not there.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::frontend::Memory;
use netns_tests::frontend::hostile::{Attacker, INDIRECT, Layout, Raw, Side, WRITE, table, words};
use netns_tests::process::Process;
use netns_tests::{program, wait};
use rustix::event::epoll;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use vhost_user::Request;

use crate::scene::{EVIL, FRIEND, Scene, Trace};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(10);
const USER: u64 = 0x7000_0000_0000;
const FOREIGN: &str = "only memory files";
/// `FUSE_FLUSH` of linux/fuse.h: a descriptor of the file is being closed.
const FLUSH: &str = "25";

/// Requests that take a descriptor, with good payloads.
fn ways() -> [(&'static str, Request, Vec<u8>); 4] {
    [
        ("memory", Request::SET_MEM_TABLE, table(&[[0, MIB, USER, 0]])),
        ("a dirty log", Request::SET_LOG_BASE, words([MIB, 0])),
        ("a kick", Request::SET_VRING_KICK, words([1_u64])),
        ("a call", Request::SET_VRING_CALL, words([1_u64])),
    ]
}

/// Sends it. Others are served meanwhile, and the operator sees why at once.
fn offer(
    scene: &mut Scene,
    socket: &Path,
    request: Request,
    payload: &[u8],
    fd: BorrowedFd<'_>,
) -> anyhow::Result<Raw> {
    let raw = Raw::connect(socket)?;
    raw.negotiate(Attacker::FEATURES)?;
    raw.send(request, 0, payload, &[fd])?;
    scene.said(FOREIGN)?;
    scene.newcomer()?;
    Ok(raw)
}

/// Descriptors that hold whoever closes or polls them.
#[test]
fn descriptors_that_hold_their_holder() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (what, request, payload) in ways() {
        let name = format!("a TCP socket that lingers as {what}");
        scene.attack(&name, Trace::Reason(FOREIGN), |scene, socket| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(3600)))?;
            stream.set_nonblocking(true)?;
            // Nobody reads: some of it stays, for which a close waits.
            while rustix::io::write(&stream, &[0; 65536]).is_ok() {}
            let raw = offer(scene, socket, request, &payload, stream.as_fd())?;
            rustix::net::sockopt::set_socket_linger(&stream, None)?;
            Ok(raw)
        })?;
        let name = format!("a set of descriptors to wait for as {what}");
        scene.attack(&name, Trace::Reason(FOREIGN), |scene, socket| {
            let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            offer(scene, socket, request, &payload, set.as_fd())
        })?;
    }
    scene.finish()
}

/// A file of a FUSE server that does not answer the switch. The server goes first: what waits for it ends then.
struct SilentFile {
    _server: Process,
    _input: ChildStdin,
    said: Arc<Mutex<Vec<String>>>,
    file: File,
}

impl SilentFile {
    fn open(switch: u32) -> anyhow::Result<SilentFile> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command.arg(program("silent-fuse")?).arg(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Process::start("silent-fuse", command, folder.path())?;
        let output = BufReader::new(server.stdout().context("its output")?);
        let mut input = server.stdin().context("its input")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                for line in output.lines().map_while(Result::ok) {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        let says = |line: &str| {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.iter().any(|said| said == line)
        };
        wait::until("the FUSE server to mount", LIMIT, || says("mounted"))
            .with_context(|| server.log())?;
        // Nobody else is in its mount namespace.
        let inside = folder.path().strip_prefix("/").context("an absolute path")?.join("file");
        let path = Path::new("/proc").join(server.id().to_string()).join("root").join(inside);
        let file = File::options().read(true).write(true).open(path).context("the FUSE file")?;
        writeln!(input, "{switch}")?;
        wait::until("the FUSE server to be silent", LIMIT, || says("silent"))?;
        Ok(SilentFile { _server: server, _input: input, said, file })
    }

    /// What the switch has asked for.
    fn asked(&self) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().skip_while(|line| *line != "silent").skip(1).cloned().collect()
    }
}

/// All that the server hears of the switch is that it closes the file, which goes on for as long as the server likes.
#[test]
fn files_whose_server_never_answers() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    for (what, request, payload) in ways() {
        let name = format!("a FUSE file as {what}");
        scene.attack(&name, Trace::Reason(FOREIGN), |scene, socket| {
            let silent = SilentFile::open(scene.process()?)?;
            let raw = offer(scene, socket, request, &payload, silent.file.as_fd())?;
            wait::until("the switch to close the file", LIMIT, || !silent.asked().is_empty())?;
            scene.newcomer()?;
            ensure!(scene.info()?.name == "evil", "the API answers meanwhile");
            let asked = silent.asked();
            ensure!(asked == [FLUSH], "the switch asked the server for more: {asked:?}");
            Ok(raw)
        })?;
    }
    scene.finish()
}

/// A size of huge pages of which the machine has none left, and what keeps the last ones busy.
fn exhausted_pages() -> anyhow::Result<(MemfdFlags, u64, Option<OwnedFd>)> {
    let kinds = [(MemfdFlags::HUGE_2MB, 2 * MIB), (MemfdFlags::HUGE_1GB, 1024 * MIB)];
    for (flag, size) in kinds {
        let folder = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size / 1024);
        let number = |name: &str| std::fs::read_to_string(format!("{folder}/{name}"));
        if let (Ok(free), Ok(more)) = (number("free_hugepages"), number("nr_overcommit_hugepages"))
            && (free.trim(), more.trim()) == ("0", "0")
        {
            return Ok((flag, size, None));
        }
    }
    let (flag, size) = kinds[0];
    let all = memfd_create("all", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | flag)?;
    let mut at = 0;
    while fallocate(&all, FallocateFlags::empty(), at, size).is_ok() {
        at += size;
    }
    Ok((flag, size, Some(all)))
}

/// Huge pages of which there are none: the file has its size, and every access fails.
#[test]
fn huge_pages_that_are_not_there() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    let (flag, size, _busy) = exhausted_pages()?;
    let huge = || -> anyhow::Result<OwnedFd> {
        let file = memfd_create("evil", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | flag)
            .context("a kernel with huge pages")?;
        ftruncate(&file, size)?;
        Ok(file)
    };
    let far = 1 << 40;
    let gone = Trace::Quarantined("has no pages left");
    for (name, side) in [
        ("frames to send in huge pages that are not there", Side::Tx),
        ("receive buffers in huge pages that are not there", Side::Rx),
    ] {
        scene.attack(name, gone, |scene, socket| {
            let attacker = Attacker::connect(socket, Layout::Split)?;
            let own = attacker.memory.user_addr();
            let regions =
                [[attacker.guest(0), Attacker::MEMORY as u64, own, 0], [far, size, USER, 0]];
            let huge = huge()?;
            let fds = [attacker.memory.as_fd(), huge.as_fd()];
            let answer = attacker.raw.ack(Request::SET_MEM_TABLE, &table(&regions), &fds)?;
            ensure!(answer == 0, "the table was refused ({answer})");
            attacker.run(Side::Rx)?;
            attacker.run(Side::Tx)?;
            let write = if side == Side::Rx { WRITE } else { 0 };
            attacker.describe(side, 0, far + 4096, 2048, write, 0);
            attacker.offer(side, 0);
            attacker.kick(side)?;
            scene.befriend(20)?;
            Ok(attacker)
        })?;
    }
    scene.attack("a ring in huge pages that are not there", gone, |_, socket| {
        let raw = Raw::connect(socket)?;
        raw.negotiate(Attacker::FEATURES)?;
        let huge = huge()?;
        let regions = table(&[[far, size, USER, 0]]);
        let answer = raw.ack(Request::SET_MEM_TABLE, &regions, &[huge.as_fd()])?;
        ensure!(answer == 0, "the table was refused ({answer})");
        let kick = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC)?;
        let mut addresses = words([1_u32, 0]);
        addresses.extend(words([USER, USER + 0x2000, USER + 0x1000, 0]));
        for (request, payload) in [
            (Request::SET_VRING_NUM, words([1_u32, 256])),
            (Request::SET_VRING_BASE, words([1_u32, 0])),
            (Request::SET_VRING_ADDR, addresses),
        ] {
            ensure!(raw.ack(request, &payload, &[])? == 0, "{request} was refused");
        }
        raw.send(Request::SET_VRING_KICK, 0, &words([1_u64]), &[kick.as_fd()])?;
        raw.send(Request::SET_VRING_ENABLE, 0, &words([1_u32, 1]), &[])?;
        Ok((raw, kick))
    })?;
    scene.finish()
}

/// The same pages at two addresses: what is checked at one may change through the other, and is copied before.
#[test]
fn one_file_in_two_regions() -> anyhow::Result<()> {
    let mut scene = Scene::new()?;
    scene.attack("the same pages in two regions", Trace::Nothing, |scene, socket| {
        let attacker = Attacker::start(socket, Layout::Split, 64)?;
        let user = attacker.memory.user_addr();
        let size = Attacker::MEMORY as u64;
        let again = [attacker.guest(0) + (1 << 40), size, user + (1 << 40), 0];
        let regions = [[attacker.guest(0), size, user, 0], again];
        let memory: &Arc<Memory> = &attacker.memory;
        let answer =
            attacker.raw.ack(Request::SET_MEM_TABLE, &table(&regions), &[memory.as_fd(); 2])?;
        ensure!(answer == 0, "the table was refused ({answer})");
        // A table of descriptors beside the frame, which is seen through the other region.
        let at = Attacker::BUFFERS;
        attacker.write_frame(at, FRIEND, EVIL, 200);
        attacker.describe_at(at + 4096, attacker.guest(at) + (1 << 40), 212, 0, 0);
        attacker.describe(Side::Tx, 0, attacker.guest(at + 4096), 16, INDIRECT, 0);
        attacker.offer(Side::Tx, 0);
        attacker.kick(Side::Tx)?;
        wait::until("the chain to come back", LIMIT, || attacker.used(Side::Tx) == 1)?;
        let frames = scene.harvest()?;
        ensure!(frames.len() == 1, "{} frames", frames.len());
        Ok(attacker)
    })?;
    scene.finish()
}
