//! A bench for the tests: a datapath in this process, and network cards with the `vhost` crate's frontend and a
//! small driver of their own.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub(crate) mod handover;
pub(crate) mod nic;
pub(crate) mod packed;
mod probe;
pub(crate) mod swapper;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use datapath::{
    BridgeSpec, Config, Datapath, Event, PortIo, PortSpec, PortState, PortStats, VhostSocket,
};
use switch::{DropReason, Role, VlanMode};
use tempfile::TempDir;
use uuid::Uuid;
use wire::MacAddr;

pub(crate) use nic::{Nic, Options};
pub(crate) use probe::Probe;

/// Longer than anything takes on a machine that is busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A bridge with vhost-user ports.
pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
    pub(crate) events: crossbeam_channel::Receiver<Event>,
    pub(crate) bridge: Uuid,
    dir: TempDir,
    ports: Vec<(Uuid, PortOptions)>,
}

#[derive(Clone)]
pub(crate) struct PortOptions {
    pub(crate) vlan: VlanMode,
    pub(crate) isolated: bool,
    pub(crate) queue_pairs: u16,
    pub(crate) mtu: u32,
}

impl Default for PortOptions {
    fn default() -> Self {
        Self { vlan: VlanMode::transparent(), isolated: false, queue_pairs: 1, mtu: 65_535 }
    }
}

impl Bench {
    pub(crate) fn new(ports: usize) -> Self {
        Self::with(Config::default(), BridgeSpec::default(), &vec![PortOptions::default(); ports])
    }

    pub(crate) fn with(config: Config, bridge: BridgeSpec, ports: &[PortOptions]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (datapath, events) = Datapath::start(remembering(&dir, config)).unwrap();
        let id = Uuid::new_v4();
        datapath.add_bridge(id, "bench", bridge).unwrap();
        let mut bench = Self { datapath, events, bridge: id, dir, ports: Vec::new() };
        for options in ports {
            bench.add(options.clone());
        }
        bench
    }

    /// For a datapath that goes on in the place of this one's.
    pub(crate) fn config(&self) -> Config {
        remembering(&self.dir, Config::default())
    }

    /// As after SIGKILL between two bursts: another datapath, with the same ports, knows only what is in files.
    pub(crate) fn crash(&mut self) {
        self.datapath.clone().stop();
        (self.datapath, self.events) = Datapath::start(self.config()).unwrap();
        self.datapath.add_bridge(self.bridge, "bench", BridgeSpec::default()).unwrap();
        for at in 0..self.ports.len() {
            let _ = std::fs::remove_file(self.path(at));
            self.plug(at, VhostSocket::Listen(UnixListener::bind(self.path(at)).unwrap()));
        }
    }

    pub(crate) fn add(&mut self, options: PortOptions) -> usize {
        let listener = UnixListener::bind(self.path(self.ports.len())).unwrap();
        self.add_with(VhostSocket::Listen(listener), options)
    }

    pub(crate) fn add_with(&mut self, socket: VhostSocket, options: PortOptions) -> usize {
        self.ports.push((Uuid::new_v4(), options));
        self.plug(self.ports.len() - 1, socket);
        self.ports.len() - 1
    }

    fn plug(&self, at: usize, socket: VhostSocket) {
        let (id, PortOptions { vlan, isolated, queue_pairs, mtu }) = self.ports[at].clone();
        self.datapath
            .add_port(PortSpec {
                id,
                name: format!("port{at}"),
                bridge: self.bridge,
                mac: mac(at),
                role: Role::Guest,
                vlan,
                isolated,
                mtu,
                io: PortIo::VhostUser { socket, queue_pairs },
            })
            .unwrap();
    }

    /// A port of another kind than vhost-user, which is not counted among the bench's own.
    pub(crate) fn add_kernel(&self, role: Role, io: PortIo) -> Uuid {
        let id = Uuid::new_v4();
        self.datapath
            .add_port(PortSpec {
                id,
                name: "kernel".to_owned(),
                bridge: self.bridge,
                mac: MacAddr::ZERO,
                role,
                vlan: VlanMode::transparent(),
                isolated: false,
                mtu: 1500,
                io,
            })
            .unwrap();
        id
    }

    pub(crate) fn path(&self, port: usize) -> PathBuf {
        self.dir.path().join(format!("port{port}"))
    }

    pub(crate) fn id(&self, port: usize) -> Uuid {
        self.ports[port].0
    }

    /// A card on a port, ready to send and receive.
    pub(crate) fn nic(&self, port: usize, options: &Options) -> Nic {
        let nic = Nic::connect(&self.path(port), options);
        self.wait_state(port, PortState::Up);
        nic
    }

    pub(crate) fn stats(&self, port: usize) -> PortStats {
        self.datapath.port_stats(self.id(port)).unwrap()
    }

    pub(crate) fn drops(&self, port: usize, reason: DropReason) -> u64 {
        self.stats(port).drops.iter().find(|(r, _)| *r == reason).unwrap().1
    }

    /// Drops of any reason.
    pub(crate) fn all_drops(&self, port: usize) -> Vec<(DropReason, u64)> {
        self.stats(port).drops.into_iter().filter(|(_, n)| *n > 0).collect()
    }

    pub(crate) fn wait_state(&self, port: usize, state: PortState) {
        let status = || self.datapath.port_status(self.id(port)).unwrap();
        assert!(
            eventually(|| status().state == state),
            "port {port} is {:?}, expected {state:?}",
            status()
        );
    }
}

fn remembering(dir: &TempDir, config: Config) -> Config {
    Config { resume_dir: Some(dir.path().to_owned()), ..config }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.datapath.clone().stop();
    }
}

/// Polls until the condition holds or the deadline has passed.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > DEADLINE {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// UDP from 10.0.0.1 on port 0 to 10.0.0.2 on port 1; the source port is the flow.
pub(crate) fn udp(flow: u16, seed: u32) -> Vec<u8> {
    let mut sent = frame(mac(1), mac(0), 100, seed);
    sent[12..14].copy_from_slice(&[8, 0]);
    sent[14] = 0x45;
    sent[20..22].copy_from_slice(&[0, 0]);
    sent[23] = 17;
    sent[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    sent[34..36].copy_from_slice(&flow.to_be_bytes());
    sent[36..38].copy_from_slice(&[0, 80]);
    sent
}

/// The address of the station on a port.
pub(crate) fn mac(port: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, u8::try_from(port).unwrap()])
}

/// An Ethernet frame of `len` bytes whose payload is a function of `seed`.
pub(crate) fn frame(dst: MacAddr, src: MacAddr, len: usize, seed: u32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend(dst.0);
    frame.extend(src.0);
    frame.extend([0x88, 0xb5]);
    frame.extend(seed.to_be_bytes());
    let mut state = seed | 1;
    while frame.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        frame.extend(state.to_be_bytes());
    }
    frame.truncate(len);
    frame
}

pub(crate) const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// Each card says where it is.
pub(crate) fn introduce(nics: &mut [&mut Nic]) {
    for at in 0..nics.len() {
        let mac = nics[at].mac;
        nics[at].send(&frame(BROADCAST, mac, 60, 0xffff_0000));
        for (other, nic) in nics.iter_mut().enumerate() {
            if other != at {
                let (_, got) = nic.recv().expect("an introduction arrives");
                assert_eq!(got[6..12], mac.0);
            }
        }
    }
}
