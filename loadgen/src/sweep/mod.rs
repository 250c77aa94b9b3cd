//! `loadgen sweep`: latency against offered rate. `loadgen knee`: the highest rate that keeps an objective.
//!
//! Both are rows of open-loop runs against one server. A rate that is not reached has no latency: its backlog grows
//! as long as one measures, and a percentile of that would say for how long one did. Such a row says so in place of
//! figures.

pub mod objective;
pub mod search;

use crate::cli::RunArgs;
use crate::client::{Load, Plan, Stop};
use crate::report::table::{align, micros, number, percent, thousands};
use crate::report::{self, Placement, Report, RunReport};
use crate::run::{self, EXIT_FAILED, failed, measure, usage};
use crate::schedule::Arrival;
use crate::system::Manifest;
use crate::verdict::Verdict;
use clap::Args;
use objective::Objective;
use reactor::io::stop::StopSignal;
use search::{Found, Phase, Search, Settings};
use serde::Serialize;
use std::process::ExitCode;

/// Name and version of the JSON schema of `knee`.
pub const KNEE_SCHEMA: &str = "millrace-loadgen-knee-1";
/// Shares of the closed loop's maximum that a sweep without rates measures.
const SHARES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Flags of `sweep`.
#[derive(Clone, Debug, Args)]
pub struct SweepArgs {
    /// What every run has in common.
    #[command(flatten)]
    pub run: RunArgs,
    /// Rates to offer. Without --rates and --from: tenths of what a closed loop reaches, measured first.
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = crate::cli::parse_rate, conflicts_with = "from")]
    pub rates: Vec<f64>,
    /// The first of --steps rates, each the same factor above the last.
    #[arg(long, value_name = "N", value_parser = crate::cli::parse_rate, requires = "to")]
    pub from: Option<f64>,
    /// The last of them.
    #[arg(long, value_name = "N", value_parser = crate::cli::parse_rate, requires = "from")]
    pub to: Option<f64>,
    /// How many.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub steps: u32,
    /// How often; every second time on the way down.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub repeats: u32,
}

/// Flags of `knee`.
#[derive(Clone, Debug, Args)]
pub struct KneeArgs {
    /// What every run has in common.
    #[command(flatten)]
    pub run: RunArgs,
    /// What the response time must keep: p99<1ms, p99.9<5ms, mean<300us.
    #[arg(long, default_value = "p99<1ms", value_name = "OBJECTIVE")]
    pub objective: Objective,
    /// The rate to begin with.
    #[arg(long, default_value = "1000", value_name = "N", value_parser = crate::cli::parse_rate)]
    pub from: f64,
    /// No higher rate is tried on the way up.
    #[arg(long, default_value = "10000000", value_name = "N", value_parser = crate::cli::parse_rate)]
    pub to: f64,
    /// The knee is found to this part of itself.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE", value_parser = parse_resolution)]
    pub resolution: f64,
    /// Measurements that confirm it; two thirds of them must meet the objective.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
}

fn parse_resolution(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a resolution is a number such as 0.05".to_string())?;
    if (0.001..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("a resolution lies between 0.001 and 1".into())
    }
}

/// Runs against one server, one after the other.
struct Bench<'a> {
    arguments: &'a RunArgs,
    stop: &'a StopSignal,
    /// The server is filled once.
    filled: bool,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a RunArgs, stop: &'a StopSignal) -> Result<Bench<'a>, String> {
        if arguments.rate.is_some() {
            return Err("--rate is one rate, and many are measured here: leave it out".into());
        }
        if matches!(arguments.arrival, Some(Arrival::Trace(_))) {
            return Err("a trace brings its own course of rates: use `loadgen run`".into());
        }
        // Of the loop that is asked for in the end: what it refuses is refused before anything is measured.
        arguments.plan_with(Load::Open { rate: 1.0, arrival: arguments.arrival() })?;
        run::worker_options(arguments)?;
        Ok(Bench { arguments, stop, filled: false })
    }

    fn measure(
        &mut self,
        title: &str,
        load: Load,
        change: impl FnOnce(&mut Plan),
    ) -> Result<RunReport, String> {
        let mut plan = self.arguments.plan_with(load)?;
        plan.prefill &= !std::mem::replace(&mut self.filled, true);
        change(&mut plan);
        let (options, notes) = run::worker_options(self.arguments)?;
        let placement = Placement { generator_core: self.arguments.pin.first().copied(), server_core: None };
        let run = measure(title, plan, options, placement, self.stop);
        let mut run = run.map_err(|failure| failure.to_string())?;
        run.notes.extend(notes);
        Ok(run)
    }

    fn at(&mut self, rate: f64, title: &str, change: impl FnOnce(&mut Plan)) -> Result<RunReport, String> {
        let load = Load::Open { rate, arrival: self.arguments.arrival() };
        self.measure(title, load, change)
    }
}

/// The server did not keep up, so there is no latency to speak of.
pub fn is_overloaded(run: &RunReport) -> bool {
    run.reasons.iter().any(|reason| reason.rule == "rate_not_reached") || run.is_backlogged
}

/// Why a run is INVALID by what the server answered, or did not: no other rate would make that better.
fn misbehaviour(run: &RunReport) -> Option<&str> {
    let rules = ["errors", "wrong_replies", "no_replies"];
    let reason =
        run.reasons.iter().find(|reason| reason.grade == Verdict::Invalid && rules.contains(&reason.rule))?;
    Some(&reason.text)
}

/// `loadgen sweep`.
pub fn sweep(arguments: &SweepArgs, stop: &StopSignal) -> ExitCode {
    let mut bench = match Bench::new(&arguments.run, stop) {
        Ok(bench) => bench,
        Err(error) => return usage(&error),
    };
    if let Err(error) = run::check_outputs(&arguments.run) {
        return failed(&error);
    }
    let manifest = Manifest::read();
    let mut runs = Vec::new();
    let mut ended = None;
    let rates = match sweep_rates(arguments, &mut bench, &mut runs) {
        Ok(rates) => rates,
        Err(error) if runs.is_empty() => return failed(&error),
        // The closed loop was measured, if not to its end.
        Err(error) => {
            ended = Some(error);
            Vec::new()
        }
    };
    'all: for repeat in 0..arguments.repeats {
        let mut order: Vec<f64> = rates.clone();
        if repeat % 2 == 1 {
            order.reverse();
        }
        for rate in order {
            match bench.at(rate, &format!("{}/s", thousands(rate)), |_| {}) {
                Ok(run) => {
                    let overloaded = is_overloaded(&run);
                    let broken = run.incomplete.clone().filter(|_| !run.is_backlogged);
                    eprintln!("{}", row_text(&run));
                    runs.push(run);
                    if let Some(why) = broken {
                        ended = Some(why);
                        break 'all;
                    }
                    // Higher rates would say the same, and take longer to drain.
                    if overloaded && repeat % 2 == 0 {
                        break;
                    }
                }
                Err(error) => {
                    ended = Some(error);
                    break 'all;
                }
            }
        }
    }
    println!("{}", rate_table(&runs));
    let report = Report::new("Latency against offered rate", manifest, runs);
    if let Err(error) = run::write_outputs(&arguments.run, &report) {
        return failed(&error);
    }
    match ended {
        Some(why) => failed(&why),
        None if report.runs.iter().all(|run| run.verdict == Verdict::Invalid) => {
            failed("no run of the sweep is to be believed; its reasons are in the report")
        }
        None => ExitCode::SUCCESS,
    }
}

fn sweep_rates(
    arguments: &SweepArgs,
    bench: &mut Bench<'_>,
    runs: &mut Vec<RunReport>,
) -> Result<Vec<f64>, String> {
    if !arguments.rates.is_empty() {
        let mut rates = arguments.rates.clone();
        rates.sort_by(f64::total_cmp);
        return Ok(rates);
    }
    if let (Some(from), Some(to)) = (arguments.from, arguments.to) {
        return Ok(geometric(from, to, arguments.steps));
    }
    let load = Load::Closed { pipeline: 1 };
    let run = bench.measure("closed loop", load, |plan| {
        // A number of requests was meant for the runs of the sweep.
        if let Stop::Requests(_) = plan.stop {
            plan.stop = Stop::After(2_000_000_000);
        }
    })?;
    let maximum = run.throughput_per_s.unwrap_or(0.0);
    let incomplete = run.incomplete.clone();
    runs.push(run);
    match incomplete {
        Some(why) => Err(why),
        None if maximum < 10.0 => Err("the closed loop reached less than ten requests a second".into()),
        None => Ok(SHARES.iter().map(|share| (maximum * share).floor()).collect()),
    }
}

/// `steps` rates from one to another, each the same factor above the last.
fn geometric(from: f64, to: f64, steps: u32) -> Vec<f64> {
    let factor = (to / from).powf(1.0 / f64::from(steps - 1));
    (0..steps).map(|step| from * factor.powi(step as i32)).collect()
}

/// `loadgen knee`.
pub fn knee(arguments: &KneeArgs, stop: &StopSignal) -> ExitCode {
    let mut bench = match Bench::new(&arguments.run, stop) {
        Ok(_) if arguments.to < arguments.from => return usage("--to lies below --from"),
        Ok(bench) => bench,
        Err(error) => return usage(&error),
    };
    if let Err(error) = run::check_outputs(&arguments.run) {
        return failed(&error);
    }
    let manifest = Manifest::read();
    let settings = Settings {
        from: arguments.from,
        to: arguments.to,
        resolution: arguments.resolution,
        repeats: arguments.repeats,
    };
    let mut search = Search::new(settings);
    let (mut trials, mut runs) = (Vec::new(), Vec::new());
    let mut incomplete = None;
    while let Some((phase, rate)) = search.next() {
        // A percentile that too few samples name could be neither met nor missed.
        let longer = |plan: &mut Plan| plan.stop = long_enough(plan.stop, &arguments.objective, rate);
        let run = match bench.at(rate, &format!("{}/s", thousands(rate)), longer) {
            Ok(run) => run,
            Err(error) => {
                incomplete = Some(error);
                break;
            }
        };
        if let Some(why) = run.incomplete.clone().filter(|_| !run.is_backlogged) {
            incomplete = Some(why);
            runs.push(run);
            break;
        }
        if let Some(why) = misbehaviour(&run) {
            incomplete =
                Some(format!("the server does not do what it is asked, so no rate can be found: {why}"));
            runs.push(run);
            break;
        }
        let trial = Trial::of(phase, rate, &arguments.objective, &run);
        eprintln!("{:<9} {} {}", phase_name(phase), row_text(&run), if trial.met { "met" } else { "missed" });
        search.tell(trial.met);
        trials.push(trial);
        runs.push(run);
    }
    let found = search.found();
    let report = KneeReport {
        schema: KNEE_SCHEMA,
        objective: arguments.objective,
        found: found.clone(),
        generator_was_the_limit: trials.iter().any(|trial| trial.generator_was_late && !trial.met),
        incomplete: incomplete.clone(),
        trials,
        report: Report::new("The knee", manifest, runs),
    };
    println!("{}", knee_text(&report));
    let written = match &arguments.run.json {
        Some(path) => report::write_json(&report, path),
        None => Ok(()),
    };
    // The runs' own report goes everywhere else.
    let others = RunArgs { json: None, ..arguments.run.clone() };
    if let Err(error) = written.and_then(|()| run::write_outputs(&others, &report.report)) {
        return failed(&error);
    }
    match (incomplete, found.knee_per_s) {
        (Some(why), _) => failed(&why),
        (None, Some(_)) => ExitCode::SUCCESS,
        (None, None) => ExitCode::from(EXIT_FAILED),
    }
}

/// At least as long as the objective's figure needs samples.
fn long_enough(stop: Stop, objective: &Objective, rate: f64) -> Stop {
    let samples = objective.samples_needed();
    match stop {
        Stop::After(length) => Stop::After(length.max((samples / rate * 1e9) as u64)),
        Stop::Requests(count) => Stop::Requests(count.max(samples as u64)),
    }
}

/// One measurement of a search.
#[derive(Clone, Debug, Serialize)]
struct Trial {
    phase: Phase,
    rate_per_s: f64,
    met: bool,
    /// The objective's figure; `null` where the rate was not reached.
    figure_ns: Option<u64>,
    /// It was missed, or the generator was: the figure contains its lateness.
    generator_was_late: bool,
}

impl Trial {
    fn of(phase: Phase, rate_per_s: f64, objective: &Objective, run: &RunReport) -> Trial {
        let (_, latency) = run.latency();
        let figure_ns = objective.figure_ns(latency).filter(|_| !is_overloaded(run));
        let late = ["late", "generator_saturated", "arrivals"];
        Trial {
            phase,
            rate_per_s,
            // Figures that do not describe the server keep nothing, however good they are.
            met: run.verdict != Verdict::Invalid
                && figure_ns.is_some_and(|figure_ns| objective.is_met_by(figure_ns)),
            figure_ns,
            generator_was_late: run.reasons.iter().any(|reason| late.contains(&reason.rule)),
        }
    }
}

/// The search and its runs.
#[derive(Debug, Serialize)]
struct KneeReport {
    schema: &'static str,
    objective: Objective,
    found: Found,
    /// A rate was missed while the generator was late: the knee may be its own.
    generator_was_the_limit: bool,
    incomplete: Option<String>,
    trials: Vec<Trial>,
    report: Report,
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Climb => "climb",
        Phase::Bisect => "bisect",
        Phase::Confirm => "confirm",
        Phase::ComeDown => "come down",
    }
}

fn knee_text(report: &KneeReport) -> String {
    let mut rows = vec![["search", "offered /s", "figure", "", "verdict"].map(str::to_string).to_vec()];
    for (trial, run) in report.trials.iter().zip(&report.report.runs) {
        rows.push(vec![
            phase_name(trial.phase).into(),
            thousands(trial.rate_per_s),
            trial.figure_ns.map_or("unbounded".into(), |ns| micros(Some(ns))),
            if trial.met { "met" } else { "missed" }.into(),
            run.verdict.to_string(),
        ]);
    }
    let mut text = align(&rows);
    let Found { knee_per_s, coming_down_per_s, at_the_limit } = report.found;
    let objective = &report.objective;
    text.push_str(&match knee_per_s {
        Some(knee) => format!("\n  knee: {}/s, open loop, keeps {objective}", thousands(knee)),
        None => format!("\n  no rate was found that keeps {objective}"),
    });
    if at_the_limit {
        text.push_str("; it is the highest rate allowed (--to), the knee lies beyond it");
    }
    text.push('\n');
    match coming_down_per_s {
        _ if !report.found.has_hysteresis() || report.incomplete.is_some() => {}
        Some(down) => text.push_str(&format!(
            "  hysteresis: after overload it was kept from {}/s on down only; that is the rate to plan with\n",
            thousands(down)
        )),
        None => text.push_str("  hysteresis: after overload it was kept at no rate down to 0.8 of the knee\n"),
    }
    if report.generator_was_the_limit {
        text.push_str(
            "  the generator was late where the objective was missed: the knee is a lower bound of the server's; give \
             the generator a core of its own\n",
        );
    }
    text
}

fn cells(run: &RunReport) -> Vec<String> {
    let (_, latency) = run.latency();
    let at = |quantile| match is_overloaded(run) {
        true => "unbounded".to_string(),
        false => micros(latency.at(quantile)),
    };
    vec![
        run.offered_per_s.map_or("closed loop".into(), thousands),
        run.throughput_per_s.map_or("–".into(), thousands),
        at(0.5),
        at(0.99),
        at(0.999),
        micros(run.lateness.as_ref().and_then(|lateness| lateness.at(0.99))),
        format!("{} µs", number(run.cpu.server_us_per_request, 2)),
        percent(run.cpu.generator_share),
        run.verdict.to_string(),
    ]
}

fn row_text(run: &RunReport) -> String {
    let cells = cells(run);
    format!("{:>12}/s offered, {:>12}/s served, p50 {:>9}, p99 {:>9}", cells[0], cells[1], cells[2], cells[3])
}

/// The runs of a sweep, a line each.
pub fn rate_table(runs: &[RunReport]) -> String {
    let names = [
        "offered /s",
        "served /s",
        "p50",
        "p99",
        "p99.9",
        "late p99",
        "server/request",
        "generator",
        "verdict",
    ];
    let mut rows = vec![names.map(str::to_string).to_vec()];
    rows.extend(runs.iter().map(cells));
    let loops = "  Response time of the open loop, service time of the closed one. Unbounded: more was offered than \
                 served, so the backlog grew as long as the run lasted.\n";
    format!("{}{loops}", align(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Conditions;
    use crate::report::tests::{plan, worked};

    #[test]
    fn a_run_is_as_long_as_its_percentile_needs() {
        let objective: Objective = "p99<1ms".parse().expect("well-formed");
        // 10 / (1 − 0.99) samples and some to spare: 1,250, at 100 a second 12.5 s.
        let long = |stop| long_enough(stop, &objective, 100.0);
        let Stop::After(needed) = long(Stop::After(1_000_000_000)) else { panic!("a time stays one") };
        assert!((12_490_000_000..12_510_000_000).contains(&needed), "{needed}");
        assert_eq!(long(Stop::After(20_000_000_000)), Stop::After(20_000_000_000));
        let Stop::Requests(needed) = long(Stop::Requests(5)) else { panic!("a number stays one") };
        assert!((1_249..=1_251).contains(&needed), "{needed}");
        assert_eq!(long(Stop::Requests(9_000)), Stop::Requests(9_000));
    }

    #[test]
    fn steps_of_a_sweep_are_even_factors() {
        let rates = geometric(1_000.0, 16_000.0, 5);
        let expected = [1_000.0, 2_000.0, 4_000.0, 8_000.0, 16_000.0];
        assert!(
            rates.iter().zip(expected).all(|(rate, expected)| (rate / expected - 1.0).abs() < 1e-9),
            "{rates:?}"
        );
    }

    #[test]
    fn a_rate_that_is_not_reached_has_no_latency_and_misses_every_objective() {
        let judged = |served: u64| {
            let mut worked = worked(true, 100_000);
            worked.outcome.completed_in_time = served;
            RunReport::new("r", &plan(true), worked, Placement::default(), Conditions::default())
        };
        let objective: Objective = "p99<1s".parse().expect("well-formed");
        let (good, bad) = (judged(100_000), judged(60_000));
        assert!(Trial::of(Phase::Climb, 5e4, &objective, &good).met);
        let trial = Trial::of(Phase::Climb, 5e4, &objective, &bad);
        assert_eq!((trial.met, trial.figure_ns), (false, None));
        let table = rate_table(&[good, bad]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(!lines[1].contains("unbounded") && lines[2].contains("unbounded"), "{table}");
    }
}
