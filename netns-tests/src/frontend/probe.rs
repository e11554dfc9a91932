//! A steady stream of numbered frames from one frontend to another, to see whether anything is lost.
//!
//! A receiver that the kernel does not let run fills its ring and then loses frames by itself, which says nothing of the
//! switch. So the sender looks at the receiver's ring and waits while less than half of its buffers are free: the stream
//! then is late, and every frame that is lost nevertheless was lost by the switch, or because others filled the ring. The two
//! are told apart by [`Report::fewest_free`]: a full ring stays full until the receiver looks, and it always counts first.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use wire::virtio_net::VirtioNetHdr;

use super::nic::Nic;
use super::placement::real_time;
use super::ring::Gauge;

/// Experimental Ethertype (IEEE 802, local experiments), ours alone in the lab.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const MAGIC: [u8; 8] = *b"nl-probe";
/// How long a frame may be under way before it counts as lost.
const GRACE: Duration = Duration::from_secs(2);

/// A running probe; [`Probe::finish`] ends it.
#[derive(Debug)]
pub struct Probe {
    /// Send no more.
    stop: Arc<AtomicBool>,
    /// No more was sent: what is still to come is known.
    stopped: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    seen: Arc<AtomicU64>,
    /// The sender's and the receiver's ring.
    under_way: Gauge,
    free: Gauge,
    sender: JoinHandle<anyhow::Result<(Nic, Duration)>>,
    receiver: JoinHandle<anyhow::Result<(Nic, Arrivals)>>,
}

/// What became of the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub sent: u64,
    pub received: u64,
    /// Numbers of the frames that never came, in order.
    pub lost: Vec<u64>,
    pub duplicates: u64,
    pub reordered: u64,
    /// Longest way of a frame.
    pub slowest: Duration,
    /// Longest time for which the receiver did not look.
    pub blind: Duration,
    /// Fewest buffers that it found free in its ring. Above 0 there was room for every frame.
    pub fewest_free: u16,
    /// Longest time for which the sender waited for a receiver that did not run.
    pub held_back: Duration,
}

#[derive(Debug, Default)]
struct Arrivals {
    numbers: BTreeSet<u64>,
    highest: Option<u64>,
    duplicates: u64,
    reordered: u64,
    slowest: Duration,
    blind: Duration,
}

impl Probe {
    /// Starts sending `rate` frames per second from `from` to `to`, once the switch has learned
    /// where `to` is. Both threads go before others of this machine; see the module's documentation for what
    /// happens when they do not get to run all the same.
    ///
    /// # Errors
    /// When a first frame in each direction does not arrive.
    pub fn start(mut from: Nic, mut to: Nic, rate: u32) -> anyhow::Result<Probe> {
        ensure!(rate > 0, "a probe of 0 frames per second");
        let epoch = Instant::now();
        let deadline = epoch + Duration::from_secs(10);
        let back = frame(&to, &from, u64::MAX, epoch);
        to.send(&back, deadline)?;
        arrive(&mut from, deadline)?.context("no way from the probe's receiver to its sender")?;
        from.send(&frame(&from, &to, u64::MAX, epoch), deadline)?;
        arrive(&mut to, deadline)?.context("no way from the probe's sender to its receiver")?;

        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let seen = Arc::new(AtomicU64::new(0));
        let target = (from.mac(), to.mac());
        let (under_way, gauge) = (from.tx_gauge(0), to.rx_gauge(0));
        let free = gauge.clone();
        let sender = std::thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                real_time()?;
                let step = Duration::from_secs(1) / rate;
                let mut due = Instant::now();
                let mut number = 0;
                let mut held_back = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    held_back = held_back.max(hold_back(&gauge, &stop));
                    let frame = build(target.0, target.1, number, epoch);
                    from.send_on(0, VirtioNetHdr::default(), &frame, Instant::now() + GRACE)?;
                    number += 1;
                    sent.store(number, Ordering::Release);
                    due += step;
                    // A machine that is busy elsewhere makes the stream late, not shorter.
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                Ok((from, held_back))
            }
        });
        let receiver = std::thread::spawn({
            let (stopped, sent) = (Arc::clone(&stopped), Arc::clone(&sent));
            let seen = Arc::clone(&seen);
            move || {
                real_time()?;
                let mut arrivals = Arrivals::default();
                let mut last = Instant::now();
                let mut looked = last;
                loop {
                    arrivals.blind = arrivals.blind.max(looked.elapsed());
                    looked = Instant::now();
                    let wait = looked + Duration::from_millis(50);
                    if let Some((number, way)) = arrive_until(&mut to, wait, epoch)? {
                        arrivals.add(number, way);
                        seen.store(arrivals.numbers.len() as u64, Ordering::Release);
                        last = Instant::now();
                    } else if stopped.load(Ordering::Acquire) {
                        let all = sent.load(Ordering::Acquire) == arrivals.numbers.len() as u64;
                        if all || last.elapsed() > GRACE {
                            return Ok((to, arrivals));
                        }
                    }
                }
            }
        });
        Ok(Probe { stop, stopped, sent, seen, under_way, free, sender, receiver })
    }

    /// Frames sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Waits until `count` more frames than now have arrived.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn run(&self, count: u64, limit: Duration) -> anyhow::Result<()> {
        let (sent, seen) = (self.sent(), self.seen.load(Ordering::Acquire));
        crate::wait::until(&format!("{count} more probe frames to arrive"), limit, || {
            self.seen.load(Ordering::Acquire) >= seen + count
                || self.sender.is_finished()
                || self.receiver.is_finished()
        })
        .with_context(|| {
            format!(
                "the probe had sent {sent} and seen {seen} frames, now {} and {}; its sender has {} frames under way, \
                 its receiver {} buffers free",
                self.sent(),
                self.seen.load(Ordering::Acquire),
                self.under_way.open(),
                self.free.open()
            )
        })
    }

    /// Ends it, waits for what is under way and tells what was lost.
    ///
    /// # Errors
    /// When a frontend failed, or the backend took no frames for two seconds.
    pub fn finish(self) -> anyhow::Result<(Report, Nic, Nic)> {
        self.stop.store(true, Ordering::Relaxed);
        let from = self.sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.stopped.store(true, Ordering::Release);
        let to = self.receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (from, held_back) = from.context("the probe's sender")?;
        let (to, arrivals) = to.context("the probe's receiver")?;
        let sent = self.sent.load(Ordering::Acquire);
        let lost = (0..sent).filter(|number| !arrivals.numbers.contains(number)).collect();
        let report = Report {
            sent,
            received: arrivals.numbers.len() as u64,
            lost,
            duplicates: arrivals.duplicates,
            reordered: arrivals.reordered,
            slowest: arrivals.slowest,
            blind: arrivals.blind,
            fewest_free: to.rx_fewest_free(0),
            held_back,
        };
        Ok((report, from, to))
    }
}

impl Report {
    /// The lost frames as ranges.
    #[must_use]
    pub fn lost_ranges(&self) -> Vec<RangeInclusive<u64>> {
        let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
        for number in self.lost.iter().copied() {
            match ranges.last_mut() {
                Some(last) if *last.end() + 1 == number => *last = *last.start()..=number,
                _ => ranges.push(number..=number),
            }
        }
        ranges
    }
}

impl Arrivals {
    fn add(&mut self, number: u64, way: Duration) {
        if !self.numbers.insert(number) {
            self.duplicates += 1;
        }
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        self.slowest = self.slowest.max(way);
    }
}

/// Waits while the receiver is far behind; returns for how long.
fn hold_back(gauge: &Gauge, stop: &AtomicBool) -> Duration {
    let start = Instant::now();
    while gauge.open() < gauge.size() / 2 && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn frame(from: &Nic, to: &Nic, number: u64, epoch: Instant) -> Vec<u8> {
    build(from.mac(), to.mac(), number, epoch)
}

/// A frame of 60 bytes: number, time sent, and a pattern that a torn copy would break.
fn build(from: wire::MacAddr, to: wire::MacAddr, number: u64, epoch: Instant) -> Vec<u8> {
    let sent = u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut frame = Vec::with_capacity(60);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ETHERTYPE);
    frame.extend(MAGIC);
    frame.extend(number.to_be_bytes());
    frame.extend(sent.to_be_bytes());
    frame.extend((!number).to_be_bytes());
    frame.resize(60, 0x5a);
    frame
}

/// The next probe frame, whatever its number.
fn arrive(nic: &mut Nic, deadline: Instant) -> anyhow::Result<Option<u64>> {
    while let Some(received) = nic.receive(deadline)? {
        if let Some((number, _)) = parse(&received.frame)? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The next numbered probe frame and how long it took.
fn arrive_until(
    nic: &mut Nic,
    deadline: Instant,
    epoch: Instant,
) -> anyhow::Result<Option<(u64, Duration)>> {
    while let Some(received) = nic.receive(deadline)? {
        if let Some((number, sent)) = parse(&received.frame)?
            && number != u64::MAX
        {
            return Ok(Some((number, epoch.elapsed().saturating_sub(sent))));
        }
    }
    Ok(None)
}

/// Number and time of a probe frame; `None` for other frames.
fn parse(frame: &[u8]) -> anyhow::Result<Option<(u64, Duration)>> {
    if frame.get(12..22) != Some(&[&ETHERTYPE[..], &MAGIC[..]].concat()) {
        return Ok(None);
    }
    let word = |at: usize| -> anyhow::Result<u64> {
        let bytes = frame.get(at..at + 8).context("a probe frame was cut")?;
        Ok(u64::from_be_bytes(bytes.try_into()?))
    };
    let number = word(22)?;
    ensure!(word(38)? == !number, "a probe frame was changed on its way");
    let rest = frame.get(46..60).context("a probe frame was cut")?;
    ensure!(rest.iter().all(|byte| *byte == 0x5a), "a probe frame was changed on its way");
    Ok(Some((number, Duration::from_nanos(word(30)?))))
}
