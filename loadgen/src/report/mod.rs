//! What a run leaves on paper: one structure, written as table, JSON and HTML.
//!
//! A figure that does not exist is `null` in JSON and a dash for people, never zero and never NaN. Every latency
//! carries the loop it was measured in.

pub mod files;
pub mod html;
pub mod overlay;
pub mod plot;
pub mod side_by_side;
pub mod stored;
pub mod table;

use crate::arrivals::ArrivalTest;
use crate::client::{Counts, Failure, Load, Plan, Stop};
use crate::histogram::{self, Interval, Summary};
use crate::schedule::Arrival;
use crate::server_config;
use crate::stages::StagesReport;
use crate::system::Manifest;
use crate::trend::Trend;
use crate::verdict::{self, Evidence, Reason, Verdict};
use crate::worker::{CpuUse, Io, Worked};
use crate::workload::WorkloadOptions;
use files::Histograms;
use reactor::server::event::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Name and version of the JSON schema.
pub const SCHEMA: &str = "millrace-loadgen-report-1";

/// A side that used this share of its core while it could have used more is what limited the throughput.
const SATURATED_SHARE: f64 = 0.9;

/// Which loop, and how it was paced.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LoopReport {
    /// See [`Load::Closed`].
    Closed {
        /// Requests in a batch.
        pipeline: u32,
    },
    /// See [`Load::Open`].
    Open {
        /// Arrivals asked for a second.
        rate_per_s: f64,
        /// The distribution of their gaps.
        arrival: Arrival,
    },
}

/// Who had no CPU time left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Saturated {
    /// The server: the throughput is its own.
    Server,
    /// The generator: the server could have done more.
    Generator,
    /// Both.
    Both,
    /// Neither: the load, or waiting, was the limit.
    Neither,
    /// The server's CPU time could not be read, and the generator was not it.
    Unknown,
}

impl Saturated {
    /// By the share of its core that each side used.
    pub fn of(generator: Option<f64>, server: Option<f64>) -> Saturated {
        let full = |share: Option<f64>| share.is_some_and(|share| share >= SATURATED_SHARE);
        match (full(generator), full(server), server) {
            (true, true, _) => Saturated::Both,
            (true, false, _) => Saturated::Generator,
            (false, true, _) => Saturated::Server,
            (false, false, Some(_)) => Saturated::Neither,
            (false, false, None) => Saturated::Unknown,
        }
    }
}

impl std::fmt::Display for Saturated {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Saturated::Server => "server",
            Saturated::Generator => "generator",
            Saturated::Both => "both",
            Saturated::Neither => "neither",
            Saturated::Unknown => "unknown",
        })
    }
}

/// The CPU side, in the units people compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CpuReport {
    /// Generator CPU per completed request; spinning not counted.
    pub generator_us_per_request: Option<f64>,
    /// Server CPU per completed request.
    pub server_us_per_request: Option<f64>,
    /// Cycles of the server per completed request, in user mode and in the kernel; `null` where they cannot be counted.
    pub server_cycles_per_request: Option<f64>,
    /// Instructions, the same.
    pub server_instructions_per_request: Option<f64>,
    /// System calls, where asked for.
    pub server_syscalls_per_request: Option<f64>,
    /// Generator CPU as a share of one core (over 1: several threads).
    pub generator_share: Option<f64>,
    /// That of its busiest thread.
    pub generator_busiest_share: Option<f64>,
    /// What the generator spun, waiting for the next arrival.
    pub generator_spun_share: Option<f64>,
    /// Server CPU as a share of one core (over 1: several threads).
    pub server_share: Option<f64>,
    /// Everything else on the machine, as a share of one core.
    pub foreign_share: Option<f64>,
    /// What the hypervisor took, as a share of one core.
    pub steal_share: Option<f64>,
    /// Who had none left.
    pub saturated: Saturated,
    /// Requests for each system call of the generator.
    pub requests_per_enter: Option<f64>,
    /// Replies in one receive of the generator.
    pub replies_per_receive: Option<f64>,
}

/// A point of a latency curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Between 0 and 1.
    pub quantile: f64,
    /// Nanoseconds.
    pub ns: u64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What it was.
    pub title: String,
    /// The loop: which question the figures answer.
    #[serde(rename = "loop")]
    pub loop_report: LoopReport,
    /// Where it went.
    pub target: String,
    /// Over how many connections.
    pub connections: usize,
    /// What was asked.
    pub workload: WorkloadOptions,
    /// Discarded before.
    pub warmup_s: f64,
    /// Whether latency had settled by then; null: nobody asked (`--warmup auto` does).
    pub warmup_settled: Option<bool>,
    /// Length of the measurement.
    pub window_s: f64,
    /// Replies a second.
    pub throughput_per_s: Option<f64>,
    /// Requests offered a second (open loop).
    pub offered_per_s: Option<f64>,
    /// Everything counted.
    pub counts: Counts,
    /// Received − intended. Open loop only.
    pub response_time: Option<Summary>,
    /// Received − sent.
    pub service_time: Summary,
    /// Sent − intended. Open loop only.
    pub lateness: Option<Summary>,
    /// The response time's curve (open) or the service time's (closed).
    pub curve: Vec<CurvePoint>,
    /// The same over time.
    pub intervals: Vec<Interval>,
    /// The CPU side.
    pub cpu: CpuReport,
    /// Where the server says its time went; `null` where it does not.
    pub stages: Option<StagesReport>,
    /// Why it does not.
    pub stages_absent: Option<String>,
    /// The generator's driver.
    pub generator_io: Io,
    /// The generator's core.
    pub generator_core: Option<usize>,
    /// The server's core, where this tool chose it.
    pub server_core: Option<usize>,
    /// Whether requests left as they were drawn (open loop).
    pub arrivals: Option<ArrivalTest>,
    /// What became of the latency while it lasted.
    pub trend: Option<Trend>,
    /// What the server says it is; `null` where it does not tell.
    pub server_version: Option<String>,
    /// The server's own configuration, where it tells; without what is secret.
    pub server_configuration: BTreeMap<String, String>,
    /// Whether it can be believed.
    pub verdict: Verdict,
    /// Why not.
    pub reasons: Vec<Reason>,
    /// What else to know.
    pub notes: Vec<String>,
    /// Everything recorded, for other tools' formats.
    #[serde(skip)]
    pub histograms: Histograms,
    /// It ended before its time; then why.
    pub incomplete: Option<String>,
    /// That was because more requests waited than a run may hold: the rate is far out of reach.
    pub is_backlogged: bool,
}

/// Where things ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    /// The generator's core.
    pub generator_core: Option<usize>,
    /// The server's core.
    pub server_core: Option<usize>,
}

/// What is known of both sides beside the measurement.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// What the server says it is.
    pub server_version: Option<String>,
    /// The server's own configuration, where it tells.
    pub server_configuration: BTreeMap<String, String>,
    /// Its acknowledged writes are on stable storage; `None`: it does not say.
    pub durable: Option<bool>,
    /// Cores this process may use.
    pub cores: usize,
}

impl Conditions {
    /// Asks the target of a plan, and the machine.
    pub fn ask(plan: &Plan) -> Conditions {
        let server_config::Told { version, configuration } = server_config::read(plan);
        let durable = server_config::is_durable(&configuration);
        Conditions {
            server_version: version,
            server_configuration: configuration,
            durable,
            cores: reactor::cpu::allowed_cores().len(),
        }
    }
}

impl RunReport {
    /// Judges what a worker brought back.
    pub fn new(
        title: &str,
        plan: &Plan,
        worked: Worked,
        placement: Placement,
        conditions: Conditions,
    ) -> RunReport {
        let Worked { outcome, cpu, stages, io, mut notes, epoch } = worked;
        if let Some(has_settled) = outcome.warmup_settled {
            let seconds = outcome.warmup_ns as f64 / 1e9;
            notes.push(match has_settled {
                true => format!("the warm-up took {seconds:.1} s, until latency showed no trend"),
                false => format!("the warm-up ended after {seconds:.1} s, and latency had not settled"),
            });
        }
        let (stages, stages_absent) = match stages {
            Ok(stages) => (Some(stages), None),
            Err(why) => (None, Some(why)),
        };
        let is_backlogged = outcome.failure == Some(Failure::Backlog);
        let incomplete = match (&outcome.failure, outcome.interrupted) {
            (Some(failure), _) => Some(failure.to_string()),
            (None, true) => Some("it was interrupted; what was measured until then is shown".into()),
            (None, false) => None,
        };
        let open = matches!(plan.load, Load::Open { .. });
        let response = Summary::of(&outcome.response);
        let service = Summary::of(&outcome.service);
        let lateness = Summary::of(&outcome.lateness);
        let latency = if open { &outcome.response } else { &outcome.service };
        let cpu = cpu_report(&cpu, &outcome.counts);
        let window_s = outcome.window_ns as f64 / 1e9;
        let per_second = |count: u64| (window_s > 0.0).then(|| count as f64 / window_s);
        let offered_s = outcome.offered_ns.map_or(window_s, |length| length as f64 / 1e9);
        let offered_per_s = |count: u64| (offered_s > 0.0).then(|| count as f64 / offered_s);
        let counts = &outcome.counts;
        let primary = if open { &response } else { &service };
        let trend = Trend::of(&outcome.intervals);
        let rate_changes = match &plan.load {
            Load::Open { arrival, .. } => !arrival.is_stationary(),
            Load::Closed { .. } => false,
        };
        let arrivals = match (outcome.picked.clone(), &plan.load) {
            (Some(picked), Load::Open { rate, arrival }) => picked.judge(arrival, *rate),
            _ => None,
        };
        let evidence = Evidence {
            open,
            samples: primary.samples,
            latency_p99_ns: primary.at(0.99),
            lateness_p99_ns: lateness.at(0.99),
            generator_share: cpu.generator_busiest_share,
            foreign_share: cpu.foreign_share,
            steal_share: cpu.steal_share,
            offered: counts.offered,
            completed: counts.completed,
            completed_in_time: outcome.completed_in_time,
            errors: counts.errors,
            first_error: outcome.first_error.clone(),
            nulls: counts.nulls,
            wrong: counts.wrong,
            first_wrong: outcome.first_wrong.clone(),
            timeouts: counts.timeouts,
            lost: counts.lost,
            unanswered: counts.unanswered,
            incomplete: incomplete.clone(),
            debug_build: cfg!(debug_assertions),
            arrivals,
            trend,
            rate_changes,
            durable_server: conditions.durable,
            spun_share: cpu.generator_spun_share,
            server_share: cpu.server_share,
            cores: conditions.cores,
        };
        let (verdict, reasons) = verdict::judge(&evidence);
        let began_ago =
            epoch.elapsed().saturating_sub(Duration::from_nanos(outcome.measure_began_ns.unwrap_or(0)));
        let histograms = Histograms {
            began: SystemTime::now().checked_sub(began_ago).unwrap_or(SystemTime::UNIX_EPOCH),
            response: outcome.response.clone(),
            service: outcome.service.clone(),
            lateness: outcome.lateness.clone(),
        };
        RunReport {
            title: title.into(),
            loop_report: match &plan.load {
                Load::Closed { pipeline } => LoopReport::Closed { pipeline: *pipeline },
                Load::Open { rate, arrival } => {
                    LoopReport::Open { rate_per_s: *rate, arrival: arrival.clone() }
                }
            },
            target: target_text(plan),
            connections: plan.connections,
            workload: plan.workload.clone(),
            warmup_s: outcome.warmup_ns as f64 / 1e9,
            warmup_settled: outcome.warmup_settled,
            window_s,
            throughput_per_s: per_second(counts.completed),
            offered_per_s: if open { offered_per_s(counts.offered) } else { None },
            curve: histogram::curve(latency)
                .into_iter()
                .map(|(quantile, ns)| CurvePoint { quantile, ns })
                .collect(),
            counts: outcome.counts.clone(),
            response_time: open.then_some(response),
            service_time: service,
            lateness: open.then_some(lateness),
            intervals: outcome.intervals,
            cpu,
            stages,
            stages_absent,
            generator_io: io,
            generator_core: placement.generator_core,
            server_core: placement.server_core,
            arrivals,
            trend,
            server_version: conditions.server_version,
            server_configuration: conditions.server_configuration,
            verdict,
            reasons,
            notes,
            incomplete,
            is_backlogged,
            histograms,
        }
    }

    /// The histogram that answers this loop's question, and its name.
    pub fn latency(&self) -> (&'static str, &Summary) {
        match &self.response_time {
            Some(response) => ("response time", response),
            None => ("service time", &self.service_time),
        }
    }

    /// The loop in words, for every label.
    pub fn loop_text(&self) -> String {
        match &self.loop_report {
            LoopReport::Closed { pipeline: 1 } => "closed loop".into(),
            LoopReport::Closed { pipeline } => format!("closed loop, pipeline {pipeline}"),
            LoopReport::Open { rate_per_s, arrival } => {
                format!("open loop, {}, {}/s", arrival.describe(), table::thousands(*rate_per_s))
            }
        }
    }
}

fn cpu_report(cpu: &CpuUse, counts: &Counts) -> CpuReport {
    let known = cpu.wall_ns > 0;
    let share = |ns: u64| known.then(|| ns as f64 / cpu.wall_ns as f64);
    let per_request =
        |ns: u64| (known && counts.completed > 0).then(|| ns as f64 / 1e3 / counts.completed as f64);
    let ratio = |parts: u64| (parts > 0).then(|| counts.completed as f64 / parts as f64);
    let generator_share = share(cpu.generator_ns);
    let busiest_share = share(cpu.busiest_ns);
    let server_share = cpu.server_ns.and_then(share);
    let counted = |at: usize| {
        let per_request = cpu.server_counted[at]? as f64 / counts.completed as f64;
        (counts.completed > 0).then_some(per_request)
    };
    CpuReport {
        server_cycles_per_request: counted(0),
        server_instructions_per_request: counted(1),
        server_syscalls_per_request: counted(2),
        generator_us_per_request: per_request(cpu.generator_ns),
        server_us_per_request: cpu.server_ns.and_then(per_request),
        generator_share,
        generator_busiest_share: busiest_share,
        generator_spun_share: share(cpu.generator_spun_ns),
        server_share,
        foreign_share: cpu.foreign_ns.and_then(share),
        steal_share: cpu.steal_ns.and_then(share),
        saturated: Saturated::of(busiest_share, server_share),
        requests_per_enter: ratio(cpu.enters),
        replies_per_receive: ratio(cpu.receives),
    }
}

fn target_text(plan: &Plan) -> String {
    let scheme = match plan.workload.protocol {
        crate::workload::Protocol::Resp => "resp",
        crate::workload::Protocol::Http => "http",
        crate::workload::Protocol::Memcache => "memcache",
    };
    match &plan.target {
        Target::Tcp(address) => format!("{scheme}://{address}"),
        Target::Unix(path) if scheme == "resp" => format!("unix://{}", path.display()),
        Target::Unix(path) => format!("{scheme}+unix://{}", path.display()),
    }
}

/// How long a plan takes, for the progress bar; `None`: as long as its requests do.
pub fn planned_ns(plan: &Plan) -> Option<u64> {
    match plan.stop {
        Stop::After(length) => Some(plan.warmup_ns + length),
        Stop::Requests(_) => None,
    }
}

/// A file of runs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// What it is about.
    pub title: String,
    /// The conditions.
    pub manifest: Manifest,
    /// The runs, in order.
    pub runs: Vec<RunReport>,
}

impl Report {
    /// A report of these runs.
    pub fn new(title: &str, manifest: Manifest, runs: Vec<RunReport>) -> Report {
        Report { schema: SCHEMA, title: title.into(), manifest, runs }
    }

    /// The worst verdict of its runs.
    pub fn verdict(&self) -> Verdict {
        self.runs.iter().map(|run| run.verdict).max().unwrap_or(Verdict::Invalid)
    }

    /// Writes it as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), String> {
        write_json(self, path)
    }

    /// Writes it as one HTML page.
    pub fn write_html(&self, path: &Path) -> Result<(), String> {
        write(path, html::page(self).as_bytes())
    }
}

/// Writes anything as JSON, with indentation for people and diffs.
pub fn write_json(value: &impl Serialize, path: &Path) -> Result<(), String> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our structures have text keys only");
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Whether a file can be written there, without changing what it may hold already.
pub fn check_writable(path: &Path) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let existed = path.exists();
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::OpenOptions::new().append(true).create(true).open(path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    if !existed {
        // An empty report would be taken for one.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// The same of a folder that a report's own folder is made in.
pub fn check_folder(folder: &Path) -> Result<(), String> {
    check_writable(&folder.join("report.json")).map_err(|error| error.replace("/report.json", ""))
}

/// Writes a whole file, with the folders above it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(path, bytes))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::client::Outcome;

    pub fn plan(open: bool) -> Plan {
        Plan {
            target: Target::Tcp("127.0.0.1:6379".parse().expect("an address")),
            workload: crate::workload::tests::options(),
            connections: 50,
            load: match open {
                true => Load::Open { rate: 50_000.0, arrival: Arrival::Poisson },
                false => Load::Closed { pipeline: 1 },
            },
            prefill: false,
            warmup_ns: 1_000_000_000,
            warmup_is_tested: false,
            stop: Stop::After(2_000_000_000),
            drain_ns: 1_000_000_000,
            timeout_ns: 10_000_000_000,
            interval_ns: 100_000_000,
            connects_per_s: None,
            requests_per_connection: None,
        }
    }

    pub fn worked(open: bool, samples: u64) -> Worked {
        let mut service = histogram::empty();
        let mut response = histogram::empty();
        let mut lateness = histogram::empty();
        for value in 0..samples {
            service.saturating_record(100_000 + value % 5_000 * 10);
            if open {
                response.saturating_record(120_000 + value % 5_000 * 20);
                lateness.saturating_record(1_000 + value % 100 * 30);
            }
        }
        let intervals = (0..20)
            .map(|index| Interval {
                start_ms: index * 100,
                length_ms: 100.0,
                completed: samples / 20,
                p50_ns: Some(100_000 + index * 1_000),
                p99_ns: (index != 7).then_some(200_000 + index * 500),
                max_ns: Some(900_000),
            })
            .collect();
        let outcome = Outcome {
            failure: None,
            interrupted: false,
            measure_began_ns: Some(0),
            picked: None,
            window_ns: 2_000_000_000,
            offered_ns: None,
            completed_in_time: samples,
            counts: Counts {
                offered: samples,
                sent: samples,
                completed: samples,
                answered: samples,
                ..Counts::default()
            },
            response,
            service,
            lateness,
            warmup_ns: 1_000_000_000,
            warmup_settled: None,
            intervals,
            first_error: None,
            first_wrong: None,
        };
        let cpu = CpuUse {
            wall_ns: 2_000_000_000,
            generator_ns: 1_000_000_000,
            busiest_ns: 1_000_000_000,
            generator_spun_ns: 500_000_000,
            server_ns: Some(1_900_000_000),
            server_counted: [Some(5 * samples), Some(9 * samples), None],
            foreign_ns: Some(10_000_000),
            steal_ns: Some(0),
            enters: 1_000,
            receives: 5_000,
            sends: 5_000,
        };
        let stages = Ok(crate::stages::tests::report(2_000));
        let epoch = std::time::Instant::now();
        Worked { epoch, outcome, cpu, stages, io: Io::IoUring, notes: vec!["a note".into()] }
    }

    /// A run of so many requests.
    pub fn reported(title: &str, open: bool, samples: u64) -> RunReport {
        let worked = worked(open, samples);
        RunReport::new(title, &plan(open), worked, Placement::default(), Conditions::default())
    }

    #[test]
    fn a_closed_loop_has_no_response_time_and_an_open_one_has() {
        let closed = reported("max", false, 100_000);
        assert_eq!((closed.response_time.is_none(), closed.lateness.is_none()), (true, true));
        assert_eq!(closed.latency().0, "service time");
        assert_eq!(closed.throughput_per_s, Some(50_000.0));
        assert_eq!(closed.cpu.server_us_per_request, Some(19.0));
        assert_eq!(closed.cpu.saturated, Saturated::Server);
        assert_eq!(closed.cpu.server_instructions_per_request, Some(9.0));
        assert_eq!(closed.cpu.server_syscalls_per_request, None);
        let open = reported("half", true, 100_000);
        assert_eq!(open.latency().0, "response time");
        assert!(open.loop_text().contains("open loop, Poisson, 50,000/s"), "{}", open.loop_text());
    }

    #[test]
    fn an_empty_run_has_nulls_and_no_nan() {
        let mut nothing = worked(true, 0);
        nothing.cpu = CpuUse::default();
        nothing.outcome.window_ns = 0;
        nothing.outcome.failure = Some(Failure::Refused(111));
        let run =
            RunReport::new("nothing", &plan(true), nothing, Placement::default(), Conditions::default());
        assert_eq!(run.verdict, Verdict::Invalid);
        assert!(run.incomplete.as_deref().is_some_and(|text| text.contains("refused")));
        let report = Report::new("empty", Manifest::read(), vec![run]);
        let json: serde_json::Value =
            serde_json::from_slice(&serde_json::to_vec(&report).expect("writes")).expect("reads");
        let run = &json["runs"][0];
        assert!(run["throughput_per_s"].is_null() && run["service_time"]["mean_ns"].is_null());
        assert_eq!(run["loop"]["kind"], "open");
        assert!(html::page(&report).contains("INVALID"));
        assert!(table::runs(&report.runs).contains("INVALID"));
    }
}
