//! A first walk over the document that keeps hostile input within bounds.
//!
//! The tree parser allocates per `<` and per `=`, compares attributes of an element with each
//! other and resolves every prefix through all namespaces in scope. So what it gets to see is
//! bounded here, in one pass without allocation worth the name: size, depth, elements,
//! attributes, namespaces, no document type (hence no entities). The walk also pairs tags, which
//! gives libvirt's wording for the commonest mistakes. Everything else that is not well-formed
//! is left to the tree parser.

use crate::error::{Error, ErrorKind};
use crate::position::{excerpt, line_column};

/// Longest document that is looked at, in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// Deepest nesting: libvirt's own elements need six; metadata may need more.
const MAX_DEPTH: usize = 32;
/// Most `<` in a document: a /16 with a `<host>` for every address has 65,600.
const MAX_MARKUP: usize = 100_000;
/// Most `=` in a document: three attributes for each of those.
const MAX_EQUALS: usize = 250_000;
/// Most attributes of one element.
const MAX_ATTRIBUTES: usize = 64;
/// Most `xmlns` declarations.
const MAX_NAMESPACES: usize = 128;

/// Checks bounds and pairs tags.
pub(crate) fn scan(text: &str) -> Result<(), Error> {
    let bytes = text.as_bytes();
    let count = |wanted: u8| bytes.iter().filter(|&&b| b == wanted).count();
    if count(b'<') > MAX_MARKUP {
        return Err(too_large(text, None, &format!("more than {MAX_MARKUP} tags")));
    }
    if count(b'=') > MAX_EQUALS {
        return Err(too_large(text, None, &format!("more than {MAX_EQUALS} attributes")));
    }
    Scan { text, at: 0, open: Vec::new(), namespaces: 0, root_seen: false }.run()
}

/// A syntax error in libvirt's form: the line, libxml's message, the quoted line.
pub(crate) fn syntax(text: &str, offset: usize, message: &str) -> Error {
    let (line, column) = line_column(text, offset);
    Error {
        kind: ErrorKind::Syntax,
        message: format!("at line {line}: {message}\n{}", excerpt(text, offset)),
        line: Some(line),
        column: Some(column),
        element: None,
        remedy: None,
    }
}

fn too_large(text: &str, offset: Option<usize>, what: &str) -> Error {
    let position = offset.map(|offset| line_column(text, offset));
    Error {
        kind: ErrorKind::TooLarge,
        message: format!("XML error: document is too large: {what}"),
        line: position.map(|p| p.0),
        column: position.map(|p| p.1),
        element: None,
        remedy: Some("split the network, or shorten the document".to_owned()),
    }
}

struct Scan<'t> {
    text: &'t str,
    at: usize,
    /// Name and offset of every open element.
    open: Vec<(&'t str, usize)>,
    namespaces: usize,
    root_seen: bool,
}

impl<'t> Scan<'t> {
    fn run(mut self) -> Result<(), Error> {
        while let Some(next) = self.rest().find('<') {
            if self.open.is_empty() && !self.root_seen {
                let before = self.rest()[..next].trim_start();
                if !before.is_empty() {
                    let at = self.at + next - before.len();
                    return Err(syntax(self.text, at, "Start tag expected, '<' not found"));
                }
            }
            self.at += next;
            let rest = self.rest();
            let done = if rest.starts_with("<!--") {
                self.skip("<!--".len(), "-->")
            } else if rest.starts_with("<![CDATA[") {
                self.skip("<![CDATA[".len(), "]]>")
            } else if rest.starts_with("<?") {
                self.skip("<?".len(), "?>")
            } else if rest.starts_with("<!") {
                return Err(self.doctype());
            } else if rest.starts_with("</") {
                self.close()?
            } else {
                self.start()?
            };
            if !done {
                return Ok(());
            }
        }
        self.end()
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Moves behind the terminator; false when there is none.
    fn skip(&mut self, opening: usize, terminator: &str) -> bool {
        match self.rest()[opening..].find(terminator) {
            Some(length) => {
                self.at += opening + length + terminator.len();
                true
            }
            None => false,
        }
    }

    fn doctype(&self) -> Error {
        let mut error =
            syntax(self.text, self.at, "document type declarations and entities are refused");
        error.remedy =
            Some("remove the <!DOCTYPE …> and write out what its entities stand for".to_owned());
        error
    }

    fn name(&self, from: usize) -> &'t str {
        let rest = &self.rest()[from..];
        let end = rest
            .find(|c: char| {
                c.is_ascii_whitespace() || matches!(c, '/' | '>' | '<' | '=' | '"' | '\'')
            })
            .unwrap_or(rest.len());
        &rest[..end]
    }

    fn close(&mut self) -> Result<bool, Error> {
        let name = self.name("</".len());
        let Some(length) = self.rest().find('>') else { return Ok(false) };
        match self.open.pop() {
            Some((opened, _)) if opened == name => {
                self.at += length + 1;
                Ok(true)
            }
            Some((opened, offset)) => {
                let line = line_column(self.text, offset).0;
                let message =
                    format!("Opening and ending tag mismatch: {opened} line {line} and {name}");
                let mut error = syntax(self.text, self.at + length + 1, &message);
                error.remedy = Some(format!("write </{opened}> here, or open <{name}> before"));
                Err(error)
            }
            None => Ok(false),
        }
    }

    fn start(&mut self) -> Result<bool, Error> {
        let begin = self.at;
        let name = self.name(1);
        let bytes = self.text.as_bytes();
        let mut attributes = 0;
        let mut quote = None;
        let mut at = begin + 1 + name.len();
        loop {
            let Some(&byte) = bytes.get(at) else { return Ok(false) };
            match (quote, byte) {
                (Some(q), b) if q == b => quote = None,
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'=') => attributes += 1,
                (None, b'x') if self.text[at..].starts_with("xmlns") => self.namespaces += 1,
                (None, b'>') => break,
                (None, b'<') => return Ok(false),
                _ => {}
            }
            at += 1;
        }
        if attributes > MAX_ATTRIBUTES {
            let what = format!("more than {MAX_ATTRIBUTES} attributes in one element");
            return Err(too_large(self.text, Some(begin), &what));
        }
        if self.namespaces > MAX_NAMESPACES {
            let what = format!("more than {MAX_NAMESPACES} namespace declarations");
            return Err(too_large(self.text, Some(begin), &what));
        }
        self.root_seen = true;
        self.at = at + 1;
        if bytes[at - 1] != b'/' {
            if self.open.len() == MAX_DEPTH {
                let what = format!("elements nested deeper than {MAX_DEPTH}");
                return Err(too_large(self.text, Some(begin), &what));
            }
            self.open.push((name, begin));
        }
        Ok(true)
    }

    fn end(&self) -> Result<(), Error> {
        let end = self.text.trim_end().len();
        if let Some((name, offset)) = self.open.last() {
            let line = line_column(self.text, *offset).0;
            let message = format!("Premature end of data in tag {name} line {line}");
            let mut error = syntax(self.text, end, &message);
            error.remedy = Some(format!("close it with </{name}>; is the document complete?"));
            return Err(error);
        }
        if !self.root_seen {
            let message =
                if end == 0 { "Document is empty" } else { "Start tag expected, '<' not found" };
            return Err(syntax(self.text, 0, message));
        }
        Ok(())
    }
}
