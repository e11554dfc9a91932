//! An independent frontend (rust-vmm's `vhost` crate) talks to a session through a real socket pair.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::features::{protocol, virtio};
use vhost_user::socket::{self, Read};
use vhost_user::{Action, Device, Offer, Outcome, Session};
use vmm_sys_util::eventfd::EventFd;

const FEATURES: u64 = virtio::F_VERSION_1
    | virtio::F_PROTOCOL_FEATURES
    | virtio::F_EVENT_IDX
    | virtio::NET_F_MRG_RXBUF
    | virtio::NET_F_MQ;

/// What the backend's thread saw until the frontend hung up.
struct Seen {
    device: Device,
    actions: Vec<Action>,
}

/// The smallest driver: polls the socket, says yes to every action.
fn backend(stream: &UnixStream) -> Seen {
    let mut session = Session::new(Offer {
        features: FEATURES,
        protocol_features: protocol::SUPPORTED,
        queue_pairs: 2,
        config: (100..124).collect(),
        max_ring: 256,
    });
    let mut actions = Vec::new();
    loop {
        match socket::read(stream, &mut session).expect("the frontend follows the protocol") {
            Read::Received => {
                if let Some(action) = session.poll().expect("the frontend follows the protocol") {
                    actions.push(action);
                    let outcome = match action {
                        Action::StopVring(ring) => Outcome::VringBase(u32::from(ring) + 40),
                        _ => Outcome::Done,
                    };
                    session.complete(outcome).expect("nothing fails here");
                }
                assert!(socket::write(stream, &mut session).expect("the socket works"));
            }
            Read::Closed => return Seen { device: session.device().clone(), actions },
            Read::Paused => unreachable!("all replies are sent at once"),
            Read::Empty => {
                let deadline = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
                let ready = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&deadline));
                assert_eq!(ready, Ok(1), "the frontend went silent");
            }
        }
    }
}

fn connect() -> (Frontend, JoinHandle<Seen>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let thread = std::thread::spawn(move || backend(&ours));
    (Frontend::from_stream(theirs, 4), thread)
}

fn memfd() -> File {
    rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
}

fn region(file: &File, guest: u64, user: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: 1 << 20,
        userspace_addr: user,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn negotiate(frontend: &mut Frontend) {
    frontend.set_owner().unwrap();
    assert_eq!(frontend.get_features().unwrap(), FEATURES | virtio::F_LOG_ALL);
    let offered = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(offered).unwrap();
    assert!(offered.contains(VhostUserProtocolFeatures::REPLY_ACK));
    // From here every request waits for its acknowledgement.
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(FEATURES).unwrap();
}

#[test]
fn a_device_is_set_up_and_stopped() {
    let (mut frontend, thread) = connect();
    negotiate(&mut frontend);
    assert_eq!(frontend.get_queue_num().unwrap(), 4);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 64);

    let memory = memfd();
    let user = 0x7f00_0000_0000;
    frontend.set_mem_table(&[region(&memory, 0, user, 0)]).unwrap();
    frontend.add_mem_region(&region(&memory, 1 << 20, user + (1 << 20), 1 << 20)).unwrap();
    frontend.add_mem_region(&region(&memory, 1 << 30, user + (1 << 30), 0)).unwrap();
    frontend.remove_mem_region(&region(&memory, 1 << 20, user + (1 << 20), 1 << 20)).unwrap();

    let (kick, call, err) =
        (EventFd::new(0).unwrap(), EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    for ring in 0..2_u16 {
        let index = usize::from(ring);
        frontend.set_vring_num(index, 256).unwrap();
        frontend.set_vring_base(index, 5).unwrap();
        let at = user + 0x1_0000 * u64::from(ring);
        let addresses = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + 0x2000,
            avail_ring_addr: at + 0x1000,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_call(index, &call).unwrap();
        frontend.set_vring_err(index, &err).unwrap();
        frontend.set_vring_kick(index, &kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    assert_eq!(frontend.get_vring_base(1).unwrap(), 41);
    drop(frontend);

    let Seen { device, actions } = thread.join().unwrap();
    let guests: Vec<u64> = device.regions.iter().map(|region| region.guest_addr).collect();
    assert_eq!(guests, [0, 1 << 30]);
    assert!(device.vrings[0].is_ready() && device.vrings[0].is_running());
    assert!(!device.vrings[1].started);
    assert_eq!(device.vrings[1].base, 41);
    assert!(actions.ends_with(&[Action::Vring(1), Action::StopVring(1)]));

    // The descriptors that arrived are those that were sent.
    let given: &OwnedFd = device.vrings[0].kick.as_ref().unwrap();
    rustix::io::write(given, &7_u64.to_ne_bytes()).unwrap();
    assert_eq!(kick.read().unwrap(), 7);
    let file = rustix::fs::fstat(&device.regions[0].fd).unwrap();
    assert_eq!(file.st_ino, rustix::fs::fstat(&memory).unwrap().st_ino);
}

/// As Cloud Hypervisor starts and ends a migration.
#[test]
fn dirty_logging_goes_on_and_off() {
    let (mut frontend, thread) = connect();
    negotiate(&mut frontend);
    let file: File = memfd();
    frontend.set_mem_table(&[region(&file, 0, 0x7f00_0000_0000, 0)]).unwrap();
    let log = VhostUserDirtyLogRegion {
        mmap_size: 4096,
        mmap_offset: 8192,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(log)).unwrap();
    frontend.set_features(FEATURES | virtio::F_LOG_ALL).unwrap();
    frontend.set_features(FEATURES).unwrap();
    frontend.set_log_base(0, Some(log)).unwrap();
    drop(frontend);
    let Seen { device, actions } = thread.join().unwrap();
    let log = device.log.unwrap();
    assert_eq!((log.size, log.offset), (4096, 8192));
    assert!(actions.ends_with(&[Action::Log, Action::Features, Action::Features, Action::Log]));
}

#[test]
fn configuration_and_reset() {
    let (mut frontend, thread) = connect();
    negotiate(&mut frontend);
    for (offset, size) in [(0_u32, 24_usize), (5, 1), (23, 1)] {
        let flags = VhostUserConfigFlags::empty();
        let length = u32::try_from(size).unwrap();
        let (_, got) = frontend.get_config(offset, length, flags, &vec![0; size]).unwrap();
        let first = 100 + u8::try_from(offset).unwrap();
        let expected: Vec<u8> = (first..).take(size).collect();
        assert_eq!(got, expected);
    }
    let write = frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[1; 6]);
    assert!(write.is_err(), "read-only, told by a negative acknowledgement");
    frontend.reset_device().unwrap();
    // The connection went on after the refusal.
    frontend.set_features(FEATURES).unwrap();
    drop(frontend);
    let Seen { device, actions } = thread.join().unwrap();
    assert_eq!(device.features, FEATURES);
    assert!(actions.contains(&Action::Reset));
}

#[test]
fn refusals_reach_the_frontend() {
    let (mut frontend, thread) = connect();
    negotiate(&mut frontend);
    assert!(frontend.set_vring_num(0, 300).is_err(), "not a power of two");
    assert!(frontend.set_features(FEATURES | virtio::F_RING_PACKED).is_err(), "not offered");
    let memory = memfd();
    let overlapping = [region(&memory, 0, 0x1000_0000, 0), region(&memory, 4096, 0x2000_0000, 0)];
    assert!(frontend.set_mem_table(&overlapping).is_err());
    frontend.set_log_fd(memory.as_raw_fd()).unwrap();
    frontend.set_vring_num(0, 256).unwrap();
    drop(frontend);
    let Seen { device, .. } = thread.join().unwrap();
    assert!(device.regions.is_empty());
    assert_eq!(device.vrings[0].num, 256);
}
