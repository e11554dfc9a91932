//! A network card: the `vhost` crate's frontend, and a split-ring driver on memory that is mapped here again.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::{MacAddr, VirtioNetHdr};
use zerocopy::{FromBytes, IntoBytes};

use super::DEADLINE;
use super::packed::{
    EVENT_DESC, EVENT_DISABLE, F_AVAIL, F_USED, IN_ORDER, Packed, RING_PACKED, layout,
};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const CSUM: u64 = 1 << 0;
pub(crate) const GUEST_CSUM: u64 = 1 << 1;
pub(crate) const GUEST_TSO4: u64 = 1 << 7;
pub(crate) const HOST_TSO4: u64 = 1 << 11;
pub(crate) const MAC: u64 = 1 << 5;
pub(crate) const CTRL_VQ: u64 = 1 << 17;
pub(crate) const MQ: u64 = 1 << 22;
pub(crate) const PROTOCOL: u64 = 1 << 30;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// Everything of one ring lies in its own stretch of memory: table, avail, used at the beginning, then buffers.
const RING: u64 = 16 << 20;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
/// A TX buffer holds the longest frame and, at its end, an indirect table.
const TX_BUFFER: u64 = 0x1_8000;
const TX_TABLE: u64 = 0x1_7000;
const TX_SIZE: u16 = 64;
/// So that guest addresses and frontend addresses differ.
pub(crate) const GUEST_BASE: u64 = 0x4000_0000;

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) mac: MacAddr,
    /// Beside VERSION_1 and the protocol features.
    pub(crate) features: u64,
    pub(crate) pairs: usize,
    pub(crate) rx_buffer: u32,
    pub(crate) rx_size: u16,
    /// How a sent frame is cut: each descriptor but the last holds so many bytes.
    pub(crate) tx_cut: usize,
    /// Index that the rings begin with.
    pub(crate) start: u16,
    /// SET_VRING_BASE of each ring, where it is not that of a new one.
    pub(crate) bases: Vec<u16>,
    /// VIRTIO_F_RING_PACKED, or nothing: as the test runs.
    pub(crate) layout: u64,
    /// Memory of a card that was there before, with its rings.
    pub(crate) adopt: Option<(GuestMemoryMmap, Arc<File>, Vec<Ring>)>,
}

impl Options {
    pub(crate) fn new(mac: MacAddr) -> Self {
        Self {
            mac,
            features: MRG_RXBUF | EVENT_IDX,
            pairs: 1,
            rx_buffer: 2048,
            rx_size: 128,
            tx_cut: usize::MAX,
            start: 0,
            bases: Vec::new(),
            layout: layout(),
            adopt: None,
        }
    }

    /// With the control queue, which is the third ring of a card with one pair (virtio 1.3 §5.1.2).
    fn rings(&self) -> usize {
        self.pairs * 2 + usize::from(self.features & CTRL_VQ != 0)
    }
}

impl Clone for Ring {
    fn clone(&self) -> Self {
        Self {
            call: self.call.try_clone().unwrap(),
            kick: self.kick.try_clone().unwrap(),
            free: self.free.clone(),
            packed: self.packed.clone(),
            ..*self
        }
    }
}

pub(crate) struct Ring {
    pub(crate) base: u64,
    pub(crate) size: u16,
    pub(crate) avail: u16,
    pub(crate) used: u16,
    pub(crate) call: EventFd,
    pub(crate) kick: EventFd,
    /// TX slots that the device does not have.
    free: VecDeque<u16>,
    pub(crate) packed: Packed,
}

pub(crate) struct Nic {
    pub(crate) mac: MacAddr,
    pub(crate) frontend: Frontend,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) file: Arc<File>,
    pub(crate) features: u64,
    /// RX and TX of each pair in turn.
    pub(crate) rings: Vec<Ring>,
    options: Options,
    /// Buffers of each received frame, as the header says.
    pub(crate) last_num_buffers: u16,
}

impl Nic {
    pub(crate) fn connect(path: &Path, options: &Options) -> Self {
        let frontend = Frontend::connect(path, options.rings() as u64).unwrap();
        Self::negotiate(frontend, options)
    }

    pub(crate) fn negotiate(mut frontend: Frontend, options: &Options) -> Self {
        let count = options.rings();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let mq = if options.pairs > 1 { MQ } else { 0 };
        let features = options.features | options.layout | VERSION_1 | PROTOCOL | mq;
        assert_eq!(features & !offered, 0, "every feature wanted is offered: {offered:#x}");
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let protocol = frontend.get_protocol_features().unwrap() & wanted;
        assert_eq!(protocol, wanted);
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features).unwrap();
        let (memory, file, rings) = options.adopt.clone().unwrap_or_else(|| {
            let (memory, file) = memory(RING * count as u64);
            let rings = (0..count)
                .map(|at| (at, if at % 2 == 0 { options.rx_size } else { TX_SIZE }))
                .map(|(at, size)| Ring {
                    base: GUEST_BASE + RING * at as u64,
                    size,
                    packed: Packed::new(size, options.start),
                    avail: options.start,
                    used: options.start,
                    call: EventFd::new(EFD_NONBLOCK).unwrap(),
                    kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                    free: (0..TX_SIZE).collect(),
                })
                .collect();
            (memory, Arc::new(file), rings)
        });
        let mut nic = Self {
            mac: options.mac,
            frontend,
            memory,
            file,
            features,
            rings,
            options: options.clone(),
            last_num_buffers: 0,
        };
        nic.set_mem_table();
        for at in 0..count {
            if options.adopt.is_none() && !nic.is_packed() {
                nic.set_u16(at, AVAIL + 2, options.start);
                nic.set_u16(at, USED + 2, options.start);
            }
            if options.adopt.is_none() && nic.is_packed() {
                // Used in this turn already.
                for place in 0..options.start % nic.rings[at].size {
                    nic.set_u16(at, 16 * u64::from(place) + 14, F_AVAIL | F_USED);
                }
            }
            nic.want_signal(at);
            let start = options.start % nic.rings[at].size;
            let new = if nic.is_packed() { 1 << 15 | start } else { options.start };
            nic.start_ring(at, options.bases.get(at).copied().unwrap_or(new));
        }
        if options.adopt.is_none() {
            for pair in 0..options.pairs {
                for slot in 0..options.rx_size {
                    nic.post(2 * pair, slot);
                }
            }
        }
        nic
    }

    pub(crate) fn set_mem_table(&mut self) {
        let region = self.region();
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        let region = self.memory.iter().next().unwrap();
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The address of a guest address in this process, as the frontend tells it.
    fn user(&self, guest: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(guest)).unwrap() as u64
    }

    /// GET_VRING_BASE: where the ring is to be started again.
    pub(crate) fn stop_ring(&mut self, at: usize) -> u16 {
        let base = self.frontend.get_vring_base(at).unwrap();
        if self.is_packed() {
            assert_eq!(base & 0xffff, base >> 16, "nothing is in flight");
        }
        u16::try_from(base & 0xffff).unwrap()
    }

    /// Empties a ring, as after a reboot of the guest, and starts it.
    pub(crate) fn restart_ring(&mut self, at: usize) {
        let zero = [0; 0x2004];
        self.memory.write_slice(&zero, GuestAddress(self.rings[at].base)).unwrap();
        let size = self.rings[at].size;
        let Ring { avail, used, packed, .. } = &mut self.rings[at];
        (*avail, *used) = (0, 0);
        *packed = Packed { table: std::mem::take(&mut packed.table), ..Packed::new(size, 0) };
        self.start_ring(at, if self.is_packed() { 1 << 15 } else { 0 });
    }

    pub(crate) fn start_ring(&mut self, at: usize, base: u16) {
        let (ring_base, size) = (self.rings[at].base, self.rings[at].size);
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: self.user(ring_base),
            used_ring_addr: self.user(ring_base + USED),
            avail_ring_addr: self.user(ring_base + AVAIL),
            log_addr: None,
        };
        let Self { frontend, rings, .. } = self;
        frontend.set_vring_num(at, size).unwrap();
        frontend.set_vring_base(at, base).unwrap();
        frontend.set_vring_addr(at, &config).unwrap();
        frontend.set_vring_call(at, &rings[at].call).unwrap();
        // Before it is started, as QEMU does: what waits in a ring that is not enabled is discarded.
        frontend.set_vring_enable(at, true).unwrap();
        frontend.set_vring_kick(at, &rings[at].kick).unwrap();
    }

    pub(crate) fn u16(&self, ring: usize, offset: u64) -> u16 {
        let addr = GuestAddress(self.rings[ring].base + offset);
        self.memory.load(addr, Ordering::SeqCst).unwrap()
    }

    pub(crate) fn set_u16(&self, ring: usize, offset: u64, value: u16) {
        let addr = GuestAddress(self.rings[ring].base + offset);
        self.memory.store(value, addr, Ordering::SeqCst).unwrap();
    }

    /// Guest addresses that only the device writes: the used rings and, in the first, the receive buffers.
    pub(crate) fn written_by_device(&self) -> [std::ops::Range<u64>; 2] {
        let (rx, tx) = (&self.rings[0], &self.rings[1]);
        let buffers = u64::from(rx.size) * u64::from(self.options.rx_buffer);
        [rx.base + USED..rx.base + BUFFERS + buffers, tx.base + USED..tx.base + BUFFERS]
    }

    /// What the device writes beside the driver: a packed ring's descriptors.
    pub(crate) fn written_by_both(&self) -> [std::ops::Range<u64>; 2] {
        let end = if self.is_packed() { AVAIL } else { 0 };
        [0, 1].map(|at| self.rings[at].base..self.rings[at].base + end)
    }

    /// SEND_RARP, which the `vhost` crate does not have; waits for the answer.
    pub(crate) fn announce(&mut self) {
        let [a, b, c, d, e, f] = self.mac.0;
        let header: Vec<u8> = [19_u32, 1 | 8, 8].into_iter().flat_map(u32::to_ne_bytes).collect();
        let message = [&header[..], &[a, b, c, d, e, f, 0, 0]].concat();
        // SAFETY: the frontend keeps the descriptor open.
        let socket = unsafe { BorrowedFd::borrow_raw(self.frontend.as_raw_fd()) };
        rustix::io::write(socket, &message).unwrap();
        let mut reply = [0xff; 20];
        assert_eq!(rustix::io::read(socket, &mut reply).unwrap(), reply.len());
        assert_eq!(reply[12..], [0; 8], "SEND_RARP was refused");
    }

    fn event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    pub(crate) fn is_packed(&self) -> bool {
        self.features & RING_PACKED != 0
    }

    /// Asks for a signal with the next used entry.
    fn want_signal(&mut self, at: usize) {
        if self.is_packed() {
            let offset = self.rings[at].packed.used.bits();
            self.set_u16(at, AVAIL, offset);
            self.set_u16(at, AVAIL + 2, if self.event_idx() { EVENT_DESC } else { 0 });
            std::sync::atomic::fence(Ordering::SeqCst);
            return;
        }
        let (size, used) = (self.rings[at].size, self.rings[at].used);
        if self.event_idx() {
            self.set_u16(at, AVAIL + 4 + 2 * u64::from(size), used);
        } else {
            self.set_u16(at, AVAIL, 0);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Sets an entry of a ring's table or of an indirect one. A packed ring gets it with [`offer`](Self::offer).
    pub(crate) fn set_desc(
        &mut self,
        table: u64,
        at: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let packed = self.is_packed();
        if packed && let Some(ring) = self.rings.iter_mut().find(|ring| ring.base == table) {
            ring.packed.table[usize::from(at)] = (addr, len, flags, next);
            return;
        }
        let words = if packed { [0xbad, flags] } else { [flags, next] };
        self.write_desc(table + 16 * u64::from(at), addr, len, words);
    }

    pub(crate) fn write_desc(&self, at: u64, addr: u64, len: u32, words: [u16; 2]) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&words[0].to_le_bytes());
        bytes[14..].copy_from_slice(&words[1].to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Writes the chain that begins at `head` of the table into the packed ring. One that loops fills the ring.
    fn offer_packed(&mut self, at: usize, head: u16) {
        let Ring { base, size, ref packed, .. } = self.rings[at];
        let first = packed.avail;
        let (mut place, mut n, mut desc) = (first, 0, head);
        let mut first_flags = 0;
        loop {
            let (addr, len, flags, next) = self.rings[at].packed.table[usize::from(desc)];
            let flags = flags | place.offered();
            let entry = base + 16 * u64::from(place.at);
            // The first one's flags come last; until then they say that it is not offered.
            let written = if n == 0 { self.u16(at, 16 * u64::from(place.at) + 14) } else { flags };
            self.write_desc(entry, addr, len, [head, written]);
            if n == 0 {
                first_flags = flags;
            }
            place.step(1, size);
            (n, desc) = (n + 1, next);
            if flags & F_NEXT == 0 || n == size {
                break;
            }
        }
        self.set_u16(at, 16 * u64::from(first.at) + 14, first_flags);
        let packed = &mut self.rings[at].packed;
        packed.avail = place;
        packed.out.push_back((head, n));
        std::sync::atomic::fence(Ordering::SeqCst);
        let (offset, flags) = (self.u16(at, USED), self.u16(at, USED + 2));
        let mut passed = first;
        let named = (0..n).any(|_| {
            let hit = passed.bits() == offset;
            passed.step(1, size);
            hit
        });
        if flags != EVENT_DISABLE && (flags != EVENT_DESC || named) {
            self.rings[at].kick.write(1).unwrap();
        }
    }

    fn pop_packed(&mut self, at: usize) -> Option<(u16, u32)> {
        if let Some(back) = self.rings[at].packed.back.pop_front() {
            return Some(back);
        }
        let place = self.rings[at].packed.used;
        let offset = 16 * u64::from(place.at);
        if !place.is_used(self.u16(at, offset + 14)) {
            return None;
        }
        let (id, low) = (self.u16(at, offset + 12), self.u16(at, offset + 8));
        let len = u32::from(low) | u32::from(self.u16(at, offset + 10)) << 16;
        let in_order = self.features & IN_ORDER != 0;
        let Ring { size, packed, .. } = &mut self.rings[at];
        loop {
            let (head, n) = packed.out.pop_front().expect("nothing is used that was not offered");
            packed.used.step(n, *size);
            packed.back.push_back((head, len));
            if head == id {
                break;
            }
            assert!(in_order, "chain {head} comes before {id}");
        }
        self.want_signal(at);
        self.rings[at].packed.back.pop_front()
    }

    /// Makes a chain available and kicks if the device wants it.
    pub(crate) fn offer(&mut self, at: usize, head: u16) {
        if self.is_packed() {
            self.offer_packed(at, head);
            return;
        }
        let (size, old) = (self.rings[at].size, self.rings[at].avail);
        self.set_u16(at, AVAIL + 4 + 2 * u64::from(old % size), head);
        self.rings[at].avail = old.wrapping_add(1);
        self.set_u16(at, AVAIL + 2, self.rings[at].avail);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.split_wants_kick(at, old) {
            self.rings[at].kick.write(1).unwrap();
        }
    }

    /// Whether the device asks for a kick when the entry behind `avail` comes.
    fn split_wants_kick(&self, at: usize, avail: u16) -> bool {
        if self.event_idx() {
            self.u16(at, USED + 4 + 8 * u64::from(self.rings[at].size)) == avail
        } else {
            self.u16(at, USED) & 1 == 0
        }
    }

    /// Whether the device asks for a kick when the next frame is sent on a split ring: nobody polls it.
    pub(crate) fn wants_kick(&self, pair: usize) -> bool {
        let at = 2 * pair + 1;
        self.split_wants_kick(at, self.rings[at].avail)
    }

    /// Offers RX buffer `slot`.
    fn post(&mut self, at: usize, slot: u16) {
        let len = self.options.rx_buffer;
        let addr = self.rings[at].base + BUFFERS + u64::from(slot) * u64::from(len);
        self.set_desc(self.rings[at].base, slot, addr, len, F_WRITE, 0);
        self.offer(at, slot);
    }

    /// A used entry, if there is one.
    pub(crate) fn pop(&mut self, at: usize) -> Option<(u16, u32)> {
        if self.is_packed() {
            return self.pop_packed(at);
        }
        let used = self.rings[at].used;
        if self.u16(at, USED + 2) == used {
            return None;
        }
        let place = USED + 4 + 8 * u64::from(used % self.rings[at].size);
        let mut entry = [0; 8];
        self.memory.read_slice(&mut entry, GuestAddress(self.rings[at].base + place)).unwrap();
        self.rings[at].used = used.wrapping_add(1);
        self.want_signal(at);
        let id = u32::from_le_bytes(entry[..4].try_into().unwrap());
        let len = u32::from_le_bytes(entry[4..].try_into().unwrap());
        Some((u16::try_from(id).unwrap(), len))
    }

    /// Waits for the device's signal and a used entry; polls nothing meanwhile.
    pub(crate) fn wait(&mut self, at: usize) -> Option<(u16, u32)> {
        let start = Instant::now();
        loop {
            if let Some(entry) = self.pop(at) {
                return Some(entry);
            }
            let left = Timespec::try_from(DEADLINE.checked_sub(start.elapsed())?).unwrap();
            // SAFETY: the ring keeps the descriptor open.
            let call = unsafe { BorrowedFd::borrow_raw(self.rings[at].call.as_raw_fd()) };
            let mut fds = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
            if poll(&mut fds, Some(&left)).unwrap() == 0 {
                return None;
            }
            let _ = self.rings[at].call.read();
        }
    }

    /// Takes back what the device has sent.
    pub(crate) fn reap(&mut self, pair: usize) {
        while let Some((head, len)) = self.pop(2 * pair + 1) {
            assert_eq!(len, 0);
            self.rings[2 * pair + 1].free.push_back(head);
        }
    }

    /// Waits for the device's signals until everything that was sent has come back.
    pub(crate) fn wait_reaped(&mut self, pair: usize) {
        let at = 2 * pair + 1;
        while self.rings[at].free.len() < usize::from(TX_SIZE) {
            let (head, _) = self.wait(at).expect("the device takes frames");
            self.rings[at].free.push_back(head);
        }
    }

    /// Whether everything that was sent has come back.
    pub(crate) fn is_reaped(&mut self, pair: usize) -> bool {
        self.reap(pair);
        self.rings[2 * pair + 1].free.len() == usize::from(TX_SIZE)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_with(0, &VirtioNetHdr::default(), frame);
    }

    /// Waits for room, then sends.
    pub(crate) fn send_with(&mut self, pair: usize, header: &VirtioNetHdr, frame: &[u8]) {
        let at = 2 * pair + 1;
        self.reap(pair);
        // Chains of several descriptors use the table from their slot's place on: few slots are in use then.
        let pieces = 1 + (frame.len() + 11) / self.options.tx_cut.max(1);
        let indirect = self.features & INDIRECT != 0;
        let direct = pieces.min(usize::from(TX_SIZE));
        while self.rings[at].free.is_empty()
            || (!indirect && pieces > 1 && self.rings[at].free.len() < usize::from(TX_SIZE))
        {
            let (head, _) = self.wait(at).expect("the device takes frames");
            self.rings[at].free.push_back(head);
        }
        let slot = self.rings[at].free.pop_front().unwrap();
        let slot = if !indirect && pieces > 1 {
            self.rings[at].free.push_front(slot);
            let zero = self.rings[at].free.iter().position(|&slot| slot == 0).unwrap();
            self.rings[at].free.remove(zero).unwrap()
        } else {
            slot
        };
        let base = self.rings[at].base;
        let buffer = base + BUFFERS + u64::from(slot) * TX_BUFFER;
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(frame);
        self.memory.write_slice(&bytes, GuestAddress(buffer)).unwrap();
        let cut: Vec<&[u8]> = bytes.chunks(self.options.tx_cut.max(1)).collect();
        assert!(cut.len() <= direct.max(256));
        let table = if indirect { buffer + TX_TABLE } else { base };
        let first = if indirect { 0 } else { slot };
        let mut done = 0;
        for (i, piece) in cut.iter().enumerate() {
            let at = first + u16::try_from(i).unwrap();
            let flags = if i + 1 < cut.len() { F_NEXT } else { 0 };
            let len = u32::try_from(piece.len()).unwrap();
            self.set_desc(table, at, buffer + done, len, flags, at + 1);
            done += u64::from(len);
        }
        if indirect {
            let len = u32::try_from(16 * cut.len()).unwrap();
            self.set_desc(base, slot, table, len, F_INDIRECT, 0);
        }
        self.offer(at, slot);
    }

    /// Sends a command on the control queue (virtio 1.3 §5.1.6.5). True when the device has done it.
    pub(crate) fn control(&mut self, class: u8, command: u8, data: &[u8]) -> bool {
        const AT: usize = 2;
        let base = self.rings[AT].base;
        let (request, answer) = (base + BUFFERS, base + BUFFERS + TX_BUFFER);
        let bytes = [&[class, command], data].concat();
        self.memory.write_slice(&bytes, GuestAddress(request)).unwrap();
        self.memory.write_slice(&[0xff], GuestAddress(answer)).unwrap();
        self.set_desc(base, 0, request, u32::try_from(bytes.len()).unwrap(), F_NEXT, 1);
        self.set_desc(base, 1, answer, 1, F_WRITE, 0);
        self.offer(AT, 0);
        assert_eq!(self.wait(AT).expect("the device answers"), (0, 1));
        let mut ack = [0];
        self.memory.read_slice(&mut ack, GuestAddress(answer)).unwrap();
        ack == [0]
    }

    pub(crate) fn recv(&mut self) -> Option<(VirtioNetHdr, Vec<u8>)> {
        self.recv_from(0)
    }

    /// Waits for a frame.
    pub(crate) fn recv_from(&mut self, pair: usize) -> Option<(VirtioNetHdr, Vec<u8>)> {
        let first = self.wait(2 * pair)?;
        Some(self.collect(pair, first))
    }

    /// A frame that is there already.
    pub(crate) fn try_recv(&mut self, pair: usize) -> Option<(VirtioNetHdr, Vec<u8>)> {
        let first = self.pop(2 * pair)?;
        Some(self.collect(pair, first))
    }

    fn collect(&mut self, pair: usize, first: (u16, u32)) -> (VirtioNetHdr, Vec<u8>) {
        let at = 2 * pair;
        let mut bytes = Vec::new();
        let mut entry = first;
        let mut left = None;
        loop {
            let (slot, len) = entry;
            let addr =
                self.rings[at].base + BUFFERS + u64::from(slot) * u64::from(self.options.rx_buffer);
            let start = bytes.len();
            bytes.resize(start + len as usize, 0);
            self.memory.read_slice(&mut bytes[start..], GuestAddress(addr)).unwrap();
            self.post(at, slot);
            if left.is_none() {
                let header = VirtioNetHdr::read_from_bytes(&bytes[..12]).unwrap();
                self.last_num_buffers = header.num_buffers.get();
                left = Some(header.num_buffers.get());
            }
            left = left.map(|left| left - 1);
            if left == Some(0) {
                break;
            }
            entry = self.wait(at).expect("the rest of the frame");
        }
        let header = VirtioNetHdr::read_from_bytes(&bytes[..12]).unwrap();
        (header, bytes.split_off(12))
    }
}

fn memory(size: u64) -> (GuestMemoryMmap, File) {
    let fd = memfd_create("nic", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    let file = File::from(fd);
    let range = (
        GuestAddress(GUEST_BASE),
        usize::try_from(size).unwrap(),
        Some(FileOffset::new(file.try_clone().unwrap(), 0)),
    );
    (GuestMemoryMmap::from_ranges_with_files([range]).unwrap(), file)
}
