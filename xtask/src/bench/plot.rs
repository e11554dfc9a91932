//! Medians and spread as bars, in SVG: a panel for each case, metric and placement, a bar for each peer.

use std::fmt::Write as _;

use super::cases;
use super::peer::Name;
use super::report::{Report, Row, title};

const WIDTH: usize = 900;
const COLUMNS: usize = 2;
const PANEL: usize = WIDTH / COLUMNS;
const BAR: usize = 18;
const LABEL: usize = 130;
/// Room for a panel's title, and below it.
const HEAD: usize = 40;

/// The whole plot. It has colours of its own background, so that it can be read on any page.
pub(super) fn svg(report: &Report) -> String {
    let rows = report.rows();
    let mut body = String::new();
    let mut y = 30;
    for pair in rows.chunks(COLUMNS) {
        let tallest = pair.iter().map(|row| row.peers.len()).max().unwrap_or(0);
        for (column, row) in pair.iter().enumerate() {
            panel(&mut body, row, column * PANEL, y);
        }
        y += HEAD + tallest * (BAR + 4) + 10;
    }
    let setting = &report.setting;
    let head = format!("{}, Linux {}; median, lowest to highest", setting.cpu, setting.kernel);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{y}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"18\" fill=\"#555555\">{}</text>\n{body}</svg>\n",
        escape(&head)
    )
}

fn panel(out: &mut String, row: &Row, x: usize, y: usize) {
    let what = cases::all().into_iter().find(|case| case.name == row.case);
    let what = what.map_or("", |case| case.what);
    let head = format!("{what} – {}, {}", row.metric.unit(), title(row.placement));
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" font-weight=\"bold\" fill=\"#111111\">{}</text>",
        x + 10,
        y + 18,
        escape(&head)
    );
    let most = row.peers.iter().map(|(_, median)| median.highest).fold(0.0, f64::max);
    let room = PANEL - LABEL - 75;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred pixels")]
    let scale = |value: f64| if most > 0.0 { value / most * room as f64 } else { 0.0 };
    for (at, (peer, median)) in row.peers.iter().enumerate() {
        let top = y + HEAD - 12 + at * (BAR + 4);
        let left = x + LABEL;
        let middle = top + BAR / 2;
        let (from, to) = (scale(median.lowest), scale(median.highest));
        #[expect(clippy::cast_precision_loss, reason = "a few hundred pixels")]
        let start = left as f64;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#333333\">{}</text>\
             <rect x=\"{left}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#111111\" stroke-width=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#111111\">{}</text>",
            left - 6,
            middle + 4,
            escape(peer.title()),
            scale(median.median),
            colour(*peer),
            start + from,
            start + to,
            start + to + 6.0,
            middle + 4,
            number(median.median)
        );
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn colour(peer: Name) -> &'static str {
    match peer {
        Name::Vswitchd => "#2a78b8",
        Name::OvsDpdk => "#d98841",
        Name::OvsDpdkSleep => "#e6b98f",
        Name::Forwarder => "#9a9a9a",
        Name::Limit => "#b9d3e6",
        Name::LinuxBridge => "#7aa874",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use netns_tests::frontend::placement::Placement;

    use super::*;
    use crate::bench::report::tests::{report, run};

    #[test]
    fn each_peer_has_a_bar_as_long_as_its_median() {
        let near = Some(Placement::Near);
        let svg =
            svg(&report(vec![run(Name::Vswitchd, near, 10.0), run(Name::OvsDpdk, near, 5.0)]));
        let widths: Vec<f64> = svg
            .split("width=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse().ok())
            .filter(|width| *width < 400.0 && *width > 2.0)
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("vswitchd") && svg.contains("OVS-DPDK"));
    }
}
