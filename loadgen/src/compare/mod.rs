//! Several servers in turn, A B A B, and whether one is better.
//!
//! A round starts every target fresh, on a port of its own, pinned to the servers' core, and fills it; then each
//! case measures all targets one after the other, so that the two figures of a pair lie seconds apart and drift
//! of the machine cancels. Who is not being measured is stopped with SIGSTOP: an idle server's timers are not
//! noise in another's figure. The order turns by one place every round. Where memory does not hold all targets
//! filled, they live one after the other instead, and the report says so.
//!
//! Ratios are formed within a round and summarised over rounds: median, range, and a bootstrap interval.

mod agreement;
pub mod builtin;
pub mod cases;
mod markdown;
mod measure;
mod outcome;
mod page;
pub mod peers;
pub mod statistics;
mod tools;

use crate::cli::CompareArgs;
use crate::report::{self, Placement};
use crate::run::{self, EXIT_FAILED};
use crate::system::Manifest;
use crate::verdict::Verdict;
use crate::worker;
use agreement::{Outcome, Side};
use cases::{Case, CaseFile};
use outcome::{CaseReport, Comparison, Measurement, Row, goal_report, row, stage_rows};
use peers::{Peers, Programs};
use reactor::cpu;
use reactor::io::stop::StopSignal;
use std::process::ExitCode;

/// Name and version of the JSON schema.
pub const SCHEMA: &str = "millrace-loadgen-comparison-1";

/// `loadgen compare`.
pub fn command(arguments: &CompareArgs, stop: &StopSignal) -> ExitCode {
    let file = match &arguments.cases {
        Some(path) => match CaseFile::read(path) {
            Ok(file) => file,
            Err(error) => return run::usage(&error),
        },
        None if !arguments.tools.is_empty() => CaseFile::cross_check(),
        None => CaseFile::default(),
    };
    let mut comparing = match Comparing::new(arguments, file) {
        Ok(comparing) => comparing,
        Err(error) => return run::usage(&error),
    };
    // Better said before an hour's measurements than behind them.
    match report::check_folder(&arguments.results) {
        Ok(()) => comparing.run(stop),
        Err(error) => run::failed(&error),
    }
}

/// A comparison under way.
struct Comparing<'a> {
    arguments: &'a CompareArgs,
    file: CaseFile,
    peers: Peers,
    manifest: Manifest,
    placement: Placement,
    /// Cores of this generator's threads but the first; `None`: wherever there is room.
    other_threads: Vec<Option<usize>>,
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
        if !arguments.tools.is_empty() {
            file.keep_tools(&arguments.tools, &arguments.targets)?;
        } else if !arguments.targets.is_empty() {
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
            return Err("no case is left to measure; see --only, --targets and --tools".into());
        }
        let threads = arguments.threads as usize;
        if !arguments.generator_core.is_empty() && arguments.generator_core.len() != threads {
            return Err(format!(
                "--generator-core names {} cores for {threads} threads: name one for each, or none",
                arguments.generator_core.len()
            ));
        }
        let few = file.case.iter().find(|case| case.connections.unwrap_or(file.connections) < threads);
        if let Some(few) = few {
            return Err(format!(
                "case \"{}\": each of --threads {threads} needs a connection of its own",
                few.name
            ));
        }
        let allowed = cpu::allowed_cores();
        let placement = Placement {
            server_core: arguments.server_core.or(allowed.first().copied().filter(|_| allowed.len() > 1)),
            // Several threads on one core would be none the better.
            generator_core: arguments
                .generator_core
                .first()
                .or(allowed.get(1).filter(|_| threads == 1))
                .copied(),
        };
        for core in placement.server_core.iter().chain(&arguments.generator_core) {
            cpu::check_pin(*core).map_err(|error| error.to_string())?;
        }
        let other_threads = (1..threads).map(|index| arguments.generator_core.get(index).copied()).collect();
        let mut notes = Vec::new();
        let shared = arguments.generator_core.iter().any(|core| Some(*core) == placement.server_core);
        if shared || allowed.len() <= threads {
            notes.push("servers and generator share one core: each takes the other's time".to_string());
        }
        if threads > 1 {
            notes.push(format!("this tool ran on {threads} threads; every other generator on one"));
        }
        let wanted: Vec<String> = file.case.iter().flat_map(|case| case.targets.iter().cloned()).collect();
        let programs = Programs { millrace: arguments.millrace.clone(), null: arguments.null.clone() };
        // What cannot be counted of this process cannot be of others.
        notes.extend(worker::counters_of(std::process::id(), arguments.syscalls).1);
        let peers = Peers::find(&wanted, &file.target, &programs)?;
        if peers.found.is_empty() {
            return Err(format!("none of the targets is here: {}", peers.missing.join("; ")));
        }
        Ok(Comparing {
            arguments,
            file,
            peers,
            manifest: Manifest::read(),
            placement,
            other_threads,
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
        let (json, md, html) =
            (folder.join("report.json"), folder.join("report.md"), folder.join("report.html"));
        let written = report::write_json(&comparison, &json)
            .and_then(|()| report::write(&md, markdown.as_bytes()))
            .and_then(|()| report::write(&html, page::page(&comparison).as_bytes()));
        if let Err(error) = written {
            return run::failed(&error);
        }
        println!("written: {}, {} and {}", html.display(), md.display(), json.display());
        let invalid = self.measurements.iter().any(|one| one.verdict == Verdict::Invalid);
        let failed =
            comparison.incomplete.is_some() || !self.failed.is_empty() || self.measurements.is_empty();
        let differ = comparison.agreements().any(|one| one.outcome == Outcome::Differs);
        if differ {
            eprintln!(
                "loadgen: another generator's figure differs from this one's and should not; see \"outcome\""
            );
        }
        if failed || invalid || differ { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS }
    }

    fn conclude(&self, incomplete: Option<String>) -> Comparison {
        let cases = self.file.case.iter().filter_map(|case| self.conclude_case(case)).collect();
        Comparison {
            schema: SCHEMA,
            title: self.file.title.clone(),
            manifest: self.manifest.clone(),
            server_core: self.placement.server_core,
            generator_core: self.placement.generator_core,
            generator_threads: self.arguments.threads as usize,
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
                let own = case.loop_text();
                let driven_by = self.peers.get(target).map_or(String::new(), |peer| peer.driven_by(own));
                (!mine.is_empty()).then(|| Row {
                    driven_by,
                    ..row(target, &mine, &subjects, *target == subject, self.arguments.seed)
                })
            })
            .collect();
        if rows.is_empty() {
            return None;
        }
        let stages = case.targets.iter().filter_map(|target| stage_rows(target, &of(target))).collect();
        let goals = case.goals.iter().map(|goal| goal_report(goal, &rows)).collect();
        let tools =
            rows.iter().filter_map(|row| Some(self.peers.get(&row.target)?.other_tool()?.explained()));
        let mut tools: Vec<String> = tools.map(str::to_string).collect();
        tools.dedup();
        let agreement = rows
            .iter()
            .filter_map(|theirs| {
                let peer = self.peers.get(&theirs.target)?;
                let ours = peer.undriven.as_ref().unwrap_or(&subject);
                let ours = rows.iter().find(|row| row.target == *ours && row.target != theirs.target)?;
                let (our_rounds, their_rounds) = (of(&ours.target), of(&theirs.target));
                let ours = Side { row: ours, measurements: &our_rounds };
                let theirs = Side { row: theirs, measurements: &their_rounds };
                let connections = case.connections.unwrap_or(self.file.connections);
                Some(agreement::between(
                    case,
                    peer.other_tool()?,
                    &ours,
                    &theirs,
                    connections,
                    self.arguments.seed,
                ))
            })
            .flatten()
            .collect();
        Some(CaseReport { case: case.clone(), subject, rows, stages, goals, tools, agreement })
    }
}
