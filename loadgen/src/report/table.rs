//! The report on a terminal.

use super::RunReport;
use crate::histogram::Summary;
use crate::stages::{StageReport, StagesReport};
use std::fmt::Write;

/// A number with a comma every three digits, without a fraction.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Microseconds with as many places as make sense; a dash for what is not known.
pub fn micros(ns: Option<u64>) -> String {
    match ns {
        None => "–".into(),
        Some(ns) if ns < 10_000 => format!("{:.2} µs", ns as f64 / 1e3),
        Some(ns) if ns < 1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        Some(ns) if ns < 1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        Some(ns) => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A number, or a dash.
pub fn number(value: Option<f64>, places: usize) -> String {
    value.map_or("–".into(), |value| format!("{value:.places$}"))
}

/// A share in percent, or a dash.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.0} %", share * 100.0))
}

/// Name of a quantile: p99.9.
pub fn quantile_name(quantile: f64) -> String {
    let text = format!("{:.3}", quantile * 100.0);
    format!("p{}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Columns aligned: the first to the left, the others to the right. Widths count characters.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            match column {
                0 => line.push_str(&format!(" {cell}{pad}")),
                _ => line.push_str(&format!("  {pad}{cell}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// All runs of a report.
pub fn runs(runs: &[RunReport]) -> String {
    runs.iter().map(run).collect::<Vec<_>>().join("\n")
}

fn run(run: &RunReport) -> String {
    let mut text = String::new();
    let cores = match (run.server_core, run.generator_core) {
        (Some(server), Some(generator)) => {
            format!(", server on core {server}, generator on core {generator}")
        }
        (None, Some(generator)) => format!(", generator on core {generator}"),
        (Some(server), None) => format!(", server on core {server}"),
        (None, None) => String::new(),
    };
    let _ = writeln!(
        text,
        "{} — {}, {} connections, {} for {:.1} s{cores}",
        run.title,
        run.loop_text(),
        run.connections,
        run.target,
        run.window_s
    );
    let _ = writeln!(text, "  server          {}", run.server_version.as_deref().unwrap_or("not told"));
    let offered = match run.offered_per_s {
        Some(offered) => format!(" of {}/s offered", thousands(offered)),
        None => String::new(),
    };
    let throughput = run.throughput_per_s.map_or("–".into(), thousands);
    let _ = writeln!(text, "  throughput      {throughput}/s{offered}");
    let mut rows = vec![header()];
    if let Some(response) = &run.response_time {
        rows.push(summary_row("response time", response));
    }
    rows.push(summary_row("service time", &run.service_time));
    if let Some(lateness) = &run.lateness {
        rows.push(summary_row("lateness", lateness));
    }
    text.push_str(&align(&rows));
    let cpu = &run.cpu;
    let _ = writeln!(
        text,
        "  CPU/request     server {} µs ({} of a core), generator {} µs ({}{}); saturated: {}",
        number(cpu.server_us_per_request, 2),
        percent(cpu.server_share),
        number(cpu.generator_us_per_request, 2),
        percent(cpu.generator_share),
        match cpu.generator_spun_share {
            Some(spun) if spun >= 0.005 => format!(" and {:.0} % spinning", spun * 100.0),
            _ => String::new(),
        },
        cpu.saturated
    );
    let counted = [
        ("cycles", cpu.server_cycles_per_request),
        ("instructions", cpu.server_instructions_per_request),
        ("system calls", cpu.server_syscalls_per_request),
    ];
    let counted: Vec<String> =
        counted.iter().filter_map(|(name, count)| Some(format!("{:.1} {name}", (*count)?))).collect();
    if !counted.is_empty() {
        let _ = writeln!(text, "  server/request  {}", counted.join(", "));
    }
    match (&run.stages, &run.stages_absent) {
        (Some(stages), _) => text.push_str(&server_stages(run, stages)),
        (None, Some(why)) => {
            let _ = writeln!(text, "  server stages   {why}");
        }
        (None, None) => {}
    }
    let counts = &run.counts;
    let odd: Vec<String> = [
        ("errors", counts.errors),
        ("misses", counts.nulls),
        ("timeouts", counts.timeouts),
        ("lost", counts.lost),
        ("unanswered", counts.unanswered),
        ("wrong", counts.wrong),
        ("reconnects", counts.reconnects),
        ("connections renewed", counts.churned),
        ("pushes", counts.pushes),
    ]
    .iter()
    .filter(|(_, count)| *count > 0)
    .map(|(name, count)| format!("{name} {}", thousands(*count as f64)))
    .collect();
    if !odd.is_empty() {
        let _ = writeln!(text, "  counted         {}", odd.join(", "));
    }
    for note in &run.notes {
        let _ = writeln!(text, "  note            {note}");
    }
    let _ = writeln!(text, "  verdict         {}", run.verdict);
    for reason in &run.reasons {
        let _ = writeln!(text, "    {:<8} {}; {}", reason.grade.to_string(), reason.text, reason.advice);
    }
    text
}

/// Where the server says its time went, beside the client's own figure. Stages that took no time are left out.
fn server_stages(run: &RunReport, stages: &StagesReport) -> String {
    let cells =
        |name: String, p50, p99, mean: f64| vec![name, micros(p50), micros(p99), micros(Some(mean as u64))];
    let row = |name: String, stage: &StageReport| cells(name, stage.p50_ns, stage.p99_ns, stage.mean_ns);
    let mut rows = vec![["server stages", "p50", "p99", "mean"].map(str::to_string).to_vec()];
    for kind in &stages.kinds {
        for stage in kind.stages.iter().filter(|stage| stage.mean_ns > 0.0) {
            rows.push(row(format!("  {} {}", kind.kind, stage.stage), stage));
        }
        rows.push(row(format!("  {} in the server", kind.kind), &kind.total));
    }
    let (name, latency) = run.latency();
    if let Some(mean) = latency.mean_ns {
        rows.push(cells(format!("  {name}, all"), latency.at(0.5), latency.at(0.99), mean));
        rows.push(cells("  of it outside".into(), None, None, stages.outside_ns(mean)));
    }
    let timed: Vec<String> =
        stages.kinds.iter().map(|kind| format!("{} {}", thousands(kind.samples as f64), kind.kind)).collect();
    let (timed, source, covers) = (timed.join(" and "), stages.source, stages.covers);
    format!("{}    ({timed} batches timed during {covers}; {source})\n", align(&rows))
}

fn header() -> Vec<String> {
    let names = ["p50", "p90", "p99", "p99.9", "max"];
    std::iter::once("").chain(names).map(str::to_string).collect()
}

fn summary_row(name: &str, summary: &Summary) -> Vec<String> {
    let mut row = vec![name.to_string()];
    row.extend([0.5, 0.9, 0.99, 0.999].map(|quantile| micros(summary.at(quantile))));
    row.push(micros(summary.max_ns));
    row
}

#[cfg(test)]
mod tests {
    use super::super::tests::reported;
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0.0), "0");
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1_000.0), "1,000");
        assert_eq!(thousands(-1_234_567.0), "-1,234,567");
        assert_eq!(micros(None), "–");
        assert_eq!(micros(Some(1_234)), "1.23 µs");
        assert_eq!(micros(Some(123_456)), "123 µs");
        assert_eq!(micros(Some(12_345_678)), "12.35 ms");
        assert_eq!(quantile_name(0.5), "p50");
        assert_eq!(quantile_name(0.9999), "p99.99");
    }

    #[test]
    fn every_latency_is_labelled_with_its_loop_and_unnamed_percentiles_are_dashes() {
        let open = reported("half", true, 5_000);
        let text = runs(&[open]);
        for expected in [
            "open loop, Poisson",
            "response time",
            "service time",
            "lateness",
            "saturated: server",
            "read execute",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        // Seven stages of a microsecond each, and one write of ten in each among 2,000.
        let total = text.lines().find(|line| line.contains("read in the server")).expect("a row");
        assert!(total.contains("7.88 µs") && total.trim_end().ends_with("7.00 µs"), "{total}");
        let response = text.lines().find(|line| line.contains("response time")).expect("a row");
        assert!(response.contains('–'), "5,000 samples name no p99.9: {response}");
        let closed = reported("max", false, 5_000);
        let text = runs(&[closed]);
        assert!(text.contains("closed loop") && !text.contains("response time"), "{text}");
    }
}
