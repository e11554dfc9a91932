//! From `--net` to a socket, a MAC address and an MTU.

use anyhow::{Context as _, bail};
use api::{Client, Instance, PortInfo, PortKind, PortState};
use vmm_core::virtio::NetConfig;
use wire::MacAddr;

use crate::args::{NetArg, NetTarget};

/// Prefix that KVM guests' addresses have.
const OUI: [u8; 3] = [0x52, 0x54, 0x00];

/// Asks vswitchd about a port only when something is not given.
pub(crate) fn resolve(net: &NetArg, instance: &Instance) -> anyhow::Result<NetConfig> {
    match &net.target {
        NetTarget::Socket(path) => Ok(NetConfig {
            socket: path.clone(),
            mac: net.mac.unwrap_or_else(random_mac),
            mtu: net.mtu,
        }),
        NetTarget::Port(name) => match (net.mac, net.mtu) {
            (Some(mac), mtu @ Some(_)) => {
                Ok(NetConfig { socket: instance.port_socket(name), mac, mtu })
            }
            (mac, mtu) => {
                let info = ask(name, instance)?;
                check(&info)?;
                let socket = info.socket.unwrap_or_else(|| instance.port_socket(name));
                let known_mtu = u16::try_from(info.mtu).ok().filter(|mtu| *mtu >= 68);
                Ok(NetConfig { socket, mac: mac.unwrap_or(info.mac), mtu: mtu.or(known_mtu) })
            }
        },
    }
}

fn ask(name: &str, instance: &Instance) -> anyhow::Result<PortInfo> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime
        .block_on(Client::new(instance).port(name))
        .with_context(|| format!("cannot learn about port {name} from vswitchd"))
}

fn check(info: &PortInfo) -> anyhow::Result<()> {
    let name = &info.name;
    match &info.port {
        PortKind::VhostUser { connect: None, .. } => {}
        PortKind::VhostUser { connect: Some(_), .. } => bail!(
            "port {name} is for a virtual machine monitor that listens, this one connects: \
             add a port without --connect"
        ),
        _ => bail!("port {name} is not a vhost-user port: a virtual machine cannot use it"),
    }
    // A port that is `up` may be on its way back from a machine that just ended: connecting tells.
    if info.state == PortState::Down {
        bail!("network {0} is not active: start it with `netctl net-start {0}`", info.network);
    }
    Ok(())
}

fn random_mac() -> MacAddr {
    let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
    MacAddr([OUI[0], OUI[1], OUI[2], a, b, c])
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A daemon that knows one port, for one question.
    fn daemon(instance: &Instance, kind: &str, state: &str) -> JoinHandle<String> {
        std::fs::create_dir_all(instance.run_dir()).unwrap();
        let listener = UnixListener::bind(instance.api_socket()).unwrap();
        let body = format!(
            r#"{{"name":"web1","uuid":"6f1c2c1e-5c1a-4d07-9a3f-0f4b8a5e7c11","network":"default",
                "port":{kind},"mac":"52:54:00:01:02:03","profile":{{}},"state":"{state}",
                "socket":"/run/x/port/web1","mtu":1400}}"#
        );
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            String::from_utf8(request).unwrap()
        })
    }

    const VHOST_USER: &str = r#"{"kind":"vhost-user"}"#;

    fn instance(directory: &tempfile::TempDir) -> Instance {
        Instance::new("t", directory.path()).unwrap()
    }

    #[test]
    fn a_port_brings_its_socket_mac_and_mtu_unless_given() {
        let directory = tempfile::tempdir().unwrap();
        let instance = instance(&directory);
        let daemon = daemon(&instance, VHOST_USER, "listening");
        let net = resolve(&"web1,mtu=1300".parse().unwrap(), &instance).unwrap();
        assert_eq!(net.socket.to_str(), Some("/run/x/port/web1"));
        assert_eq!(net.mac, MacAddr([0x52, 0x54, 0, 1, 2, 3]));
        assert_eq!(net.mtu, Some(1300));
        assert!(daemon.join().unwrap().starts_with("GET /v1/ports/web1 "));
    }

    #[test]
    fn ports_that_cannot_be_used_say_why() {
        for (kind, state, expected) in [
            (VHOST_USER, "down", "netctl net-start default"),
            (r#"{"kind":"tap","ifname":"t0"}"#, "up", "not a vhost-user port"),
            (r#"{"kind":"vhost-user","connect":"/s"}"#, "up", "without --connect"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let instance = instance(&directory);
            let daemon = daemon(&instance, kind, state);
            let error = resolve(&"web1".parse().unwrap(), &instance).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            daemon.join().unwrap();
        }
    }

    #[test]
    fn a_port_with_everything_given_and_a_socket_need_no_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let instance = instance(&directory);
        let net = "web1,mac=52:54:00:00:00:01,mtu=1500".parse().unwrap();
        let net = resolve(&net, &instance).unwrap();
        assert_eq!(net.socket, instance.port_socket("web1"));
        let net = resolve(&"/tmp/s".parse().unwrap(), &instance).unwrap();
        assert_eq!(net.mac.0[..3], OUI);
        assert_eq!(net.mtu, None);
        let error = resolve(&"web1".parse().unwrap(), &instance).unwrap_err();
        assert!(format!("{error:#}").contains("port web1 from vswitchd"), "{error:#}");
    }
}
