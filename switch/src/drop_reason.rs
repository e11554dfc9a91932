//! Why a frame was dropped: one vocabulary for counters, traces and logs.

use core::fmt;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame was dropped. Each reason is one counter per port, and its name is printed the same everywhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// In the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            /// How many reasons there are; `reason as usize` is below it.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason's name: lower case, words joined by hyphens.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// One sentence that explains the reason to an operator.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

drop_reasons! {
    // What the sender handed in.

    /// The frame is shorter than its Ethernet header and VLAN tag.
    TooShort = "too-short",
    /// The frame is longer than the port's MTU and headers, or than what a segmented frame may have.
    TooLong = "too-long",
    /// The virtio header asks for a checksum or segmentation that was not negotiated or does not fit the frame.
    BadOffload = "bad-offload",
    /// A protocol header that had to be read is cut short or contradicts the frame's length.
    Malformed = "malformed",
    /// A descriptor chain is empty, too long, loops, or has descriptors of the wrong direction.
    BadDescriptor = "bad-descriptor",
    /// A buffer lies outside the guest's memory, or the memory behind it is gone.
    GuestMemory = "guest-memory",

    // What the switch decided.

    /// The port is not part of the bridge any more.
    PortGone = "port-gone",
    /// The source address is a group address or all zero.
    BadSourceMac = "bad-source-mac",
    /// The destination is reserved for link-local control protocols, which a bridge never forwards.
    ReservedMac = "reserved-mac",
    /// The port does not carry the frame's VLAN, or refuses tagged or untagged frames.
    VlanRefused = "vlan-refused",
    /// Both ports are isolated.
    Isolated = "isolated",
    /// The destination is behind the port that the frame came from.
    SamePort = "same-port",
    /// No other port carries the frame's VLAN.
    NoDestination = "no-destination",

    // What the receiver could not take.

    /// The receiving port is configured but nobody is connected to it, or its device is not ready.
    PortDown = "port-down",
    /// The receiving guest has stopped or not enabled its ring.
    RxRingDown = "rx-ring-down",
    /// The receiving guest offered no more buffers, and none came during the retries.
    RxRingFull = "rx-ring-full",
    /// The receiving guest's driver has not asked for such frames.
    RxFiltered = "rx-filtered",
    /// The receiving guest's buffers cannot hold the frame.
    RxBufferTooSmall = "rx-buffer-too-small",
    /// Another worker held the receiver's ring for too long.
    TxContended = "tx-contended",
    /// The TAP device's queue in the kernel is full.
    TapFull = "tap-full",
    /// The host interface's queue in the kernel is full.
    PacketFull = "packet-full",
    /// The kernel refused the frame on a TAP device or host interface.
    IoError = "io-error",
    /// The engine behind an internal port has not kept up.
    TrapFull = "trap-full",

    // What the datapath ran out of.

    /// The frame would have to be cut into segments, which failed.
    SegmentationFailed = "segmentation-failed",
    /// The port was taken out of service after an attack on its memory or rings.
    Quarantined = "quarantined",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_kebab_case_and_described() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            let name = reason.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
            assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
            assert!(reason.describe().ends_with('.'), "{name}: {}", reason.describe());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
