//! The daemon's life: configuration, lock, parts in order, signals, stop.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::Instance;
use clap::Parser;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Args, Config};
use crate::events::EventBus;
use crate::handover::Rest;
use crate::host::Host;
use crate::network::{self, Manager};
use crate::store::{InstanceLock, Store, directory};
use crate::{control, handover, log};

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
    let resume_dir = Store::rings_dir(&instance);
    directory(&resume_dir)?;
    let settings = datapath::Config {
        workers: config.workers,
        cpus: config.cpus.clone(),
        spin: config.spin,
        rebalance: config.rebalance,
        resume_dir: Some(resume_dir),
        fdb_entries: config.fdb_entries,
        fdb_entries_per_guest: config.fdb_entries_per_guest,
    };
    // Before everything else: frames wait for it.
    let inheritance =
        if args.teardown { None } else { handover::inherit(&instance, args.take_over)? };
    let (lock, (datapath, datapath_events), inherited) = match inheritance {
        Some(inheritance) => inheritance.enter(&instance, settings)?,
        None => (
            InstanceLock::acquire(&Store::lock_path(&instance), instance.name())?,
            datapath::Datapath::start(settings).context("cannot start the datapath")?,
            Rest::default(),
        ),
    };
    let store = Store::open(&instance)?;
    let bus = Arc::new(EventBus::new(store.counters()?));
    let host = Host::new(instance.clone())?;
    let manager = Manager::new(config.clone(), store, host, datapath.clone(), bus);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let result = runtime.block_on(async {
        if args.teardown {
            return teardown(&manager).await;
        }
        let daemon = Daemon {
            instance: &instance,
            config: &config,
            manager: &manager,
            datapath: &datapath,
            lock: Arc::new(lock),
        };
        daemon.serve(datapath_events, inherited).await
    });
    datapath.stop();
    // What still runs changes nothing any more.
    runtime.shutdown_background();
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

/// The parts of a daemon that serves.
struct Daemon<'a> {
    instance: &'a Instance,
    config: &'a Config,
    manager: &'a Arc<Manager>,
    datapath: &'a datapath::Datapath,
    lock: Arc<InstanceLock>,
}

/// Why a daemon ends.
enum End {
    Stop,
    /// Another one goes on in its place.
    Relieved,
}

impl Daemon<'_> {
    async fn serve(
        self,
        datapath_events: crossbeam_channel::Receiver<datapath::Event>,
        inherited: Rest,
    ) -> anyhow::Result<ExitCode> {
        let Self { instance, config, manager, .. } = self;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Clients may connect from here on; they are served when everything is back.
        let listener = control::bind(instance, config, inherited.api)?;
        let api_socket = listener.as_fd().try_clone_to_owned()?;
        manager.inherit(inherited.legacy);
        // They are answered then, too.
        let mut callers = handover::callers(instance).context("cannot listen for a successor")?;
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
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            tracing::warn!("cannot tell systemd that we are ready: {error}");
        }
        let end = loop {
            tokio::select! {
                _ = terminate.recv() => break End::Stop,
                _ = interrupt.recv() => break End::Stop,
                _ = hangup.recv() => tracing::info!("nothing to reload: changes take effect at once"),
                Some(caller) = callers.recv() => {
                    if self.hand_over(caller, &api_socket).await {
                        break End::Relieved;
                    }
                }
            }
        };
        match end {
            End::Stop => tracing::info!("stopping; networks and guests stay as they are"),
            End::Relieved => tracing::info!("another daemon has taken over"),
        }
        // Whoever cannot be told does not wait for it.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        stop.cancel();
        let stopped = tokio::time::timeout(STOP_PATIENCE, server).await;
        if let Ok(Err(error)) = stopped {
            tracing::error!("the API server failed: {error}");
        }
        let rest = Rest { api: Some(api_socket), legacy: manager.legacy() };
        if tokio::time::timeout(STOP_PATIENCE, manager.stop()).await.is_err() {
            tracing::warn!("a change was still under way; the next start puts it right");
        }
        if matches!(end, End::Stop) && handover::store::is_there() {
            self.leave(&rest);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Whether the caller goes on in this daemon's place.
    async fn hand_over(&self, caller: handover::Caller, api_socket: &OwnedFd) -> bool {
        // No change is half done, and none begins before it is clear who serves it.
        let Ok(operation) = self.manager.begin(None).await else { return false };
        let api = match api_socket.try_clone() {
            Ok(api) => Some(api),
            Err(error) => {
                tracing::warn!("the API socket is not handed over: {error}");
                None
            }
        };
        let estate = handover::Estate {
            datapath: self.datapath.clone(),
            rest: Rest { api, legacy: self.manager.legacy() },
            lock: Arc::clone(&self.lock),
        };
        let result = tokio::task::spawn_blocking(move || caller.hand_over(&estate)).await;
        let error = match result {
            Ok(Ok(())) => {
                self.manager.relieve();
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        drop(operation);
        tracing::error!("not handed over, everything goes on: {error}");
        false
    }

    /// Leaves what guests would miss to the service manager, until the next daemon starts.
    fn leave(&self, rest: &Rest) {
        let left =
            self.datapath.suspend().map_err(std::io::Error::other).and_then(|mut suspended| {
                let left = handover::store::leave(&mut suspended, rest);
                suspended.leave();
                left
            });
        if let Err(error) = left {
            tracing::error!("guests will have to connect again: {error}");
        }
    }
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
