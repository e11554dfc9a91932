//! `cargo xtask guard`: instructions per frame of the hot functions, against the limits in `datapath/hot-path.limits`.
//!
//! Counted by callgrind over `datapath/examples/hot_path`, so the machine's speed and load do not matter; the compiler's version does.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::build::{self, cargo};
use crate::packages;
use crate::phase::{loud, phase, quiet};

/// What the limits leave room for: other inlining, another compiler.
const SLACK: f64 = 1.08;
/// Functions that are shown of a scenario that grew.
const SHOWN: usize = 8;

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Write what is counted now as the new limits
    #[arg(long)]
    update: bool,
}

/// One scenario's count.
struct Count {
    scenario: String,
    per_frame: f64,
    /// Functions and their own instructions per frame, most first.
    functions: Vec<(String, f64)>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    phase("Debian packages", || packages::install(&["valgrind"]))?;
    let program = phase("Build the hot path", build)?;
    let file = build::root().join("datapath/hot-path.limits");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let limits = parse_limits(&text)?;
    let mut counts = Vec::new();
    for (scenario, limit) in &limits {
        let count = phase(&format!("Instructions of {scenario}"), || count(&program, scenario))?;
        eprintln!("         {:.1} per frame, {limit:.1} at last", count.per_frame);
        counts.push(count);
    }
    if options.update {
        let comments = text.lines().filter(|line| line.starts_with('#'));
        let mut new: String = comments.fold(String::new(), |text, line| text + line + "\n");
        for count in &counts {
            let _ = writeln!(new, "{} {:.1}", count.scenario, count.per_frame);
        }
        return fs::write(&file, new).with_context(|| file.display().to_string());
    }
    let grown: Vec<String> = counts
        .iter()
        .zip(&limits)
        .filter(|(count, (_, limit))| count.per_frame > limit * SLACK)
        .map(|(count, (_, limit))| complaint(count, *limit))
        .collect();
    ensure!(
        grown.is_empty(),
        "the hot path has grown:\n{}\nIf that is worth it: `cargo xtask guard --update`, and say why in the commit.",
        grown.join("\n")
    );
    Ok(())
}

fn complaint(count: &Count, limit: f64) -> String {
    let Count { scenario, per_frame, functions } = count;
    let percent = (per_frame / limit - 1.0) * 100.0;
    let mut text = format!(
        "{scenario}: {per_frame:.1} instructions per frame, {limit:.1} before (+{percent:.0} %); most are in"
    );
    for (function, own) in functions.iter().take(SHOWN) {
        let _ = write!(text, "\n    {own:>7.1}  {function}");
    }
    text
}

fn build() -> anyhow::Result<PathBuf> {
    let words = ["--package", "datapath", "--example", "hot_path", "--features", "hot-path"];
    loud(cargo().args(["build", "--quiet", "--profile", "measure"]).args(words))?;
    Ok(build::target().join("measure/examples/hot_path"))
}

fn count(program: &Path, scenario: &str) -> anyhow::Result<Count> {
    let out = program.with_file_name(format!("{scenario}.callgrind"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--collect-atstart=no", "--compress-strings=no"]);
    valgrind.arg("--toggle-collect=hot_path::measured*");
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let said = quiet(valgrind.arg(program).arg(scenario))?;
    let frames: f64 = said.trim().parse().with_context(|| format!("{scenario} said {said:?}"))?;
    let text = fs::read_to_string(&out).with_context(|| out.display().to_string())?;
    let (total, functions) = parse_callgrind(&text)?;
    ensure!(total > 0.0, "callgrind counted nothing: is hot_path::measured still a function?");
    let functions = functions.into_iter().map(|(name, own)| (name, own / frames)).collect();
    Ok(Count { scenario: scenario.to_owned(), per_frame: total / frames, functions })
}

/// Lines of `scenario instructions`; `#` begins a comment.
fn parse_limits(text: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, limit) = line.split_once(' ').with_context(|| format!("limit {line:?}"))?;
            Ok((name.to_owned(), limit.trim().parse().with_context(|| format!("limit {line:?}"))?))
        })
        .collect()
}

/// Total, and own instructions by function (format of callgrind: cost lines follow `fn=`; the line after `calls=` is a callee's).
fn parse_callgrind(text: &str) -> anyhow::Result<(f64, Vec<(String, f64)>)> {
    let mut own: HashMap<&str, f64> = HashMap::new();
    let (mut function, mut callee) = ("", false);
    let mut total = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if let Some(sum) = line.strip_prefix("summary:").or(line.strip_prefix("totals:")) {
            total = total.or(sum.trim().parse::<f64>().ok());
        } else if line.starts_with("calls=") {
            callee = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first))
            && !std::mem::take(&mut callee)
        {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<f64>().ok());
            *own.entry(function).or_default() += cost.unwrap_or(0.0);
        }
    }
    let Some(total) = total else { bail!("callgrind's file has no summary") };
    let mut functions: Vec<(String, f64)> =
        own.into_iter().map(|(name, own)| (name.to_owned(), own)).collect();
    functions.sort_by(|one, other| other.1.total_cmp(&one.1));
    Ok((total, functions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrind_files_are_summed_by_function() {
        let text =
            "events: Ir\nfn=a\n10 5\n+2 7\ncfn=b\ncalls=3 20\n12 30\nfn=b\n20 30\n\nsummary: 42\n";
        let (total, functions) = parse_callgrind(text).unwrap();
        assert_eq!(total, 42.0);
        assert_eq!(functions, [("b".to_owned(), 30.0), ("a".to_owned(), 12.0)]);
        assert!(parse_callgrind("fn=a\n1 2\n").is_err());
    }

    #[test]
    fn limits_have_names_and_comments() {
        assert_eq!(parse_limits("# why\nburst 12.5\n").unwrap(), [("burst".to_owned(), 12.5)]);
        assert!(parse_limits("burst\n").is_err());
    }

    #[test]
    fn a_complaint_says_what_grew_by_how_much() {
        let functions = vec![("gather".to_owned(), 90.0), ("copy".to_owned(), 20.0)];
        let count = Count { scenario: "burst".to_owned(), per_frame: 110.0, functions };
        let text = complaint(&count, 100.0);
        assert!(text.starts_with("burst: 110.0 instructions per frame, 100.0 before (+10 %)"));
        assert!(text.contains("90.0  gather"), "{text}");
    }
}
