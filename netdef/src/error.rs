//! What can be wrong with a network document.

use std::fmt;

/// Why a document was refused. Nothing of it was used.
///
/// `message` has libvirt's wording, prefix included (`XML error: …`), where libvirt refuses the
/// same; it may have several lines (libvirt quotes the offending line under a syntax error).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    /// Position in the document, from 1; columns count characters.
    pub line: Option<u32>,
    pub column: Option<u32>,
    /// Path of the element, as in `network/ip[2]/dhcp`.
    pub element: Option<String>,
    /// How to mend it.
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not well-formed XML, or not UTF-8.
    Syntax,
    /// Breaks a rule for networks.
    Invalid,
    /// Asks for something that netloom does not do (yet).
    Unsupported,
    /// Larger or deeper than the limits.
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Something in the document that will not have the effect its author may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub message: String,
    pub line: u32,
    pub column: u32,
    /// Path of the element.
    pub element: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}
