//! The main job, end to end, on real guests: `cargo xtask demo`.
//!
//! Defines and starts a NAT network and an isolated one, attaches a QEMU guest, a User-mode Linux
//! guest, the VMM's own test guest and namespaces, shows that they get addresses and names and a
//! way out, restarts the daemon under them, takes everything down and proves that nothing is left.

use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netns_tests::guest::{Guest, Namespace, Qemu, Uml, Vmm, qemu::Nic};
use netns_tests::inet::{Dns, PAGE, Web};
use netns_tests::snapshot::Snapshot;
use netns_tests::topology::{CONFIG, HOST, INET, INET6, world};
use netns_tests::{Daemon, Netns, record};

fn main() -> anyhow::Result<()> {
    let mut show = Show::new();
    let result = demo(&mut show);
    show.end(result.is_ok());
    if result.is_err() {
        record::run().keep();
    }
    record::run().finish();
    result
}

fn demo(show: &mut Show) -> anyhow::Result<()> {
    // ip makes a mount of /run/netns for the first namespace after the machine's start, and leaves it for all later ones.
    drop(Netns::new("first")?);
    let machine_before = Snapshot::machine()?;
    show.title("A host, and the internet behind it");
    let (host, inet) =
        show.step("namespaces `host` and `inet`, joined by 203.0.113.0/24", world)?;
    let host = std::sync::Arc::new(host);
    let (web, dns) = show.step("a web server and a name server in `inet`", || {
        Ok((Web::start(&inet)?, Dns::start(&inet, INET.parse()?, INET6.parse()?)?))
    })?;
    let host_before = Snapshot::namespace(&host)?;
    let mut daemon = show.step("vswitchd in `host`", || Daemon::start(&host, "demo", CONFIG))?;

    networks(show, &mut daemon, &web)?;

    show.title("Everything is taken down");
    show.step("vswitchd --teardown", || daemon.teardown())?;
    drop(daemon);
    let host_after = Snapshot::namespace(&host)?;
    show.output(&difference("`host`", &host_before, &host_after));
    show.step("`host` is as it was", || unchanged(&host_before, &host_after))?;
    drop((web, dns, inet, host));
    let machine_after = Snapshot::machine()?;
    show.output(&difference("the machine", &machine_before, &machine_after));
    show.step("the machine is as it was", || unchanged(&machine_before, &machine_after))
}

/// Networks, guests, and what they can do; all guests are gone when it returns.
fn networks(show: &mut Show, daemon: &mut Daemon, web: &Web) -> anyhow::Result<()> {
    show.title("Two networks from libvirt's XML");
    for file in ["default", "isolated"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/").to_owned() + file + ".xml";
        show.step(&format!("netctl net-define configs/{file}.xml"), || {
            daemon.netctl(&["net-define", &path])
        })?;
        show.step(&format!("netctl net-start {file}"), || daemon.netctl(&["net-start", file]))?;
    }
    show.output(&daemon.netctl(&["net-list", "--all"])?);

    show.title("Guests of four kinds");
    let ports = show.step("netctl port-add: vhost-user ports deb1, uml1, vmm1, iso1", || {
        Ok([
            daemon.port("default", "deb1", &[])?,
            daemon.port("default", "uml1", &[])?,
            daemon.port("default", "vmm1", &[])?,
            daemon.port("isolated", "iso1", &[])?,
        ])
    })?;
    let socket = |n: usize| ports[n].socket.as_deref().context("a vhost-user port has a socket");
    show.output(&daemon.netctl(&["port-info", "deb1"])?);
    let nic = Nic::new(socket(0)?, ports[0].mac);
    let mut deb =
        show.step("QEMU boots Debian's kernel on deb1", || Qemu::start("deb1", &[nic]))?;
    let mut uml =
        show.step("User-mode Linux boots on uml1", || Uml::start("uml1", &[socket(1)?]))?;
    let mut iso =
        show.step("User-mode Linux boots on iso1", || Uml::start("iso1", &[socket(3)?]))?;
    let mut ns = show.step("netctl port-add --netns: namespace ns1", || {
        let ns = Namespace::new("ns1")?;
        let name = ns.netns().name().to_owned();
        daemon.port("default", "ns1", &["--netns", &name, "--ifname", "eth0"])?;
        Ok(ns)
    })?;
    let mut iso_ns = show.step("netctl port-add --netns: namespace iso2, isolated", || {
        let ns = Namespace::new("iso2")?;
        let name = ns.netns().name().to_owned();
        daemon.port("isolated", "iso2", &["--netns", &name, "--ifname", "eth0"])?;
        Ok(ns)
    })?;

    show.title("Addresses");
    let deb_ip = show.step("DHCP for deb1 (QEMU)", || deb.dhcp())?;
    let uml_ip = show.step("DHCP for uml1 (User-mode Linux)", || uml.dhcp())?;
    let ns_ip = show.step("DHCP for ns1 (namespace)", || ns.dhcp())?;
    let mut vmm = None;
    if !netns_tests::without_kvm() {
        vmm = Some(show.step("netloom-vmm boots its guest on vmm1; DHCP, ping uml1", || {
            let cmdline = format!("hostname=vmm1 ping={uml_ip} count=3");
            let mut vmm = Vmm::start("vmm1", socket(2)?, ports[2].mac, &cmdline)?;
            vmm.line("dhcp ", Duration::from_secs(30))?;
            vmm.ping_result(Duration::from_secs(30))?;
            Ok(vmm)
        })?);
    }
    let iso_ip = show.step("DHCP for iso1", || iso.dhcp())?;
    show.step("DHCP for iso2", || iso_ns.dhcp())?;
    show.output(&daemon.netctl(&["net-dhcp-leases", "default"])?);
    show.output(&daemon.netctl(&["net-dhcp-leases", "isolated"])?);

    show.title("They talk");
    show.step("deb1 pings uml1 by name", || deb.ping("uml1"))?;
    show.step("uml1 pings ns1 by name", || uml.ping("ns1"))?;
    show.step("ns1 pings deb1 by name", || ns.ping("deb1"))?;
    if vmm.is_some() {
        show.step("ns1 pings vmm1 by name", || ns.ping("vmm1"))?;
    }
    show.step("deb1 fetches http://www.example.test/", || {
        let page = deb.run("busybox wget -q -O - http://www.example.test/")?;
        ensure!(page.trim() == PAGE.trim(), "the page is {page:?}");
        let clients = web.clients();
        let host: IpAddr = HOST.parse()?;
        ensure!(clients == [host], "the web server saw {clients:?}, not the host's {HOST}");
        Ok(())
    })?;
    show.output(&format!("web server in `inet`: GET / from {:?}\n", web.clients()));
    show.step("iso2 reaches its neighbour iso1", || iso_ns.ping(&iso_ip.to_string()))?;
    show.step("iso2 does not reach `inet`, even with a route of its own", || {
        iso_ns.run("ip route replace default via $(busybox ip -4 -o addr show eth0 | awk '{print $4}' | sed 's/\\.[0-9]*\\/.*/.1/')")?;
        ensure!(!iso_ns.reaches(INET.parse()?)?, "{INET} answered");
        Ok(())
    })?;

    show.title("vswitchd is restarted under them");
    show.step("SIGTERM and start again", || {
        daemon.stop()?;
        daemon.up()
    })?;
    show.step("deb1 reconnects and goes on where it was", || {
        daemon.wait_port("deb1", api::PortState::Up)?;
        deb.ping(&ns_ip.to_string())?;
        deb.ping(INET)
    })?;
    show.step("ns1 goes on where it was", || ns.ping(&deb_ip.to_string()))?;

    show.title("What the switch knows");
    show.output(&daemon.netctl(&["fdb-show", "default"])?);
    show.output(&daemon.netctl(&["port-stats", "deb1"])?);
    show.output(&daemon.netctl(&["show"])?);

    show.step("guests power off, networks are destroyed", || {
        drop((vmm.take(), deb, uml, iso));
        for port in ["deb1", "uml1", "vmm1", "ns1", "iso1", "iso2"] {
            daemon.netctl(&["port-del", port])?;
        }
        for network in ["default", "isolated"] {
            daemon.netctl(&["net-destroy", network])?;
            daemon.netctl(&["net-undefine", network])?;
        }
        Ok(())
    })
}

/// Links, addresses, routes, rules, sockets, namespaces, mounts, hugepages, processes.
fn difference(what: &str, before: &Snapshot, after: &Snapshot) -> String {
    let lines = before.difference(after);
    let list = if lines.is_empty() { "none".to_owned() } else { format!("\n{}", lines.join("\n")) };
    format!("{what}: {} things before, {} after, difference: {list}", before.len(), after.len())
}

fn unchanged(before: &Snapshot, after: &Snapshot) -> anyhow::Result<()> {
    ensure!(before == after, "something was left or is missing; the difference is above");
    Ok(())
}

/// The demo's voice: numbered titles, steps with their time, output of commands indented.
struct Show {
    terminal: bool,
    start: Instant,
    titles: u32,
}

impl Show {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), start: Instant::now(), titles: 0 }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.terminal { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn title(&mut self, text: &str) {
        self.titles += 1;
        println!("\n{}", self.paint("1;36", &format!("{}. {text}", self.titles)));
    }

    /// One step; while it runs, a terminal shows it with three dots.
    fn step<T>(&self, text: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let start = Instant::now();
        if self.terminal {
            print!("   {} {text} …", self.paint("33", "▸"));
            let _ = std::io::stdout().flush();
        }
        let result = work();
        let elapsed = format!("{:.1} s", start.elapsed().as_secs_f64());
        let mark = match result {
            Ok(_) => self.paint("32", "✔"),
            Err(_) => self.paint("31", "✘"),
        };
        let rewind = if self.terminal { "\r\x1b[2K" } else { "" };
        println!("{rewind}   {mark} {text}  {}", self.paint("2", &elapsed));
        result.with_context(|| format!("the step `{text}` failed"))
    }

    fn output(&self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            println!("       {}", self.paint("2", line));
        }
    }

    fn end(&self, good: bool) {
        let elapsed = self.start.elapsed().as_secs_f64();
        let text = if good { "Everything worked" } else { "The demo failed" };
        println!(
            "\n{}",
            self.paint(if good { "1;32" } else { "1;31" }, &format!("{text} ({elapsed:.0} s)"))
        );
    }
}
