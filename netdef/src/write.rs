//! Model to libvirt's canonical XML: the order of elements and attributes, the quotes and the
//! indentation of `virsh net-dumpxml`.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};

use crate::model::{
    Dhcp, DhcpHost, DhcpRange, Dns, Forward, ForwardMode, Ip, LeaseTime, LeaseUnit,
    MacTableManager, NativeMode, Network, PortGroup, PrefixNotation, Route, VirtualPort, Vlan,
};

/// The document that `virsh net-dumpxml` prints for this network, with the elements that netloom
/// keeps without knowing them at the end of their parents. [`crate::parse`] reads it back to the
/// same network, and it writes the same again.
#[must_use]
pub fn to_xml(network: &Network) -> String {
    let mut writer = Writer::new(network);
    let mut attributes = Attributes::new();
    if !network.dnsmasq_options.is_empty() {
        attributes.put("xmlns:dnsmasq", "http://libvirt.org/schemas/network/dnsmasq/1.0");
    }
    if network.ipv6 {
        attributes.put("ipv6", "yes");
    }
    attributes.yes_no("trustGuestRxFilters", network.trust_guest_rx_filters);
    writer.element("network", &attributes, Form::Open, |w| children(w, network));
    writer.out
}

fn children(w: &mut Writer<'_>, network: &Network) {
    w.text("name", &network.name);
    if let Some(uuid) = network.uuid {
        w.text("uuid", &uuid.to_string());
    }
    if let Some(title) = &network.title {
        w.text("title", title);
    }
    if let Some(description) = &network.description {
        w.text("description", description);
    }
    if let Some(metadata) = &network.metadata {
        w.verbatim(metadata);
    }
    forward(w, &network.forward);
    bridge(w, network);
    let mut mtu = Attributes::new();
    mtu.maybe("size", network.mtu.as_ref());
    w.element("mtu", &mtu, Form::Unless, |_| {});
    let mut mac = Attributes::new();
    mac.maybe("address", network.mac.as_ref());
    w.element("mac", &mac, Form::Unless, |_| {});
    let mut domain = Attributes::new();
    if let Some(it) = &network.domain {
        domain.put("name", &it.name);
        domain.yes_no("localOnly", it.local_only);
        domain.yes_no("register", it.register);
    }
    w.element("domain", &domain, Form::Unless, |_| {});
    dns(w, &network.dns);
    if let Some(it) = &network.vlan {
        vlan(w, it);
    }
    let mut port = Attributes::new();
    port.yes_no("isolated", network.port_isolated);
    w.element("port", &port, Form::Unless, |_| {});
    for (index, it) in network.ips.iter().enumerate() {
        ip(w, it, index);
    }
    for (index, it) in network.routes.iter().enumerate() {
        route(w, it, index);
    }
    if let Some(it) = &network.virtualport {
        virtualport(w, it);
    }
    for (index, it) in network.portgroups.iter().enumerate() {
        portgroup(w, it, index);
    }
    if !network.dnsmasq_options.is_empty() {
        w.element("dnsmasq:options", &Attributes::new(), Form::Open, |w| {
            for option in &network.dnsmasq_options {
                let mut attributes = Attributes::new();
                attributes.put("value", option);
                w.element("dnsmasq:option", &attributes, Form::Short, |_| {});
            }
        });
    }
}

fn forward(w: &mut Writer<'_>, forward: &Forward) {
    if forward.mode == ForwardMode::Isolated {
        return;
    }
    let mut attributes = Attributes::new();
    attributes.maybe("dev", forward.dev.as_ref());
    attributes.put("mode", forward.mode);
    w.element("forward", &attributes, Form::Short, |w| {
        let nat = forward.nat.as_ref();
        let mut attributes = Attributes::new();
        attributes.yes_no("ipv6", nat.and_then(|nat| nat.ipv6));
        w.element("nat", &attributes, Form::Unless, |w| {
            if let Some((start, end)) = nat.and_then(|nat| nat.addresses) {
                w.element("address", &Attributes::span(start, end), Form::Short, |_| {});
            }
            if let Some((start, end)) = nat.and_then(|nat| nat.ports) {
                w.element("port", &Attributes::span(start, end), Form::Short, |_| {});
            }
        });
        if let Some(dev) = &forward.dev {
            let mut attributes = Attributes::new();
            attributes.put("dev", dev);
            w.numbered("interface", 0, &attributes, Form::Short, |_| {});
        }
    });
}

/// Managed networks always show `stp` and `delay`.
fn bridge(w: &mut Writer<'_>, network: &Network) {
    let bridge = &network.bridge;
    let mut attributes = Attributes::new();
    attributes.maybe("name", bridge.name.as_ref());
    if network.forward.mode != ForwardMode::Bridge {
        attributes.put("stp", if bridge.stp.unwrap_or(true) { "on" } else { "off" });
        attributes.put("delay", bridge.delay.unwrap_or(0));
    }
    if let Some(manager) = bridge.mac_table_manager {
        let manager = match manager {
            MacTableManager::Kernel => "kernel",
            MacTableManager::Libvirt => "libvirt",
        };
        attributes.put("macTableManager", manager);
    }
    w.element("bridge", &attributes, Form::Unless, |_| {});
}

fn dns(w: &mut Writer<'_>, dns: &Dns) {
    let mut attributes = Attributes::new();
    attributes.yes_no("enable", dns.enable);
    attributes.yes_no("forwardPlainNames", dns.forward_plain_names);
    w.element("dns", &attributes, Form::Unless, |w| {
        for (index, forwarder) in dns.forwarders.iter().enumerate() {
            let mut attributes = Attributes::new();
            attributes.maybe("domain", forwarder.domain.as_ref());
            attributes.maybe("addr", forwarder.addr.as_ref());
            attributes.maybe("port", forwarder.port.as_ref());
            w.numbered("forwarder", index, &attributes, Form::Short, |_| {});
        }
        for (index, txt) in dns.txts.iter().enumerate() {
            let mut attributes = Attributes::new();
            attributes.put("name", &txt.name);
            attributes.put("value", &txt.value);
            w.numbered("txt", index, &attributes, Form::Short, |_| {});
        }
        for (index, srv) in dns.srvs.iter().enumerate() {
            let mut attributes = Attributes::new();
            attributes.put("service", &srv.service);
            attributes.put("protocol", &srv.protocol);
            attributes.maybe("domain", srv.domain.as_ref());
            attributes.maybe("target", srv.target.as_ref());
            attributes.maybe("port", srv.port.as_ref());
            attributes.maybe("priority", srv.priority.as_ref());
            attributes.maybe("weight", srv.weight.as_ref());
            w.numbered("srv", index, &attributes, Form::Short, |_| {});
        }
        for (index, host) in dns.hosts.iter().enumerate() {
            let mut attributes = Attributes::new();
            attributes.put("ip", host.ip);
            w.numbered("host", index, &attributes, Form::Open, |w| {
                for name in &host.hostnames {
                    w.text("hostname", name);
                }
            });
        }
    });
}

fn vlan(w: &mut Writer<'_>, vlan: &Vlan) {
    let mut attributes = Attributes::new();
    if vlan.trunk {
        attributes.put("trunk", "yes");
    }
    w.element("vlan", &attributes, Form::Open, |w| {
        for (index, tag) in vlan.tags.iter().enumerate() {
            let mut attributes = Attributes::new();
            attributes.put("id", tag.id);
            if let Some(mode) = tag.native_mode {
                let mode = match mode {
                    NativeMode::Tagged => "tagged",
                    NativeMode::Untagged => "untagged",
                };
                attributes.put("nativeMode", mode);
            }
            w.numbered("tag", index, &attributes, Form::Short, |_| {});
        }
    });
}

fn ip(w: &mut Writer<'_>, ip: &Ip, index: usize) {
    let mut attributes = Attributes::new();
    if ip.family_written {
        attributes.put("family", if ip.net.addr().is_ipv4() { "ipv4" } else { "ipv6" });
    }
    attributes.put("address", ip.net.addr());
    attributes.prefix(ip.notation, ip.net);
    attributes.yes_no("localPtr", ip.local_ptr);
    w.numbered("ip", index, &attributes, Form::Open, |w| {
        let mut tftp = Attributes::new();
        tftp.maybe("root", ip.tftp_root.as_ref());
        w.element("tftp", &tftp, Form::Unless, |_| {});
        w.element("dhcp", &Attributes::new(), Form::Unless, |w| {
            if let Some(it) = &ip.dhcp {
                dhcp(w, it);
            }
        });
    });
}

fn dhcp(w: &mut Writer<'_>, dhcp: &Dhcp) {
    for (index, DhcpRange { start, end, lease }) in dhcp.ranges.iter().enumerate() {
        let attributes = Attributes::span(start, end);
        w.numbered("range", index, &attributes, Form::Short, |w| self::lease(w, *lease));
    }
    for (index, DhcpHost { mac, id, name, ip, lease }) in dhcp.hosts.iter().enumerate() {
        let mut attributes = Attributes::new();
        attributes.maybe("mac", mac.as_ref());
        attributes.maybe("id", id.as_ref());
        attributes.maybe("name", name.as_ref());
        attributes.put("ip", ip);
        w.numbered("host", index, &attributes, Form::Short, |w| self::lease(w, *lease));
    }
    if let Some(bootp) = &dhcp.bootp {
        let mut attributes = Attributes::new();
        attributes.put("file", &bootp.file);
        attributes.maybe("server", bootp.server.as_ref());
        w.element("bootp", &attributes, Form::Short, |_| {});
    }
}

fn lease(w: &mut Writer<'_>, lease: Option<LeaseTime>) {
    let mut attributes = Attributes::new();
    if let Some(lease) = lease {
        attributes.put("expiry", lease.expiry);
        if lease.expiry != 0 {
            let unit = match lease.unit {
                LeaseUnit::Seconds => "seconds",
                LeaseUnit::Minutes => "minutes",
                LeaseUnit::Hours => "hours",
            };
            attributes.put("unit", unit);
        }
    }
    w.element("lease", &attributes, Form::Unless, |_| {});
}

fn route(w: &mut Writer<'_>, route: &Route, index: usize) {
    let mut attributes = Attributes::new();
    if route.family_written {
        attributes.put("family", if route.net.addr().is_ipv4() { "ipv4" } else { "ipv6" });
    }
    attributes.put("address", route.net.addr());
    attributes.prefix(route.notation, route.net);
    attributes.put("gateway", route.gateway);
    attributes.maybe("metric", route.metric.as_ref());
    w.numbered("route", index, &attributes, Form::Short, |_| {});
}

fn virtualport(w: &mut Writer<'_>, port: &VirtualPort) {
    let mut attributes = Attributes::new();
    attributes.maybe("type", port.kind.as_ref());
    w.element("virtualport", &attributes, Form::Short, |w| {
        let mut attributes = Attributes::new();
        for (name, value) in &port.parameters {
            attributes.put(name, value);
        }
        w.element("parameters", &attributes, Form::Unless, |_| {});
    });
}

fn portgroup(w: &mut Writer<'_>, group: &PortGroup, index: usize) {
    let mut attributes = Attributes::new();
    attributes.put("name", &group.name);
    if group.default {
        attributes.put("default", "yes");
    }
    attributes.yes_no("trustGuestRxFilters", group.trust_guest_rx_filters);
    w.numbered("portgroup", index, &attributes, Form::Open, |w| {
        if let Some(it) = &group.vlan {
            vlan(w, it);
        }
        if let Some(it) = &group.virtualport {
            virtualport(w, it);
        }
    });
}

/// How an element without children is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `<a>` and `</a>`
    Open,
    /// `<a/>`
    Short,
    /// Not at all when it has no attributes either, otherwise `<a/>`.
    Unless,
}

/// Attributes of one element, escaped.
struct Attributes(String);

impl Attributes {
    fn new() -> Self {
        Self(String::new())
    }

    fn span(start: impl Display, end: impl Display) -> Self {
        let mut attributes = Self::new();
        attributes.put("start", start);
        attributes.put("end", end);
        attributes
    }

    fn put(&mut self, name: &str, value: impl Display) {
        let _ = write!(self.0, " {name}='");
        escape(&mut self.0, &value.to_string(), true);
        self.0.push('\'');
    }

    fn maybe<T: Display>(&mut self, name: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn yes_no(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.put(name, if value { "yes" } else { "no" });
        }
    }

    fn prefix(&mut self, notation: PrefixNotation, net: ipnet::IpNet) {
        match notation {
            PrefixNotation::Netmask => self.put("netmask", net.netmask()),
            PrefixNotation::Prefix => self.put("prefix", net.prefix_len()),
            PrefixNotation::Absent => {}
        }
    }
}

struct Writer<'n> {
    out: String,
    depth: usize,
    /// Path of the element being written, as in [`crate::model::Unmodelled::parent`].
    path: String,
    /// Kept elements by the path of their parent.
    kept: HashMap<&'n str, Vec<&'n str>>,
}

impl<'n> Writer<'n> {
    fn new(network: &'n Network) -> Self {
        let mut kept: HashMap<&str, Vec<&str>> = HashMap::new();
        for element in &network.unmodelled {
            kept.entry(&element.parent).or_default().push(&element.xml);
        }
        Self { out: String::new(), depth: 0, path: String::new(), kept }
    }

    fn numbered(
        &mut self,
        name: &str,
        index: usize,
        attributes: &Attributes,
        form: Form,
        children: impl FnOnce(&mut Self),
    ) {
        let length = self.path.len();
        let _ = write!(self.path, "/{name}[{}]", index + 1);
        self.write(name, &attributes.0, form, children);
        self.path.truncate(length);
    }

    fn element(
        &mut self,
        name: &str,
        attributes: &Attributes,
        form: Form,
        children: impl FnOnce(&mut Self),
    ) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('/');
        }
        self.path.push_str(name);
        self.write(name, &attributes.0, form, children);
        self.path.truncate(length);
    }

    fn write(
        &mut self,
        name: &str,
        attributes: &str,
        form: Form,
        children: impl FnOnce(&mut Self),
    ) {
        let start = self.out.len();
        self.indent();
        let _ = write!(self.out, "<{name}{attributes}");
        let tag = self.out.len();
        self.out.push_str(">\n");
        let inside = self.out.len();
        self.depth += 1;
        children(self);
        for xml in self.kept.get(self.path.as_str()).cloned().unwrap_or_default() {
            self.verbatim(xml);
        }
        self.depth -= 1;
        if self.out.len() == inside && form != Form::Open {
            if form == Form::Unless && attributes.is_empty() {
                self.out.truncate(start);
            } else {
                self.out.truncate(tag);
                self.out.push_str("/>\n");
            }
            return;
        }
        self.indent();
        let _ = writeln!(self.out, "</{name}>");
    }

    fn text(&mut self, name: &str, text: &str) {
        self.indent();
        let _ = write!(self.out, "<{name}>");
        escape(&mut self.out, text, false);
        let _ = writeln!(self.out, "</{name}>");
    }

    fn verbatim(&mut self, xml: &str) {
        self.indent();
        self.out.push_str(xml);
        self.out.push('\n');
    }

    fn indent(&mut self) {
        self.out.extend(std::iter::repeat_n("  ", self.depth));
    }
}

/// Escapes as libvirt does, and what a reader would otherwise change: line breaks and tabs in
/// attributes, carriage returns. Characters that XML cannot carry are left out.
fn escape(out: &mut String, text: &str, attribute: bool) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\r' => out.push_str("&#13;"),
            '\n' if attribute => out.push_str("&#10;"),
            '\t' if attribute => out.push_str("&#9;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {}
            c => out.push(c),
        }
    }
}
