//! The lab's guests: kernels and initramfs images, built once into `target/lab`.
//!
//! Both Linux guests run the same `init`: BusyBox, the virtio modules, and an agent that runs
//! commands from the console (see `netns-tests`, module `guest`).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::phase::quiet;

/// Modules that a guest needs for its network card, IPv6, bridges and VLANs, without their dependencies.
const UML_MODULES: &[&str] = &["virtio_net", "ipv6", "bridge", "8021q"];
const QEMU_MODULES: &[&str] = &["virtio_ring", "virtio_pci", "virtio_net"];
/// What vswitchd needs where a guest is its host. Such a guest loads them itself.
const HOST_MODULES: &[&str] = &["nft_chain_nat", "nft_ct", "nft_reject_inet", "tun"];

/// Directory of the assets; `netns-tests` finds them here too.
pub(crate) fn directory() -> PathBuf {
    crate::build::target().join("lab")
}

/// Build what is missing or was made from an older `init`.
///
/// # Errors
/// When a package cannot be fetched or an image cannot be written.
pub(crate) fn make() -> anyhow::Result<()> {
    let dir = directory();
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let stamp = dir.join("stamp");
    let wanted = format!("{INIT}{UML_MODULES:?}{QEMU_MODULES:?}{HOST_MODULES:?}");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    uml(&dir).context("cannot make the User-mode Linux guest")?;
    qemu(&dir).context("cannot make the QEMU guest")?;
    fs::write(&stamp, wanted)?;
    Ok(())
}

fn uml(dir: &Path) -> anyhow::Result<()> {
    let modules = only_entry(Path::new("/usr/lib/uml/modules"))?;
    initramfs(&modules, UML_MODULES, &[], &dir.join("uml.initramfs"))
}

/// The cloud kernel is unpacked, not installed.
fn qemu(dir: &Path) -> anyhow::Result<()> {
    let depends = quiet(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .context("linux-image-cloud-amd64 names no kernel package")?;
    let work = tempdir(dir, "kernel")?;
    // As root without the sandbox user, which could not write here.
    quiet(Command::new("apt-get").current_dir(&work).args([
        "-o",
        "APT::Sandbox::User=root",
        "download",
        "-q",
        package,
    ]))?;
    let deb = only_entry(&work)?;
    let root = work.join("root");
    quiet(Command::new("dpkg").arg("-x").arg(&deb).arg(&root))?;
    let modules = only_entry(&root.join("lib/modules"))?;
    let version = modules.file_name().and_then(|name| name.to_str()).context("kernel version")?;
    quiet(Command::new("depmod").arg("-b").arg(&root).arg(version))?;
    initramfs(&modules, QEMU_MODULES, HOST_MODULES, &dir.join("qemu.initramfs"))?;
    fs::copy(root.join(format!("boot/vmlinuz-{version}")), dir.join("vmlinuz"))?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// BusyBox, `init` and the modules in the order of their dependencies, as a compressed newc archive.
/// `init` loads what is named in `/modules`; `/modules.host` names `host`.
fn initramfs(modules: &Path, wanted: &[&str], host: &[&str], image: &Path) -> anyhow::Result<()> {
    let root = tempdir(image.parent().context("image path")?, "initramfs")?;
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "lib/modules", "var/run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("/bin/busybox")?;
    for (path, text) in [("init", INIT), ("udhcpc", UDHCPC)] {
        fs::write(root.join(path), text)?;
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755))?;
    }
    for (list, wanted) in [("modules", wanted), ("modules.host", host)] {
        let mut order = String::new();
        for module in load_order(modules, wanted)? {
            let name = module.file_name().and_then(|name| name.to_str()).context("module name")?;
            fs::copy(modules.join(&module), root.join("lib/modules").join(name))?;
            order.push_str(name);
            order.push('\n');
        }
        fs::write(root.join(list), order)?;
    }
    let partial = image.with_extension("partial");
    let archive = fs::File::create(&partial)?;
    let status = Command::new("sh")
        .args(["-c", "find . | cpio -o -H newc --quiet | gzip -1"])
        .current_dir(&root)
        .stdout(archive)
        .stderr(Stdio::inherit())
        .status()?;
    ensure!(status.success(), "cpio: {status}");
    fs::rename(&partial, image)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// Paths of the modules and all they depend on, dependencies first (depmod's `modules.dep`).
fn load_order(modules: &Path, wanted: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let path = modules.join("modules.dep");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    for name in wanted {
        let file = format!("/{name}.ko:");
        let line = text
            .lines()
            .find(|line| line.contains(&file))
            .with_context(|| format!("{} has no module {name}", path.display()))?;
        let (module, dependencies) = line.split_once(':').context("modules.dep")?;
        // modules.dep lists the nearest dependency first.
        let chain = dependencies.split_whitespace().rev().chain([module]);
        order.extend(chain.filter(|path| seen.insert((*path).to_owned())).map(PathBuf::from));
    }
    Ok(order)
}

fn only_entry(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))??;
    ensure!(entries.next().is_none(), "{} holds more than one entry", dir.display());
    Ok(entry.path())
}

fn tempdir(parent: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let dir = parent.join(format!("{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The agent's protocol: a line `ID COMMAND` comes in; `@@begin ID`, the command's output and
/// `@@end ID STATUS` go out.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr
for module in $(cat /modules); do
    insmod /lib/modules/$module || echo "insmod $module failed"
done
ip link set lo up
echo "@@ready"
while read -r id command; do
    echo "@@begin $id"
    ( eval "$command" ) 2>&1 </dev/null
    status=$?
    echo
    echo "@@end $id $status"
done
poweroff -f
"#;

/// udhcpc's script: address, default route, resolver, MTU.
const UDHCPC: &str = r#"#!/bin/sh
case $1 in
deconfig)
    ip addr flush dev $interface scope global
    ip link set $interface up
    ;;
bound|renew)
    ip addr replace $ip/$mask dev $interface
    [ -n "$mtu" ] && ip link set $interface mtu $mtu
    for gateway in $router; do ip route replace default via $gateway dev $interface; done
    : >/etc/resolv.conf
    [ -n "$domain" ] && echo "search $domain" >>/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    echo "bound $ip/$mask router=$router dns=$dns domain=$domain lease=$lease"
    ;;
esac
"#;
