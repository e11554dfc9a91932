//! Sockets on a host with SELinux: a machine of its own, whose kernel enforces a policy of a few types
//! (`selinux/policy.conf`). Domains are entered as `runcon` does it, by `/proc/self/attr/exec`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::guest::{Files, Guest, Qemu};

const LIMIT: Duration = Duration::from_secs(60);
const SWITCH: &str = "system_u:system_r:switch_t:s0";
/// The VMM of the guest whose sockets have the categories 1 and 2, and of one with others.
const VMM: &str = "system_u:system_r:guest_t:s0:c1,c2";
const OTHER_VMM: &str = "system_u:system_r:guest_t:s0:c1,c3";
/// May use what nothing is said of, and not what guests use.
const STRANGER: &str = "system_u:system_r:stranger_t:s0";

const SOCKET: &str = "system_u:object_r:guest_socket_t:s0:c1,c2";
const HUB_SOCKET: &str = "system_u:object_r:guest_socket_t:s0";
/// No domain may give it to a socket.
const FORBIDDEN: &str = "system_u:object_r:other_t:s0";
const UNKNOWN: &str = "system_u:object_r:no_such_t:s0";

const PORT: &str = "/run/netloom/port/web1";
const HUB: &str = "/run/netloom/hub/lan.sock";

struct Host {
    machine: Qemu,
}

impl Host {
    fn boot() -> anyhow::Result<Self> {
        let files = Files::new();
        for program in ["vswitchd", "netctl", "socket-probe"] {
            files.program(&netns_tests::program(program)?)?;
        }
        // Those of BusyBox know nothing of SELinux, and it has no nft.
        files.program(Path::new("/usr/bin/stat"))?;
        files.program(Path::new("/usr/sbin/nft"))?;
        let network = "<network><name>lan</name><bridge name='lan0'/></network>";
        std::fs::write(files.place("/lan.xml")?, network)?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/selinux/policy.conf");
        let mut compiler = Command::new("checkpolicy");
        compiler.args(["-M", "-U", "allow", "-o"]).arg(files.place("/policy")?).arg(source);
        let compiled = compiler.output().context("checkpolicy: run `cargo xtask setup`")?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

        let mut machine = Qemu::host("selinux", "security=selinux", &files)?;
        machine.run("for m in $(cat /modules.host); do insmod /lib/modules/$m || exit 1; done")?;
        machine.run("ln -s /proc/self/fd/0 /dev/stdin; mkdir -p /run /etc/netloom")?;
        machine.run("echo 0 >/proc/sys/kernel/printk_ratelimit")?;
        machine.run("mount -t selinuxfs selinuxfs /sys/fs/selinux")?;
        machine.run("dd if=/policy of=/sys/fs/selinux/load bs=1M 2>/dev/null")?;
        machine.run("mount -t tmpfs tmpfs /run")?;
        Ok(Self { machine })
    }

    fn enforce(&mut self) -> anyhow::Result<()> {
        self.machine.run("echo 1 >/sys/fs/selinux/enforce").map(drop)
    }

    /// Starts vswitchd with these arguments, and waits until it answers.
    fn vswitchd(&mut self, arguments: &str) -> anyhow::Result<()> {
        let start = within(SWITCH, &format!("/usr/bin/vswitchd {arguments} >>/run/log 2>&1"));
        let ready = "grep -c ready /run/log 2>/dev/null";
        self.machine.run(&format!(
            "before=$({ready} || true); {start} & \
             for n in $(seq 100); do [ $({ready}) != \"${{before:-0}}\" ] && exit; sleep 0.2; done; cat /run/log; exit 1"
        ))?;
        Ok(())
    }

    fn netctl(&mut self, words: &str) -> anyhow::Result<String> {
        self.machine.run(&format!("/usr/bin/netctl {words}"))
    }

    /// `netctl port-add` of a port in a context that it cannot have: says what is wrong, and leaves nothing.
    fn refuses(&mut self, context: &str, words: &str) -> anyhow::Result<()> {
        let add = format!("/usr/bin/netctl port-add lan bad --socket-context {context}");
        let ran = self.machine.sh(&add, LIMIT)?;
        ensure!(!ran.ok() && ran.text.contains(words), "{ran:?}");
        ensure!(ran.text.contains("hint:") && ran.text.contains(context), "{ran:?}");
        let ports = self.netctl("port-list lan")?;
        ensure!(!ports.contains("bad"), "{ports}");
        let files = self.machine.run("find /run/netloom /var/lib/netloom -name 'bad*'")?;
        ensure!(files.trim().is_empty(), "{files}");
        Ok(())
    }

    /// A socket's mode and context.
    fn dress(&mut self, path: &str) -> anyhow::Result<String> {
        let shown = self.machine.run(&format!("/usr/bin/stat -c '%a %C' {path}"))?;
        Ok(shown.trim().to_owned())
    }

    /// What a domain's attempt to connect gives.
    fn connect(&mut self, domain: &str, path: &str) -> anyhow::Result<String> {
        let shown = self.machine.run(&within(domain, &format!("/usr/bin/socket-probe {path}")))?;
        Ok(shown.trim().to_owned())
    }
}

/// A command of the shell in a domain.
fn within(domain: &str, command: &str) -> String {
    // nft is looked for by its name.
    format!("(echo -n {domain} >/proc/self/attr/exec && PATH=/usr/bin:/bin exec {command})")
}

#[test]
fn sockets_have_their_context_and_the_policy_says_who_connects() -> anyhow::Result<()> {
    let mut host = Host::boot()?;
    host.vswitchd("")?;
    host.netctl("net-define /lan.xml")?;
    host.netctl("net-start lan")?;
    // Permissive, the kernel itself would take any text for a context.
    host.refuses(UNKNOWN, "the loaded SELinux policy does not know this context")?;
    host.enforce()?;
    host.refuses(UNKNOWN, "the loaded SELinux policy does not know this context")?;
    host.refuses(FORBIDDEN, "SELinux does not let")?;

    // Without a context it is that of the place, which the stranger may use.
    let add = "port-add lan web1";
    host.netctl(add)?;
    ensure!(host.dress(PORT)? == "660 system_u:object_r:run_t:s0");
    ensure!(host.connect(STRANGER, PORT)? == "connected");
    ensure!(host.connect(VMM, PORT)? == "permission denied");

    // One with a context has it before anybody can connect.
    host.netctl("port-del web1")?;
    host.machine.run("dmesg -c >/dev/null")?;
    let shown = host.netctl(&format!("{add} --socket-context {SOCKET}"))?;
    ensure!(shown.contains(SOCKET), "{shown}");
    ensure!(host.dress(PORT)? == format!("660 {SOCKET}"));
    let log = host.machine.run("until dmesg | grep -q '{ listen }'; do sleep 0.1; done; dmesg")?;
    let granted =
        |line: &str| line.split_once("granted  { ")?.1.split_once(" }").map(|it| it.0.to_owned());
    let done: Vec<String> = log.lines().filter_map(granted).collect();
    ensure!(done == ["relabelto", "setattr", "listen"], "{log}");
    ensure!(host.connect(VMM, PORT)? == "connected");
    ensure!(host.connect(OTHER_VMM, PORT)? == "permission denied");
    ensure!(host.connect(STRANGER, PORT)? == "permission denied");

    // The hub socket has the configured context; the next daemon keeps what it is handed.
    ensure!(host.connect(VMM, HUB)? == "permission denied");
    let configure = |context: &str| {
        format!("printf '[ports]\\nsocket_context = \"{context}\"\\n' >/etc/netloom/vswitchd.toml")
    };
    host.machine.run(&configure(HUB_SOCKET))?;
    for arguments in ["--take-over", "--take-over", ""] {
        if arguments.is_empty() {
            host.machine.run("killall -9 vswitchd")?;
        }
        host.vswitchd(arguments)?;
        ensure!(host.dress(PORT)? == format!("660 {SOCKET}"), "{arguments}");
        ensure!(host.dress(HUB)? == format!("660 {HUB_SOCKET}"), "{arguments}");
        for (domain, path, outcome) in [
            (VMM, PORT, "connected"),
            (OTHER_VMM, PORT, "permission denied"),
            (VMM, HUB, "connected"),
            (OTHER_VMM, HUB, "connected"),
            (STRANGER, HUB, "permission denied"),
        ] {
            let got = host.connect(domain, path)?;
            ensure!(got == outcome, "{arguments}: {domain} to {path}: {got}");
        }
    }

    host.machine.run(&configure(UNKNOWN))?;
    let ran = host.machine.sh("/usr/bin/vswitchd --check", LIMIT)?;
    ensure!(!ran.ok() && ran.text.contains("ports.socket_context"), "{ran:?}");
    Ok(())
}
