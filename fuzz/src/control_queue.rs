//! Requests on the control queue.

use datapath::port::ControlQueue;
use virtio_ring::Ring;

use crate::guest::{Guest, Layout, Place};
use crate::input::Input;

const PAIRS: u16 = 4;

/// A driver that writes anything, and a device that answers what it finds.
///
/// # Panics
/// When the driver gets more pairs than there are, or none.
pub fn control_queue(data: &[u8]) {
    let mut input = Input(data);
    let features = input.u8();
    let layout = if features & 2 == 0 { Layout::Split } else { Layout::Packed };
    let mut guest = Guest::new(layout);
    let base = u32::from(Place::default().bits());
    let config = guest.config(features & 1 != 0, false, if features & 2 == 0 { 0 } else { base });
    let ring = Ring::new(&guest.memory, &config, None).expect("a good ring");
    let mut queue = ControlQueue::new(ring, guest.memory.clone(), PAIRS);
    while !input.is_empty() {
        if input.u8() % 4 != 0 {
            guest.scribble(&mut input);
            continue;
        }
        // A broken ring is taken out of service.
        if queue.serve(|_| ()).is_err() {
            return;
        }
        assert!((1..=PAIRS).contains(&queue.pairs()), "{} pairs", queue.pairs());
    }
}
