//! `loadgen calibrate`: whether the instrument reports what was done to it.
//!
//! An embedded server delays, stalls and answers in bursts as it is told to, and writes down what it did
//! ([`server`]). Each figure that a run reports is held against the same figure computed from that record: the two
//! are about the same requests, so they differ by nothing but the way between the two sides and the histogram's
//! precision. What the server can say of its own moments is a span, from the shortest time they allow to the longest, some
//! microseconds apart: a report is held against both ends. A report below the truth is a mistake of this tool, whatever the machine did; one above it may be the
//! machine's, so such a case is repeated, and the best of the attempts counts.
//!
//! The truth about an open loop is counted from the moments drawn, which follow from the seed alone, to the moments at
//! which the server let the replies go. A server that is stopped (SIGSTOP) cannot write anything down: there the
//! truth is the time between the two signals.

mod claims;
mod paced;
pub mod server;

use crate::client::{Load, Plan, Stop};
use crate::report::{self, table};
use crate::run::{EXIT_FAILED, failed};
use crate::schedule::{Arrival, Schedule};
use crate::system::{self, Manifest};
use crate::worker::{self, Io, Spin, Worked, WorkerOptions};
use crate::workload::WorkloadOptions;
use clap::Args;
use hdrhistogram::Histogram;
use reactor::cpu;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use serde::Serialize;
use server::{Behaviour, Calibrator, Truth};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What transport and waking may add.
const TRANSPORT_NS: u64 = 20_000;
/// Three significant digits.
const PRECISION: f64 = 0.001;
/// Name and version of the JSON schema.
pub const SCHEMA: &str = "millrace-loadgen-calibration-1";

/// Flags of `calibrate`.
#[derive(Clone, Debug, Args)]
pub struct CalibrateArgs {
    /// How often a case is tried whose figures are too high: what others do on this machine can only add.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    pub attempts: u32,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// The generator's driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the outcome as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Serve at this socket until the standard input ends: the process that is stopped.
    #[arg(long, value_name = "PATH", hide = true)]
    pub serve: Option<PathBuf>,
    /// Measure nothing: be a server that answers each request after this time, RESP at --port and HTTP at --http-port. It is
    /// what `compare --tools` holds load generators against each other with.
    #[arg(long, value_name = "TIME", value_parser = crate::cli::parse_duration, requires = "port", requires = "http_port")]
    pub paced: Option<Duration>,
    /// Port of --paced for RESP.
    #[arg(long, value_name = "PORT", requires = "paced")]
    pub port: Option<u16>,
    /// Port of --paced for HTTP.
    #[arg(long, value_name = "PORT", requires = "paced")]
    pub http_port: Option<u16>,
}

/// One figure beside its truth.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    case: &'static str,
    #[serde(rename = "loop")]
    loop_text: &'static str,
    figure: String,
    /// The shortest that the server's own stamps allow, and the longest.
    truth_ns: u64,
    truth_ns_max: u64,
    reported_ns: u64,
    agreement: Agreement,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Agreement {
    /// Within precision and transport.
    Agrees,
    /// More than that above the truth.
    TooHigh,
    /// Below the truth: time was not counted.
    TooLow,
}

impl Agreement {
    fn of((shortest_ns, longest_ns): (u64, u64), reported_ns: u64) -> Agreement {
        let precision_ns = |truth_ns: u64| (truth_ns as f64 * PRECISION).ceil() as u64;
        if reported_ns + precision_ns(shortest_ns) < shortest_ns {
            Agreement::TooLow
        } else if reported_ns > longest_ns + precision_ns(longest_ns) + TRANSPORT_NS {
            Agreement::TooHigh
        } else {
            Agreement::Agrees
        }
    }
}

/// A case's best attempt.
#[derive(Clone, Debug, Serialize)]
struct CaseReport {
    name: &'static str,
    rows: Vec<Row>,
    /// What must hold beside the figures, and whether it does.
    claims: Vec<(String, bool)>,
    attempts: u32,
    /// How long the server's own thread could not run during the attempt.
    held_up_ns: u64,
    /// CPU that other programs used meanwhile, as a share of one core.
    foreign_share: Option<f64>,
}

impl CaseReport {
    fn worst(&self) -> Agreement {
        self.rows.iter().map(|row| row.agreement).max().unwrap_or(Agreement::Agrees)
    }

    fn claims_hold(&self) -> bool {
        self.claims.iter().all(|(_, holds)| *holds)
    }

    fn agrees(&self) -> bool {
        self.worst() == Agreement::Agrees && self.claims_hold()
    }

    /// How far above the truth all rows are together, to choose among attempts.
    fn excess_ns(&self) -> u64 {
        self.rows.iter().map(|row| row.reported_ns.saturating_sub(row.truth_ns_max)).sum()
    }
}

/// All of it.
#[derive(Debug, Serialize)]
struct Calibration {
    schema: &'static str,
    manifest: Manifest,
    generator_io: Io,
    generator_core: Option<usize>,
    server_core: Option<usize>,
    precision: f64,
    transport_ns_max: u64,
    agrees: bool,
    /// Why not all cases were carried out.
    incomplete: Option<String>,
    cases: Vec<CaseReport>,
}

/// What is done, by name.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// A server, and the loops that measure it.
    Injected { behaviour: Behaviour, runs: &'static [Load1] },
    /// The contrast of the two loops.
    Contrast,
    /// A process that is stopped for a while.
    Stopped,
}

/// A load that fits into a constant.
#[derive(Clone, Copy, Debug)]
enum Load1 {
    Closed { requests: u64 },
    Constant { rate: f64, requests: u64 },
    Poisson { rate: f64, requests: u64 },
}

const STALL_EVERY: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_millis(100);
/// How long the process is stopped.
const STOPPED: Duration = Duration::from_millis(500);
/// After how long.
const STOPPED_AFTER: Duration = Duration::from_millis(300);

const CASES: [(&str, Case); 5] = [
    (
        "answers after 1 ms",
        Case::Injected {
            behaviour: Behaviour::Delay(Duration::from_millis(1)),
            runs: &[
                Load1::Closed { requests: 1_000 },
                Load1::Constant { rate: 500.0, requests: 1_000 },
                Load1::Poisson { rate: 600.0, requests: 1_200 },
            ],
        },
    ),
    (
        "answers after 50 µs",
        Case::Injected {
            behaviour: Behaviour::Delay(Duration::from_micros(50)),
            runs: &[Load1::Closed { requests: 5_000 }, Load1::Poisson { rate: 5_000.0, requests: 5_000 }],
        },
    ),
    (
        "lets replies go every 5 ms",
        Case::Injected {
            behaviour: Behaviour::Burst { every: Duration::from_millis(5) },
            runs: &[Load1::Poisson { rate: 2_000.0, requests: 3_000 }],
        },
    ),
    ("stalls for 100 ms every second", Case::Contrast),
    ("is stopped for 500 ms", Case::Stopped),
];

/// `loadgen calibrate`.
pub fn command(arguments: &CalibrateArgs, stop: &StopSignal) -> ExitCode {
    if let Some(path) = &arguments.serve {
        return serve_until_the_input_ends(path);
    }
    if let (Some(delay), Some(port), Some(http_port)) = (arguments.paced, arguments.port, arguments.http_port)
    {
        return paced::serve(delay, port, http_port);
    }
    if let Some(error) = arguments.json.as_ref().and_then(|path| report::check_writable(path).err()) {
        return failed(&error);
    }
    let allowed = cpu::allowed_cores();
    let cores = match allowed[..] {
        [server, generator, ..] => (Some(server), Some(generator)),
        _ => (None, None),
    };
    if cores.0.is_none() {
        eprintln!("Both sides share one core here: figures will be too high by whole time slices.");
    }
    let bench = Bench { arguments, server_core: cores.0, generator_core: cores.1, stop };
    let manifest = Manifest::read();
    let mut cases = Vec::new();
    let mut incomplete = None;
    for (name, case) in CASES {
        if arguments.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        match bench.best_of(name, case) {
            Ok(report) => {
                print!("{}", text(&report));
                cases.push(report);
            }
            Err(error) => {
                incomplete = Some(format!("{name}: {error}"));
                break;
            }
        }
    }
    if cases.is_empty() && incomplete.is_none() {
        return crate::run::usage("no case is left; see --only");
    }
    let agrees = incomplete.is_none() && cases.iter().all(CaseReport::agrees);
    let calibration = Calibration {
        schema: SCHEMA,
        manifest,
        generator_io: arguments.io,
        generator_core: cores.1,
        server_core: cores.0,
        precision: PRECISION,
        transport_ns_max: TRANSPORT_NS,
        agrees,
        incomplete,
        cases,
    };
    if let Some(path) = &arguments.json
        && let Err(error) = report::write_json(&calibration, path)
    {
        return failed(&error);
    }
    if let Some(why) = &calibration.incomplete {
        return failed(why);
    }
    let too_low = calibration.cases.iter().any(|case| case.worst() == Agreement::TooLow);
    println!(
        "{}",
        match (agrees, too_low) {
            (true, _) => "Every figure agrees with what was done.",
            (_, true) =>
                "A figure is below what was done: time was not counted. This is a bug; please report it.",
            (false, false) => {
                "A figure is above what was done: either the machine was busy (see the time held up), or transport \
                 and waking cost more than 20 µs here. Free two cores and repeat."
            }
        }
    );
    if agrees { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

/// Where cases are carried out.
struct Bench<'a> {
    arguments: &'a CalibrateArgs,
    server_core: Option<usize>,
    generator_core: Option<usize>,
    stop: &'a StopSignal,
}

impl Bench<'_> {
    fn best_of(&self, name: &'static str, case: Case) -> Result<CaseReport, String> {
        let mut best: Option<CaseReport> = None;
        for attempt in 1..=self.arguments.attempts {
            let before = noise();
            let attempted = match case {
                Case::Injected { behaviour, runs } => self.injected(name, behaviour, runs),
                Case::Contrast => self.contrast(name),
                Case::Stopped => self.stopped(name),
            };
            // Half an attempt is held against a truth of which the other half is missing.
            if self.stop.is_requested() {
                return Err("interrupted; the cases that were whole are shown".into());
            }
            let mut report = attempted?;
            report.attempts = attempt;
            report.foreign_share = before.zip(noise()).map(|((foreign, at), (foreign_after, after))| {
                foreign_after.saturating_sub(foreign) as f64 / (after - at).as_nanos() as f64
            });
            // A figure below the truth is not excused by a better attempt.
            let over = report.agrees() || report.worst() == Agreement::TooLow;
            if over || claims::is_better(&report, best.as_ref()) {
                best = Some(report);
            }
            if over {
                break;
            }
        }
        Ok(best.expect("there is at least one attempt"))
    }

    fn injected(
        &self,
        name: &'static str,
        behaviour: Behaviour,
        runs: &[Load1],
    ) -> Result<CaseReport, String> {
        let mut report = CaseReport {
            name,
            rows: vec![],
            claims: vec![],
            attempts: 0,
            held_up_ns: 0,
            foreign_share: None,
        };
        for load in runs {
            let (worked, truth) = self.measure(behaviour, *load)?;
            report.held_up_ns += truth.held_up_ns;
            report.rows.extend(self.rows(name, *load, &worked, &truth)?);
        }
        Ok(report)
    }

    fn contrast(&self, name: &'static str) -> Result<CaseReport, String> {
        let behaviour = Behaviour::Stall { every: STALL_EVERY, length: STALL };
        let mut report = CaseReport {
            name,
            rows: vec![],
            claims: vec![],
            attempts: 0,
            held_up_ns: 0,
            foreign_share: None,
        };
        let loads = [Load1::Constant { rate: 1_000.0, requests: 3_500 }, Load1::Closed { requests: 0 }];
        let (mut p99, mut longest) = ([0; 2], 0);
        for (index, load) in loads.into_iter().enumerate() {
            let (worked, truth) = self.measure(behaviour, load)?;
            report.held_up_ns += truth.held_up_ns;
            p99[index] = latency_of(load, &worked).value_at_quantile(0.99);
            if index == 0 {
                report.rows.extend(self.rows(name, load, &worked, &truth)?);
            } else {
                longest = worked.outcome.service.max();
            }
        }
        report.claims = claims::of_contrast(p99[0], p99[1], longest);
        Ok(report)
    }

    fn stopped(&self, name: &'static str) -> Result<CaseReport, String> {
        let folder = Folder::new()?;
        let path = folder.0.join("s");
        let mut child = Process::start(&path)?;
        child.wait_until_ready()?;
        let rate = 1_000.0;
        let load = Load1::Constant { rate, requests: 1_500 };
        let (worked, stopped_for) = std::thread::scope(|scope| {
            let pid = child.0.id();
            let signals = scope.spawn(move || {
                let begun = Instant::now();
                std::thread::sleep(STOPPED_AFTER);
                let sent = system::signal(pid, "STOP");
                // The signal is on its way when `kill` returns: a server that runs goes on until it has it.
                while sent && begun.elapsed() < STOPPED_AFTER + STOPPED && !system::is_stopped(pid) {
                    std::hint::spin_loop();
                }
                let stopped_at = Instant::now();
                std::thread::sleep(STOPPED);
                // The moment before the signal: what the process was certainly stopped for.
                let stopped_for = stopped_at.elapsed();
                (sent && system::signal(pid, "CONT")).then_some(stopped_for)
            });
            let worked = self.drive(&path, load);
            (worked, signals.join().expect("the thread does not panic"))
        });
        let worked = worked?;
        let stopped_for = stopped_for.ok_or("the server process cannot be stopped: `kill` failed")?;
        let offered = worked.outcome.counts.offered;
        let claims = claims::of_stop(stopped_for.as_nanos() as u64, rate, &worked.outcome.response, offered);
        Ok(CaseReport { name, rows: vec![], claims, attempts: 0, held_up_ns: 0, foreign_share: None })
    }

    /// Carries a load out against a server in this process.
    fn measure(&self, behaviour: Behaviour, load: Load1) -> Result<(Worked, Truth), String> {
        let folder = Folder::new()?;
        let path = folder.0.join("s");
        let server = Calibrator::start(&path, behaviour, self.server_core)?;
        let worked = self.drive(&path, load);
        let truth = server.stop();
        Ok((worked?, truth))
    }

    fn drive(&self, path: &Path, load: Load1) -> Result<Worked, String> {
        let plan = plan(path, load, self.arguments.seed);
        let options = WorkerOptions {
            io: self.arguments.io,
            pin: self.generator_core,
            spin: if self.generator_core.is_some() { Spin::Always } else { Spin::Never },
            server_cpu: None,
            server_counters: None,
            server_is_embedded: true,
            others: Vec::new(),
        };
        let (progress, _nobody) = std::sync::mpsc::channel();
        let worked = std::thread::scope(|scope| {
            // A thread of its own: pinning it must not pin this one.
            let worker =
                scope.spawn(|| worker::work(plan, options, &progress, self.stop, Instant::now(), None));
            worker.join().expect("a panic of the worker has ended the process")
        });
        let worked = worked.map_err(|failure| failure.to_string())?;
        match &worked.outcome.failure {
            Some(failure) => Err(failure.to_string()),
            None => Ok(worked),
        }
    }

    /// Percentiles reported beside those of the truth.
    fn rows(
        &self,
        name: &'static str,
        load: Load1,
        worked: &Worked,
        truth: &Truth,
    ) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        let served = worked.outcome.service.len();
        if truth.served.len() as u64 != served {
            return Err(format!(
                "the server answered {} requests, {served} were recorded",
                truth.served.len()
            ));
        }
        let mut push = |figure: &str, reported: &Histogram<u64>, spans: Vec<(u64, u64)>| {
            // Every report lies between the ends of its span, so each percentile of theirs lies between those of the ends.
            let (mut truths, mut longest): (Vec<u64>, Vec<u64>) = spans.into_iter().unzip();
            truths.sort_unstable();
            longest.sort_unstable();
            for quantile in [0.5, 0.9, 0.99] {
                if !crate::histogram::enough_samples(truths.len() as u64, quantile) {
                    continue;
                }
                let truth_ns = at_quantile(&truths, quantile);
                let truth_ns_max = at_quantile(&longest, quantile);
                let reported_ns = reported.value_at_quantile(quantile);
                rows.push(Row {
                    case: name,
                    loop_text: load.text(),
                    figure: format!("{figure} {}", table::quantile_name(quantile)),
                    truth_ns,
                    truth_ns_max,
                    reported_ns,
                    agreement: Agreement::of((truth_ns, truth_ns_max), reported_ns),
                });
            }
        };
        if let Some((arrival, rate)) = load.open() {
            let began = worked.outcome.measure_began_ns.ok_or("it was over before it began")?;
            let zero = worked.epoch + Duration::from_nanos(began);
            let offset = zero.saturating_duration_since(truth.epoch).as_nanos() as u64;
            let mut schedule = Schedule::new(arrival, rate, self.arguments.seed);
            let mut drawn = || schedule.take_due(u64::MAX).expect("always due");
            // One connection: replies come in the order of the arrivals.
            let span = |one: &server::Served| {
                let intended_ns = offset + drawn();
                (one.replied_ns.saturating_sub(intended_ns), one.written_ns.saturating_sub(intended_ns))
            };
            push("response time", &worked.outcome.response, truth.served.iter().map(span).collect());
        } else {
            let span = |one: &server::Served| (one.replied_ns - one.read_ns, one.written_ns - one.looked_ns);
            push("service time", &worked.outcome.service, truth.served.iter().map(span).collect());
        }
        Ok(rows)
    }
}

impl Load1 {
    fn open(self) -> Option<(Arrival, f64)> {
        match self {
            Load1::Closed { .. } => None,
            Load1::Constant { rate, .. } => Some((Arrival::Constant, rate)),
            Load1::Poisson { rate, .. } => Some((Arrival::Poisson, rate)),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Load1::Closed { .. } => "closed loop",
            Load1::Constant { .. } => "open loop, constant",
            Load1::Poisson { .. } => "open loop, Poisson",
        }
    }

    fn stop(self) -> Stop {
        match self {
            // Three stalls and a half.
            Load1::Closed { requests: 0 } => Stop::After(3_500_000_000),
            Load1::Closed { requests }
            | Load1::Constant { requests, .. }
            | Load1::Poisson { requests, .. } => Stop::Requests(requests),
        }
    }
}

fn latency_of(load: Load1, worked: &Worked) -> &Histogram<u64> {
    if load.open().is_some() { &worked.outcome.response } else { &worked.outcome.service }
}

fn plan(path: &Path, load: Load1, seed: u64) -> Plan {
    Plan {
        target: Target::Unix(path.into()),
        workload: WorkloadOptions { sets: 0, gets: 1, keys: 1_000, seed, ..WorkloadOptions::default() },
        // Of one connection it is known which reply belongs to which arrival.
        connections: 1,
        load: match load.open() {
            Some((arrival, rate)) => Load::Open { rate, arrival },
            None => Load::Closed { pipeline: 1 },
        },
        prefill: false,
        warmup_ns: 0,
        warmup_is_tested: false,
        stop: load.stop(),
        drain_ns: 2_000_000_000,
        timeout_ns: 20_000_000_000,
        interval_ns: 1_000_000_000,
        connects_per_s: None,
        requests_per_connection: None,
    }
}

/// CPU time of everything but this process, and when that was.
fn noise() -> Option<(u64, Instant)> {
    let usage = cpu::process_usage();
    let ours = (usage.user + usage.system).as_nanos() as u64;
    Some((system::machine_times()?.busy_ns.saturating_sub(ours), Instant::now()))
}

/// The value whose rank is that of the quantile, as the histogram counts ranks.
fn at_quantile(sorted: &[u64], quantile: f64) -> u64 {
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn micros(ns: u64) -> String {
    table::micros(Some(ns))
}

fn text(report: &CaseReport) -> String {
    let title = format!("a server that {}", report.name);
    let mut rows =
        vec![[title.as_str(), "truth, from", "to", "reported", "above it", ""].map(str::to_string).to_vec()];
    for row in &report.rows {
        let above = claims::outside_ns(row.truth_ns, row.truth_ns_max, row.reported_ns);
        rows.push(vec![
            format!("  {}: {}", row.loop_text, row.figure),
            micros(row.truth_ns),
            micros(row.truth_ns_max),
            micros(row.reported_ns),
            format!("{:+.1} µs", above / 1e3),
            match row.agreement {
                Agreement::Agrees => "agrees",
                Agreement::TooHigh => "TOO HIGH",
                Agreement::TooLow => "TOO LOW",
            }
            .into(),
        ]);
    }
    let mut text = table::align(&rows);
    for (claim, holds) in &report.claims {
        text.push_str(&format!("    {}{claim}\n", if *holds { "" } else { "DOES NOT HOLD: " }));
    }
    let held_up = micros(report.held_up_ns);
    text.push_str(&format!(
        "    attempt {}; other programs used {} of a core, the server's own thread was held up for {held_up}\n\n",
        report.attempts,
        table::percent(report.foreign_share)
    ));
    text
}

/// A folder for a socket, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, String> {
        let made = crate::compare::peers::fresh_folder();
        made.map(Folder).map_err(|error| format!("no folder for a socket: {error}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The process that is stopped. It ends with its input, so it cannot outlive this one.
struct Process(Child);

impl Process {
    fn start(path: &Path) -> Result<Process, String> {
        let program =
            std::env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
        let mut command = Command::new(program);
        command.args(["calibrate", "--serve"]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
            .spawn()
            .map(Process)
            .map_err(|error| format!("cannot start the server to be stopped: {error}"))
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let mut line = String::new();
        let output = self.0.stdout.take().expect("it is a pipe");
        // It answers or ends; either ends this.
        let read = BufReader::new(output).read_line(&mut line);
        if read.is_ok() && line == "ready\n" {
            Ok(())
        } else {
            Err("the server to be stopped does not start".into())
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_until_the_input_ends(path: &Path) -> ExitCode {
    // Not pinned: it spins, and the system may put it where there is room.
    let server = match Calibrator::start(path, Behaviour::Delay(Duration::ZERO), None) {
        Ok(server) => server,
        Err(error) => return failed(&error),
    };
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(server.stop());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn row(agreement: Agreement) -> Row {
        Row {
            case: "c",
            loop_text: "closed loop",
            figure: "p99".into(),
            truth_ns: 1,
            truth_ns_max: 1,
            reported_ns: 1,
            agreement,
        }
    }

    #[test]
    fn agreement_is_the_precision_and_the_transport_and_nothing_below() {
        let of = |truth, reported| Agreement::of((truth, truth), reported);
        assert_eq!(of(1_000_000, 1_000_000), Agreement::Agrees);
        assert_eq!(of(1_000_000, 1_021_000), Agreement::Agrees);
        assert_eq!(of(1_000_000, 1_021_001), Agreement::TooHigh);
        assert_eq!(of(1_000_000, 999_000), Agreement::Agrees);
        assert_eq!(of(1_000_000, 998_999), Agreement::TooLow);
        assert_eq!(of(0, 20_000), Agreement::Agrees);
        // The shorter end of a span is the limit below, the longer one that above.
        assert_eq!(Agreement::of((1_000_000, 1_010_000), 998_999), Agreement::TooLow);
        assert_eq!(Agreement::of((1_000_000, 1_010_000), 1_031_010), Agreement::Agrees);
        assert_eq!(Agreement::of((1_000_000, 1_010_000), 1_031_011), Agreement::TooHigh);
    }

    #[test]
    fn a_case_agrees_if_its_figures_and_its_claims_do() {
        let agrees = |agreement, holds| {
            let (rows, claims) =
                (vec![row(agreement), row(Agreement::Agrees)], vec![("it holds".into(), holds)]);
            CaseReport { name: "c", rows, claims, attempts: 1, held_up_ns: 0, foreign_share: None }.agrees()
        };
        assert!(agrees(Agreement::Agrees, true));
        assert!(!agrees(Agreement::Agrees, false));
        assert!(!agrees(Agreement::TooHigh, true) && !agrees(Agreement::TooLow, true));
    }

    #[test]
    fn a_load_is_one_loop_and_ends() {
        let all = [
            Load1::Closed { requests: 0 },
            Load1::Closed { requests: 7 },
            Load1::Constant { rate: 5.0, requests: 7 },
            Load1::Poisson { rate: 6.0, requests: 7 },
        ];
        assert!(matches!(all[0].stop(), Stop::After(3_500_000_000)));
        assert!(all[1..].iter().all(|load| matches!(load.stop(), Stop::Requests(7))));
        assert!(all[0].open().is_none() && all[1].open().is_none());
        assert!(matches!(all[2].open(), Some((Arrival::Constant, 5.0))));
        assert!(matches!(all[3].open(), Some((Arrival::Poisson, 6.0))));
        assert_eq!(all.map(Load1::text)[1..], ["closed loop", "open loop, constant", "open loop, Poisson"]);
    }

    #[test]
    fn ranks_are_those_of_the_histogram() {
        let values: Vec<u64> = (1..=1_000).collect();
        let mut histogram = crate::histogram::empty();
        values.iter().for_each(|value| histogram.saturating_record(*value));
        for quantile in [0.5, 0.9, 0.99, 0.999] {
            assert_eq!(at_quantile(&values, quantile), histogram.value_at_quantile(quantile), "{quantile}");
        }
    }
}
