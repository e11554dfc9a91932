//! The outside world: a web server that notes who asks, and a DNS server.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use crate::netns::Netns;
use crate::process::Process;
use crate::record::run;

/// Serves one page on port 80 of every address of its namespace.
#[derive(Debug)]
pub struct Web {
    clients: Arc<Mutex<Vec<IpAddr>>>,
}

/// What the page says.
pub const PAGE: &str = "welcome from the inet\n";

impl Web {
    /// # Errors
    /// When port 80 of the namespace is taken.
    pub fn start(netns: &Netns) -> anyhow::Result<Self> {
        let listener = netns.enter(|| Ok(TcpListener::bind("[::]:80")?))?;
        let clients = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&clients);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(peer) = stream.peer_addr() {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push(canonical(peer));
                }
                // A slow reader is its own problem only.
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(&stream);
                    let mut line = String::new();
                    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                        line.clear();
                    }
                    let _ = write!(
                        &stream,
                        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{PAGE}",
                        PAGE.len()
                    );
                });
            }
        });
        Ok(Self { clients })
    }

    /// Addresses that asked for the page, in order.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// dnsmasq as the outside's name server: `www.example.test` and `v6.example.test`.
#[derive(Debug)]
pub struct Dns {
    _process: Process,
}

impl Dns {
    /// # Errors
    /// When dnsmasq cannot be started.
    pub fn start(netns: &Netns, address: IpAddr, address6: IpAddr) -> anyhow::Result<Self> {
        let dir = run().directory("dns");
        let mut command = netns.command("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--bind-interfaces", "--except-interface=lo", "--pid-file=", "--user=root"])
            .args(["--log-facility=-", "--local-ttl=300"])
            .arg(format!("--listen-address={address}"))
            .arg(format!("--host-record=www.example.test,{address}"))
            .arg(format!("--host-record=v6.example.test,{address6}"));
        Ok(Self { _process: Process::start_quiet("dnsmasq", command, &dir)? })
    }
}
