//! Building answers: fields, options in the order asked for, and the frame around them.

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::MacAddr;
use wire::udp::{UdpV4, build_ipv4};
use wire::vlan::Vid;

use super::config::{Config, LeaseTime};
use super::message::{BROADCAST_FLAG, COOKIE, MessageType, Request, code};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Clients of old want a BOOTP message's 300 octets (RFC 1542 §2.1).
const MIN_LEN: usize = 300;
/// IP and UDP headers.
const IP_UDP: usize = 28;
/// Options for a client that does not say what it wants.
const USUAL: [u8; 8] = [
    code::NETMASK,
    code::BROADCAST,
    code::ROUTER,
    code::DNS,
    code::DOMAIN,
    code::HOST_NAME,
    code::MTU,
    code::ROUTES,
];

/// What an answer says, beside the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub kind: MessageType,
    /// yiaddr; unspecified in a NAK and in the answer to an INFORM.
    pub ip: Ipv4Addr,
    /// Absent in a NAK and in the answer to an INFORM.
    pub time: Option<LeaseTime>,
    pub hostname: Option<&'a str>,
}

/// Where the request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub mac: MacAddr,
    pub src: Ipv4Addr,
    pub tag: Option<Vid>,
}

/// The whole frame that answers `request`.
pub(super) fn frame(
    config: &Config,
    request: &Request<'_>,
    origin: Origin,
    answer: &Answer<'_>,
) -> Vec<u8> {
    let message = message(config, request, answer);
    let (dst_mac, dst) = destination(request, origin, answer);
    let to = UdpV4 {
        src_mac: config.server_mac,
        dst_mac,
        vlan: origin.tag,
        src: SocketAddrV4::new(config.server, SERVER_PORT),
        dst,
        ttl: 64,
    };
    let mut frame = vec![0; message.len() + 64];
    // It fits: headers take 46 octets, and a message has less than 65,507.
    let len = build_ipv4(&mut frame, &to, &message).unwrap_or(0);
    frame.truncate(len);
    frame
}

/// RFC 2131 §4.1: who gets the answer.
fn destination(
    request: &Request<'_>,
    origin: Origin,
    answer: &Answer<'_>,
) -> (MacAddr, SocketAddrV4) {
    let broadcast = (MacAddr::BROADCAST, SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT));
    if !request.giaddr.is_unspecified() {
        (origin.mac, SocketAddrV4::new(request.giaddr, SERVER_PORT))
    } else if answer.kind == MessageType::Nak {
        broadcast
    } else if !request.ciaddr.is_unspecified() {
        (request.chaddr, SocketAddrV4::new(request.ciaddr, CLIENT_PORT))
    } else if answer.ip.is_unspecified() {
        // An INFORM without an address: the sender's (checked by the engine).
        (request.chaddr, SocketAddrV4::new(origin.src, CLIENT_PORT))
    } else if request.flags & BROADCAST_FLAG != 0 {
        broadcast
    } else {
        (request.chaddr, SocketAddrV4::new(answer.ip, CLIENT_PORT))
    }
}

fn message(config: &Config, request: &Request<'_>, answer: &Answer<'_>) -> Vec<u8> {
    let nak = answer.kind == MessageType::Nak;
    let boot = config.boot.as_ref().filter(|_| !nak);
    let mut bytes = Vec::with_capacity(MIN_LEN + 256);
    bytes.extend_from_slice(&[2, 1, 6, 0]);
    bytes.extend_from_slice(&request.xid);
    bytes.extend_from_slice(&[0, 0]);
    // RFC 2131 §4.3.2: a relay must broadcast a NAK.
    let flags = if nak { request.flags | BROADCAST_FLAG } else { request.flags };
    bytes.extend_from_slice(&flags.to_be_bytes());
    let ciaddr =
        if answer.kind == MessageType::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED };
    bytes.extend_from_slice(&ciaddr.octets());
    bytes.extend_from_slice(&answer.ip.octets());
    let next = boot.map_or(Ipv4Addr::UNSPECIFIED, |boot| boot.server.unwrap_or(config.server));
    bytes.extend_from_slice(&next.octets());
    bytes.extend_from_slice(&request.giaddr.octets());
    bytes.extend_from_slice(&request.chaddr.0);
    let text = |bytes: &mut Vec<u8>, text: Option<&str>, end: usize| {
        bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
        bytes.resize(end, 0);
    };
    bytes.resize(44, 0);
    // Lengths were checked by [`Config::check`].
    text(&mut bytes, boot.and_then(|b| b.server_name.as_deref()), 108);
    text(&mut bytes, boot.map(|b| b.file.as_str()), 236);
    bytes.extend_from_slice(&COOKIE);
    options(&mut bytes, config, request, answer);
    bytes.resize(bytes.len().max(MIN_LEN), code::PAD);
    bytes
}

/// Options by importance: what does not fit into the client's largest datagram is left out from
/// the end, except the identifiers that close the message.
fn options(bytes: &mut Vec<u8>, config: &Config, request: &Request<'_>, answer: &Answer<'_>) {
    let mut tail = Vec::new();
    // RFC 6842, and RFC 3046 §2.2: the relay's option comes last.
    if let Some(id) = &request.client_id {
        put(&mut tail, code::CLIENT_ID, id);
    }
    if let Some(agent) = &request.relay_agent {
        put(&mut tail, code::RELAY_AGENT, agent);
    }
    tail.push(code::END);
    let limit = usize::from(request.max_size.unwrap_or(576).min(1500)) - IP_UDP - tail.len();
    put(bytes, code::MESSAGE_TYPE, &[answer.kind as u8]);
    put(bytes, code::SERVER_ID, &config.server.octets());
    if let Some(time) = answer.time {
        let seconds = lease_seconds(time);
        put(bytes, code::LEASE_TIME, &seconds.to_be_bytes());
        if time != LeaseTime::Infinite {
            // RFC 2131 §4.4.5
            put(bytes, code::T1, &(seconds / 2).to_be_bytes());
            put(bytes, code::T2, &(seconds - seconds / 8).to_be_bytes());
        }
    }
    if answer.kind != MessageType::Nak {
        let mut seen = [false; 256];
        let mut optional = |bytes: &mut Vec<u8>, code: u8| {
            if std::mem::replace(&mut seen[usize::from(code)], true) {
                return;
            }
            if let Some(value) = value(code, config, answer) {
                let before = bytes.len();
                put(bytes, code, &value);
                if bytes.len() > limit {
                    bytes.truncate(before);
                }
            }
        };
        for code in request.parameters.as_deref().unwrap_or(&USUAL) {
            optional(bytes, *code);
        }
        if let Some(fqdn) = request.fqdn.as_deref().and_then(|f| fqdn(f, config, answer)) {
            let before = bytes.len();
            put(bytes, code::FQDN, &fqdn);
            if bytes.len() > limit {
                bytes.truncate(before);
            }
        }
    }
    bytes.append(&mut tail);
}

/// Seconds on the wire; `u32::MAX` is for ever.
fn lease_seconds(time: LeaseTime) -> u32 {
    match time {
        LeaseTime::Infinite => u32::MAX,
        LeaseTime::Finite(time) => u32::try_from(time.as_secs()).unwrap_or(u32::MAX),
    }
}

/// The value of an option that a client may ask for.
fn value(code: u8, config: &Config, answer: &Answer<'_>) -> Option<Vec<u8>> {
    match code {
        code::NETMASK => Some(config.net.netmask().octets().to_vec()),
        code::BROADCAST => Some(config.net.broadcast().octets().to_vec()),
        code::ROUTER => config.router.map(|ip| ip.octets().to_vec()),
        code::DNS => {
            let octets: Vec<u8> = config.dns.iter().flat_map(Ipv4Addr::octets).collect();
            (!octets.is_empty()).then_some(octets)
        }
        code::HOST_NAME => answer.hostname.map(|name| name.as_bytes().to_vec()),
        code::DOMAIN => config.domain.as_ref().map(|name| name.as_bytes().to_vec()),
        code::MTU => config.mtu.map(|mtu| mtu.to_be_bytes().to_vec()),
        code::TFTP_SERVER => {
            let boot = config.boot.as_ref()?;
            let address = || boot.server.unwrap_or(config.server).to_string();
            Some(boot.server_name.clone().unwrap_or_else(address).into_bytes())
        }
        code::BOOT_FILE => config.boot.as_ref().map(|boot| boot.file.clone().into_bytes()),
        code::ROUTES | code::ROUTES_MS => routes(config),
        _ => None,
    }
}

/// RFC 3442. A client that takes these ignores option 3, so the default route is repeated here.
fn routes(config: &Config) -> Option<Vec<u8>> {
    if config.routes.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for route in &config.routes {
        let len = route.net.prefix_len();
        bytes.push(len);
        bytes.extend_from_slice(&route.net.network().octets()[..usize::from(len.div_ceil(8))]);
        bytes.extend_from_slice(&route.gateway.octets());
    }
    if let Some(router) = config.router {
        bytes.push(0);
        bytes.extend_from_slice(&router.octets());
    }
    Some(bytes)
}

const FQDN_S: u8 = 1;
const FQDN_O: u8 = 2;
const FQDN_E: u8 = 4;
const FQDN_N: u8 = 8;

/// RFC 4702 §4: the name that the server registered, in the client's encoding.
fn fqdn(asked: &[u8], config: &Config, answer: &Answer<'_>) -> Option<Vec<u8>> {
    let (flags, name) = (*asked.first()?, answer.hostname?);
    let name = match &config.domain {
        Some(domain) if !name.contains('.') => format!("{name}.{domain}"),
        _ => name.to_owned(),
    };
    let mine = match (flags & FQDN_N != 0, flags & FQDN_S != 0) {
        (true, _) => FQDN_N,
        (false, true) => FQDN_S,
        (false, false) => FQDN_S | FQDN_O,
    };
    let mut bytes = vec![mine | flags & FQDN_E, 255, 255];
    if flags & FQDN_E == 0 {
        bytes.extend_from_slice(name.as_bytes());
    } else {
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).ok()?);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
    }
    (bytes.len() <= 255).then_some(bytes)
}

/// The name in a client's option 81, as text.
pub(super) fn fqdn_name(value: &[u8]) -> Option<Vec<u8>> {
    let (head, name) = value.split_at_checked(3)?;
    if head[0] & FQDN_E == 0 {
        return Some(name.to_vec());
    }
    // Uncompressed labels; a partial name may lack the root label (RFC 4702 §2.3.1).
    let mut text = Vec::new();
    let mut rest = name;
    while let Some((&len, after)) = rest.split_first() {
        if len == 0 {
            break;
        }
        let (label, after) = after.split_at_checked(usize::from(len))?;
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label);
        rest = after;
    }
    Some(text)
}

/// Appends an option, in several instances when it is longer than one can be (RFC 3396 §5).
fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    for chunk in value.chunks(255) {
        // At most 255: the size of a chunk.
        let len = u8::try_from(chunk.len()).unwrap_or(u8::MAX);
        bytes.extend_from_slice(&[code, len]);
        bytes.extend_from_slice(chunk);
    }
}
