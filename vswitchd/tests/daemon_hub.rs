//! The hub sockets of networks, on a real daemon in a machine of its own.

mod daemon_env;
mod host_env;

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use daemon_env::{Daemon, nat, wait};
use host_env::machine;
use serde_json::Value;

fn test(body: impl FnOnce(&Path) + Send + 'static) {
    machine(async || {
        let root = tempfile::tempdir().expect("temporary directory");
        body(root.path());
    });
}

/// A daemon with an active network.
fn started(root: &Path) -> Daemon {
    let daemon = Daemon::start("a", root);
    daemon.post("/v1/networks", &nat("net", 1));
    daemon.post("/v1/networks/net/start", "");
    daemon
}

fn configure(root: &Path, text: &str) {
    let etc = root.join("etc/netloom-a");
    std::fs::create_dir_all(&etc).expect("a directory");
    std::fs::write(etc.join("vswitchd.toml"), text).expect("configuration");
}

fn connect(daemon: &Daemon) -> UnixStream {
    UnixStream::connect(daemon.instance().hub_socket("net")).expect("the hub listens")
}

/// Names of the network's ports, when there are so many.
fn ports(daemon: &Daemon, count: usize) -> Vec<String> {
    wait("ports", || {
        let list = daemon.get("/v1/networks/net/ports");
        let names = list.as_array()?.iter().map(|port| port["name"].as_str().map(str::to_owned));
        names.collect::<Option<Vec<_>>>().filter(|names| names.len() == count)
    })
}

fn hub(daemon: &Daemon) -> Value {
    daemon.get("/v1/networks/net")["hub"].clone()
}

/// The other end hangs up.
fn closed(stream: &mut UnixStream) {
    wait("the end", || {
        // Closed with something unread in between, it is reset.
        matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)).then_some(())
    });
}

#[test]
fn each_connection_is_a_port_named_after_its_process() {
    test(|root| {
        let daemon = started(root);
        let socket = daemon.instance().hub_socket("net");
        assert_eq!(hub(&daemon)["socket"], socket.to_str().expect("UTF-8"));
        assert_eq!(socket.metadata().expect("socket").permissions().mode() & 0o777, 0o660);
        let since = daemon.events(0).next().expect("an event")["seq"].as_u64().expect("a number");

        let first = connect(&daemon);
        let names = ports(&daemon, 1);
        let pid = std::process::id();
        assert!(names[0].ends_with(&format!("-{pid}")), "{names:?}");
        let port = daemon.get(&format!("/v1/ports/{}", names[0]));
        assert_eq!((&port["port"]["kind"], &port["port"]["pid"]), (&"hub".into(), &pid.into()));
        assert_eq!(port["state"], "connected");
        let second = connect(&daemon);
        assert_eq!(ports(&daemon, 2), [names[0].clone(), format!("{}-2", names[0])]);
        assert_eq!((&hub(&daemon)["guests"], &hub(&daemon)["limit"]), (&2.into(), &64.into()));
        let on_disk = daemon.instance().state_dir().join("ports");
        assert_eq!(std::fs::read_dir(on_disk).expect("a directory").count(), 0);

        // It leaves, and gets the same port when it is back.
        drop(first);
        ports(&daemon, 1);
        let first = connect(&daemon);
        assert_eq!(ports(&daemon, 2)[0], names[0]);
        assert_eq!(daemon.get(&format!("/v1/ports/{}", names[0]))["uuid"], port["uuid"]);
        drop((first, second));
        ports(&daemon, 0);
        assert_eq!(hub(&daemon)["guests"], 0);
        let events: Vec<String> = daemon
            .events(since)
            .filter_map(|event| event["event"].as_str().map(str::to_owned))
            .filter(|kind| kind.starts_with("port-"))
            .take(6)
            .collect();
        let (added, deleted) = ("port-added", "port-deleted");
        assert_eq!(events, [added, added, deleted, added, deleted, deleted]);
    });
}

#[test]
fn the_profile_is_the_networks_default_one() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let xml = nat("net", 1).replace(
            "</network>",
            "<port isolated='yes'/><portgroup name='p' default='yes'><vlan><tag id='7'/></vlan>\
             </portgroup></network>",
        );
        daemon.post("/v1/networks", &xml);
        daemon.post("/v1/networks/net/start", "");
        let _guest = connect(&daemon);
        let name = &ports(&daemon, 1)[0];
        let port = daemon.get(&format!("/v1/ports/{name}"));
        // Nothing of its own: what the network says holds.
        assert_eq!(port["profile"], serde_json::json!({}), "{port}");
        let add = r#"{"name":"p","port":{"kind":"hub","queue_pairs":1}}"#;
        let problem = daemon.refused("POST", "/v1/networks/net/ports", add);
        assert!(
            problem.remedy.is_some_and(|text| text.contains("hub socket")),
            "{}",
            problem.title
        );
    });
}

#[test]
fn guests_beyond_the_limit_are_refused_and_counted() {
    test(|root| {
        configure(root, "[hub]\nguests = 2\n");
        let daemon = started(root);
        let guests = [connect(&daemon), connect(&daemon)];
        ports(&daemon, 2);
        for _ in 0..3 {
            closed(&mut connect(&daemon));
        }
        assert_eq!((&hub(&daemon)["guests"], &hub(&daemon)["refused"]), (&2.into(), &3.into()));
        assert!(daemon.log().contains("hub.guests"), "{}", daemon.log());
        drop(guests);
        ports(&daemon, 0);
        let _guest = connect(&daemon);
        ports(&daemon, 1);
    });
}

#[test]
fn a_flood_of_connections_keeps_nobody_from_the_daemon() {
    test(|root| {
        let daemon = started(root);
        for _ in 0..100 {
            // Taken, or left in the backlog, and gone.
            let _ = connect(&daemon);
        }
        daemon.post("/v1/networks/net/ports", r#"{"name":"a","port":{"kind":"vhost-user"}}"#);
        assert_eq!(daemon.get("/v1/ports/a")["state"], "listening");
        // A guest behind the flood has its turn.
        let _guest = connect(&daemon);
        assert_eq!(ports(&daemon, 2)[0], "a");
        daemon.delete("/v1/ports/a");
    });
}

#[test]
fn the_hub_goes_and_comes_with_its_network_and_the_daemon() {
    test(|root| {
        let daemon = started(root);
        let socket = daemon.instance().hub_socket("net");
        let mut guest = connect(&daemon);
        ports(&daemon, 1);
        daemon.request("POST", "/v1/networks/net/destroy", &[], b"");
        closed(&mut guest);
        ports(&daemon, 0);
        assert!(!socket.exists());
        assert!(hub(&daemon).is_null());

        daemon.post("/v1/networks/net/start", "");
        let mut guest = connect(&daemon);
        let before = ports(&daemon, 1);
        // Resume records of packed rings: of this port, and of one whose process has ended.
        let uuid = daemon.get(&format!("/v1/ports/{}", before[0]))["uuid"].clone();
        let rings = daemon.instance().run_dir().join("rings");
        let own = rings.join(format!("{}.rings", uuid.as_str().expect("a UUID")));
        let old = rings.join(format!("{}.rings", uuid::Uuid::new_v4()));
        for record in [&own, &old] {
            std::fs::write(record, []).expect("a record");
        }
        let daemon = daemon.crash();
        assert!(own.exists() && !old.exists());
        closed(&mut guest);
        ports(&daemon, 0);
        let mut guest = connect(&daemon);
        assert_eq!(ports(&daemon, 1), before, "the same process gets the same port");
        daemon.delete(&format!("/v1/ports/{}", before[0]));
        closed(&mut guest);
        ports(&daemon, 0);
        assert!(!own.exists());
    });
}

#[test]
fn a_network_may_go_without() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        let xml = nat("net", 1).replace(
            "</network>",
            "<metadata><n:switch xmlns:n='urn:netloom:network:1' hub-socket='no'/></metadata>\
             </network>",
        );
        daemon.post("/v1/networks", &xml);
        daemon.post("/v1/networks/net/start", "");
        assert!(hub(&daemon).is_null());
        assert!(!daemon.instance().hub_socket("net").exists());
    });
}
