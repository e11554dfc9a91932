//! Echo requests at a steady rate, to see how long somebody is not reached.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Asks until it is finished.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

/// What came back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub sent: u32,
    pub received: u32,
    /// The longest time without an answer between two answers.
    pub silence: Duration,
}

impl Pinger {
    /// From a namespace, one request each `interval`.
    ///
    /// # Errors
    /// When no raw socket can be made there.
    pub fn start(from: &Netns, to: Ipv4Addr, interval: Duration) -> anyhow::Result<Self> {
        let socket = from.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.connect(&SockAddr::from(SocketAddrV4::new(to, 0)))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || ask(&socket, interval, &stopped));
        Ok(Self { stop, thread })
    }

    /// # Errors
    /// When the asking thread panicked.
    pub fn finish(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the asking thread panicked")
    }
}

fn ask(mut socket: &Socket, interval: Duration, stopped: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut last = None;
    let mut next = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            next += interval;
            let _ = socket.send(&request(report.sent));
            report.sent += 1;
            continue;
        }
        let _ = socket.set_read_timeout(Some((next - now).max(Duration::from_micros(100))));
        let mut bytes = [0; 256];
        let Ok(len) = socket.read(&mut bytes) else { continue };
        // Behind the IP header.
        let header = usize::from(bytes[0] & 0xf) * 4;
        if len >= header + 8 && bytes.get(header) == Some(&ECHO_REPLY) {
            let now = Instant::now();
            if let Some(last) = last {
                report.silence = report.silence.max(now - last);
            }
            last = Some(now);
            report.received += 1;
        }
    }
    report
}

fn request(number: u32) -> [u8; 8] {
    let [_, _, a, b] = number.to_be_bytes();
    let mut packet = [ECHO_REQUEST, 0, 0, 0, 0x4e, 0x4c, a, b];
    let words = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(sum + (sum >> 16)) & 0xffff;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes()[2..]);
    packet
}
