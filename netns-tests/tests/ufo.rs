//! Large UDP datagrams to Linux guests, whose drivers negotiate GUEST_UFO: the kernel takes one in one frame, as it has
//! always done, though it sends none any more.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use netns_tests::Lab;
use netns_tests::frontend::{Nic, Options};
use netns_tests::guest::{Guest, Qemu, Uml, qemu};
use vhost_user::features::virtio;
use wire::arp::{self, ArpPacket};
use wire::ipv4::{Ipv4Header, PROTOCOL_UDP};
use wire::udp::{UdpHeader, UdpV4};
use wire::virtio_net::{F_NEEDS_CSUM, GSO_UDP};
use wire::{MacAddr, VirtioNetHdr, checksum, ethernet, udp};
use zerocopy::IntoBytes;

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.6.0.1' netmask='255.255.255.0'/></network>";
const LIMIT: Duration = Duration::from_secs(60);
const SENDER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 9);
const PORT: u16 = 69;
/// The largest that TFTP has.
const BLOCK: usize = 65_464;

/// A datagram as Linux before 4.14 left it to its device, for an MTU of 1500.
fn datagram(
    (mac, to): (MacAddr, SocketAddrV4),
    payload: &[u8],
) -> anyhow::Result<(VirtioNetHdr, Vec<u8>)> {
    let len = u16::try_from(udp::HEADER_LEN + payload.len())?;
    let ip = Ipv4Header::new(SERVER, *to.ip(), PROTOCOL_UDP, 64, len.into());
    let mut ip = ip.context("too long")?;
    (ip.flags_fragment, ip.checksum) = (0.into(), 0.into());
    ip.checksum = checksum::ipv4_header(ip.as_bytes()).into();
    let pseudo = checksum::pseudo_v4(SERVER, *to.ip(), PROTOCOL_UDP, len);
    let udp = UdpHeader {
        src_port: PORT.into(),
        dst_port: to.port().into(),
        len: len.into(),
        checksum: checksum::fold(pseudo).into(),
    };
    let ethertype = ethernet::ETHERTYPE_IPV4.to_be_bytes();
    let frame = [&mac.0, &SENDER.0, &ethertype[..], ip.as_bytes(), udp.as_bytes(), payload];
    let header = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP,
        hdr_len: 42.into(),
        gso_size: 1480.into(),
        csum_start: 34.into(),
        csum_offset: 6.into(),
        ..VirtioNetHdr::default()
    };
    Ok((header, frame.concat()))
}

/// A file over TFTP in one block (RFC 1350, RFC 2348), asked for by `nic` of whom it serves.
fn serve(nic: &mut Nic, file: &[u8]) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut buffer = vec![0; 1514];
    loop {
        let received = nic.receive(deadline)?.context("nobody asks for the file")?;
        let view = ethernet::EthernetView::new_checked(&received.frame)?;
        if view.ethertype() == ethernet::ETHERTYPE_ARP {
            let asked = *ArpPacket::new_checked(view.payload())?;
            if asked.operation.get() == arp::REQUEST && asked.target_ip() == SERVER {
                let len = asked.reply(SENDER).build(&mut buffer, view.src())?;
                nic.send(&buffer[..len], deadline)?;
            }
            continue;
        }
        let Ok(asked) = udp::parse_ipv4(&received.frame) else { continue };
        let guest = (view.src(), asked.src);
        match asked.payload {
            [0, 1, ..] => {
                let addresses = UdpV4 {
                    src_mac: SENDER,
                    dst_mac: guest.0,
                    vlan: None,
                    src: SocketAddrV4::new(SERVER, PORT),
                    dst: guest.1,
                    ttl: 64,
                };
                let size = format!("\0\u{6}blksize\0{BLOCK}\0");
                let len = udp::build_ipv4(&mut buffer, &addresses, size.as_bytes())?;
                nic.send(&buffer[..len], deadline)?;
            }
            [0, 4, 0, 0] => {
                let (header, frame) = datagram(guest, &[&[0, 3, 0, 1], file].concat())?;
                nic.send_on(0, header, &frame, deadline)?;
            }
            [0, 4, 0, 1] => return Ok(()),
            other => bail!("{other:?} is no part of this transfer"),
        }
    }
}

fn takes(guest: &mut dyn Guest, sender: &mut Nic) -> anyhow::Result<()> {
    let name = guest.name().to_owned();
    guest.run("ip link set eth0 up; ip addr add 10.6.0.2/24 dev eth0")?;
    // A character for each bit.
    let negotiated = guest.run("cut -c11 /sys/class/net/eth0/device/features")?;
    ensure!(negotiated.trim() == "1", "{name} does not take UFO: {negotiated}");
    let fragments = "grep ^Ip: /proc/net/snmp | cut -d' ' -f15";
    let before = guest.run(fragments)?;
    ensure!(before.starts_with("ReasmReqds"), "{before}");
    let text: String = (1..20_000).map(|n: u32| format!("{n}\n")).collect();
    let file = &text.as_bytes()[..BLOCK - 1];
    guest.run(&format!(
        "busybox tftp -g -b {BLOCK} -r file -l /tmp/got {SERVER} {PORT} >/tmp/said 2>&1 &"
    ))?;
    serve(sender, file).with_context(|| format!("{name}: no transfer"))?;
    let sum = guest.run(&format!("seq 1 20000 | head -c {} | md5sum", file.len()))?;
    let sum = sum.trim();
    let arrived = format!(
        "for n in $(seq 100); do md5sum </tmp/got | grep -q '{sum}' && exit 0; sleep 0.1; done; \
         cat /tmp/said; ls -l /tmp/got; exit 1"
    );
    let ran = guest.sh(&arrived, LIMIT)?;
    ensure!(ran.ok(), "{name} did not get the file: {}", ran.text);
    let after = guest.run(fragments)?;
    ensure!(after == before, "{name} got fragments: {before} before, then {after}");
    Ok(())
}

#[test]
fn linux_guests_take_a_datagram_whole() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.daemon.network("lan", NETWORK)?;
    let port = |name: &str| -> anyhow::Result<_> {
        let port = lab.daemon.port("lan", name, &[])?;
        Ok((port.socket.context("a vhost-user port without a socket")?, port.mac))
    };
    let options = Options { tx_frame: 65_536, ..Options::new(SENDER) };
    let options = options.with(virtio::NET_F_CSUM | virtio::NET_F_HOST_UFO);
    let mut sender = Nic::connect(&port("sender")?.0, options)?;
    let mut uml = Uml::start("uml", &[&port("uml")?.0])?;
    takes(&mut uml, &mut sender)?;
    drop(uml);
    let (socket, mac) = port("qemu")?;
    let mut qemu = Qemu::start("qemu", &[qemu::Nic::new(&socket, mac)])?;
    takes(&mut qemu, &mut sender)
}
