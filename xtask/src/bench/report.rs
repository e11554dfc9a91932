//! What came out: runs, medians by placement, ratio; as a table and as JSON.

use std::fmt::Write as _;

use clap::ValueEnum;
use netns_tests::frontend::placement::Placement;
use serde::Serialize;

/// Who was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Switch {
    Vswitchd,
    OvsDpdk,
}

impl Switch {
    pub(super) fn name(self) -> &'static str {
        match self {
            Switch::Vswitchd => "vswitchd",
            Switch::OvsDpdk => "OVS-DPDK",
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) switch: Switch,
    /// Round trip of a cache line between worker's and generator's CPU, before and after.
    pub(super) round_trip_ns: [u64; 2],
    /// `None`: it changed in between, the run does not count.
    pub(super) placement: Option<Placement>,
    pub(super) frames_per_second: f64,
    /// Share of the generator's rounds with nothing to do. Near 0 it is the generator that was measured.
    pub(super) generator_idle: f64,
}

/// What holds for all runs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) bytes: u16,
    pub(super) flows: u16,
    pub(super) both_directions: bool,
    pub(super) seconds: f64,
    pub(super) cpu: String,
    pub(super) kernel: String,
    pub(super) versions: Vec<String>,
}

/// Everything, as `-o json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) setting: Setting,
    pub(super) runs: Vec<Run>,
    pub(super) summary: Vec<Summary>,
}

/// One placement's medians, in frames per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) placement: Placement,
    pub(super) vswitchd: Option<Median>,
    pub(super) ovs_dpdk: Option<Median>,
    /// vswitchd over OVS-DPDK.
    pub(super) ratio: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Median {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
    pub(super) runs: usize,
}

impl Report {
    pub(super) fn new(setting: Setting, runs: Vec<Run>) -> Report {
        let summary = [Placement::Near, Placement::Far]
            .into_iter()
            .map(|placement| {
                let of = |switch: Switch| {
                    let counted = runs
                        .iter()
                        .filter(|run| run.switch == switch && run.placement == Some(placement));
                    median(counted.map(|run| run.frames_per_second).collect())
                };
                let (vswitchd, ovs_dpdk) = (of(Switch::Vswitchd), of(Switch::OvsDpdk));
                let ratio = vswitchd
                    .zip(ovs_dpdk)
                    .filter(|(_, peer)| peer.median > 0.0)
                    .map(|(ours, peer)| ours.median / peer.median);
                Summary { placement, vswitchd, ovs_dpdk, ratio }
            })
            .collect();
        Report { setting, runs, summary }
    }

    pub(super) fn table(&self) -> String {
        let Setting { bytes, flows, both_directions, seconds, cpu, kernel, versions } =
            &self.setting;
        let ways = if *both_directions { "both directions together" } else { "one direction" };
        let flows = if *flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
        let mut out = String::new();
        let _ = writeln!(out, "{bytes} B, {flows}, {ways}, {seconds} s each; one worker on CPU 0");
        let _ = writeln!(out, "{cpu}, Linux {kernel}; {}", versions.join("; "));
        let _ = writeln!(out);
        let _ = writeln!(
            out,
            " {:<10} {:>22} {:>22} {:>7}",
            "CPUs", "vswitchd Mpps (runs)", "OVS-DPDK Mpps (runs)", "ratio"
        );
        let _ = writeln!(out, "{}", "-".repeat(65));
        for summary in &self.summary {
            let cell = |median: &Option<Median>| {
                median.map_or("-".to_owned(), |m| format!("{:.2} ({})", m.median / 1e6, m.runs))
            };
            let ratio = summary.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let place = match summary.placement {
                Placement::Near => "one core",
                Placement::Far => "two cores",
            };
            let (ours, peer) = (cell(&summary.vswitchd), cell(&summary.ovs_dpdk));
            let _ = writeln!(out, " {place:<10} {ours:>22} {peer:>22} {ratio:>7}");
        }
        let moved = self.runs.iter().filter(|run| run.placement.is_none()).count();
        if moved > 0 {
            let _ = writeln!(out, "\n{moved} runs do not count: the CPUs moved meanwhile.");
        }
        let bound = self.runs.iter().filter(|run| run.generator_idle < 0.1).count();
        if bound > 0 {
            let _ =
                writeln!(out, "\n{bound} runs were limited by the generator, not by the switch.");
        }
        out
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
mod tests {
    use super::*;

    fn run(switch: Switch, placement: Option<Placement>, rate: f64) -> Run {
        Run {
            round: 1,
            switch,
            round_trip_ns: [60, 60],
            placement,
            frames_per_second: rate,
            generator_idle: 0.9,
        }
    }

    fn setting() -> Setting {
        Setting {
            bytes: 64,
            flows: 1,
            both_directions: true,
            seconds: 3.0,
            cpu: "CPU".into(),
            kernel: "6.18".into(),
            versions: vec!["A 1".into(), "B 2".into()],
        }
    }

    #[test]
    fn placements_are_apart_and_moved_runs_do_not_count() {
        let near = Some(Placement::Near);
        let runs = vec![
            run(Switch::Vswitchd, near, 9e6),
            run(Switch::OvsDpdk, near, 5e6),
            run(Switch::Vswitchd, near, 11e6),
            run(Switch::OvsDpdk, None, 50e6),
            run(Switch::Vswitchd, Some(Placement::Far), 1e6),
        ];
        let report = Report::new(setting(), runs);
        let [close, far] = &report.summary[..] else { panic!("two placements") };
        assert_eq!(close.ratio, Some(2.0));
        assert_eq!(close.vswitchd.map(|m| (m.lowest, m.highest, m.runs)), Some((9e6, 11e6, 2)));
        assert_eq!((far.ovs_dpdk, far.ratio), (None, None));
        let table = report.table();
        assert!(table.contains("one core"), "{table}");
        assert!(table.contains("10.00 (2)") && table.contains("2.00"), "{table}");
        assert!(table.contains("1 runs do not count"), "{table}");
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]).map(|m| m.median), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]).map(|m| m.median), Some(2.5));
    }
}
