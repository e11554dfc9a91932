//! What libvirt does with the same document.
//!
//! `libvirt/NAME.in.xml` went through `virsh -c test:///default net-define` and came back as
//! `NAME.out.xml` from `net-dumpxml` (libvirt 9.0, whose test driver runs the real parser and
//! formatter). `refused.txt` pairs documents with libvirt's error message: that of the same
//! driver, and at the end those that only the network driver of libvirt 11.3 gives.

use std::fs;
use std::path::{Path, PathBuf};

use netdef::{parse, to_xml};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn documents(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("fixtures are part of the repository")
        .map(|entry| entry.expect("readable folder").path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no {suffix} in {}", folder.display());
    found
}

fn canonical(path: &Path) -> String {
    let text = fs::read(path).expect("readable fixture");
    match parse(&text) {
        Ok(parsed) => to_xml(&parsed.network),
        Err(error) => panic!("{}: {error:#?}", path.display()),
    }
}

#[test]
fn documents_come_out_as_libvirt_writes_them() {
    for input in documents(&folder("tests/libvirt"), ".in.xml") {
        let output = PathBuf::from(input.to_string_lossy().replace(".in.xml", ".out.xml"));
        let expected = fs::read_to_string(&output).expect("every input has an output");
        assert_eq!(canonical(&input), expected, "{}", input.display());
    }
}

#[test]
fn libvirts_own_output_comes_out_unchanged() {
    for output in documents(&folder("tests/libvirt"), ".out.xml") {
        let expected = fs::read_to_string(&output).expect("readable fixture");
        assert_eq!(canonical(&output), expected, "{}", output.display());
    }
}

#[test]
fn the_delivered_configurations_are_canonical() {
    for config in documents(&folder("../configs"), ".xml") {
        let text = fs::read_to_string(&config).expect("readable configuration");
        assert_eq!(canonical(&config), text, "{}", config.display());
        let parsed = parse(text.as_bytes()).expect("parsed above");
        assert_eq!(parsed.warnings, [], "{}", config.display());
    }
}

#[test]
fn refusals_have_libvirts_words() {
    let table = fs::read_to_string(folder("tests/refused.txt")).expect("readable fixture");
    let mut failures = Vec::new();
    let mut count = 0;
    for block in table.split("\n\n").map(str::trim_end).filter(|block| !block.is_empty()) {
        let (document, expected) = block.rsplit_once('\n').expect("a document and a message");
        count += 1;
        match parse(document.as_bytes()) {
            Ok(_) => failures.push(format!("accepted: {document}\n  expected {expected}")),
            Err(error) if error.message.trim_end() != expected => {
                failures.push(format!(
                    "{document}\n  expected {expected}\n  got      {}",
                    error.message
                ));
            }
            Err(error) => {
                assert!(error.line.is_some() && error.column.is_some(), "{error:?}");
                assert!(error.element.is_some(), "{error:?}");
            }
        }
    }
    assert!(count > 100, "the table has {count} entries");
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
}
