//! The scene of every attack: an isolated network with a probe between two guests, a friend that sends to
//! the attacker, and the attacker's port.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::{PortInfo, PortState, PortStats};
use netns_tests::frontend::{Nic, Options, Probe};
use netns_tests::{Daemon, Netns, wait};
use wire::MacAddr;

const NETWORK: &str = "<network><name>lan</name></network>";
const RATE: u32 = 1000;
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) const FRIEND: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
pub(crate) const EVIL: MacAddr = MacAddr([2, 0, 0, 0, 0, 4]);
const SPARE: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);

/// What an attack must leave at the attacker's port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trace {
    /// One of these drop counters rises.
    Drops(&'static [&'static str]),
    /// The port's reason says this.
    Reason(&'static str),
    /// The port is quarantined and its reason says this.
    Quarantined(&'static str),
    /// Nothing: it was bad manners, but not against a rule.
    Nothing,
}

pub(crate) struct Scene {
    pub(crate) friend: Nic,
    probe: Probe,
    evil: PathBuf,
    spare: PathBuf,
    /// Probe numbers that were under way during each attack.
    attacks: Vec<(String, Range<u64>)>,
    descriptors: usize,
    daemon: Daemon,
    // The namespace outlives the daemon in it.
    _host: Arc<Netns>,
    _alone: MutexGuard<'static, ()>,
}

/// One scene at a time: a probe of 1,000 frames per second wants a CPU now and then.
static STAGE: Mutex<()> = Mutex::new(());

impl Scene {
    pub(crate) fn new() -> anyhow::Result<Scene> {
        let alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Arc::new(Netns::new("host")?);
        let daemon = Daemon::start(&host, "attacks", "")?;
        daemon.network("lan", NETWORK)?;
        let socket = |name: &str| -> anyhow::Result<PathBuf> {
            daemon.port("lan", name, &[])?.socket.context("a vhost-user port without a socket")
        };
        let nic = |name: &str, last: u8| -> anyhow::Result<Nic> {
            // Room for what comes in a second, should this process not run.
            let options = Options { ring: 1024, ..Options::new(MacAddr([2, 0, 0, 0, 0, last])) };
            Nic::connect(&socket(name)?, options)
        };
        let (first, second) = (nic("first", 1)?, nic("second", 2)?);
        let friend = nic("friend", 3)?;
        let evil = socket("evil")?;
        let spare = socket("spare")?;
        let probe = Probe::start(first, second, RATE)?;
        let mut scene = Scene {
            friend,
            probe,
            evil,
            spare,
            attacks: Vec::new(),
            descriptors: 0,
            daemon,
            _host: host,
            _alone: alone,
        };
        scene.learn_friend()?;
        scene.descriptors = scene.open_descriptors()?;
        Ok(scene)
    }

    /// Runs one attack and looks for its trace. What `act` returns (its connection) is kept until the
    /// trace was found or, for a reason, until it may have to be gone.
    pub(crate) fn attack<T>(
        &mut self,
        name: &str,
        trace: Trace,
        act: impl FnOnce(&mut Scene, &Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<()> {
        let before = self.stats()?;
        let start = self.probe.sent();
        let evil = self.evil.clone();
        let held = act(self, &evil).with_context(|| format!("attack: {name}"))?;
        let found = match trace {
            Trace::Nothing => {
                drop(held);
                Ok(())
            }
            Trace::Drops(reasons) => {
                let found = self.wait_for(name, trace, |scene| {
                    let now = scene.stats()?;
                    let count = |stats: &PortStats, reason: &&str| {
                        stats.drops.get(*reason).copied().unwrap_or_default()
                    };
                    Ok(reasons.iter().any(|reason| count(&now, reason) > count(&before, reason)))
                });
                drop(held);
                found
            }
            Trace::Quarantined(text) => {
                let found = self.wait_for(name, trace, |scene| {
                    let info = scene.info()?;
                    let said = info.reason.is_some_and(|reason| reason.contains(text));
                    Ok(info.state == PortState::Quarantined && said)
                });
                drop(held);
                found
            }
            Trace::Reason(text) => {
                // It may be said only when the frontend has gone.
                drop(held);
                self.wait_for(name, trace, |scene| {
                    Ok(scene.info()?.reason.is_some_and(|reason| reason.contains(text)))
                })
            }
        };
        found?;
        // What the attack did to the switch may show only after it.
        self.probe.run(100, LIMIT).with_context(|| {
            format!("after {name}; the probe's ports: {:#?}", Scene::probe_ports(&self.daemon))
        })?;
        self.attacks.push((name.to_owned(), start..self.probe.sent()));
        Ok(())
    }

    /// Ends the probe; no frame may be lost, no descriptor be left open, and the attacker's port serve a
    /// good guest again.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.good_guest()?;
        wait::until("the switch to close what the attackers gave it", LIMIT, || {
            self.open_descriptors().is_ok_and(|open| open <= self.descriptors)
        })?;
        self.daemon.process()?.check_alive()?;
        let (report, _first, _second) = self.probe.finish()?;
        let blame = |number: u64| {
            let found = self.attacks.iter().find(|(_, range)| range.contains(&number));
            found.map_or("between attacks", |(name, _)| name.as_str()).to_owned()
        };
        let lost: Vec<_> =
            report.lost_ranges().into_iter().map(|range| (blame(*range.start()), range)).collect();
        println!(
            "the probe: {} frames, slowest {:?}, receiver blind for {:?} and never fewer than {} buffers free, \
             sender held back for {:?}",
            report.sent, report.slowest, report.blind, report.fewest_free, report.held_back
        );
        let drops = Scene::probe_ports(&self.daemon);
        ensure!(
            lost.is_empty(),
            "{} of {} frames lost, by {}: {lost:?}\nthe probe's ports: {drops:?}",
            report.lost.len(),
            report.sent,
            if report.fewest_free > 0 {
                "the switch, for the receiver's ring was never full"
            } else {
                "a receiver whose ring was full with what others sent"
            }
        );
        ensure!(report.duplicates == 0 && report.reordered == 0, "{report:?}");
        ensure!(report.sent > 0);
        Ok(())
    }

    /// Sends frames to the attacker and to all.
    pub(crate) fn befriend(&mut self, count: u32) -> anyhow::Result<()> {
        for _ in 0..count {
            for to in [EVIL, MacAddr::BROADCAST] {
                let frame = frame(to, FRIEND, 200);
                self.friend.send(&frame, Instant::now() + LIMIT)?;
            }
        }
        Ok(())
    }

    /// Frames that the attacker got through to the friend until now, and a moment longer.
    pub(crate) fn harvest(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(received) =
            self.friend.receive(Instant::now() + Duration::from_millis(200))?
        {
            if received.frame.get(6..12) == Some(&EVIL.0) {
                frames.push(received.frame);
            }
        }
        Ok(frames)
    }

    /// Another guest comes and goes on a port of its own: who serves frontends does not wait for the attacker.
    pub(crate) fn newcomer(&mut self) -> anyhow::Result<()> {
        let mut nic = Nic::connect(&self.spare, Options::new(SPARE)).context("a newcomer")?;
        nic.send(&frame(FRIEND, SPARE, 302), Instant::now() + LIMIT)?;
        let deadline = Instant::now() + LIMIT;
        while let Some(received) = self.friend.receive(deadline)? {
            if received.frame.len() == 302 && received.frame.get(6..12) == Some(&SPARE.0) {
                return Ok(());
            }
        }
        anyhow::bail!("no frame of a newcomer on another port arrived during the attack")
    }

    /// Makes room for the friend without waiting.
    pub(crate) fn harvest_now(&mut self) -> anyhow::Result<()> {
        while self.friend.try_receive()?.is_some() {}
        Ok(())
    }

    pub(crate) fn info(&self) -> anyhow::Result<PortInfo> {
        self.daemon.json(&["port-info", "evil"])
    }

    fn stats(&self) -> anyhow::Result<PortStats> {
        self.daemon.json(&["port-stats", "evil"])
    }

    /// What the ports of the probe's sender and receiver say.
    fn probe_ports(daemon: &Daemon) -> [anyhow::Result<(PortInfo, PortStats)>; 2] {
        ["first", "second"].map(|port| {
            let info = daemon.json(&["port-info", port])?;
            Ok((info, daemon.json(&["port-stats", port])?))
        })
    }

    fn wait_for(
        &self,
        name: &str,
        trace: Trace,
        found: impl Fn(&Scene) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        wait::until(&format!("{trace:?} after {name}"), LIMIT, || found(self).unwrap_or(false))
            .with_context(|| format!("the port shows {:?} {:?}", self.info(), self.stats()))
    }

    /// A frame of the friend reaches all once the switch serves it.
    fn learn_friend(&mut self) -> anyhow::Result<()> {
        self.befriend(1)
    }

    /// A guest without bad intentions on the attacker's port.
    fn good_guest(&mut self) -> anyhow::Result<()> {
        let mut nic = Nic::connect(&self.evil, Options::new(EVIL))?;
        let deadline = Instant::now() + LIMIT;
        nic.send(&frame(FRIEND, EVIL, 300), deadline)?;
        wait::until("a frame of a good guest on the attacker's port", LIMIT, || {
            self.harvest().is_ok_and(|frames| frames.iter().any(|frame| frame.len() == 300))
        })?;
        self.friend.send(&frame(EVIL, FRIEND, 301), deadline)?;
        while let Some(received) = nic.receive(deadline)? {
            if received.frame.len() == 301 {
                return Ok(());
            }
        }
        anyhow::bail!("no frame reached the good guest on the attacker's port")
    }

    /// Waits until the attacker's port gives this reason.
    pub(crate) fn said(&self, text: &str) -> anyhow::Result<()> {
        wait::until(&format!("the reason {text:?}"), LIMIT, || {
            let info = self.info();
            info.is_ok_and(|info| info.reason.is_some_and(|reason| reason.contains(text)))
        })
        .with_context(|| format!("the port shows {:?}", self.info()))
    }

    /// The switch's process.
    pub(crate) fn process(&mut self) -> anyhow::Result<u32> {
        Ok(self.daemon.process()?.id())
    }

    /// Memory of the switch's own, in KiB.
    pub(crate) fn resident(&mut self) -> anyhow::Result<u64> {
        let id = self.process()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.context("no RssAnon")?.parse().context("RssAnon")
    }

    /// Without the files of rings' positions, which stay as long as their port.
    fn open_descriptors(&mut self) -> anyhow::Result<usize> {
        let id = self.process()?;
        let fds = std::fs::read_dir(format!("/proc/{id}/fd"))?;
        let others = fds.filter(|fd| {
            let link = fd.as_ref().ok().and_then(|fd| std::fs::read_link(fd.path()).ok());
            !link.is_some_and(|path| path.parent().is_some_and(|folder| folder.ends_with("rings")))
        });
        Ok(others.count())
    }
}

/// A frame of the lab's own Ethertype.
pub(crate) fn frame(to: MacAddr, from: MacAddr, len: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb6]].concat();
    frame.resize(len, 0xa5);
    frame
}
