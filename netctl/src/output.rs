//! Where text goes: standard output with virsh's habits, standard error with colours.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::cli::Format;

/// Standard output of one command.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A message of success, which quiet mode leaves out.
    pub(crate) fn message(&mut self, text: &str) -> io::Result<()> {
        if self.quiet { Ok(()) } else { self.line(text) }
    }

    /// What was asked for.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// What was asked for, with its line breaks.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// One line of a stream of JSON values.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// virsh's empty line after every command.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.quiet || self.is_json() { Ok(()) } else { self.text("\n") }
    }

    /// Colours may be used on standard output.
    pub(crate) fn colour(&self) -> bool {
        io::stdout().is_terminal() && colours_wanted()
    }
}

fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

fn painted(text: &str, colour: &str, on: bool) -> String {
    if on { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The word for a state, green when frames flow and red when they should and do not.
pub(crate) fn state(word: &str, on: bool) -> String {
    match word {
        "up" | "active" => painted(word, GREEN, on),
        "gone" | "quarantined" | "error" => painted(word, RED, on),
        "listening" => painted(word, YELLOW, on),
        _ => word.to_owned(),
    }
}

fn to_stderr(label: &str, colour: &str, text: &str) {
    let on = io::stderr().is_terminal() && colours_wanted();
    // Nobody can be told when standard error is gone.
    let _ = writeln!(io::stderr(), "{} {}", painted(label, colour, on), clean(text, true));
}

/// `error: …` on standard error.
pub(crate) fn error(text: &str) {
    to_stderr("error:", RED, text);
}

/// `warning: …` on standard error.
pub(crate) fn warning(text: &str) {
    to_stderr("warning:", YELLOW, text);
}

/// `hint: …` on standard error.
pub(crate) fn hint(text: &str) {
    to_stderr("hint:", CYAN, text);
}

/// Where the error above it is, on standard error.
pub(crate) fn place(text: &str) {
    let _ = writeln!(io::stderr(), "       {}", clean(text, false));
}

/// Control characters as `\xNN`, as virsh's tables show them: names come from files, guests and
/// other users. Line breaks stay where `lines` says so.
pub(crate) fn clean(text: &str, lines: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !(lines && c == '\n') {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                let _ = write!(out, "\\x{byte:02x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_driven_by_names() {
        assert_eq!(clean("a\x1b[31m\u{9b}b\nc", false), "a\\x1b[31m\\xc2\\x9bb\\x0ac");
        assert_eq!(clean("a\nb", true), "a\nb");
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(state("up", false), "up");
        assert_eq!(state("up", true), "\x1b[32mup\x1b[0m");
        assert_eq!(state("down", true), "down");
    }
}
