//! A comparison as Markdown: what goes into results/ and into an issue.

use super::agreement::{self, Agreement};
use super::outcome::{CaseReport, Comparison, GoalReport, Row, StageRows};
use super::statistics::Spread;
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
            // All that are known are, and their percentiles are their own.
            _ => format!(
                ", driven by {} as `{}` (a closed loop; the figures are its own)",
                peer.tool_version.as_deref().unwrap_or("a tool of unknown version"),
                shown(&peer.tool)
            ),
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
    if let Some(summary) = agreement::summary(comparison.agreements()) {
        let _ = writeln!(text, "{summary}\n");
    }
    for case in &comparison.cases {
        self::case(&mut text, case);
    }
    text
}

/// How a case was measured, in words.
pub fn conditions_of(case: &CaseReport) -> String {
    let arrival = || case.case.arrival.as_deref().unwrap_or("Poisson");
    let loop_text = match (case.case.rate, case.case.rate_share, &case.case.rate_of) {
        (Some(rate), ..) => format!("open loop, {}, {}/s", arrival(), thousands(rate)),
        (None, Some(share), Some(of)) => {
            format!(
                "open loop, {}, at {share} × what each target reached in \"{of}\" of the same round",
                arrival()
            )
        }
        _ => format!("closed loop, pipeline {}", case.case.pipeline),
    };
    format!(
        "{loop_text}, {} keys, {} B keys, {} B values. Medians over rounds [bootstrap 95 % interval] (smallest–largest); ratios are {} over the row's \
         target, paired by round, in the same way.",
        thousands(case.case.keys as f64),
        case.case.key_size,
        case.case.value_size,
        case.subject
    )
}

/// Of a case's table.
pub const COLUMNS: [&str; 14] = [
    "target",
    "driven by",
    "rounds",
    "throughput /s",
    "server CPU µs/request",
    "server / generator CPU",
    "saturated",
    "p50",
    "p99",
    "CPU ratio",
    "throughput ratio",
    "p99 ratio",
    "flagged",
    "generator's lateness p99",
];

/// A row of it.
pub fn row_cells(row: &Row) -> Vec<String> {
    let micros = |ns: f64| table::micros(Some(ns as u64));
    let nanos = |spread: &Option<Spread>| match spread {
        Some(spread) => format!("{}{}", micros(spread.median), spread.interval_text(micros)),
        None => "–".into(),
    };
    let share = |spread: &Option<Spread>| table::percent(spread.as_ref().map(|spread| spread.median));
    let ratio = |spread: &Option<Spread>, words: Option<&str>| match spread {
        Some(spread) => format!("{}: {}", spread.ratio_text(), words.unwrap_or_default()),
        None => "–".into(),
    };
    let throughput = &row.throughput_per_s;
    let rate = format!(
        "{}{} ({}–{})",
        thousands(throughput.median),
        throughput.interval_text(thousands),
        thousands(throughput.min),
        thousands(throughput.max)
    );
    vec![
        row.target.clone(),
        row.driven_by.clone(),
        row.rounds.to_string(),
        rate,
        row.server_us_per_request.as_ref().map_or("–".into(), Spread::text),
        format!("{} / {}", share(&row.server_share), share(&row.generator_share)),
        row.saturated.to_string(),
        nanos(&row.p50_ns),
        nanos(&row.p99_ns),
        ratio(&row.cpu_ratio, row.cpu_words),
        ratio(&row.throughput_ratio, row.throughput_words),
        ratio(&row.p99_ratio, row.p99_words),
        match (row.suspect, row.invalid) {
            (0, 0) => "–".into(),
            (suspect, 0) => format!("{suspect} suspect"),
            (suspect, invalid) => format!("{suspect} suspect, {invalid} invalid"),
        },
        nanos(&row.lateness_p99_ns),
    ]
}

/// Of the table of what a request costs.
pub const COST_COLUMNS: [&str; 6] = [
    "target",
    "cycles/request",
    "instructions/request",
    "instructions/cycle",
    "system calls/request",
    "memory",
];

/// A row of it. What cannot be counted on a machine is a dash, and a note says why.
pub fn cost_cells(row: &Row) -> Vec<String> {
    let median = |spread: &Option<Spread>| spread.as_ref().map(|spread| spread.median);
    let (cycles, instructions) =
        (median(&row.server_cycles_per_request), median(&row.server_instructions_per_request));
    let per_cycle = instructions.zip(cycles).filter(|(_, cycles)| *cycles > 0.0);
    vec![
        row.target.clone(),
        table::number(cycles, 1),
        table::number(instructions, 1),
        table::number(per_cycle.map(|(instructions, cycles)| instructions / cycles), 2),
        table::number(median(&row.server_syscalls_per_request), 3),
        median(&row.server_resident_bytes)
            .map_or("–".into(), |bytes| format!("{:.1} MiB", bytes / f64::from(1 << 20))),
    ]
}

fn put_table(text: &mut String, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = writeln!(text, "| {} |\n|---{}|", columns.join(" | "), "|---:".repeat(columns.len() - 1));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push('\n');
}

/// A figure aimed at, and what became of it.
pub fn goal(goal: &GoalReport) -> String {
    let outcome = match goal.met {
        Some(true) => "met",
        Some(false) => "**missed**",
        None => "not measured",
    };
    format!("{}: {} ({outcome})", goal.text, table::number(goal.measured, 3))
}

/// One case's tables and goals.
pub fn case(text: &mut String, case: &CaseReport) {
    let _ = writeln!(text, "## {}\n\n{}\n", case.case.name, conditions_of(case));
    put_table(text, &COLUMNS, case.rows.iter().map(row_cells));
    put_table(text, &COST_COLUMNS, case.rows.iter().map(cost_cells));
    for stages in &case.stages {
        server_stages(text, stages);
    }
    if !case.agreement.is_empty() {
        put_table(text, &agreement::COLUMNS, case.agreement.iter().map(Agreement::cells));
    }
    for line in case.tools.iter().cloned().chain(case.goals.iter().map(goal)) {
        let _ = writeln!(text, "- {line}");
    }
    if !case.tools.is_empty() || !case.goals.is_empty() {
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
pub fn shown(words: &[String]) -> String {
    let quoted = |word: &String| if word.is_empty() { "''".to_string() } else { word.clone() };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
