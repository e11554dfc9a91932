//! What all readers share: attributes, children, errors with positions, warnings.

use roxmltree::{Document, Node as TreeNode};

use crate::error::{Error, ErrorKind, Warning};
use crate::model::Unmodelled;
use crate::position::line_column;
use crate::read::verbatim;

pub(super) type Node<'d> = TreeNode<'d, 'd>;
pub(super) type Result<T> = std::result::Result<T, Error>;

/// Most warnings kept; one more says how many there were.
const MAX_WARNINGS: usize = 64;
/// Most elements kept without being understood.
const MAX_UNMODELLED: usize = 256;

/// Elements that would take away traffic if they worked: dropping them silently would open what
/// the author closed.
const RESTRICTING: [&str; 9] =
    ["bandwidth", "filterref", "filter", "firewall", "acl", "rule", "rules", "policy", "qos"];

/// Elements that may stand several times under their parent, numbered in paths.
const REPEATED: [&str; 11] = [
    "ip",
    "route",
    "portgroup",
    "forwarder",
    "txt",
    "srv",
    "host",
    "hostname",
    "range",
    "tag",
    "interface",
];

/// Namespace of `<dnsmasq:options>`.
pub(super) const DNSMASQ: &str = "http://libvirt.org/schemas/network/dnsmasq/1.0";

/// What may stand in an element.
pub(super) struct Shape {
    pub(super) attributes: &'static [&'static str],
    /// Children that may stand once.
    pub(super) once: &'static [&'static str],
    pub(super) many: &'static [&'static str],
}

impl Shape {
    pub(super) const fn leaf(attributes: &'static [&'static str]) -> Self {
        Self { attributes, once: &[], many: &[] }
    }
}

pub(super) struct Reader<'d> {
    pub(super) text: &'d str,
    /// The network's name, for messages.
    pub(super) name: String,
    pub(super) unmodelled: Vec<Unmodelled>,
    warnings: Vec<Warning>,
    more_warnings: usize,
}

impl<'d> Reader<'d> {
    pub(super) fn new(text: &'d str) -> Self {
        Self {
            text,
            name: String::new(),
            unmodelled: Vec::new(),
            warnings: Vec::new(),
            more_warnings: 0,
        }
    }

    pub(super) fn into_warnings(mut self) -> Vec<Warning> {
        if self.more_warnings > 0 {
            self.warnings.push(Warning {
                message: format!("{} more warnings are not shown", self.more_warnings),
                line: 1,
                column: 1,
                element: "network".to_owned(),
            });
        }
        self.warnings
    }

    // Errors. The prefixes are those that virsh prints for libvirt's error codes.

    fn error(&self, kind: ErrorKind, node: Node<'_>, offset: usize, message: &str) -> Error {
        let (line, column) = line_column(self.text, offset);
        Error {
            kind,
            message: printable(message),
            line: Some(line),
            column: Some(column),
            element: Some(path(node)),
            remedy: None,
        }
    }

    /// `XML error: …` (libvirt's `VIR_ERR_XML_ERROR`).
    pub(super) fn xml(&self, node: Node<'_>, message: impl AsRef<str>) -> Error {
        self.detail(node, format!("XML error: {}", message.as_ref()))
    }

    /// `XML error: …` about one attribute.
    pub(super) fn xml_at(
        &self,
        node: Node<'_>,
        attribute: &str,
        message: impl AsRef<str>,
    ) -> Error {
        let message = format!("XML error: {}", message.as_ref());
        self.error(ErrorKind::Invalid, node, offset(node, attribute), &message)
    }

    /// No prefix (libvirt's `VIR_ERR_XML_DETAIL`).
    pub(super) fn detail(&self, node: Node<'_>, message: impl Into<String>) -> Error {
        self.error(ErrorKind::Invalid, node, node.range().start, &message.into())
    }

    pub(super) fn detail_at(
        &self,
        node: Node<'_>,
        attribute: &str,
        message: impl Into<String>,
    ) -> Error {
        self.error(ErrorKind::Invalid, node, offset(node, attribute), &message.into())
    }

    /// `internal error: …`, which libvirt says of DHCP ranges and malformed UUIDs.
    pub(super) fn internal(&self, node: Node<'_>, message: impl AsRef<str>) -> Error {
        self.detail(node, format!("internal error: {}", message.as_ref()))
    }

    /// `unsupported configuration: …` (libvirt's `VIR_ERR_CONFIG_UNSUPPORTED`).
    pub(super) fn unsupported(&self, node: Node<'_>, message: impl AsRef<str>) -> Error {
        let message = format!("unsupported configuration: {}", message.as_ref());
        self.error(ErrorKind::Unsupported, node, node.range().start, &message)
    }

    pub(super) fn unsupported_at(
        &self,
        node: Node<'_>,
        attribute: &str,
        message: impl AsRef<str>,
    ) -> Error {
        let message = format!("unsupported configuration: {}", message.as_ref());
        self.error(ErrorKind::Unsupported, node, offset(node, attribute), &message)
    }

    pub(super) fn warn(&mut self, node: Node<'_>, message: impl Into<String>) {
        if self.warnings.len() == MAX_WARNINGS {
            self.more_warnings += 1;
            return;
        }
        let (line, column) = line_column(self.text, node.range().start);
        let element = path(node);
        let message = printable(&message.into());
        self.warnings.push(Warning { message, line, column, element });
    }

    /// Checks what stands in the element against its shape: unknown attributes are warned about,
    /// unknown children kept, restricting ones and doubles refused.
    pub(super) fn shape(&mut self, node: Node<'_>, shape: &Shape) -> Result<()> {
        for attribute in node.attributes() {
            let name = attribute.name();
            if attribute.namespace().is_some() || !shape.attributes.contains(&name) {
                let element = node.tag_name().name();
                self.warn(
                    node,
                    format!(
                        "attribute '{name}' of element '{element}' is not known and is dropped"
                    ),
                );
            }
        }
        let mut seen = [None; 16];
        for child in node.children().filter(|child| child.is_element()) {
            let name = child.tag_name().name();
            let ours = child.tag_name().namespace().is_none();
            if child.tag_name() == (DNSMASQ, "options").into() && node.parent_element().is_none() {
                continue;
            }
            if ours && shape.many.contains(&name) {
                continue;
            }
            let Some(index) = shape.once.iter().position(|known| ours && *known == name) else {
                self.keep(node, child)?;
                continue;
            };
            if let Some(first) = seen[index].replace(child.range().start) {
                let line = line_column(self.text, first).0;
                let parent = node.tag_name().name();
                return Err(self
                    .xml(child, format!("element '{name}' appears twice in element '{parent}'"))
                    .remedy(format!("merge it with the one of line {line}, or remove one")));
            }
        }
        Ok(())
    }

    /// Keeps an element that is not understood, to be written back.
    fn keep(&mut self, parent: Node<'_>, child: Node<'_>) -> Result<()> {
        let name = child.tag_name().name();
        if RESTRICTING.contains(&name) {
            return Err(self
                .unsupported(
                    child,
                    format!("element '{name}' restricts traffic and netloom cannot enforce it yet"),
                )
                .remedy(format!("remove <{name}> to run the network without that restriction")));
        }
        if self.unmodelled.len() == MAX_UNMODELLED {
            let mut error = self.xml(
                child,
                format!("document is too large: more than {MAX_UNMODELLED} unknown elements"),
            );
            error.kind = ErrorKind::TooLarge;
            return Err(error.remedy("put data of your own into <metadata>"));
        }
        self.warn(child, format!("element '{name}' is not known: it is kept and has no effect"));
        let parent = path(parent);
        let level = 1 + parent.bytes().filter(|&b| b == b'/').count();
        let xml = verbatim::element(child, level);
        self.unmodelled.push(Unmodelled { parent, name: name.to_owned(), xml });
        Ok(())
    }
}

/// Values of the document stand in messages: no control characters, and not megabytes.
fn printable(message: &str) -> String {
    const MOST: usize = 400;
    let mut out = String::with_capacity(message.len().min(4 * MOST));
    for (count, c) in message.chars().enumerate() {
        if count == MOST {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

impl Error {
    /// Says how to mend it.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The root of the document, which libvirt insists on being a `<network>`.
pub(super) fn root<'d>(reader: &Reader<'d>, document: &'d Document<'d>) -> Result<Node<'d>> {
    let root = document.root_element();
    let name = root.tag_name().name();
    if name != "network" {
        let message = format!("expecting root element of 'network', not '{name}'");
        return Err(reader.xml(root, message).remedy("this is not a libvirt network definition"));
    }
    if let Some(namespace) = root.tag_name().namespace() {
        let message = format!("expecting 'network' without a namespace, not in '{namespace}'");
        return Err(reader.xml(root, message).remedy("remove the xmlns='…' of the root element"));
    }
    Ok(root)
}

/// The value of an attribute, which may be empty.
pub(super) fn attr<'d>(node: Node<'d>, name: &str) -> Option<&'d str> {
    node.attributes().find(|a| a.namespace().is_none() && a.name() == name).map(|a| a.value())
}

/// The value of an attribute; an empty one is as good as absent.
pub(super) fn filled<'d>(node: Node<'d>, name: &str) -> Option<&'d str> {
    attr(node, name).filter(|value| !value.is_empty())
}

/// The first child of that name.
pub(super) fn child<'d>(node: Node<'d>, name: &'static str) -> Option<Node<'d>> {
    children(node, name).next()
}

/// The children of that name.
pub(super) fn children<'d>(
    node: Node<'d>,
    name: &'static str,
) -> impl Iterator<Item = Node<'d>> + use<'d> {
    node.children().filter(move |child| is(*child, name))
}

fn is(node: Node<'_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name && node.tag_name().namespace().is_none()
}

/// The text of an element, comments skipped; empty is as good as absent.
pub(super) fn text(node: Node<'_>) -> Option<String> {
    let text: String = node.children().filter(TreeNode::is_text).filter_map(|n| n.text()).collect();
    (!text.is_empty()).then_some(text)
}

/// Where the attribute's value starts, or the element without it.
fn offset(node: Node<'_>, attribute: &str) -> usize {
    node.attribute_node(attribute).map_or(node.range().start, |a| a.range_value().start)
}

/// `network/ip[2]/dhcp/range[1]`
fn path(node: Node<'_>) -> String {
    let mut steps: Vec<String> = node
        .ancestors()
        .filter(TreeNode::is_element)
        .map(|element| {
            let name = element.tag_name().name();
            if REPEATED.contains(&name) {
                let before = element.prev_siblings().skip(1).filter(|s| is(*s, name)).count();
                format!("{name}[{}]", before + 1)
            } else {
                name.to_owned()
            }
        })
        .collect();
    steps.reverse();
    steps.join("/")
}
