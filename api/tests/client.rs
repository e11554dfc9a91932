//! The client against a socket that plays back answers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};

use api::client::{Client, ClientError};
use api::{Code, EventKind, Instance, PortAdd, PortKind, PortProfile};

struct Server {
    client: Client,
    requests: Receiver<String>,
    _root: tempfile::TempDir,
}

/// Answers one connection after the other, each after its whole request has come.
fn serve(answers: Vec<String>) -> Server {
    let root = tempfile::tempdir().expect("a temporary directory");
    let instance = Instance::new("netloom", root.path()).expect("a good name");
    std::fs::create_dir_all(instance.run_dir()).expect("a writable directory");
    let listener = UnixListener::bind(instance.api_socket()).expect("a free path");
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let request = read_request(&mut stream);
            let _ = stream.write_all(answer.as_bytes());
            let _ = sender.send(request);
        }
    });
    Server { client: Client::new(&instance), requests, _root: root }
}

fn read_request(stream: &mut UnixStream) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|value| value.parse::<usize>().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return text,
            Ok(size) => request.extend_from_slice(&buffer[..size]),
        }
    }
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
}

const NETWORK: &str = r#"{"name":"a b","uuid":"c2ef2ac3-1e0d-4c0e-9d4a-1f4e3a3f0a11","title":null,
    "active":true,"persistent":true,"autostart":false,"mode":"nat","bridge":"virbr0","ports":2,
    "warnings":["w"]}"#;

#[tokio::test]
async fn documents_go_out_and_networks_come_back() {
    let server = serve(vec![answer("201 Created", "application/json", NETWORK)]);
    let network = server.client.define("<network/>").await.expect("defined");
    assert_eq!((network.name.as_str(), network.ports), ("a b", 2));
    assert_eq!(network.warnings, ["w"]);
    let request = server.requests.recv().expect("a request");
    assert!(request.starts_with("POST /v1/networks HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("content-type: application/xml\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n<network/>"), "{request}");
}

#[tokio::test]
async fn each_call_has_its_path() {
    let none = || "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
    let list = || answer("200 OK", "application/json", "[]");
    let network = answer("200 OK", "application/json", NETWORK);
    let server = serve(vec![none(), none(), network, list(), list(), list(), none()]);
    let client = &server.client;
    client.undefine("a b").await.expect("answered");
    client.destroy("n").await.expect("answered");
    client.set_autostart("n", true).await.expect("answered");
    assert!(client.leases("n").await.expect("answered").is_empty());
    assert!(client.network_ports("n").await.expect("answered").is_empty());
    assert!(client.fdb("n").await.expect("answered").is_empty());
    client.delete_port("p/q").await.expect("answered");
    let lines: Vec<String> = std::iter::from_fn(|| server.requests.recv().ok())
        .map(|request| request.lines().next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        lines,
        [
            "DELETE /v1/networks/a%20b HTTP/1.1",
            "POST /v1/networks/n/destroy HTTP/1.1",
            "PUT /v1/networks/n/autostart HTTP/1.1",
            "GET /v1/networks/n/leases HTTP/1.1",
            "GET /v1/networks/n/ports HTTP/1.1",
            "GET /v1/networks/n/fdb HTTP/1.1",
            "DELETE /v1/ports/p%2Fq HTTP/1.1",
        ]
    );
}

#[tokio::test]
async fn problems_are_passed_through() {
    let body = r#"{"code":"port-exists","status":409,"title":"port 'web1' exists","causes":["c"],
        "object":"web1","remedy":"choose another name"}"#;
    let server = serve(vec![answer("409 Conflict", "application/problem+json", body)]);
    let port = PortAdd {
        name: "web1".to_owned(),
        uuid: None,
        port: PortKind::Tap { ifname: "tap0".to_owned() },
        mac: None,
        profile: PortProfile::default(),
    };
    let error = server.client.add_port("n", &port).await.expect_err("refused");
    assert_eq!(error.problem().map(|problem| problem.code), Some(Code::PortExists));
    assert_eq!(error.to_string(), "port 'web1' exists");
    assert_eq!(error.remedy().as_deref(), Some("choose another name"));
    let request = server.requests.recv().expect("a request");
    assert!(request.contains(r#""port":{"kind":"tap","ifname":"tap0"}"#), "{request}");
}

#[tokio::test]
async fn answers_of_something_else_are_said_to_be() {
    let server = serve(vec![
        answer("200 OK", "text/html", "<html>"),
        answer("502 Bad Gateway", "text/html", "<html>"),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[".to_owned(),
        "SSH-2.0-OpenSSH\r\n".to_owned(),
    ]);
    let client = &server.client;
    assert!(matches!(client.networks().await, Err(ClientError::Answer(_))));
    assert!(matches!(client.networks().await, Err(ClientError::Answer(_))));
    assert!(matches!(client.networks().await, Err(ClientError::Lost { .. })));
    assert!(matches!(client.networks().await, Err(ClientError::Lost { .. })));
    // Nobody is listening any more.
    assert!(matches!(client.networks().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn events_are_streamed() {
    let event = r#"{"seq":7,"time":1,"revision":3,"event":"gap","missed":2}"#;
    let stream = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\nid: 7\ndata: {event}\n\n"
    );
    let server = serve(vec![stream]);
    let mut events = server.client.events(Some(6)).await.expect("a stream");
    let event = events.next().await.expect("an event").expect("not the end");
    assert_eq!((event.seq, event.kind), (7, EventKind::Gap { missed: 2 }));
    assert!(events.next().await.expect("the end").is_none());
    let request = server.requests.recv().expect("a request");
    assert!(request.starts_with("GET /v1/events?since=6 HTTP/1.1"), "{request}");
}
