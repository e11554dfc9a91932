//! Queues to workers, by load: arithmetic alone.

/// A queue as it is served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueLoad {
    pub(super) worker: usize,
    /// Millionths of a worker's time.
    pub(super) load: u64,
}

/// What a queue counts for when new ones are placed, besides its load: queues without traffic are dealt out evenly.
const NOMINAL: u64 = 10_000;
/// A busiest worker with less to do than this needs no relief.
const WORTH_IT: u64 = 100_000;

/// The worker for a new queue.
pub(super) fn least_loaded(queues: &[QueueLoad], workers: usize) -> usize {
    let mut sums = vec![0; workers.max(1)];
    for queue in queues {
        if let Some(sum) = sums.get_mut(queue.worker) {
            *sum += queue.load + NOMINAL;
        }
    }
    lowest(&sums)
}

/// The worker of each queue from now on, or `None` when it is not worth while: the busiest worker must lose a quarter
/// of its load at least. Queues without load stay where they are, others where possible.
pub(super) fn assign(queues: &[QueueLoad], workers: usize) -> Option<Vec<usize>> {
    let now = queues.iter().map(|queue| queue.worker);
    let before = busiest(queues, now, workers);
    if workers < 2 || before < WORTH_IT {
        return None;
    }
    // The largest first, each to the worker with the least: at most a third above the best there is (Graham's LPT).
    let even = deal(queues, workers, 0);
    let limit = busiest(queues, even.iter().copied(), workers);
    if !is_clearly_less(limit, before) {
        return None;
    }
    // The same, but a queue stays where that keeps its worker at about what was just reached; unless that would call
    // for the next change at once.
    let kept = deal(queues, workers, limit.saturating_add(limit / 8));
    let reached = busiest(queues, kept.iter().copied(), workers);
    let kept_will_do = is_clearly_less(reached, before) && !is_clearly_less(limit, reached);
    Some(if kept_will_do { kept } else { even })
}

/// A quarter less, or more than that.
fn is_clearly_less(new: u64, old: u64) -> bool {
    u128::from(new) * 4 <= u128::from(old) * 3 && new < old
}

/// In the order of load, each queue to its present worker when that has then no more than `limit`, else to the least loaded.
fn deal(queues: &[QueueLoad], workers: usize, limit: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..queues.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(queues[at].load));
    let mut sums = vec![0_u64; workers];
    let mut dealt: Vec<usize> = queues.iter().map(|queue| queue.worker).collect();
    for at in order {
        let QueueLoad { worker, load } = queues[at];
        let stays = |sum: &u64| load == 0 || sum.saturating_add(load) <= limit;
        if !sums.get(worker).is_some_and(stays) {
            let lowest = lowest(&sums);
            let equal = sums.get(worker) == sums.get(lowest);
            dealt[at] = if equal { worker } else { lowest };
        }
        sums[dealt[at]] = sums[dealt[at]].saturating_add(load);
    }
    dealt
}

fn lowest(sums: &[u64]) -> usize {
    (0..sums.len()).min_by_key(|&worker| sums[worker]).unwrap_or(0)
}

fn busiest(queues: &[QueueLoad], dealt: impl Iterator<Item = usize>, workers: usize) -> u64 {
    let mut sums = vec![0_u64; workers.max(1)];
    for (queue, worker) in queues.iter().zip(dealt) {
        if let Some(sum) = sums.get_mut(worker) {
            *sum = sum.saturating_add(queue.load);
        }
    }
    sums.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queues(of: &[(usize, u64)]) -> Vec<QueueLoad> {
        of.iter().map(|&(worker, load)| QueueLoad { worker, load }).collect()
    }

    #[test]
    fn an_idle_worker_relieves_a_busy_one_by_few_moves() {
        let now = queues(&[(0, 300_000), (0, 0), (0, 290_000), (0, 10_000), (1, 5_000)]);
        assert_eq!(assign(&now, 2), Some(vec![0, 0, 1, 0, 1]));
    }

    #[test]
    fn what_helps_little_or_nobody_is_left_alone() {
        // 500,000 at most, instead of 600,000: a sixth.
        assert_eq!(
            assign(&queues(&[(0, 400_000), (0, 200_000), (1, 300_000), (1, 100_000)]), 2),
            None
        );
        // One queue cannot be divided.
        assert_eq!(assign(&queues(&[(0, 900_000), (1, 0)]), 2), None);
        // Nobody has much to do.
        assert_eq!(assign(&queues(&[(0, 40_000), (0, 40_000)]), 2), None);
        assert_eq!(assign(&queues(&[(0, 400_000), (0, 400_000)]), 1), None);
    }

    #[test]
    fn new_queues_are_dealt_out_and_avoid_busy_workers() {
        let mut taken = queues(&[(1, 200_000)]);
        let mut placed = Vec::new();
        for _ in 0..6 {
            let worker = least_loaded(&taken, 3);
            placed.push(worker);
            taken.push(QueueLoad { worker, load: 0 });
        }
        assert_eq!(placed, [0, 2, 0, 2, 0, 2]);
    }

    /// The best there is, by trying everything.
    fn best(queues: &[QueueLoad], workers: usize) -> u64 {
        let mut best = u64::MAX;
        for mut code in 0..workers.pow(u32::try_from(queues.len()).expect("few")) {
            let dealt: Vec<usize> = queues
                .iter()
                .map(|_| {
                    let worker = code % workers;
                    code /= workers;
                    worker
                })
                .collect();
            best = best.min(busiest(queues, dealt.into_iter(), workers));
        }
        best
    }

    proptest! {
        #[test]
        fn a_change_relieves_the_busiest_by_a_quarter_and_is_the_last(
            workers in 1_usize..5,
            of in prop::collection::vec((0_usize..5, 0_u64..1_000_000), 0..40),
        ) {
            let mut now = queues(&of);
            for queue in &mut now {
                queue.worker %= workers;
            }
            let before = busiest(&now, now.iter().map(|queue| queue.worker), workers);
            if let Some(new) = assign(&now, workers) {
                prop_assert_eq!(new.len(), now.len());
                prop_assert!(new.iter().all(|&worker| worker < workers));
                let after = busiest(&now, new.iter().copied(), workers);
                prop_assert!(after * 4 <= before * 3, "{} of {}", after, before);
                for (queue, worker) in now.iter_mut().zip(new) {
                    prop_assert!(queue.load > 0 || queue.worker == worker);
                    queue.worker = worker;
                }
                prop_assert_eq!(assign(&now, workers), None);
            }
        }

        #[test]
        fn a_change_that_is_worth_while_is_found(
            workers in 2_usize..4,
            of in prop::collection::vec((0_usize..4, 0_u64..1_000_000), 1..7),
        ) {
            let mut now = queues(&of);
            for queue in &mut now {
                queue.worker %= workers;
            }
            let before = busiest(&now, now.iter().map(|queue| queue.worker), workers);
            // What is found is at most a third above the best.
            if before >= WORTH_IT && best(&now, workers) * 16 <= before * 9 {
                prop_assert!(assign(&now, workers).is_some());
            }
        }

        #[test]
        fn any_numbers_will_do(
            workers in 0_usize..5,
            of in prop::collection::vec((any::<usize>(), any::<u64>()), 0..20),
        ) {
            let now = queues(&of);
            if let Some(new) = assign(&now, workers) {
                prop_assert_eq!(new.len(), now.len());
            }
        }
    }
}
