//! Which event raises which interrupt: MSI-X vectors, their routes and pending bits.

use std::io;
use std::sync::Arc;

use super::{MAX_QUEUES, VirtioPci};
use crate::pci::NO_VECTOR;
use crate::wiring::{InterruptSource, Wiring};

/// An interrupt source and the vector that the driver gave it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) source: Arc<InterruptSource>,
    pub(super) vector: u16,
    gsi: Option<u32>,
}

impl Connection {
    pub(super) fn new(source: Arc<InterruptSource>) -> Self {
        Self { source, vector: NO_VECTOR, gsi: None }
    }
}

impl VirtioPci {
    /// Makes every source raise what its vector now delivers.
    pub(super) fn connect_interrupts(&mut self) {
        let calls = self.queues.iter_mut().map(|queue| &mut queue.call);
        for connection in calls.chain([&mut self.config_connection]) {
            let message = self.msix.message(connection.vector);
            connection.source.set_polled(!self.msix.enabled() || connection.vector == NO_VECTOR);
            let vector = self.vectors.get_mut(usize::from(connection.vector));
            let result = match (message, vector) {
                (Some(message), Some((gsi, routed))) => {
                    let mut result = Ok(());
                    if *routed != Some(message) {
                        result = self.wiring.route_msi(*gsi, message);
                        *routed = Some(message);
                    }
                    result.and_then(|()| reconnect(&*self.wiring, connection, Some(*gsi)))
                }
                _ => reconnect(&*self.wiring, connection, None),
            };
            if let Err(error) = result {
                tracing::error!(%error, vector = connection.vector, "an interrupt is lost");
            }
        }
    }

    pub(super) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let mut bits = [0_u8; MAX_QUEUES / 8 + 8];
        let calls = self.queues.iter().map(|queue| &queue.call);
        for connection in calls.chain([&self.config_connection]) {
            let vector = usize::from(connection.vector);
            if vector < self.vectors.len()
                && connection.gsi.is_none()
                && connection.source.pending()
            {
                bits[vector / 8] |= 1 << (vector % 8);
            }
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bits.get(offset + i).copied().unwrap_or(0);
        }
    }
}

fn reconnect(wiring: &dyn Wiring, connection: &mut Connection, gsi: Option<u32>) -> io::Result<()> {
    if connection.gsi == gsi {
        return Ok(());
    }
    if let Some(old) = connection.gsi.take() {
        wiring.disconnect_interrupt(old, connection.source.event())?;
    }
    if let Some(new) = gsi {
        wiring.connect_interrupt(new, connection.source.event())?;
        connection.gsi = Some(new);
    }
    Ok(())
}
