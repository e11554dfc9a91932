//! A frame as it leaves: tag changed, or made one piece of private memory.

use switch::TagOp;
use virtio_ring::Cursor;
use wire::vlan;

use super::batch::Batch;
use super::outputs::Job;
use crate::offload::Offload;

/// Bytes before a tag: both addresses.
const TAG_AT: usize = 12;

/// A frame in pieces: private ones, then what is left in guest memory.
pub(crate) struct Shaped<'f, 'm> {
    pub(crate) parts: [&'f [u8]; 3],
    pub(crate) tail: Cursor<'f, 'm>,
    pub(crate) tail_len: usize,
    /// Bytes of all pieces.
    pub(crate) len: usize,
    pub(crate) offload: Offload,
}

impl<'f> Shaped<'f, 'f> {
    /// A private frame with nothing left to do.
    pub(crate) fn private(parts: [&'f [u8]; 3]) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        let (tail, offload) = (Cursor::new(&[]), Offload::NONE);
        Self { parts, tail, tail_len: 0, len, offload }
    }
}

/// The frame of a job after its tag operation. `tag` is room for a tag.
#[inline]
pub(crate) fn shape<'f, 'm>(
    batch: &Batch<'f, 'm>,
    job: &Job,
    tag: &'f mut [u8; 4],
) -> Shaped<'f, 'm> {
    let frame = usize::from(job.frame);
    let meta = batch.meta(frame);
    let head = batch.head(frame);
    let len = meta.len as usize;
    let tail_len = len - head.len();
    let tail = if tail_len == 0 { Cursor::new(&[]) } else { batch.tail(frame) };
    let (addresses, rest) = head.split_at_checked(TAG_AT).unwrap_or((head, &[]));
    // Behind a tag that is there; the bridge has parsed it.
    let untagged = rest.get(vlan::TAG_LEN..).unwrap_or(&[]);
    let none: &[u8] = &[];
    let (parts, len) = match job.tag {
        TagOp::Keep => ([head, none, none], len),
        TagOp::Strip => ([addresses, untagged, none], len - vlan::TAG_LEN.min(rest.len())),
        TagOp::Push(tci) => {
            let ([a, b], [c, d]) = (vlan::TPID_CUSTOMER.to_be_bytes(), tci.0.to_be_bytes());
            *tag = [a, b, c, d];
            ([addresses, &tag[..], rest], len + vlan::TAG_LEN)
        }
        TagOp::Rewrite(tci) => {
            let [c, d] = tci.0.to_be_bytes();
            let [a, b] = [0, 1].map(|at| rest.get(at).copied().unwrap_or(0));
            *tag = [a, b, c, d];
            ([addresses, &tag[..], untagged], len)
        }
    };
    Shaped { parts, tail, tail_len, len, offload: meta.offload.retagged(job.tag) }
}

/// Copies a frame into one piece. `buffer` is at least as long as the longest frame and a tag.
pub(crate) fn linearize<'l>(shaped: &Shaped<'_, '_>, buffer: &'l mut [u8]) -> &'l mut [u8] {
    let mut at = 0;
    for part in shaped.parts {
        buffer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let mut tail = shaped.tail;
    at += tail.read(&mut buffer[at..at + shaped.tail_len]);
    &mut buffer[..at]
}
