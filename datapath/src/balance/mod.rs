//! Which worker serves which queue: guests' TX rings, TAP queues, packet sockets.
//!
//! A queue has one worker at a time ([`Duty`]), which also says what the queue costs it. A new queue goes to the
//! worker with the least to do; from time to time queues move when that relieves the busiest worker clearly
//! ([`assign`]). On the way from one worker to another a queue is nobody's until every worker has looked at the
//! configuration again ([`Balancer`]): the old worker has delivered what it took and has let go of the kick
//! descriptor before the new one begins, so frames of a flow stay in order.
//!
//! Workers only read who has a queue, when they take up a configuration. The vhost-user thread decides.

mod assign;
mod balancer;
mod duty;

pub(crate) use balancer::{Balancer, Move};
pub(crate) use duty::Duty;

use crate::snapshot::{Device, Snapshot};
use crate::{QueueStatus, WorkerStatus};
use assign::{QueueLoad, least_loaded};

/// Queues that frames can come from: of a guest those that it has set up.
fn in_service(snapshot: &Snapshot) -> impl Iterator<Item = Place> {
    snapshot.ports().flat_map(|port| {
        let (duties, queues) = match &port.device {
            Device::Vhost(vhost) => {
                let setup = vhost.tx_setup();
                let queues = setup.iter().map(|setup| usize::from(setup.queue)).collect();
                (Some(vhost.duties()), queues)
            }
            Device::Kernel(kernel) if !kernel.is_gone() => {
                (Some(kernel.duties()), (0..kernel.queues()).collect::<Vec<_>>())
            }
            Device::Kernel(_) | Device::Internal(_) => (None, Vec::new()),
        };
        let duties = duties.cloned();
        queues
            .into_iter()
            .filter_map(move |queue| Some(Place { port: port.id, queue, duties: duties.clone()? }))
    })
}

/// A queue by its name.
#[derive(Clone, Debug)]
struct Place {
    port: uuid::Uuid,
    queue: usize,
    duties: std::sync::Arc<[Duty]>,
}

impl Place {
    fn duty(&self) -> &Duty {
        &self.duties[self.queue]
    }
}

/// Gives the queues of a device that no worker knows yet to those with the least to do.
pub(crate) fn place_new(snapshot: &Snapshot, workers: usize, duties: &[Duty]) {
    let mut taken = loads(snapshot);
    for duty in duties {
        let worker = least_loaded(&taken, workers);
        duty.give(worker);
        taken.push(QueueLoad { worker, load: 0 });
    }
}

fn loads(snapshot: &Snapshot) -> Vec<QueueLoad> {
    let places = in_service(snapshot).filter_map(|place| {
        Some(QueueLoad { worker: place.duty().owner()?, load: place.duty().load() })
    });
    places.collect()
}

/// Every worker with its queues. A queue that is on its way is in no list.
pub(crate) fn status(snapshot: &Snapshot, workers: usize, cpus: &[usize]) -> Vec<WorkerStatus> {
    let mut status: Vec<_> = (0..workers)
        .map(|worker| WorkerStatus {
            cpu: cpus.get(worker % cpus.len().max(1)).copied(),
            load_ppm: 0,
            queues: Vec::new(),
        })
        .collect();
    for place in in_service(snapshot) {
        let duty = place.duty();
        if let Some(worker) = duty.owner().and_then(|worker| status.get_mut(worker)) {
            let load_ppm = duty.load();
            worker.load_ppm += load_ppm;
            worker.queues.push(QueueStatus { port: place.port, queue: place.queue, load_ppm });
        }
    }
    status
}
