//! Host names: which ones the configuration may have, and which ones a client may claim.

/// Names that a client must not take: other machines trust them blindly.
const RESERVED: [&str; 4] = ["localhost", "wpad", "isatap", "gateway"];

/// One label of letters, digits and inner hyphens, 1 to 63 octets (RFC 1123 §2.1).
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// Labels joined by dots, at most 253 octets, without a final dot.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The label under which a client that calls itself `claimed` may be known: lower case,
/// underscores and blanks turned into hyphens, `domain` and a final dot or NUL cut off.
///
/// `None` when it is not one label then, consists of digits only, or is a name that other
/// machines trust (`wpad` and the like). The lease is granted all the same.
#[must_use]
pub fn claimed(claimed: &[u8], domain: Option<&str>) -> Option<String> {
    let end = claimed.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&claimed[..end]).ok()?.to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let own = domain.and_then(|domain| {
        let domain = domain.to_ascii_lowercase();
        text.strip_suffix(&domain)?.strip_suffix('.').map(str::to_owned)
    });
    let label = own.unwrap_or_else(|| text.to_owned()).replace(['_', ' '], "-");
    let usable = is_label(&label)
        && !label.bytes().all(|b| b.is_ascii_digit())
        && !RESERVED.contains(&label.as_str());
    usable.then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let domain = Some("Net77.test");
        for (claim, expected) in [
            (&b"vm-a"[..], Some("vm-a")),
            (b"VM-A.net77.TEST", Some("vm-a")),
            (b"vm-a.net77.test.\0", Some("vm-a")),
            (b"my_vm 1", Some("my-vm-1")),
            (b"vm-a.evil.org", None),
            (b"microsoft.com.", None),
            (b"-vm", None),
            (b"vm-", None),
            (b"", None),
            (b"\0\0", None),
            (b".", None),
            (b".net77.test", None),
            (b"net77.test", None),
            (b"a\0b", None),
            (b"a\nb", None),
            (b"\xff\xfe", None),
            (b"$(reboot)", None),
            (b"*", None),
            (b"wpad", None),
            (b"WPAD.net77.test", None),
            (b"123", None),
            (b"1a", Some("1a")),
        ] {
            assert_eq!(claimed(claim, domain).as_deref(), expected, "{claim:?}");
        }
        assert_eq!(claimed(&[b'a'; 63], None).map(|n| n.len()), Some(63));
        assert_eq!(claimed(&[b'a'; 64], None), None);
    }

    #[test]
    fn domains() {
        assert!(is_domain("a.b-c.d1"));
        assert!(!is_domain("a..b") && !is_domain("") && !is_domain("a.") && !is_domain("_a.b"));
        assert!(!is_domain(&"a.".repeat(127).repeat(2)));
    }
}
