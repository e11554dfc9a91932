//! Echo requests at a steady rate, to see how long somebody is not reached.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const IDENTIFIER: [u8; 2] = *b"NL";
/// How long answers are waited for after the last request.
const LATE: Duration = Duration::from_secs(2);

/// Asks until it is finished.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: JoinHandle<Report>,
}

/// Until now.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU32,
    received: AtomicU32,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sent: u32,
    pub received: u32,
    /// Answers to requests that had been answered.
    pub duplicates: u32,
    /// The longest time without an answer between two answers.
    pub silence: Duration,
    /// Numbers of the requests that were never answered.
    pub lost: Vec<Range<u32>>,
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
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::spawn(move || ask(&socket, interval, &stopped, &counted));
        Ok(Self { stop, counts, thread })
    }

    /// How many requests were sent until now.
    #[must_use]
    pub fn sent(&self) -> u32 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// How many of them were answered until now.
    #[must_use]
    pub fn received(&self) -> u32 {
        self.counts.received.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When the asking thread panicked.
    pub fn finish(self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the asking thread panicked")
    }
}

fn ask(mut socket: &Socket, interval: Duration, stopped: &AtomicBool, counts: &Counts) -> Report {
    let mut report = Report::default();
    let mut answered = Vec::new();
    let mut last = None;
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        let until = match end {
            None if stopped.load(Ordering::Relaxed) => {
                end = Some(now + LATE);
                continue;
            }
            None if now >= next => {
                next += interval;
                let _ = socket.send(&request(report.sent));
                report.sent += 1;
                counts.sent.store(report.sent, Ordering::Relaxed);
                answered.push(false);
                continue;
            }
            None => next,
            Some(end) if now >= end || report.received == report.sent => break,
            Some(end) => end,
        };
        let _ = socket.set_read_timeout(Some((until - now).max(Duration::from_micros(100))));
        let mut bytes = [0; 256];
        let Ok(len) = socket.read(&mut bytes) else { continue };
        let Some(number) = reply(&bytes[..len], report.sent) else { continue };
        let now = Instant::now();
        if let Some(last) = last {
            report.silence = report.silence.max(now - last);
        }
        last = Some(now);
        if std::mem::replace(&mut answered[number], true) {
            report.duplicates += 1;
        } else {
            report.received += 1;
            counts.received.store(report.received, Ordering::Relaxed);
        }
    }
    report.lost = ranges(&answered);
    report
}

/// Which of the requests sent a packet answers.
fn reply(packet: &[u8], sent: u32) -> Option<usize> {
    // Behind the IP header.
    let header = usize::from(packet.first()? & 0xf) * 4;
    let reply = packet.get(header..header + 8)?;
    if reply[0] != ECHO_REPLY || reply[4..6] != IDENTIFIER {
        return None;
    }
    // The latest with these 16 bits.
    let low = u32::from(u16::from_be_bytes([reply[6], reply[7]]));
    let back = (sent.checked_sub(1)?).wrapping_sub(low) & 0xffff;
    usize::try_from((sent - 1).checked_sub(back)?).ok()
}

/// Where nobody answered.
fn ranges(answered: &[bool]) -> Vec<Range<u32>> {
    let mut lost: Vec<Range<u32>> = Vec::new();
    for (number, _) in (0..).zip(answered).filter(|(_, answered)| !**answered) {
        match lost.last_mut() {
            Some(range) if range.end == number => range.end += 1,
            _ => lost.push(number..number + 1),
        }
    }
    lost
}

fn request(number: u32) -> [u8; 8] {
    let [_, _, a, b] = number.to_be_bytes();
    let [c, d] = IDENTIFIER;
    let mut packet = [ECHO_REQUEST, 0, 0, 0, c, d, a, b];
    let words = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(sum + (sum >> 16)) & 0xffff;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes()[2..]);
    packet
}
