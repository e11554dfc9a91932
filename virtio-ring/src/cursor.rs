//! Reading and writing over several slices in a row.

use crate::GuestSlice;

/// A position in a list of slices that moves forward as bytes are read or written.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'b, 'm> {
    current: GuestSlice<'m>,
    rest: &'b [GuestSlice<'m>],
}

impl<'b, 'm> Cursor<'b, 'm> {
    #[must_use]
    #[inline]
    pub fn new(slices: &'b [GuestSlice<'m>]) -> Self {
        match slices.split_first() {
            Some((&current, rest)) => Self { current, rest },
            None => Self { current: GuestSlice::EMPTY, rest: &[] },
        }
    }

    /// The rest as slices: what is left of the current one, and those behind it.
    #[must_use]
    pub fn parts(&self) -> (GuestSlice<'m>, &'b [GuestSlice<'m>]) {
        (self.current, self.rest)
    }

    /// Steps over at most `n` bytes; returns how many there were.
    pub fn skip(&mut self, n: usize) -> usize {
        self.each(n, |_, _| {})
    }

    /// Fills `dst` as far as there are bytes; returns how many.
    pub fn read(&mut self, dst: &mut [u8]) -> usize {
        self.each(dst.len(), |slice, done| {
            if let Some(dst) = dst.get_mut(done..) {
                slice.read(dst);
            }
        })
    }

    /// Writes `src` as far as there is room; returns how many bytes.
    pub fn write(&mut self, src: &[u8]) -> usize {
        self.each(src.len(), |slice, done| {
            if let Some(src) = src.get(done..) {
                slice.write(src);
            }
        })
    }

    /// Copies at most `n` bytes from another guest's memory, as far as both go; returns how many.
    pub fn copy_from(&mut self, src: &mut Cursor<'_, '_>, n: usize) -> usize {
        self.each(n, |slice, _| {
            let mut at = slice;
            while !at.is_empty() {
                let copied = src.each(at.len(), |part, done| {
                    at.skip(done).copy_from(part);
                });
                if copied == 0 {
                    break;
                }
                at = at.skip(copied);
            }
        })
    }

    /// Calls `f` with each run of the next `n` bytes and the count of bytes before it.
    #[inline(always)]
    fn each(&mut self, n: usize, mut f: impl FnMut(GuestSlice<'m>, usize)) -> usize {
        let mut done = 0;
        while done < n {
            let part = self.current.first(n - done);
            if part.is_empty() {
                let Some((&next, rest)) = self.rest.split_first() else { break };
                (self.current, self.rest) = (next, rest);
                continue;
            }
            f(part, done);
            done += part.len();
            self.current = self.current.skip(part.len());
        }
        done
    }
}
