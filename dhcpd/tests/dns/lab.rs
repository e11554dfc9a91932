//! A server, clients for it, and upstream servers that do what the test says.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhcpd::dns::Config;
use dhcpd::{Service, ServiceConfig};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A configuration that listens on 10.77.0.1 and asks nobody.
pub(crate) fn config() -> Config {
    let mut config = Config::new(vec![SERVER]);
    config.resolv_conf = None;
    config.domain = Some("net77.test".to_owned());
    config.domain_local_only = true;
    config.reverse = vec!["10.77.0.0/16".parse().expect("a prefix")];
    config.forward_plain_names = false;
    config
}

pub(crate) fn service(dns: Config) -> Service {
    let config = ServiceConfig {
        network: "test".to_owned(),
        dhcp4: None,
        dns: Some(dns),
        lease_file: "/nonexistent".into(),
    };
    Service::start(config, None, |_| ()).expect("it starts")
}

/// Gives `lo` addresses; the test is in a namespace of its own.
pub(crate) fn addresses(addresses: &[&str]) {
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        crate::support::ip(&format!("addr add {address} dev lo{nodad}"));
        if let Some((ip, _)) = address.split_once('/') {
            // The kernel adds the route of an IPv6 address a moment later.
            crate::support::wait_for("the address's route", || {
                let output = Command::new("ip").args(["route", "get", ip]).output().ok()?;
                output.stdout.starts_with(b"local ").then_some(())
            });
        }
    }
}

pub(crate) fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), record_type));
    message
}

pub(crate) fn edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// A client on an address of its own.
pub(crate) struct Client(UdpSocket);

impl Client {
    pub(crate) fn new(from: &str) -> Self {
        Self::to(from, SocketAddr::new(SERVER, 53))
    }

    pub(crate) fn to(from: &str, to: SocketAddr) -> Self {
        let from: IpAddr = from.parse().expect("an address");
        let socket = UdpSocket::bind((from, 0)).expect("the address is there");
        socket.connect(to).expect("it is routed");
        socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        Self(socket)
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.0.send(bytes).expect("it is sent");
    }

    pub(crate) fn receive(&self) -> Option<Message> {
        let mut buf = [0; 4096];
        let len = self.0.recv(&mut buf).ok()?;
        Some(Message::from_vec(&buf[..len]).expect("the server writes good messages"))
    }

    pub(crate) fn ask_message(&self, message: &Message) -> Message {
        self.send(&message.to_vec().expect("it can be written"));
        let answer = self.receive().unwrap_or_else(|| panic!("no answer to {message}"));
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        answer
    }

    pub(crate) fn ask(&self, name: &str, record_type: RecordType) -> Message {
        self.ask_message(&question(name, record_type))
    }

    /// No answer comes, although one to a later question does.
    pub(crate) fn is_ignored(&self, bytes: &[u8]) {
        self.send(bytes);
        let mut later = question("localhost", RecordType::A);
        later.metadata.id = 0x7777;
        self.send(&later.to_vec().expect("it can be written"));
        let answer = self.receive().expect("an answer to the later question");
        assert_eq!(answer.metadata.id, 0x7777);
    }
}

pub(crate) fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// The addresses in an answer, as text.
pub(crate) fn addresses_of(message: &Message) -> Vec<String> {
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(a.0.to_string()),
        RData::AAAA(aaaa) => Some(aaaa.0.to_string()),
        _ => None,
    });
    addresses.collect()
}

pub(crate) fn a_record(name: &Name, ttl: u32, d: u8) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, d))))
}

/// An upstream server on an address; `answer` makes its answers (nothing: silence). It serves
/// until the process ends or the namespace goes.
pub(crate) struct Upstream {
    queries: Arc<AtomicUsize>,
    ports: Arc<Mutex<Vec<u16>>>,
}

impl Upstream {
    pub(crate) fn start(
        address: &str,
        answer: impl Fn(&Message) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let udp = UdpSocket::bind(address).expect("the address is there");
        let tcp = TcpListener::bind(address).expect("the address is there");
        let upstream = Self { queries: Arc::default(), ports: Arc::default() };
        let (queries, ports) = (upstream.queries.clone(), upstream.ports.clone());
        let answer = Arc::new(answer);
        let over_udp = answer.clone();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok((len, client)) = udp.recv_from(&mut buf) {
                let query = Message::from_vec(&buf[..len]).expect("the server asks well");
                queries.fetch_add(1, Ordering::SeqCst);
                ports.lock().expect("no panics").push(client.port());
                for mut reply in over_udp(&query) {
                    if reply.to_vec().expect("it can be written").len() > 1232 {
                        reply = reply.truncate();
                    }
                    let reply = reply.to_vec().expect("it can be written");
                    udp.send_to(&reply, client).expect("it is sent");
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                if let Some(query) = read_framed(&mut stream) {
                    for reply in answer(&query) {
                        write_framed(&mut stream, &reply.to_vec().expect("it can be written"));
                    }
                }
            }
        });
        upstream
    }

    pub(crate) fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.ports.lock().expect("no panics").clone()
    }
}

/// The answer that gives 192.0.2.`d` to every name.
pub(crate) fn gives(d: u8) -> impl Fn(&Message) -> Vec<Message> + Send + Sync + 'static {
    move |query| {
        let mut reply = reply_to(query, ResponseCode::NoError);
        reply.add_answer(a_record(query.queries[0].name(), 60, d));
        vec![reply]
    }
}

pub(crate) fn reply_to(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.response_code = code;
    reply.add_query(query.queries[0].clone());
    reply
}

pub(crate) fn connect() -> TcpStream {
    let stream = TcpStream::connect((SERVER, 53)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    stream
}

pub(crate) fn write_framed(stream: &mut TcpStream, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("short");
    stream.write_all(&[&len.to_be_bytes()[..], bytes].concat()).expect("it is sent");
}

pub(crate) fn read_framed(stream: &mut TcpStream) -> Option<Message> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut bytes).ok()?;
    Some(Message::from_vec(&bytes).expect("a good message"))
}
