//! Network XML to model.
//!
//! [`parse`] is the one entrance. Each file reads one part of the document and checks it on the
//! spot, while the position of every value is at hand: `network` the root and what identifies
//! it, `forward` and `bridge`, `ip` with `dhcp`, `route`, `dns`, and `ports` for what ports
//! inherit. `reader` has what they share, `verbatim` what is kept without being understood.

mod bridge;
mod dhcp;
mod dns;
mod forward;
mod ip;
mod network;
mod ports;
mod reader;
mod route;
mod values;
mod verbatim;

use roxmltree::{Document, ParsingOptions};

use crate::error::{Error, ErrorKind, Warning};
use crate::model::Network;
use crate::scan::{MAX_DOCUMENT, scan, syntax};
use crate::syntax::from_tree;

/// A document that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub network: Network,
    /// What will not have the effect its author may expect, in document order.
    pub warnings: Vec<Warning>,
}

/// Reads a libvirt `<network>` document.
///
/// UTF-8 only, at most [`MAX_DOCUMENT`] bytes, no document type and so no entities but XML's own
/// five. Every rule that libvirt checks when it defines or starts a network is checked here.
///
/// # Errors
/// When the document is refused, with the position and the way to mend it.
pub fn parse(text: &[u8]) -> Result<Parsed, Error> {
    let text = decode(text)?;
    scan(text)?;
    let options = ParsingOptions { nodes_limit: 300_000, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text, options).map_err(|error| from_tree(text, &error))?;
    network::read(text, &document)
}

fn decode(bytes: &[u8]) -> Result<&str, Error> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(Error {
            kind: ErrorKind::TooLarge,
            message: format!(
                "XML error: document is too large: {} bytes, the limit is {MAX_DOCUMENT}",
                bytes.len()
            ),
            line: None,
            column: None,
            element: None,
            remedy: Some("a network definition is a few kilobytes; is this the file?".to_owned()),
        });
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            let mut error =
                syntax(valid, valid.len(), "Input is not proper UTF-8, indicate encoding !");
            error.remedy = Some("save the document as UTF-8".to_owned());
            return Err(error);
        }
    };
    match declared_encoding(text) {
        Some((offset, name))
            if !name.eq_ignore_ascii_case("utf-8") && !name.eq_ignore_ascii_case("us-ascii") =>
        {
            let mut error = syntax(text, offset, &format!("Unsupported encoding {name}"));
            error.remedy = Some("save the document as UTF-8 and declare that".to_owned());
            Err(error)
        }
        _ => Ok(text),
    }
}

/// The encoding that the XML declaration names, with its offset.
fn declared_encoding(text: &str) -> Option<(usize, &str)> {
    let declaration = text.strip_prefix("<?xml")?;
    let declaration = &declaration[..declaration.find("?>")?];
    let at = declaration.find("encoding")?;
    let value = &declaration[at..];
    let open = value.find(['"', '\''])?;
    let value = &value[open + 1..];
    let name = &value[..value.find(['"', '\''])?];
    Some((5 + at + open + 1, name))
}
