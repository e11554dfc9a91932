//! `netloom-dhcpd`: DHCP and DNS for one interface of this host.
//!
//! The same engines as in vswitchd, behind a packet socket in place of the switch's internal
//! port. Configuration: `configs/dhcpd.toml` of the source tree is a commented example.

mod config;
mod packet_io;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use dhcpd::{LeaseEvent, Service};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// DHCPv4 and DNS server for one interface.
///
/// SIGHUP reads the configuration again: hosts, names, options and ranges take effect, leases and
/// the DNS cache stay. SIGTERM and SIGINT stop it.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Configuration file
    #[arg(short, long, env = "NETLOOM_DHCPD_CONFIG", default_value = "/etc/netloom/dhcpd.toml")]
    config: PathBuf,
    /// Check the configuration and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netloom-dhcpd: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let settings = config::read(&args.config)?;
    if args.check {
        settings.check()?;
        println!("{}: the configuration is good", args.config.display());
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NETLOOM_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    raise_descriptor_limit();
    let interface = packet_io::Interface::find(&settings.interface)?;
    let io = match &settings.dhcp4 {
        Some(_) => Some(Box::new(packet_io::PacketIo::open(&interface)?) as Box<_>),
        None => None,
    };
    let service = Service::start(settings.service(interface.mac)?, io, log)
        .with_context(|| format!("cannot serve {}", settings.interface))?;
    tracing::info!(interface = settings.interface, "serving");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return anyhow::Ok(()),
                _ = interrupt.recv() => return anyhow::Ok(()),
                _ = hangup.recv() => {
                    let reload = || {
                        let settings = config::read(&args.config)?;
                        anyhow::Ok(service.reload(settings.service(interface.mac)?)?)
                    };
                    match reload() {
                        Ok(()) => tracing::info!("configuration read again"),
                        Err(error) => tracing::error!("configuration not taken: {error:#}"),
                    }
                }
            }
        }
    })?;
    service.stop();
    tracing::info!("stopped");
    Ok(())
}

/// Each forwarded DNS query and each TCP connection has a descriptor of its own.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Names are sanitized labels and everything else is numbers, so a client cannot forge lines.
fn log(event: LeaseEvent) {
    match event {
        LeaseEvent::Added(lease) => {
            let name = lease.hostname.as_deref();
            tracing::info!(ip = %lease.ip, mac = %lease.mac, name, "lease");
        }
        LeaseEvent::Renewed(lease) => {
            tracing::debug!(ip = %lease.ip, mac = %lease.mac, "lease renewed");
        }
        LeaseEvent::Removed { lease, why } => {
            tracing::info!(ip = %lease.ip, mac = %lease.mac, ?why, "lease ended");
        }
        LeaseEvent::Quarantined(lease) => {
            tracing::warn!(ip = %lease.ip, mac = %lease.mac, "address declined by its client");
        }
        LeaseEvent::Exhausted => tracing::warn!("no address is left"),
        other => tracing::warn!(event = ?other),
    }
}
