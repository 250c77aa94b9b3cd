//! `loadgen caching grid`: workers against shards, with the local cache on and off.
//!
//! In every round each server is started fresh for each number of shards, and measured with every number of workers, the
//! cache on and off in turn. What is compared is paired within a round. A cell's figures are judged like a run's.

use super::pool::{Pool, PoolFigures, PoolPlan};
use super::truth::Truth;
use super::{Common, Mode, SCHEMA, Server};
use crate::cli::parse_duration;
use crate::client::Failure;
use crate::compare::statistics::Spread;
use crate::gate::Gate;
use crate::histogram::Summary;
use crate::report::plot::{self, Line};
use crate::report::table::{align, micros, number, percent, thousands};
use crate::report::{self, Placement, Saturated, html};
use crate::run::{EXIT_FAILED, failed};
use crate::system::{self, Manifest};
use crate::verdict::{self, Evidence, Reason, Verdict};
use crate::worker::{self, CpuUse, Driven, Spin, WorkerOptions};
use crate::workload::Share;
use crate::workload::keys::KeyDistribution;
use clap::Args;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries that all caches together may have: a gigabyte.
const ENTRIES_MAX: u64 = 1 << 27;

/// Flags of `caching grid`.
#[derive(Clone, Debug, Args)]
pub struct GridArgs {
    /// Flags of both.
    #[command(flatten)]
    pub common: Common,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "16,64,256,512", value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub workers: Vec<u32>,
    /// Numbers of shards of the servers that have some.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub shards: Vec<u32>,
    /// Keys.
    #[arg(long, short = 'r', default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub keys: u32,
    /// Which of them.
    #[arg(long, default_value = "zipf:0.99", value_name = "DISTRIBUTION")]
    pub key_distribution: KeyDistribution,
    /// Writes and reads in one cycle of a worker.
    #[arg(long, default_value = "1:1000", value_parser = crate::cli::parse_ratio, value_name = "SET:GET")]
    pub ratio: (u32, u32),
    /// Length of each measurement.
    #[arg(long, default_value = "3s", value_parser = parse_duration, value_name = "TIME")]
    pub duration: Duration,
    /// Discarded before each; caches fill in it.
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Duration,
    /// Threads that the workers are dealt to.
    #[arg(long, short = 't', default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    round: u32,
    target: String,
    shards: Option<u32>,
    workers: u32,
    cache: bool,
    window_s: f64,
    reads_per_s: Option<f64>,
    operations_per_s: Option<f64>,
    hit_rate: Option<f64>,
    server_share: Option<f64>,
    server_us_per_operation: Option<f64>,
    generator_share: Option<f64>,
    saturated: Saturated,
    foreign_share: Option<f64>,
    server_resident_bytes: Option<u64>,
    reads: u64,
    hits: u64,
    writes: u64,
    errors: u64,
    nulls: u64,
    wrong: u64,
    invalidations: u64,
    /// Of these: before the writer had its acknowledgement.
    told_before_acknowledged: u64,
    stale_reads: u64,
    /// For how long a value had been overwritten and acknowledged when it was read.
    stale_age: Summary,
    /// From a write's acknowledgement to the invalidation of a cache that held the key; before it counts as 0.
    invalidation: Summary,
    remote_reads: Summary,
    remote_writes: Summary,
    verdict: Verdict,
    reasons: Vec<Reason>,
}

/// A cell over all rounds.
#[derive(Clone, Debug, Serialize)]
struct Row {
    target: String,
    shards: Option<u32>,
    workers: u32,
    cache: bool,
    rounds: usize,
    reads_per_s: Option<Spread>,
    hit_rate: Option<Spread>,
    server_share: Option<Spread>,
    server_us_per_operation: Option<Spread>,
    invalidation_p50_ns: Option<Spread>,
    invalidation_p99_ns: Option<Spread>,
    stale_share: Option<Spread>,
    /// The most frequent answer.
    saturated: Saturated,
    suspect: usize,
    invalid: usize,
    /// Reads a second with the cache over those without, paired by round.
    reads_ratio: Option<Spread>,
    reads_words: Option<&'static str>,
    /// The server's CPU per operation with the cache over that without.
    cpu_ratio: Option<Spread>,
    cpu_words: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct GridReport {
    schema: &'static str,
    kind: &'static str,
    title: &'static str,
    manifest: Manifest,
    server_core: Option<usize>,
    generator_core: Option<usize>,
    generator_threads: u32,
    /// It is no open loop: a worker does one thing after the other.
    #[serde(rename = "loop")]
    loop_text: &'static str,
    tracking: Mode,
    keys: u32,
    key_distribution: KeyDistribution,
    value_bytes: u32,
    sets: u32,
    gets: u32,
    missing: Vec<String>,
    failed: Vec<String>,
    incomplete: Option<String>,
    rows: Vec<Row>,
    cells: Vec<Cell>,
}

/// `loadgen caching grid`; `Err` is wrong usage.
pub fn command(arguments: &GridArgs, stop: &StopSignal) -> Result<ExitCode, String> {
    let common = &arguments.common;
    let placement = common.check()?;
    if arguments.ratio.1 == 0 || arguments.duration.is_zero() {
        return Err("--ratio needs reads, and --duration must be more than nothing".into());
    }
    let most = arguments.workers.iter().copied().max().unwrap_or(0);
    if u64::from(most) * u64::from(arguments.keys) > ENTRIES_MAX {
        return Err(format!(
            "--workers {most} times --keys {} are more entries than the {ENTRIES_MAX} there is room for",
            arguments.keys
        ));
    }
    if let Some(few) = arguments.workers.iter().find(|count| **count < arguments.threads) {
        return Err(format!("--workers {few}: each of --threads {} needs one", arguments.threads));
    }
    crate::workload::keys::KeyChoice::new(arguments.key_distribution, u64::from(arguments.keys))?;
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
            let serving = match server.start(arguments.keys) {
                Ok(serving) => serving,
                Err(error) => {
                    failures.push(format!("round {round}, {}: {error}", server.label()));
                    continue;
                }
            };
            for workers in &arguments.workers {
                // Which one is first takes turns, too.
                for cache in if round % 2 == 1 { [true, false] } else { [false, true] } {
                    let bench = Bench { arguments, placement, password: password.as_deref(), stop };
                    let filled =
                        serving.fill(arguments.keys, common.value_size as usize, password.as_deref());
                    let measured =
                        filled.and_then(|()| bench.measure(&serving.address, serving.pid, *workers, cache));
                    match measured {
                        // Cut short: it is not among what was measured.
                        Ok(measured) if measured.interrupted => {}
                        Err(_) if stop.is_requested() => {}
                        Ok(measured) => {
                            let cell = cell(round, server, *workers, cache, measured);
                            tell(&cell, common.rounds);
                            cells.push(cell);
                        }
                        Err(error) => {
                            let what =
                                format!("{}, {workers} workers, cache {}", server.label(), word(cache));
                            let error = format!("round {round}, {what}: {error}{}", serving.log_tail());
                            eprintln!("loadgen: {error}");
                            failures.push(error);
                        }
                    }
                    if stop.is_requested() {
                        incomplete = Some("interrupted; what was measured until then is shown".to_string());
                        break 'rounds;
                    }
                }
            }
        }
    }
    let report = GridReport {
        schema: SCHEMA,
        kind: "grid",
        title: "Local caches kept true by tracking",
        manifest,
        server_core: placement.server_core,
        generator_core: placement.generator_core,
        generator_threads: arguments.threads,
        loop_text: "closed loop: a worker does one thing after the other",
        tracking: common.tracking,
        keys: arguments.keys,
        key_distribution: arguments.key_distribution,
        value_bytes: common.value_size,
        sets: arguments.ratio.0,
        gets: arguments.ratio.1,
        missing,
        failed: failures,
        incomplete,
        rows: rows(&cells, common.seed),
        cells,
    };
    print!("{}", text(&report));
    Ok(finish(
        common,
        &report,
        &page(&report),
        report.incomplete.is_none() && report.failed.is_empty(),
        &report.cells,
    ))
}

fn finish(common: &Common, report: &GridReport, page: &str, whole: bool, cells: &[Cell]) -> ExitCode {
    if let Err(error) = write(common, report, page) {
        return failed(&error);
    }
    if let Some(why) = &report.incomplete {
        return failed(why);
    }
    let invalid = cells.iter().any(|cell| cell.verdict == Verdict::Invalid);
    if whole && !invalid && !cells.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

/// Writes what the flags ask for.
pub fn write(common: &Common, report: &impl Serialize, page: &str) -> Result<(), String> {
    let json = common.json.as_ref().map_or(Ok(()), |path| report::write_json(report, path));
    let html = common.html.as_ref().map_or(Ok(()), |path| report::write(path, page.as_bytes()));
    json.and(html)
}

struct Bench<'a> {
    arguments: &'a GridArgs,
    placement: Placement,
    password: Option<&'a str>,
    stop: &'a StopSignal,
}

struct Measured {
    figures: PoolFigures,
    cpu: CpuUse,
    resident_bytes: Option<u64>,
    interrupted: bool,
}

impl Bench<'_> {
    fn measure(
        &self,
        target: &Target,
        pid: Option<u32>,
        workers: u32,
        cache: bool,
    ) -> Result<Measured, String> {
        let (arguments, threads) = (self.arguments, self.arguments.threads as usize);
        let truth = Arc::new(Truth::new(arguments.keys as usize));
        let gate = Arc::new(Gate::new(threads));
        let epoch = Instant::now();
        let part = |index: usize| {
            let plan = PoolPlan {
                target: target.clone(),
                password: self.password.map(str::to_string),
                workers: workers as usize / threads + usize::from(index < workers as usize % threads),
                mode: if cache { arguments.common.tracking } else { Mode::Off },
                sets: arguments.ratio.0,
                gets: arguments.ratio.1,
                keys: arguments.keys,
                distribution: arguments.key_distribution,
                value_bytes: arguments.common.value_size as usize,
                warmup_ns: arguments.warmup.as_nanos() as u64,
                duration_ns: arguments.duration.as_nanos() as u64,
                timeout_ns: arguments.common.timeout.as_nanos() as u64,
                seed: arguments.common.seed,
                share: Share { index, of: threads },
            };
            let mut options = WorkerOptions {
                io: arguments.common.io,
                pin: self.placement.generator_core.filter(|_| threads == 1),
                spin: Spin::Never,
                server_cpu: None,
                server_counters: None,
                server_is_embedded: false,
                others: Vec::new(),
            };
            if let (0, Some(pid)) = (index, pid) {
                options.server_cpu = Some(Box::new(move || system::process_cpu_ns(pid)));
            }
            let (progress, _nobody) = std::sync::mpsc::channel();
            let connections = plan.workers;
            let pool = Pool::new(plan, Arc::clone(&truth), Arc::clone(&gate))?;
            worker::drive(pool, connections, &mut options, &progress, self.stop, epoch, &mut || {})
        };
        let driven: Vec<Result<Driven<Pool>, Failure>> = std::thread::scope(|scope| {
            let part = &part;
            let threads: Vec<_> = (0..threads)
                .map(|index| {
                    let gate = Arc::clone(&gate);
                    scope.spawn(move || part(index).inspect_err(|_| gate.give_up()))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic has ended the process")).collect()
        });
        let mut all: Option<Measured> = None;
        for one in driven {
            let Driven { machine, cpu, .. } = one.map_err(|failure| failure.to_string())?;
            let (figures, failure, interrupted) = machine.into_figures();
            if let Some(failure) = failure {
                return Err(failure.to_string());
            }
            match &mut all {
                None => all = Some(Measured { figures, cpu, resident_bytes: None, interrupted }),
                Some(sum) => {
                    sum.figures.merge(figures);
                    sum.interrupted |= interrupted;
                    sum.cpu.generator_ns += cpu.generator_ns;
                    sum.cpu.busiest_ns = sum.cpu.busiest_ns.max(cpu.busiest_ns);
                }
            }
        }
        let mut all = all.expect("there is at least one thread");
        all.resident_bytes = pid.and_then(system::process_resident_bytes);
        Ok(all)
    }
}

fn cell(round: u32, server: &Server, workers: u32, cache: bool, measured: Measured) -> Cell {
    let Measured { figures, cpu, resident_bytes, .. } = measured;
    let window_s = figures.window_ns as f64 / 1e9;
    let per_second = |count: u64| (window_s > 0.0).then(|| count as f64 / window_s);
    let share = |ns: u64| (cpu.wall_ns > 0).then(|| ns as f64 / cpu.wall_ns as f64);
    let operations = figures.reads + figures.writes;
    let server_share = cpu.server_ns.and_then(share);
    let evidence = Evidence {
        samples: operations,
        completed: operations,
        offered: operations,
        errors: figures.errors,
        first_error: figures.first_error.clone(),
        nulls: figures.nulls,
        wrong: figures.wrong,
        first_wrong: figures.first_wrong.clone(),
        foreign_share: cpu.foreign_ns.and_then(share),
        steal_share: cpu.steal_ns.and_then(share),
        debug_build: cfg!(debug_assertions),
        ..Evidence::default()
    };
    let (verdict, reasons) = verdict::judge(&evidence);
    Cell {
        round,
        target: server.name.clone(),
        shards: server.shards,
        workers,
        cache,
        window_s,
        reads_per_s: per_second(figures.reads),
        operations_per_s: per_second(operations),
        hit_rate: (figures.reads > 0).then(|| figures.hits as f64 / figures.reads as f64),
        server_share,
        server_us_per_operation: cpu
            .server_ns
            .filter(|_| operations > 0)
            .map(|ns| ns as f64 / 1e3 / operations as f64),
        generator_share: share(cpu.generator_ns),
        saturated: Saturated::of(share(cpu.busiest_ns), server_share),
        foreign_share: cpu.foreign_ns.and_then(share),
        server_resident_bytes: resident_bytes,
        reads: figures.reads,
        hits: figures.hits,
        writes: figures.writes,
        errors: figures.errors,
        nulls: figures.nulls,
        wrong: figures.wrong,
        invalidations: figures.invalidations,
        told_before_acknowledged: figures.early,
        stale_reads: figures.stale_reads,
        stale_age: Summary::of(&figures.stale_age),
        invalidation: Summary::of(&figures.window),
        remote_reads: Summary::of(&figures.remote_reads),
        remote_writes: Summary::of(&figures.remote_writes),
        verdict,
        reasons,
    }
}

fn word(cache: bool) -> &'static str {
    if cache { "on" } else { "off" }
}

fn tell(cell: &Cell, rounds: u32) {
    eprintln!(
        "round {}/{rounds} {:<12} {:>3} shards {:>5} workers, cache {:<3} {:>12} reads/s  hit rate {:>5}  server {} of a core{}",
        cell.round,
        cell.target,
        cell.shards.map_or("?".into(), |count| count.to_string()),
        cell.workers,
        word(cell.cache),
        cell.reads_per_s.map_or("–".into(), thousands),
        percent(cell.hit_rate),
        percent(cell.server_share),
        match cell.verdict {
            Verdict::Valid => String::new(),
            verdict => format!(
                "  {verdict}: {}",
                cell.reasons.iter().map(|one| one.text.as_str()).collect::<Vec<_>>().join("; ")
            ),
        }
    );
}

/// A figure of a cell.
type Pick<'a> = &'a dyn Fn(&Cell) -> Option<f64>;

/// Medians over rounds, and ratios of on over off.
fn rows(cells: &[Cell], seed: u64) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for first in cells {
        let same = |one: &&Cell| {
            (&one.target, one.shards, one.workers) == (&first.target, first.shards, first.workers)
        };
        let mine: Vec<&Cell> = cells.iter().filter(same).filter(|one| one.cache == first.cache).collect();
        if rows.iter().any(|row| {
            (&row.target, row.shards, row.workers, row.cache)
                == (&first.target, first.shards, first.workers, first.cache)
        }) {
            continue;
        }
        let others: Vec<&Cell> = cells.iter().filter(same).filter(|one| one.cache != first.cache).collect();
        let spread = |pick: &dyn Fn(&Cell) -> Option<f64>| {
            Spread::of(&mine.iter().filter_map(|one| pick(one)).collect::<Vec<_>>(), seed)
        };
        let ratio = |pick: &dyn Fn(&Cell) -> Option<f64>| {
            let pair = |one: &&&Cell| {
                let other = others.iter().find(|other| other.round == one.round)?;
                Some(pick(one)? / pick(other).filter(|value| *value > 0.0)?)
            };
            let values: Vec<f64> = mine.iter().filter(|one| one.cache).filter_map(|one| pair(&one)).collect();
            Spread::of(&values, seed)
        };
        let (reads, cpu): (Pick<'_>, Pick<'_>) = (&|one| one.reads_per_s, &|one| one.server_us_per_operation);
        let at = |quantile: f64| move |one: &Cell| one.invalidation.at(quantile).map(|ns| ns as f64);
        let all = [
            Saturated::Server,
            Saturated::Generator,
            Saturated::Both,
            Saturated::Neither,
            Saturated::Unknown,
        ];
        let graded = |grade| mine.iter().filter(|one| one.verdict == grade).count();
        let (reads_ratio, cpu_ratio) = (ratio(reads), ratio(cpu));
        rows.push(Row {
            target: first.target.clone(),
            shards: first.shards,
            workers: first.workers,
            cache: first.cache,
            rounds: mine.len(),
            reads_per_s: spread(reads),
            hit_rate: spread(&|one| one.hit_rate),
            server_share: spread(&|one| one.server_share),
            server_us_per_operation: spread(cpu),
            invalidation_p50_ns: spread(&at(0.5)),
            invalidation_p99_ns: spread(&at(0.99)),
            stale_share: spread(&|one| (one.reads > 0).then(|| one.stale_reads as f64 / one.reads as f64)),
            saturated: all
                .into_iter()
                .max_by_key(|kind| mine.iter().filter(|one| one.saturated == *kind).count())
                .expect("the list is not empty"),
            suspect: graded(Verdict::Suspect),
            invalid: graded(Verdict::Invalid),
            reads_words: reads_ratio.as_ref().map(|ratio| ratio.words("slower", "faster")),
            reads_ratio,
            cpu_words: cpu_ratio.as_ref().map(|ratio| ratio.words("less CPU", "more CPU")),
            cpu_ratio,
        });
    }
    rows
}

const COLUMNS: [&str; 11] = [
    "",
    "workers",
    "cache",
    "reads/s",
    "hit rate",
    "server CPU",
    "µs/operation",
    "saturated",
    "invalidated p50",
    "p99",
    "stale reads",
];

fn label(target: &str, shards: Option<u32>) -> String {
    match shards {
        Some(1) => format!("{target}, 1 shard"),
        Some(count) => format!("{target}, {count} shards"),
        None => target.into(),
    }
}

fn row_cells(row: &Row) -> Vec<String> {
    let median = |spread: &Option<Spread>| spread.as_ref().map(|spread| spread.median);
    let nanos = |spread: &Option<Spread>| micros(median(spread).map(|ns| ns as u64));
    vec![
        label(&row.target, row.shards),
        row.workers.to_string(),
        word(row.cache).into(),
        median(&row.reads_per_s).map_or("–".into(), thousands),
        percent(median(&row.hit_rate)),
        percent(median(&row.server_share)),
        number(median(&row.server_us_per_operation), 3),
        row.saturated.to_string(),
        nanos(&row.invalidation_p50_ns),
        nanos(&row.invalidation_p99_ns),
        match median(&row.stale_share).filter(|_| row.cache) {
            Some(share) => format!("{:.4} %", share * 100.0),
            None => "–".into(),
        },
    ]
}

/// What the pairs say, a line each.
fn pairs(rows: &[Row]) -> Vec<String> {
    let said = |row: &Row| {
        let (ratio, words) = (row.reads_ratio.as_ref()?, row.reads_words?);
        let cpu = match (&row.cpu_ratio, row.cpu_words) {
            (Some(cpu), Some(words)) => format!("; server CPU per operation × {}: {words}", cpu.ratio_text()),
            _ => String::new(),
        };
        Some(format!(
            "{}, {} workers: reads with the cache over without × {}: {words}{cpu}",
            label(&row.target, row.shards),
            row.workers,
            ratio.ratio_text()
        ))
    };
    rows.iter().filter_map(said).collect()
}

/// What everybody should know of these figures.
fn conditions(report: &GridReport) -> String {
    let core = |core: Option<usize>| core.map_or("no core of its own".into(), |core| format!("core {core}"));
    format!(
        "{}; {} writes to {} reads, {} keys, {}, {} B values; servers from {} on, generator on {} ({} thread{}). Medians over \
         rounds. A hit here is a look into a table; in a client it takes what its language makes of it.",
        report.loop_text,
        report.sets,
        report.gets,
        thousands(f64::from(report.keys)),
        report.key_distribution,
        report.value_bytes,
        core(report.server_core),
        core(report.generator_core),
        report.generator_threads,
        if report.generator_threads == 1 { "" } else { "s" }
    )
}

fn text(report: &GridReport) -> String {
    let mut table = vec![COLUMNS.map(str::to_string).to_vec()];
    table.extend(report.rows.iter().map(row_cells));
    let mut text = format!("{}\n  {}\n\n{}\n", report.title, conditions(report), align(&table));
    for line in pairs(&report.rows) {
        let _ = writeln!(text, "  {line}");
    }
    for failed in &report.failed {
        let _ = writeln!(text, "  failed: {failed}");
    }
    text
}

fn page(report: &GridReport) -> String {
    let mut body = html::table(&COLUMNS, report.rows.iter().map(row_cells));
    body.push_str(&html::list(pairs(&report.rows).iter().chain(&report.failed).chain(&report.missing)));
    let lines = |pick: &dyn Fn(&Row) -> Option<f64>, caches: &[bool]| -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for row in report.rows.iter().filter(|row| caches.contains(&row.cache)) {
            let name = format!("{}, cache {}", label(&row.target, row.shards), word(row.cache));
            let Some(value) = pick(row) else { continue };
            let point = (f64::from(row.workers), value);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
        lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        lines
    };
    let median = |spread: &Option<Spread>| spread.as_ref().map(|spread| spread.median);
    let both = [true, false];
    for (title, lines, label) in [
        ("Reads a second", lines(&|row| median(&row.reads_per_s), &both), "workers; reads a second"),
        (
            "Server CPU per operation",
            lines(&|row| median(&row.server_us_per_operation), &both),
            "workers; µs",
        ),
        (
            "Server CPU",
            lines(&|row| median(&row.server_share).map(|share| share * 100.0), &both),
            "workers; % of a core",
        ),
        (
            "Hit rate",
            lines(&|row| median(&row.hit_rate).map(|share| share * 100.0), &[true]),
            "workers; % of reads",
        ),
        (
            "From acknowledged write to invalidation, p99",
            lines(&|row| median(&row.invalidation_p99_ns).map(|ns| ns / 1e3), &[true]),
            "workers; µs",
        ),
    ] {
        let _ = write!(body, "<h2>{title}</h2>{}", plot::lines(&lines, label));
    }
    html::whole_page(report.title, &conditions(report), report.incomplete.as_deref(), &body, &report.manifest)
}
