//! Which addresses of the ranges are free: one bit each, so that a nearly full pool is searched
//! 64 addresses at a time.

use std::net::Ipv4Addr;

use super::config::{Config, LeaseTime, Range, is_host};

#[derive(Debug)]
pub(super) struct Pool {
    /// Range and index of its first address.
    ranges: Vec<(Range, usize)>,
    len: usize,
    /// Never given to anybody without a reservation: the edges of the subnet, our own address,
    /// the router and the static hosts' addresses.
    blocked: Bits,
    used: Bits,
}

impl Pool {
    pub(super) fn new(config: &Config) -> Self {
        let mut ranges = Vec::new();
        let mut len = 0;
        for range in &config.ranges {
            ranges.push((*range, len));
            // At most MAX_ADDRESSES altogether ([`Config::check`]).
            len += to_usize(u32::from(range.end) - u32::from(range.start)) + 1;
        }
        let mut pool = Self { ranges, len, blocked: Bits::new(len), used: Bits::new(len) };
        let net = config.net;
        let edges = [net.network(), net.broadcast(), config.server];
        let blocked = edges.into_iter().filter(|ip| !is_host(net, *ip) || *ip == config.server);
        let blocked = blocked.chain(config.router).chain(config.hosts.iter().map(|h| h.ip));
        for ip in blocked.chain(config.dns.iter().copied()) {
            if let Some(index) = pool.index(ip) {
                pool.blocked.set(index, true);
            }
        }
        pool
    }

    fn index(&self, ip: Ipv4Addr) -> Option<usize> {
        let inside = |(range, _): &&(Range, usize)| (range.start..=range.end).contains(&ip);
        let (range, first) = self.ranges.iter().find(inside)?;
        Some(first + to_usize(u32::from(ip) - u32::from(range.start)))
    }

    fn ip(&self, index: usize) -> Option<Ipv4Addr> {
        let (range, first) = self.ranges.iter().rev().find(|(_, first)| *first <= index)?;
        let offset = u32::try_from(index - first).ok()?;
        Some(Ipv4Addr::from(u32::from(range.start) + offset))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Anybody may have it, when it is free.
    pub(super) fn is_dynamic(&self, ip: Ipv4Addr) -> bool {
        self.index(ip).is_some_and(|index| !self.blocked.get(index))
    }

    /// Lease time of the address's range.
    pub(super) fn lease(&self, ip: Ipv4Addr) -> Option<LeaseTime> {
        let inside = |(range, _): &&(Range, usize)| (range.start..=range.end).contains(&ip);
        self.ranges.iter().find(inside).and_then(|(range, _)| range.lease)
    }

    pub(super) fn set_used(&mut self, ip: Ipv4Addr, used: bool) {
        if let Some(index) = self.index(ip) {
            self.used.set(index, used);
        }
    }

    /// A free address: the one at `hash`, or the next after it, round the whole pool.
    pub(super) fn choose(&self, hash: u64) -> Option<Ipv4Addr> {
        let len = u64::try_from(self.len).ok().filter(|len| *len > 0)?;
        let start = usize::try_from(hash % len).ok()?;
        let index = self.free_in(start, self.len).or_else(|| self.free_in(0, start))?;
        self.ip(index)
    }

    fn free_in(&self, start: usize, end: usize) -> Option<usize> {
        let mut index = start;
        while index < end {
            let word = self.used.0[index / 64] | self.blocked.0[index / 64];
            // Bits below `index` count as taken.
            let free = !word & (u64::MAX << (index % 64));
            if free != 0 {
                let found = index - index % 64 + to_usize(free.trailing_zeros());
                return (found < end).then_some(found);
            }
            index = index - index % 64 + 64;
        }
        None
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    fn set(&mut self, index: usize, value: bool) {
        let bit = 1 << (index % 64);
        if value {
            self.0[index / 64] |= bit;
        } else {
            self.0[index / 64] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use wire::MacAddr;

    use super::*;

    fn pool(ranges: &[(u8, u8)]) -> Pool {
        let net = "10.0.0.0/24".parse().expect("a prefix");
        let mut config = Config::new(Ipv4Addr::new(10, 0, 0, 1), net, MacAddr([2, 0, 0, 0, 0, 1]));
        config.ranges = ranges
            .iter()
            .map(|(start, end)| Range {
                start: Ipv4Addr::new(10, 0, 0, *start),
                end: Ipv4Addr::new(10, 0, 0, *end),
                lease: None,
            })
            .collect();
        Pool::new(&config)
    }

    proptest! {
        #[test]
        fn gives_every_address_once(hashes in prop::collection::vec(any::<u64>(), 400)) {
            let mut pool = pool(&[(0, 99), (150, 255)]);
            let mut given = BTreeSet::new();
            for hash in hashes {
                if let Some(ip) = pool.choose(hash) {
                    prop_assert!(given.insert(ip), "{} twice", ip);
                    prop_assert!(pool.is_dynamic(ip));
                    pool.set_used(ip, true);
                }
            }
            // 100 + 106 addresses without .0, .1 (the server) and .255
            prop_assert_eq!(given.len(), 203);
            prop_assert!(!given.contains(&Ipv4Addr::new(10, 0, 0, 0)));
            prop_assert!(!given.contains(&Ipv4Addr::new(10, 0, 0, 1)));
            prop_assert!(!given.contains(&Ipv4Addr::new(10, 0, 0, 255)));
            let back = Ipv4Addr::new(10, 0, 0, 200);
            pool.set_used(back, false);
            prop_assert_eq!(pool.choose(7), Some(back));
        }
    }

    #[test]
    fn empty() {
        assert_eq!(pool(&[]).choose(3), None);
        assert_eq!(pool(&[(1, 1)]).choose(3), None);
    }
}
