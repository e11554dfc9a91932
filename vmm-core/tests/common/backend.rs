//! An independent vhost-user backend, by the rust-vmm crates: one guest on one TAP, frame by
//! frame. Slow and simple.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{QueueOwnedT as _, QueueT as _};
use vm_memory::{GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

const RX: u16 = 0;
const TX: u16 = 1;
const TAP: u16 = 3;
/// `struct virtio_net_hdr_v1`, with one buffer.
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

struct TapBackend {
    tap: File,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl TapBackend {
    /// From the guest to the TAP.
    fn transmit(&mut self, ring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut frame = vec![0; 65536];
        loop {
            // The guard must be gone before `add_used` locks the ring again.
            let chain = ring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { return Ok(()) };
            let head = chain.head_index();
            let len = chain.reader(&memory).map_err(io::Error::other)?.read(&mut frame)?;
            if let Some(frame) = frame[..len].get(HEADER.len()..) {
                // A frame that the TAP refuses is lost, as on a wire.
                let _ = self.tap.write(frame);
            }
            ring.add_used(head, 0).map_err(io::Error::other)?;
            ring.signal_used_queue()?;
        }
    }

    /// From the TAP to the guest, as long as there are both frames and buffers.
    fn receive(&mut self, ring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut frame = [0; 2048];
        loop {
            let chain = ring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { return Ok(()) };
            let Ok(len) = self.tap.read(&mut frame) else {
                ring.get_mut().get_queue_mut().go_to_previous_position();
                return Ok(());
            };
            let head = chain.head_index();
            let mut writer = chain.writer(&memory).map_err(io::Error::other)?;
            writer.write_all(&HEADER)?;
            writer.write_all(&frame[..len])?;
            let used = u32::try_from(HEADER.len() + len).expect("small");
            ring.add_used(head, used).map_err(io::Error::other)?;
            ring.signal_used_queue()?;
        }
    }
}

impl VhostUserBackendMut for TapBackend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << 30
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().expect("no panic holds it").take()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        rings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        match event {
            TX => self.transmit(&rings[usize::from(TX)]),
            RX | TAP => self.receive(&rings[usize::from(RX)]),
            _ => Ok(()),
        }
    }
}

/// A backend that serves one connection.
pub(crate) struct Backend {
    connected: Receiver<ShutdownHandle>,
    thread: Option<JoinHandle<()>>,
    exit: EventNotifier,
}

impl Backend {
    /// Listens at once, and serves the first frontend that connects.
    pub(crate) fn start(socket: &Path, tap: &OwnedFd) -> Self {
        let mut listener = Listener::new(socket, true).expect("a free path");
        let (consumer, notifier) =
            new_event_consumer_and_notifier(EventFlag::NONBLOCK).expect("an event");
        let exit = notifier.try_clone().expect("an event");
        let tap = tap.try_clone().expect("a descriptor");
        let (sender, connected) = channel();
        let thread = std::thread::spawn(move || {
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let backend = Arc::new(Mutex::new(TapBackend {
                tap: tap.try_clone().expect("a descriptor").into(),
                memory: memory.clone(),
                exit: Mutex::new(Some((consumer, notifier))),
            }));
            let mut daemon =
                VhostUserDaemon::new("test".to_owned(), backend, memory).expect("a daemon");
            if daemon.start(&mut listener).is_err() {
                return;
            }
            drop(listener);
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            daemon.get_epoll_handlers()[0]
                .register_listener(tap.as_raw_fd(), events, TAP.into())
                .expect("epoll");
            let _ = sender.send(daemon.shutdown_handle().expect("started"));
            let _ = daemon.wait();
        });
        Self { connected, thread: Some(thread), exit }
    }

    /// Hangs up on the frontend that is connected.
    pub(crate) fn stop(mut self) {
        let patience = super::vmm::PATIENCE;
        self.connected.recv_timeout(patience).expect("a frontend connected").shutdown();
        let _ = self.exit.notify();
        self.thread.take().expect("running").join().expect("the backend ends in order");
    }
}
