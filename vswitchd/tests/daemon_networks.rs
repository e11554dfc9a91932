//! Networks, by HTTP on a real daemon in a machine of its own.

mod daemon_env;
mod host_env;

use daemon_env::{Daemon, finish, nat, vswitchd, wait};
use host_env::{ip, machine, nft, run};

fn test(body: impl FnOnce(&std::path::Path) + Send + 'static) {
    machine(async || {
        let root = tempfile::tempdir().expect("temporary directory");
        body(root.path());
    });
}

fn links() -> String {
    run("ip -o link show")
}

#[test]
fn a_network_is_defined_started_and_destroyed_without_a_trace() {
    test(|root| {
        let before = (links(), run("nft list ruleset"), run("ip route show table all"));
        let daemon = Daemon::start("a", root);
        let defined = daemon.post("/v1/networks", &nat("net1", 1));
        assert_eq!((&defined["active"], &defined["mode"]), (&false.into(), &"nat".into()));
        let again = daemon.post("/v1/networks", &nat("net1", 1));
        assert_eq!(again["uuid"], defined["uuid"], "defining again means the same network");

        let xml = daemon.text("/v1/networks/net1/xml");
        for part in ["<uuid>", "<bridge name='virbr0'", "<mac address='52:54:00:"] {
            assert!(xml.contains(part), "{part} is not in {xml}");
        }
        daemon.post("/v1/networks", &nat("net1", 1));
        assert_eq!(daemon.text("/v1/networks/net1/xml"), xml, "and changes nothing");

        let started = daemon.post("/v1/networks/net1/start", "");
        assert_eq!(started["bridge"], "virbr0");
        assert!(run("ip -o address show dev virbr0").contains("10.77.1.1/24"));
        assert!(run("nft list table inet netloom-a").contains("virbr0"));
        let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl");
        assert_eq!(forward.trim(), "1");
        let problem = daemon.refused("POST", "/v1/networks/net1/start", "");
        assert_eq!(problem.code, api::Code::NetworkActive);

        daemon.request("POST", "/v1/networks/net1/destroy", &[], b"");
        assert_eq!((links(), run("nft list ruleset")), (before.0, before.1));
        assert_eq!(run("ip route show table all"), before.2);
        let problem = daemon.refused("POST", "/v1/networks/net1/destroy", "");
        assert_eq!(problem.code, api::Code::NetworkInactive);
        daemon.delete("/v1/networks/net1");
        let problem = daemon.refused("GET", "/v1/networks/net1", "");
        assert_eq!(problem.title, "Network not found: no network with matching name 'net1'");
    });
}

#[test]
fn identity_is_libvirts() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let with_uuid = |name: &str, digit: char| {
            let uuid = format!("{}-0000-4000-8000-000000000000", digit.to_string().repeat(8));
            nat(name, 1).replace("<forward", &format!("<uuid>{uuid}</uuid><forward"))
        };
        daemon.post("/v1/networks", &with_uuid("one", '1'));
        let problem = daemon.refused("POST", "/v1/networks", &with_uuid("two", '1'));
        assert_eq!(problem.code, api::Code::NetworkExists);
        assert!(problem.title.contains("network 'one' is already defined with uuid"), "{problem}");
        let problem = daemon.refused("POST", "/v1/networks", &with_uuid("one", '2'));
        assert!(problem.title.contains("network 'one' already exists with uuid"), "{problem}");
        // By UUID, too.
        let info = daemon.get("/v1/networks/11111111-0000-4000-8000-000000000000");
        assert_eq!(info["name"], "one");
    });
}

#[test]
fn a_transient_network_ends_with_its_ports() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let created = daemon.post("/v1/networks?transient=true", &nat("quick", 2));
        assert_eq!((&created["active"], &created["persistent"]), (&true.into(), &false.into()));
        let problem = daemon.refused("DELETE", "/v1/networks/quick", "");
        assert_eq!(problem.code, api::Code::NetworkTransient);
        let problem = daemon.refused("PUT", "/v1/networks/quick/autostart", "{\"autostart\":true}");
        assert_eq!(problem.code, api::Code::NetworkTransient);
        daemon.post("/v1/networks/quick/ports", r#"{"name":"p","port":{"kind":"vhost-user"}}"#);
        daemon.request("POST", "/v1/networks/quick/destroy", &[], b"");
        assert_eq!(daemon.get("/v1/networks"), serde_json::json!([]));
        assert_eq!(daemon.get("/v1/ports"), serde_json::json!([]));
        assert!(!daemon.instance().port_socket("p").exists());

        // Undefining an active network makes it transient; defining it again persistent.
        daemon.post("/v1/networks", &nat("kept", 3));
        daemon.post("/v1/networks/kept/start", "");
        daemon.delete("/v1/networks/kept");
        assert_eq!(daemon.get("/v1/networks/kept")["persistent"], false);
        daemon.post("/v1/networks", &nat("kept", 3));
        assert_eq!(daemon.get("/v1/networks/kept")["persistent"], true);
    });
}

#[test]
fn a_taken_subnet_is_refused_with_who_has_it() {
    test(|root| {
        ip("link add far type veth peer name near\nlink set near up\nlink set far up\n\
            address add 10.77.5.200/25 dev near");
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("wide", 5));
        let problem = daemon.refused("POST", "/v1/networks/wide/start", "");
        assert_eq!(problem.code, api::Code::SubnetConflict);
        let text = format!("{problem} {:?}", problem.causes);
        assert!(text.contains("near"), "{text}");
        assert!(!links().contains("virbr"), "nothing is left of the start");

        daemon.post("/v1/networks?transient=true", &nat("first", 6));
        let narrow = nat("second", 6).replace("prefix='24'", "prefix='23'");
        daemon.post("/v1/networks", &narrow);
        let problem = daemon.refused("POST", "/v1/networks/second/start", "");
        assert_eq!(problem.code, api::Code::SubnetConflict);
        assert!(problem.causes.iter().any(|cause| cause.contains("'first'")), "{problem:?}");
    });
}

#[test]
fn a_failed_start_leaves_nothing_and_names_the_process_on_port_53() {
    test(|root| {
        let before = (links(), run("nft list ruleset"));
        let daemon = Daemon::start("a", root);
        let taken = std::net::UdpSocket::bind("0.0.0.0:53").expect("port 53 is free here");
        daemon.post("/v1/networks", &nat("net1", 1));
        let problem = daemon.refused("POST", "/v1/networks/net1/start", "");
        assert_eq!(problem.code, api::Code::PortConflict);
        let me = std::process::id().to_string();
        assert!(problem.causes.iter().any(|cause| cause.contains(&me)), "{problem:?}");
        assert!(problem.title.contains("starting DHCP and DNS failed"), "{problem:?}");
        assert!(problem.remedy.is_some());
        assert_eq!((links(), run("nft list ruleset")), before);
        drop(taken);
        daemon.post("/v1/networks/net1/start", "");
    });
}

#[test]
fn a_foreign_interface_of_the_bridges_name_is_not_touched() {
    test(|root| {
        ip("link add virbr7 type bridge");
        let daemon = Daemon::start("a", root);
        let named = nat("net1", 1).replace("<ip ", "<bridge name='virbr7'/><ip ");
        daemon.post("/v1/networks", &named);
        let problem = daemon.refused("POST", "/v1/networks/net1/start", "");
        assert_eq!(problem.code, api::Code::StartFailed);
        assert!(problem.title.contains("virbr7"), "{problem:?}");
        assert!(run("ip -d link show dev virbr7").contains("bridge"));
        // A generated name avoids it, also as a template.
        let template = nat("net2", 2).replace("<ip ", "<bridge name='virbr%d'/><ip ");
        ip("link add virbr0 type bridge");
        assert_eq!(daemon.post("/v1/networks", &template)["bridge"], "virbr1");
        let problem = daemon.refused(
            "POST",
            "/v1/networks",
            &nat("net3", 3).replace("<ip ", "<bridge name='virbr1'/><ip "),
        );
        assert!(problem.title.contains("already in use"), "{problem:?}");
    });
}

#[test]
fn flushed_rules_come_back() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks?transient=true", &nat("net1", 1));
        let rules = run("nft list table inet netloom-a");
        nft("flush ruleset");
        wait("the rules are back", || run("nft list ruleset").contains("netloom-a").then_some(()));
        assert_eq!(run("nft list table inet netloom-a"), rules);
    });
}

#[test]
fn two_instances_leave_each_other_alone() {
    test(|root| {
        let one = Daemon::start("one", root);
        let two = Daemon::start("two", root);
        one.post("/v1/networks?transient=true", &nat("net", 1));
        let info = two.post("/v1/networks?transient=true", &nat("net", 2));
        assert_eq!(info["bridge"], "virbr1", "the other instance has virbr0");
        let kept = (run("ip -o address show dev virbr1"), run("nft list table inet netloom-two"));

        one.request("POST", "/v1/networks/net/destroy", &[], b"");
        one.post("/v1/networks?transient=true", &nat("net", 1));
        one.stop();
        let mut teardown = vswitchd("one", root);
        teardown.arg("--teardown");
        let (status, text) = finish(teardown);
        assert!(status.success(), "{text}");
        assert!(!links().contains("virbr0"));
        assert!(!run("nft list tables").contains("netloom-one"));
        assert_eq!(
            (run("ip -o address show dev virbr1"), run("nft list table inet netloom-two")),
            kept
        );
        assert_eq!(two.get("/v1/networks/net")["active"], true);
    });
}

#[test]
fn a_bridge_networks_uplink_is_in_the_bridge() {
    test(|root| {
        ip("link add br0 type bridge\nlink set br0 up");
        let daemon = Daemon::start("a", root);
        let xml = "<network><name>b</name><forward mode='bridge'/><bridge name='br0'/></network>";
        daemon.post("/v1/networks", xml);
        daemon.post("/v1/networks/b/start", "");
        assert!(run("ip -o link show master br0").contains("vnl"));
        let daemon = daemon.crash();
        assert!(run("ip -o link show master br0").contains("vnl"));
        daemon.request("POST", "/v1/networks/b/destroy", &[], b"");
        assert_eq!(run("ip -o link show master br0"), "");
        ip("link delete br0");
        let problem = daemon.refused("POST", "/v1/networks/b/start", "");
        assert!(problem.causes.iter().any(|cause| cause.contains("br0")), "{problem:?}");

        ip("link add far type veth peer name near\nlink set near up");
        let xml = "<network><name>p</name><forward mode='bridge'><interface dev='near'/></forward>\
                   </network>";
        daemon.post("/v1/networks?transient=true", xml);
        assert!(run("ip -d link show dev near").contains("promiscuity 1"));
        daemon.request("POST", "/v1/networks/p/destroy", &[], b"");
        assert!(run("ip -d link show dev near").contains("promiscuity 0"));
    });
}

#[test]
fn revisions_and_events() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let before = daemon.request("GET", "/v1/networks", &[], b"");
        let etag = before.header("etag").expect("an ETag").to_owned();
        daemon.post("/v1/networks", &nat("net1", 1));
        let stale = daemon.request("POST", "/v1/networks/net1/start", &[("If-Match", &etag)], b"");
        assert_eq!(stale.problem().code, api::Code::RevisionMismatch);
        let now = daemon.request("GET", "/v1/networks", &[], b"");
        let etag = now.header("etag").expect("an ETag").to_owned();
        let good = daemon.request("POST", "/v1/networks/net1/start", &[("If-Match", &etag)], b"");
        assert_eq!(good.status, 200);
        let odd = daemon.request("POST", "/v1/networks/net1/start", &[("If-Match", "x")], b"");
        assert_eq!(odd.problem().code, api::Code::InvalidArgument);

        let events: Vec<_> = daemon.events(0).take(2).collect();
        assert_eq!(events[0]["event"], "network-defined");
        assert_eq!(events[1]["event"], "network-started");
        let seq = events[1]["seq"].as_u64().expect("a number");
        assert_eq!(seq, 1 + events[0]["seq"].as_u64().expect("a number"));

        // A reader from before a restart is told that it may have missed something.
        let daemon = daemon.crash();
        assert_eq!(daemon.events(seq).next().expect("an event")["event"], "gap");
        let revision = daemon.get("/v1/instance")["revision"].as_u64().expect("a number");
        assert!(revision > etag.trim_matches('"').parse().expect("a number"));
    });
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let begun = std::time::Instant::now();
        let huge = "x".repeat(100 << 20);
        let response = daemon.request("POST", "/v1/networks", &[], huge.as_bytes());
        assert_eq!(response.status, 413);
        assert_eq!(response.problem().code, api::Code::XmlError);
        assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());

        for name in ["a/b", "a\nb", "../../etc/passwd"] {
            let problem = daemon.refused("POST", "/v1/networks", &nat(name, 1));
            assert_eq!(problem.code, api::Code::XmlError, "{name:?}");
        }
        let problem =
            daemon.refused("POST", "/v1/networks", "<network>\n  <name>x</nam>\n</network>");
        assert_eq!((problem.code, problem.line), (api::Code::XmlError, Some(2)), "{problem:?}");
        let overlap =
            nat("o", 1).replace("</dhcp>", "<range start='10.77.1.50' end='10.77.1.120'/></dhcp>");
        let problem = daemon.refused("POST", "/v1/networks", &overlap);
        assert!(problem.title.contains("overlap"), "{problem:?}");

        let big = format!("{{\"autostart\":true,\"x\":\"{}\"}}", "x".repeat(70_000));
        let response = daemon.request("PUT", "/v1/networks/x/autostart", &[], big.as_bytes());
        assert_eq!((response.status, response.problem().code), (413, api::Code::InvalidArgument));
        assert_eq!(daemon.refused("GET", "/v1/nothing", "").status, 404);
        assert_eq!(daemon.refused("PUT", "/v1/networks", "").status, 405);
        let problem = daemon.refused("POST", "/v1/networks?transient=maybe", &nat("q", 1));
        assert_eq!(problem.code, api::Code::InvalidArgument);
        assert_eq!(daemon.get("/v1/networks"), serde_json::json!([]));

        // Names that mean something to nft.
        for name in ["table", "rt", "drop", "inet", "; flush ruleset", "a\"b"] {
            let xml = nat("n", 1).replace("<name>n<", &format!("<name>{name}<"));
            daemon.post("/v1/networks?transient=true", &xml);
            let path = format!("/v1/networks/{}", name.replace(' ', "%20").replace('"', "%22"));
            daemon.request("POST", &format!("{path}/destroy"), &[], b"");
        }
        let bridge = nat("n", 1).replace("<ip ", "<bridge name='table'/><ip ");
        daemon.post("/v1/networks?transient=true", &bridge);
    });
}

#[test]
fn a_gateway_that_is_deleted_by_hand_is_made_again() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let routed = nat("net1", 1).replace(
            "</network>",
            "<route address='10.78.0.0' prefix='16' gateway='10.77.1.5'/></network>",
        );
        daemon.post("/v1/networks?transient=true", &routed);
        let address = || run("ip -o -4 address show to 10.77.1.1");
        let routes = || run("ip -4 route show");
        let before = (routes(), run("nft list ruleset"));
        assert!(before.0.contains("10.78.0.0/16 via 10.77.1.5 dev virbr0"), "{}", before.0);
        let index = address().split(':').next().map(str::to_owned);
        ip("link delete virbr0");
        wait("the interface is back", || {
            let now = address();
            let made = now.contains("virbr0") && now.split(':').next().map(str::to_owned) != index;
            (made && daemon.get("/v1/networks/net1").get("warnings").is_none()).then_some(())
        });
        assert_eq!((routes(), run("nft list ruleset")), before);
        daemon.request("POST", "/v1/networks/net1/destroy", &[], b"");
        assert!(!links().contains("virbr"));
        assert!(!daemon.log().contains("ERROR vswitchd::network::undo"), "{}", daemon.log());
    });
}

#[test]
fn two_starts_at_once_do_not_race_for_a_subnet() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("one", 1));
        daemon.post("/v1/networks", &nat("two", 1));
        let start = |name: &str| {
            daemon.request("POST", &format!("/v1/networks/{name}/start"), &[], b"").status
        };
        let mut statuses = std::thread::scope(|scope| {
            let one = scope.spawn(|| start("one"));
            [start("two"), one.join().expect("no panic")]
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409]);
    });
}

#[test]
fn a_start_runs_to_its_end_when_the_client_goes_away() {
    use std::io::Write;
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net1", 1));
        let mut stream = daemon.connect().expect("the daemon listens");
        stream
            .write_all(b"POST /v1/networks/net1/start HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("sent");
        drop(stream);
        // Either it was never taken up, or it is complete.
        let problem = daemon.request("POST", "/v1/networks/net1/start", &[], b"");
        assert!(problem.status == 200 || problem.problem().code == api::Code::NetworkActive);
        assert!(run("ip -o -4 address show dev virbr0").contains("10.77.1.1/24"));
        assert!(run("nft list table inet netloom-a").contains("virbr0"));
    });
}
