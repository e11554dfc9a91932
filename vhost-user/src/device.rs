//! What a frontend has told us so far: features, memory regions, rings.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::features::virtio;
use crate::message::LOG_PAGE;

/// State of the device as negotiated over one connection. Cloning is cheap (descriptors are shared).
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Device features that the driver accepted (virtio 1.3 §2.2); 0 before SET_FEATURES.
    pub features: u64,
    /// Protocol features that the frontend accepted.
    pub protocol_features: u64,
    /// Guest memory, in the order it was given. No two regions overlap in guest or user addresses.
    pub regions: Vec<Region>,
    /// All rings the offer allows, started or not: RX and TX of each pair, then room for a control queue.
    pub vrings: Vec<Vring>,
    /// The frontend's channel for our requests. It must stay open: User-mode Linux takes a hang-up
    /// for an unplugged device.
    pub backend_channel: Option<Arc<OwnedFd>>,
    /// Where dirty pages are logged, from SET_LOG_BASE until LOG_ALL is taken back. While LOG_ALL is on, the log
    /// covers all of `regions`, and rings must not run without one.
    pub log: Option<Log>,
    /// MTU given by NET_SET_MTU, in bytes.
    pub mtu: Option<u16>,
    /// Virtio device status (virtio 1.3 §2.1), as given by SET_STATUS.
    pub status: u8,
}

/// One region of guest memory, backed by a file of the frontend.
///
/// The session has checked the numbers only (size above 0, no overflow, no overlap). Kind and size of
/// the file must be checked by who maps it.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the first byte in the frontend's own address space; ring addresses use it.
    pub user_addr: u64,
    /// Offset of the first byte in the file.
    pub mmap_offset: u64,
    /// The file.
    pub fd: Arc<OwnedFd>,
}

/// The frontend's dirty log: one bit for each 4 KiB of guest addresses from 0 on.
///
/// The session has checked the numbers only. Kind and size of the file must be checked by who maps it.
#[derive(Clone, Debug)]
pub struct Log {
    /// Size in bytes.
    pub size: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// The file.
    pub fd: Arc<OwnedFd>,
}

/// One ring as the frontend set it up.
#[derive(Clone, Debug, Default)]
pub struct Vring {
    /// Size in descriptors: up to the offer's limit, of a split ring a power of two; 0 while not set.
    pub num: u16,
    /// Where the three parts are, in the frontend's user addresses.
    pub addr: Option<VringAddr>,
    /// Where the ring starts (SET_VRING_BASE, GET_VRING_BASE): the next available index. Of a packed ring, place and
    /// wrap counter (bit 15) of the next available descriptor, and in the upper half of the next used one.
    pub base: u32,
    /// Notifications from the driver; `None` means the ring must be polled.
    pub kick: Option<Arc<OwnedFd>>,
    /// Notifications to the driver; `None` means it polls. Not always an eventfd: User-mode Linux
    /// passes a pipe.
    pub call: Option<Arc<OwnedFd>>,
    /// Error notifications to the frontend.
    pub err: Option<Arc<OwnedFd>>,
    /// SET_VRING_ENABLE, or implied where the frontend did not accept protocol features.
    pub enabled: bool,
    /// Between SET_VRING_KICK and GET_VRING_BASE.
    pub started: bool,
}

/// Addresses of a ring's parts in the frontend's address space; alignment is checked
/// (virtio 1.3 §2.7: 16, 2 and 4 bytes; §2.8: 16, 4 and 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    pub desc: u64,
    pub used: u64,
    pub avail: u64,
    /// Guest address at which writes to the used ring are logged (VHOST_VRING_F_LOG). It may lie outside of all regions.
    pub log: Option<u64>,
}

impl Device {
    /// Whether all of `mask` was accepted by the driver.
    #[must_use]
    pub fn has(&self, mask: u64) -> bool {
        self.features & mask == mask
    }

    /// Whether all of `mask` was accepted by the frontend as protocol features.
    #[must_use]
    pub fn has_protocol(&self, mask: u64) -> bool {
        self.protocol_features & mask == mask
    }

    /// Dirty pages have to be logged.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        self.has(virtio::F_LOG_ALL)
    }

    /// Guest addresses that a log must cover: from 0 to the end of the highest region.
    pub(crate) fn guest_end(&self) -> u64 {
        // The sums were checked when the regions came.
        self.regions.iter().map(|region| region.guest_addr + region.size).max().unwrap_or(0)
    }

    /// Index of the control queue, if the driver accepted one (virtio 1.3 §5.1.2): after all pairs
    /// with multi-queue, else ring 2.
    #[must_use]
    pub fn control_queue(&self) -> Option<usize> {
        if !self.has(virtio::NET_F_CTRL_VQ) {
            None
        } else if self.has(virtio::NET_F_MQ) {
            Some(self.vrings.len() - 1)
        } else {
            Some(2)
        }
    }
}

impl Log {
    /// The first guest address that has no bit.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.size.saturating_mul(8 * LOG_PAGE)
    }
}

impl Vring {
    /// Started, with size and addresses known: the ring can be built.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.started && self.num != 0 && self.addr.is_some()
    }

    /// Started and enabled: frames may move.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.started && self.enabled
    }

    /// Ends the ring's run; its notifiers other than the kick stay, as frontends do not always send
    /// them again.
    pub(crate) fn stop(&mut self) {
        self.started = false;
        self.kick = None;
    }
}
