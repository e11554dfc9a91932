//! Values of attributes: yes and no, numbers, addresses, names.

use std::net::IpAddr;
use std::str::FromStr;

use wire::MacAddr;

use super::reader::{Node, Reader, Result, attr, filled};

impl Reader<'_> {
    fn invalid(&self, node: Node<'_>, name: &str, value: &str, expected: &str) -> crate::Error {
        let element = node.tag_name().name();
        self.xml_at(
            node,
            name,
            format!(
                "Invalid value for attribute '{name}' in element '{element}': '{value}'.{expected}"
            ),
        )
    }

    /// `yes`, `no` or absent.
    pub(super) fn yes_no(&self, node: Node<'_>, name: &str) -> Result<Option<bool>> {
        match attr(node, name) {
            None => Ok(None),
            Some("yes") => Ok(Some(true)),
            Some("no") => Ok(Some(false)),
            Some(value) => Err(self
                .invalid(node, name, value, "")
                .remedy(format!("write {name}='yes' or {name}='no'"))),
        }
    }

    /// A number without a sign.
    pub(super) fn number<T: FromStr>(&self, node: Node<'_>, name: &str) -> Result<Option<T>> {
        let Some(value) = attr(node, name) else { return Ok(None) };
        number(value)
            .map(Some)
            .ok_or_else(|| self.invalid(node, name, value, " Expected non-negative integer value"))
    }

    /// One word out of a list.
    pub(super) fn word<T: Copy>(
        &self,
        node: Node<'_>,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>> {
        let Some(value) = attr(node, name) else { return Ok(None) };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
            return Ok(Some(*meaning));
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Err(self.invalid(node, name, value, "").remedy(format!("known are: {}", known.join(", "))))
    }

    pub(super) fn required<'n>(&self, node: Node<'n>, name: &str) -> Result<&'n str> {
        filled(node, name).ok_or_else(|| {
            let element = node.tag_name().name();
            self.xml(node, format!("Missing required attribute '{name}' in element '{element}'"))
        })
    }

    /// An address; what libvirt says of a bad one depends on where it stands.
    pub(super) fn address(
        &self,
        node: Node<'_>,
        name: &str,
        value: &str,
        message: impl Into<String>,
    ) -> Result<IpAddr> {
        value.parse().map_err(|_| {
            let error = self.detail_at(node, name, message);
            if short_ipv4(value) {
                error.remedy(
                    "write all four numbers of the address, each from 0 to 255 and without leading zeros",
                )
            } else {
                error.remedy("write a numeric IPv4 or IPv6 address")
            }
        })
    }

    /// A MAC address, as libvirt reads it: groups of one or two digits.
    pub(super) fn mac(
        &self,
        node: Node<'_>,
        name: &str,
        value: &str,
        message: impl AsRef<str>,
    ) -> Result<MacAddr> {
        value.parse().map_err(|_| {
            self.xml_at(node, name, message)
                .remedy("write six pairs of hexadecimal digits, as in 52:54:00:12:34:56")
        })
    }

    /// The name of a network interface that the kernel accepts and that is safe in a rule.
    /// A template may contain `%d` once, where `template` says so.
    pub(super) fn interface(
        &self,
        node: Node<'_>,
        name: &str,
        value: &str,
        template: bool,
    ) -> Result<()> {
        let network = &self.name;
        let (shown, room) = if template && value.matches("%d").count() == 1 {
            (value.replacen("%d", "", 1), MAX_INTERFACE - 3)
        } else {
            (value.to_owned(), MAX_INTERFACE)
        };
        if shown.len() > room {
            let message = format!(
                "interface name '{value}' in network '{network}' is longer than {room} bytes"
            );
            return Err(self.xml_at(node, name, message).remedy(format!(
                "Linux allows {MAX_INTERFACE}; the number for %d takes up to three"
            )));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '@' | '+');
        if let Some(bad) = shown.chars().find(|c| !good(*c)) {
            let message = format!(
                "invalid character '{}' in interface name '{value}' in network '{network}'",
                bad.escape_default()
            );
            return Err(self.xml_at(node, name, message).remedy(
                "use letters, digits and any of _ . - @ + (and %d once in a bridge name)",
            ));
        }
        if matches!(shown.as_str(), "." | "..") || shown.starts_with('-') {
            let message = format!("invalid interface name '{value}' in network '{network}'");
            return Err(self.xml_at(node, name, message).remedy("start it with a letter or digit"));
        }
        Ok(())
    }

    /// A DNS name: labels of 1 to 63 letters, digits, hyphens and underscores.
    pub(super) fn dns_name(&self, node: Node<'_>, name: &str, value: &str) -> Result<()> {
        if is_dns_name(value) {
            return Ok(());
        }
        let message =
            format!("invalid DNS name '{}' in network '{}'", value.escape_debug(), self.name);
        Err(self.xml_at(node, name, message).remedy(
            "use labels of 1 to 63 letters, digits, '-' and '_' joined by dots, 253 bytes in all",
        ))
    }
}

/// `IFNAMSIZ` without the final zero.
const MAX_INTERFACE: usize = 15;

/// Digits only; `FromStr` alone would take a plus sign.
pub(super) fn number<T: FromStr>(value: &str) -> Option<T> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    if digits { value.parse().ok() } else { None }
}

/// `10.1`, `0x0a000001` and `010.0.0.1` are addresses for the resolver and traps for readers.
fn short_ipv4(value: &str) -> bool {
    value.bytes().any(|b| b.is_ascii_digit())
        && value.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b'x' | b'X'))
}

pub(super) fn is_dns_name(value: &str) -> bool {
    let value = value.strip_suffix('.').unwrap_or(value);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    value.len() <= 253 && value.split('.').all(label)
}
