//! The log: `tracing`, to standard error (where systemd picks it up).
//!
//! Text that a guest can choose (host names, client identifiers) goes through [`Escaped`], so
//! that it can neither forge a line nor move a terminal's cursor.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, LogFormat};

/// The filter for a level or a list of filters.
///
/// # Errors
/// What is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    // A lone word that is no level would be the name of a module, and nothing else would be logged.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let lone = |word: &&str| !word.contains(['=', '[', ':']) && !is_level(word);
    if let Some(word) = level.split(',').map(str::trim).find(lone) {
        return Err(format!(
            "{word:?} is not a level: use error, warn, info, debug, trace or off, or MODULE=LEVEL"
        ));
    }
    EnvFilter::builder().parse(level).map_err(|error| error.to_string())
}

/// Starts logging; later calls change nothing.
pub fn start(config: &Config) {
    let filter = filter(&config.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a subscriber is there already (a second start in a test process).
    let _ = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Shows text of a guest with everything but printable ASCII escaped, at most 255 characters.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(255) {
            match character {
                '\\' => f.write_str("\\\\")?,
                ' '..='~' => f.write_char(character)?,
                other => write!(f, "{}", other.escape_default())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_text_cannot_forge_a_line() {
        let shown = Escaped("web\n\u{1b}[2J\\é").to_string();
        assert_eq!(shown, "web\\n\\u{1b}[2J\\\\\\u{e9}");
    }
}
