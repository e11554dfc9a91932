//! How to attach a guest to a port: text to paste.
//!
//! A guest's memory must be shared with the switch, whatever runs it: both snippets for
//! vhost-user start with that. `reconnect` lets a guest survive a restart of the daemon; where the
//! VMM listens, it is the daemon that comes back.

use std::fmt::Write as _;
use std::path::Path;

use api::{Instance, PortInfo, PortKind};

/// What to paste where, for a port of this kind; empty when there is nothing to attach.
pub(super) fn snippets(port: &PortInfo, instance: &Instance) -> String {
    match (&port.port, &port.socket) {
        (PortKind::VhostUser { connect, queue_pairs, .. }, Some(socket)) => {
            let listens = if connect.is_some() { Listens::Vmm } else { Listens::Switch };
            vhost_user(port, socket, listens, *queue_pairs, instance)
        }
        (PortKind::Namespace { netns, ifname }, _) => format!(
            "In the namespace:\n  ip netns exec {} udhcpc -i {}\n",
            shell(netns),
            shell(ifname)
        ),
        _ => String::new(),
    }
}

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    Switch,
    Vmm,
}

fn vhost_user(
    port: &PortInfo,
    socket: &Path,
    listens: Listens,
    pairs: u16,
    instance: &Instance,
) -> String {
    let socket = socket.to_string_lossy();
    let name = &port.name;
    let mac = port.mac;
    let path = shell(&socket.replace(',', ",,"));
    let (queues, vectors) = if pairs > 1 {
        (format!(",queues={pairs}"), format!(",mq=on,vectors={}", 2 * pairs + 2))
    } else {
        (String::new(), String::new())
    };
    // Both come back when the other side has been restarted.
    let (role, source) = match listens {
        Listens::Switch => (
            "reconnect=1",
            " mode='client'>\n        <reconnect enabled='yes' timeout='1'/>\n      </source>",
        ),
        Listens::Vmm => ("server=on,wait=off", " mode='server'/>"),
    };
    let mut text = String::new();
    let _ = write!(
        text,
        "QEMU:
  -machine q35,accel=kvm,memory-backend=mem -m 1G \\
  -object memory-backend-memfd,id=mem,size=1G,share=on \\
  -chardev socket,id=chr-{name},path={path},{role} \\
  -netdev vhost-user,id=net-{name},chardev=chr-{name}{queues} \\
  -device virtio-net-pci,netdev=net-{name},mac={mac}{vectors}
  # without KVM: accel=tcg, and vectors=0 for the device

libvirt domain XML:
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>
    <interface type='vhostuser'>
      <mac address='{mac}'/>
      <source type='unix' path='{}'{source}
      <model type='virtio'/>
",
        xml(&socket)
    );
    if pairs > 1 {
        let _ = writeln!(text, "      <driver queues='{pairs}'/>");
    }
    text.push_str("    </interface>\n  </devices>\n");
    if listens == Listens::Switch {
        text.push_str(&netloom_vmm(name, instance));
    }
    text
}

/// It connects, and does not listen.
fn netloom_vmm(port: &str, instance: &Instance) -> String {
    let mut vmm = "netloom-vmm".to_owned();
    if instance.name() != Instance::DEFAULT {
        let _ = write!(vmm, " --instance {}", instance.name());
    }
    if instance.root() != Path::new("/") {
        let _ = write!(vmm, " --root {}", shell(&instance.root().to_string_lossy()));
    }
    format!(
        "\nnetloom-vmm:\n  {vmm} --kernel vmlinuz --initrd initrd.img --memory 1G --net {port}\n"
    )
}

/// One word for a shell.
fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use api::{PortProfile, PortState};
    use uuid::Uuid;

    use super::*;

    fn port(kind: PortKind, socket: Option<&str>) -> PortInfo {
        PortInfo {
            name: "web1".to_owned(),
            uuid: Uuid::nil(),
            network: "default".to_owned(),
            port: kind,
            mac: "52:54:00:12:34:56".parse().expect("a MAC"),
            profile: PortProfile::default(),
            state: PortState::Listening,
            reason: None,
            socket: socket.map(Into::into),
            mtu: 1500,
        }
    }

    fn vhost(connect: Option<&str>, queue_pairs: u16) -> PortKind {
        let access = api::SocketAccess::default();
        PortKind::VhostUser { connect: connect.map(Into::into), access, queue_pairs }
    }

    #[test]
    fn a_vmm_that_listens_is_told_so() {
        let path = "/run/vm/web1.sock";
        let instance = Instance::new("netloom", "/").expect("a good name");
        let text = snippets(&port(vhost(Some(path), 1), Some(path)), &instance);
        for words in [
            "-chardev socket,id=chr-web1,path=/run/vm/web1.sock,server=on,wait=off \\\n",
            "      <source type='unix' path='/run/vm/web1.sock' mode='server'/>\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(!text.contains("reconnect") && !text.contains("netloom-vmm"), "{text}");
    }

    #[test]
    fn a_vhost_user_port_has_three_ways_in() {
        let kind = vhost(None, 1);
        let instance = Instance::new("netloom", "/").expect("a good name");
        assert_eq!(
            snippets(&port(kind, Some("/run/netloom/port/web1")), &instance),
            "QEMU:
  -machine q35,accel=kvm,memory-backend=mem -m 1G \\
  -object memory-backend-memfd,id=mem,size=1G,share=on \\
  -chardev socket,id=chr-web1,path=/run/netloom/port/web1,reconnect=1 \\
  -netdev vhost-user,id=net-web1,chardev=chr-web1 \\
  -device virtio-net-pci,netdev=net-web1,mac=52:54:00:12:34:56
  # without KVM: accel=tcg, and vectors=0 for the device

libvirt domain XML:
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>
    <interface type='vhostuser'>
      <mac address='52:54:00:12:34:56'/>
      <source type='unix' path='/run/netloom/port/web1' mode='client'>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <model type='virtio'/>
    </interface>
  </devices>

netloom-vmm:
  netloom-vmm --kernel vmlinuz --initrd initrd.img --memory 1G --net web1
"
        );
    }

    #[test]
    fn queues_and_odd_paths_are_written_for_their_readers() {
        let kind = vhost(None, 4);
        let instance = Instance::new("lab", "/tmp/a b").expect("a good name");
        let text = snippets(&port(kind, Some("/tmp/a b,c'd/web1")), &instance);
        for words in [
            "path='/tmp/a b,,c'\\''d/web1',reconnect=1",
            "chardev=chr-web1,queues=4",
            "mq=on,vectors=10",
            "path='/tmp/a b,c&apos;d/web1'",
            "<driver queues='4'/>",
            "netloom-vmm --instance lab --root '/tmp/a b' --kernel",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }

    #[test]
    fn a_namespace_is_told_how_to_ask_for_its_address() {
        let kind = PortKind::Namespace { netns: "red".to_owned(), ifname: "eth0".to_owned() };
        let instance = Instance::new("netloom", "/").expect("a good name");
        assert_eq!(
            snippets(&port(kind, None), &instance),
            "In the namespace:\n  ip netns exec red udhcpc -i eth0\n"
        );
        let kind = PortKind::Tap { ifname: "tap0".to_owned() };
        assert_eq!(snippets(&port(kind, None), &instance), "");
    }
}
