//! The limit of what a switch on `virtio-ring` can reach: ports in pairs, each frame copied once from one to the other.
//!
//! No parsing, no lookup, no counters, no sleep: descriptors move and bytes are copied, header and frame in one go.
//! What a switch does more than this is what switching costs. The frontends are trusted, which a switch must not do.

mod port;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use virtio_ring::{ChainBuf, Cursor, Direction, Limit, MAX_BURST};

use crate::frontend::placement::pin;
use port::{Port, Rings};

/// Between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(1);
/// Rounds between two looks at the clock.
const ROUNDS: u32 = 256;
/// Bytes of a burst of long frames.
const MAX_BYTES: u64 = 192 * 1024;
/// `num_buffers` of the header that the receiver sees (virtio 1.3 §5.1.6.1): its offset.
const NUM_BUFFERS_AT: usize = 10;

/// Forwards between the first and second socket, third and fourth and so on, until a signal ends the process.
///
/// # Errors
/// When a socket cannot be made, or a frontend breaks a rule.
pub fn run(sockets: &[PathBuf], cpu: usize) -> anyhow::Result<()> {
    anyhow::ensure!(sockets.len().is_multiple_of(2), "ports come in pairs");
    pin(cpu)?;
    let ports = sockets.iter().map(|path| Port::new(path).with_context(|| format!("{path:?}")));
    let mut ports: Vec<Port> = ports.collect::<anyhow::Result<_>>()?;
    let mut from = ChainBuf::new();
    let mut to = ChainBuf::new();
    let mut looked = Instant::now();
    let mut round = 0_u32;
    loop {
        for pair in ports.chunks_exact_mut(2) {
            let [one, other] = pair else { continue };
            let (Some(one), Some(other)) = (one.rings(), other.rings()) else { continue };
            forward(one, other, &mut from, &mut to)?;
            forward(other, one, &mut from, &mut to)?;
        }
        round = round.wrapping_add(1);
        if round.is_multiple_of(ROUNDS) && looked.elapsed() > LOOK {
            for port in &mut ports {
                port.serve()?;
            }
            looked = Instant::now();
        }
    }
}

/// One burst from one port to the other. What finds no room comes again.
#[inline]
fn forward(
    source: &mut Rings,
    target: &mut Rings,
    from: &mut ChainBuf,
    to: &mut ChainBuf,
) -> anyhow::Result<()> {
    let Rings { tx, memory, .. } = source;
    let many = target.many_buffers;
    // A frame that takes many buffers: as many as one look at the receiving ring can find room for.
    let bytes = if many { MAX_BYTES } else { u64::MAX };
    let all = Limit { chains: MAX_BURST, bytes };
    let frames = tx.gather(memory, Direction::Readable, all, from)?;
    if frames.is_empty() {
        return Ok(());
    }
    let Rings { rx, memory, .. } = target;
    let wanted = Limit { chains: if many { MAX_BURST } else { frames.len() }, bytes: u64::MAX };
    let buffers = rx.gather(memory, Direction::Writable, wanted, to)?;
    let (mut done, mut used) = (0, 0);
    for frame in frames.as_slice() {
        let slices = frames.slices(frame);
        let mut room = 0_u64;
        let mut count = 0;
        while room < u64::from(frame.len) && used + count < buffers.len() {
            room += u64::from(buffers.chain(used + count).len);
            count += 1;
        }
        if room < u64::from(frame.len) {
            break;
        }
        let places = buffers.slices_of(used, count);
        match (slices, places) {
            ([slice], [place]) => {
                place.copy_from(*slice);
            }
            _ => {
                let mut cursor = Cursor::new(slices);
                Cursor::new(places).copy_from(&mut cursor, frame.len as usize);
            }
        }
        if let Some(first) = places.first() {
            first.skip(NUM_BUFFERS_AT).write(&u16::try_from(count).unwrap_or(1).to_le_bytes());
        }
        let mut left = frame.len;
        for at in used..used + count {
            let buffer = buffers.chain(at);
            rx.complete(buffer.head, left.min(buffer.len));
            left = left.saturating_sub(buffer.len);
        }
        tx.complete(frame.head, 0);
        used += count;
        done += 1;
    }
    tx.unread(frames.len() - done);
    rx.unread(buffers.len() - used);
    let wake = rx.publish();
    target.signal_rx(wake);
    let wake = source.tx.publish();
    source.signal_tx(wake);
    Ok(())
}
