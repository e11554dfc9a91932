//! udhcpc, dhclient, dig, and the server's command line.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use dhcpd::lease::Store;

use crate::lab::{CONFIG, Lab};
use crate::support::{isolated, run, wait_for};

/// Runs udhcpc once; the variables that it gave to its script at the end.
fn udhcpc(lab: &Lab, words: &[&str]) -> HashMap<String, String> {
    script(lab);
    let usual = ["udhcpc", "-i", "c0", "-f", "-q", "-n", "-t", "5", "-T", "2", "-s", "./script"];
    lab.client("busybox", &[&usual, words].concat());
    variables(lab)
}

fn script(lab: &Lab) {
    let script = lab.path("script");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = deconfig ] || { env; echo event=$1; } > env.new\nmv env.new env 2>/dev/null || true\n")
        .expect("it can be written");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("it is ours");
}

fn variables(lab: &Lab) -> HashMap<String, String> {
    let text = std::fs::read_to_string(lab.path("env")).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn udhcpc_gets_its_lease_and_its_name() {
    isolated(|| {
        let mut lab = Lab::new();
        lab.start(CONFIG);
        let options = ["-x", "hostname:busy", "-O", "mtu", "-O", "domain"];
        let got = udhcpc(&lab, &options);
        for (name, value) in [
            ("event", "bound"),
            ("router", "10.77.0.1"),
            ("dns", "10.77.0.1"),
            ("domain", "net77.test"),
            ("mtu", "1400"),
            ("serverid", "10.77.0.1"),
            ("lease", "3600"),
            ("mask", "16"),
        ] {
            assert_eq!(got.get(name).map(String::as_str), Some(value), "{name} in {got:?}");
        }
        let ip = &got["ip"];
        assert!(ip.starts_with("10.77."));
        lab.client("ip", &["addr", "add", &format!("{ip}/16"), "dev", "c0"]);
        assert_eq!(lab.dig(&["busy.net77.test"]), *ip);
        assert_eq!(lab.dig(&["+tcp", "busy.net77.test"]), *ip);
        assert_eq!(lab.dig(&["-x", ip]), "busy.net77.test.");
        assert_eq!(lab.dig(&["gw.net77.test"]), "10.77.0.1");
        assert_eq!(lab.dig(&["none.net77.test"]), "");
        // The same address again, also when the server was away meanwhile.
        assert_eq!(udhcpc(&lab, &options)["ip"], *ip);
        assert!(lab.end("-TERM").success());
        lab.start(CONFIG);
        assert_eq!(lab.dig(&["busy.net77.test"]), *ip, "names come back with the leases");
        assert_eq!(udhcpc(&lab, &options)["ip"], *ip);
        // By unicast answers and with the broadcast flag alike.
        assert_eq!(udhcpc(&lab, &["-B"])["ip"], *ip);
        assert!(lab.end("-TERM").success());
    });
}

#[test]
fn udhcpc_renews_by_unicast() {
    isolated(|| {
        let mut lab = Lab::new();
        lab.start(CONFIG);
        script(&lab);
        let words = ["udhcpc", "-i", "c0", "-f", "-s", "./script", "-R"];
        let child = lab.client_command("busybox", &words).stderr(Stdio::null()).spawn();
        let client = Background(child.expect("it starts"));
        let event = |event: &'static str| {
            wait_for(event, || {
                let got = variables(&lab);
                (got.get("event").map(String::as_str) == Some(event)).then_some(got)
            })
        };
        let ip = event("bound")["ip"].clone();
        lab.client("ip", &["addr", "add", &format!("{ip}/16"), "dev", "c0"]);
        // The kernel sends this one, and leaves the checksum to a device that is not there.
        run(std::process::Command::new("kill").args(["-USR1", &client.0.id().to_string()]));
        assert_eq!(event("renew")["ip"], ip);
        // Release, by unicast too, then end.
        run(std::process::Command::new("kill").args(["-TERM", &client.0.id().to_string()]));
        wait_for("the release", || lab.log().contains("why=Released").then_some(()));
        assert!(lab.end("-TERM").success());
        let stored = Store::open(&lab.path("leases")).expect("it opens").leases;
        assert_eq!(stored, []);
    });
}

#[test]
fn dhclient_gets_renews_and_releases() {
    isolated(|| {
        let mut lab = Lab::new();
        lab.start(CONFIG);
        std::fs::write(lab.path("dhclient.conf"), "send host-name \"isc\";\ntimeout 20;\n")
            .expect("it can be written");
        std::fs::write(lab.path("dhclient.leases"), "").expect("it can be written");
        let path = |name: &str| lab.path(name).to_str().expect("text").to_owned();
        let files = [path("dhclient.leases"), path("dhclient.pid"), path("dhclient.conf")];
        let dhclient = |words: &[&str]| {
            let files = ["-sf", "/bin/true", "-lf", &files[0], "-pf", &files[1], "-cf", &files[2]];
            lab.client("dhclient", &[&["-4"], words, &files, &["c0"]].concat());
        };
        dhclient(&["-1"]);
        let leases = std::fs::read_to_string(lab.path("dhclient.leases")).expect("it is there");
        let ip = leases.lines().find_map(|line| line.trim().strip_prefix("fixed-address "));
        let ip = ip.expect("a lease").trim_end_matches(';').to_owned();
        for line in [
            "option routers 10.77.0.1;",
            "option subnet-mask 255.255.0.0;",
            "option dhcp-lease-time 3600;",
        ] {
            assert!(leases.contains(line), "{line} in {leases}");
        }
        lab.client("ip", &["addr", "add", &format!("{ip}/16"), "dev", "c0"]);
        assert_eq!(lab.dig(&["isc.net77.test"]), ip);
        // A second start asks for the address that it had.
        dhclient(&["-x"]);
        dhclient(&["-1"]);
        assert_eq!(lab.dig(&["isc.net77.test"]), ip);
        dhclient(&["-r"]);
        wait_for("the release", || lab.log().contains("why=Released").then_some(()));
        assert_eq!(lab.dig(&["isc.net77.test"]), "");
        assert!(lab.end("-TERM").success());
    });
}

#[test]
fn static_hosts_and_reload() {
    isolated(|| {
        let mut lab = Lab::new();
        lab.client("ip", &["link", "set", "c0", "address", "52:54:00:aa:bb:cc"]);
        lab.start(CONFIG);
        let before = udhcpc(&lab, &[])["ip"].clone();
        assert_ne!(before, "10.77.0.99");
        let host =
            "[[dhcp4.hosts]]\nmac = \"52:54:00:aa:bb:cc\"\nname = \"fixed\"\nip = \"10.77.0.99\"\n";
        lab.write_config(&CONFIG.replace("[dns]", &format!("{host}[dns]")));
        lab.signal("-HUP");
        wait_for("the reload", || lab.log().contains("read again").then_some(()));
        assert_eq!(udhcpc(&lab, &[])["ip"], "10.77.0.99");
        lab.client("ip", &["addr", "add", "10.77.0.99/16", "dev", "c0"]);
        assert_eq!(lab.dig(&["fixed.net77.test"]), "10.77.0.99");
        // A broken file leaves everything as it is.
        lab.write_config("interface = 7");
        lab.signal("-HUP");
        wait_for("the complaint", || lab.log().contains("not taken").then_some(()));
        assert_eq!(udhcpc(&lab, &[])["ip"], "10.77.0.99");
        assert!(lab.end("-INT").success());
    });
}

#[test]
fn the_command_line() {
    isolated(|| {
        let mut lab = Lab::new();
        let config = lab.write_config(CONFIG);
        let output = run(lab.program(&config).arg("--check"));
        assert!(String::from_utf8_lossy(&output.stdout).contains("the configuration is good"));
        let wrong = lab.path("wrong.toml");
        let fails = |command: &mut std::process::Command, expected: &str| {
            let output = command.output().expect("it starts");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(expected), "{text}");
        };
        std::fs::write(&wrong, "interface = \"s0\"\nfoo = 1\n").expect("it can be written");
        fails(lab.program(&wrong).arg("--check"), "unknown field `foo`");
        fails(&mut lab.program(&lab.path("none.toml")), "cannot read the configuration file");
        let other = CONFIG.replace("\"s0\"", "\"none0\"");
        std::fs::write(&wrong, other).expect("it can be written");
        fails(&mut lab.program(&wrong), "there is no interface none0");
        // A second server on the interface.
        lab.start(CONFIG);
        fails(&mut lab.program(&config), "is another DHCP server running?");
        assert!(lab.end("-TERM").success());
    });
}
