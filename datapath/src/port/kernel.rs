//! Ports whose frames the kernel takes and gives: TAP devices and packet sockets, as workers see them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::io::Errno;
use switch::DropReason;
use wire::VirtioNetHdr;

use super::packet::PacketSocket;
use super::tap::TapQueue;
use crate::balance::Duty;

#[derive(Debug)]
pub(crate) enum KernelQueue {
    Tap(TapQueue),
    Packet(PacketSocket),
}

impl KernelQueue {
    pub(crate) fn recv(&mut self, hdr: &mut VirtioNetHdr, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tap(tap) => tap.recv(hdr, buf),
            Self::Packet(packet) => packet.recv(hdr, buf),
        }
    }

    /// # Safety
    /// As [`TapQueue::send`].
    pub(crate) unsafe fn send(
        &mut self,
        hdr: &VirtioNetHdr,
        pieces: &[libc::iovec],
    ) -> Result<(), DropReason> {
        // SAFETY: the caller vouches in the same words.
        let sent = unsafe {
            match self {
                Self::Tap(tap) => tap.send(hdr, pieces),
                Self::Packet(packet) => packet.send(hdr, pieces),
            }
        };
        sent.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::NOBUFS) => match self {
                Self::Tap(_) => DropReason::TapFull,
                Self::Packet(_) => DropReason::PacketFull,
            },
            Some(Errno::MSGSIZE) => DropReason::TooLong,
            Some(Errno::FAULT) => DropReason::GuestMemory,
            Some(Errno::INVAL) => DropReason::BadOffload,
            Some(Errno::NETDOWN | Errno::IO) => DropReason::PortDown,
            _ => DropReason::IoError,
        })
    }
}

impl AsFd for KernelQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Packet(packet) => packet.as_fd(),
        }
    }
}

/// A TAP device or a packet socket. Each queue is read by one worker alone; any worker may write to any.
#[derive(Debug)]
pub(crate) struct KernelPort {
    queues: Box<[Mutex<KernelQueue>]>,
    duties: Arc<[Duty]>,
    /// The device was deleted; nothing is read any more.
    gone: AtomicBool,
}

impl KernelPort {
    pub(crate) fn new(queues: impl IntoIterator<Item = KernelQueue>) -> Self {
        let queues: Box<[_]> = queues.into_iter().map(Mutex::new).collect();
        let duties = Duty::of(queues.len());
        Self { queues, duties, gone: AtomicBool::new(false) }
    }

    /// A packet socket, which is the one queue.
    pub(crate) fn is_packet(&self) -> bool {
        self.queue(0).is_some_and(|queue| matches!(*queue, KernelQueue::Packet(_)))
    }

    pub(crate) fn queues(&self) -> usize {
        self.queues.len()
    }

    pub(crate) fn duties(&self) -> &Arc<[Duty]> {
        &self.duties
    }

    /// The queue that a worker writes to: one that it reads, so that it seldom meets another worker there.
    pub(crate) fn queue_of(&self, worker: usize) -> usize {
        let own = self.duties.iter().position(|duty| duty.owner() == Some(worker));
        own.unwrap_or_else(|| worker % self.queues.len().max(1))
    }

    /// `None` while another worker has it.
    pub(crate) fn try_queue(&self, queue: usize) -> Option<MutexGuard<'_, KernelQueue>> {
        match self.queues.get(queue)?.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// For configuration: waits for the end of a burst.
    pub(crate) fn queue(&self, queue: usize) -> Option<MutexGuard<'_, KernelQueue>> {
        Some(self.queues.get(queue)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True the first time.
    pub(crate) fn mark_gone(&self) -> bool {
        !self.gone.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}
