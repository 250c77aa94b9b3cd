//! `loadgen report A B …`: several runs' reports in one table and one page, their curves over each other.
//!
//! It shows and does not judge: whether one of two is faster is a question for `loadgen compare`, which measures them
//! in turn. Runs of different loops stand in one picture only with their loops beside them.

use super::html::{document, escape};
use super::plot;
use super::stored::{StoredManifest, StoredReport, StoredRun};
use super::table::{align, micros, number, quantile_name, thousands};
use crate::run::{failed, usage};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Reports of `run`, `sweep`, `knee` or the demonstration: JSON files, or folders with a report.json.
    #[arg(required = true, value_name = "RUN")]
    pub reports: Vec<PathBuf>,
    /// Write the overlay as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `loadgen report`.
pub fn command(arguments: &ReportArgs) -> ExitCode {
    let mut reports = Vec::new();
    for path in &arguments.reports {
        match StoredReport::read(path) {
            Ok(report) => reports.push(report),
            Err(error) => return usage(&error),
        }
    }
    if let Some(error) = arguments.html.as_ref().and_then(|path| super::check_writable(path).err()) {
        return failed(&error);
    }
    print!("{}", text(&reports));
    if let Some(path) = &arguments.html {
        if let Err(error) = super::write(path, page(&reports).as_bytes()) {
            return failed(&error);
        }
        println!("  written: {}", path.display());
    }
    ExitCode::SUCCESS
}

/// `A`, `B`, … `Z`, `27`, …
fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index) if index < 26 => char::from(b'A' + index).to_string(),
        _ => (index + 1).to_string(),
    }
}

fn runs(reports: &[StoredReport]) -> Vec<(String, &StoredRun)> {
    let numbered = reports.iter().enumerate();
    numbered
        .flat_map(|(index, report)| {
            report.runs.iter().map(move |run| (format!("{}: {}", letter(index), run.title), run))
        })
        .collect()
}

const COLUMNS: [&str; 9] =
    ["", "loop", "throughput", "p50", "p99", "p99.9", "max", "server/request", "verdict"];

fn cells(name: &str, run: &StoredRun) -> Vec<String> {
    let (_, latency) = run.latency();
    vec![
        name.into(),
        run.loop_text(),
        run.throughput_per_s.map_or("–".into(), |rate| format!("{}/s", thousands(rate))),
        micros(latency.at(0.5)),
        micros(latency.at(0.99)),
        micros(latency.at(0.999)),
        micros(latency.max_ns),
        format!("{} µs", number(run.server_us_per_request(), 2)),
        match &run.incomplete {
            Some(_) => format!("{} (incomplete)", run.verdict),
            None => run.verdict.clone(),
        },
    ]
}

/// Conditions by name: in every report, and whether they differ.
fn conditions(manifests: &[&StoredManifest]) -> Vec<(&'static str, Vec<String>, bool)> {
    let rows: Vec<_> = manifests.iter().map(|manifest| manifest.rows()).collect();
    let Some(first) = rows.first() else { return Vec::new() };
    (0..first.len())
        .map(|at| {
            let values: Vec<String> = rows.iter().map(|rows| rows[at].1.clone()).collect();
            let differ = values.windows(2).any(|pair| pair[0] != pair[1]);
            (first[at].0, values, differ)
        })
        .collect()
}

/// Conditions that differ, a line each.
pub fn differences(manifests: &[&StoredManifest]) -> Vec<String> {
    let differ = conditions(manifests).into_iter().filter(|(name, _, differ)| *differ && *name != "started");
    let line = |(name, values, _): (&str, Vec<String>, bool)| {
        let values: Vec<String> =
            values.iter().enumerate().map(|(at, value)| format!("{} {value}", letter(at))).collect();
        format!("differs: {name}: {}", values.join(" | "))
    };
    differ.map(line).collect()
}

fn manifests(reports: &[StoredReport]) -> Vec<&StoredManifest> {
    reports.iter().map(|report| &report.manifest).collect()
}

/// Settings of the servers that differ between the reports' first runs.
fn server_differences(reports: &[StoredReport]) -> Vec<(String, Vec<String>)> {
    let all: Vec<_> = reports.iter().filter_map(|report| report.runs.first()).collect();
    let mut names: Vec<&String> = all.iter().flat_map(|run| run.server_configuration.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let of = |run: &&StoredRun| run.server_configuration.get(name).cloned().unwrap_or("–".into());
            (name.clone(), all.iter().map(of).collect::<Vec<_>>())
        })
        .filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]))
        .collect()
}

/// The overlay for a terminal.
pub fn text(reports: &[StoredReport]) -> String {
    let runs = runs(reports);
    let mut rows = vec![COLUMNS.map(str::to_string).to_vec()];
    rows.extend(runs.iter().map(|(name, run)| cells(name, run)));
    let mut text = align(&rows);
    if mixes_loops(&runs) {
        text.push_str(
            "  Open and closed loops are side by side: their latencies answer different questions.\n",
        );
    }
    for line in differences(&manifests(reports)) {
        let _ = writeln!(text, "  {line}");
    }
    for (name, values) in server_differences(reports) {
        let _ = writeln!(text, "  differs: server's {name}: {}", values.join(" | "));
    }
    text
}

/// Median and 99th percentile against the rate, of every report that has several.
fn rate_lines(reports: &[StoredReport]) -> Vec<plot::Line> {
    let mut lines = Vec::new();
    for (index, report) in reports.iter().enumerate() {
        for quantile in [0.5, 0.99] {
            let point =
                |run: &StoredRun| Some((run.rate_reached()?, run.latency().1.at(quantile)? as f64 / 1e3));
            let mut points: Vec<(f64, f64)> = report.runs.iter().filter_map(point).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if points.first().map(|point| point.0) != points.last().map(|point| point.0) {
                lines.push(plot::Line {
                    name: format!("{}: {}", letter(index), quantile_name(quantile)),
                    points,
                });
            }
        }
    }
    lines
}

fn mixes_loops(runs: &[(String, &StoredRun)]) -> bool {
    runs.windows(2).any(|pair| pair[0].1.is_open() != pair[1].1.is_open())
}

/// The overlay as a page.
pub fn page(reports: &[StoredReport]) -> String {
    let runs = runs(reports);
    let mut body = String::from("<h1>Runs side by side</h1><table><thead><tr>");
    for column in COLUMNS {
        let _ = write!(body, "<th>{column}</th>");
    }
    body.push_str("</tr></thead><tbody>");
    for (name, run) in &runs {
        body.push_str("<tr>");
        for cell in cells(name, run) {
            let _ = write!(body, "<td>{}</td>", escape(&cell));
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table>");
    if mixes_loops(&runs) {
        body.push_str(
            "<p>Open and closed loops are side by side: the first count from the moment a request was meant to be \
             sent, the second from the send, and cannot see a stall that keeps requests from being sent.</p>",
        );
    }
    let curves = runs
        .iter()
        .map(|(name, run)| (format!("{name}: {} ({})", run.latency().0, run.loop_text()), &run.curve[..]))
        .collect::<Vec<_>>();
    let _ = write!(body, "<h2>Latency by percentile</h2>{}", plot::curves_by_percentile(&curves));
    let lines = rate_lines(reports);
    if !lines.is_empty() {
        let _ = write!(
            body,
            "<h2>Latency against offered rate</h2><p>Rates that were offered and not reached have no latency and are left \
             out.</p>{}",
            plot::rate_lines(&lines)
        );
    }
    body.push_str("<h2>Conditions</h2><table class=\"manifest\"><thead><tr><th></th>");
    for index in 0..reports.len() {
        let _ = write!(body, "<th>{}</th>", letter(index));
    }
    body.push_str("</tr></thead><tbody>");
    let server = server_differences(reports)
        .into_iter()
        .map(|(name, values)| (format!("server's {name}"), values, true));
    let own = conditions(&manifests(reports))
        .into_iter()
        .map(|(name, values, differ)| (name.to_string(), values, differ));
    for (name, values, differ) in own.chain(server) {
        let name = if differ { format!("<b>{}</b>", escape(&name)) } else { escape(&name) };
        let _ = write!(body, "<tr><td>{name}</td>");
        for value in values {
            let _ = write!(body, "<td>{}</td>", escape(&value));
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table><p>What differs is bold.</p>");
    document("Runs side by side", &body)
}

#[cfg(test)]
mod tests {
    use super::super::stored::tests::stored;
    use super::*;

    #[test]
    fn runs_are_laid_over_each_other_with_their_loops_and_what_differs() {
        let (mut a, b) = (stored(true, 20_000), stored(false, 20_000));
        a.manifest.commit = Some("aaa<1>".into());
        a.runs[0].server_configuration.insert("maxmemory".into(), "5".into());
        let reports = [a, b];
        let text = text(&reports);
        for expected in [
            "A: run",
            "B: run",
            "open loop, poisson",
            "closed loop",
            "different questions",
            "server's maxmemory: 5 | –",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(text.contains("differs: commit: A aaa<1> | B "), "{text}");
        let page = page(&reports);
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(page.contains("aaa&lt;1&gt;") && page.contains("<b>commit</b>") && !page.contains("<script"));
        assert!(!page.contains("Latency against offered rate"), "one rate is no curve");
        // The same report twice differs in nothing.
        assert!(!super::text(&[stored(true, 500), stored(true, 500)]).contains("differs: c"));
    }

    #[test]
    fn many_reports_have_names() {
        assert_eq!((letter(0), letter(25), letter(26)), ("A".into(), "Z".into(), "27".into()));
    }
}
