//! docs/security.md names the cases of this suite, all of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// Names between backquotes in the second column of the table of hazards, with what stands before them in their cell.
fn named(page: &str) -> Vec<(String, String)> {
    let rows = page.lines().skip_while(|line| !line.starts_with("| hazard |")).skip(2);
    let cells =
        rows.take_while(|line| line.starts_with('|')).filter_map(|row| row.split('|').nth(2));
    let parts = cells.flat_map(|cell| cell.split([',', ';']));
    let name = |part: &str| {
        let mut pieces = part.split('`');
        Some((pieces.next()?.trim().to_owned(), pieces.next()?.to_owned()))
    };
    parts.filter_map(name).collect()
}

/// Functions of the crate's test sources, `file::function`.
fn tests_of(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let Some(file) = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "rs"))
        else {
            continue;
        };
        for line in fs::read_to_string(&path)?.lines() {
            if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                names.insert(format!("{}::{name}", file.to_string_lossy()));
            }
        }
    }
    Ok(names)
}

#[test]
fn every_hazard_has_its_tests_and_every_test_its_hazard() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/security.md"))?;
    let named = named(&page);
    anyhow::ensure!(named.len() > 30, "the table of docs/security.md is not found: {named:?}");

    let listed = Command::new(std::env::current_exe()?).args(["--list"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let own: Vec<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let is_in = |test: &str, name: &str| {
        test.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || name.ends_with("::") || rest.starts_with("::"))
    };
    let mut missing = Vec::new();
    for (whose, name) in &named {
        let found = if whose == "datapath" {
            tests_of(&root.join("datapath/tests"))?.iter().any(|test| is_in(test, name))
        } else {
            let others = tests_of(&root.join("netns-tests/tests"))?;
            own.iter().any(|test| is_in(test, name)) || others.iter().any(|test| is_in(test, name))
        };
        if !found {
            missing.push(name);
        }
    }
    anyhow::ensure!(
        missing.is_empty(),
        "docs/security.md names tests that are not there: {missing:?}"
    );
    let silent: Vec<_> = own
        .iter()
        .filter(|test| !test.starts_with("documentation::"))
        .filter(|test| !named.iter().any(|(_, name)| is_in(test, name)))
        .collect();
    anyhow::ensure!(silent.is_empty(), "docs/security.md does not name {silent:?}");
    Ok(())
}
