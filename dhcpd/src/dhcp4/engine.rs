//! The server's decisions: one message in, at most one answer out.
//!
//! Invariants: an address has one holder (see `table`); the pool's bits agree with the table; an
//! address outside the subnet, the server's own and the subnet's edges are never given; a client
//! that another port or MAC claims to be neither loses nor gains a lease by it.

use std::net::Ipv4Addr;
use std::time::Duration;

use uuid::Uuid;
use wire::udp::parse_ipv4;

use super::config::{Config, ConfigError, LeaseTime, is_host};
use super::convert::{hash, lease_of, slot_of, tag_of};
use super::drop::{Counters, DropReason};
use super::hosts::{Host, Hosts};
use super::message::{MessageType, Request};
use super::pool::Pool;
use super::reply::{self, Answer, Origin};
use super::table::{Client, Slot, State, Table};
use crate::event::{LeaseEvent, Removal};
use crate::lease::{Change, Lease, LeaseState};
use crate::time::Now;

/// How long an offered address is kept for its client.
const OFFER_HOLD: Duration = Duration::from_secs(60);
/// When every address is in use, an offer that its client has not taken for this long goes to the
/// next one.
const OFFER_MIN: Duration = Duration::from_secs(3);
/// How long a declined address is given to nobody.
const QUARANTINE: Duration = Duration::from_secs(600);
/// A client may ask for a shorter lease, down to this.
const MIN_LEASE: Duration = Duration::from_secs(120);
/// Addresses of one MAC, under different client identifiers.
const MAX_PER_MAC: usize = 8;
/// Between two [`LeaseEvent::Exhausted`].
const EXHAUSTED_EVERY: Duration = Duration::from_secs(60);

/// The port and VLAN that a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IngressId {
    pub port: Uuid,
    pub vlan: u16,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub to: IngressId,
    pub frame: Vec<u8>,
    /// It promises what [`Actions::changes`] say: send it only when they are on disk.
    pub durable: bool,
}

/// What to do. The caller appends the changes to the store, makes them durable, then sends the
/// answers and tells the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub replies: Vec<Reply>,
    pub changes: Vec<Change>,
    pub events: Vec<LeaseEvent>,
}

/// The DHCPv4 server of one subnet.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    hosts: Hosts,
    pool: Pool,
    table: Table,
    counters: Counters,
    told_exhausted: Option<Duration>,
}

impl Engine {
    /// Starts with the leases that the store had. Those that are over, or not of this subnet, are
    /// left out.
    ///
    /// # Errors
    /// The configuration breaks a rule.
    pub fn new(
        config: Config,
        leases: impl IntoIterator<Item = Lease>,
        now: Now,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let mut engine = Self {
            hosts: Hosts::new(&config),
            pool: Pool::new(&config),
            table: Table::default(),
            counters: Counters::default(),
            told_exhausted: None,
            config,
        };
        for lease in leases {
            if let Some(slot) = slot_of(lease, now)
                && is_host(engine.config.net, slot.ip)
                && slot.ip != engine.config.server
            {
                engine.put(slot);
            }
        }
        Ok(engine)
    }

    /// Takes a new configuration. Leases stay, except those of addresses that no client can have
    /// any more; a client whose lease the new configuration does not allow is told at its next
    /// renewal.
    ///
    /// # Errors
    /// The configuration breaks a rule; the old one stays.
    pub fn reload(
        &mut self,
        config: Config,
        now: Now,
        out: &mut Actions,
    ) -> Result<(), ConfigError> {
        config.check()?;
        self.hosts = Hosts::new(&config);
        self.pool = Pool::new(&config);
        self.config = config;
        let ips: Vec<Ipv4Addr> = self.table.iter().map(|slot| slot.ip).collect();
        for ip in ips {
            if is_host(self.config.net, ip) && ip != self.config.server {
                self.pool.set_used(ip, true);
            } else {
                self.end(ip, Removal::Reconfigured, now, out);
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a frame or an answer that the caller had to drop.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.counters.drop(reason);
    }

    /// Leases and quarantined addresses (not offers), in no order.
    pub fn leases(&self, now: Now) -> impl Iterator<Item = Lease> {
        self.table.iter().filter_map(move |slot| lease_of(slot, now))
    }

    /// When [`Self::expire`] has something to do next, on the monotonic clock.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        self.table.next_end()
    }

    /// Ends what is over.
    pub fn expire(&mut self, now: Now, out: &mut Actions) {
        while let Some(slot) = self.table.take_ended(now.mono) {
            self.ended(&slot, Removal::Expired, now, out);
        }
    }

    /// Frees every address that was taken through a port.
    pub fn port_removed(&mut self, port: Uuid, now: Now, out: &mut Actions) {
        let ips: Vec<Ipv4Addr> = self.table.of_port(port).map(|slot| slot.ip).collect();
        for ip in ips {
            self.end(ip, Removal::PortRemoved, now, out);
        }
    }

    /// Takes one frame. Whatever is in it, the worst that happens is that it is dropped and
    /// counted.
    pub fn handle(&mut self, now: Now, from: IngressId, frame: &[u8], out: &mut Actions) {
        self.expire(now, out);
        if let Err(reason) = self.answer(now, from, frame, out) {
            self.counters.drop(reason);
        }
    }

    fn answer(
        &mut self,
        now: Now,
        from: IngressId,
        frame: &[u8],
        out: &mut Actions,
    ) -> Result<(), DropReason> {
        let datagram = parse_ipv4(frame).map_err(|_| DropReason::NotUdp)?;
        if datagram.dst.port() != 67 {
            return Err(DropReason::NotToServer);
        }
        let (src, dst) = (*datagram.src.ip(), *datagram.dst.ip());
        if !datagram.src_mac.is_station()
            || datagram.src_mac == self.config.server_mac
            || src.is_multicast()
            || src.is_broadcast()
            || src.is_loopback()
            || src == self.config.server
        {
            return Err(DropReason::Source);
        }
        let request = Request::parse(datagram.payload)?;
        self.check_relay(&request)?;
        if request.ciaddr == self.config.server || request.chaddr == self.config.server_mac {
            return Err(DropReason::Source);
        }
        let origin = Origin { mac: datagram.src_mac, src, tag: tag_of(frame) };
        let mut exchange = Exchange { now, from, origin, unicast: dst == self.config.server, out };
        match request.kind {
            MessageType::Discover => {
                self.counters.discovers += 1;
                self.discover(&request, &mut exchange)
            }
            MessageType::Request => {
                self.counters.requests += 1;
                self.request(&request, &mut exchange)
            }
            MessageType::Decline => {
                self.counters.declines += 1;
                self.decline(&request, &mut exchange)
            }
            MessageType::Release => {
                self.counters.releases += 1;
                self.release(&request, &mut exchange)
            }
            MessageType::Inform => {
                self.counters.informs += 1;
                self.inform(&request, &mut exchange)
            }
            MessageType::Offer | MessageType::Ack | MessageType::Nak => {
                Err(DropReason::MessageType)
            }
        }
    }

    fn check_relay(&self, request: &Request<'_>) -> Result<(), DropReason> {
        let relayed = !request.giaddr.is_unspecified();
        if (relayed || request.relay_agent.is_some()) && !self.config.relay {
            return Err(DropReason::Relay);
        }
        if relayed && !is_host(self.config.net, request.giaddr) {
            return Err(DropReason::RelaySubnet);
        }
        Ok(())
    }

    /// RFC 2131 §4.3.1
    fn discover(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), DropReason> {
        let asks = Asks::new(request, &self.config, &self.hosts);
        let ip = self.choose(request, &asks, exchange)?;
        let time = self.lease_time(ip, &asks, request.lease_time);
        let hostname = asks.hostname.clone();
        let bound = self.table.get(ip).is_some_and(|slot| slot.state == State::Bound);
        if !bound {
            self.make_room(ip, asks.client, exchange)?;
            let mut offers = self.table.of_mac(asks.client.mac).filter(|slot| {
                slot.state == State::Offered && slot.ip != ip && slot.is_exactly(asks.client)
            });
            let other = offers.next().map(|slot| slot.ip);
            drop(offers);
            if let Some(other) = other {
                self.take(other);
            }
            self.put(Slot {
                ip,
                mac: asks.client.mac,
                client_id: asks.client.id.map(Into::into),
                hostname: hostname.clone(),
                port: exchange.from.port,
                time,
                state: State::Offered,
                ends: Some(exchange.now.mono + OFFER_HOLD),
            });
        }
        let hostname = hostname.as_deref();
        let answer = Answer { kind: MessageType::Offer, ip, time: Some(time), hostname };
        self.reply(request, exchange, &answer, false);
        Ok(())
    }

    /// The address to offer: the reserved one, the client's own, the one that it asks for, or the
    /// one that its hash points to, so that a client gets the same address again even when all is
    /// forgotten.
    fn choose(
        &mut self,
        request: &Request<'_>,
        asks: &Asks<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<Ipv4Addr, DropReason> {
        if let Some(host) = &asks.host {
            match self.table.get(host.ip) {
                Some(slot) if !host.may_take(slot, asks.client, exchange.from.port) => {
                    if let Some(holder) = lease_of(slot, exchange.now) {
                        exchange
                            .out
                            .events
                            .push(LeaseEvent::ReservationHeld { ip: host.ip, holder });
                    }
                }
                _ => return Ok(host.ip),
            }
        }
        if let Some(slot) = self.table.find(asks.client, exchange.from.port)
            && self.pool.is_dynamic(slot.ip)
        {
            return Ok(slot.ip);
        }
        if let Some(ip) = request.requested
            && self.pool.is_dynamic(ip)
            && self.table.get(ip).is_none()
        {
            return Ok(ip);
        }
        if self.pool.is_empty() {
            return Err(DropReason::NoRange);
        }
        let hash = hash(asks.client);
        if let Some(ip) = self.pool.choose(hash) {
            return Ok(ip);
        }
        let now = exchange.now.mono;
        if let Some(slot) = self.table.oldest_offer()
            && slot.ends.is_some_and(|ends| ends + OFFER_MIN <= now + OFFER_HOLD)
        {
            let ip = slot.ip;
            self.take(ip);
            if let Some(ip) = self.pool.choose(hash) {
                return Ok(ip);
            }
        }
        if self.told_exhausted.is_none_or(|told| told + EXHAUSTED_EVERY <= now) {
            self.told_exhausted = Some(now);
            exchange.out.events.push(LeaseEvent::Exhausted);
        }
        Err(DropReason::Exhausted)
    }

    /// RFC 2131 §4.3.2
    fn request(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), DropReason> {
        let asks = Asks::new(request, &self.config, &self.hosts);
        if request.server_id.is_some_and(|id| id != self.config.server) {
            // The client took another server's offer: ours is free again.
            let mine = self
                .table
                .find(asks.client, exchange.from.port)
                .filter(|slot| slot.state == State::Offered);
            if let Some(ip) = mine.map(|slot| slot.ip) {
                self.take(ip);
            }
            return Err(DropReason::OtherServer);
        }
        let renewing = !request.ciaddr.is_unspecified();
        let wanted = if renewing { Some(request.ciaddr) } else { request.requested };
        let ip = wanted.ok_or(DropReason::NoAddress)?;
        if renewing && exchange.unicast && !self.config.net.contains(&ip) {
            return Err(DropReason::ForeignAddress);
        }
        if !self.may_have(ip, &asks, exchange.from.port) {
            self.nak(request, exchange);
            return Ok(());
        }
        self.make_room(ip, asks.client, exchange)?;
        let time = self.lease_time(ip, &asks, request.lease_time);
        self.bind(ip, &asks, time, exchange);
        let hostname = self.table.get(ip).and_then(|slot| slot.hostname.clone());
        let hostname = hostname.as_deref();
        let answer = Answer { kind: MessageType::Ack, ip, time: Some(time), hostname };
        self.reply(request, exchange, &answer, true);
        Ok(())
    }

    /// The client may be bound to the address: nobody else has it, and the configuration gives it
    /// to this client. A client that we do not know is told yes when the address is free; so a
    /// lost lease file is rebuilt from renewals.
    fn may_have(&self, ip: Ipv4Addr, asks: &Asks<'_>, port: Uuid) -> bool {
        let slot = self.table.get(ip);
        if let Some(host) = &asks.host {
            if host.ip == ip {
                return slot.is_none_or(|slot| host.may_take(slot, asks.client, port));
            }
            let reserved = self.table.get(host.ip);
            if reserved.is_none_or(|slot| host.may_take(slot, asks.client, port)) {
                return false;
            }
        }
        self.pool.is_dynamic(ip) && slot.is_none_or(|slot| slot.is_of(asks.client, port))
    }

    fn bind(
        &mut self,
        ip: Ipv4Addr,
        asks: &Asks<'_>,
        time: LeaseTime,
        exchange: &mut Exchange<'_>,
    ) {
        let now = exchange.now;
        let old = self.take(ip);
        let kept = old.as_ref().filter(|slot| slot.state == State::Bound);
        let slot = Slot {
            ip,
            mac: asks.client.mac,
            client_id: match asks.client.id {
                Some(id) => Some(id.into()),
                None => kept.and_then(|slot| slot.client_id.clone()),
            },
            hostname: asks
                .hostname
                .clone()
                .or_else(|| old.as_ref().and_then(|slot| slot.hostname.clone())),
            port: exchange.from.port,
            time,
            state: State::Bound,
            ends: match time {
                LeaseTime::Finite(time) => Some(now.mono + time),
                LeaseTime::Infinite => None,
            },
        };
        if kept.is_none()
            && let Some(twin) = self.table.twin(asks.client)
            && let Some(other) = lease_of(twin, now)
        {
            let port = exchange.from.port;
            exchange.out.events.push(LeaseEvent::DuplicateClientId { ip, port, other });
        }
        if let Some(from) = kept.map(|slot| slot.port).filter(|from| *from != slot.port)
            && let Some(lease) = lease_of(&slot, now)
        {
            exchange.out.events.push(LeaseEvent::Moved { lease, from });
        }
        // The client's other addresses: it has one under one identity.
        let others = self.table.of_mac(asks.client.mac);
        let others =
            others.filter(|s| s.state != State::Quarantined && s.is_exactly(slot.client()));
        let others: Vec<Ipv4Addr> = others.map(|slot| slot.ip).collect();
        let added = kept.is_none();
        if let Some(lease) = lease_of(&slot, now) {
            exchange.out.changes.push(Change::Put(lease.clone()));
            let event = if added { LeaseEvent::Added(lease) } else { LeaseEvent::Renewed(lease) };
            exchange.out.events.push(event);
        }
        self.put(slot);
        for other in others {
            self.end(other, Removal::Replaced, now, exchange.out);
        }
    }

    /// RFC 2131 §4.3.3
    fn decline(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), DropReason> {
        if request.server_id.is_some_and(|id| id != self.config.server) {
            return Err(DropReason::OtherServer);
        }
        let ip = request.requested.ok_or(DropReason::NoAddress)?;
        let mut slot = self.held(ip, request, exchange)?.clone();
        let was_bound = slot.state == State::Bound;
        let lease = lease_of(&slot, exchange.now);
        slot.state = State::Quarantined;
        slot.hostname = None;
        slot.time = LeaseTime::Finite(QUARANTINE);
        slot.ends = Some(exchange.now.mono + QUARANTINE);
        if let Some(quarantined) = lease_of(&slot, exchange.now) {
            exchange.out.changes.push(Change::Put(quarantined.clone()));
            if was_bound && let Some(lease) = lease {
                let why = Removal::Declined;
                exchange.out.events.push(LeaseEvent::Removed { lease, why });
            }
            exchange.out.events.push(LeaseEvent::Quarantined(quarantined));
        }
        self.put(slot);
        Ok(())
    }

    /// RFC 2131 §4.3.4
    fn release(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), DropReason> {
        if request.server_id.is_some_and(|id| id != self.config.server) {
            return Err(DropReason::OtherServer);
        }
        let ip = self.held(request.ciaddr, request, exchange)?.ip;
        self.end(ip, Removal::Released, exchange.now, exchange.out);
        Ok(())
    }

    /// The slot that this client took through this port: nobody gives up what another one has.
    fn held(
        &self,
        ip: Ipv4Addr,
        request: &Request<'_>,
        exchange: &Exchange<'_>,
    ) -> Result<&Slot, DropReason> {
        let client = Client { mac: request.chaddr, id: request.client_id.as_deref() };
        self.table
            .get(ip)
            .filter(|slot| slot.state != State::Quarantined)
            .filter(|slot| slot.is_exactly(client) && slot.port == exchange.from.port)
            .ok_or(DropReason::NotHolder)
    }

    /// RFC 2131 §4.3.5
    fn inform(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), DropReason> {
        let own = Some(request.ciaddr).filter(|ip| !ip.is_unspecified());
        let ip = own.unwrap_or(exchange.origin.src);
        if !is_host(self.config.net, ip) {
            return Err(DropReason::ForeignAddress);
        }
        let hostname = self.table.get(ip).filter(|slot| slot.mac == request.chaddr);
        let hostname = hostname.and_then(|slot| slot.hostname.clone());
        let answer = Answer {
            kind: MessageType::Ack,
            ip: Ipv4Addr::UNSPECIFIED,
            time: None,
            hostname: hostname.as_deref(),
        };
        self.reply(request, exchange, &answer, false);
        Ok(())
    }

    fn nak(&mut self, request: &Request<'_>, exchange: &mut Exchange<'_>) {
        let ip = Ipv4Addr::UNSPECIFIED;
        let answer = Answer { kind: MessageType::Nak, ip, time: None, hostname: None };
        self.reply(request, exchange, &answer, false);
    }

    fn reply(
        &mut self,
        request: &Request<'_>,
        exchange: &mut Exchange<'_>,
        answer: &Answer<'_>,
        durable: bool,
    ) {
        match answer.kind {
            MessageType::Offer => self.counters.offers += 1,
            MessageType::Nak => self.counters.naks += 1,
            _ => self.counters.acks += 1,
        }
        let frame = reply::frame(&self.config, request, exchange.origin, answer);
        exchange.out.replies.push(Reply { to: exchange.from, frame, durable });
    }

    fn lease_time(&self, ip: Ipv4Addr, asks: &Asks<'_>, wished: Option<u32>) -> LeaseTime {
        let host = asks.host.as_ref().filter(|host| host.ip == ip).and_then(|host| host.lease);
        let most = host.or_else(|| self.pool.lease(ip)).unwrap_or(self.config.lease);
        match wished {
            None | Some(u32::MAX) => most,
            Some(wished) => {
                let wished = Duration::from_secs(u64::from(wished)).max(MIN_LEASE);
                most.min(LeaseTime::Finite(wished))
            }
        }
    }

    /// Sees that the client may take an address that it has not yet, giving up an offer of the
    /// same port or MAC if need be.
    fn make_room(
        &mut self,
        ip: Ipv4Addr,
        client: Client<'_>,
        exchange: &Exchange<'_>,
    ) -> Result<(), DropReason> {
        let port = exchange.from.port;
        let slot = self.table.get(ip);
        if slot.is_none_or(|slot| slot.mac != client.mac)
            && self.table.of_mac(client.mac).count() >= MAX_PER_MAC
        {
            let oldest = oldest_offer(self.table.of_mac(client.mac), ip);
            self.take(oldest.ok_or(DropReason::ClientLimit)?);
        }
        let Some(max) = self.config.max_per_port else { return Ok(()) };
        if self.table.get(ip).is_none_or(|slot| slot.port != port)
            && self.table.count_of_port(port) >= max
        {
            let oldest = oldest_offer(self.table.of_port(port), ip);
            self.take(oldest.ok_or(DropReason::PortLimit)?);
        }
        Ok(())
    }

    fn put(&mut self, slot: Slot) {
        self.pool.set_used(slot.ip, true);
        self.table.put(slot);
    }

    fn take(&mut self, ip: Ipv4Addr) -> Option<Slot> {
        self.pool.set_used(ip, false);
        self.table.take(ip)
    }

    fn end(&mut self, ip: Ipv4Addr, why: Removal, now: Now, out: &mut Actions) {
        if let Some(slot) = self.table.take(ip) {
            self.ended(&slot, why, now, out);
        }
    }

    fn ended(&mut self, slot: &Slot, why: Removal, now: Now, out: &mut Actions) {
        self.pool.set_used(slot.ip, false);
        if let Some(lease) = lease_of(slot, now) {
            out.changes.push(Change::Remove(lease.ip));
            if lease.state == LeaseState::Bound {
                out.events.push(LeaseEvent::Removed { lease, why });
            }
        }
    }
}

/// What surrounds one message.
struct Exchange<'a> {
    now: Now,
    from: IngressId,
    origin: Origin,
    /// Sent to our address.
    unicast: bool,
    out: &'a mut Actions,
}

/// Who asks, under which name, and what is reserved for it.
struct Asks<'a> {
    client: Client<'a>,
    hostname: Option<String>,
    host: Option<Host>,
}

impl<'a> Asks<'a> {
    fn new(request: &'a Request<'_>, config: &Config, hosts: &Hosts) -> Self {
        let client = Client { mac: request.chaddr, id: request.client_id.as_deref() };
        let domain = config.domain.as_deref();
        let claimed = |name: &[u8]| crate::name::claimed(name, domain);
        let fqdn = request.fqdn.as_deref().and_then(reply::fqdn_name);
        let claimed = fqdn
            .as_deref()
            .and_then(claimed)
            .or_else(|| request.host_name.as_deref().and_then(claimed));
        let host = hosts.find(client.mac, claimed.as_deref());
        let hostname = host.as_ref().and_then(|host| host.name.clone()).or(claimed);
        Self { client, hostname, host }
    }
}

impl Slot {
    fn client(&self) -> Client<'_> {
        Client { mac: self.mac, id: self.client_id.as_deref() }
    }
}

fn oldest_offer<'a>(slots: impl Iterator<Item = &'a Slot>, except: Ipv4Addr) -> Option<Ipv4Addr> {
    slots
        .filter(|slot| slot.state == State::Offered && slot.ip != except)
        .min_by_key(|slot| slot.ends)
        .map(|slot| slot.ip)
}
