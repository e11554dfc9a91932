//! What survives a stop, a crash and a reboot, and what does not.

mod daemon_env;
mod host_env;

use std::process::Command;
use std::time::Duration;

use daemon_env::{Daemon, finish, nat, vswitchd, wait};
use host_env::{ip, machine, run};

fn test(body: impl FnOnce(&std::path::Path) + Send + 'static) {
    machine(async || {
        let root = tempfile::tempdir().expect("temporary directory");
        body(root.path());
    });
}

/// What guests and the host see of the instance.
fn outside(table: &str) -> (String, String, String) {
    let links = run("ip -o link show dev virbr0");
    // The carrier and what hangs on it come and go with the daemon.
    let index = links.split(':').next().unwrap_or_default().to_owned();
    let addresses = run("ip -o -4 address show dev virbr0");
    (index, addresses, run(&format!("nft list table inet {table}")))
}

#[test]
fn a_stop_is_not_a_destroy() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net1", 1));
        daemon.post("/v1/networks/net1/start", "");
        daemon.post("/v1/networks/net1/ports", r#"{"name":"w","port":{"kind":"vhost-user"}}"#);
        daemon.post("/v1/networks?transient=true", &nat("quick", 2));
        let before = outside("netloom-a");
        let mac = daemon.get("/v1/ports/w")["mac"].clone();
        let networks = daemon.get("/v1/networks");

        let daemon = daemon.restart();
        assert_eq!(outside("netloom-a"), before);
        assert_eq!(daemon.get("/v1/networks"), networks, "also the transient one");
        let daemon = daemon.crash();
        assert_eq!(outside("netloom-a"), before);
        assert_eq!(daemon.get("/v1/networks"), networks);
        let port = daemon.get("/v1/ports/w");
        assert_eq!((&port["mac"], &port["state"]), (&mac, &"listening".into()));

        let took = daemon.stop();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(outside("netloom-a"), before, "a stopped daemon leaves everything");
        let mut teardown = vswitchd("a", root);
        teardown.arg("--teardown");
        let (status, text) = finish(teardown);
        assert!(status.success(), "{text}");
        assert!(!run("ip -o link show").contains("virbr"));
        assert_eq!(run("nft list ruleset"), "");
        let daemon = Daemon::start("a", root);
        assert_eq!(daemon.get("/v1/networks/net1")["active"], false);
        assert_eq!(daemon.get("/v1/ports/w")["state"], "down");
    });
}

#[test]
fn an_event_stream_does_not_delay_the_stop() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net1", 1));
        let mut events = daemon.events(0);
        assert!(events.next().is_some());
        let took = daemon.stop();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(events.next().is_none());
    });
}

#[test]
fn after_a_reboot_only_autostart_networks_are_active() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        for (name, octet) in [("auto", 1), ("manual", 2)] {
            daemon.post("/v1/networks", &nat(name, octet));
            daemon.post(&format!("/v1/networks/{name}/start"), "");
        }
        daemon.put("/v1/networks/auto/autostart", "{\"autostart\":true}");
        let run_dir = daemon.instance().run_dir();
        daemon.stop();
        // As a reboot leaves it: another boot id, no interfaces, no rules.
        std::fs::write(run_dir.join("autostarted"), "an earlier boot").expect("mark");
        for entry in std::fs::read_dir(run_dir.join("state")).expect("run state") {
            let path = entry.expect("entry").path();
            let text = std::fs::read_to_string(&path).expect("run state");
            let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            value["boot"] = "an earlier boot".into();
            std::fs::write(&path, value.to_string()).expect("run state");
        }
        ip("link delete virbr0\nlink delete virbr1");

        let daemon = Daemon::start("a", root);
        assert_eq!(daemon.get("/v1/networks/auto")["active"], true);
        assert_eq!(daemon.get("/v1/networks/manual")["active"], false);
        // Within the boot, what was destroyed stays so.
        daemon.request("POST", "/v1/networks/auto/destroy", &[], b"");
        let daemon = daemon.restart();
        assert_eq!(daemon.get("/v1/networks/auto")["active"], false);
    });
}

#[test]
fn orphans_are_removed_and_foreign_devices_are_not() {
    test(|root| {
        let uuid = "3b6f0a44-9d7e-4a51-8c3e-000000000001";
        ip(&format!(
            "tuntap add dev orphan0 mode tap multi_queue\n\
             link set orphan0 alias netloom:a:{uuid}\n\
             tuntap add dev other0 mode tap\n\
             link set other0 alias netloom:b:{uuid}\n\
             tuntap add dev plain0 mode tap"
        ));
        let _daemon = Daemon::start("a", root);
        let links = run("ip -o link show");
        assert!(!links.contains("orphan0"), "{links}");
        assert!(links.contains("other0") && links.contains("plain0"), "{links}");
    });
}

#[test]
fn a_broken_document_is_named_and_does_not_stop_the_others() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("good", 1));
        daemon.post("/v1/networks", &nat("bad", 2));
        daemon.post("/v1/networks/good/ports", r#"{"name":"w","port":{"kind":"vhost-user"}}"#);
        let instance = daemon.instance();
        daemon.stop();
        let bad = instance.config_dir().join("networks/bad.xml");
        std::fs::write(&bad, "<network>\n<name>bad</na>\n</network>").expect("damage");
        std::fs::write(instance.state_dir().join("ports/x.json"), "{").expect("damage");
        // What a crash in the middle of a write leaves.
        let torn = instance.config_dir().join("networks/good.xml.new");
        std::fs::write(&torn, "<netw").expect("leftover");

        let mut check = vswitchd("a", root);
        check.arg("--check");
        let (status, text) = finish(check);
        assert!(!status.success());
        assert!(text.contains("bad.xml, line 2") && text.contains("x.json"), "{text}");

        let daemon = Daemon::start("a", root);
        assert_eq!(daemon.get("/v1/networks").as_array().map(Vec::len), Some(1));
        assert_eq!(daemon.get("/v1/ports/w")["network"], "good");
        assert!(daemon.log().contains("bad.xml"), "{}", daemon.log());
        assert!(!torn.exists());
        assert!(bad.exists(), "it is the user's to mend");
    });
}

#[test]
fn a_second_daemon_is_refused_with_the_firsts_pid() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let (status, text) = finish(vswitchd("a", root));
        assert!(!status.success());
        assert!(text.contains(&format!("process {}", daemon.pid())), "{text}");
        let mut teardown = vswitchd("a", root);
        teardown.arg("--teardown");
        let (status, _) = finish(teardown);
        assert!(!status.success(), "and so is a teardown under a running daemon");
        daemon.get("/v1/instance");
    });
}

#[test]
fn check_says_what_is_wrong_with_the_configuration() {
    test(|root| {
        let check = || -> Command {
            let mut command = vswitchd("a", root);
            command.arg("--check");
            command
        };
        assert!(finish(check()).0.success());
        let config = root.join("etc/netloom-a");
        std::fs::create_dir_all(&config).expect("directory");
        std::fs::write(config.join("vswitchd.toml"), "[datapath]\nworker = 2\n").expect("file");
        let (status, text) = finish(check());
        assert!(!status.success());
        assert!(text.contains("line 2") && text.contains("worker"), "{text}");
        let (status, _) = finish(vswitchd("a", root));
        assert!(!status.success(), "the daemon does not start on it either");
    });
}

#[test]
fn a_busy_port_53_does_not_keep_a_network_from_coming_back() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks?transient=true", &nat("net1", 1));
        daemon.stop();
        let taken = std::net::UdpSocket::bind("0.0.0.0:53").expect("port 53 is free here");
        let daemon = Daemon::start("a", root);
        let info = daemon.get("/v1/networks/net1");
        assert_eq!(info["active"], true);
        let warning = info["warnings"][0].as_str().expect("a warning").to_owned();
        assert!(warning.starts_with("DHCP and DNS are not served"), "{warning}");
        assert!(warning.contains(&std::process::id().to_string()), "{warning}");
        drop(taken);
        wait("DHCP and DNS are served", || {
            daemon.get("/v1/networks/net1").get("warnings").is_none().then_some(())
        });
        assert!(std::net::UdpSocket::bind("10.77.1.1:53").is_err(), "somebody listens");
    });
}

#[test]
fn ports_of_a_transient_network_end_with_the_boot() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks?transient=true", &nat("net1", 1));
        daemon.post("/v1/networks/net1/ports", r#"{"name":"w","port":{"kind":"vhost-user"}}"#);
        let instance = daemon.instance();
        daemon.stop();
        for entry in std::fs::read_dir(instance.run_dir().join("state")).expect("run state") {
            std::fs::remove_file(entry.expect("entry").path()).expect("removed");
        }
        let daemon = Daemon::start("a", root);
        assert_eq!(daemon.get("/v1/ports"), serde_json::json!([]));
        let ports = std::fs::read_dir(instance.state_dir().join("ports")).expect("ports");
        assert_eq!(ports.count(), 0);
        assert!(!run("ip -o link show").contains("virbr"));
    });
}
