//! Notifications of the kernel about nftables changes, narrowed to one table.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h), as a bit of the bind mask.
const GROUP: u32 = 1 << (7 - 1);

/// Listens in the namespace of the thread that opened it.
#[derive(Debug)]
pub(in crate::host) struct Monitor {
    socket: AsyncFd<OwnedFd>,
    table: String,
}

impl Monitor {
    /// Needs a tokio runtime.
    pub(in crate::host) fn open(table: &str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(NETFILTER),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        // SAFETY: an OwnedFd stays open and the same until it is dropped with its AsyncFd.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket, table: table.to_owned() })
    }

    /// Waits for notifications; `true` when one may be about our table.
    pub(in crate::host) async fn changed(&self) -> bool {
        let Ok(mut ready) = self.socket.readable().await else {
            return std::future::pending().await;
        };
        let mut buffer = [0; 16 * 1024];
        let mut ours = false;
        loop {
            match rustix::net::recv(self.socket.get_ref(), &mut buffer, RecvFlags::TRUNC) {
                Ok((kept, sent)) => ours |= kept < sent || mentions(&buffer[..kept], &self.table),
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                // Some were lost (ENOBUFS): assume the worst.
                Err(_) => {
                    ours = true;
                    break;
                }
            }
        }
        ready.clear_ready();
        ours
    }
}

/// Whether one of the netlink messages names the table: in every nftables object the attribute
/// with number 1 is the table's name (linux/netfilter/nf_tables.h).
fn mentions(mut datagram: &[u8], table: &str) -> bool {
    const NETLINK_HEADER: usize = 16;
    const NFNETLINK_HEADER: usize = 4;
    while let Some(length) = field(datagram, 0, 4) {
        let Some(message) = datagram.get(..length) else { return false };
        if length < NETLINK_HEADER {
            return false;
        }
        let mut attributes = message.get(NETLINK_HEADER + NFNETLINK_HEADER..).unwrap_or_default();
        while let (Some(size), Some(kind)) = (field(attributes, 0, 2), field(attributes, 2, 2)) {
            let Some(value) = attributes.get(4..size) else { break };
            if kind & 0x3fff == 1 && value.strip_suffix(&[0]) == Some(table.as_bytes()) {
                return true;
            }
            attributes = attributes.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// A native-endian integer of 2 or 4 bytes.
fn field(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + size)?;
    match *bytes {
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; 16];
        for (kind, value) in attributes {
            let size = u16::try_from(4 + value.len()).unwrap();
            body.extend(size.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(body.len() + 4).unwrap().to_ne_bytes().to_vec();
        message.extend(body);
        message
    }

    #[test]
    fn finds_the_table_in_any_message_of_a_datagram() {
        let other = message(&[(1, b"filter\0"), (2, b"netloom\0")]);
        let ours = message(&[(7, b"x"), (1, b"netloom\0")]);
        assert!(!mentions(&other, "netloom"));
        assert!(mentions(&ours, "netloom"));
        assert!(mentions(&[other.clone(), ours.clone()].concat(), "netloom"));
        for cut in 0..ours.len() {
            assert!(!mentions(&ours[..cut], "netloom"), "cut at {cut}");
        }
        assert!(!mentions(&[0; 64], "netloom"));
        assert!(!mentions(&[0xff; 64], "netloom"));
    }
}
