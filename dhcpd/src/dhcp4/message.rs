//! A DHCP message as it came from the wire: checked once, then read without further checks.
//!
//! The codec is our own because the messages come from hostile guests: every length is checked
//! before use, nothing recurses, and an option costs no allocation unless it was sent in several
//! instances (RFC 3396).

use std::borrow::Cow;
use std::net::Ipv4Addr;

use wire::MacAddr;

use super::drop::DropReason;

/// Octets before the options: header and magic cookie.
pub(super) const FIXED: usize = 240;
pub(super) const COOKIE: [u8; 4] = [99, 130, 83, 99];
pub(super) const BROADCAST_FLAG: u16 = 0x8000;

/// Option codes that the server reads or writes (RFC 2132 and the ones named).
pub(super) mod code {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const NETMASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const DNS: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const DOMAIN: u8 = 15;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const BROADCAST: u8 = 28;
    pub(crate) const REQUESTED_IP: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER_ID: u8 = 54;
    pub(crate) const PARAMETERS: u8 = 55;
    pub(crate) const MAX_SIZE: u8 = 57;
    pub(crate) const T1: u8 = 58;
    pub(crate) const T2: u8 = 59;
    pub(crate) const CLIENT_ID: u8 = 61;
    pub(crate) const TFTP_SERVER: u8 = 66;
    pub(crate) const BOOT_FILE: u8 = 67;
    /// RFC 4702
    pub(crate) const FQDN: u8 = 81;
    /// RFC 3046
    pub(crate) const RELAY_AGENT: u8 = 82;
    /// RFC 3442
    pub(crate) const ROUTES: u8 = 121;
    /// RFC 3442 under the number that Windows asks for (MS-DHCPE).
    pub(crate) const ROUTES_MS: u8 = 249;
    pub(crate) const END: u8 = 255;
}

/// DHCP message types (RFC 2132 §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

/// A client's message.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub kind: MessageType,
    pub xid: [u8; 4],
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub chaddr: MacAddr,
    pub requested: Option<Ipv4Addr>,
    pub server_id: Option<Ipv4Addr>,
    /// Seconds; `u32::MAX` asks for ever.
    pub lease_time: Option<u32>,
    pub parameters: Option<Cow<'a, [u8]>>,
    /// Option 61 of 2 to 255 octets; any other length counts as absent.
    pub client_id: Option<Cow<'a, [u8]>>,
    pub host_name: Option<Cow<'a, [u8]>>,
    pub fqdn: Option<Cow<'a, [u8]>>,
    pub relay_agent: Option<Cow<'a, [u8]>>,
    /// Largest IP datagram that the client takes, at least 576 octets.
    pub max_size: Option<u16>,
}

impl<'a> Request<'a> {
    /// Reads the UDP payload of a message to a server.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let (head, options) = bytes.split_first_chunk::<FIXED>().ok_or(DropReason::Truncated)?;
        let [op, htype, hlen, hops, ..] = *head;
        if op != 1 {
            return Err(DropReason::NotARequest);
        }
        if (htype, hlen) != (1, 6) {
            return Err(DropReason::HardwareType);
        }
        // RFC 1542 §4.1.1
        if hops > 16 {
            return Err(DropReason::Hops);
        }
        if head[236..] != COOKIE {
            return Err(DropReason::Bootp);
        }
        let chaddr = MacAddr(array(&head[28..34]));
        if !chaddr.is_station() {
            return Err(DropReason::ClientAddress);
        }
        let mut fields = Fields::default();
        fields.read(options)?;
        // RFC 2131 §4.1: options, then file, then sname.
        let overload = match fields.overload.take().as_deref() {
            None => 0,
            Some(&[value @ 1..=3]) => value,
            Some(_) => return Err(DropReason::Malformed),
        };
        if overload & 1 != 0 {
            fields.read(&head[108..236])?;
        }
        if overload & 2 != 0 {
            fields.read(&head[44..108])?;
        }
        let kind = match fields.kind.as_deref() {
            None => return Err(DropReason::Bootp),
            Some([1]) => MessageType::Discover,
            Some([3]) => MessageType::Request,
            Some([4]) => MessageType::Decline,
            Some([7]) => MessageType::Release,
            Some([8]) => MessageType::Inform,
            Some([_]) => return Err(DropReason::MessageType),
            Some(_) => return Err(DropReason::Malformed),
        };
        let unspecified = |ip: &Ipv4Addr| !ip.is_unspecified();
        Ok(Self {
            kind,
            xid: array(&head[4..8]),
            flags: u16::from_be_bytes(array(&head[10..12])),
            ciaddr: Ipv4Addr::from(array(&head[12..16])),
            giaddr: Ipv4Addr::from(array(&head[24..28])),
            chaddr,
            requested: fixed(fields.requested.as_deref())?.map(Ipv4Addr::from).filter(unspecified),
            server_id: fixed(fields.server_id.as_deref())?.map(Ipv4Addr::from),
            lease_time: fixed(fields.lease_time.as_deref())?.map(u32::from_be_bytes),
            parameters: fields.parameters,
            client_id: fields.client_id.filter(|id| (2..=255).contains(&id.len())),
            host_name: fields.host_name,
            fqdn: fields.fqdn,
            relay_agent: fields.relay_agent.filter(|agent| agent.len() <= 255),
            max_size: fixed(fields.max_size.as_deref())?
                .map(|size| u16::from_be_bytes(size).max(576)),
        })
    }
}

/// `bytes` has `N` octets at every call: they are slices of constant bounds.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// The value of an option that has `N` octets.
fn fixed<const N: usize>(value: Option<&[u8]>) -> Result<Option<[u8; N]>, DropReason> {
    value.map(|value| value.try_into().map_err(|_| DropReason::Malformed)).transpose()
}

#[derive(Default)]
struct Fields<'a> {
    kind: Option<Cow<'a, [u8]>>,
    overload: Option<Cow<'a, [u8]>>,
    requested: Option<Cow<'a, [u8]>>,
    server_id: Option<Cow<'a, [u8]>>,
    lease_time: Option<Cow<'a, [u8]>>,
    parameters: Option<Cow<'a, [u8]>>,
    client_id: Option<Cow<'a, [u8]>>,
    host_name: Option<Cow<'a, [u8]>>,
    fqdn: Option<Cow<'a, [u8]>>,
    relay_agent: Option<Cow<'a, [u8]>>,
    max_size: Option<Cow<'a, [u8]>>,
}

impl<'a> Fields<'a> {
    fn read(&mut self, area: &'a [u8]) -> Result<(), DropReason> {
        for option in Options(area) {
            let (code, value) = option?;
            let field = match code {
                code::MESSAGE_TYPE => &mut self.kind,
                code::OVERLOAD => &mut self.overload,
                code::REQUESTED_IP => &mut self.requested,
                code::SERVER_ID => &mut self.server_id,
                code::LEASE_TIME => &mut self.lease_time,
                code::PARAMETERS => &mut self.parameters,
                code::CLIENT_ID => &mut self.client_id,
                code::HOST_NAME => &mut self.host_name,
                code::FQDN => &mut self.fqdn,
                code::RELAY_AGENT => &mut self.relay_agent,
                code::MAX_SIZE => &mut self.max_size,
                _ => continue,
            };
            // RFC 3396 §7: instances of one code are one value, in order of appearance.
            match field {
                None => *field = Some(Cow::Borrowed(value)),
                Some(joined) => joined.to_mut().extend_from_slice(value),
            }
        }
        Ok(())
    }
}

/// The options of one area, until END or the area's end.
#[derive(Clone, Debug)]
pub(super) struct Options<'a>(pub &'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u8, &'a [u8]), DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&code, rest) = self.0.split_first()?;
            match code {
                code::PAD => self.0 = rest,
                code::END => {
                    self.0 = &[];
                    return None;
                }
                _ => {
                    let value = rest
                        .split_first()
                        .and_then(|(len, rest)| rest.split_at_checked(usize::from(*len)));
                    let Some((value, rest)) = value else {
                        self.0 = &[];
                        return Some(Err(DropReason::Malformed));
                    };
                    self.0 = rest;
                    return Some(Ok((code, value)));
                }
            }
        }
    }
}
