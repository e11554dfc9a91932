//! The program as a shell sees it: exit codes, what goes to which stream, virsh's empty lines.
//! The daemon is played by a thread with fixed answers; the real one is tested end to end in
//! `netns-tests`.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

const UUID: &str = "c2ef2ac3-1e0d-4c0e-9d4a-1f4e3a3f0a11";

fn network(name: &str, extra: &str) -> String {
    format!(
        r#"{{"name":"{name}","uuid":"{UUID}","title":null,"active":true,"persistent":true,
        "autostart":false,"mode":"nat","bridge":"virbr0","ports":0{extra}}}"#
    )
}

fn problem(code: &str, status: u16, title: &str) -> String {
    format!(r#"{{"code":"{code}","status":{status},"title":"{title}"}}"#)
}

/// A root directory with, perhaps, a daemon in it.
struct Host {
    root: TempDir,
    bodies: Option<Receiver<String>>,
}

struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Host {
    fn without_daemon() -> Self {
        Self { root: tempfile::tempdir().expect("a temporary directory"), bodies: None }
    }

    /// Answers by request line (`GET /v1/networks`): status and body.
    fn with(answers: &[(&str, u16, String)]) -> Self {
        let mut host = Self::without_daemon();
        let run = host.root.path().join("run/netloom");
        fs::create_dir_all(&run).expect("a writable directory");
        let listener = UnixListener::bind(run.join("api.sock")).expect("a free path");
        let answers: HashMap<String, (u16, String)> = answers
            .iter()
            .map(|(line, status, body)| ((*line).to_owned(), (*status, body.clone())))
            .collect();
        let (sender, bodies) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (line, body) = request(&mut stream);
                let (status, answer) = answers.get(&line).cloned().unwrap_or_else(|| {
                    (500, problem("internal", 500, &format!("unexpected {line}")))
                });
                let head =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
                let _ = stream.write_all((head + &answer).as_bytes());
                let _ = sender.send(body);
            }
        });
        host.bodies = Some(bodies);
        host
    }

    fn netctl(&self, arguments: &[&str]) -> Outcome {
        self.with_environment(arguments, &[])
    }

    fn with_environment(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_netctl"))
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", self.root.path())
            .env("NETLOOM_ROOT", self.root.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("netctl was built");
        Outcome {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.root.path().join(name);
        fs::write(&path, text).expect("a writable directory");
        path.to_string_lossy().into_owned()
    }
}

/// Request line and body.
fn request(stream: &mut UnixStream) -> (String, String) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = header.and_then(|value| value.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                let line = head.lines().next().unwrap_or_default();
                return (line.trim_end_matches(" HTTP/1.1").to_owned(), body.to_owned());
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return (text, String::new()),
            Ok(size) => bytes.extend_from_slice(&buffer[..size]),
        }
    }
}

#[test]
fn success_is_said_on_stdout_with_virshs_empty_line() {
    let info = network("default", "");
    let host = Host::with(&[("POST /v1/networks/default/start", 200, info)]);
    let said = host.netctl(&["net-start", "default"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "Network default started\n\n"));
    assert_eq!(said.err, "");
    let quiet = host.netctl(&["-q", "net-start", "default"]);
    assert_eq!((quiet.code, quiet.out.as_str()), (Some(0), ""));
}

#[test]
fn failure_is_said_on_stderr_with_exit_code_one() {
    let title = "Network not found: no network with matching name 'x'";
    let host = Host::with(&[
        ("POST /v1/networks/x/start", 404, problem("network-not-found", 404, title)),
        (
            "POST /v1/networks/a/start",
            409,
            problem(
                "network-active",
                409,
                "Requested operation is not valid: network is already active",
            ),
        ),
    ]);
    let gone = host.netctl(&["net-start", "x"]);
    assert_eq!((gone.code, gone.out.as_str()), (Some(1), "\n"));
    assert_eq!(gone.err, format!("error: failed to get network 'x'\nerror: {title}\n"));
    let active = host.netctl(&["-q", "net-start", "a"]);
    assert_eq!((active.code, active.out.as_str()), (Some(1), ""));
    assert_eq!(
        active.err,
        "error: Failed to start network a\n\
         error: Requested operation is not valid: network is already active\n"
    );
}

#[test]
fn usage_errors_print_nothing_on_stdout() {
    let host = Host::without_daemon();
    let usage = host.netctl(&["net-start"]);
    assert_eq!((usage.code, usage.out.as_str()), (Some(1), ""));
    assert_eq!(
        usage.err,
        "error: command 'net-start' requires <network> option\nhint: see `netctl net-start --help`\n"
    );
    let nothing = host.netctl(&[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(1), ""));
    assert!(nothing.err.contains("net-define"), "{}", nothing.err);
    let help = host.netctl(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
}

#[test]
fn an_absent_daemon_is_named_with_its_remedy() {
    let host = Host::without_daemon();
    let root = host.root.path().display();
    let absent = host.netctl(&["net-list"]);
    assert_eq!(absent.code, Some(1));
    assert_eq!(
        absent.err,
        format!(
            "error: failed to connect to the daemon of instance 'netloom'\n\
             error: Failed to connect socket to '{root}/run/netloom/api.sock': No such file or directory\n\
             hint: start the daemon as root with: vswitchd --root {root}\n"
        )
    );
    let json = host.netctl(&["-o", "json", "net-list"]);
    assert_eq!((json.code, json.out.as_str()), (Some(1), ""));
    let document: serde_json::Value = serde_json::from_str(&json.err).expect("a document");
    assert_eq!(document["code"], "unreachable");
}

#[test]
fn documents_are_sent_as_they_are_and_warnings_come_back() {
    let info = network("default", r#","warnings":["line 1, column 2: w"]"#);
    let host = Host::with(&[("POST /v1/networks", 201, info)]);
    let file = host.file("n.xml", "<network/>\n");
    let said = host.netctl(&["net-define", &file]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("Network default defined from {file}\n\n"))
    );
    assert_eq!(said.err, "warning: line 1, column 2: w\n");
    let bodies = host.bodies.as_ref().expect("a daemon");
    assert_eq!(bodies.recv().expect("a request"), "<network/>\n");
    let json = host.netctl(&["net-define", &file, "-o", "json"]);
    let document: serde_json::Value = serde_json::from_str(&json.out).expect("a document");
    assert_eq!((document["name"].as_str(), json.err.as_str()), (Some("default"), ""));
}

#[test]
fn refused_documents_are_blamed_at_their_place() {
    let refused = r#"{"code":"xml-error","status":400,"title":"XML error: bad","line":3,"column":7,
        "object":"network/ip[1]","remedy":"mend it"}"#;
    let host = Host::with(&[("POST /v1/networks", 400, refused.to_owned())]);
    let file = host.file("n.xml", "<network/>");
    let failed = host.netctl(&["net-define", &file]);
    assert_eq!((failed.code, failed.out.as_str()), (Some(1), "\n"));
    assert_eq!(
        failed.err,
        format!(
            "error: Failed to define network from {file}\nerror: XML error: bad\n       \
             at {file}:3:7, element network/ip[1]\nhint: mend it\n"
        )
    );
}

#[test]
fn the_editor_decides_what_is_defined() {
    let xml = "GET /v1/networks/default/xml?inactive=true";
    let host = Host::with(&[
        (xml, 200, "<network>old</network>\n".to_owned()),
        ("POST /v1/networks", 201, network("default", "")),
    ]);
    let edit =
        |editor: &str| host.with_environment(&["net-edit", "default"], &[("EDITOR", editor)]);
    let same = edit("true");
    let unchanged = "Network default XML configuration not changed.\n\n";
    assert_eq!((same.code, same.out.as_str()), (Some(0), unchanged));
    let changed = edit("sed -i s/old/new/");
    let edited = "Network default XML configuration edited.\n\n";
    assert_eq!((changed.code, changed.out.as_str()), (Some(0), edited), "{}", changed.err);
    let bodies = host.bodies.as_ref().expect("a daemon");
    let sent: Vec<String> = bodies.try_iter().filter(|body| !body.is_empty()).collect();
    assert_eq!(sent, ["<network>new</network>\n"]);
    let broken = edit("false");
    assert_eq!(broken.code, Some(1));
    assert!(broken.err.contains("editor 'false' failed"), "{}", broken.err);
    assert_eq!(drafts(host.root.path()), 0, "no temporary files are left");
}

#[test]
fn a_refused_edit_fails_and_keeps_the_text() {
    let xml = "GET /v1/networks/default/xml?inactive=true";
    let host = Host::with(&[
        (xml, 200, "<network>old</network>\n".to_owned()),
        ("POST /v1/networks", 400, problem("xml-error", 400, "XML error: bad")),
    ]);
    let refused =
        host.with_environment(&["net-edit", "default"], &[("VISUAL", "sed -i s/old/new/")]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("error: XML error: bad\n"), "{}", refused.err);
    assert!(refused.err.contains("hint: your text is kept in "), "{}", refused.err);
    assert_eq!(drafts(host.root.path()), 1);
}

fn drafts(folder: &Path) -> usize {
    let names = fs::read_dir(folder).expect("readable").filter_map(Result::ok);
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with("netctl-")).count()
}

#[test]
fn completion_asks_the_daemon_and_is_silent_without() {
    let complete = |host: &Host, word: &str| {
        host.with_environment(
            &["--", "netctl", "net-start", word],
            &[("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "2"), ("_CLAP_IFS", "\n")],
        )
    };
    let list = format!("[{},{}]", network("default", ""), network("lab", ""));
    let host = Host::with(&[("GET /v1/networks", 200, list)]);
    let names = complete(&host, "d");
    assert_eq!((names.code, names.out.trim_end()), (Some(0), "default"));
    let nobody = complete(&Host::without_daemon(), "d");
    assert_eq!((nobody.code, nobody.out.trim_end(), nobody.err.as_str()), (Some(0), "", ""));
}

#[test]
fn events_end_with_their_count() {
    let event = |seq: u32| {
        format!(
            "data: {{\"seq\":{seq},\"time\":1795253372654,\"revision\":1,\
             \"event\":\"network-started\",\"network\":\"default\",\"uuid\":\"{UUID}\"}}\n\n"
        )
    };
    let host = Host::with(&[("GET /v1/events", 200, event(1) + &event(2) + &event(3))]);
    let two = host.netctl(&["events", "--count", "2"]);
    assert_eq!(two.code, Some(0), "{}", two.err);
    assert_eq!(
        two.out,
        "2026-11-21 09:29:32.654+0000 1: network default: Started\n\
         2026-11-21 09:29:32.654+0000 2: network default: Started\n\
         events received: 2\n\n"
    );
    let json = host.netctl(&["events", "--count", "1", "-o", "json"]);
    assert_eq!(json.out.lines().count(), 1, "one value per line");
    let ended = host.netctl(&["events"]);
    assert_eq!(ended.code, Some(1), "the daemon ended the stream");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let list = format!("[{}]", vec![network("n", ""); 2000].join(","));
    let host = Host::with(&[("GET /v1/networks", 200, list)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_netctl"))
        .args(["net-list", "--all"])
        .env("NETLOOM_ROOT", host.root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("netctl was built");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn man_pages_are_written() {
    let host = Host::without_daemon();
    let folder = host.root.path().join("man");
    let written = host.netctl(&["man", &folder.to_string_lossy()]);
    assert_eq!(written.code, Some(0), "{}", written.err);
    let page = fs::read_to_string(folder.join("netctl-net-define.1")).expect("a page per command");
    assert!(page.contains("libvirt XML"), "{page}");
}
