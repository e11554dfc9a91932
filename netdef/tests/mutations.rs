//! Broken documents: no input panics, and whatever is accepted is written in a stable form.

use std::fs;
use std::path::Path;

use netdef::{parse, to_xml};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

fn corpus() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libvirt");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("fixtures are part of the repository")
        .map(|entry| entry.expect("readable folder").path())
        .collect();
    files.sort();
    files.iter().map(|path| fs::read_to_string(path).expect("UTF-8 fixture")).collect()
}

/// What is accepted must come back the same from its own canonical form.
fn check(bytes: &[u8]) {
    let Ok(parsed) = parse(bytes) else { return };
    let first = to_xml(&parsed.network);
    let again = match parse(first.as_bytes()) {
        Ok(again) => again.network,
        Err(error) => panic!("{error:#?}\nfrom\n{}\nwas\n{first}", String::from_utf8_lossy(bytes)),
    };
    assert_eq!(to_xml(&again), first, "from\n{}", String::from_utf8_lossy(bytes));
    assert_eq!(to_xml(&parse(first.as_bytes()).expect("parsed above").network), first);
}

#[test]
fn documents_cut_anywhere_are_refused() {
    for text in corpus() {
        let whole = text.trim_end().len();
        for end in 0..whole {
            let result = parse(&text.as_bytes()[..end]);
            let error = result.expect_err("a document without its end");
            assert!(error.line.is_some(), "{error:?}");
        }
        check(text.as_bytes());
    }
}

const WORDS: [&str; 34] = [
    "<",
    ">",
    "/",
    "'",
    "\"",
    "=",
    "&",
    ";",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?",
    "?>",
    "<!",
    "</network>",
    "<network>",
    "<ip>",
    "yes",
    "no",
    "0",
    "-1",
    "99999999999999999999",
    "10.0.0.1",
    "::",
    "&lt;",
    "&#10;",
    "&#x0;",
    "\n",
    "\u{9b}",
    "é",
    " xmlns='x'",
    " xmlns:a='b'",
    "%d",
];

#[derive(Clone, Debug)]
enum Mutation {
    Remove(Index, usize),
    Insert(Index, &'static str),
    Byte(Index, u8),
    /// Copies a piece to another place.
    Copy(Index, usize, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<Index>(), 1_usize..40).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (any::<Index>(), select(&WORDS[..])).prop_map(|(at, word)| Mutation::Insert(at, word)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        (any::<Index>(), 1_usize..60, any::<Index>())
            .prop_map(|(from, length, to)| Mutation::Copy(from, length, to)),
    ]
}

fn apply(text: &mut Vec<u8>, mutation: &Mutation) {
    if text.is_empty() {
        return;
    }
    let size = text.len();
    match mutation {
        Mutation::Remove(at, length) => {
            let at = at.index(size);
            text.drain(at..size.min(at + length));
        }
        Mutation::Insert(at, word) => {
            let at = at.index(size);
            text.splice(at..at, word.bytes());
        }
        Mutation::Byte(at, byte) => text[at.index(size)] = *byte,
        Mutation::Copy(from, length, to) => {
            let from = from.index(size);
            let piece = text[from..size.min(from + length)].to_vec();
            let to = to.index(size);
            text.splice(to..to, piece);
        }
    }
}

/// Whole elements moved about keep the document well-formed, so that the rules are reached.
fn shuffled(lines: &[String], order: &[Index]) -> String {
    let mut lines = lines.to_vec();
    for pair in order.chunks_exact(2) {
        if lines.len() > 2 {
            let from = 1 + pair[0].index(lines.len() - 2);
            let line = lines[from].clone();
            if line.trim_end().ends_with("/>") {
                let to = 1 + pair[1].index(lines.len() - 2);
                lines.insert(to, line);
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_documents_never_panic(
        which in any::<Index>(),
        mutations in vec(mutation(), 1..6),
    ) {
        let corpus = corpus();
        let mut text = which.get(&corpus).clone().into_bytes();
        for mutation in &mutations {
            apply(&mut text, mutation);
        }
        check(&text);
    }

    #[test]
    fn moved_elements_never_panic(which in any::<Index>(), order in vec(any::<Index>(), 2..9)) {
        let corpus = corpus();
        let lines: Vec<String> = which.get(&corpus).lines().map(str::to_owned).collect();
        check(shuffled(&lines, &order).as_bytes());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }
}
