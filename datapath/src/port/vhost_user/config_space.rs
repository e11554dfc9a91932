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
    | virtio::F_RING_PACKED
    | virtio::F_IN_ORDER
    | virtio::F_ANY_LAYOUT
    | virtio::NET_F_MRG_RXBUF
    | virtio::NET_F_CSUM
    | virtio::NET_F_GUEST_CSUM
    | virtio::NET_F_HOST_TSO4
    | virtio::NET_F_HOST_TSO6
    | virtio::NET_F_HOST_ECN
    | virtio::NET_F_HOST_UFO
    | virtio::NET_F_GUEST_TSO4
    | virtio::NET_F_GUEST_TSO6
    | virtio::NET_F_GUEST_ECN
    | virtio::NET_F_GUEST_UFO
    | virtio::NET_F_HOST_USO
    | virtio::NET_F_GUEST_USO4
    | virtio::NET_F_GUEST_USO6
    | virtio::NET_F_CTRL_VQ
    | virtio::NET_F_CTRL_RX
    | virtio::NET_F_CTRL_VLAN
    | virtio::NET_F_CTRL_RX_EXTRA
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
pub(crate) fn offer(mac: MacAddr, mtu: u32, queue_pairs: u16) -> Offer {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../../docs/vhost-user.md");

    /// Names and bits in the table under a heading of the document.
    fn table(heading: &str) -> Vec<(&'static str, u64)> {
        let (_, section) = DOCUMENT.split_once(heading).expect(heading);
        let section = section.split_once("\n#").map_or(section, |(section, _)| section);
        let rows = section.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name, 1 << cells.next()?.parse::<u32>().expect(line)))
        });
        rows.collect()
    }

    #[test]
    fn the_document_says_what_is_offered() {
        let offer = offer(MacAddr([2, 0, 0, 0, 0, 1]), 1500, 1);
        let mask = |table: &[(&str, u64)]| table.iter().fold(0, |mask, (_, bit)| mask | bit);
        let device = table("### Device features");
        let difference = mask(&device) ^ offer.features;
        assert_eq!(difference, 0, "docs/vhost-user.md and what is offered differ: {difference:#x}");
        let named = table("### Protocol features");
        let difference = mask(&named) ^ offer.protocol_features;
        assert_eq!(difference, 0, "docs/vhost-user.md and what is offered differ: {difference:#x}");
        for (name, bit) in named {
            assert_eq!(name, protocol::name(bit));
        }
    }
}
