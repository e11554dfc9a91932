//! Errors of the command line, in virsh's words and with its exit code.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{FromArgMatches as _, error::Error};

use crate::cli::{Cli, command};
use crate::output;

/// Why there is nothing to run: help was asked for, or the line is wrong.
#[derive(Debug)]
pub(crate) struct Usage {
    error: Error,
    verb: Option<String>,
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Box<Usage>> {
    let arguments = normalize(arguments.into_iter().collect());
    let verb = verb(&arguments);
    command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| Box::new(Usage { error, verb }))
}

/// virsh lets `--network NET` and `--file FILE` stand for the positional arguments.
fn normalize(arguments: Vec<OsString>) -> Vec<OsString> {
    let is_virsh = arguments
        .iter()
        .any(|argument| argument.to_str().is_some_and(|argument| argument.starts_with("net-")));
    if !is_virsh {
        return arguments;
    }
    let mut normal = Vec::with_capacity(arguments.len());
    for argument in arguments {
        match argument.to_str() {
            Some("--network" | "--file") => {}
            Some(text) => {
                let value =
                    text.strip_prefix("--network=").or_else(|| text.strip_prefix("--file="));
                normal.push(value.map_or(argument.clone(), OsString::from));
            }
            None => normal.push(argument),
        }
    }
    normal
}

/// The subcommand, as far as it can be told from a line that does not parse.
fn verb(arguments: &[OsString]) -> Option<String> {
    let names: Vec<String> =
        command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    arguments
        .iter()
        .skip(1)
        .filter_map(|argument| OsStr::to_str(argument))
        .find(|argument| names.iter().any(|name| name == argument))
        .map(str::to_owned)
}

impl Usage {
    pub(crate) fn report(&self) -> ExitCode {
        match self.error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let _ = self.error.print();
                if self.error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
            }
            ErrorKind::MissingSubcommand => {
                let _ = writeln!(io::stderr(), "{}", command().render_help());
                ExitCode::FAILURE
            }
            _ => {
                output::error(&self.message());
                let verb = self.verb.as_ref().map(|verb| format!(" {verb}")).unwrap_or_default();
                output::hint(&format!("see `netctl{verb} --help`"));
                ExitCode::FAILURE
            }
        }
    }

    /// One line, as virsh words it where it has the same error.
    fn message(&self) -> String {
        let verb = self.verb.as_deref().unwrap_or("netctl");
        let invalid = self.strings(ContextKind::InvalidArg);
        let first = invalid.first().map_or("", String::as_str);
        match self.error.kind() {
            ErrorKind::InvalidSubcommand => {
                let command = self.strings(ContextKind::InvalidSubcommand).join(" ");
                format!("unknown command: '{command}'")
            }
            ErrorKind::MissingRequiredArgument if first.starts_with("<-") => {
                // `<--vlan <VLAN>|--isolated[=<yes|no>]>`
                let words = first.trim_start_matches('<').split('|').map(option_of);
                let options: Vec<_> = words.filter(|word| word.starts_with("--")).collect();
                format!("command '{verb}' requires one of {}", options.join(", "))
            }
            ErrorKind::MissingRequiredArgument => {
                // `<network>` for a positional, `--ifname <NAME>` for an option.
                let option = first.split_whitespace().next().unwrap_or(first);
                let option =
                    option.trim_start_matches(['-', '<', '[']).trim_end_matches(['>', ']']);
                format!("command '{verb}' requires <{option}> option")
            }
            ErrorKind::UnknownArgument if first.starts_with('-') => {
                format!("command '{verb}' doesn't support option {first}")
            }
            ErrorKind::UnknownArgument => format!("unexpected data '{first}'"),
            ErrorKind::ArgumentConflict => {
                let other = self.strings(ContextKind::PriorArg).join(" and ");
                if other.is_empty() {
                    format!("option {} was given twice", option_of(first))
                } else {
                    format!(
                        "Options {} and {} are mutually exclusive",
                        option_of(first),
                        option_of(&other)
                    )
                }
            }
            ErrorKind::InvalidValue
                if self.strings(ContextKind::InvalidValue).concat().is_empty() =>
            {
                format!("expected syntax: {first}")
            }
            _ => self.first_line(),
        }
    }

    fn strings(&self, kind: ContextKind) -> Vec<String> {
        match self.error.get(kind) {
            Some(ContextValue::String(text)) => vec![text.clone()],
            Some(ContextValue::Strings(texts)) => texts.clone(),
            _ => Vec::new(),
        }
    }

    /// clap's own words.
    fn first_line(&self) -> String {
        let text = self.error.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.strip_prefix("error: ").unwrap_or(line).to_owned()
    }
}

/// `--vlan` of `--vlan <VLAN>`, `--isolated` of `--isolated[=<yes|no>]`
fn option_of(text: &str) -> &str {
    text.split([' ', '[']).next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn line(line: &str) -> Result<Cli, Box<Usage>> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn message(text: &str) -> String {
        line(text).expect_err(text).message()
    }

    #[test]
    fn messages_are_virshs() {
        for (text, expected) in [
            ("netctl net-start", "command 'net-start' requires <network> option"),
            ("netctl net-define", "command 'net-define' requires <file> option"),
            ("netctl -q net-define", "command 'net-define' requires <file> option"),
            ("netctl net-start a b", "unexpected data 'b'"),
            ("netctl net-list --bogus", "command 'net-list' doesn't support option --bogus"),
            ("netctl net-foo", "unknown command: 'net-foo'"),
            ("netctl net-dhcp-leases n --mac", "expected syntax: --mac <string>"),
            (
                "netctl port-add n p --vlan 1 --trunk all",
                "Options --vlan and --trunk are mutually exclusive",
            ),
            ("netctl port-add n", "command 'port-add' requires <port> option"),
            (
                "netctl port-set p",
                "command 'port-set' requires one of --vlan, --trunk, --isolated, --portgroup, --reset",
            ),
            ("netctl port-add n p --netns x", "command 'port-add' requires <ifname> option"),
        ] {
            assert_eq!(message(text), expected, "{text}");
        }
    }

    #[test]
    fn other_mistakes_have_claps_words() {
        let text = message("netctl port-add n p --mac zz");
        assert!(text.starts_with("invalid value 'zz' for '--mac <MAC>'"), "{text}");
    }

    #[test]
    fn positional_arguments_may_be_named_as_in_virsh() {
        for text in ["netctl net-start --network a", "netctl net-start --network=a"] {
            match line(text).expect("accepted").command {
                Command::NetStart(network) => assert_eq!(network.network, "a"),
                other => panic!("{other:?}"),
            }
        }
        match line("netctl net-define --file x.xml --validate").expect("accepted").command {
            Command::NetDefine(file) => assert_eq!(file.file.to_str(), Some("x.xml")),
            other => panic!("{other:?}"),
        }
    }
}
