//! Network XML to model.
use crate::error::{Error, ErrorKind, Warning};
use crate::model::Network;

/// Longest document that [`parse`] looks at, in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// A document that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub network: Network,
    pub warnings: Vec<Warning>,
}

/// Reads a libvirt `<network>` document.
///
/// # Errors
/// When it is refused, with the position and the way to mend it.
pub fn parse(text: &[u8]) -> Result<Parsed, Error> {
    let _ = text;
    Err(Error {
        kind: ErrorKind::Syntax,
        message: String::new(),
        line: None,
        column: None,
        element: None,
        remedy: None,
    })
}
