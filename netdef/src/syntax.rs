//! The tree parser's errors in libvirt's form.

use roxmltree::Error as Tree;

use crate::error::Error;
use crate::scan::syntax;

/// Words the error as libxml does where it has an equal.
pub(crate) fn from_tree(text: &str, error: &Tree) -> Error {
    let position = error.pos();
    let offset = match error {
        // The parser has no position for these; libxml says where the text ends.
        Tree::UnexpectedEndOfStream | Tree::UnclosedRootNode => text.len(),
        _ => offset_of(text, position.row, position.col),
    };
    let (message, remedy) = match error {
        Tree::UnknownEntityReference(name, _) => (
            format!("Entity '{name}' not defined"),
            Some("write &amp; for a plain '&'; only &lt; &gt; &amp; &quot; &apos; are known"),
        ),
        Tree::MalformedEntityReference(_) => {
            ("xmlParseEntityRef: no name".to_owned(), Some("write &amp; for a plain '&'"))
        }
        Tree::DuplicatedAttribute(name, _) => {
            (format!("Attribute {name} redefined"), Some("keep one of the two"))
        }
        Tree::DuplicatedNamespace(name, _) => {
            (format!("Attribute xmlns:{name} redefined"), Some("keep one of the two"))
        }
        Tree::UnknownNamespace(prefix, _) => (
            format!("Namespace prefix {prefix} is not defined"),
            Some("declare it with xmlns:PREFIX='…' on the element or above it"),
        ),
        Tree::InvalidAttributeValue(_) => (
            "Unescaped '<' not allowed in attributes values".to_owned(),
            Some("write &lt; for '<'"),
        ),
        Tree::NonXmlChar(c, _) => {
            (format!("PCDATA invalid Char value {}", u32::from(*c)), Some("remove the character"))
        }
        Tree::InvalidChar2("a quote", ..) => {
            ("AttValue: \" or ' expected".to_owned(), Some("put the value between quotes"))
        }
        Tree::UnknownToken(_) => ("Extra content at the end of the document".to_owned(), None),
        Tree::NoRootNode => ("Start tag expected, '<' not found".to_owned(), None),
        other => (without_position(&other.to_string()), None),
    };
    let mut error = syntax(text, offset, &message);
    error.remedy = remedy.map(str::to_owned);
    error
}

/// "… at 3:4" says in the parser's words what line and column say.
fn without_position(message: &str) -> String {
    match message.rsplit_once(" at ") {
        Some((head, tail)) if tail.bytes().all(|b| b.is_ascii_digit() || b == b':') => {
            head.to_owned()
        }
        _ => message.to_owned(),
    }
}

fn offset_of(text: &str, row: u32, column: u32) -> usize {
    let mut start = 0;
    for _ in 1..row {
        match text[start..].find('\n') {
            Some(length) => start += length + 1,
            None => break,
        }
    }
    let skip = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    text[start..].char_indices().nth(skip).map_or(text.len(), |(at, _)| start + at)
}
