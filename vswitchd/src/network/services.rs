//! DHCP and DNS of a network: what its definition comes to for `dhcpd`, and what `dhcpd` tells.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{Code, Dhcp4Stats, DnsStats, EventKind, Lease, NetworkStats, Problem};
use dhcpd::{Egress, FrameIo, Ingress, LeaseEvent, Removal, Service, ServiceConfig, ServiceError};
use dhcpd::{dhcp4, dns};
use ipnet::{IpNet, Ipv4Net};
use netdef::model::{self, ForwardMode};
use uuid::Uuid;
use wire::MacAddr;

use super::undo::Undo;
use super::{Manager, problem};
use crate::log::Escaped;

/// The services of an active network.
#[derive(Debug)]
pub(super) struct Services {
    service: Mutex<Option<Service>>,
    /// Subnet of the leases.
    net: Option<Ipv4Net>,
}

impl Services {
    /// Stops answering. Blocks until the threads are gone.
    pub(super) fn stop(&self) {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(service) = service {
            service.stop();
        }
    }

    pub(super) fn port_removed(&self, port: Uuid) {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = service.as_ref() {
            service.port_removed(port);
        }
    }

    pub(super) fn dns_sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        service.as_ref().map_or(Ok(Vec::new()), Service::dns_sockets)
    }

    pub(super) fn stats(&self) -> NetworkStats {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(service) = service.as_ref() else { return NetworkStats::default() };
        NetworkStats {
            dhcp4: service.dhcp4_counters().map(|counters| dhcp4_stats(&counters)),
            dns: service.dns_counters().map(dns_stats),
        }
    }

    /// Leases that clients hold, by address; `port_name` knows the names of ports.
    pub(super) fn leases(&self, port_name: impl Fn(Uuid) -> Option<String>) -> Vec<Lease> {
        let leases = {
            let service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
            service.as_ref().map(Service::leases).unwrap_or_default()
        };
        leases
            .iter()
            .filter(|lease| lease.state == dhcpd::lease::LeaseState::Bound)
            .map(|lease| to_api(lease, self.net, &port_name))
            .collect()
    }
}

fn dhcp4_stats(counters: &dhcp4::Counters) -> Dhcp4Stats {
    let drops = counters.drops();
    Dhcp4Stats {
        discovers: counters.discovers,
        requests: counters.requests,
        declines: counters.declines,
        releases: counters.releases,
        informs: counters.informs,
        offers: counters.offers,
        acks: counters.acks,
        naks: counters.naks,
        drops: drops.map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
    }
}

fn dns_stats(counters: &dns::Counters) -> DnsStats {
    DnsStats {
        queries: counters.queries(),
        malformed: counters.malformed(),
        local: counters.local(),
        cached: counters.cached(),
        forwarded: counters.forwarded(),
        refused: counters.refused(),
        failed: counters.failed(),
        drops: counters.drops().map(|(reason, n)| (reason.as_str().to_owned(), n)).collect(),
    }
}

fn to_api(
    lease: &dhcpd::lease::Lease,
    net: Option<Ipv4Net>,
    port_name: impl Fn(Uuid) -> Option<String>,
) -> Lease {
    let client_id = lease.client_id.as_ref().map(|id| {
        id.iter().enumerate().fold(String::new(), |mut text, (index, byte)| {
            let colon = if index == 0 { "" } else { ":" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{colon}{byte:02x}");
            text
        })
    });
    Lease {
        expiry: lease.expiry.map(|expiry| expiry.as_secs()),
        mac: lease.mac,
        protocol: "ipv4".to_owned(),
        ip: IpAddr::V4(lease.ip),
        prefix: net.map_or(32, |net| net.prefix_len()),
        hostname: lease.hostname.clone(),
        client_id,
        port: lease.port.and_then(port_name),
    }
}

/// Frames that the switch traps for DHCP, and the answers.
pub(super) struct Trap(pub(super) datapath::InternalHandle);

impl std::fmt::Debug for Trap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trap")
    }
}

struct SwitchIo {
    handle: datapath::InternalHandle,
    batch: Vec<datapath::Ingress>,
}

impl FrameIo for SwitchIo {
    fn recv(&mut self, out: &mut Vec<Ingress>, timeout: Option<Duration>) -> io::Result<()> {
        self.handle
            .recv(&mut self.batch, timeout)
            .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        out.extend(self.batch.drain(..).map(|ingress| Ingress {
            port: ingress.port,
            vlan: ingress.vlan,
            frame: ingress.frame,
        }));
        Ok(())
    }

    fn send(&mut self, egress: Egress) -> io::Result<()> {
        self.handle
            .send(datapath::Egress { port: egress.port, vlan: egress.vlan, frame: egress.frame })
            .map_err(|error| io::Error::new(io::ErrorKind::WouldBlock, error))
    }

    fn waker(&self) -> dhcpd::Waker {
        let waker = self.handle.waker();
        Box::new(move || waker.wake())
    }
}

/// The IPv4 `<ip>` whose `<dhcp>` we serve.
fn dhcp4_ip(model: &model::Network) -> Option<(Ipv4Net, &model::Dhcp)> {
    model.ips.iter().find_map(|ip| match (ip.net, &ip.dhcp) {
        (IpNet::V4(net), Some(dhcp)) if !dhcp.ranges.is_empty() || !dhcp.hosts.is_empty() => {
            Some((net, dhcp))
        }
        _ => None,
    })
}

pub(super) fn wants_dhcp4(model: &model::Network) -> bool {
    model.forward.mode != ForwardMode::Bridge && dhcp4_ip(model).is_some()
}

/// DNS is on wherever there is an address to serve it on, unless it is switched off.
pub(super) fn wants_dns(model: &model::Network) -> bool {
    model.forward.mode != ForwardMode::Bridge
        && !model.ips.is_empty()
        && model.dns.enable != Some(false)
}

fn lease_time(lease: Option<model::LeaseTime>) -> Option<dhcp4::LeaseTime> {
    lease.map(|lease| dhcp4::LeaseTime::from(lease.duration()))
}

fn v4(ip: IpAddr) -> Option<std::net::Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

fn dhcp4_config(model: &model::Network, server_mac: MacAddr) -> Option<dhcp4::Config> {
    let (net, dhcp) = dhcp4_ip(model).filter(|_| wants_dhcp4(model))?;
    let mut config = dhcp4::Config::new(net.addr(), net, server_mac);
    config.ranges = dhcp
        .ranges
        .iter()
        .filter_map(|range| {
            let (start, end) = (v4(range.start)?, v4(range.end)?);
            Some(dhcp4::Range { start, end, lease: lease_time(range.lease) })
        })
        .collect();
    config.hosts = dhcp
        .hosts
        .iter()
        .filter_map(|host| {
            Some(dhcp4::StaticHost {
                mac: host.mac,
                name: host.name.clone(),
                ip: v4(host.ip)?,
                lease: lease_time(host.lease),
            })
        })
        .collect();
    config.router = (model.forward.mode != ForwardMode::Isolated).then(|| net.addr());
    config.dns = if wants_dns(model) { vec![net.addr()] } else { Vec::new() };
    config.domain = model.domain.as_ref().map(|domain| domain.name.clone());
    config.mtu = model.mtu.filter(|&mtu| mtu != 0).and_then(|mtu| u16::try_from(mtu).ok());
    config.boot = dhcp.bootp.as_ref().map(|bootp| dhcp4::Boot {
        file: bootp.file.clone(),
        server: bootp.server.and_then(v4),
        server_name: None,
    });
    Some(config)
}

/// Addresses that mean something only inside a site: their names are nobody else's business.
fn is_private(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_private() || net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unique_local() || net.addr().is_unicast_link_local(),
    }
}

fn dns_config(
    model: &model::Network,
    upstreams: &[SocketAddr],
    own_addresses: dns::OwnAddresses,
) -> Option<dns::Config> {
    if !wants_dns(model) {
        return None;
    }
    let mut config = dns::Config::new(model.ips.iter().map(|ip| ip.net.addr()).collect());
    config.interface = model.bridge.name.clone();
    config.clients = model
        .ips
        .iter()
        .map(|ip| ip.net.trunc())
        .chain(model.routes.iter().map(|route| route.net.trunc()))
        .collect();
    config.reverse = model
        .ips
        .iter()
        .filter(|ip| ip.local_ptr == Some(true) || is_private(ip.net))
        .map(|ip| ip.net.trunc())
        .collect();
    config.domain = model.domain.as_ref().map(|domain| domain.name.clone());
    config.domain_local_only =
        model.domain.as_ref().is_some_and(|domain| domain.local_only == Some(true));
    config.forward_plain_names = model.dns.forward_plain_names != Some(false);
    config.hosts = model
        .dns
        .hosts
        .iter()
        .map(|host| dns::Host { ip: host.ip, names: host.hostnames.clone() })
        .collect();
    config.txts = model
        .dns
        .txts
        .iter()
        .map(|txt| dns::Txt { name: txt.name.clone(), value: txt.value.clone() })
        .collect();
    config.srvs = model
        .dns
        .srvs
        .iter()
        .map(|srv| dns::Srv {
            service: srv.service.clone(),
            protocol: srv.protocol.clone(),
            domain: srv.domain.clone(),
            target: srv.target.clone().filter(|target| !target.is_empty() && target != "."),
            // libvirt's default when another number is given, and dnsmasq's otherwise.
            port: srv.port.unwrap_or(1),
            priority: srv.priority.unwrap_or(0),
            weight: srv.weight.unwrap_or(0),
        })
        .collect();
    config.forwarders = model
        .dns
        .forwarders
        .iter()
        .map(|forwarder| dns::Forwarder {
            domain: forwarder.domain.clone(),
            addr: forwarder.addr.map(|addr| SocketAddr::new(addr, forwarder.port.unwrap_or(53))),
        })
        .collect();
    if model.forward.mode == ForwardMode::Isolated {
        // Only where the definition itself names a server.
        config.forward = config.forwarders.iter().any(|forwarder| forwarder.addr.is_some());
        config.resolv_conf = None;
    } else {
        config.default_upstreams = upstreams.to_vec();
    }
    config.own_addresses = own_addresses;
    Some(config)
}

/// What would keep the services of this network from starting, whatever the host.
///
/// # Errors
/// The rule that the definition breaks.
pub(super) fn check(model: &model::Network) -> Result<(), Problem> {
    // Any station address will do: the real one may not be known yet.
    let mac = model.mac.unwrap_or(MacAddr([0x52, 0x54, 0, 0, 0, 1]));
    match dhcp4_config(model, mac).map(|config| config.check()) {
        Some(Err(error)) => Err(problem::inner(&error)),
        _ => Ok(()),
    }
}

impl Manager {
    /// Starts what the definition asks for, with the internal port that it needs.
    ///
    /// # Errors
    /// [`Code::PortConflict`] when another process has port 53. Nothing is left then.
    pub(super) async fn raise_services(
        &self,
        uuid: Uuid,
        model: &model::Network,
    ) -> Result<(Option<Arc<Services>>, Vec<Undo>), Problem> {
        let mut undo = Vec::new();
        let mut trap = None;
        if wants_dhcp4(model) {
            let id = self.dataplane.inherited_trap(uuid).unwrap_or_else(Uuid::new_v4);
            trap = Some(self.dataplane.add_trap(id, uuid).await?);
            undo.push(Undo::DataplanePort(id));
        }
        match self.start_services(uuid, model, trap).await {
            Ok(services) => {
                undo.extend(services.clone().map(Undo::Services));
                Ok((services, undo))
            }
            Err(error) => {
                self.undo(undo).await;
                Err(error)
            }
        }
    }

    async fn start_services(
        &self,
        uuid: Uuid,
        model: &model::Network,
        trap: Option<Trap>,
    ) -> Result<Option<Arc<Services>>, Problem> {
        let mac = model.mac.unwrap_or_default();
        let dhcp4 = dhcp4_config(model, mac).map(|config| dhcp4::Config {
            max_per_port: Some(self.config.dhcp_leases_per_port),
            ..config
        });
        let dns = dns_config(model, &self.config.dns_upstreams, self.own_addresses.clone());
        let dns = dns.map(|dns| dns::Config { inherited: self.inheritance.dns.clone(), ..dns });
        if dhcp4.is_none() && dns.is_none() {
            return Ok(None);
        }
        let net = dhcp4.as_ref().map(|dhcp4| dhcp4.net);
        let lease_file: PathBuf = self.store.lease_path(uuid);
        let config = ServiceConfig { network: model.name.clone(), dhcp4, dns, lease_file };
        let io = trap.map(|Trap(handle)| {
            Box::new(SwitchIo { handle, batch: Vec::new() }) as Box<dyn FrameIo>
        });
        let manager = self.this.clone();
        let events = move |event: LeaseEvent| {
            if let Some(manager) = manager.upgrade() {
                manager.lease_event(uuid, net, event);
            }
        };
        let started = tokio::task::spawn_blocking(move || Service::start(config, io, events))
            .await
            .map_err(|error| problem::inner(&error))?;
        match started {
            Ok(service) => Ok(Some(Arc::new(Services { service: Mutex::new(Some(service)), net }))),
            Err(ServiceError::PortBusy { addr }) => {
                let owner = self.host.port_owner(addr).await.map_or_else(
                    || "another process".to_owned(),
                    |process| format!("process {process}"),
                );
                Err(Problem {
                    object: Some(addr.to_string()),
                    remedy: Some(format!(
                        "stop it, keep it from listening on {}, or define the network with \
                         <dns enable='no'/>",
                        addr.ip()
                    )),
                    ..Problem::new(Code::PortConflict, format!("{addr} is taken by {owner}"))
                })
            }
            Err(error) => Err(problem::inner(&error)),
        }
    }

    /// Called on the network's DHCP thread.
    fn lease_event(&self, network: Uuid, net: Option<Ipv4Net>, event: LeaseEvent) {
        let name = {
            let tables = self.tables();
            tables.networks.get(&network).map_or_else(|| network.to_string(), |n| n.name.clone())
        };
        let lease_of =
            |lease: &dhcpd::lease::Lease| to_api(lease, net, |port| self.port_name(port));
        match event {
            LeaseEvent::Added(lease) => {
                let lease = lease_of(&lease);
                let hostname = lease.hostname.as_deref().unwrap_or("-");
                tracing::info!(
                    network = %name, mac = %lease.mac, ip = %lease.ip,
                    port = lease.port.as_deref().unwrap_or("-"),
                    hostname = %Escaped(hostname), "lease added"
                );
                self.bus.happened(EventKind::LeaseAdded { network: name, lease });
            }
            LeaseEvent::Renewed(lease) => {
                tracing::debug!(network = %name, mac = %lease.mac, ip = %lease.ip, "lease renewed");
            }
            LeaseEvent::Removed { lease, why } => {
                let why = match why {
                    Removal::Expired => "expired",
                    Removal::Released => "released",
                    Removal::Declined => "declined",
                    Removal::Replaced => "replaced",
                    Removal::PortRemoved => "port removed",
                    Removal::Reconfigured => "reconfigured",
                };
                let lease = lease_of(&lease);
                tracing::info!(
                    network = %name, mac = %lease.mac, ip = %lease.ip, why, "lease removed"
                );
                self.bus.happened(EventKind::LeaseRemoved { network: name, lease });
            }
            LeaseEvent::Quarantined(lease) => tracing::warn!(
                network = %name, mac = %lease.mac, ip = %lease.ip,
                "a client declined the address: somebody else uses it"
            ),
            LeaseEvent::Exhausted => {
                tracing::warn!(network = %name, "no address is left to lease");
            }
            LeaseEvent::ReservationHeld { ip, holder } => tracing::warn!(
                network = %name, %ip, holder = %holder.mac,
                "a reserved address is held by another client"
            ),
            LeaseEvent::DuplicateClientId { ip, port, other } => tracing::warn!(
                network = %name, %ip, port = self.port_name(port).as_deref().unwrap_or("-"),
                other = %other.mac, "two clients have the same client identifier"
            ),
            LeaseEvent::NameTaken { ip, name: taken } => tracing::warn!(
                network = %name, %ip, hostname = %Escaped(&taken),
                "the client's name belongs to somebody else"
            ),
            LeaseEvent::StoreFailed(error) => {
                tracing::error!(network = %name, error, "the lease file cannot be written");
            }
            LeaseEvent::StoreRecovered => {
                tracing::info!(network = %name, "the lease file can be written again");
            }
            // New kinds of events are worth knowing before they are worth a case here.
            other => tracing::info!(network = %name, event = ?other, "DHCP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(mode: ForwardMode) -> model::Network {
        let mut network = model::Network { name: "n".to_owned(), ..model::Network::default() };
        network.forward.mode = mode;
        network.mac = Some(MacAddr([0x52, 0x54, 0, 0, 0, 9]));
        network.ips.push(model::Ip {
            net: "192.168.7.1/24".parse().expect("net"),
            notation: model::PrefixNotation::Prefix,
            family_written: false,
            local_ptr: None,
            tftp_root: None,
            dhcp: Some(model::Dhcp {
                ranges: vec![model::DhcpRange {
                    start: "192.168.7.2".parse().expect("start"),
                    end: "192.168.7.9".parse().expect("end"),
                    lease: None,
                }],
                ..model::Dhcp::default()
            }),
        });
        network
    }

    #[test]
    fn an_isolated_network_offers_no_router_and_forwards_no_names() {
        let isolated = network(ForwardMode::Isolated);
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
        assert_eq!(dhcp4_config(&isolated, mac).expect("dhcp").router, None);
        let upstreams = ["192.0.2.1:53".parse().expect("upstream")];
        let config = dns_config(&isolated, &upstreams, dns::OwnAddresses::default());
        let config = config.expect("dns");
        assert!(!config.forward && config.default_upstreams.is_empty());
        assert_eq!(config.resolv_conf, None);

        let nat = network(ForwardMode::Nat);
        assert!(dhcp4_config(&nat, mac).expect("dhcp").router.is_some());
        let config = dns_config(&nat, &upstreams, dns::OwnAddresses::default()).expect("dns");
        assert_eq!((config.forward, config.default_upstreams.as_slice()), (true, &upstreams[..]));
    }

    #[test]
    fn dns_can_be_switched_off() {
        let mut nat = network(ForwardMode::Nat);
        nat.dns.enable = Some(false);
        assert!(dns_config(&nat, &[], dns::OwnAddresses::default()).is_none());
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
        assert!(dhcp4_config(&nat, mac).expect("dhcp").dns.is_empty());
    }

    #[test]
    fn overlapping_ranges_are_found_before_a_start() {
        let mut nat = network(ForwardMode::Nat);
        check(&nat).expect("one range");
        if let Some(dhcp) = &mut nat.ips[0].dhcp {
            dhcp.ranges.push(dhcp.ranges[0].clone());
        }
        let error = check(&nat).expect_err("the same range twice");
        assert!(error.title.contains("overlap"), "{error}");
    }
}
