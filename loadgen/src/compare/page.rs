//! A comparison as one HTML page: bars with their intervals, words, stages, goals, the manifest. No script, works offline.

use super::agreement::{self, Agreement};
use super::markdown::{self, conditions_of, cost_cells, row_cells};
use super::outcome::{CaseReport, Comparison, Row};
use super::statistics::Spread;
use crate::report::html::{document, escape, list, manifest_rows, table};
use crate::report::plot::{self, IntervalBar};
use crate::report::table::{self as text, thousands};
use std::fmt::Write;

/// The page.
pub fn page(comparison: &Comparison) -> String {
    let mut body = format!("<h1>{}</h1>", escape(&comparison.title));
    if let Some(why) = &comparison.incomplete {
        let _ = write!(body, "<p><b>Incomplete:</b> {}</p>", escape(why));
    }
    body.push_str("<h2>Who takes part</h2>");
    let targets = comparison.targets.iter().map(|peer| {
        vec![
            peer.name.clone(),
            peer.version.clone().unwrap_or("–".into()),
            markdown::shown(&peer.command),
            match peer.tool.first() {
                None => "loadgen".into(),
                Some(tool) => peer.tool_version.clone().unwrap_or_else(|| tool.clone()),
            },
        ]
    });
    let _ = write!(
        body,
        "<div class=\"manifest\">{}</div>",
        table(&["target", "version", "started as", "driven by"], targets)
    );
    let said = comparison.missing.iter().map(|text| format!("Missing: {text}"));
    let said = said.chain(comparison.failed.iter().map(|text| format!("Failed: {text}")));
    let said: Vec<String> = said.chain(comparison.notes.iter().cloned()).collect();
    body.push_str(&list(said.iter()));
    if let Some(summary) = agreement::summary(comparison.agreements()) {
        let _ = write!(body, "<p>{}</p>", escape(&summary));
    }
    for case in &comparison.cases {
        self::case(&mut body, case);
    }
    let core = |core: Option<usize>| core.map_or("not pinned".into(), |core| format!("core {core}"));
    let _ = write!(
        body,
        "<h2>Conditions</h2><table class=\"manifest\"><tbody>{}<tr><td>pinning</td><td>servers {}, generator {}</td></tr>\
         <tr><td>seed</td><td>{}</td></tr></tbody></table>",
        manifest_rows(&comparison.manifest),
        core(comparison.server_core),
        core(comparison.generator_core),
        comparison.seed
    );
    document(&comparison.title, &body)
}

fn case(body: &mut String, case: &CaseReport) {
    let _ = write!(
        body,
        "<h2>{}</h2><p>{} Bars are medians, lines the bootstrap 95 % interval of the median over rounds.</p>",
        escape(&case.case.name),
        escape(&conditions_of(case))
    );
    let bars = |pick: &dyn Fn(&Row) -> Option<Spread>, show: &dyn Fn(f64) -> String| {
        let bar = |row: &Row| {
            let spread = pick(row)?;
            let (value, low, high) = (spread.median, spread.low, spread.high);
            let colour = usize::from(row.target != case.subject) * 4;
            Some(IntervalBar { name: row.target.clone(), value, low, high, text: show(value), colour })
        };
        plot::interval_bars(&case.rows.iter().filter_map(bar).collect::<Vec<_>>(), None)
    };
    let _ = write!(
        body,
        "<h3>Throughput</h3>{}",
        bars(&|row| Some(row.throughput_per_s.clone()), &|value| format!("{}/s", thousands(value)))
    );
    if case.rows.iter().any(|row| row.server_us_per_request.is_some()) {
        let _ = write!(
            body,
            "<h3>Server CPU per request</h3>{}",
            bars(&|row| row.server_us_per_request.clone(), &|value| format!("{value:.3} µs"))
        );
    }
    if case.rows.iter().any(|row| row.p99_ns.is_some()) {
        let latency = if case.case.is_open() { "response time" } else { "service time" };
        let _ = write!(
            body,
            "<h3>p99 of the {latency}</h3>{}",
            bars(&|row| row.p99_ns.clone(), &|value| text::micros(Some(value as u64)))
        );
    }
    let ratios: Vec<IntervalBar> = case
        .rows
        .iter()
        .filter_map(|row| {
            let ratio = row.throughput_ratio.as_ref()?;
            Some(IntervalBar {
                name: format!("{} / {}", case.subject, row.target),
                value: ratio.median,
                low: ratio.low,
                high: ratio.high,
                text: format!("× {:.2}: {}", ratio.median, row.throughput_words.unwrap_or_default()),
                colour: 2,
            })
        })
        .collect();
    if !ratios.is_empty() {
        let _ = write!(
            body,
            "<h3>Throughput, paired by round (the line is 1)</h3>{}",
            plot::interval_bars(&ratios, Some(1.0))
        );
    }
    // Two tables in place of Markdown's one: a page, and paper, are only so wide.
    let part = |from: &[usize]| {
        let columns: Vec<&str> = from.iter().map(|at| markdown::COLUMNS[*at]).collect();
        let rows = case.rows.iter().map(row_cells);
        table(&columns, rows.map(|cells| from.iter().map(|at| cells[*at].clone()).collect()))
    };
    body.push_str(&part(&[0, 1, 2, 3, 4]));
    body.push_str(&part(&[0, 5, 6, 7, 8, 13, 12]));
    if case.rows.iter().any(|row| row.throughput_ratio.is_some()) {
        body.push_str(&part(&[0, 9, 10]));
        body.push_str(&part(&[0, 11]));
    }
    body.push_str("<h3>What a request costs the server</h3>");
    body.push_str(&table(&markdown::COST_COLUMNS, case.rows.iter().map(cost_cells)));
    for stages in &case.stages {
        let rows = stages.rows.iter().map(|row| {
            let nanos = |ns: Option<f64>| text::micros(ns.map(|ns| ns as u64));
            vec![
                format!("{}: {}", row.kind, row.stage),
                nanos(row.mean_ns),
                nanos(row.p50_ns),
                nanos(row.p99_ns),
            ]
        });
        let _ = write!(
            body,
            "<h3>Where the time went in {}</h3>{}",
            escape(&stages.target),
            table(&["stage", "mean", "p50", "p99"], rows)
        );
    }
    if !case.agreement.is_empty() {
        let _ = write!(
            body,
            "<h3>Other generators on the same server</h3>{}",
            table(&agreement::COLUMNS, case.agreement.iter().map(Agreement::cells))
        );
    }
    body.push_str(&list(case.tools.iter()));
    let goals: Vec<String> = case.goals.iter().map(markdown::goal).collect();
    body.push_str(&list(goals.iter()));
}
