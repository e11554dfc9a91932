//! Where a key lives, and how little of it has to be stored there.
//!
//! A key is a VLAN and an address, 60 bits. Its low 9 bits are XORed with a hash of the other 51 to give a bucket; the
//! 51 are stored. The bucket's number and the stored bits give the key back, so a bucket's 64-bit word has room for
//! the port, and a reader gets key and port in one atomic load: it can never see the key of one entry with the port
//! of another.
//!
//! Guests choose addresses. The hash is multiply-shift with a secret 128-bit multiplier and addend: for any two keys
//! that were chosen without knowing the seed, the chance of a common bucket is one in the number of buckets
//! (Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic without
//! primes", theorem 3). Two independent slices of the hash give each key two buckets to choose from.

use wire::{MacAddr, Vid};

/// Bits of a key that are not stored but follow from its bucket.
const LOW_BITS: u32 = 9;
const LOW: u64 = (1 << LOW_BITS) - 1;

/// Bits of a key that are stored.
pub(super) const REST_BITS: u32 = 60 - LOW_BITS;

/// A VLAN and an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    #[inline]
    pub(super) fn new(mac: MacAddr, vid: Vid) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self::from_number(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), vid)
    }

    /// From an address read as a big-endian number of 48 bits.
    #[inline]
    pub(crate) fn from_number(mac: u64, vid: Vid) -> Self {
        Self(u64::from(vid.value()) << 48 | mac)
    }

    pub(super) fn mac(self) -> MacAddr {
        let [_, _, mac @ ..] = self.0.to_be_bytes();
        MacAddr(mac)
    }

    pub(super) fn vid(self) -> Vid {
        let [high, low, ..] = self.0.to_be_bytes();
        // Only made from a Vid, so never above 4094.
        Vid::new(u16::from_be_bytes([high, low])).unwrap_or_default()
    }
}

/// A key's two buckets, and what is stored of it in either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) buckets: [usize; 2],
    pub(super) rest: u64,
}

/// The secret of one table.
#[derive(Clone)]
pub(super) struct Hash {
    multiplier: u128,
    addend: u128,
    /// Of a bucket's number.
    mask: u64,
}

impl Hash {
    /// The number of buckets is 2 to `bits`, which are kept within 9, of which the unstored part of a key has to
    /// follow, and 24, of which the hash has two.
    pub(super) fn new(seed: [u64; 4], bits: u32) -> Self {
        let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        Self {
            multiplier: wide(seed[0], seed[1]),
            addend: wide(seed[2], seed[3]),
            mask: (1 << bits.clamp(LOW_BITS, SLICE_BITS)) - 1,
        }
    }

    pub(super) fn buckets(&self) -> usize {
        index(self.mask) + 1
    }

    #[inline]
    pub(super) fn place(&self, key: Key) -> Place {
        let rest = key.0 >> LOW_BITS;
        let low = key.0 & LOW;
        let [one, two] = self.slices(rest);
        Place { buckets: [index(low ^ one), index(low ^ two)], rest }
    }

    /// The key that stored `rest` in `bucket` by its first or second choice.
    pub(super) fn key(&self, bucket: usize, rest: u64, second: bool) -> Key {
        let low = (bucket as u64 ^ self.slices(rest)[usize::from(second)]) & LOW;
        Key(rest << LOW_BITS | low)
    }

    #[inline]
    fn slices(&self, rest: u64) -> [u64; 2] {
        let product = self.multiplier.wrapping_mul(u128::from(rest)).wrapping_add(self.addend);
        let [_, _, _, _, _, _, _, _, upper @ ..] = product.to_le_bytes();
        let hash = u64::from_le_bytes(upper);
        [hash >> (64 - SLICE_BITS) & self.mask, hash >> (64 - 2 * SLICE_BITS) & self.mask]
    }
}

/// Bits of each of the hash's two independent parts.
const SLICE_BITS: u32 = 24;

/// A bucket's number.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "24 bits")]
const fn index(bits: u64) -> usize {
    bits as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_comes_back_from_either_bucket(
            seed in any::<[u64; 4]>(), bits in 9u32..=24, mac in any::<[u8; 6]>(), vid in 0u16..=4094,
        ) {
            let hash = Hash::new(seed, bits);
            let key = Key::new(MacAddr(mac), Vid::new(vid).unwrap());
            prop_assert_eq!((key.mac().0, key.vid().value()), (mac, vid));
            let place = hash.place(key);
            prop_assert!(place.rest < 1 << REST_BITS);
            for (bucket, second) in place.buckets.into_iter().zip([false, true]) {
                prop_assert!(bucket < hash.buckets());
                prop_assert_eq!(hash.key(bucket, place.rest, second), key);
            }
        }
    }
}
