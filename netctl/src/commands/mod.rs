//! The commands: each asks the API and renders the answer. Rendering is in pure functions, next
//! to the command that uses them.

mod attach;
mod edit;
mod events;
mod fdb;
mod leases;
mod networks;
mod ports;
mod show;
mod stats;
mod workers;

use api::{Client, Instance};

use crate::cli::{Cli, Command, command};
use crate::complete;
use crate::failure::Failure;
use crate::output::{self, Output};

/// What every command needs.
struct Context<'o> {
    client: Client,
    instance: Instance,
    output: &'o mut Output,
}

pub(crate) async fn run(cli: Cli, output: &mut Output) -> Result<(), Failure> {
    let instance = Instance::new(&cli.instance, &cli.root)
        .map_err(|error| Failure::local(error.to_string()))?;
    let client = Client::new(&instance);
    let mut context = Context { client, instance, output };
    let context = &mut context;
    match cli.command {
        Command::NetDefine(file) => networks::define(context, &file.file).await,
        Command::NetCreate(file) => networks::create(context, &file.file).await,
        Command::NetStart(it) => networks::start(context, &it.network).await,
        Command::NetDestroy(it) => networks::destroy(context, &it.network).await,
        Command::NetUndefine(it) => networks::undefine(context, &it.network).await,
        Command::NetAutostart { network, disable } => {
            networks::autostart(context, &network.network, !disable).await
        }
        Command::NetList(options) => networks::list(context, &options).await,
        Command::NetInfo(it) => networks::info(context, &it.network).await,
        Command::NetDumpxml { network, inactive } => {
            networks::dumpxml(context, &network.network, inactive).await
        }
        Command::NetEdit(it) => edit::edit(context, &it.network).await,
        Command::NetName(it) => networks::name(context, &it.network).await,
        Command::NetUuid(it) => networks::uuid(context, &it.network).await,
        Command::NetDhcpLeases { network, mac_positional, mac } => {
            leases::leases(context, &network.network, mac.or(mac_positional)).await
        }
        Command::PortAdd(port) => ports::add(context, *port).await,
        Command::PortList { network } => ports::list(context, network.as_deref()).await,
        Command::PortInfo(it) => ports::info(context, &it.port).await,
        Command::PortSet(it) => ports::set(context, it).await,
        Command::PortDel(it) => ports::delete(context, &it.port).await,
        Command::PortStats { port, interval, count } => {
            stats::stats(context, &port.port, interval, count).await
        }
        Command::NetStats(it) => stats::network(context, &it.network).await,
        Command::FdbShow(it) => fdb::show(context, &it.network).await,
        Command::FdbAdd { network, port, mac, vlan } => {
            let entry = api::FdbAdd { port: port.port, mac, vlan };
            fdb::add(context, &network.network, entry).await
        }
        Command::FdbDel { network, mac, vlan } => {
            fdb::delete(context, &network.network, mac, vlan).await
        }
        Command::FdbFlush(it) => fdb::flush(context, &it.network).await,
        Command::Show => show::show(context).await,
        Command::WorkerList => workers::list(context).await,
        Command::Events(options) => events::events(context, &options).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            complete::write_script(shell, &mut script)?;
            context.output.text(&String::from_utf8_lossy(&script))?;
            Ok(())
        }
        Command::Man { directory } => man(&directory),
    }
}

fn man(directory: &std::path::Path) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command(), directory));
    written.map_err(|error| {
        let words = crate::failure::system_words(&error);
        Failure::local(format!("cannot write man pages to '{}': {words}", directory.display()))
    })
}

impl Context<'_> {
    fn warn(&self, warnings: &[String]) {
        // JSON has them in the answer.
        if !self.output.is_json() {
            for warning in warnings {
                output::warning(warning);
            }
        }
    }
}
