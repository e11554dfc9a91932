//! `net-edit`: the definition in an editor, and back.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use uuid::Uuid;

use super::Context;
use crate::failure::{Failure, Lead as _, system_words};

pub(super) async fn edit(context: &mut Context<'_>, network: &str) -> Result<(), Failure> {
    let before = context.client.xml(network, true).await.network(network, None)?;
    let draft = Draft::new(&before)?;
    loop {
        let after = draft.edit()?;
        if after.trim_end() == before.trim_end() {
            let message = format!("Network {network} XML configuration not changed.");
            return super::networks::said(context, network, &message);
        }
        let defined = context.client.define(after).await;
        match defined.lead(format!("Failed to define network from {}", draft.path.display())) {
            Ok(info) => {
                context.warn(&info.warnings);
                let message = format!("Network {} XML configuration edited.", info.name);
                return super::networks::said(context, &info.name, &message);
            }
            Err(failure) => {
                let failure = failure.in_file(&draft.path);
                failure.report(context.output);
                if !again()? {
                    let path = draft.keep();
                    return Err(Failure::local(format!(
                        "Network {network} XML configuration not changed."
                    ))
                    .remedy(format!("your text is kept in {}", path.display())));
                }
            }
        }
    }
}

/// Somebody at a terminal may mend the text.
fn again() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    loop {
        eprint!("Failed. Try again? [y,n]: ");
        io::stderr().flush()?;
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer)? == 0 {
            return Ok(false);
        }
        match answer.trim() {
            "y" | "Y" => return Ok(true),
            "n" | "N" => return Ok(false),
            _ => eprintln!("y - edit again, n - give up and keep the text in a file"),
        }
    }
}

/// The text in a private file, removed at the end unless kept.
struct Draft {
    path: PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Draft {
    fn new(text: &str) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("netctl-{}.xml", Uuid::new_v4()));
        let fail = |error: &io::Error| {
            let words = system_words(error);
            Failure::local(format!("cannot write temporary file '{}': {words}", path.display()))
        };
        let mut options = OpenOptions::new();
        let file: Result<File, io::Error> =
            options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(|error| fail(&error))?;
        let draft = Self { path: path.clone(), kept: false.into() };
        file.write_all(text.as_bytes()).map_err(|error| fail(&error))?;
        Ok(draft)
    }

    fn keep(&self) -> &Path {
        self.kept.set(true);
        &self.path
    }

    /// Runs the editor and reads what it left.
    fn edit(&self) -> Result<String, Failure> {
        let editor = ["VISUAL", "EDITOR"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|editor| !editor.trim().is_empty())
            .unwrap_or_else(|| "vi".to_owned());
        // Like git and virsh: the editor may be a command with options.
        let status = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{editor} \"$1\""))
            .arg("netctl")
            .arg(&self.path)
            .status()
            .map_err(|error| {
                Failure::local(format!("cannot run an editor: {}", system_words(&error)))
            })?;
        if !status.success() {
            return Err(Failure::local(format!("editor '{editor}' failed: {status}"))
                .remedy("set $VISUAL or $EDITOR"));
        }
        std::fs::read_to_string(&self.path).map_err(|error| {
            let words = system_words(&error);
            Failure::local(format!("cannot read '{}' again: {words}", self.path.display()))
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.get() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
