//! The frames of one burst, wherever they came from.

use switch::{DropReason, PortIndex, WINDOW_LEN};
use virtio_ring::{Chains, Cursor, GuestMemory};

use crate::offload::Offload;

/// Bytes of the longest frame: 64 KiB of IP with an Ethernet header and two tags.
pub(crate) const MAX_FRAME: usize = 65_535 + 14 + 8;
/// The shortest: an Ethernet header.
pub(crate) const MIN_FRAME: usize = 14;

/// The virtio header and the first bytes of a guest's frame, copied once. The frame begins aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Window([u8; 192]);

const FRAME: usize = 16;

impl Window {
    pub(crate) const EMPTY: Self = Self([0; 192]);

    /// The place for a header of `hdr_len` bytes and what follows of `len` bytes in all, as far as the window goes.
    #[inline(always)]
    pub(crate) fn place(&mut self, hdr_len: usize, len: usize) -> &mut [u8] {
        let start = FRAME - hdr_len;
        let end = FRAME + WINDOW_LEN.min(len.saturating_sub(hdr_len));
        &mut self.0[start..end]
    }

    /// The virtio header; a shorter one is filled up with zeros behind.
    #[inline(always)]
    pub(crate) fn header(&self, hdr_len: usize) -> [u8; 12] {
        let mut header = [0; 12];
        header[..hdr_len].copy_from_slice(&self.0[FRAME - hdr_len..FRAME]);
        header
    }

    #[inline(always)]
    pub(crate) fn frame(&self, len: usize) -> &[u8] {
        &self.0[FRAME..FRAME + len.min(WINDOW_LEN)]
    }
}

/// A frame read from the kernel or an engine, whole.
pub(crate) struct Owned(Box<[u8]>);

impl Owned {
    pub(crate) fn new() -> Self {
        // A frame that fills the buffer counts as cut, so there is one byte more, and room for a tag.
        Self(vec![0; MAX_FRAME + 64].into())
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What is known of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Bytes, without the virtio header.
    pub(crate) len: u32,
    pub(crate) offload: Offload,
    /// Why it is no frame; nothing else holds then.
    pub(crate) refused: Option<DropReason>,
}

impl Meta {
    pub(crate) const NONE: Self = Self { len: 0, offload: Offload::NONE, refused: None };
}

/// Where the bytes of a burst's frames are.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'b, 'm> {
    /// The window is private, the rest in guest memory.
    Guest { windows: &'b [Window], chains: Chains<'b, 'm>, memory: &'m GuestMemory, hdr_len: usize },
    /// All private.
    Owned(&'b [Owned]),
    /// One private frame.
    Single(&'b [u8]),
}

/// Frames of one source, in the order in which they came.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'b, 'm> {
    pub(crate) ingress: PortIndex,
    pub(crate) metas: &'b [Meta],
    pub(crate) bytes: Bytes<'b, 'm>,
}

impl<'b, 'm> Batch<'b, 'm> {
    #[inline(always)]
    pub(crate) fn meta(&self, frame: usize) -> &'b Meta {
        &self.metas[frame]
    }

    /// The private bytes: all of the frame, or its window.
    #[inline(always)]
    pub(crate) fn head(&self, frame: usize) -> &'b [u8] {
        let len = self.metas[frame].len as usize;
        match self.bytes {
            Bytes::Guest { windows, .. } => windows[frame].frame(len),
            Bytes::Owned(buffers) => &buffers[frame].bytes()[..len],
            Bytes::Single(bytes) => bytes,
        }
    }

    /// The bytes behind the private ones.
    #[inline]
    pub(crate) fn tail(&self, frame: usize) -> Cursor<'b, 'm> {
        match self.bytes {
            Bytes::Guest { chains, hdr_len, .. } => {
                let mut cursor = Cursor::new(chains.slices(&chains.chain(frame)));
                cursor.skip(hdr_len + WINDOW_LEN);
                cursor
            }
            Bytes::Owned(_) | Bytes::Single(_) => Cursor::new(&[]),
        }
    }

    /// The source's memory is not the guest's any more: nothing that was read from it may get out.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        matches!(self.bytes, Bytes::Guest { memory, .. } if memory.is_poisoned())
    }

    /// A system call found the source's memory unreadable.
    pub(crate) fn poison(&self) {
        if let Bytes::Guest { memory, .. } = self.bytes {
            memory.poison();
        }
    }
}
