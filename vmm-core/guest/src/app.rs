//! What the guest does: take an address, ping, echo, sleep.

use core::fmt;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::{dhcpv4, dns, icmp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpOption, IpAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::command_line::CommandLine;
use crate::ping::{Pings, Plan};
use crate::time::{Clock, stamp};
use crate::virtio::Network;
use crate::{ports, say};

const ECHO_PORT: u16 = 7;
const OPTION_HOST_NAME: u8 = 12;
/// Subnet mask, router, DNS servers, domain, MTU.
const REQUESTED: [u8; 5] = [1, 3, 6, 15, 26];
const LINK_CHECK: Duration = Duration::from_millis(200);

const EXIT_PING: u32 = 1;
const EXIT_ADDRESS: u32 = 2;

pub fn run(mut network: Network, line: &CommandLine, clock: &Clock) -> ! {
    let [a, b, c, d, e, f] = network.mac.0;
    say!(
        "net mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu={} features={:#x}",
        network.mtu,
        network.features
    );
    let mut config = Config::new(network.mac.into());
    config.random_seed = stamp();
    let mut interface = Interface::new(config, &mut network, clock.now());

    let mut storage = [SocketStorage::EMPTY; 4];
    let mut sockets = SocketSet::new(&mut storage[..]);
    let (mut icmp_in, mut icmp_out) = ([0; 2048], [0; 2048]);
    let (mut icmp_in_meta, mut icmp_out_meta) =
        ([icmp::PacketMetadata::EMPTY; 8], [icmp::PacketMetadata::EMPTY; 8]);
    let mut icmp_socket = icmp::Socket::new(
        icmp::PacketBuffer::new(&mut icmp_in_meta[..], &mut icmp_in[..]),
        icmp::PacketBuffer::new(&mut icmp_out_meta[..], &mut icmp_out[..]),
    );
    let ident = stamp() as u16;
    icmp_socket.bind(icmp::Endpoint::Ident(ident)).expect("a fresh socket binds");
    let icmp_handle = sockets.add(icmp_socket);

    let (mut udp_in, mut udp_out) = ([0; 32768], [0; 32768]);
    let (mut udp_in_meta, mut udp_out_meta) =
        ([udp::PacketMetadata::EMPTY; 32], [udp::PacketMetadata::EMPTY; 32]);
    let mut udp_socket = udp::Socket::new(
        udp::PacketBuffer::new(&mut udp_in_meta[..], &mut udp_in[..]),
        udp::PacketBuffer::new(&mut udp_out_meta[..], &mut udp_out[..]),
    );
    udp_socket.bind(ECHO_PORT).expect("a fresh socket binds");
    let udp_handle = sockets.add(udp_socket);

    let mut queries = [const { None }; 1];
    let dns_handle = sockets.add(dns::Socket::new(&[], &mut queries[..]));

    let host_name = line
        .value("hostname")
        .map(|name| DhcpOption { kind: OPTION_HOST_NAME, data: name.as_bytes() });
    let mut addressing = match static_address(line) {
        Some(address) => {
            configure(&mut interface, sockets.get_mut(dns_handle), &address);
            say!("static {address}");
            Addressing::Done
        }
        None => {
            let mut socket = dhcpv4::Socket::new();
            socket.set_outgoing_options(host_name.as_slice());
            socket.set_parameter_request_list(&REQUESTED);
            let mut retry = socket.get_retry_config();
            retry.discover_timeout = Duration::from_secs(2);
            socket.set_retry_config(retry);
            Addressing::Dhcp(sockets.add(socket))
        }
    };

    let seconds = |key, default| Duration::from_secs(line.number(key).unwrap_or(default).into());
    let patience = seconds("timeout", 30);
    let plan = Plan {
        count: line.number("count").unwrap_or(3).try_into().unwrap_or(u16::MAX),
        interval: Duration::from_millis(line.number("interval").unwrap_or(200).into()),
        patience,
        ident,
    };
    let mut pings = Pings::new(line.values("ping"), plan, icmp_handle, dns_handle);
    let once = line.has("once");
    let (mut link, mut check_link_at) = (true, clock.now());
    let mut echoed = false;

    loop {
        let now = clock.now();
        interface.poll(now, &mut network, &mut sockets);
        network.tell();
        addressing.poll(&mut interface, &mut sockets, dns_handle);
        echo(sockets.get_mut(udp_handle), &mut echoed);
        let mut wake_at = now + LINK_CHECK;
        if addressing.done() {
            match pings.poll(now, &mut interface, &mut sockets) {
                Some(at) => wake_at = wake_at.min(at),
                None if once => ports::exit(if pings.all_well { 0 } else { EXIT_PING }),
                None => {}
            }
        } else if once && now > Instant::ZERO + patience {
            say!("error no address after {} s", patience.secs());
            ports::exit(EXIT_ADDRESS);
        }
        if now >= check_link_at {
            check_link_at = now + LINK_CHECK;
            if network.link_up() != link {
                link = !link;
                say!("link {}", if link { "up" } else { "down" });
            }
        }
        if let Some(at) = interface.poll_at(now, &sockets) {
            wake_at = wake_at.min(at);
        }
        let now = clock.now();
        if wake_at > now && !network.has_news() {
            ports::idle((wake_at - now).total_micros() as u32);
        }
    }
}

/// Where the address comes from, and whether there is one.
enum Addressing {
    Dhcp(SocketHandle),
    Bound(SocketHandle),
    Done,
}

impl Addressing {
    fn done(&self) -> bool {
        !matches!(self, Self::Dhcp(_))
    }

    fn poll(&mut self, interface: &mut Interface, sockets: &mut SocketSet<'_>, dns: SocketHandle) {
        let (Self::Dhcp(handle) | Self::Bound(handle)) = *self else { return };
        let address = match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => Some(Address {
                address: config.address,
                router: config.router,
                dns: config.dns_servers.first().copied(),
                server: Some(config.server.identifier),
            }),
        };
        match address {
            Some(address) => {
                configure(interface, sockets.get_mut(dns), &address);
                say!("dhcp {address}");
                *self = Self::Bound(handle);
            }
            None => {
                if self.done() {
                    say!("dhcp lost");
                }
                interface.update_ip_addrs(|addresses| addresses.clear());
                interface.routes_mut().remove_default_ipv4_route();
                *self = Self::Dhcp(handle);
            }
        }
    }
}

struct Address {
    address: Ipv4Cidr,
    router: Option<Ipv4Address>,
    dns: Option<Ipv4Address>,
    server: Option<Ipv4Address>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address={} prefix={}", self.address.address(), self.address.prefix_len())?;
        for (key, value) in [("router", self.router), ("dns", self.dns), ("server", self.server)] {
            match value {
                Some(value) => write!(f, " {key}={value}")?,
                None => write!(f, " {key}=none")?,
            }
        }
        Ok(())
    }
}

/// `address=A.B.C.D/LEN router=.. dns=..`, for networks without DHCP.
fn static_address(line: &CommandLine) -> Option<Address> {
    let (address, prefix) = line.value("address")?.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let value = |key| line.value(key).and_then(|value| value.parse().ok());
    Some(Address {
        address: Ipv4Cidr::new(address.parse().ok()?, prefix),
        router: value("router"),
        dns: value("dns"),
        server: None,
    })
}

fn configure(interface: &mut Interface, dns: &mut dns::Socket<'_>, address: &Address) {
    interface.update_ip_addrs(|addresses| {
        addresses.clear();
        let _ = addresses.push(IpCidr::Ipv4(address.address));
    });
    interface.routes_mut().remove_default_ipv4_route();
    if let Some(router) = address.router {
        let _ = interface.routes_mut().add_default_ipv4_route(router);
    }
    let server = address.dns.map(IpAddress::Ipv4);
    dns.update_servers(server.as_slice());
}

/// RFC 862: every datagram goes back where it came from.
fn echo(socket: &mut udp::Socket<'_>, echoed: &mut bool) {
    let mut data = [0; 2048];
    while socket.can_send() {
        let Ok((len, from)) = socket.recv_slice(&mut data) else { return };
        if !*echoed {
            *echoed = true;
            say!("echo from={} bytes={len}", from.endpoint);
        }
        // A full buffer drops, as UDP may.
        let _ = socket.send_slice(&data[..len], from.endpoint);
    }
}
