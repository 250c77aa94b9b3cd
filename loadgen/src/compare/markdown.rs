//! A comparison as Markdown: what goes into results/ and into an issue.

use super::statistics::Spread;
use super::{CaseReport, Comparison, StageRows};
use crate::report::table::{self, thousands};
use std::fmt::Write;

/// The report.
pub fn page(comparison: &Comparison) -> String {
    let mut text = String::new();
    let manifest = &comparison.manifest;
    let core = |core: Option<usize>| core.map_or("unpinned".into(), |core| format!("core {core}"));
    let _ = writeln!(text, "# {}\n", comparison.title);
    if let Some(why) = &comparison.incomplete {
        let _ = writeln!(text, "**Incomplete:** {why}\n");
    }
    let _ = writeln!(
        text,
        "{}; commit {}; {}; {}; servers on {}, generator on {}; seed {}. `{}`\n",
        manifest.started_at,
        manifest.commit.as_deref().unwrap_or("unknown"),
        manifest.cpu_model.as_deref().unwrap_or("unknown CPU"),
        manifest.kernel.as_deref().unwrap_or("unknown kernel").split(" (").next().unwrap_or_default(),
        core(comparison.server_core),
        core(comparison.generator_core),
        comparison.seed,
        manifest.command.iter().skip(1).fold("loadgen".to_string(), |all, word| all + " " + word),
    );
    let _ = writeln!(text, "| target | version | started as |\n|---|---|---|");
    for peer in &comparison.targets {
        let version = peer.version.as_deref().unwrap_or("–");
        let driven = match peer.tool[..] {
            [] => String::new(),
            _ => format!(", driven by `{}`", shown(&peer.tool)),
        };
        let _ = writeln!(text, "| {} | {version} | `{}`{driven} |", peer.name, shown(&peer.command));
    }
    text.push('\n');
    for missing in &comparison.missing {
        let _ = writeln!(text, "Missing: {missing}\n");
    }
    for failed in &comparison.failed {
        let _ = writeln!(text, "Failed: {failed}\n");
    }
    for note in &comparison.notes {
        let _ = writeln!(text, "Note: {note}\n");
    }
    for case in &comparison.cases {
        self::case(&mut text, case);
    }
    text
}

/// One case's table and goals.
pub fn case(text: &mut String, case: &CaseReport) {
    let loop_text = match case.case.rate {
        Some(rate) => format!("open loop, Poisson, {}/s", thousands(rate)),
        None => format!("closed loop, pipeline {}", case.case.pipeline),
    };
    let _ = writeln!(
        text,
        "## {}\n\n{loop_text}, {} keys, {} B keys, {} B values. Medians over rounds (smallest–largest); ratios are \
         {} over the row's target, paired by round: median [bootstrap 95 % interval] (smallest–largest).\n",
        case.case.name,
        thousands(case.case.keys as f64),
        case.case.key_size,
        case.case.value_size,
        case.subject
    );
    let _ = writeln!(
        text,
        "| target | rounds | throughput /s | server CPU µs/request | server / generator CPU | saturated | p50 | p99 \
         | CPU ratio | throughput ratio | p99 ratio | flagged |\n|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---|"
    );
    for row in &case.rows {
        let nanos =
            |spread: &Option<Spread>| table::micros(spread.as_ref().map(|spread| spread.median as u64));
        let share = |spread: &Option<Spread>| table::percent(spread.as_ref().map(|spread| spread.median));
        let ratio = |spread: &Option<Spread>, words: Option<&str>| match spread {
            Some(spread) => format!("{}: {}", spread.ratio_text(), words.unwrap_or_default()),
            None => "–".into(),
        };
        let throughput = &row.throughput_per_s;
        let _ = writeln!(
            text,
            "| {} | {} | {} ({}–{}) | {} | {} / {} | {} | {} | {} | {} | {} | {} | {} |",
            row.target,
            row.rounds,
            thousands(throughput.median),
            thousands(throughput.min),
            thousands(throughput.max),
            row.server_us_per_request.as_ref().map_or("–".into(), Spread::text),
            share(&row.server_share),
            share(&row.generator_share),
            row.saturated,
            nanos(&row.p50_ns),
            nanos(&row.p99_ns),
            ratio(&row.cpu_ratio, row.cpu_words),
            ratio(&row.throughput_ratio, row.throughput_words),
            row.p99_ratio.as_ref().map_or("–".into(), Spread::ratio_text),
            match (row.suspect, row.invalid) {
                (0, 0) => "–".into(),
                (suspect, 0) => format!("{suspect} suspect"),
                (suspect, invalid) => format!("{suspect} suspect, {invalid} invalid"),
            }
        );
    }
    text.push('\n');
    for stages in &case.stages {
        server_stages(text, stages);
    }
    for goal in &case.goals {
        let outcome = match goal.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let _ = writeln!(text, "- {}: {} ({outcome})", goal.text, table::number(goal.measured, 3));
    }
    if !case.goals.is_empty() {
        text.push('\n');
    }
}

/// Where a server says its time went.
fn server_stages(text: &mut String, stages: &StageRows) {
    let _ = writeln!(
        text,
        "Where the time went in {}, in the server's own figures (mean; p50; p99): medians over rounds.\n\n\
         | stage | mean | p50 | p99 |\n|---|---:|---:|---:|",
        stages.target
    );
    for row in &stages.rows {
        let nanos = |ns: Option<f64>| table::micros(ns.map(|ns| ns as u64));
        let [mean, p50, p99] = [row.mean_ns, row.p50_ns, row.p99_ns].map(nanos);
        let _ = writeln!(text, "| {}: {} | {mean} | {p50} | {p99} |", row.kind, row.stage);
    }
    text.push('\n');
}

/// A command line for people.
fn shown(words: &[String]) -> String {
    let quoted = |word: &String| if word.is_empty() { "''".to_string() } else { word.clone() };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
