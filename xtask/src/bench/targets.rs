//! What the datapath is meant to reach, and whether it does.

use std::fmt;

use netns_tests::frontend::placement::Placement;
use serde::Serialize;

use super::peer::Name;
use super::report::{Metric, Row, title};

/// A bound on one of our figures.
#[derive(Clone, Copy, Debug)]
struct Target {
    case: &'static str,
    metric: Metric,
    /// `None`: wherever it was measured.
    placement: Option<Placement>,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    /// At least this many times the peer's figure.
    AtLeast(f64, Name),
    /// At most this many times the peer's figure.
    AtMost(f64, Name),
    /// At least this many times our own figure of another case.
    AtLeastOf(f64, &'static str),
    /// Below a fixed value.
    Below(f64),
}

/// One target, held against what was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    case: &'static str,
    placement: Placement,
    unit: &'static str,
    wanted: String,
    found: f64,
    reached: bool,
}

const NEAR: Option<Placement> = Some(Placement::Near);
const FAR: Option<Placement> = Some(Placement::Far);

use Bound::{AtLeast, AtLeastOf, AtMost, Below};
use Metric::{CpuPercent, Gbit, MedianMicros, Mpps, RssAnonMb};
use Name::{Forwarder, Limit, LinuxBridge, OvsDpdk, OvsDpdkSleep};

#[rustfmt::skip]
fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |case, metric, placement, bound| targets.push(Target { case, metric, placement, bound });
    for case in ["a/split", "a/packed"] {
        add(case, Mpps, NEAR, AtLeast(3.0, OvsDpdk));
        add(case, Mpps, NEAR, AtLeast(1.3, Forwarder));
        add(case, Mpps, FAR, AtLeast(1.3, OvsDpdk));
        add(case, Mpps, FAR, AtLeast(1.0, Forwarder));
    }
    add("b/1024", Mpps, None, AtLeastOf(0.85, "a/split"));
    for case in ["c/1518", "c/1518-packed"] {
        add(case, Mpps, NEAR, AtLeast(3.0, OvsDpdk));
        add(case, Mpps, None, AtLeast(0.8, Limit));
    }
    add("c/tso", Gbit, None, AtLeast(2.0, OvsDpdk));
    add("d/20us", MedianMicros, None, AtMost(1.1, OvsDpdk));
    add("d/10ms", MedianMicros, None, AtMost(1.0, OvsDpdkSleep));
    add("f/iperf", Gbit, None, AtLeast(0.6, LinuxBridge));
    add("f/iperf", Gbit, None, AtLeast(8.0, OvsDpdk));
    add("g/256", CpuPercent, None, Below(1.0));
    add("g/256", RssAnonMb, None, Below(80.0));
    targets
}

/// All targets that these medians say something about.
pub(super) fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for target in targets() {
        let Target { case, metric, placement, bound } = target;
        let fitting = rows.iter().filter(|row| {
            row.case == case
                && row.metric == metric
                && placement.is_none_or(|placement| placement == row.placement)
        });
        for row in fitting {
            let Some(ours) = row.of(Name::Vswitchd) else { continue };
            let beside = |peer| row.of(peer).map(|theirs| ours.median / theirs.median);
            let (wanted, found, reached) = match bound {
                AtLeast(factor, peer) => {
                    let Some(found) = beside(peer) else { continue };
                    (format!("≥ {factor} × {}", peer.title()), found, found >= factor)
                }
                AtMost(factor, peer) => {
                    let Some(found) = beside(peer) else { continue };
                    (format!("≤ {factor} × {}", peer.title()), found, found <= factor)
                }
                AtLeastOf(factor, other) => {
                    let other_row = rows.iter().find(|candidate| {
                        candidate.case == other
                            && candidate.metric == metric
                            && candidate.placement == row.placement
                    });
                    let Some(base) = other_row.and_then(|row| row.of(Name::Vswitchd)) else {
                        continue;
                    };
                    let found = ours.median / base.median;
                    (format!("≥ {factor} × {other}"), found, found >= factor)
                }
                Below(limit) => (format!("< {limit}"), ours.median, ours.median < limit),
            };
            let unit = metric.unit();
            verdicts.push(Verdict { case, placement: row.placement, unit, wanted, found, reached });
        }
    }
    verdicts
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { case, placement, unit, wanted, found, reached } = self;
        let reached = if *reached { "reached" } else { "NOT reached" };
        write!(
            f,
            "{case:<14} {:<5} {wanted:<26} {found:>8.2}  {reached} ({unit})",
            title(*placement)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{report, run};

    #[test]
    fn targets_are_of_their_placement() {
        let near = Some(Placement::Near);
        let far = Some(Placement::Far);
        let report = report(vec![
            run(Name::Vswitchd, near, 20.0),
            run(OvsDpdk, near, 7.0),
            run(Name::Vswitchd, far, 9.0),
            run(OvsDpdk, far, 6.0),
        ]);
        let verdicts = verdicts(&report.rows());
        let found: Vec<(Placement, bool)> =
            verdicts.iter().map(|verdict| (verdict.placement, verdict.reached)).collect();
        assert_eq!(found, [(Placement::Near, false), (Placement::Far, true)]);
    }
}
