//! Why a call failed.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Instance, Problem};

/// A call that did not succeed.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody answers on the socket.
    Unreachable { instance: Instance, socket: PathBuf, source: io::Error },
    /// The daemon refused.
    Problem(Box<Problem>),
    /// The connection broke before the answer was complete.
    Lost { socket: PathBuf, source: Box<dyn Error + Send + Sync> },
    /// The event stream broke.
    Stream(Box<dyn Error + Send + Sync>),
    /// The answer is not of this API.
    Answer(Box<dyn Error + Send + Sync>),
}

impl ClientError {
    pub(super) fn unreachable(instance: &Instance, source: io::Error) -> Self {
        Self::Unreachable { instance: instance.clone(), socket: instance.api_socket(), source }
    }

    pub(super) fn answer(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Answer(error.into())
    }

    pub(super) fn stream(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stream(error.into())
    }

    /// What the daemon said, when it said something.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// How to mend it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Problem(problem) => problem.remedy.clone(),
            Self::Unreachable { instance, source, .. } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run as root, or as a member of the socket's group".to_owned()
                }
                io::ErrorKind::InvalidInput => {
                    "choose a shorter --root: a socket path has at most 107 bytes".to_owned()
                }
                _ => format!("start the daemon as root with: {}", daemon_command(instance)),
            }),
            Self::Lost { .. } => {
                Some("the daemon may have been stopped; see its log, then try again".to_owned())
            }
            Self::Stream(_) => None,
            Self::Answer(_) => Some("are daemon and client of the same version?".to_owned()),
        }
    }
}

/// The command line that serves the instance.
fn daemon_command(instance: &Instance) -> String {
    let mut command = "vswitchd".to_owned();
    if instance.name() != Instance::DEFAULT {
        command.push_str(&format!(" --instance {}", instance.name()));
    }
    if instance.root() != Path::new("/") {
        command.push_str(&format!(" --root {}", instance.root().display()));
    }
    command
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { socket, .. } => {
                write!(f, "Failed to connect socket to '{}'", socket.display())
            }
            Self::Problem(problem) => problem.fmt(f),
            Self::Lost { socket, .. } => {
                write!(f, "the connection to '{}' broke", socket.display())
            }
            Self::Stream(_) => f.write_str("the event stream broke"),
            Self::Answer(_) => f.write_str("unexpected answer of the daemon"),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } => Some(source),
            Self::Problem(_) => None,
            Self::Lost { source, .. } | Self::Stream(source) | Self::Answer(source) => {
                Some(source.as_ref())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(name: &str, root: &str, kind: io::ErrorKind) -> String {
        let instance = Instance::new(name, root).expect("a good name");
        ClientError::unreachable(&instance, kind.into()).remedy().expect("a remedy")
    }

    #[test]
    fn an_absent_daemon_is_named_with_the_command_that_starts_it() {
        assert_eq!(
            remedy("netloom", "/", io::ErrorKind::NotFound),
            "start the daemon as root with: vswitchd"
        );
        assert_eq!(
            remedy("lab", "/tmp/x", io::ErrorKind::ConnectionRefused),
            "start the daemon as root with: vswitchd --instance lab --root /tmp/x"
        );
        assert!(remedy("lab", "/", io::ErrorKind::PermissionDenied).contains("as root"));
        let instance = Instance::new("lab", "/tmp/x").expect("a good name");
        let error = ClientError::unreachable(&instance, io::ErrorKind::NotFound.into());
        assert_eq!(
            error.to_string(),
            "Failed to connect socket to '/tmp/x/run/netloom-lab/api.sock'"
        );
    }
}
