//! Several servers in turn, A B A B, and whether one is better.
//!
//! A round starts every target fresh, on a port of its own, pinned to the servers' core, and fills it; then each
//! case measures all targets one after the other, so that the two figures of a pair lie seconds apart and drift
//! of the machine cancels. Who is not being measured is stopped with SIGSTOP: an idle server's timers are not
//! noise in another's figure. The order turns by one place every round. Where memory does not hold all targets
//! filled, they live one after the other instead, and the report says so.
//!
//! Ratios are formed within a round and summarised over rounds: median, range, and a bootstrap interval.

pub mod cases;
mod markdown;
pub mod peers;
pub mod statistics;

use crate::cli::{CompareArgs, interval_ns};
use crate::client::{Load, Plan, Stop};
use crate::report::table::{self, thousands};
use crate::report::{self, Placement, RunReport, Saturated};
use crate::run::{self, EXIT_FAILED};
use crate::schedule::Arrival;
use crate::stages::{StageReport, StagesReport};
use crate::system::{self, Manifest};
use crate::verdict::Verdict;
use crate::worker::WorkerOptions;
use crate::workload::{Protocol, WorkloadOptions};
use cases::{Case, CaseFile, Goal};
use peers::{Peer, Peers, Running, ToolLoad};
use reactor::cpu;
use reactor::io::stop::StopSignal;
use serde::Serialize;
use statistics::Spread;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Name and version of the JSON schema.
const SCHEMA: &str = "millrace-loadgen-comparison-1";
/// What an entry costs a server beside its key and value, for the question whether all fit into memory.
const ENTRY_OVERHEAD_BYTES: u64 = 100;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Measurement {
    round: u32,
    case: String,
    target: String,
    throughput_per_s: f64,
    server_us_per_request: Option<f64>,
    generator_us_per_request: Option<f64>,
    server_share: Option<f64>,
    generator_share: Option<f64>,
    foreign_share: Option<f64>,
    saturated: Saturated,
    /// Service time (closed loop) or response time (open loop).
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    misses: u64,
    errors: u64,
    server_resident_bytes: Option<u64>,
    verdict: Verdict,
    reasons: Vec<String>,
    /// How often it was repeated because the machine was noisy.
    repeated: u32,
    /// Where the server says its time went; `null` of servers that do not.
    stages: Option<StagesReport>,
}

/// A target's figures in a case.
#[derive(Clone, Debug, Serialize)]
struct Row {
    target: String,
    rounds: usize,
    throughput_per_s: Spread,
    server_us_per_request: Option<Spread>,
    generator_us_per_request: Option<Spread>,
    server_share: Option<Spread>,
    generator_share: Option<Spread>,
    p50_ns: Option<Spread>,
    p99_ns: Option<Spread>,
    server_resident_bytes: Option<Spread>,
    /// The most frequent answer.
    saturated: Saturated,
    suspect: usize,
    invalid: usize,
    /// The subject's CPU per request over this target's, paired by round.
    cpu_ratio: Option<Spread>,
    /// The subject's throughput over this target's, paired by round.
    throughput_ratio: Option<Spread>,
    /// The subject's 99th percentile over this target's, paired by round.
    p99_ratio: Option<Spread>,
    /// What `cpu_ratio` says in words.
    cpu_words: Option<&'static str>,
    /// What `throughput_ratio` says in words.
    throughput_words: Option<&'static str>,
}

/// A case's outcome.
#[derive(Clone, Debug, Serialize)]
struct CaseReport {
    case: Case,
    subject: String,
    rows: Vec<Row>,
    /// Of the targets that time their stages.
    stages: Vec<StageRows>,
    goals: Vec<GoalReport>,
}

/// A target's stages in a case: medians over rounds, those left out that took no time.
#[derive(Clone, Debug, Serialize)]
struct StageRows {
    target: String,
    rows: Vec<StageRow>,
}

#[derive(Clone, Debug, Serialize)]
struct StageRow {
    kind: &'static str,
    stage: &'static str,
    mean_ns: Option<f64>,
    p50_ns: Option<f64>,
    p99_ns: Option<f64>,
}

/// A figure that was aimed at.
#[derive(Clone, Debug, Serialize)]
struct GoalReport {
    text: String,
    measured: Option<f64>,
    met: Option<bool>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    schema: &'static str,
    title: String,
    manifest: Manifest,
    server_core: Option<usize>,
    generator_core: Option<usize>,
    seed: u64,
    targets: Vec<Peer>,
    missing: Vec<String>,
    /// Measurements that failed, and why.
    failed: Vec<String>,
    notes: Vec<String>,
    incomplete: Option<String>,
    cases: Vec<CaseReport>,
    measurements: Vec<Measurement>,
}

/// `loadgen compare`.
pub fn command(arguments: &CompareArgs, stop: &StopSignal) -> ExitCode {
    let file = match &arguments.cases {
        Some(path) => match CaseFile::read(path) {
            Ok(file) => file,
            Err(error) => return run::usage(&error),
        },
        None => CaseFile::default(),
    };
    match Comparing::new(arguments, file) {
        Ok(mut comparing) => comparing.run(stop),
        Err(error) => run::usage(&error),
    }
}

/// A comparison under way.
struct Comparing<'a> {
    arguments: &'a CompareArgs,
    file: CaseFile,
    peers: Peers,
    manifest: Manifest,
    placement: Placement,
    measurements: Vec<Measurement>,
    failed: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Comparing<'a> {
    fn new(arguments: &'a CompareArgs, mut file: CaseFile) -> Result<Comparing<'a>, String> {
        file.rounds = arguments.rounds.unwrap_or(file.rounds).max(1);
        if let Some(only) = &arguments.only {
            file.case.retain(|case| case.name.contains(only.as_str()));
        }
        if !arguments.targets.is_empty() {
            for case in &mut file.case {
                match arguments.cases {
                    Some(_) => case.targets.retain(|target| arguments.targets.contains(target)),
                    None => case.targets = arguments.targets.clone(),
                }
            }
            if let Some(first) =
                arguments.targets.first().filter(|_| !arguments.targets.contains(&file.subject))
            {
                file.subject = first.clone();
            }
        }
        file.case.retain(|case| !case.targets.is_empty());
        for case in &mut file.case {
            case.duration_s = arguments.duration.map_or(case.duration_s, |time| Some(time.as_secs_f64()));
            case.warmup_s = arguments.warmup.map_or(case.warmup_s, |time| Some(time.as_secs_f64()));
        }
        if file.case.is_empty() {
            return Err("no case is left to measure; see --only and --targets".into());
        }
        let allowed = cpu::allowed_cores();
        let placement = Placement {
            server_core: arguments.server_core.or(allowed.first().copied().filter(|_| allowed.len() > 1)),
            generator_core: arguments.generator_core.or(allowed.get(1).copied()),
        };
        for core in [placement.server_core, placement.generator_core].into_iter().flatten() {
            cpu::check_pin(core).map_err(|error| error.to_string())?;
        }
        let mut notes = Vec::new();
        if placement.generator_core.is_none() || placement.generator_core == placement.server_core {
            notes.push("servers and generator share one core: each takes the other's time".to_string());
        }
        let wanted: Vec<String> = file.case.iter().flat_map(|case| case.targets.iter().cloned()).collect();
        let peers = Peers::find(&wanted, &file.target, arguments)?;
        if peers.found.is_empty() {
            return Err(format!("none of the targets is here: {}", peers.missing.join("; ")));
        }
        Ok(Comparing {
            arguments,
            file,
            peers,
            manifest: Manifest::read(),
            placement,
            measurements: Vec::new(),
            failed: Vec::new(),
            notes,
        })
    }

    fn run(&mut self, stop: &StopSignal) -> ExitCode {
        for missing in &self.peers.missing {
            eprintln!("missing: {missing}");
        }
        let mut incomplete = None;
        for round in 1..=self.file.rounds {
            for group in self.file.groups() {
                if let Err(error) = self.measure_group(round, &group, stop) {
                    incomplete = Some(error);
                    break;
                }
            }
            if incomplete.is_some() {
                break;
            }
        }
        if let Some(why) = &incomplete {
            eprintln!("loadgen: {why}");
        }
        let comparison = self.conclude(incomplete);
        let markdown = markdown::page(&comparison);
        println!("{markdown}");
        let folder = self.arguments.results.join(format!("{}-compare", comparison.manifest.started_at));
        let (json, md) = (folder.join("report.json"), folder.join("report.md"));
        let written =
            report::write_json(&comparison, &json).and_then(|()| report::write(&md, markdown.as_bytes()));
        if let Err(error) = written {
            return run::failed(&error);
        }
        println!("written: {} and {}", md.display(), json.display());
        let invalid = self.measurements.iter().any(|one| one.verdict == Verdict::Invalid);
        let failed =
            comparison.incomplete.is_some() || !self.failed.is_empty() || self.measurements.is_empty();
        if failed || invalid { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS }
    }

    /// One round of the cases that share a data set.
    fn measure_group(&mut self, round: u32, cases: &[Case], stop: &StopSignal) -> Result<(), String> {
        let mut targets: Vec<Peer> = Vec::new();
        for name in cases.iter().flat_map(|case| &case.targets) {
            let known = targets.iter().any(|peer| peer.name == *name);
            targets.extend(self.peers.get(name).filter(|_| !known).cloned());
        }
        if targets.is_empty() {
            return Ok(());
        }
        let turn = (round as usize - 1) % targets.len();
        targets.rotate_left(turn);
        let bytes = data_bytes(&cases[0]) * targets.len() as u64;
        if system::memory_available_bytes().is_some_and(|available| bytes > available / 2) {
            let note = format!(
                "{} keys: all targets filled do not fit into memory together, so they were measured one after \
                 the other in each round",
                thousands(cases[0].keys as f64)
            );
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
            for target in targets {
                self.measure_together(round, cases, &[target], stop)?;
            }
            return Ok(());
        }
        self.measure_together(round, cases, &targets, stop)
    }

    fn measure_together(
        &mut self,
        round: u32,
        cases: &[Case],
        targets: &[Peer],
        stop: &StopSignal,
    ) -> Result<(), String> {
        // One server for every different command line: the null server answers SET and GET differently.
        let mut servers: BTreeMap<(String, String), Running> = BTreeMap::new();
        for case in cases {
            for target in targets.iter().filter(|target| case.targets.contains(&target.name)) {
                let key = (target.name.clone(), target.variant(case));
                let result = self.start_and_measure(round, case, target, servers.remove(&key), stop);
                if stop.is_requested() {
                    return Err("interrupted; what was measured until then is shown".into());
                }
                match result {
                    Ok((server, measurement)) => {
                        servers.insert(key, server);
                        self.measurements.push(measurement);
                    }
                    // One that fails does not take the others with it. Its next case starts it anew.
                    Err(error) => {
                        let error = format!("round {round}, {}, {}: {error}", target.name, case.name);
                        eprintln!("loadgen: {error}");
                        self.failed.push(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn start_and_measure(
        &self,
        round: u32,
        case: &Case,
        target: &Peer,
        server: Option<Running>,
        stop: &StopSignal,
    ) -> Result<(Running, Measurement), String> {
        let prefill = server.is_none() && target.fill;
        let server = match server {
            Some(server) => server,
            None => Running::start(target, case, self.placement.server_core)?,
        };
        server.thaw();
        let measured = self.measure_one(round, case, target, &server, prefill, stop);
        server.freeze();
        Ok((server, measured?))
    }

    fn measure_one(
        &self,
        round: u32,
        case: &Case,
        target: &Peer,
        server: &Running,
        prefill: bool,
        stop: &StopSignal,
    ) -> Result<Measurement, String> {
        if !target.tool.is_empty() {
            return self.measure_with_tool(round, case, target, server);
        }
        let title = format!("{round}/{} {}", self.file.rounds, target.name);
        let mut best: Option<RunReport> = None;
        let mut repeated = 0;
        for attempt in 0..=self.file.repeats_if_noisy {
            repeated = attempt;
            let plan = self.plan(case, server, prefill && attempt == 0);
            let pid = server.pid();
            let options = WorkerOptions {
                io: self.arguments.io,
                pin: self.placement.generator_core,
                spin: self.placement.generator_core.is_some(),
                server_cpu: Some(Box::new(move || system::process_cpu_ns(pid))),
                server_is_embedded: false,
            };
            let run = run::measure(&title, plan, options, self.placement, stop)
                .map_err(|failure| failure.to_string())?;
            if let Some(why) = run.incomplete {
                return Err(format!("{why}{}", server.log_tail()));
            }
            let noise =
                |run: &RunReport| run.cpu.foreign_share.unwrap_or(0.0) + run.cpu.steal_share.unwrap_or(0.0);
            let noisy = run.reasons.iter().any(|reason| ["foreign_cpu", "steal"].contains(&reason.rule));
            if best.as_ref().is_none_or(|best| noise(&run) < noise(best)) {
                best = Some(run);
            }
            if !noisy {
                break;
            }
        }
        let run = best.expect("at least one attempt");
        let (_, latency) = run.latency();
        let measurement = Measurement {
            round,
            case: case.name.clone(),
            target: target.name.clone(),
            throughput_per_s: run.throughput_per_s.unwrap_or(0.0),
            server_us_per_request: run.cpu.server_us_per_request,
            generator_us_per_request: run.cpu.generator_us_per_request,
            server_share: run.cpu.server_share,
            generator_share: run.cpu.generator_share,
            foreign_share: run.cpu.foreign_share,
            saturated: run.cpu.saturated,
            p50_ns: latency.at(0.5),
            p99_ns: latency.at(0.99),
            misses: run.counts.misses,
            errors: run.counts.errors,
            server_resident_bytes: system::process_resident_bytes(server.pid()),
            verdict: run.verdict,
            reasons: run.reasons.iter().map(|reason| reason.text.clone()).collect(),
            repeated,
            stages: run.stages,
        };
        self.tell(&measurement);
        Ok(measurement)
    }

    /// The same server driven by somebody else's load generator.
    fn measure_with_tool(
        &self,
        round: u32,
        case: &Case,
        target: &Peer,
        server: &Running,
    ) -> Result<Measurement, String> {
        let load = ToolLoad {
            connections: case.connections.unwrap_or(self.file.connections),
            seconds: case.duration_s.unwrap_or(self.file.duration_s),
        };
        let before = system::process_cpu_ns(server.pid());
        let began = std::time::Instant::now();
        let throughput = server.run_tool(target, case, load, self.placement.generator_core)?;
        let wall_ns = began.elapsed().as_nanos() as f64;
        let server_ns =
            system::process_cpu_ns(server.pid()).zip(before).map(|(after, before)| after - before);
        let server_share = server_ns.map(|ns| ns as f64 / wall_ns);
        let measurement = Measurement {
            round,
            case: case.name.clone(),
            target: target.name.clone(),
            throughput_per_s: throughput,
            server_us_per_request: None,
            generator_us_per_request: None,
            server_share,
            generator_share: None,
            foreign_share: None,
            saturated: Saturated::Unknown,
            p50_ns: None,
            p99_ns: None,
            misses: 0,
            errors: 0,
            server_resident_bytes: None,
            verdict: Verdict::Valid,
            reasons: Vec::new(),
            repeated: 0,
            stages: None,
        };
        self.tell(&measurement);
        Ok(measurement)
    }

    fn tell(&self, one: &Measurement) {
        eprintln!(
            "round {}/{} {:<24} {:<36} {:>12}/s  server {:>7} µs/request ({})  {}",
            one.round,
            self.file.rounds,
            one.target,
            one.case,
            thousands(one.throughput_per_s),
            table::number(one.server_us_per_request, 3),
            table::percent(one.server_share),
            match one.verdict {
                Verdict::Valid => String::new(),
                verdict => format!("{verdict}: {}", one.reasons.join("; ")),
            }
        );
    }

    fn plan(&self, case: &Case, server: &Running, prefill: bool) -> Plan {
        let seconds = |given: Option<f64>, default: f64| (given.unwrap_or(default) * 1e9) as u64;
        let duration_ns = seconds(case.duration_s, self.file.duration_s);
        Plan {
            target: server.address.clone(),
            workload: WorkloadOptions {
                protocol: server.protocol,
                resp_version: case.resp,
                sets: case.sets,
                gets: case.gets,
                keys: case.keys,
                key_bytes: case.key_size,
                key_prefix: "key:".into(),
                value_bytes: case.value_size,
                theta: case.theta,
                command: case.command.clone().filter(|_| server.protocol == Protocol::Resp),
                http_path: server.http_path.clone(),
                http_host: "127.0.0.1".into(),
                verify: false,
                password: None,
                seed: self.arguments.seed,
            },
            connections: case.connections.unwrap_or(self.file.connections),
            load: match case.rate {
                Some(rate) => Load::Open { rate, arrival: Arrival::Poisson },
                None => Load::Closed { pipeline: case.pipeline },
            },
            prefill,
            warmup_ns: seconds(case.warmup_s, self.file.warmup_s),
            stop: Stop::After(duration_ns),
            drain_ns: 1_000_000_000,
            timeout_ns: 10_000_000_000,
            interval_ns: interval_ns(std::time::Duration::from_nanos(duration_ns)),
        }
    }

    fn conclude(&self, incomplete: Option<String>) -> Comparison {
        let cases = self.file.case.iter().filter_map(|case| self.conclude_case(case)).collect();
        Comparison {
            schema: SCHEMA,
            title: self.file.title.clone(),
            manifest: self.manifest.clone(),
            server_core: self.placement.server_core,
            generator_core: self.placement.generator_core,
            seed: self.arguments.seed,
            targets: self.peers.found.clone(),
            missing: self.peers.missing.clone(),
            failed: self.failed.clone(),
            notes: self.notes.clone(),
            incomplete,
            cases,
            measurements: self.measurements.clone(),
        }
    }

    fn conclude_case(&self, case: &Case) -> Option<CaseReport> {
        let subject = case.subject.clone().unwrap_or_else(|| self.file.subject.clone());
        let of = |target: &str| -> Vec<&Measurement> {
            let mine = |one: &&Measurement| one.case == case.name && one.target == target;
            self.measurements.iter().filter(mine).collect()
        };
        let subjects = of(&subject);
        let rows: Vec<Row> = case
            .targets
            .iter()
            .filter_map(|target| {
                let mine = of(target);
                (!mine.is_empty())
                    .then(|| row(target, &mine, &subjects, *target == subject, self.arguments.seed))
            })
            .collect();
        if rows.is_empty() {
            return None;
        }
        let stages = case.targets.iter().filter_map(|target| stage_rows(target, &of(target))).collect();
        let goals = case.goals.iter().map(|goal| goal_report(goal, &rows)).collect();
        Some(CaseReport { case: case.clone(), subject, rows, stages, goals })
    }
}

/// What a target's data needs in memory.
fn data_bytes(case: &Case) -> u64 {
    case.keys * (case.key_size as u64 + case.value_size as u64 + ENTRY_OVERHEAD_BYTES)
}

fn row(target: &str, mine: &[&Measurement], subjects: &[&Measurement], is_subject: bool, seed: u64) -> Row {
    let spread = |pick: &dyn Fn(&Measurement) -> Option<f64>| {
        let values: Vec<f64> = mine.iter().filter_map(|one| pick(one)).collect();
        Spread::of(&values, seed)
    };
    let ratio = |pick: &dyn Fn(&Measurement) -> Option<f64>| {
        if is_subject {
            return None;
        }
        let pair = |one: &&Measurement| {
            let subject = subjects.iter().find(|subject| subject.round == one.round)?;
            Some(pick(subject)? / pick(one).filter(|value| *value > 0.0)?)
        };
        let values: Vec<f64> = mine.iter().filter_map(pair).collect();
        Spread::of(&values, seed)
    };
    let throughput: &dyn Fn(&Measurement) -> Option<f64> = &|one| Some(one.throughput_per_s);
    let server_us: &dyn Fn(&Measurement) -> Option<f64> = &|one| one.server_us_per_request;
    let cpu_ratio = ratio(server_us);
    let throughput_ratio = ratio(throughput);
    let p99: &dyn Fn(&Measurement) -> Option<f64> = &|one| one.p99_ns.map(|ns| ns as f64);
    let all =
        [Saturated::Server, Saturated::Generator, Saturated::Both, Saturated::Neither, Saturated::Unknown];
    let count = |kind: &Saturated| mine.iter().filter(|one| one.saturated == *kind).count();
    let graded = |grade| mine.iter().filter(|one| one.verdict == grade).count();
    Row {
        target: target.into(),
        rounds: mine.len(),
        throughput_per_s: spread(throughput).expect("there is at least one measurement"),
        server_us_per_request: spread(server_us),
        generator_us_per_request: spread(&|one| one.generator_us_per_request),
        server_share: spread(&|one| one.server_share),
        generator_share: spread(&|one| one.generator_share),
        p50_ns: spread(&|one| one.p50_ns.map(|ns| ns as f64)),
        p99_ns: spread(p99),
        p99_ratio: ratio(p99),
        server_resident_bytes: spread(&|one| one.server_resident_bytes.map(|bytes| bytes as f64)),
        saturated: all.into_iter().max_by_key(count).expect("the list is not empty"),
        suspect: graded(Verdict::Suspect),
        invalid: graded(Verdict::Invalid),
        cpu_words: cpu_ratio.as_ref().map(|ratio| ratio.words("less CPU", "more CPU")),
        throughput_words: throughput_ratio.as_ref().map(|ratio| ratio.words("slower", "faster")),
        cpu_ratio,
        throughput_ratio,
    }
}

/// What a target's own figures say of its stages; `None` where it has none.
fn stage_rows(target: &str, mine: &[&Measurement]) -> Option<StageRows> {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let names = store::stages::STAGES.iter().map(|stage| stage.name).chain([crate::stages::TOTAL]);
    let mut rows = Vec::new();
    for kind in store::stages::KINDS {
        for stage in names.clone() {
            let reports = mine.iter().filter_map(|one| one.stages.as_ref()?.find(kind, stage));
            let reports: Vec<&StageReport> = reports.collect();
            let of = |pick: &dyn Fn(&StageReport) -> Option<f64>| {
                median(reports.iter().filter_map(|report| pick(report)).collect())
            };
            let mean_ns = of(&|report| Some(report.mean_ns));
            if mean_ns.is_some_and(|mean| mean > 0.0) {
                let p50_ns = of(&|report| report.p50_ns.map(|ns| ns as f64));
                let p99_ns = of(&|report| report.p99_ns.map(|ns| ns as f64));
                rows.push(StageRow { kind, stage, mean_ns, p50_ns, p99_ns });
            }
        }
    }
    (!rows.is_empty()).then(|| StageRows { target: target.into(), rows })
}

fn goal_report(goal: &Goal, rows: &[Row]) -> GoalReport {
    let row = rows.iter().find(|row| row.target == goal.against);
    let median = |pick: fn(&Row) -> &Option<Spread>| Some(pick(row?).as_ref()?.median);
    let at_most = |what: &str, limit: f64, measured: Option<f64>| GoalReport {
        text: format!("{what} ≤ {limit} × {}", goal.against),
        measured,
        met: measured.map(|measured| measured <= limit),
    };
    if let Some(limit) = goal.cpu_ratio_max {
        return at_most("CPU per request", limit, median(|row| &row.cpu_ratio));
    }
    if let Some(limit) = goal.p99_ratio_max {
        return at_most("p99", limit, median(|row| &row.p99_ratio));
    }
    let (limit, measured) = (goal.throughput_ratio_min.unwrap_or(0.0), median(|row| &row.throughput_ratio));
    GoalReport {
        text: format!("throughput ≥ {limit} × {}", goal.against),
        measured,
        met: measured.map(|measured| measured >= limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(round: u32, target: &str, server_us: f64) -> Measurement {
        Measurement {
            round,
            case: "GET".into(),
            target: target.into(),
            throughput_per_s: 1e6 / server_us,
            server_us_per_request: Some(server_us),
            generator_us_per_request: Some(2.0),
            server_share: Some(1.0),
            generator_share: Some(0.5),
            foreign_share: Some(0.0),
            saturated: Saturated::Server,
            p50_ns: Some(100_000),
            p99_ns: None,
            misses: 0,
            errors: 0,
            server_resident_bytes: None,
            verdict: Verdict::Valid,
            reasons: Vec::new(),
            repeated: 0,
            stages: Some(crate::stages::tests::report(2_000)),
        }
    }

    #[test]
    fn ratios_are_paired_by_round_so_drift_cancels() {
        // Both get slower from round to round; the subject always needs four fifths.
        let ours: Vec<Measurement> =
            (1..=5).map(|round| measurement(round, "us", 4.0 * f64::from(round))).collect();
        let theirs: Vec<Measurement> =
            (1..=5).map(|round| measurement(round, "them", 5.0 * f64::from(round))).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = (ours.iter().collect(), theirs.iter().collect());
        let row_of_them = row("them", &theirs, &ours, false, 1);
        let ratio = row_of_them.cpu_ratio.clone().expect("pairs");
        assert!((ratio.min - 0.8).abs() < 1e-9 && (ratio.max - 0.8).abs() < 1e-9);
        assert_eq!((row_of_them.cpu_words, row_of_them.throughput_words), (Some("less CPU"), Some("faster")));
        // A round in which the subject is missing has no pair.
        assert_eq!(row("them", &theirs, &ours[..3], false, 1).cpu_ratio.expect("pairs").values.len(), 3);
        assert!(row("us", &ours, &ours, true, 1).cpu_ratio.is_none());
        let goal = |limit| Goal { against: "them".into(), cpu_ratio_max: Some(limit), ..Goal::default() };
        assert_eq!(goal_report(&goal(0.81), std::slice::from_ref(&row_of_them)).met, Some(true));
        assert_eq!(goal_report(&goal(0.79), std::slice::from_ref(&row_of_them)).met, Some(false));
        assert_eq!(goal_report(&goal(0.79), &[]).met, None);
        // The same latency in every round: a goal for it looks at nothing else.
        let slow = |one: &&Measurement| Measurement { p99_ns: Some(200_000), ..(*one).clone() };
        let slow: Vec<Measurement> = theirs.iter().map(slow).collect();
        let fast: Vec<Measurement> =
            ours.iter().map(|one| Measurement { p99_ns: Some(100_000), ..(*one).clone() }).collect();
        let row = row("them", &slow.iter().collect::<Vec<_>>(), &fast.iter().collect::<Vec<_>>(), false, 1);
        let goal = |limit| Goal { against: "them".into(), p99_ratio_max: Some(limit), ..Goal::default() };
        assert_eq!(goal_report(&goal(0.51), std::slice::from_ref(&row)).met, Some(true));
        assert_eq!(goal_report(&goal(0.49), std::slice::from_ref(&row)).met, Some(false));
    }

    #[test]
    fn the_table_names_loop_saturation_and_goals() {
        let ours: Vec<Measurement> = (1..=3).map(|round| measurement(round, "us", 4.0)).collect();
        let ours: Vec<&Measurement> = ours.iter().collect();
        let mut case = CaseFile::default().case.remove(0);
        case.name = "GET".into();
        let report = CaseReport {
            case,
            subject: "us".into(),
            rows: vec![row("us", &ours, &ours, true, 1)],
            stages: stage_rows("us", &ours).into_iter().collect(),
            goals: vec![GoalReport { text: "a goal".into(), measured: Some(1.5), met: Some(false) }],
        };
        let mut text = String::new();
        markdown::case(&mut text, &report);
        let stage = "| read: execute | 1.00 µs | 1.12 µs | 1.12 µs |";
        for expected in ["closed loop", "saturated", "server", "4.000", "**missed**", "| us | 3 |", stage] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}
