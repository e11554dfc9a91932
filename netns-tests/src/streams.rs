//! A stream between a namespace and a guest, in both directions at once, that must arrive as it was sent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::guest::Guest;
use crate::netns::Netns;
use crate::wait;

/// To the guest and from it.
const PORTS: [u16; 2] = [5000, 5001];
const LIMIT: Duration = Duration::from_secs(120);

/// Both sum what they send and what they receive.
#[derive(Debug)]
pub struct Streams {
    stop: Arc<AtomicBool>,
    down: JoinHandle<anyhow::Result<(String, u64)>>,
    up: JoinHandle<anyhow::Result<(String, u64)>>,
}

impl Streams {
    /// Between the peer and the guest, each with its address.
    ///
    /// # Errors
    /// When the guest does not run what it should, or does not listen.
    pub fn start(
        (peer, peer_address): (&Netns, Ipv4Addr),
        (guest, guest_address): (&mut dyn Guest, Ipv4Addr),
    ) -> anyhow::Result<Self> {
        let [to_guest, from_guest] = PORTS;
        let listener =
            peer.enter(move || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, from_guest))?))?;
        guest.run(&format!(
            "rm -f /tmp/pipe /tmp/stop /tmp/*.sum; mkfifo /tmp/pipe; cd /tmp; \
             (sleep 1000 | nc -l -p {to_guest} | {{ md5sum >down; mv down down.sum; }}) >/dev/null 2>&1 & \
             ({{ md5sum <pipe >up; mv up up.sum; }} & \
              while [ ! -e stop ]; do head -c 32768 /dev/urandom; done | tee pipe | nc {peer_address} {from_guest}) \
              >/dev/null 2>&1 &"
        ))?;
        let connect = || TcpStream::connect((guest_address, to_guest)).ok();
        let stream = peer.enter(|| wait::some("the guest to listen", LIMIT, connect))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let down = std::thread::spawn(move || send(stream, &stopped));
        let up = std::thread::spawn(move || receive(&listener));
        Ok(Self { stop, down, up })
    }

    /// Both streams end; what came is what was sent. Returns the bytes to the guest, and from it.
    ///
    /// # Errors
    /// When it is not, or a stream does not end.
    pub fn finish(self, guest: &mut dyn Guest) -> anyhow::Result<[u64; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        guest.run("touch /tmp/stop")?;
        let panicked = |_| anyhow::anyhow!("a stream panicked");
        let (sent, down) = self.down.join().map_err(panicked)??;
        let (received, up) = self.up.join().map_err(panicked)??;
        for (name, ours) in [("down", &sent), ("up", &received)] {
            let wait = format!(
                "for n in $(seq 300); do [ -e /tmp/{name}.sum ] && break; sleep 0.1; done; cat /tmp/{name}.sum"
            );
            let theirs = guest.sh(&wait, LIMIT)?.text;
            ensure!(theirs.trim() == ours, "{name}: the peer has {ours}, the guest {theirs}");
        }
        Ok([down, up])
    }
}

/// `md5sum` of what is written into it.
struct Sum {
    child: Child,
    stdin: ChildStdin,
}

impl Sum {
    fn new() -> anyhow::Result<Self> {
        let mut child =
            Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        Ok(Self { child, stdin })
    }

    fn finish(self) -> anyhow::Result<String> {
        drop(self.stdin);
        let output = self.child.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Some megabytes a second, never twice the same block.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> anyhow::Result<(String, u64)> {
    let mut sum = Sum::new()?;
    let mut state = 1_u64;
    let mut bytes = 0;
    while !stop.load(Ordering::Relaxed) {
        let block: Vec<u8> = (0..8192)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .collect();
        stream.write_all(&block)?;
        sum.stdin.write_all(&block)?;
        bytes += block.len() as u64;
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.shutdown(Shutdown::Write)?;
    let sum = sum.finish()?;
    // The guest's end hangs up when it has all.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let _ = stream.read(&mut [0]);
    Ok((sum, bytes))
}

fn receive(listener: &TcpListener) -> anyhow::Result<(String, u64)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut sum = Sum::new()?;
    let mut bytes = 0;
    let mut block = [0; 65_536];
    loop {
        let n = stream.read(&mut block)?;
        if n == 0 {
            return Ok((sum.finish()?, bytes));
        }
        bytes += n as u64;
        sum.stdin.write_all(&block[..n])?;
    }
}
