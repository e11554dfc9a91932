//! Feature bits as masks: virtio device features and vhost-user protocol features.

/// Device features (virtio 1.3 §5.1.3 and §6), as masks.
pub mod virtio {
    pub const NET_F_CSUM: u64 = 1 << 0;
    pub const NET_F_GUEST_CSUM: u64 = 1 << 1;
    pub const NET_F_MTU: u64 = 1 << 3;
    pub const NET_F_MAC: u64 = 1 << 5;
    pub const NET_F_GUEST_TSO4: u64 = 1 << 7;
    pub const NET_F_GUEST_TSO6: u64 = 1 << 8;
    pub const NET_F_GUEST_ECN: u64 = 1 << 9;
    pub const NET_F_GUEST_UFO: u64 = 1 << 10;
    pub const NET_F_HOST_TSO4: u64 = 1 << 11;
    pub const NET_F_HOST_TSO6: u64 = 1 << 12;
    pub const NET_F_HOST_ECN: u64 = 1 << 13;
    pub const NET_F_HOST_UFO: u64 = 1 << 14;
    pub const NET_F_MRG_RXBUF: u64 = 1 << 15;
    pub const NET_F_STATUS: u64 = 1 << 16;
    pub const NET_F_CTRL_VQ: u64 = 1 << 17;
    pub const NET_F_CTRL_RX: u64 = 1 << 18;
    pub const NET_F_CTRL_VLAN: u64 = 1 << 19;
    pub const NET_F_CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const NET_F_GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const NET_F_MQ: u64 = 1 << 22;
    pub const NET_F_CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The frontend wants dirty pages logged (vhost, not virtio); it comes and goes while rings run.
    pub const F_LOG_ALL: u64 = 1 << 26;
    pub const F_ANY_LAYOUT: u64 = 1 << 27;
    pub const F_INDIRECT_DESC: u64 = 1 << 28;
    pub const F_EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features can be negotiated and rings start disabled.
    pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const F_VERSION_1: u64 = 1 << 32;
    pub const F_RING_PACKED: u64 = 1 << 34;
    pub const F_IN_ORDER: u64 = 1 << 35;
    pub const NET_F_GUEST_USO4: u64 = 1 << 54;
    pub const NET_F_GUEST_USO6: u64 = 1 << 55;
    pub const NET_F_HOST_USO: u64 = 1 << 56;
}

/// Protocol features, negotiated by GET/SET_PROTOCOL_FEATURES, as masks.
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;

    /// All features that the session implements: an [`Offer`](crate::Offer) may choose among them.
    pub const SUPPORTED: u64 = MQ
        | LOG_SHMFD
        | RARP
        | REPLY_ACK
        | MTU
        | BACKEND_REQ
        | CONFIG
        | RESET_DEVICE
        | CONFIGURE_MEM_SLOTS
        | STATUS;

    /// Name of one feature as the specification writes it, without its prefix.
    #[must_use]
    pub fn name(mask: u64) -> &'static str {
        match mask {
            MQ => "MQ",
            LOG_SHMFD => "LOG_SHMFD",
            RARP => "RARP",
            REPLY_ACK => "REPLY_ACK",
            MTU => "MTU",
            BACKEND_REQ => "BACKEND_REQ",
            CONFIG => "CONFIG",
            RESET_DEVICE => "RESET_DEVICE",
            CONFIGURE_MEM_SLOTS => "CONFIGURE_MEM_SLOTS",
            STATUS => "STATUS",
            _ => "an unknown protocol feature",
        }
    }
}
