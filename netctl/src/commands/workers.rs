//! `worker-list`: which thread serves which queue.

use std::fmt::Write as _;

use api::WorkerInfo;

use super::Context;
use crate::failure::{Failure, Lead as _};
use crate::output::clean;

pub(super) async fn list(context: &mut Context<'_>) -> Result<(), Failure> {
    let workers = context.client.workers().await.lead("Failed to list workers")?;
    if context.output.is_json() {
        context.output.json(&workers)?;
    } else {
        context.output.text(&text(&workers))?;
    }
    Ok(())
}

/// As `ovs-appctl dpif-netdev/pmd-rxq-show` does: a worker, under it its queues.
fn text(workers: &[WorkerInfo]) -> String {
    let mut text = String::new();
    for worker in workers {
        let cpu = worker.cpu.map(|cpu| format!(", CPU {cpu}")).unwrap_or_default();
        let _ = writeln!(text, "worker {}{cpu}: {}", worker.worker, percent(worker.load_ppm));
        let queues = worker.queues.iter().map(|queue| {
            let name =
                queue.port.as_ref().map_or("(gateway)".to_owned(), |port| clean(port, false));
            (format!("{}/{name}", clean(&queue.network, false)), queue)
        });
        let queues: Vec<_> = queues.collect();
        let width = queues.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, queue) in queues {
            let load = percent(queue.load_ppm);
            let _ = writeln!(text, "  {name:width$}  queue {:>3}  {load:>6}", queue.queue);
        }
    }
    text
}

fn percent(ppm: u64) -> String {
    let tenths = (ppm + 500) / 1000;
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use api::WorkerQueue;

    use super::*;

    #[test]
    fn queues_stand_under_their_worker() {
        let queue = |port: Option<&str>, queue, load_ppm| WorkerQueue {
            port: port.map(str::to_owned),
            network: "lan".to_owned(),
            queue,
            load_ppm,
        };
        let workers = [
            WorkerInfo {
                worker: 0,
                cpu: Some(2),
                load_ppm: 431_249,
                queues: vec![queue(None, 0, 0), queue(Some("web1"), 12, 431_249)],
            },
            WorkerInfo { worker: 1, cpu: None, load_ppm: 0, queues: Vec::new() },
        ];
        assert_eq!(
            text(&workers),
            concat!(
                "worker 0, CPU 2: 43.1 %\n",
                "  lan/(gateway)  queue   0   0.0 %\n",
                "  lan/web1       queue  12  43.1 %\n",
                "worker 1: 0.0 %\n",
            )
        );
    }
}
