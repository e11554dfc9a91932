//! A network of two queues.

use std::io;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use dhcpd::{Egress, FrameIo, Ingress, Waker};

pub(crate) struct QueueIo {
    frames: Receiver<Ingress>,
    answers: Sender<Egress>,
    wake: (Sender<()>, Receiver<()>),
}

/// The other end of the queues.
pub(crate) struct Network {
    pub(crate) frames: Sender<Ingress>,
    pub(crate) answers: Receiver<Egress>,
}

pub(crate) fn pair() -> (QueueIo, Network) {
    let (frames_in, frames) = unbounded();
    let (answers, answers_out) = unbounded();
    (
        QueueIo { frames, answers, wake: unbounded() },
        Network { frames: frames_in, answers: answers_out },
    )
}

impl FrameIo for QueueIo {
    fn recv(&mut self, out: &mut Vec<Ingress>, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.unwrap_or(Duration::from_secs(3600));
        select! {
            recv(self.frames) -> frame => out.push(frame.map_err(io::Error::other)?),
            recv(self.wake.1) -> _ => {}
            default(timeout) => {}
        }
        out.extend(self.frames.try_iter());
        Ok(())
    }

    fn send(&mut self, egress: Egress) -> io::Result<()> {
        self.answers.send(egress).map_err(io::Error::other)
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.0.clone();
        Box::new(move || {
            // Nobody waits any more.
            let _ = wake.send(());
        })
    }
}

impl Network {
    pub(crate) fn answer(&self) -> Option<Egress> {
        self.answers.recv_timeout(Duration::from_secs(10)).ok()
    }
}
