//! What a comparison found: measurements, a row for each target of a case, and how figures aimed at came out.

use super::agreement::Agreement;
use super::cases::{Case, Goal};
use super::peers::Peer;
use super::statistics::Spread;
use crate::report::Saturated;
use crate::stages::{StageReport, StagesReport};
use crate::system::Manifest;
use crate::verdict::Verdict;
use serde::Serialize;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    pub(super) round: u32,
    pub(super) case: String,
    pub(super) target: String,
    /// Requests a second asked for (open loop).
    pub(super) offered_per_s: Option<f64>,
    pub(super) throughput_per_s: f64,
    pub(super) server_us_per_request: Option<f64>,
    pub(super) generator_us_per_request: Option<f64>,
    pub(super) server_cycles_per_request: Option<f64>,
    pub(super) server_instructions_per_request: Option<f64>,
    pub(super) server_syscalls_per_request: Option<f64>,
    pub(super) server_share: Option<f64>,
    pub(super) generator_share: Option<f64>,
    pub(super) foreign_share: Option<f64>,
    pub(super) saturated: Saturated,
    /// Service time (closed loop) or response time (open loop).
    pub(super) p50_ns: Option<u64>,
    pub(super) p99_ns: Option<u64>,
    /// What this generator added to it (open loop).
    pub(super) lateness_p99_ns: Option<u64>,
    pub(super) misses: u64,
    pub(super) errors: u64,
    pub(super) server_resident_bytes: Option<u64>,
    pub(super) verdict: Verdict,
    pub(super) reasons: Vec<String>,
    /// How often it was repeated because the machine was noisy.
    pub(super) repeated: u32,
    /// Where the server says its time went; `null` of servers that do not.
    pub(super) stages: Option<StagesReport>,
}

/// A target's figures in a case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) target: String,
    /// Whose load it was, and in which loop.
    pub(super) driven_by: String,
    pub(super) rounds: usize,
    pub(super) throughput_per_s: Spread,
    pub(super) server_us_per_request: Option<Spread>,
    pub(super) generator_us_per_request: Option<Spread>,
    pub(super) server_cycles_per_request: Option<Spread>,
    pub(super) server_instructions_per_request: Option<Spread>,
    pub(super) server_syscalls_per_request: Option<Spread>,
    pub(super) server_share: Option<Spread>,
    pub(super) generator_share: Option<Spread>,
    pub(super) p50_ns: Option<Spread>,
    pub(super) p99_ns: Option<Spread>,
    /// Of this generator (open loop).
    pub(super) lateness_p99_ns: Option<Spread>,
    pub(super) server_resident_bytes: Option<Spread>,
    /// The most frequent answer.
    pub(super) saturated: Saturated,
    pub(super) suspect: usize,
    pub(super) invalid: usize,
    /// The subject's CPU per request over this target's, paired by round.
    pub(super) cpu_ratio: Option<Spread>,
    /// The subject's throughput over this target's, paired by round.
    pub(super) throughput_ratio: Option<Spread>,
    /// The subject's 99th percentile over this target's, paired by round.
    pub(super) p99_ratio: Option<Spread>,
    /// What `cpu_ratio` says in words.
    pub(super) cpu_words: Option<&'static str>,
    /// What `throughput_ratio` says in words.
    pub(super) throughput_words: Option<&'static str>,
    /// What `p99_ratio` says in words.
    pub(super) p99_words: Option<&'static str>,
}

/// A case's outcome.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) case: Case,
    pub(super) subject: String,
    pub(super) rows: Vec<Row>,
    /// Of the targets that time their stages.
    pub(super) stages: Vec<StageRows>,
    pub(super) goals: Vec<GoalReport>,
    /// What other load generators' figures mean, where some took part.
    pub(super) tools: Vec<String>,
    /// Whether their figures agree with this tool's, where they mean the same.
    pub(super) agreement: Vec<Agreement>,
}

/// A target's stages in a case: medians over rounds, those left out that took no time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StageRows {
    pub(super) target: String,
    pub(super) rows: Vec<StageRow>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct StageRow {
    pub(super) kind: &'static str,
    pub(super) stage: &'static str,
    pub(super) mean_ns: Option<f64>,
    pub(super) p50_ns: Option<f64>,
    pub(super) p99_ns: Option<f64>,
}

/// A figure that was aimed at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GoalReport {
    pub(super) text: String,
    pub(super) measured: Option<f64>,
    pub(super) met: Option<bool>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) schema: &'static str,
    pub(super) title: String,
    pub(super) manifest: Manifest,
    pub(super) server_core: Option<usize>,
    pub(super) generator_core: Option<usize>,
    pub(super) generator_threads: usize,
    pub(super) seed: u64,
    pub(super) targets: Vec<Peer>,
    pub(super) missing: Vec<String>,
    /// Measurements that failed, and why.
    pub(super) failed: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) incomplete: Option<String>,
    pub(super) cases: Vec<CaseReport>,
    pub(super) measurements: Vec<Measurement>,
}

impl Comparison {
    /// What other generators' figures came to, in all cases.
    pub(super) fn agreements(&self) -> impl Iterator<Item = &Agreement> {
        self.cases.iter().flat_map(|case| &case.agreement)
    }
}

pub(super) fn row(
    target: &str,
    mine: &[&Measurement],
    subjects: &[&Measurement],
    is_subject: bool,
    seed: u64,
) -> Row {
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
    let p99_ratio = ratio(p99);
    let all =
        [Saturated::Server, Saturated::Generator, Saturated::Both, Saturated::Neither, Saturated::Unknown];
    let count = |kind: &Saturated| mine.iter().filter(|one| one.saturated == *kind).count();
    let graded = |grade| mine.iter().filter(|one| one.verdict == grade).count();
    Row {
        target: target.into(),
        driven_by: String::new(),
        rounds: mine.len(),
        throughput_per_s: spread(throughput).expect("there is at least one measurement"),
        server_us_per_request: spread(server_us),
        generator_us_per_request: spread(&|one| one.generator_us_per_request),
        server_cycles_per_request: spread(&|one| one.server_cycles_per_request),
        server_instructions_per_request: spread(&|one| one.server_instructions_per_request),
        server_syscalls_per_request: spread(&|one| one.server_syscalls_per_request),
        server_share: spread(&|one| one.server_share),
        generator_share: spread(&|one| one.generator_share),
        p50_ns: spread(&|one| one.p50_ns.map(|ns| ns as f64)),
        p99_ns: spread(p99),
        lateness_p99_ns: spread(&|one| one.lateness_p99_ns.map(|ns| ns as f64)),
        p99_words: p99_ratio.as_ref().map(|ratio| ratio.words("faster", "slower")),
        p99_ratio,
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
pub(super) fn stage_rows(target: &str, mine: &[&Measurement]) -> Option<StageRows> {
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

pub(super) fn goal_report(goal: &Goal, rows: &[Row]) -> GoalReport {
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
    if let Some(limit) = goal.lateness_p99_us_max {
        let measured = median(|row| &row.lateness_p99_ns).map(|ns| ns / 1e3);
        return GoalReport {
            text: format!("p99 of this generator's lateness at {} ≤ {limit} µs", goal.against),
            measured,
            met: measured.map(|measured| measured <= limit),
        };
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
pub(super) mod tests {
    use super::super::cases::CaseFile;
    use super::super::markdown;
    use super::*;

    pub fn measurement(round: u32, target: &str, server_us: f64) -> Measurement {
        Measurement {
            round,
            case: "GET".into(),
            target: target.into(),
            offered_per_s: None,
            throughput_per_s: 1e6 / server_us,
            server_us_per_request: Some(server_us),
            generator_us_per_request: Some(2.0),
            server_cycles_per_request: None,
            server_instructions_per_request: Some(1_234.5),
            server_syscalls_per_request: Some(0.125),
            server_share: Some(1.0),
            generator_share: Some(0.5),
            foreign_share: Some(0.0),
            saturated: Saturated::Server,
            p50_ns: Some(100_000),
            p99_ns: None,
            lateness_p99_ns: None,
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
        let goal =
            |limit| Goal { against: "them".into(), throughput_ratio_min: Some(limit), ..Goal::default() };
        assert_eq!(goal_report(&goal(1.2), std::slice::from_ref(&row_of_them)).met, Some(true));
        assert_eq!(goal_report(&goal(1.3), std::slice::from_ref(&row_of_them)).met, Some(false));
        // The same latency in every round: a goal for it looks at nothing else.
        let slow = |one: &&Measurement| Measurement { p99_ns: Some(200_000), ..(*one).clone() };
        let slow: Vec<Measurement> = theirs.iter().map(slow).collect();
        let fast: Vec<Measurement> =
            ours.iter().map(|one| Measurement { p99_ns: Some(100_000), ..(*one).clone() }).collect();
        let row = row("them", &slow.iter().collect::<Vec<_>>(), &fast.iter().collect::<Vec<_>>(), false, 1);
        assert_eq!((row.p99_words, row_of_them.p99_words), (Some("faster"), None));
        let goal = |limit| Goal { against: "them".into(), p99_ratio_max: Some(limit), ..Goal::default() };
        assert_eq!(goal_report(&goal(0.51), std::slice::from_ref(&row)).met, Some(true));
        assert_eq!(goal_report(&goal(0.49), std::slice::from_ref(&row)).met, Some(false));
    }

    #[test]
    fn a_goal_may_be_the_generators_own_lateness() {
        let late = |round| Measurement {
            lateness_p99_ns: Some(15_000),
            p99_ns: Some(300_000),
            ..measurement(round, "us", 4.0)
        };
        let all: Vec<Measurement> = (1..=3).map(late).collect();
        let rows = [row("us", &all.iter().collect::<Vec<_>>(), &[], true, 1)];
        let goal = |limit| Goal { against: "us".into(), lateness_p99_us_max: Some(limit), ..Goal::default() };
        let report = goal_report(&goal(20.0), &rows);
        assert_eq!((report.measured, report.met), (Some(15.0), Some(true)));
        assert_eq!(goal_report(&goal(14.9), &rows).met, Some(false));
        // A closed loop has none.
        let closed = [measurement(1, "us", 4.0)];
        let rows = [row("us", &closed.iter().collect::<Vec<_>>(), &[], true, 1)];
        assert_eq!(goal_report(&goal(20.0), &rows).met, None);
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
            rows: vec![Row { driven_by: "loadgen".into(), ..row("us", &ours, &ours, true, 1) }],
            stages: stage_rows("us", &ours).into_iter().collect(),
            goals: vec![GoalReport { text: "a goal".into(), measured: Some(1.5), met: Some(false) }],
            tools: vec!["wrk: a closed loop".into()],
            agreement: Vec::new(),
        };
        let mut text = String::new();
        markdown::case(&mut text, &report);
        let stage = "| read: execute | 1.00 µs | 1.12 µs | 1.12 µs |";
        for expected in [
            "closed loop",
            "saturated",
            "server",
            "4.000",
            "**missed**",
            "| us | loadgen | 3 |",
            stage,
            "1234.5",
            "0.125",
            "wrk: a closed",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}
