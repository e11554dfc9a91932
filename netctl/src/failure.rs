//! How commands fail: virsh's line about the command, the daemon's about the cause, where in the
//! document, and how to mend it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use api::{ClientError, Code};

use crate::output::{self, Output};

#[derive(Debug)]
pub(crate) enum Failure {
    /// The API call did not succeed.
    Call {
        /// virsh's own line: which command failed on what.
        lead: Option<String>,
        /// The file that the document came from.
        file: Option<PathBuf>,
        error: Box<ClientError>,
    },
    /// Something on this side.
    Local { lines: Vec<String>, remedy: Option<String> },
    /// Standard output does not take any more.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    pub(crate) fn local(line: impl Into<String>) -> Self {
        Self::Local { lines: vec![line.into()], remedy: None }
    }

    pub(crate) fn remedy(self, text: impl Into<String>) -> Self {
        match self {
            Self::Local { lines, .. } => Self::Local { lines, remedy: Some(text.into()) },
            other => other,
        }
    }

    /// A document that came from this file.
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        match self {
            Self::Call { lead, error, .. } => Self::Call { lead, file: Some(path.into()), error },
            other => other,
        }
    }

    /// Prints it on standard error: text, or a problem document for `-o json`.
    pub(crate) fn report(&self, output: &Output) {
        if output.is_json() {
            let text = serde_json::to_string_pretty(&self.document()).unwrap_or_default();
            eprintln!("{text}");
            return;
        }
        for line in self.lines() {
            output::error(&line);
        }
        if let Some(place) = self.place() {
            output::place(&place);
        }
        if let Some(remedy) = self.remedy_text() {
            output::hint(&remedy);
        }
    }

    fn lines(&self) -> Vec<String> {
        match self {
            Self::Local { lines, .. } => lines.clone(),
            Self::Output(error) => vec![format!("cannot write the answer: {error}")],
            Self::Call { lead, error, .. } => {
                let mut lines: Vec<String> = lead.clone().into_iter().collect();
                match error.as_ref() {
                    ClientError::Problem(problem) => {
                        lines.push(problem.title.clone());
                        lines.extend(problem.causes.iter().map(|cause| without_number(cause)));
                    }
                    ClientError::Unreachable { instance, source, .. } => {
                        lines = vec![
                            format!(
                                "failed to connect to the daemon of instance '{}'",
                                instance.name()
                            ),
                            format!("{error}: {}", system_words(source)),
                        ];
                    }
                    other => lines.push(with_causes(other)),
                }
                lines
            }
        }
    }

    /// Where in the document, when the daemon said so.
    fn place(&self) -> Option<String> {
        let Self::Call { file, error, .. } = self else { return None };
        let problem = error.problem()?;
        let line = problem.line?;
        let file = file.as_ref().map(|file| format!("{}:", file.display())).unwrap_or_default();
        let column = problem.column.map(|column| format!(":{column}")).unwrap_or_default();
        let element = problem.object.as_ref().map(|e| format!(", element {e}")).unwrap_or_default();
        Some(format!("at {file}{line}{column}{element}"))
    }

    fn remedy_text(&self) -> Option<String> {
        match self {
            Self::Call { error, .. } => error.remedy(),
            Self::Local { remedy, .. } => remedy.clone(),
            Self::Output(_) => None,
        }
    }

    /// The daemon's problem document, or one of the same shape for what it never heard of.
    fn document(&self) -> serde_json::Value {
        if let Self::Call { error, .. } = self
            && let Some(problem) = error.problem()
        {
            return serde_json::json!(problem);
        }
        let code = match self {
            Self::Call { error, .. } if matches!(**error, ClientError::Unreachable { .. }) => {
                "unreachable"
            }
            Self::Call { .. } => "broken-answer",
            Self::Local { .. } | Self::Output(_) => "client",
        };
        let mut lines = self.lines().into_iter();
        let title = lines.next().unwrap_or_default();
        let causes: Vec<String> = lines.collect();
        serde_json::json!({
            "code": code,
            "title": title,
            "causes": causes,
            "remedy": self.remedy_text(),
        })
    }
}

/// The system's words without Rust's "(os error N)".
pub(crate) fn system_words(error: &io::Error) -> String {
    without_number(&error.to_string())
}

fn without_number(text: &str) -> String {
    text.split_once(" (os error ").map_or(text, |(words, _)| words).to_owned()
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Adds virsh's line to a failed call.
pub(crate) trait Lead<T> {
    /// The call was about a network: one that is not there has a line of its own.
    fn network(self, network: &str, lead: Option<String>) -> Result<T, Failure>;
    /// The call was about a port.
    fn port(self, port: &str, lead: Option<String>) -> Result<T, Failure>;
    /// The call was about neither.
    fn lead(self, lead: impl Into<String>) -> Result<T, Failure>;
}

impl<T> Lead<T> for Result<T, ClientError> {
    fn network(self, network: &str, lead: Option<String>) -> Result<T, Failure> {
        self.map_err(|error| missing(error, Code::NetworkNotFound, "network", network, lead))
    }

    fn port(self, port: &str, lead: Option<String>) -> Result<T, Failure> {
        self.map_err(|error| missing(error, Code::PortNotFound, "port", port, lead))
    }

    fn lead(self, lead: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::Call {
            lead: Some(lead.into()),
            file: None,
            error: error.into(),
        })
    }
}

fn missing(
    error: ClientError,
    code: Code,
    kind: &str,
    name: &str,
    lead: Option<String>,
) -> Failure {
    let not_there = error.problem().is_some_and(|problem| problem.code == code);
    let lead = if not_there { Some(format!("failed to get {kind} '{name}'")) } else { lead };
    Failure::Call { lead, file: None, error: error.into() }
}

#[cfg(test)]
mod tests {
    use api::{Instance, Problem};

    use super::*;

    fn refused(code: Code, title: &str) -> Result<(), ClientError> {
        Err(ClientError::Problem(Box::new(Problem::new(code, title))))
    }

    #[test]
    fn virshs_line_comes_first() {
        let title = "Requested operation is not valid: network is already active";
        let lead = "Failed to start network n".to_owned();
        let failure = refused(Code::NetworkActive, title)
            .network("n", Some(lead.clone()))
            .expect_err("refused");
        assert_eq!(failure.lines(), [lead.as_str(), title]);
    }

    #[test]
    fn an_unknown_network_has_virshs_line() {
        let title = "Network not found: no network with matching name 'x'";
        let failure = refused(Code::NetworkNotFound, title)
            .network("x", Some("Failed to start network x".to_owned()))
            .expect_err("refused");
        assert_eq!(failure.lines(), ["failed to get network 'x'", title]);
    }

    #[test]
    fn documents_are_blamed_with_file_line_and_column() {
        let problem = Problem {
            line: Some(3),
            column: Some(17),
            object: Some("network/ip[1]".to_owned()),
            remedy: Some("do this".to_owned()),
            ..Problem::new(Code::XmlError, "XML error: bad")
        };
        let failure = Err::<(), _>(ClientError::Problem(Box::new(problem)))
            .lead("Failed to define network from x.xml")
            .expect_err("refused")
            .in_file("x.xml");
        assert_eq!(failure.lines(), ["Failed to define network from x.xml", "XML error: bad"]);
        assert_eq!(failure.place().as_deref(), Some("at x.xml:3:17, element network/ip[1]"));
        assert_eq!(failure.remedy_text().as_deref(), Some("do this"));
    }

    #[test]
    fn an_absent_daemon_is_said_to_be_absent() {
        let instance = Instance::new("netloom", "/r").expect("a good name");
        let error = ClientError::Unreachable {
            socket: instance.api_socket(),
            instance,
            source: io::Error::from_raw_os_error(2),
        };
        let failure = Err::<(), _>(error).lead("Failed to list networks").expect_err("refused");
        assert_eq!(
            failure.lines(),
            [
                "failed to connect to the daemon of instance 'netloom'",
                "Failed to connect socket to '/r/run/netloom/api.sock': No such file or directory",
            ]
        );
        assert!(failure.remedy_text().is_some_and(|text| text.contains("vswitchd --root /r")));
        let document = failure.document();
        assert_eq!(document["code"], "unreachable");
        assert_eq!(document["causes"].as_array().map(Vec::len), Some(1));
    }
}
