//! Sockets of the DNS server, and the thread that serves them.
//!
//! Sockets are bound by the caller of [`Dns::start`], in its network namespace, each to one
//! address; the thread (and so its upstream sockets) inherits the namespace.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;

use super::config::{Config, OwnAddresses};
use super::counters::{Counters, DropReason};
use super::names::Names;
use super::server::{Decision, Server};
use crate::service::ServiceError;

/// A TCP client gets this long to send a whole query, or to take a whole answer (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 128;
const MAX_CONNECTIONS_PER_CLIENT: usize = 8;
/// Queries on one connection.
const MAX_QUERIES: usize = 10_000;
/// Datagrams in a row before other tasks get their turn.
const BURST: usize = 64;

/// The running DNS server; dropping it stops it.
pub(crate) struct Dns {
    commands: mpsc::UnboundedSender<Command>,
    pub(crate) counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
    own: OwnAddresses,
    listen: Vec<IpAddr>,
    /// What the thread serves, for who takes over.
    sockets: Vec<Socket>,
}

enum Command {
    Reload(Arc<Config>),
    Stop,
}

impl Dns {
    pub(crate) fn start(config: &Config, names: Arc<Names>) -> Result<Self, ServiceError> {
        let mut sockets = Vec::new();
        for ip in &config.listen {
            let addr = scoped(SocketAddr::new(*ip, config.port), config.interface.as_deref());
            let socket =
                |kind| config.inherited.take(addr, kind).map_or_else(|| bind(addr, kind), Ok);
            sockets.push((socket(Type::DGRAM)?, socket(Type::STREAM)?));
        }
        let copies = sockets.iter().flat_map(|(udp, tcp)| [udp.try_clone(), tcp.try_clone()]);
        let copies = copies.collect::<io::Result<_>>().map_err(ServiceError::Thread)?;
        let counters = Arc::new(Counters::default());
        let (commands, mut receiver) = mpsc::unbounded_channel();
        let config = Arc::new(config.clone());
        let (own, listen) = (config.own_addresses.clone(), config.listen.clone());
        let shared = counters.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ServiceError::Thread)?;
        let builder = std::thread::Builder::new().name("dns".to_owned());
        let thread = builder.spawn(move || {
            let server = Rc::new(Server::new(config, names, shared));
            LocalSet::new().block_on(&runtime, async move {
                for (udp, tcp) in sockets {
                    if let Err(error) = serve(&server, udp, tcp) {
                        tracing::error!(%error, "a DNS socket cannot be served");
                    }
                }
                while let Some(Command::Reload(config)) = receiver.recv().await {
                    server.reload(&config);
                }
            });
        });
        let thread = Some(thread.map_err(ServiceError::Thread)?);
        for ip in &listen {
            own.insert(*ip);
        }
        Ok(Self { commands, counters, thread, own, listen, sockets: copies })
    }

    /// Copies of the sockets.
    pub(crate) fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.sockets.iter().map(|socket| Ok(socket.try_clone()?.into())).collect()
    }

    pub(crate) fn reload(&self, config: &Config) {
        // A thread that has ended cannot take it.
        let _ = self.commands.send(Command::Reload(Arc::new(config.clone())));
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for ip in &self.listen {
            self.own.remove(*ip);
        }
    }
}

/// Link-local addresses are bound on their interface.
fn scoped(addr: SocketAddr, interface: Option<&str>) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            let scope = interface.and_then(crate::sys::interface_index).unwrap_or(0);
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into()
        }
        addr => addr,
    }
}

fn bind(addr: SocketAddr, kind: Type) -> Result<Socket, ServiceError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(addr), kind, None::<Protocol>)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if kind == Type::STREAM {
            // Connections of a run before that linger do not count as a conflict.
            socket.set_reuse_address(true)?;
        } else {
            // Best effort: a larger queue for bursts.
            let _ = socket.set_recv_buffer_size(1 << 20);
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        if kind == Type::STREAM {
            socket.listen(128)?;
        }
        Ok(socket)
    };
    open().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServiceError::PortBusy { addr },
        _ => ServiceError::Bind { addr, source },
    })
}

fn serve(server: &Rc<Server>, udp: Socket, tcp: Socket) -> io::Result<()> {
    let udp = Rc::new(UdpSocket::from_std(udp.into())?);
    let tcp = TcpListener::from_std(tcp.into())?;
    spawn_local(serve_udp(server.clone(), udp));
    spawn_local(serve_tcp(server.clone(), tcp));
    Ok(())
}

async fn serve_udp(server: Rc<Server>, socket: Rc<UdpSocket>) {
    let mut buf = vec![0; 4096];
    loop {
        if socket.readable().await.is_err() {
            // The runtime is going away.
            return;
        }
        for _ in 0..BURST {
            let (len, client) = match socket.try_recv_from(&mut buf) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an answer before.
                Err(_) => continue,
            };
            match server.decide(&buf[..len], client.ip(), false) {
                Decision::Drop => {}
                Decision::Reply(reply) => send(&server, &socket, &reply, client),
                Decision::Forward(query) => {
                    let (server, socket) = (server.clone(), socket.clone());
                    spawn_local(async move {
                        let reply = server.forward(&query, client.ip()).await;
                        let reply = reply.unwrap_or_else(|| server.overloaded(&query));
                        send(&server, &socket, &reply, client);
                    });
                }
            }
        }
        yield_now().await;
    }
}

fn send(server: &Server, socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if socket.try_send_to(reply, client).is_err() {
        server.counters.count_drop(DropReason::Send);
    }
}

async fn serve_tcp(server: Rc<Server>, listener: TcpListener) {
    let connections: Rc<RefCell<HashMap<IpAddr, usize>>> = Rc::default();
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            // Out of descriptors, say: not at full speed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let ip = client.ip();
        {
            let mut connections = connections.borrow_mut();
            let total: usize = connections.values().sum();
            let own = connections.get(&ip).copied().unwrap_or(0);
            if total >= MAX_CONNECTIONS || own >= MAX_CONNECTIONS_PER_CLIENT {
                server.counters.count_drop(DropReason::Connections);
                continue;
            }
            connections.insert(ip, own + 1);
        }
        let (server, connections) = (server.clone(), connections.clone());
        spawn_local(async move {
            // However it ends, the connection is closed; the client asks again.
            let _ = converse(&server, stream, ip).await;
            let mut connections = connections.borrow_mut();
            if let Some(count) = connections.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    connections.remove(&ip);
                }
            }
        });
    }
}

/// One query after the other: a client that does not read its answers gets no further.
async fn converse(server: &Rc<Server>, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    for _ in 0..MAX_QUERIES {
        let query = timeout(IDLE, async {
            let len = stream.read_u16().await?;
            let mut query = vec![0; usize::from(len)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        });
        let query = query.await??;
        let reply = match server.decide(&query, client, true) {
            Decision::Drop => return Ok(()),
            Decision::Reply(reply) => reply,
            Decision::Forward(query) => {
                let reply = server.forward(&query, client).await;
                reply.unwrap_or_else(|| server.overloaded(&query))
            }
        };
        let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
    Ok(())
}
