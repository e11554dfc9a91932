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
//! primes", theorem 3). Addresses that follow each other would be at equal distances, which a bad multiplier makes
//! few places of; so the bits are mixed once more, which takes nothing from that chance because it can be undone. Two
//! slices of the hash give each key two buckets to choose from.
//!
//! The number of buckets is not fixed: of a slice as many low bits count as the buckets have, and what would be behind
//! the last one is in the bucket with one bit less (Litwin, "Linear hashing: a new tool for file and table addressing").
//! So one more bucket takes entries from one other alone, see [`parent`].

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

/// What a key's two buckets follow from, and what is stored of it in either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    hash: u64,
    low: u32,
    pub(super) rest: u64,
}

impl Place {
    /// The key's bucket by choice 0 or 1 among so many, at least [`MIN_BUCKETS`].
    #[inline(always)]
    pub(super) fn bucket(&self, choice: usize, count: usize) -> usize {
        let mask = usize::MAX >> (count - 1).leading_zeros();
        let bucket = (self.low ^ slice(self.hash, choice)) as usize & mask;
        if bucket < count { bucket } else { bucket & mask >> 1 }
    }

    pub(super) fn buckets(&self, count: usize) -> [usize; 2] {
        [0, 1].map(|choice| self.bucket(choice, count))
    }
}

/// Whose entries a bucket takes over when it becomes the last one.
pub(super) const fn parent(bucket: usize) -> usize {
    bucket ^ 1 << bucket.ilog2()
}

/// The secret of one table.
#[derive(Clone)]
pub(super) struct Hash {
    multiplier: u128,
    addend: u128,
}

impl Hash {
    pub(super) fn new(seed: [u64; 4]) -> Self {
        let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        Self { multiplier: wide(seed[0], seed[1]), addend: wide(seed[2], seed[3]) }
    }

    #[inline]
    pub(super) fn place(&self, key: Key) -> Place {
        let rest = key.0 >> LOW_BITS;
        Place { hash: self.hash(rest), low: low(key.0), rest }
    }

    /// The key that stored `rest` in `bucket`, its choice 0 or 1.
    pub(super) fn key(&self, bucket: usize, rest: u64, choice: usize) -> Key {
        let low = low(bucket as u64) ^ low(slice(self.hash(rest), choice).into());
        Key(rest << LOW_BITS | u64::from(low))
    }

    #[inline]
    fn hash(&self, rest: u64) -> u64 {
        let product = self.multiplier.wrapping_mul(u128::from(rest)).wrapping_add(self.addend);
        let [_, _, _, _, _, _, _, _, upper @ ..] = product.to_le_bytes();
        let hash = u64::from_le_bytes(upper);
        (hash ^ hash >> 32).wrapping_mul(MIX)
    }
}

/// An odd number without a pattern: 2^64 by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of each of the hash's two independent parts.
const SLICE_BITS: u32 = 24;

/// The unstored part of a key has to follow from a bucket's number.
pub(super) const MIN_BUCKETS: usize = 1 << LOW_BITS;
/// As many as a slice can tell apart.
pub(super) const MAX_BUCKETS: usize = 1 << SLICE_BITS;

/// Part 0 or 1 of a hash.
#[inline(always)]
const fn slice(hash: u64, choice: usize) -> u32 {
    let parts = hash >> (64 - 2 * SLICE_BITS);
    ((if choice == 0 { parts >> SLICE_BITS } else { parts }) & ((1 << SLICE_BITS) - 1)) as u32
}

#[inline]
const fn low(bits: u64) -> u32 {
    (bits & LOW) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_comes_back_from_either_bucket(
            seed in any::<[u64; 4]>(), count in MIN_BUCKETS..=MAX_BUCKETS, mac in any::<[u8; 6]>(), vid in 0u16..=4094,
        ) {
            let hash = Hash::new(seed);
            let key = Key::new(MacAddr(mac), Vid::new(vid).unwrap());
            prop_assert_eq!((key.mac().0, key.vid().value()), (mac, vid));
            let place = hash.place(key);
            prop_assert!(place.rest < 1 << REST_BITS);
            for (bucket, choice) in place.buckets(count).into_iter().zip([0, 1]) {
                prop_assert!(bucket < count);
                prop_assert_eq!(hash.key(bucket, place.rest, choice), key);
            }
        }

        #[test]
        fn one_more_bucket_takes_keys_from_one_other_alone(
            seed in any::<[u64; 4]>(), count in MIN_BUCKETS..5000, macs in any::<[[u8; 6]; 32]>(),
        ) {
            let hash = Hash::new(seed);
            for mac in macs {
                let place = hash.place(Key::new(MacAddr(mac), Vid::NONE));
                for (before, after) in place.buckets(count).into_iter().zip(place.buckets(count + 1)) {
                    prop_assert!(after == before || (before, after) == (parent(count), count));
                }
            }
        }
    }
}
