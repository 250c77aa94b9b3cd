//! `loadgen caching delay`: its flags, its rounds, and what it leaves on paper.

use super::delay::{Delay, DelayFigures, DelayPlan, Signed};
use super::{Common, Mode, SCHEMA, Server, grid};
use crate::cli::parse_duration;
use crate::compare::statistics::Spread;
use crate::report::plot::{self, Bar};
use crate::report::table::{align, thousands};
use crate::report::{Placement, html};
use crate::run::{EXIT_FAILED, failed};
use crate::system::Manifest;
use crate::worker::{self, Spin, WorkerOptions};
use clap::Args;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Flags of `caching delay`.
#[derive(Clone, Debug, Args)]
pub struct DelayArgs {
    /// Flags of both.
    #[command(flatten)]
    pub common: Common,
    /// Numbers of trackers.
    #[arg(long, value_delimiter = ',', default_value = "1,100", value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub trackers: Vec<u32>,
    /// Numbers of shards of the servers that have some.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub shards: Vec<u32>,
    /// Writes measured, one after the other.
    #[arg(long, short = 'n', default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub writes: u64,
    /// Between two of them.
    #[arg(long, default_value = "500us", value_parser = parse_duration, value_name = "TIME")]
    pub pause: Duration,
    /// Reads a second of each tracker's cache: an open loop, Poisson.
    #[arg(long, default_value_t = 1_000.0, value_name = "N", value_parser = crate::cli::parse_rate)]
    pub reads: f64,
}

/// A signed time in a few figures, in nanoseconds.
#[derive(Clone, Debug, Serialize)]
struct Times {
    samples: u64,
    negative: u64,
    p50_ns: Option<i64>,
    p90_ns: Option<i64>,
    p99_ns: Option<i64>,
    p999_ns: Option<i64>,
    max_ns: Option<i64>,
}

impl Times {
    fn of(signed: &Signed) -> Times {
        Times {
            samples: signed.len(),
            negative: signed.negative(),
            p50_ns: signed.at(0.5),
            p90_ns: signed.at(0.9),
            p99_ns: signed.at(0.99),
            p999_ns: signed.at(0.999),
            max_ns: signed.max(),
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    round: u32,
    target: String,
    shards: Option<u32>,
    trackers: u32,
    writes: u64,
    /// Invalidated − acknowledged, of every tracker; below zero: it knew before the writer did.
    since_acknowledged: Times,
    /// Invalidated − sent.
    since_sent: Times,
    /// The last tracker's invalidation − acknowledged, of every write.
    last_told: Times,
    /// Acknowledged − sent.
    acknowledged: Times,
    cache_reads: u64,
    stale_reads: u64,
    stale_age_max_ns: u64,
}

/// The same over all rounds.
#[derive(Clone, Debug, Serialize)]
struct Row {
    target: String,
    shards: Option<u32>,
    trackers: u32,
    rounds: usize,
    since_acknowledged_p50_ns: Option<Spread>,
    since_acknowledged_p99_ns: Option<Spread>,
    last_told_p50_ns: Option<Spread>,
    last_told_p99_ns: Option<Spread>,
    since_sent_p50_ns: Option<Spread>,
    since_sent_p99_ns: Option<Spread>,
    acknowledged_p50_ns: Option<Spread>,
    stale_share: Option<Spread>,
}

#[derive(Debug, Serialize)]
struct DelayReport {
    schema: &'static str,
    kind: &'static str,
    title: &'static str,
    manifest: Manifest,
    server_core: Option<usize>,
    generator_core: Option<usize>,
    tracking: Mode,
    value_bytes: u32,
    pause_ns: u64,
    cache_reads_per_s: f64,
    missing: Vec<String>,
    failed: Vec<String>,
    incomplete: Option<String>,
    rows: Vec<Row>,
    cells: Vec<Cell>,
}

/// `loadgen caching delay`; `Err` is wrong usage.
pub fn command(arguments: &DelayArgs, stop: &StopSignal) -> Result<ExitCode, String> {
    let common = &arguments.common;
    let placement = common.check()?;
    let password = common.password()?;
    let (servers, missing) = common.servers(&arguments.shards, placement)?;
    if let Err(error) = common.check_outputs() {
        return Ok(failed(&error));
    }
    missing.iter().for_each(|missing| eprintln!("missing: {missing}"));
    let manifest = Manifest::read();
    let (mut cells, mut failures, mut incomplete) = (Vec::new(), Vec::new(), None);
    'rounds: for round in 1..=common.rounds {
        for server in &servers {
            for trackers in &arguments.trackers {
                let measured = server.start(1).and_then(|serving| {
                    serving.fill(1, common.value_size as usize, password.as_deref())?;
                    measure(arguments, placement, password.as_deref(), &serving.address, *trackers, stop)
                        .map_err(|error| format!("{error}{}", serving.log_tail()))
                });
                match measured {
                    Ok((figures, interrupted)) => {
                        if figures.writes > 0 {
                            cells.push(cell(round, server, *trackers, &figures));
                        }
                        if interrupted {
                            incomplete =
                                Some("interrupted; what was measured until then is shown".to_string());
                            break 'rounds;
                        }
                    }
                    Err(error) => {
                        let error =
                            format!("round {round}, {}, {trackers} trackers: {error}", server.label());
                        eprintln!("loadgen: {error}");
                        failures.push(error);
                    }
                }
            }
        }
    }
    let report = DelayReport {
        schema: SCHEMA,
        kind: "delay",
        title: "From acknowledged write to invalidation",
        manifest,
        server_core: placement.server_core,
        generator_core: placement.generator_core,
        tracking: common.tracking,
        value_bytes: common.value_size,
        pause_ns: arguments.pause.as_nanos() as u64,
        cache_reads_per_s: arguments.reads,
        missing,
        failed: failures,
        incomplete,
        rows: rows(&cells, common.seed),
        cells,
    };
    print!("{}", text(&report));
    if let Err(error) = grid::write(common, &report, &page(&report)) {
        return Ok(failed(&error));
    }
    Ok(match &report.incomplete {
        Some(why) => failed(why),
        None if report.failed.is_empty() && !report.cells.is_empty() => ExitCode::SUCCESS,
        None => ExitCode::from(EXIT_FAILED),
    })
}

fn measure(
    arguments: &DelayArgs,
    placement: Placement,
    password: Option<&str>,
    target: &Target,
    trackers: u32,
    stop: &StopSignal,
) -> Result<(DelayFigures, bool), String> {
    let common = &arguments.common;
    let plan = DelayPlan {
        target: target.clone(),
        password: password.map(str::to_string),
        trackers: trackers as usize,
        mode: common.tracking,
        writes: arguments.writes,
        pause_ns: arguments.pause.as_nanos() as u64,
        reads_per_s: arguments.reads,
        value_bytes: common.value_size as usize,
        timeout_ns: common.timeout.as_nanos() as u64,
        seed: common.seed,
    };
    let mut options = WorkerOptions {
        io: common.io,
        pin: placement.generator_core,
        // On a core of its own nothing that arrives waits for it to wake up.
        spin: if placement.generator_core.is_some() { Spin::Always } else { Spin::Never },
        server_cpu: None,
        server_counters: None,
        server_is_embedded: false,
        others: Vec::new(),
    };
    let (progress, _nobody) = std::sync::mpsc::channel();
    let driven = std::thread::scope(|scope| {
        // A thread of its own: pinning it must not pin this one.
        let thread = scope.spawn(|| {
            let delay = Delay::new(plan);
            let connections = trackers as usize + 1;
            worker::drive(delay, connections, &mut options, &progress, stop, Instant::now(), &mut || {})
        });
        thread.join().expect("a panic has ended the process")
    });
    let (figures, failure, interrupted) =
        driven.map_err(|failure| failure.to_string())?.machine.into_figures();
    match failure {
        Some(failure) => Err(failure.to_string()),
        None => Ok((figures, interrupted)),
    }
}

fn cell(round: u32, server: &Server, trackers: u32, figures: &DelayFigures) -> Cell {
    Cell {
        round,
        target: server.name.clone(),
        shards: server.shards,
        trackers,
        writes: figures.writes,
        since_acknowledged: Times::of(&figures.since_acknowledged),
        since_sent: Times::of(&figures.since_sent),
        last_told: Times::of(&figures.last_told),
        acknowledged: Times::of(&figures.acknowledged),
        cache_reads: figures.reads,
        stale_reads: figures.stale_reads,
        stale_age_max_ns: figures.stale_age_max_ns,
    }
}

fn rows(cells: &[Cell], seed: u64) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for first in cells {
        let key = |target: &String, shards, trackers| (target.clone(), shards, trackers);
        let mine = key(&first.target, first.shards, first.trackers);
        if rows.iter().any(|row| key(&row.target, row.shards, row.trackers) == mine) {
            continue;
        }
        let same: Vec<&Cell> =
            cells.iter().filter(|one| key(&one.target, one.shards, one.trackers) == mine).collect();
        let spread = |pick: &dyn Fn(&Cell) -> Option<f64>| {
            Spread::of(&same.iter().filter_map(|one| pick(one)).collect::<Vec<_>>(), seed)
        };
        let ns = |ns: Option<i64>| ns.map(|ns| ns as f64);
        rows.push(Row {
            target: first.target.clone(),
            shards: first.shards,
            trackers: first.trackers,
            rounds: same.len(),
            since_acknowledged_p50_ns: spread(&|one| ns(one.since_acknowledged.p50_ns)),
            since_acknowledged_p99_ns: spread(&|one| ns(one.since_acknowledged.p99_ns)),
            last_told_p50_ns: spread(&|one| ns(one.last_told.p50_ns)),
            last_told_p99_ns: spread(&|one| ns(one.last_told.p99_ns)),
            since_sent_p50_ns: spread(&|one| ns(one.since_sent.p50_ns)),
            since_sent_p99_ns: spread(&|one| ns(one.since_sent.p99_ns)),
            acknowledged_p50_ns: spread(&|one| ns(one.acknowledged.p50_ns)),
            stale_share: spread(&|one| {
                (one.cache_reads > 0).then(|| one.stale_reads as f64 / one.cache_reads as f64)
            }),
        });
    }
    rows
}

const COLUMNS: [&str; 9] = [
    "",
    "trackers",
    "since acknowledged, p50",
    "p99",
    "the last one, p50",
    "p99",
    "since sent, p50",
    "p99",
    "stale reads",
];

fn row_cells(row: &Row) -> Vec<String> {
    let us = |spread: &Option<Spread>| {
        spread.as_ref().map_or("–".into(), |spread| format!("{:.1} µs", spread.median / 1e3))
    };
    vec![
        match row.shards {
            Some(count) if count > 1 => format!("{}, {count} shards", row.target),
            _ => row.target.clone(),
        },
        row.trackers.to_string(),
        us(&row.since_acknowledged_p50_ns),
        us(&row.since_acknowledged_p99_ns),
        us(&row.last_told_p50_ns),
        us(&row.last_told_p99_ns),
        us(&row.since_sent_p50_ns),
        us(&row.since_sent_p99_ns),
        row.stale_share.as_ref().map_or("–".into(), |share| format!("{:.4} %", share.median * 100.0)),
    ]
}

fn conditions(report: &DelayReport) -> String {
    let writes: u64 = report.cells.iter().map(|cell| cell.writes).max().unwrap_or(0);
    format!(
        "One key, {} writes one after the other, {} µs apart; tracking: {}. Since acknowledged: invalidated − acknowledged \
         (below zero: told before the writer knew). Each tracker reads its cache {} times a second (open loop, Poisson); stale: \
         the write was acknowledged and the tracker not told. Medians over rounds.",
        thousands(writes as f64),
        report.pause_ns / 1_000,
        if report.tracking == Mode::Bcast { "BCAST" } else { "by what was read" },
        thousands(report.cache_reads_per_s)
    )
}

fn text(report: &DelayReport) -> String {
    let mut table = vec![COLUMNS.map(str::to_string).to_vec()];
    table.extend(report.rows.iter().map(row_cells));
    let mut text = format!("{}\n  {}\n\n{}", report.title, conditions(report), align(&table));
    for failed in &report.failed {
        let _ = writeln!(text, "  failed: {failed}");
    }
    text
}

fn page(report: &DelayReport) -> String {
    let mut body = html::table(&COLUMNS, report.rows.iter().map(row_cells));
    body.push_str(&html::list(report.failed.iter().chain(&report.missing)));
    let bars = |pick: &dyn Fn(&Row) -> Option<f64>| {
        let bar = |(index, row): (usize, &Row)| {
            let value = pick(row);
            let text = value.map_or("–".into(), |ns| format!("{:.1} µs", ns / 1e3));
            Bar {
                name: format!("{}: {} trackers", row_cells(row)[0], row.trackers),
                value: value.map(|ns| ns.max(0.0)),
                text,
                colour: index,
            }
        };
        plot::bars(&report.rows.iter().enumerate().map(bar).collect::<Vec<_>>())
    };
    let median = |spread: &Option<Spread>| spread.as_ref().map(|spread| spread.median);
    let _ =
        write!(body, "<h2>Since the write was sent, p99</h2>{}", bars(&|row| median(&row.since_sent_p99_ns)));
    let _ = write!(
        body,
        "<h2>Since it was acknowledged, p99</h2>{}",
        bars(&|row| median(&row.since_acknowledged_p99_ns))
    );
    html::whole_page(report.title, &conditions(report), report.incomplete.as_deref(), &body, &report.manifest)
}
