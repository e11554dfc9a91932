//! Ports, by HTTP on a real daemon in a machine of its own.

mod daemon_env;
mod host_env;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use daemon_env::{Daemon, nat, wait};
use host_env::{ip, machine, run};

fn test(body: impl FnOnce(&std::path::Path) + Send + 'static) {
    machine(async || {
        let root = tempfile::tempdir().expect("temporary directory");
        body(root.path());
    });
}

const PORTS: &str = "/v1/networks/net/ports";

#[test]
fn a_vhost_user_port_has_a_socket_for_its_group() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net", 1));
        let added = daemon.post(
            PORTS,
            r#"{"name":"web1","port":{"kind":"vhost-user","group":"4711","queue_pairs":2}}"#,
        );
        assert_eq!(added["state"], "down", "the network is not active");
        let socket = daemon.instance().port_socket("web1");
        assert!(!socket.exists());

        daemon.post("/v1/networks/net/start", "");
        assert_eq!(daemon.get("/v1/ports/web1")["state"], "listening");
        let metadata = socket.metadata().expect("socket");
        assert!(metadata.file_type().is_socket());
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, 4711));

        let uuid = added["uuid"].as_str().expect("a UUID");
        assert_eq!(daemon.get(&format!("/v1/ports/{uuid}"))["name"], "web1");
        assert_eq!(daemon.get("/v1/ports/web1/stats")["rx_packets"], 0);
        daemon.request("POST", "/v1/networks/net/destroy", &[], b"");
        assert_eq!(daemon.get("/v1/ports/web1")["state"], "down");
        assert!(!socket.exists());
        daemon.post("/v1/networks/net/start", "");
        daemon.delete("/v1/ports/web1");
        assert!(!socket.exists());
        let problem = daemon.refused("GET", "/v1/ports/web1", "");
        assert_eq!(problem.code, api::Code::PortNotFound);
    });
}

#[test]
fn a_port_connects_to_the_vmm_that_listens_also_after_restarts() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net", 1));
        daemon.post("/v1/networks/net/start", "");
        let socket = root.join("vm.sock");
        let shown = socket.display();
        let add =
            format!(r#"{{"name":"web1","port":{{"kind":"vhost-user","connect":"{shown}"}}}}"#);
        let added = daemon.post(PORTS, &add);
        assert_eq!(added["state"], "connecting", "{added}");
        assert_eq!(added["socket"], socket.to_str().expect("UTF-8"));
        wait("a reason", || {
            let port = daemon.get("/v1/ports/web1");
            port["reason"].as_str().filter(|text| text.contains("waiting for a VMM")).map(drop)
        });
        // Both ends come back, in any order.
        let listener = UnixListener::bind(&socket).expect("a listener");
        let (first, _) = listener.accept().expect("the daemon connects");
        let daemon = daemon.crash();
        let (second, _) = listener.accept().expect("the next daemon connects");
        drop((first, listener));
        std::fs::remove_file(&socket).expect("a socket");
        let listener = UnixListener::bind(&socket).expect("a listener");
        drop(second);
        listener.accept().expect("the daemon connects again");
        daemon.delete("/v1/ports/web1");
        assert!(socket.exists(), "it is not ours");
    });
}

#[test]
fn sockets_are_dressed_as_the_port_says_or_the_configuration() {
    test(|root| {
        let etc = root.join("etc/netloom-a");
        std::fs::create_dir_all(&etc).expect("a directory");
        let config = "[ports]\nsocket_owner = '4711'\nsocket_group = '4712'\nsocket_mode = 0o600\n";
        std::fs::write(etc.join("vswitchd.toml"), config).expect("configuration");
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net", 1));
        daemon.post("/v1/networks/net/start", "");
        let dressed = |name: &str, access: &str| {
            let add = format!(r#"{{"name":"{name}","port":{{"kind":"vhost-user"{access}}}}}"#);
            daemon.post(PORTS, &add);
            let metadata = daemon.instance().port_socket(name).metadata().expect("socket");
            (metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777)
        };
        assert_eq!(dressed("a", ""), (4711, 4712, 0o600));
        assert_eq!(dressed("b", r#","mode":"0666""#), (4711, 4712, 0o666));
        assert_eq!(dressed("c", r#","owner":"root","group":"0""#), (0, 0, 0o600));
    });
}

#[test]
fn sockets_that_cannot_be_are_refused_with_a_remedy() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net", 1));
        let long = format!(r#""connect":"/{}""#, "x".repeat(107));
        for (access, words) in [
            (r#""connect":"vm.sock""#, "not the path of a socket"),
            (r#""connect":"/a\u0000b""#, "not the path of a socket"),
            (long.as_str(), "108 bytes, 1 more"),
            (r#""connect":"/run/vm.sock","mode":"0600""#, "is the VMM's socket"),
            (r#""owner":"no-such-user-here""#, "there is no user"),
            (r#""group":"no-such-group-here""#, "there is no group"),
            (r#""mode":"0o660""#, "not a mode"),
            (r#""mode":"1777""#, "not a mode"),
            (r#""selinux":"no:such:context""#, "SELinux"),
        ] {
            let add = format!(r#"{{"name":"p","port":{{"kind":"vhost-user",{access}}}}}"#);
            let problem = daemon.refused("POST", PORTS, &add);
            assert_eq!(problem.code, api::Code::InvalidArgument, "{access}: {problem}");
            assert!(problem.title.contains(words), "{access}: {problem}");
        }
    });
}

#[test]
fn a_namespace_port_comes_back_after_everything_but_its_namespaces_end() {
    test(|root| {
        ip("netns add blue");
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks", &nat("net", 1));
        daemon.post("/v1/networks/net/start", "");
        let add = r#"{"name":"b","mac":"52:54:00:00:00:07",
                      "port":{"kind":"namespace","netns":"blue","ifname":"eth0"}}"#;
        assert_eq!(daemon.post(PORTS, add)["state"], "up");
        let inside = || run("ip -n blue -o link show dev eth0");
        let first = inside();
        assert!(first.contains("52:54:00:00:00:07"), "{first}");
        let index = |line: &str| line.split(':').next().map(str::to_owned);

        let daemon = daemon.restart();
        assert_eq!(daemon.get("/v1/ports/b")["state"], "up");
        assert_eq!(index(&inside()), index(&first), "the same interface");
        let daemon = daemon.crash();
        assert_eq!(daemon.get("/v1/ports/b")["state"], "up");
        assert_eq!(index(&inside()), index(&first), "the same interface");

        daemon.request("POST", "/v1/networks/net/destroy", &[], b"");
        assert!(!run("ip -n blue -o link show").contains("eth0"));
        daemon.post("/v1/networks/net/start", "");
        assert!(inside().contains("52:54:00:00:00:07"));

        let since = daemon.events(0).next().expect("an event")["seq"].as_u64().expect("a number");
        ip("netns delete blue");
        let gone = daemon
            .events(since)
            .find(|event| event["event"] == "port-state")
            .expect("a port-state event");
        assert_eq!((&gone["port"], &gone["state"]), (&"b".into(), &"gone".into()));
        let info = daemon.get("/v1/ports/b");
        assert_eq!(info["state"], "gone");
        assert!(info["reason"].as_str().expect("a reason").contains("blue"));
        // It is still there for when the namespace is.
        let daemon = daemon.restart();
        let info = daemon.get("/v1/ports/b");
        assert_ne!(info["state"], "up");
        assert!(info["reason"].as_str().expect("a reason").contains("blue"), "{info}");
        assert_eq!(daemon.get("/v1/networks/net")["warnings"].as_array().map(Vec::len), Some(1));
        ip("netns add blue");
        wait("the port is back", || (daemon.get("/v1/ports/b")["state"] == "up").then_some(()));
        assert!(inside().contains("52:54:00:00:00:07"));
        assert!(daemon.get("/v1/networks/net").get("warnings").is_none());
    });
}

#[test]
fn a_tap_that_is_deleted_by_hand_is_gone() {
    test(|root| {
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks?transient=true", &nat("net", 1));
        daemon.post(PORTS, r#"{"name":"t","port":{"kind":"tap","ifname":"tap7"}}"#);
        ip("link delete tap7");
        wait("the port is gone", || (daemon.get("/v1/ports/t")["state"] == "gone").then_some(()));
        daemon.delete("/v1/ports/t");
    });
}

#[test]
fn what_cannot_be_a_port_is_refused_and_leaves_nothing() {
    test(|root| {
        ip("link add far type veth peer name near");
        let daemon = Daemon::start("a", root);
        daemon.post("/v1/networks?transient=true", &nat("net", 1));
        let before = run("ip -o link show");
        let web = r#"{"name":"web1","port":{"kind":"vhost-user"}}"#;
        daemon.post(PORTS, web);
        let problem = daemon.refused("POST", PORTS, web);
        assert_eq!(problem.code, api::Code::PortExists);
        for (body, code) in [
            (r#"{"name":"a/b","port":{"kind":"vhost-user"}}"#, api::Code::InvalidArgument),
            (r#"{"name":"","port":{"kind":"vhost-user"}}"#, api::Code::InvalidArgument),
            (
                r#"{"name":"p","port":{"kind":"vhost-user","group":"no-such-group-here"}}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"vhost-user","queue_pairs":0}}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"vhost-user"},"mac":"01:00:5e:00:00:01"}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"vhost-user"},"profile":{"portgroup":"x"}}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"vhost-user"},"profile":{"vlan":{"access":5000}}}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"vhost-user"},"colour":"red"}"#,
                api::Code::InvalidArgument,
            ),
            ("{", api::Code::InvalidArgument),
            (
                r#"{"name":"p","port":{"kind":"tap","ifname":"sixteen-letters-"}}"#,
                api::Code::InvalidArgument,
            ),
            (r#"{"name":"p","port":{"kind":"tap","ifname":"near"}}"#, api::Code::InvalidArgument),
            (
                r#"{"name":"p","port":{"kind":"packet","ifname":"absent"}}"#,
                api::Code::InvalidArgument,
            ),
            (
                r#"{"name":"p","port":{"kind":"namespace","netns":"absent","ifname":"eth0"}}"#,
                api::Code::InvalidArgument,
            ),
        ] {
            assert_eq!(daemon.refused("POST", PORTS, body).code, code, "{body}");
        }
        let problem = daemon.refused("POST", "/v1/networks/other/ports", web);
        assert_eq!(problem.code, api::Code::NetworkNotFound);
        assert_eq!(run("ip -o link show"), before);
        assert_eq!(daemon.get("/v1/ports").as_array().map(Vec::len), Some(1));
    });
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_a_remedy() {
    test(|root| {
        let deep = root.join("d".repeat(60));
        std::fs::create_dir(&deep).expect("directory");
        let daemon = Daemon::start("a", &deep);
        daemon.post("/v1/networks", &nat("net", 1));
        let body = format!(r#"{{"name":"{}","port":{{"kind":"vhost-user"}}}}"#, "p".repeat(32));
        let problem = daemon.refused("POST", PORTS, &body);
        assert_eq!(problem.code, api::Code::InvalidArgument);
        assert!(problem.title.contains("bytes"), "{problem:?}");
        assert!(problem.remedy.expect("a remedy").contains("--root"));
    });
}
