//! Frames seen on an interface: the far end of a one-way probe.

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::record::run;
use crate::wait;

/// Keeps every frame that an interface of a namespace receives or sends; written to a pcap file
/// in the run's directory when a test panics.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Stamped>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    file: PathBuf,
}

/// When a frame was seen (since the Unix epoch), and its bytes.
type Stamped = (Duration, Vec<u8>);

/// All protocols, in network byte order as the socket wants it.
const ETH_P_ALL: i32 = 0x0300;

impl Capture {
    /// # Errors
    /// When the interface does not exist.
    pub fn start(netns: &Netns, ifname: &str) -> anyhow::Result<Self> {
        Self::protocol(netns, ifname, Protocol::from(ETH_P_ALL))
    }

    /// Of one Ethertype only, and only what the interface receives.
    ///
    /// # Errors
    /// When the interface does not exist.
    pub fn only(netns: &Netns, ifname: &str, ethertype: u16) -> anyhow::Result<Self> {
        Self::protocol(netns, ifname, Protocol::from(i32::from(ethertype.to_be())))
    }

    fn protocol(netns: &Netns, ifname: &str, protocol: Protocol) -> anyhow::Result<Self> {
        let socket = netns.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            socket.bind_device(Some(ifname.as_bytes())).with_context(|| ifname.to_owned())?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        })?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                // SAFETY: recv initialised the first `length` bytes.
                let frame =
                    unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                sink.push((now, frame.to_vec()));
            }
        });
        let file = run().directory("capture").join(format!("{}-{ifname}.pcap", netns.name()));
        Ok(Self { frames, stop, thread: Some(thread), file })
    }

    /// Frames so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().map(|(_, frame)| frame.clone()).collect()
    }

    /// Whether a frame holds these bytes.
    #[must_use]
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().any(|(_, frame)| frame.windows(bytes.len()).any(|part| part == bytes))
    }

    /// # Errors
    /// When no frame with these bytes is seen within `limit`.
    pub fn wait_for(&self, bytes: &[u8], limit: Duration) -> anyhow::Result<()> {
        let what = format!("a frame with {:?}", String::from_utf8_lossy(bytes));
        wait::until(&what, limit, || self.holds(bytes))
    }

    fn write(&self) -> std::io::Result<()> {
        let mut file = File::create(&self.file)?;
        // The classic format: magic, version 2.4, snap length, link type Ethernet.
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 0xffff, 1] {
            file.write_all(&word.to_ne_bytes())?;
        }
        for (time, frame) in self.frames.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            for word in [seconds, time.subsec_micros(), length, length] {
                file.write_all(&word.to_ne_bytes())?;
            }
            file.write_all(frame)?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if std::thread::panicking() {
            let _ = self.write();
        }
    }
}
