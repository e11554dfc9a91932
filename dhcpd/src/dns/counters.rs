//! What the DNS server has seen and done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a message got no answer, or a query was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than a header.
    Short,
    /// An answer, not a query.
    Response,
    /// From outside the network.
    Client,
    /// The client has as many queries under way as it may.
    ClientLimit,
    /// All clients together have as many queries under way as they may.
    TotalLimit,
    /// The client has as many TCP connections as it may, or all clients together.
    Connections,
    /// The answer could not be sent.
    Send,
}

impl DropReason {
    pub const ALL: [Self; 7] = [
        Self::Short,
        Self::Response,
        Self::Client,
        Self::ClientLimit,
        Self::TotalLimit,
        Self::Connections,
        Self::Send,
    ];

    /// The word for counters and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Response => "response",
            Self::Client => "client",
            Self::ClientLimit => "client-limit",
            Self::TotalLimit => "total-limit",
            Self::Connections => "connections",
            Self::Send => "send",
        }
    }
}

/// Written by the DNS thread, read by any.
#[derive(Debug, Default)]
pub struct Counters {
    queries: AtomicU64,
    malformed: AtomicU64,
    local: AtomicU64,
    cached: AtomicU64,
    forwarded: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

/// What happened to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Malformed,
    Local,
    Cached,
    Forwarded,
    Refused,
    Failed,
}

impl Counters {
    /// Messages received.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// Answered with an error for their form.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Answered from the network's own names.
    #[must_use]
    pub fn local(&self) -> u64 {
        self.local.load(Ordering::Relaxed)
    }

    /// Answered from the cache.
    #[must_use]
    pub fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Asked upstream (once for all clients that ask the same at the same time).
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Not for this server to answer.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// No upstream server gave an answer.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Messages dropped for one reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    /// Reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().map(|r| (r, self.dropped(r))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn query(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fate(&self, fate: Fate) {
        let counter = match fate {
            Fate::Malformed => &self.malformed,
            Fate::Local => &self.local,
            Fate::Cached => &self.cached,
            Fate::Forwarded => &self.forwarded,
            Fate::Refused => &self.refused,
            Fate::Failed => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}
