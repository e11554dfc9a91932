//! The daemon's life: configuration, lock, parts in order, signals, stop.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::Instance;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Args, Config};
use crate::events::EventBus;
use crate::host::Host;
use crate::network::{self, Manager};
use crate::store::{InstanceLock, Store, directory};
use crate::{control, log, notify};

/// How long a stop waits for requests and changes under way.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Runs the daemon as the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vswitchd: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Everything is ours alone until it is given its mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let instance = Instance::new(&args.instance, &args.root)?;
    let config = Config::load(args, &instance.config_dir())?;
    if args.check {
        return check(&instance);
    }
    log::start(&config);
    raise_file_limit();
    directory(&instance.run_dir())?;
    let _lock = InstanceLock::acquire(&Store::lock_path(&instance), instance.name())?;
    let store = Store::open(&instance)?;
    let bus = Arc::new(EventBus::new(store.counters()?));
    let host = Host::new(instance.clone())?;
    let (datapath, datapath_events) = datapath::Datapath::start(datapath::Config {
        workers: config.workers,
        cpus: config.cpus.clone(),
        spin: config.spin,
    })
    .context("cannot start the datapath")?;
    let manager = Manager::new(config.clone(), store, host, datapath.clone(), bus);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let result = runtime.block_on(async {
        if args.teardown {
            teardown(&manager).await
        } else {
            serve(&instance, &config, &manager, datapath_events).await
        }
    });
    datapath.stop();
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

fn check(instance: &Instance) -> anyhow::Result<ExitCode> {
    let wrong = if instance.config_dir().join("networks").is_dir() {
        network::check(&Store::at(instance))?
    } else {
        Vec::new()
    };
    for line in &wrong {
        eprintln!("vswitchd: {line}");
    }
    if wrong.is_empty() {
        println!("configuration and definitions of instance '{}' are good", instance.name());
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

async fn teardown(manager: &Manager) -> anyhow::Result<ExitCode> {
    match manager.teardown().await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(problem) => {
            eprintln!("vswitchd: {problem}");
            for cause in problem.causes {
                eprintln!("  {cause}");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn serve(
    instance: &Instance,
    config: &Config,
    manager: &Arc<Manager>,
    datapath_events: crossbeam_channel::Receiver<datapath::Event>,
) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Clients may connect from here on; they are served when everything is back.
    let listener = control::bind(instance, config)?;
    manager.watch(datapath_events).context("cannot watch the host")?;
    let restored = manager
        .restore()
        .await
        .map_err(|problem| anyhow::anyhow!(problem.title).context("cannot load the state"))?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(control::serve(listener, Arc::clone(manager), stop.clone()));
    tracing::info!(
        instance = instance.name(), pid = std::process::id(),
        socket = %instance.api_socket().display(), networks = restored.networks,
        active = restored.active, ports = restored.ports, failed = restored.failed, "ready"
    );
    if let Err(error) = notify::send("READY=1") {
        tracing::warn!("cannot tell systemd that we are ready: {error}");
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tracing::info!("nothing to reload: changes take effect at once"),
        }
    }
    tracing::info!("stopping; networks and guests stay as they are");
    // Whoever cannot be told does not wait for it.
    let _ = notify::send("STOPPING=1");
    stop.cancel();
    let stopped = tokio::time::timeout(STOP_PATIENCE, server).await;
    if let Ok(Ok(Err(error))) = stopped {
        tracing::error!("the API server failed: {error}");
    }
    if tokio::time::timeout(STOP_PATIENCE, manager.stop()).await.is_err() {
        tracing::warn!("a change was still under way; the next start puts it right");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ports need several file descriptors each; the default limit is meant for programs that use
/// `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
