//! Completion of the shell: names of networks and ports come from the running daemon. Without
//! one, nothing is offered and nothing is said.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use api::{Client, Instance};
use clap::ValueEnum;
use clap_complete::CompletionCandidate;
use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Powershell, Zsh};

/// A shell waits for us while somebody waits for the shell.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) const HELP: &str = "Print the completion script of a shell

  bash   echo 'source <(netctl completion bash)' >> ~/.bashrc
  zsh    echo 'source <(netctl completion zsh)' >> ~/.zshrc
  fish   echo 'netctl completion fish | source' > ~/.config/fish/completions/netctl.fish

Names of networks and ports are completed from the running daemon.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

/// Writes what the shell has to read to complete `netctl`.
pub(crate) fn write_script(shell: Shell, out: &mut dyn io::Write) -> io::Result<()> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Elvish => &Elvish,
        Shell::Fish => &Fish,
        Shell::Powershell => &Powershell,
        Shell::Zsh => &Zsh,
    };
    completer.write_registration("COMPLETE", "netctl", "netctl", "netctl", out)
}

pub(crate) fn networks() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let networks = client.networks().await.ok()?;
        Some(
            networks
                .into_iter()
                .map(|network| {
                    let state = if network.active { "active" } else { "inactive" };
                    CompletionCandidate::new(network.name).help(Some(state.into()))
                })
                .collect(),
        )
    })
}

pub(crate) fn ports() -> Vec<CompletionCandidate> {
    ask(async |client| {
        let ports = client.ports().await.ok()?;
        Some(
            ports
                .into_iter()
                .map(|port| CompletionCandidate::new(port.name).help(Some(port.network.into())))
                .collect(),
        )
    })
}

fn ask(
    question: impl AsyncFnOnce(Client) -> Option<Vec<CompletionCandidate>>,
) -> Vec<CompletionCandidate> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some(instance) = instance(&arguments) else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let answer = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, question(Client::new(&instance))).await });
    answer.ok().flatten().unwrap_or_default()
}

/// The instance that the unfinished command line, or the environment, names.
fn instance(arguments: &[OsString]) -> Option<Instance> {
    let value = |option: &str, variable: &str| -> Option<String> {
        let mut given = None;
        let mut words = arguments.iter().filter_map(|word| word.to_str());
        while let Some(word) = words.next() {
            if word == option {
                given = words.next();
            } else if let Some(rest) = word.strip_prefix(option).and_then(|w| w.strip_prefix('=')) {
                given = Some(rest);
            }
        }
        given.map(str::to_owned).or_else(|| std::env::var(variable).ok())
    };
    let name = value("--instance", "NETLOOM_INSTANCE").unwrap_or(Instance::DEFAULT.to_owned());
    let root = value("--root", "NETLOOM_ROOT").unwrap_or("/".to_owned());
    Instance::new(&name, root).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Instance> {
        instance(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_unfinished_line_says_which_daemon() {
        let lab = of("netctl -- netctl --instance lab --root=/x net-start").expect("a good line");
        assert_eq!(lab, Instance::new("lab", "/x").expect("a good name"));
        assert_eq!(of("netctl -- netctl --instance No/Good net-start"), None);
    }

    #[test]
    fn scripts_call_back() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::Powershell, Shell::Zsh] {
            let mut script = Vec::new();
            write_script(shell, &mut script).expect("writable");
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("COMPLETE") && script.contains("netctl"), "{shell:?}");
        }
    }
}
