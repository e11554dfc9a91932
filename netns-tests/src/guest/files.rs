//! Programs and files of this machine for a QEMU guest, put behind the lab's initramfs.
//!
//! The kernel unpacks archives that follow each other into one tree (Linux, "initramfs buffer format").

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::record::run;

/// What a guest has beside BusyBox.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self { dir: run().directory("files") }
    }

    /// The place of a file of the guest, whose directory is made.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn place(&self, path: &str) -> anyhow::Result<PathBuf> {
        let place = self.dir.join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file in a directory")?)?;
        Ok(place)
    }

    /// A program as `/usr/bin/NAME`, without what is in it for debuggers, and the libraries that it asks for.
    ///
    /// # Errors
    /// When it cannot be read, or `ldd` or `strip` is missing.
    pub fn program(&self, program: &Path) -> anyhow::Result<()> {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program")?;
        let to = self.place(&format!("/usr/bin/{name}"))?;
        output(Command::new("strip").arg("-o").arg(&to).arg(program))?;
        let libraries = output(Command::new("ldd").arg(program))?;
        for library in libraries.lines().filter_map(|line| {
            // `NAME => PATH (ADDRESS)`, and for the loader `PATH (ADDRESS)`.
            let line = line.split_once("=>").map_or(line, |(_, path)| path).trim();
            line.starts_with('/').then(|| line.split_once(' ').map_or(line, |(path, _)| path))
        }) {
            fs::copy(library, self.place(library)?).context(library.to_owned())?;
        }
        Ok(())
    }

    /// The initramfs `base` with these files.
    pub(super) fn initramfs(&self, base: &Path) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("initramfs");
        fs::copy(base, &path).with_context(|| base.display().to_string())?;
        let status = Command::new("sh")
            .args(["-c", "find . | cpio -o -H newc --quiet | gzip -1"])
            .current_dir(self.dir.join("root"))
            .stdout(File::options().append(true).open(&path)?)
            .stderr(Stdio::inherit())
            .status()?;
        ensure!(status.success(), "cpio: {status}");
        Ok(path)
    }
}

impl Default for Files {
    fn default() -> Self {
        Self::new()
    }
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
