//! Byte offsets of a document as lines, columns and quoted lines.

/// Line and column of a byte offset, both from 1; the column counts characters.
pub(crate) fn line_column(text: &str, offset: usize) -> (u32, u32) {
    let before = head(text, offset);
    let line = 1 + before.bytes().filter(|&b| b == b'\n').count();
    let column = 1 + before.chars().rev().take_while(|&c| c != '\n').count();
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// The line of the offset and, under it, a caret at the offset, as libvirt quotes errors. Long
/// lines are cut around the offset, control characters are shown as `?`.
pub(crate) fn excerpt(text: &str, offset: usize) -> String {
    const BEFORE: usize = 60;
    const LENGTH: usize = 80;
    let before = head(text, offset);
    let start: Vec<char> =
        before.chars().rev().take_while(|&c| c != '\n').take(BEFORE).map(printable).collect();
    let rest = text[before.len()..]
        .chars()
        .take_while(|&c| c != '\n')
        .take(LENGTH - start.len())
        .map(printable);
    let mut out: String = start.iter().rev().collect();
    out.extend(rest);
    out.push('\n');
    out.extend(std::iter::repeat_n('-', start.len()));
    out.push('^');
    out
}

fn printable(c: char) -> char {
    if c.is_control() && c != '\t' { '?' } else { c }
}

/// The text before the offset, moved back to a character boundary.
fn head(text: &str, offset: usize) -> &str {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "ab\nçdé\n";
        assert_eq!(line_column(text, 0), (1, 1));
        assert_eq!(line_column(text, 3), (2, 1));
        assert_eq!(line_column(text, 4), (2, 1), "inside a character: its start");
        assert_eq!(line_column(text, 6), (2, 3));
        assert_eq!(line_column(text, 1000), (3, 1));
    }

    #[test]
    fn excerpts_are_one_line_and_a_caret() {
        assert_eq!(excerpt("<a>\n<b c>\n", 7), "<b c>\n---^");
        assert_eq!(excerpt("", 0), "\n^");
        let long = "x".repeat(500);
        assert_eq!(excerpt(&long, 250).lines().next().map(str::len), Some(80));
    }
}
