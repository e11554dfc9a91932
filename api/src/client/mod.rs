//! The client of the control API, over the instance's Unix socket.
//!
//! `netctl`, `netloom-vmm` and the tests use it. One connection per request: the daemon may be
//! restarted between two of them. No retries, no caching, no output.

mod error;
mod sse;

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub use error::ClientError;
use sse::Parser;

use crate::{
    Autostart, Event, FdbAdd, FdbEntry, FdbRemove, FdbRemoved, Instance, InstanceInfo, Lease,
    NetworkInfo, NetworkStats, PortAdd, PortInfo, PortSet, PortStats, Problem, WorkerInfo,
};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;

type Result<T> = std::result::Result<T, ClientError>;

/// A caller of one instance's daemon. Networks and ports are named by name or UUID.
#[derive(Clone, Debug)]
pub struct Client {
    instance: Instance,
    socket: PathBuf,
}

impl Client {
    #[must_use]
    pub fn new(instance: &Instance) -> Self {
        Self { instance: instance.clone(), socket: instance.api_socket() }
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/instance`
    ///
    /// # Errors
    /// As all calls: the daemon is not there, refuses, or does not speak this API.
    pub async fn instance(&self) -> Result<InstanceInfo> {
        self.get("/v1/instance").await
    }

    /// `GET /v1/networks`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn networks(&self) -> Result<Vec<NetworkInfo>> {
        self.get("/v1/networks").await
    }

    /// `GET /v1/networks/{network}`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn network(&self, network: &str) -> Result<NetworkInfo> {
        self.get(&format!("/v1/networks/{}", segment(network))).await
    }

    /// `POST /v1/networks`: defines a persistent network, or redefines it.
    ///
    /// # Errors
    /// See [`Client::instance`]. The document's errors have line, column and remedy.
    pub async fn define(&self, xml: impl Into<Bytes>) -> Result<NetworkInfo> {
        self.xml_in("/v1/networks", xml.into()).await
    }

    /// `POST /v1/networks?transient=true`: creates and starts a network that is gone when it stops.
    ///
    /// # Errors
    /// See [`Client::define`].
    pub async fn create(&self, xml: impl Into<Bytes>) -> Result<NetworkInfo> {
        self.xml_in("/v1/networks?transient=true", xml.into()).await
    }

    /// `DELETE /v1/networks/{network}`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn undefine(&self, network: &str) -> Result<()> {
        self.nothing(Method::DELETE, &format!("/v1/networks/{}", segment(network))).await
    }

    /// `GET /v1/networks/{network}/xml`: the active definition, or the one on disk.
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn xml(&self, network: &str, inactive: bool) -> Result<String> {
        let path = format!("/v1/networks/{}/xml?inactive={inactive}", segment(network));
        let answer = self.call(Method::GET, &path, None).await?;
        String::from_utf8(answer.to_vec()).map_err(|_| ClientError::answer("not UTF-8"))
    }

    /// `POST /v1/networks/{network}/start`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn start(&self, network: &str) -> Result<NetworkInfo> {
        self.send(Method::POST, &format!("/v1/networks/{}/start", segment(network)), None).await
    }

    /// `POST /v1/networks/{network}/destroy`: stops it; a transient one is gone then.
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn destroy(&self, network: &str) -> Result<()> {
        self.nothing(Method::POST, &format!("/v1/networks/{}/destroy", segment(network))).await
    }

    /// `PUT /v1/networks/{network}/autostart`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn set_autostart(&self, network: &str, autostart: bool) -> Result<NetworkInfo> {
        let path = format!("/v1/networks/{}/autostart", segment(network));
        self.send(Method::PUT, &path, Some(Body::json(&Autostart { autostart })?)).await
    }

    /// `GET /v1/networks/{network}/leases`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn leases(&self, network: &str) -> Result<Vec<Lease>> {
        self.get(&format!("/v1/networks/{}/leases", segment(network))).await
    }

    /// `GET /v1/networks/{network}/stats`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn network_stats(&self, network: &str) -> Result<NetworkStats> {
        self.get(&format!("/v1/networks/{}/stats", segment(network))).await
    }

    /// `GET /v1/networks/{network}/fdb`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn fdb(&self, network: &str) -> Result<Vec<FdbEntry>> {
        self.get(&format!("/v1/networks/{}/fdb", segment(network))).await
    }

    /// `POST /v1/networks/{network}/fdb`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn add_fdb(&self, network: &str, entry: &FdbAdd) -> Result<FdbEntry> {
        let path = format!("/v1/networks/{}/fdb", segment(network));
        self.send(Method::POST, &path, Some(Body::json(entry)?)).await
    }

    /// `DELETE /v1/networks/{network}/fdb`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn remove_fdb(&self, network: &str, which: FdbRemove) -> Result<FdbRemoved> {
        let mac = which.mac.map(|mac| format!("mac={mac}"));
        let vlan = which.vlan.map(|vlan| format!("vlan={vlan}"));
        let query: Vec<String> = mac.into_iter().chain(vlan).collect();
        let path = format!("/v1/networks/{}/fdb?{}", segment(network), query.join("&"));
        self.send(Method::DELETE, &path, None).await
    }

    /// `GET /v1/workers`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>> {
        self.get("/v1/workers").await
    }

    /// `GET /v1/ports`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn ports(&self) -> Result<Vec<PortInfo>> {
        self.get("/v1/ports").await
    }

    /// `GET /v1/networks/{network}/ports`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn network_ports(&self, network: &str) -> Result<Vec<PortInfo>> {
        self.get(&format!("/v1/networks/{}/ports", segment(network))).await
    }

    /// `POST /v1/networks/{network}/ports`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn add_port(&self, network: &str, port: &PortAdd) -> Result<PortInfo> {
        let path = format!("/v1/networks/{}/ports", segment(network));
        self.send(Method::POST, &path, Some(Body::json(port)?)).await
    }

    /// `GET /v1/ports/{port}`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn port(&self, port: &str) -> Result<PortInfo> {
        self.get(&format!("/v1/ports/{}", segment(port))).await
    }

    /// `PATCH /v1/ports/{port}`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn set_port(&self, port: &str, change: &PortSet) -> Result<PortInfo> {
        let path = format!("/v1/ports/{}", segment(port));
        self.send(Method::PATCH, &path, Some(Body::json(change)?)).await
    }

    /// `DELETE /v1/ports/{port}`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn delete_port(&self, port: &str) -> Result<()> {
        self.nothing(Method::DELETE, &format!("/v1/ports/{}", segment(port))).await
    }

    /// `GET /v1/ports/{port}/stats`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn port_stats(&self, port: &str) -> Result<PortStats> {
        self.get(&format!("/v1/ports/{}/stats", segment(port))).await
    }

    /// `GET /v1/openapi.json`
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn openapi(&self) -> Result<serde_json::Value> {
        self.get("/v1/openapi.json").await
    }

    /// `GET /v1/events`: what happens from now on, or after the event `since`.
    ///
    /// # Errors
    /// See [`Client::instance`].
    pub async fn events(&self, since: Option<u64>) -> Result<EventStream> {
        let path = match since {
            Some(since) => format!("/v1/events?since={since}"),
            None => "/v1/events".to_owned(),
        };
        let response = self.request(Method::GET, &path, "text/event-stream", None).await?;
        let response = self.refuse_problem(response).await?;
        Ok(EventStream { body: response.into_body(), parser: Parser::default() })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, None).await
    }

    async fn xml_in(&self, path: &str, content: Bytes) -> Result<NetworkInfo> {
        let body = Body { content, kind: "application/xml" };
        self.send(Method::POST, path, Some(body)).await
    }

    async fn nothing(&self, method: Method, path: &str) -> Result<()> {
        self.call(method, path, None).await.map(drop)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Body>,
    ) -> Result<T> {
        let answer = self.call(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(ClientError::answer)
    }

    /// The body of a successful answer.
    async fn call(&self, method: Method, path: &str, body: Option<Body>) -> Result<Bytes> {
        let response = self.request(method, path, "*/*", body).await?;
        let response = self.refuse_problem(response).await?;
        self.collect(response.into_body()).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<Body>,
    ) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| ClientError::unreachable(&self.instance, error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(error))?;
        // Ends by itself when the answer is read or dropped.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "netloom");
        request = request.header(ACCEPT, accept);
        let content = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, body.kind);
                body.content
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(content)).map_err(ClientError::answer)?;
        sender.send_request(request).await.map_err(|error| self.lost(error))
    }

    /// Turns an answer that reports a failure into that failure.
    async fn refuse_problem(&self, response: Response<Incoming>) -> Result<Response<Incoming>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.collect(response.into_body()).await?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => ClientError::answer(format!("status {status} without an explanation")),
        })
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes> {
        let collected = Limited::new(body, MAX_ANSWER).collect().await;
        collected.map(|body| body.to_bytes()).map_err(|error| self.lost(error))
    }

    fn lost(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Lost { socket: self.socket.clone(), source: error.into() }
    }
}

struct Body {
    content: Bytes,
    kind: &'static str,
}

impl Body {
    fn json(value: &impl Serialize) -> Result<Self> {
        let content = serde_json::to_vec(value).map_err(ClientError::answer)?;
        Ok(Self { content: content.into(), kind: "application/json" })
    }
}

/// Events as they happen. Ends when the daemon stops.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: Parser,
}

impl EventStream {
    /// The next event; `None` when the daemon has ended the stream.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    ///
    /// # Errors
    /// When the stream breaks or is not one of events.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(data) = self.parser.next() {
                return serde_json::from_str(&data).map(Some).map_err(ClientError::answer);
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(ClientError::stream)?;
            if let Some(bytes) = frame.data_ref() {
                self.parser.feed(bytes).map_err(ClientError::answer)?;
            }
        }
    }
}

/// Percent-encodes a path segment (RFC 3986 §3.3): everything but the unreserved characters.
fn segment(name: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    // A lone dot or two would be taken for a step in the path.
    if matches!(name, "." | "..") { out.replace('.', "%2E") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_path_segment() {
        assert_eq!(segment("default"), "default");
        assert_eq!(segment("a b/c?d#e%é"), "a%20b%2Fc%3Fd%23e%25%C3%A9");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("a.b"), "a.b");
    }
}
