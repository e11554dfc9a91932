//! What came out: runs, medians by placement, ratios; as a table and as JSON.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;

use netns_tests::frontend::placement::Placement;
use serde::{Deserialize, Serialize};

use super::cases;
use super::peer::Name;
use super::targets;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Metric {
    Mpps,
    Gbit,
    MedianMicros,
    P99Micros,
    CpuPercent,
    RssAnonMb,
    /// Share of the generator's rounds with nothing to do, in percent. Near 0 it is the generator that was measured.
    GeneratorIdle,
}

impl Metric {
    pub(super) fn unit(self) -> &'static str {
        match self {
            Metric::Mpps => "Mpps",
            Metric::Gbit => "Gbit/s",
            Metric::MedianMicros => "µs median",
            Metric::P99Micros => "µs p99",
            Metric::CpuPercent => "% of a core",
            Metric::RssAnonMb => "MB own memory",
            Metric::GeneratorIdle => "% generator idle",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) metric: Metric,
    pub(super) value: f64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) case: String,
    pub(super) peer: Name,
    pub(super) round: u32,
    /// Round trip of a cache line between worker's and generator's CPU, before and after.
    pub(super) round_trip_ns: [u64; 2],
    /// `None`: it changed in between, the run does not count.
    pub(super) placement: Option<Placement>,
    pub(super) figures: Vec<Figure>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<13}", self.case)?;
        for Figure { metric, value } in &self.figures {
            write!(f, " {value:.2} {},", metric.unit())?;
        }
        let place = self.placement.map_or("moved, does not count", title);
        write!(f, " {place} ({}/{} ns)", self.round_trip_ns[0], self.round_trip_ns[1])
    }
}

/// What holds for all runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setting {
    pub(super) seconds: f64,
    /// Cargo's.
    pub(super) profile: String,
    pub(super) cpu: String,
    pub(super) kernel: String,
    pub(super) versions: Vec<String>,
}

/// Everything, as `--save` writes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) setting: Setting,
    pub(super) runs: Vec<Run>,
    /// Measurements that failed, and why.
    #[serde(default)]
    pub(super) failures: Vec<String>,
}

/// All runs of one case, metric and placement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) case: String,
    pub(super) metric: Metric,
    pub(super) placement: Placement,
    pub(super) peers: Vec<(Name, Median)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Median {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
    pub(super) runs: usize,
}

/// With what follows from it, as `-o json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct WithSummary<'r> {
    #[serde(flatten)]
    report: &'r Report,
    summary: Vec<Row>,
    targets: Vec<targets::Verdict>,
}

impl Row {
    pub(super) fn of(&self, peer: Name) -> Option<Median> {
        self.peers.iter().find(|(name, _)| *name == peer).map(|(_, median)| *median)
    }
}

impl Report {
    pub(super) fn with_summary(&self) -> WithSummary<'_> {
        let summary = self.rows();
        let targets = targets::verdicts(&summary);
        WithSummary { report: self, summary, targets }
    }

    /// With the runs of another one, which replace those of the same case and peer.
    pub(super) fn with(mut self, other: Report) -> Report {
        let again =
            |run: &Run| other.runs.iter().any(|new| new.case == run.case && new.peer == run.peer);
        self.runs.retain(|run| !again(run));
        self.runs.extend(other.runs);
        for version in other.setting.versions {
            if !self.setting.versions.contains(&version) {
                self.setting.versions.push(version);
            }
        }
        self
    }

    /// Medians, in the order of the cases.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for case in cases::all() {
            let runs: Vec<&Run> = self.runs.iter().filter(|run| run.case == case.name).collect();
            let figures = runs.iter().flat_map(|run| &run.figures);
            let metrics: BTreeSet<Metric> = figures.map(|figure| figure.metric).collect();
            for metric in metrics.into_iter().filter(|metric| *metric != Metric::GeneratorIdle) {
                for placement in [Placement::Near, Placement::Far] {
                    let here = runs.iter().filter(|run| run.placement == Some(placement));
                    let here: Vec<&&Run> = here.collect();
                    let names: BTreeSet<Name> = here.iter().map(|run| run.peer).collect();
                    let peers = names.into_iter().filter_map(|peer| {
                        let of_peer = here.iter().filter(|run| run.peer == peer);
                        let values = of_peer.flat_map(|run| &run.figures);
                        let values = values.filter(|figure| figure.metric == metric);
                        Some((peer, median(values.map(|figure| figure.value).collect())?))
                    });
                    let peers: Vec<(Name, Median)> = peers.collect();
                    if !peers.is_empty() {
                        rows.push(Row { case: case.name.to_owned(), metric, placement, peers });
                    }
                }
            }
        }
        rows
    }

    pub(super) fn table(&self) -> String {
        let Setting { seconds, profile, cpu, kernel, versions } = &self.setting;
        let rows = self.rows();
        let mut out = String::new();
        let _ = writeln!(out, "{cpu}, Linux {kernel}; profile {profile}; {}", versions.join("; "));
        let _ = writeln!(
            out,
            "{seconds} s each, one worker on CPU 0, load on CPU 1; median (lowest–highest, runs), ×: ours to theirs"
        );
        let mut last = String::new();
        for row in &rows {
            if row.case != last {
                let what = cases::all().into_iter().find(|case| case.name == row.case);
                let what = what.map_or("", |case| case.what);
                let _ = writeln!(out, "\n{}: {what}", row.case);
                last.clone_from(&row.case);
            }
            let trips = self
                .runs
                .iter()
                .filter(|run| run.case == row.case && run.placement == Some(row.placement));
            let trips: Vec<u64> = trips.flat_map(|run| run.round_trip_ns).collect();
            let (least, most) =
                (trips.iter().min().unwrap_or(&0), trips.iter().max().unwrap_or(&0));
            let _ = writeln!(
                out,
                "  {} ({least}–{most} ns), {}",
                title(row.placement),
                row.metric.unit()
            );
            let ours = row.of(Name::Vswitchd);
            for (peer, Median { median, lowest, highest, runs }) in &row.peers {
                let ratio = ours.filter(|_| *peer != Name::Vswitchd && *median > 0.0);
                let ratio =
                    ratio.map_or(String::new(), |ours| format!("  × {:.2}", ours.median / median));
                let _ = writeln!(
                    out,
                    "    {:<20} {median:>9.2}  ({lowest:.2}–{highest:.2}, {runs}){ratio}",
                    peer.title()
                );
            }
        }
        let targets = targets::verdicts(&rows);
        if !targets.is_empty() {
            let _ = writeln!(out, "\nTargets");
            for verdict in targets {
                let _ = writeln!(out, "  {verdict}");
            }
        }
        for failure in &self.failures {
            let _ = writeln!(out, "\nFAILED {failure}");
        }
        let moved = self.runs.iter().filter(|run| run.placement.is_none()).count();
        if moved > 0 {
            let _ = writeln!(out, "\n{moved} runs do not count: the CPUs moved meanwhile.");
        }
        let idle = |figure: &Figure| figure.metric == Metric::GeneratorIdle && figure.value < 10.0;
        let bound = self.runs.iter().filter(|run| run.figures.iter().any(idle)).count();
        if bound > 0 {
            let _ =
                writeln!(out, "\n{bound} runs were limited by the generator, not by the switch.");
        }
        out
    }
}

/// A placement in words.
pub(super) fn title(placement: Placement) -> &'static str {
    match placement {
        Placement::Near => "near",
        Placement::Far => "far",
    }
}

fn median(mut values: Vec<f64>) -> Option<Median> {
    values.sort_by(f64::total_cmp);
    let (lowest, highest) = (*values.first()?, *values.last()?);
    let runs = values.len();
    let middle = runs / 2;
    let median = if runs % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some(Median { median, lowest, highest, runs })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn report(runs: Vec<Run>) -> Report {
        let setting = Setting {
            seconds: 2.0,
            profile: "release".into(),
            cpu: "CPU".into(),
            kernel: "6.18".into(),
            versions: vec!["A 1".into()],
        };
        Report { setting, runs, failures: Vec::new() }
    }

    pub(in crate::bench) fn run(peer: Name, placement: Option<Placement>, value: f64) -> Run {
        Run {
            case: "a/split".into(),
            peer,
            round: 1,
            round_trip_ns: [60, 61],
            placement,
            figures: vec![Figure { metric: Metric::Mpps, value }],
        }
    }

    #[test]
    fn placements_are_apart_and_moved_runs_do_not_count() {
        let near = Some(Placement::Near);
        let report = report(vec![
            run(Name::Vswitchd, near, 9.0),
            run(Name::OvsDpdk, near, 5.0),
            run(Name::Vswitchd, near, 11.0),
            run(Name::OvsDpdk, None, 50.0),
            run(Name::Vswitchd, Some(Placement::Far), 1.0),
        ]);
        let rows = report.rows();
        let [close, far] = &rows[..] else { panic!("two placements") };
        let ours = close.of(Name::Vswitchd).unwrap();
        assert_eq!((ours.median, ours.lowest, ours.highest, ours.runs), (10.0, 9.0, 11.0, 2));
        assert_eq!(close.of(Name::OvsDpdk).unwrap().median, 5.0);
        assert_eq!(far.of(Name::OvsDpdk), None);
        let table = report.table();
        assert!(table.contains("near (60–61 ns), Mpps") && table.contains("× 2.00"), "{table}");
        assert!(table.contains("1 runs do not count"), "{table}");
    }

    #[test]
    fn newer_runs_of_a_case_replace_older_ones() {
        let near = Some(Placement::Near);
        let old = report(vec![run(Name::Vswitchd, near, 1.0), run(Name::Limit, near, 2.0)]);
        let new = report(vec![run(Name::Vswitchd, near, 3.0)]);
        let row = old.with(new).rows().remove(0);
        assert_eq!(row.of(Name::Vswitchd).map(|m| (m.median, m.runs)), Some((3.0, 1)));
        assert_eq!(row.of(Name::Limit).map(|m| m.median), Some(2.0));
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]).map(|m| m.median), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]).map(|m| m.median), Some(2.5));
    }
}
