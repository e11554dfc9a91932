//! Elements kept without being understood, in the form in which libxml writes trees: double
//! quotes, two spaces per level, no new white space where there is text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::reader::Node;

const XML: &str = "http://www.w3.org/XML/1998/namespace";

/// The element as text; `level` indents all lines but the first. Prefixes that are declared
/// further out are declared on it.
pub(super) fn element(node: Node<'_>, level: usize) -> String {
    let outer = outer_namespaces(node);
    let mut out = String::new();
    write_element(&mut out, node, level, true, &outer, &|_| true);
    out
}

/// `<metadata>` with one element per namespace, as libvirt sanitizes it: those without a
/// namespace, and further ones of the same, are dropped.
pub(super) fn metadata(node: Node<'_>, level: usize) -> String {
    let outer = outer_namespaces(node);
    let keep: BTreeSet<_> = sanitized(node).map(|child| child.id().get()).collect();
    let mut out = String::new();
    write_element(&mut out, node, level, true, &outer, &|child| keep.contains(&child.id().get()));
    out
}

/// The children of `<metadata>` that libvirt keeps.
pub(super) fn sanitized<'d>(node: Node<'d>) -> impl Iterator<Item = Node<'d>> {
    let mut seen = BTreeSet::new();
    node.children().filter(move |child| {
        child.is_element() && child.tag_name().namespace().is_some_and(|ns| seen.insert(ns))
    })
}

/// Namespaces declared around the element that are used in it: prefix and URI.
fn outer_namespaces<'d>(node: Node<'d>) -> Declarations<'d> {
    let used: BTreeSet<&str> = node
        .descendants()
        .filter(Node::is_element)
        .flat_map(|n| {
            let own = n.tag_name().namespace();
            n.attributes().map(|a| a.namespace()).chain(std::iter::once(own)).flatten()
        })
        .collect();
    let own: BTreeSet<_> = own_namespaces(node).map(|(prefix, _)| prefix).collect();
    let around = node.parent_element().into_iter().flat_map(|parent| parent.namespaces());
    around
        .map(|ns| (ns.name(), ns.uri()))
        .filter(|(prefix, uri)| used.contains(uri) && *uri != XML && !own.contains(prefix))
        .collect()
}

type Declarations<'d> = BTreeSet<(Option<&'d str>, &'d str)>;

/// Declarations made on the element itself.
fn own_namespaces<'d>(node: Node<'d>) -> impl Iterator<Item = (Option<&'d str>, &'d str)> {
    let parent = node.parent_element();
    // Few elements declare anything; comparing scopes for all of them would be quadratic.
    let scope = declares(node).then(|| node.namespaces()).into_iter().flatten();
    scope
        .map(|ns| (ns.name(), ns.uri()))
        .filter(move |(name, uri)| {
            parent.is_none_or(|p| p.lookup_namespace_uri(*name).unwrap_or_default() != *uri)
        })
        .filter(|(_, uri)| *uri != XML)
}

/// The start tag has an `xmlns` outside of quotes.
fn declares(node: Node<'_>) -> bool {
    let source = &node.document().input_text()[node.range()];
    let mut quote = None;
    for (at, byte) in source.bytes().enumerate() {
        match (quote, byte) {
            (Some(q), b) if q == b => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'>') => return false,
            (None, b'x') if source[at..].starts_with("xmlns") => return true,
            _ => {}
        }
    }
    false
}

fn write_element<'d>(
    out: &mut String,
    node: Node<'d>,
    level: usize,
    format: bool,
    outer: &Declarations<'d>,
    keep: &dyn Fn(Node<'d>) -> bool,
) {
    let name = source_name(node);
    out.push('<');
    out.push_str(name);
    for (prefix, uri) in own_namespaces(node).chain(outer.iter().copied()) {
        out.push_str(" xmlns");
        if let Some(prefix) = prefix {
            out.push(':');
            out.push_str(prefix);
        }
        attribute_value(out, uri);
    }
    for attribute in node.attributes() {
        let text = node.document().input_text();
        let _ = write!(out, " {}", &text[attribute.range_qname()]);
        attribute_value(out, attribute.value());
    }
    let kept: Vec<Kept<'d>> = content(node)
        .into_iter()
        .filter(|child| match child {
            Kept::Node(child) => !child.is_element() || keep(*child),
            Kept::Text(_) => true,
        })
        .collect();
    if kept.is_empty() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    let format = format && !kept.iter().any(|child| matches!(child, Kept::Text(_)));
    for child in kept {
        if format {
            new_line(out, level + 1);
        }
        match child {
            Kept::Text(text) => escape_text(out, text),
            Kept::Node(child) if child.is_element() => {
                write_element(out, child, level + 1, format, &BTreeSet::new(), &|_| true);
            }
            Kept::Node(child) => out.push_str(&child.document().input_text()[child.range()]),
        }
    }
    if format {
        new_line(out, level);
    }
    let _ = write!(out, "</{name}>");
}

enum Kept<'d> {
    Node(Node<'d>),
    Text(&'d str),
}

/// The children without the white space that libxml takes for indentation: text of blanks only,
/// unless it is all there is or the element began with text.
fn content(node: Node<'_>) -> Vec<Kept<'_>> {
    let mut kept = Vec::new();
    for child in node.children() {
        match child.text().filter(|_| child.is_text()) {
            None => kept.push(Kept::Node(child)),
            Some(text) => {
                let blank = text.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
                let alone = child.prev_sibling().is_none() && child.next_sibling().is_none();
                let in_text = matches!(kept.first(), Some(Kept::Text(_)));
                if !blank || alone || in_text {
                    kept.push(Kept::Text(text));
                }
            }
        }
    }
    kept
}

/// The name with its prefix, as it stands in the source.
fn source_name<'d>(node: Node<'d>) -> &'d str {
    let source = &node.document().input_text()[node.range()][1..];
    let end = source
        .find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>'))
        .unwrap_or(source.len());
    &source[..end]
}

fn new_line(out: &mut String, level: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", level));
}

fn attribute_value(out: &mut String, value: &str) {
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("&quot;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn escape_text(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
}
