//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use api::Instance;
use clap::Parser;
use vmm_core::machine::Console;
use wire::MacAddr;

/// Run a virtual machine whose network devices are ports of netloom.
///
/// Exit status: 0 when the guest reset itself or the process was told to stop, 1 when the machine
/// could not be built, 2 for a wrong command line, 3 when the guest crashed, 4 when KVM could not
/// go on, 16 + N when the guest ended itself with N at its exit port.
#[derive(Debug, Parser)]
#[command(name = "netloom-vmm", version)]
pub(crate) struct Args {
    /// Kernel: an x86-64 ELF file.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) cmdline: String,
    /// RAM, in bytes or with the suffix K, M or G.
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) memory: Size,
    /// A network device: the name of a port, or the path of a vhost-user socket. May be repeated.
    ///
    /// For a port the MAC address and MTU come from vswitchd unless given.
    #[arg(long, value_name = "PORT|SOCKET[,mac=MAC][,mtu=MTU]")]
    pub(crate) net: Vec<NetArg>,
    /// Where the serial console goes: stdio or file:PATH.
    #[arg(long, value_name = "CONSOLE", default_value = "stdio")]
    pub(crate) console: Console,
    /// The netloom instance that the ports belong to.
    #[arg(long, value_name = "NAME", env = "NETLOOM_INSTANCE", default_value = Instance::DEFAULT)]
    instance: String,
    /// Directory that is put before all of the instance's paths.
    #[arg(long, value_name = "DIR", env = "NETLOOM_ROOT", default_value = "/")]
    root: PathBuf,
}

impl Args {
    pub(crate) fn instance(&self) -> anyhow::Result<Instance> {
        Ok(Instance::new(&self.instance, self.root.clone())?)
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size: give bytes, or a number with K, M or G"))
    }
}

/// One `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetArg {
    pub(crate) target: NetTarget,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: Option<u16>,
}

/// What a network device connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetTarget {
    /// A port of the instance.
    Port(String),
    /// Any vhost-user backend: whatever contains a slash.
    Socket(PathBuf),
}

impl FromStr for NetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let target = match parts.next() {
            None | Some("") => return Err("the port or socket is missing".to_owned()),
            Some(path) if path.contains('/') => NetTarget::Socket(path.into()),
            Some(name) => NetTarget::Port(name.to_owned()),
        };
        let mut net = Self { target, mac: None, mtu: None };
        for part in parts {
            match part.split_once('=') {
                Some(("mac", mac)) => {
                    let mac: MacAddr =
                        mac.parse().map_err(|_| format!("{mac:?} is no MAC address"))?;
                    if mac.0[0] & 1 != 0 || mac == MacAddr::ZERO {
                        return Err(format!("{mac} cannot be a device's MAC address"));
                    }
                    net.mac = Some(mac);
                }
                Some(("mtu", mtu)) => {
                    let valid = mtu.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                    net.mtu = Some(valid.ok_or_else(|| format!("{mtu:?} is no MTU"))?);
                }
                _ => return Err(format!("unknown option {part:?}: there are mac= and mtu=")),
            }
        }
        Ok(net)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_parse() {
        assert_eq!("64M".parse(), Ok(Size(64 << 20)));
        assert_eq!("2g".parse(), Ok(Size(2 << 30)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        for bad in ["", "M", "-1", "1.5G", "99999999999G"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_parse() {
        let mac = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
        let net: NetArg = "web1,mac=52:54:00:01:02:03,mtu=9000".parse().unwrap();
        let target = NetTarget::Port("web1".into());
        assert_eq!(net, NetArg { target, mac: Some(mac), mtu: Some(9000) });
        let net: NetArg = "./sock".parse().unwrap();
        assert_eq!(net.target, NetTarget::Socket("./sock".into()));
        for bad in [
            "",
            ",mac=52:54:00:01:02:03",
            "a,mac=",
            "a,mac=01:00:5e:00:00:01",
            "a,mtu=1",
            "a,mtu=70000",
            "a,queues=2",
            "a,mac",
        ] {
            assert!(bad.parse::<NetArg>().is_err(), "{bad}");
        }
    }
}
