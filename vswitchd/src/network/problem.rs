//! The API's errors as this module raises them. Titles have libvirt's wording, prefix included,
//! where libvirt knows the same error.

use api::{Code, Problem};
use uuid::Uuid;

use crate::host;
use crate::socket::SocketError;
use crate::store::StoreError;

/// An error with an object.
pub(crate) fn about(code: Code, object: &str, title: impl Into<String>) -> Problem {
    Problem { object: Some(object.to_owned()), ..Problem::new(code, title) }
}

/// A network that is not there, asked for by name or UUID.
pub(crate) fn network_not_found(wanted: &str) -> Problem {
    let kind = if Uuid::try_parse(wanted).is_ok() { "uuid" } else { "name" };
    let title = format!("Network not found: no network with matching {kind} '{wanted}'");
    about(Code::NetworkNotFound, wanted, title)
        .with_remedy("`netctl net-list --all` lists the networks")
}

pub(crate) fn port_not_found(wanted: &str) -> Problem {
    let kind = if Uuid::try_parse(wanted).is_ok() { "UUID" } else { "name" };
    let title = format!("Port not found: no port with matching {kind} '{wanted}'");
    about(Code::PortNotFound, wanted, title).with_remedy("`netctl port-list` lists the ports")
}

pub(crate) fn not_active(network: &str) -> Problem {
    let title = format!("Requested operation is not valid: network '{network}' is not active");
    about(Code::NetworkInactive, network, title)
        .with_remedy(format!("start it: netctl net-start {network}"))
}

pub(crate) fn already_active(network: &str) -> Problem {
    about(
        Code::NetworkActive,
        network,
        "Requested operation is not valid: network is already active",
    )
}

pub(crate) fn internal(title: impl Into<String>) -> Problem {
    Problem::new(Code::Internal, title)
}

/// The error and those that caused it, one line each.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let line = cause.to_string();
        // Some libraries repeat the cause in their own text.
        if lines.last().is_none_or(|last| !last.contains(&line)) {
            lines.push(line);
        }
        source = cause.source();
    }
    lines
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let mut lines = chain(&error).into_iter();
        Self {
            causes: lines.by_ref().skip(1).collect(),
            ..Self::new(Code::Storage, error.to_string())
        }
    }
}

/// What the host refused, before it is known which step it was.
pub(crate) fn host(error: &host::Error) -> Problem {
    let mut lines = chain(error);
    let title = lines.remove(0);
    let code = match error {
        host::Error::InvalidName { .. }
        | host::Error::ForeignDevice { .. }
        | host::Error::NoSuchInterface { .. }
        | host::Error::NoUplink { .. }
        | host::Error::NoSuchNamespace { .. } => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Problem { causes: lines, remedy: error.remedy(), ..Problem::new(code, title) }
}

/// A socket that could not be made, or that cannot be.
pub(crate) fn socket(error: &SocketError) -> Problem {
    let code = if error.is_request() { Code::InvalidArgument } else { Code::Internal };
    Problem { remedy: error.remedy(), ..Problem::new(code, error.to_string()) }
}

/// What the datapath or a service refused.
pub(crate) fn inner(error: &(dyn std::error::Error + 'static)) -> Problem {
    let mut lines = chain(error);
    let title = lines.remove(0);
    Problem { causes: lines, ..internal(title) }
}

/// A document that was refused.
pub(crate) fn document(error: netdef::Error) -> Problem {
    let code = match error.kind {
        netdef::ErrorKind::Unsupported => Code::Unsupported,
        netdef::ErrorKind::Syntax | netdef::ErrorKind::Invalid | netdef::ErrorKind::TooLarge => {
            Code::XmlError
        }
    };
    Problem {
        object: error.element,
        line: error.line,
        column: error.column,
        remedy: error.remedy,
        ..Problem::new(code, error.message)
    }
}

/// A start that failed at a step; everything before it was undone. A conflict keeps its own code.
pub(crate) fn start_failed(network: &str, step: &str, cause: Problem) -> Problem {
    let code = match cause.code {
        Code::SubnetConflict | Code::PortConflict => cause.code,
        _ => Code::StartFailed,
    };
    let mut causes = vec![cause.title];
    causes.extend(cause.causes);
    Problem {
        causes,
        remedy: cause.remedy,
        ..about(code, network, format!("network '{network}' was not started: {step} failed"))
    }
}
