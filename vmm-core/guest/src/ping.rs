//! The pings of the command line, one target after the other.

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{dns, icmp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    DnsQueryType, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpAddress, Ipv4Address,
};

use crate::say;

/// What each target gets.
#[derive(Clone, Copy)]
pub struct Plan {
    pub count: u16,
    pub interval: Duration,
    /// How long a name may stay unknown.
    pub patience: Duration,
    pub ident: u16,
}

/// An echo that is not answered by then is lost. Longer than smoltcp's pause of a second between
/// two neighbour requests, during which the first echo to a new neighbour waits.
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);
const RESOLVE_EVERY: Duration = Duration::from_millis(500);
const MOST: usize = 256;

enum State {
    Resolving { query: Option<dns::QueryHandle>, ask_at: Instant, give_up_at: Instant },
    Echoing(Echoing),
}

struct Echoing {
    address: Ipv4Address,
    sent: u16,
    received: u16,
    send_at: Instant,
}

/// The pings. `targets` are addresses or names.
pub struct Pings<T> {
    targets: T,
    plan: Plan,
    icmp: SocketHandle,
    dns: SocketHandle,
    current: Option<(&'static str, State)>,
    /// When each echo to the current target left, until it is answered.
    pending: [Option<Instant>; MOST],
    /// Everything that was sent was answered, and every name was known.
    pub all_well: bool,
}

impl<T: Iterator<Item = &'static str>> Pings<T> {
    pub fn new(targets: T, plan: Plan, icmp: SocketHandle, dns: SocketHandle) -> Self {
        let plan = Plan { count: plan.count.min(MOST as u16), ..plan };
        Self { targets, plan, icmp, dns, current: None, pending: [None; MOST], all_well: true }
    }

    /// Does what is due. Returns when it wants to be called again at the latest, `None` when all
    /// is done.
    pub fn poll(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        sockets: &mut SocketSet<'_>,
    ) -> Option<Instant> {
        if self.current.is_none() {
            let target = self.targets.next()?;
            self.current = Some((target, self.begin(target, now)));
        }
        let (target, state) = self.current.as_mut()?;
        let target = *target;
        match state {
            State::Resolving { .. } => {
                match resolve(state, target, now, interface, sockets.get_mut(self.dns)) {
                    Resolved::Later(at) => return Some(at),
                    Resolved::Known(address) => {
                        say!("resolve name={target} address={address}");
                        *state = State::Echoing(Echoing::new(address, now));
                    }
                    Resolved::Never => {
                        say!("resolve name={target} failed");
                        say!("ping done target={target} sent=0 received=0");
                        self.all_well = false;
                        self.current = None;
                    }
                }
                Some(now)
            }
            State::Echoing(echoing) => {
                let socket = sockets.get_mut(self.icmp);
                let next = echoing.poll(target, self.plan, now, socket, &mut self.pending);
                if next.is_none() {
                    let Echoing { sent, received, address, .. } = *echoing;
                    say!(
                        "ping done target={target} sent={sent} received={received} address={address}"
                    );
                    self.all_well &= sent == received;
                    self.current = None;
                }
                Some(next.unwrap_or(now))
            }
        }
    }

    fn begin(&self, target: &'static str, now: Instant) -> State {
        match target.parse() {
            Ok(address) => State::Echoing(Echoing::new(address, now)),
            Err(_) => {
                State::Resolving { query: None, ask_at: now, give_up_at: now + self.plan.patience }
            }
        }
    }
}

enum Resolved {
    Known(Ipv4Address),
    Later(Instant),
    Never,
}

fn resolve(
    state: &mut State,
    name: &str,
    now: Instant,
    interface: &mut Interface,
    socket: &mut dns::Socket<'_>,
) -> Resolved {
    let State::Resolving { query, ask_at, give_up_at } = state else { return Resolved::Never };
    if let Some(handle) = *query {
        match socket.get_query_result(handle) {
            Ok(addresses) => {
                *query = None;
                let v4 = addresses.iter().map(|IpAddress::Ipv4(address)| *address).next();
                if let Some(address) = v4 {
                    return Resolved::Known(address);
                }
            }
            Err(dns::GetQueryResultError::Pending) if now < *give_up_at => {
                return Resolved::Later(*give_up_at);
            }
            Err(dns::GetQueryResultError::Pending) => socket.cancel_query(handle),
            Err(dns::GetQueryResultError::Failed) => *query = None,
        }
    }
    if now >= *give_up_at {
        return Resolved::Never;
    }
    if now >= *ask_at {
        *ask_at = now + RESOLVE_EVERY;
        // A name that cannot be asked for stays unknown until the patience ends.
        *query = socket.start_query(interface.context(), name, DnsQueryType::A).ok();
    }
    Resolved::Later((*ask_at).min(*give_up_at))
}

impl Echoing {
    fn new(address: Ipv4Address, now: Instant) -> Self {
        Self { address, sent: 0, received: 0, send_at: now }
    }

    fn poll(
        &mut self,
        target: &str,
        plan: Plan,
        now: Instant,
        socket: &mut icmp::Socket<'_>,
        pending: &mut [Option<Instant>; MOST],
    ) -> Option<Instant> {
        while let Ok((packet, from)) = socket.recv() {
            if let Some(sequence) = reply(packet, plan.ident)
                && from == IpAddress::Ipv4(self.address)
                && let Some(left) = pending.get_mut(usize::from(sequence)).and_then(Option::take)
            {
                self.received += 1;
                let micros = (now - left).total_micros();
                say!("ping reply target={target} seq={sequence} rtt_us={micros}");
            }
        }
        if self.sent < plan.count && now >= self.send_at && socket.can_send() {
            let echo = Icmpv4Repr::EchoRequest {
                ident: plan.ident,
                seq_no: self.sent,
                data: b"netloom-guest echo request......",
            };
            if let Ok(buffer) = socket.send(echo.buffer_len(), IpAddress::Ipv4(self.address)) {
                echo.emit(&mut Icmpv4Packet::new_unchecked(buffer), &Default::default());
                pending[usize::from(self.sent)] = Some(now);
                self.sent += 1;
                self.send_at = now + plan.interval;
            }
        }
        for left in &mut *pending {
            if left.is_some_and(|left| now >= left + ECHO_TIMEOUT) {
                *left = None;
            }
        }
        let oldest = pending.iter().flatten().min().map(|left| *left + ECHO_TIMEOUT);
        let next = (self.sent < plan.count).then_some(self.send_at);
        next.into_iter().chain(oldest).min()
    }
}

/// The sequence number of an answer to one of our echoes.
fn reply(packet: &[u8], ident: u16) -> Option<u16> {
    let packet = Icmpv4Packet::new_checked(packet).ok()?;
    let ours = packet.msg_type() == Icmpv4Message::EchoReply && packet.echo_ident() == ident;
    ours.then(|| packet.echo_seq_no())
}
