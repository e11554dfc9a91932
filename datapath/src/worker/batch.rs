//! The frames of one burst, wherever they came from.

use switch::{DropReason, PortIndex, WINDOW_LEN};
use virtio_ring::{Chains, Cursor, GuestMemory, GuestSlice, MAX_BURST};

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

/// The virtio header of a frame for which nothing is left to do, in one buffer of a driver with 12-byte headers
/// (`num_buffers` 1).
pub(crate) const PLAIN_HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

impl Window {
    pub(crate) const EMPTY: Self = Self([0; 192]);

    /// The place for a header of `HDR_LEN` bytes and a frame of `len`, as far as the window goes.
    #[inline(always)]
    pub(crate) fn place<const HDR_LEN: usize>(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[FRAME - HDR_LEN..FRAME + WINDOW_LEN.min(len)]
    }

    /// Nothing is said by the first ten bytes of the virtio header: what follows them, a driver need not set.
    #[inline(always)]
    pub(crate) fn header_is_zero<const HDR_LEN: usize>(&self) -> bool {
        let header = &self.0[FRAME - HDR_LEN..][..10];
        let (first, last) = (header.first_chunk::<8>(), header.last_chunk::<2>());
        first == Some(&[0; 8]) && last == Some(&[0; 2])
    }

    /// The virtio header; a shorter one is filled up with zeros behind.
    #[inline(always)]
    pub(crate) fn header<const HDR_LEN: usize>(&self) -> [u8; 12] {
        let mut header = [0; 12];
        header[..HDR_LEN].copy_from_slice(&self.0[FRAME - HDR_LEN..FRAME]);
        header
    }

    /// Puts [`PLAIN_HEADER`] before the frame.
    #[inline(always)]
    pub(crate) fn set_plain(&mut self) {
        self.0[FRAME - PLAIN_HEADER.len()..FRAME].copy_from_slice(&PLAIN_HEADER);
    }

    /// The header that was put there, and the private bytes.
    #[inline(always)]
    pub(crate) fn packet(&self, len: usize) -> &[u8] {
        &self.0[FRAME - PLAIN_HEADER.len()..FRAME + len.min(WINDOW_LEN)]
    }

    #[inline(always)]
    pub(crate) fn frame(&self, len: usize) -> &[u8] {
        &self.0[FRAME..FRAME + len.min(WINDOW_LEN)]
    }
}

/// A frame read from the kernel, whole, behind a [`PLAIN_HEADER`].
pub(crate) struct Owned(Box<[u8]>);

/// Where it begins.
const OWNED: usize = 64;

impl Owned {
    pub(crate) fn new() -> Self {
        // A frame that fills the buffer counts as cut, so there is one byte more, and room for a tag.
        let mut buffer = vec![0; OWNED + MAX_FRAME + 64];
        buffer[OWNED - PLAIN_HEADER.len()..OWNED].copy_from_slice(&PLAIN_HEADER);
        Self(buffer.into())
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0[OWNED..]
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[OWNED..]
    }

    fn packet(&self, len: usize) -> &[u8] {
        &self.0[OWNED - PLAIN_HEADER.len()..OWNED + len]
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
    Guest {
        windows: &'b [Window; MAX_BURST],
        chains: Chains<'b, 'm>,
        memory: &'m GuestMemory,
        hdr_len: usize,
    },
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
        self.head_of(frame, &self.metas[frame])
    }

    #[inline(always)]
    pub(crate) fn head_of(&self, frame: usize, meta: &Meta) -> &'b [u8] {
        let len = meta.len as usize;
        match self.bytes {
            Bytes::Guest { windows, .. } => windows[frame].frame(len),
            Bytes::Owned(buffers) => &buffers[frame].bytes()[..len],
            Bytes::Single(bytes) => bytes,
        }
    }

    /// The private bytes behind a [`PLAIN_HEADER`], where there was room for one.
    #[inline(always)]
    pub(crate) fn packet(&self, frame: usize, meta: &Meta) -> Option<&'b [u8]> {
        let len = meta.len as usize;
        match self.bytes {
            Bytes::Guest { windows, .. } => Some(windows[frame].packet(len)),
            Bytes::Owned(buffers) => Some(buffers[frame].packet(len)),
            Bytes::Single(_) => None,
        }
    }

    /// The bytes behind the private ones, if they are in one piece.
    #[inline(always)]
    pub(crate) fn tail_slice(&self, frame: usize) -> Option<GuestSlice<'m>> {
        let Bytes::Guest { chains, hdr_len, .. } = self.bytes else { return None };
        match chains.slices(&chains.chain(frame)) {
            [slice] => Some(slice.skip(hdr_len + WINDOW_LEN)),
            _ => None,
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
