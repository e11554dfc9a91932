//! Hostile documents: refused (or read) within a second and 64 MiB, whatever they are.
//!
//! This binary counts every allocation, so it has one test only: others would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use netdef::{ErrorKind, MAX_DOCUMENT, parse, to_xml};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(size: usize) {
    let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about pointer and layout is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are alive while the bytes move.
        grown(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about pointer, layout and size is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MEMORY: usize = 64 << 20;
/// One second for the built product; tests run code without optimization.
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });

/// Processor time of this thread: what else the machine does, does not count.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("time since the thread began");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("less than a second");
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

fn fill(head: &str, unit: impl Fn(usize) -> String, tail: &str) -> String {
    let mut text = head.to_owned();
    let mut index = 0;
    loop {
        let next = unit(index);
        if text.len() + next.len() + tail.len() > MAX_DOCUMENT {
            break;
        }
        text.push_str(&next);
        index += 1;
    }
    text + tail
}

/// Like [`fill`], but stops at a count.
fn some(count: usize, head: &str, unit: impl Fn(usize) -> String, tail: &str) -> String {
    let middle: String = (0..count).map(unit).collect();
    format!("{head}{middle}{tail}")
}

fn documents() -> Vec<(&'static str, String)> {
    const HEAD: &str = "<network><name>n</name>";
    const TAIL: &str = "</network>";
    let address = |i: usize| format!("10.{}.{}.{}", 1 + (i >> 16), (i >> 8) & 255, i & 255);
    let metadata = format!("{HEAD}<metadata>");
    let nested = "<a>".repeat(29);
    let closed = "</a>".repeat(29);
    vec![
        ("nothing but opening brackets", "<".repeat(MAX_DOCUMENT)),
        ("nothing but equal signs", "=".repeat(MAX_DOCUMENT)),
        ("small elements", fill(HEAD, |_| "<a/>".into(), TAIL)),
        ("as many small elements as allowed", some(99_000, HEAD, |_| "<a/>".into(), TAIL)),
        (
            "as many in metadata",
            some(99_000, &metadata, |_| "<a/>".into(), "</metadata></network>"),
        ),
        (
            "as many with a prefix in metadata",
            some(
                49_000,
                &format!("<network{}><name>n</name><metadata><p1:x>",
                    (0..60).map(|i| format!(" xmlns:p{i}='u{i}'")).collect::<String>()),
                |i| format!("<p{}:a>t</p{0}:a>", i % 60),
                "</p1:x></metadata></network>",
            ),
        ),
        (
            "deep and wide metadata",
            some(
                90_000,
                &format!("{metadata}<x:x xmlns:x='x'>{}", &nested[..27 * 3]),
                |_| "<a/>".into(),
                &format!("{}</x:x></metadata></network>", &closed[..27 * 4]),
            ),
        ),
        ("deeper than allowed", "<a>".repeat(MAX_DOCUMENT / 3)),
        ("attributes of one element", fill("<network><a", |i| format!(" a{i}='1'"), "/></network>")),
        (
            "attributes of many elements",
            some(60_000, HEAD, |_| "<a b='1' c='2' d='3' e='4'/>".into(), TAIL),
        ),
        (
            "escaped attributes",
            some(49_000, HEAD, |_| "<ip a='&lt;' b='&lt;' c='&gt;' d='&amp;'/>".into(), TAIL),
        ),
        ("namespaces", fill("<network", |i| format!(" xmlns:n{i}='u{i}'"), "/>")),
        (
            "namespaces level by level",
            fill(HEAD, |i| format!("<a xmlns:n{i}='u{i}'/>"), TAIL),
        ),
        ("a long name", format!("<network><name>{}</name></network>", "x".repeat(MAX_DOCUMENT - 40))),
        ("a long attribute", format!("{HEAD}<bridge name='{}'/>{TAIL}", "x".repeat(MAX_DOCUMENT - 60))),
        ("a long comment", format!("{HEAD}<!--{}-->{TAIL}", "x".repeat(MAX_DOCUMENT - 60))),
        ("entities in text", fill("<network><name>n</name><description>", |_| "&lt;".into(), "</description></network>")),
        (
            "entity definitions",
            format!(
                "<!DOCTYPE n [<!ENTITY a 'aaaaaaaaaa'>{}]><network><name>&z;</name></network>",
                (b'b'..=b'z').map(|c| format!("<!ENTITY {0} '&{1};&{1};&{1};&{1};'>", c as char, (c - 1) as char)).collect::<String>()
            ),
        ),
        ("an external entity", "<!DOCTYPE n [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><network><name>&x;</name></network>".into()),
        ("unknown attributes", some(80_000, HEAD, |_| "<ip b='1'/>".into(), TAIL)),
        (
            "a host for every address of a /16",
            some(
                65_000,
                &format!("{HEAD}<ip address='10.1.0.1' prefix='16'><dhcp>"),
                |i| format!("<host mac='2:0:0:{:x}:{:x}:1' ip='{}'/>\n", i >> 8, i & 255, address(i + 2)),
                "</dhcp></ip></network>",
            ),
        ),
        (
            "ranges that all overlap",
            some(
                60_000,
                &format!("{HEAD}<ip address='10.1.0.1' prefix='16'><dhcp>"),
                |_| "<range start='10.1.0.2' end='10.1.9.9'/>".into(),
                "</dhcp></ip></network>",
            ),
        ),
        ("addresses", some(60_000, HEAD, |i| format!("<ip address='{}' prefix='32'/>", address(i)), TAIL)),
        ("portgroups", some(60_000, HEAD, |i| format!("<portgroup name='{i}'/>"), TAIL)),
        (
            "routes",
            some(
                45_000,
                &format!("{HEAD}<ip address='10.0.0.1' prefix='8'/>"),
                |i| format!("<route address='{}' prefix='32' gateway='10.0.0.2'/>", address(i)),
                TAIL,
            ),
        ),
        ("line breaks", fill(HEAD, |_| "\n".into(), "<ip/></network>")),
        ("one line too long for one more byte", format!("{HEAD}{}{TAIL}", " ".repeat(MAX_DOCUMENT - 33))),
        ("carriage returns", fill("<network><name>n</name><description>", |_| "\r".into(), "</description></network>")),
    ]
}

#[test]
fn stays_within_a_second_and_64_mebibytes() {
    let big = vec![b'<'; 100 << 20];
    let begin = now();
    let error = parse(&big).expect_err("100 MB are refused");
    assert_eq!(error.kind, ErrorKind::TooLarge);
    assert!(now() - begin < Duration::from_millis(100), "its size is looked at first");
    drop(big);

    let mut failures = Vec::new();
    for (name, text) in documents() {
        assert!(text.len() <= MAX_DOCUMENT, "{name} has {} bytes", text.len());
        let base = NOW.load(Ordering::Relaxed);
        PEAK.store(base, Ordering::Relaxed);
        let begin = now();
        let result = parse(text.as_bytes());
        let outcome = match &result {
            Ok(parsed) => format!("read, {} bytes again", to_xml(&parsed.network).len()),
            Err(error) => {
                error.message.lines().next().unwrap_or_default().chars().take(70).collect()
            }
        };
        let elapsed = now() - begin;
        let peak = PEAK.load(Ordering::Relaxed) - base;
        println!(
            "{name:45} {:9} bytes {:6} KiB {elapsed:>10.1?}  {outcome}",
            text.len(),
            peak >> 10
        );
        if elapsed > TIME || peak > MEMORY {
            failures.push(name);
        }
    }
    assert_eq!(failures, Vec::<&str>::new());
}
