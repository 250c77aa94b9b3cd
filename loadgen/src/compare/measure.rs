//! One case after the other, one target after the other: servers are started, filled, measured and put to sleep.

use super::Comparing;
use super::cases::Case;
use super::outcome::Measurement;
use super::peers::{Needs, Peer, Running, ToolLoad};
use crate::cli::interval_ns;
use crate::client::{Load, Plan, Stop};
use crate::report::table::{self, thousands};
use crate::report::{RunReport, Saturated};
use crate::run;
use crate::schedule::Arrival;
use crate::system;
use crate::verdict::{self, Evidence, Reason, Verdict};
use crate::worker::{self, Spin, WorkerOptions};
use crate::workload::keys::KeyDistribution;
use crate::workload::sizes::ValueSizes;
use crate::workload::{Protocol, WorkloadOptions};
use reactor::io::stop::StopSignal;
use std::collections::BTreeMap;

/// What an entry costs a server beside its key and value, for the question whether all fit into memory.
const ENTRY_OVERHEAD_BYTES: u64 = 100;

impl Comparing<'_> {
    /// One round of the cases that share a data set.
    pub(super) fn measure_group(
        &mut self,
        round: u32,
        cases: &[Case],
        stop: &StopSignal,
    ) -> Result<(), String> {
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
                match result {
                    Ok((server, measurement)) => {
                        servers.insert(key, server);
                        self.measurements.push(measurement);
                    }
                    Err(_) if stop.is_requested() => {}
                    // One that fails does not take the others with it. Its next case starts it anew.
                    Err(error) => {
                        let error = format!("round {round}, {}, {}: {error}", target.name, case.name);
                        eprintln!("loadgen: {error}");
                        self.failed.push(error);
                    }
                }
                if stop.is_requested() {
                    return Err("interrupted; what was measured until then is shown".into());
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
            None => Running::start(target, Needs::of(case), self.placement.server_core)?,
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
            if prefill {
                self.fill(case, target, server, stop)?;
            }
            return self.measure_with_tool(round, case, target, server, stop);
        }
        let rate = self.rate(round, case, &target.name)?;
        let title = format!("{round}/{} {}", self.file.rounds, target.name);
        let mut best: Option<RunReport> = None;
        let mut repeated = 0;
        for attempt in 0..=self.file.repeats_if_noisy {
            repeated = attempt;
            let plan = self.plan(case, server, rate, prefill && attempt == 0);
            let pid = server.pid();
            let options = WorkerOptions {
                spin: if self.placement.generator_core.is_some() { Spin::Auto } else { Spin::Never },
                server_cpu: Some(Box::new(move || system::process_cpu_ns(pid))),
                server_counters: worker::counters_of(pid, self.arguments.syscalls).0,
                ..self.options()
            };
            let run = run::measure(&title, plan, options, self.placement, stop)
                .map_err(|failure| failure.to_string())?;
            if let Some(why) = run.incomplete {
                return Err(format!("{why}{}", server.log_tail()));
            }
            let noise =
                |run: &RunReport| run.cpu.foreign_share.unwrap_or(0.0) + run.cpu.steal_share.unwrap_or(0.0);
            let noisy = is_noisy(&run.reasons);
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
            offered_per_s: rate,
            throughput_per_s: run.throughput_per_s.unwrap_or(0.0),
            server_us_per_request: run.cpu.server_us_per_request,
            generator_us_per_request: run.cpu.generator_us_per_request,
            server_cycles_per_request: run.cpu.server_cycles_per_request,
            server_instructions_per_request: run.cpu.server_instructions_per_request,
            server_syscalls_per_request: run.cpu.server_syscalls_per_request,
            server_share: run.cpu.server_share,
            generator_share: run.cpu.generator_share,
            foreign_share: run.cpu.foreign_share,
            saturated: run.cpu.saturated,
            p50_ns: latency.at(0.5),
            p99_ns: latency.at(0.99),
            lateness_p99_ns: run.lateness.as_ref().and_then(|lateness| lateness.at(0.99)),
            misses: run.counts.nulls,
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

    /// How this generator's threads run.
    fn options(&self) -> WorkerOptions {
        WorkerOptions {
            io: self.arguments.io,
            pin: self.placement.generator_core,
            others: self.other_threads.clone(),
            spin: Spin::Never,
            server_cpu: None,
            server_counters: None,
            server_is_embedded: false,
        }
    }

    /// The rate that a case asks for of a target; `None`: it is a closed loop.
    fn rate(&self, round: u32, case: &Case, target: &str) -> Result<Option<f64>, String> {
        let (Some(share), Some(of)) = (case.rate_share, &case.rate_of) else { return Ok(case.rate) };
        let reached = |one: &&Measurement| one.round == round && one.case == *of && one.target == target;
        match self.measurements.iter().find(reached) {
            Some(one) if one.throughput_per_s > 0.0 => {
                Ok(Some((one.throughput_per_s * share).floor().max(1.0)))
            }
            _ => Err(format!(
                "its rate is a share of what it reached in \"{of}\", which was not measured in this round"
            )),
        }
    }

    /// Sets every key, for a tool that does not.
    fn fill(&self, case: &Case, target: &Peer, server: &Running, stop: &StopSignal) -> Result<(), String> {
        let mut plan = self.plan(case, server, None, true);
        (plan.warmup_ns, plan.stop) = (0, Stop::Requests(1));
        plan.workload.key_prefix = target.fill_prefix.clone().unwrap_or(plan.workload.key_prefix);
        // One request and one connection are enough to fill by, whatever the case is.
        let options = WorkerOptions { others: Vec::new(), ..self.options() };
        let filled = run::measure("filling", plan, options, self.placement, stop);
        match filled.map_err(|failure| failure.to_string())?.incomplete {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// The same server driven by somebody else's load generator.
    fn measure_with_tool(
        &self,
        round: u32,
        case: &Case,
        target: &Peer,
        server: &Running,
        stop: &StopSignal,
    ) -> Result<Measurement, String> {
        let seconds = case.duration_s.unwrap_or(self.file.duration_s);
        let load = ToolLoad {
            connections: self.connections(case),
            seconds,
            requests: (self.expected_per_s(case, target) * seconds).ceil() as u64,
        };
        let mut best: Option<Measurement> = None;
        for attempt in 0..=self.file.repeats_if_noisy {
            let (before, machine) = (system::process_cpu_ns(server.pid()), system::machine_times());
            let began = std::time::Instant::now();
            let (figures, took) = server.run_tool(target, case, load, self.placement.generator_core, stop)?;
            let wall_ns = began.elapsed().as_nanos() as f64;
            let after = system::process_cpu_ns(server.pid());
            let server_ns = after.zip(before).map(|(after, before)| after.saturating_sub(before));
            // Of the time under load: what a tool does before and behind it would make both sides look idle.
            let load_ns = match target.tool.iter().any(|word| word.contains("{requests}")) {
                true if figures.throughput_per_s > 0.0 => {
                    load.requests as f64 / figures.throughput_per_s * 1e9
                }
                _ => load.seconds.ceil() * 1e9,
            };
            let server_share = server_ns.map(|ns| ns as f64 / load_ns);
            let generator_share = took.as_nanos() as f64 / load_ns;
            let others = |busy: u64| busy as f64 - took.as_nanos() as f64 - server_ns.unwrap_or(0) as f64;
            let machine = machine.zip(system::machine_times());
            let foreign_share =
                machine.map(|(before, after)| (others(after.busy_since(&before)) / wall_ns).max(0.0));
            let samples = (figures.throughput_per_s * load_ns / 1e9) as u64;
            let (verdict, reasons) = verdict::judge(&Evidence {
                samples,
                offered: samples,
                completed: samples,
                foreign_share,
                steal_share: machine.map(|(before, after)| after.steal_since(&before) as f64 / wall_ns),
                ..Evidence::default()
            });
            let noisy = is_noisy(&reasons);
            let measurement = Measurement {
                round,
                case: case.name.clone(),
                target: target.name.clone(),
                offered_per_s: None,
                throughput_per_s: figures.throughput_per_s,
                server_us_per_request: None,
                generator_us_per_request: None,
                server_cycles_per_request: None,
                server_instructions_per_request: None,
                server_syscalls_per_request: None,
                server_share,
                generator_share: Some(generator_share),
                foreign_share,
                saturated: Saturated::of(Some(generator_share), server_share),
                p50_ns: figures.p50_ns,
                p99_ns: figures.p99_ns,
                lateness_p99_ns: None,
                misses: 0,
                errors: 0,
                server_resident_bytes: system::process_resident_bytes(server.pid()),
                verdict,
                reasons: reasons.iter().map(|reason| reason.text.clone()).collect(),
                repeated: attempt,
                stages: None,
            };
            if best.as_ref().is_none_or(|best| measurement.foreign_share < best.foreign_share) {
                best = Some(measurement);
            }
            if !noisy {
                break;
            }
        }
        let measurement = best.expect("at least one attempt");
        self.tell(&measurement);
        Ok(measurement)
    }

    /// How many requests a second a tool will make, as far as is known: what it made before, else what this one did.
    fn expected_per_s(&self, case: &Case, target: &Peer) -> f64 {
        let made = |name: &str| {
            let mut before = self.measurements.iter().rev();
            before.find(|one| one.case == case.name && one.target == name).map(|one| one.throughput_per_s)
        };
        let known = made(&target.name).or_else(|| made(target.undriven.as_deref()?));
        // What redis-benchmark makes of a fast server, roughly.
        known.filter(|rate| *rate > 0.0).unwrap_or(60_000.0 * f64::from(case.pipeline.min(48)))
    }

    fn connections(&self, case: &Case) -> usize {
        case.connections.unwrap_or(self.file.connections)
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

    fn plan(&self, case: &Case, server: &Running, rate: Option<f64>, prefill: bool) -> Plan {
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
                value_bytes: ValueSizes::Fixed(case.value_size as u32),
                key_distribution: case
                    .theta
                    .map_or(KeyDistribution::Uniform, |theta| KeyDistribution::Zipf { theta }),
                commands: match (&case.command, server.protocol) {
                    (Some(command), Protocol::Resp) => vec![(command.clone(), 1)],
                    _ => Vec::new(),
                },
                http_path: server.http_path.clone(),
                http_host: "127.0.0.1".into(),
                seed: self.arguments.seed,
                ..WorkloadOptions::default()
            },
            connections: self.connections(case),
            load: match rate {
                Some(rate) => {
                    let arrival = case.arrival.as_ref().map(|arrival| arrival.parse::<Arrival>());
                    let arrival = arrival.transpose().ok().flatten().unwrap_or(Arrival::Poisson);
                    Load::Open { rate, arrival }
                }
                None => Load::Closed { pipeline: case.pipeline },
            },
            prefill,
            warmup_ns: seconds(case.warmup_s, self.file.warmup_s),
            warmup_is_tested: false,
            stop: Stop::After(duration_ns),
            drain_ns: 1_000_000_000,
            timeout_ns: 10_000_000_000,
            interval_ns: interval_ns(std::time::Duration::from_nanos(duration_ns)),
            connects_per_s: None,
            requests_per_connection: None,
        }
    }
}

/// Whether something else ran beside a measurement.
fn is_noisy(reasons: &[Reason]) -> bool {
    reasons.iter().any(|reason| ["foreign_cpu", "steal"].contains(&reason.rule))
}

/// What a target's data needs in memory.
fn data_bytes(case: &Case) -> u64 {
    case.keys * (case.key_size as u64 + case.value_size as u64 + ENTRY_OVERHEAD_BYTES)
}
