//! Where the serial console goes.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use super::MachineError;

/// The outside of the serial console: `stdio` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    Stdio,
    /// Appended to, created if missing; no input.
    File(PathBuf),
}

impl FromStr for Console {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("{text:?} is neither stdio nor file:PATH")),
        }
    }
}

impl Console {
    pub(super) fn reads_stdin(&self) -> bool {
        *self == Self::Stdio
    }

    pub(super) fn open(&self) -> Result<Box<dyn Write + Send>, MachineError> {
        match self {
            Self::Stdio => Ok(Box::new(io::stdout())),
            Self::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.map_err(|source| MachineError::Console {
                    what: path.display().to_string(),
                    source,
                })?;
                Ok(Box::new(file))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_parse() {
        assert_eq!("stdio".parse(), Ok(Console::Stdio));
        assert_eq!("file:/tmp/a:b".parse(), Ok(Console::File("/tmp/a:b".into())));
        for bad in ["", "file", "file:", "pty", "stdio:1"] {
            assert!(bad.parse::<Console>().is_err(), "{bad}");
        }
    }
}
