//! What a guest's driver is told about its device: features and configuration.

use vhost_user::Offer;
use vhost_user::features::{protocol, virtio};
use wire::MacAddr;

use super::MAX_RING;

/// Link is up (virtio 1.3 §5.1.4).
const STATUS_LINK_UP: u16 = 1;

/// `struct virtio_net_config` up to `mtu`, then speed and duplex, both unknown; the rest is zero.
const CONFIG_LEN: usize = 24;

const FEATURES: u64 = virtio::F_VERSION_1
    | virtio::F_INDIRECT_DESC
    | virtio::F_EVENT_IDX
    | virtio::F_ANY_LAYOUT
    | virtio::NET_F_MRG_RXBUF
    | virtio::NET_F_CSUM
    | virtio::NET_F_GUEST_CSUM
    | virtio::NET_F_HOST_TSO4
    | virtio::NET_F_HOST_TSO6
    | virtio::NET_F_HOST_ECN
    | virtio::NET_F_GUEST_TSO4
    | virtio::NET_F_GUEST_TSO6
    | virtio::NET_F_GUEST_ECN
    | virtio::NET_F_CTRL_VQ
    | virtio::NET_F_CTRL_RX
    | virtio::NET_F_CTRL_MAC_ADDR
    | virtio::NET_F_GUEST_ANNOUNCE
    | virtio::NET_F_MQ
    | virtio::NET_F_STATUS
    | virtio::NET_F_MTU;

const PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::CONFIG
    | protocol::BACKEND_REQ
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::RESET_DEVICE
    | protocol::STATUS;

/// What a port with this address and MTU offers. A zero address is left to the driver.
pub(super) fn offer(mac: MacAddr, mtu: u32, queue_pairs: u16) -> Offer {
    let mut config = vec![0; CONFIG_LEN];
    config[..6].copy_from_slice(&mac.0);
    config[6..8].copy_from_slice(&STATUS_LINK_UP.to_le_bytes());
    config[8..10].copy_from_slice(&queue_pairs.to_le_bytes());
    config[10..12].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_le_bytes());
    config[12..17].fill(0xff);
    let mac_feature = if mac == MacAddr::ZERO { 0 } else { virtio::NET_F_MAC };
    Offer {
        features: FEATURES | mac_feature,
        protocol_features: PROTOCOL_FEATURES,
        queue_pairs,
        config,
        max_ring: MAX_RING,
    }
}

/// Bytes of the virtio header that a driver with these features uses (virtio 1.3 §5.1.6.1).
pub(super) fn header_len(features: u64) -> usize {
    if features & (virtio::F_VERSION_1 | virtio::NET_F_MRG_RXBUF) == 0 { 10 } else { 12 }
}
