//! Where a key lives, and how little of it has to be stored there.
//!
//! A key is a VLAN and an address, 60 bits. Its low bits are XORed with a hash of the others to give a bucket; the
//! others are stored. The bucket's number and the stored bits give the key back, so a bucket's 64-bit word has room
//! for the port, and a reader gets key and port in one atomic load: it can never see the key of one entry with the
//! port of another.
//!
//! Guests choose addresses. The hash is multiply-shift with a secret 128-bit multiplier and addend: for any two keys
//! that were chosen without knowing the seed, the chance of a common bucket is one in the number of buckets
//! (Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic without
//! primes", theorem 3). Two independent slices of the hash give each key two buckets to choose from.

use wire::{MacAddr, Vid};

/// Bits of a key.
const KEY_BITS: u32 = 60;

/// A VLAN and an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    #[inline]
    pub(super) fn new(mac: MacAddr, vid: Vid) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self(u64::from(vid.value()) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
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
    /// log2 of the number of buckets.
    bits: u32,
}

impl Hash {
    /// The least number of buckets is 2 to this: fewer would leave more of the key than fits beside the port.
    pub(super) const MIN_BITS: u32 = 9;
    /// Keeps both buckets' slices inside the 64 bits of hash.
    pub(super) const MAX_BITS: u32 = 24;

    pub(super) fn new(seed: [u64; 4], bits: u32) -> Self {
        let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        Self {
            multiplier: wide(seed[0], seed[1]),
            addend: wide(seed[2], seed[3]),
            bits: bits.clamp(Self::MIN_BITS, Self::MAX_BITS),
        }
    }

    pub(super) fn buckets(&self) -> usize {
        1 << self.bits
    }

    #[inline]
    pub(super) fn place(&self, key: Key) -> Place {
        let rest = key.0 >> self.bits;
        let low = key.0 & self.mask();
        let [one, two] = self.slices(rest);
        Place { buckets: [index(low ^ one), index(low ^ two)], rest }
    }

    /// The key that stored `rest` in `bucket` by its first or second choice.
    pub(super) fn key(&self, bucket: usize, rest: u64, second: bool) -> Key {
        let low = (bucket as u64 ^ self.slices(rest)[usize::from(second)]) & self.mask();
        Key((rest << self.bits | low) & ((1 << KEY_BITS) - 1))
    }

    #[inline]
    fn slices(&self, rest: u64) -> [u64; 2] {
        let product = self.multiplier.wrapping_mul(u128::from(rest)).wrapping_add(self.addend);
        let [_, _, _, _, _, _, _, _, upper @ ..] = product.to_le_bytes();
        let hash = u64::from_le_bytes(upper);
        [hash >> (64 - self.bits), hash << self.bits >> (64 - self.bits)]
    }

    #[inline]
    fn mask(&self) -> u64 {
        (1 << self.bits) - 1
    }
}

/// A bucket's number, at most [`Hash::MAX_BITS`] wide.
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
            prop_assert!(place.rest < 1 << (KEY_BITS - bits));
            for (bucket, second) in place.buckets.into_iter().zip([false, true]) {
                prop_assert!(bucket < hash.buckets());
                prop_assert_eq!(hash.key(bucket, place.rest, second), key);
            }
        }
    }
}
