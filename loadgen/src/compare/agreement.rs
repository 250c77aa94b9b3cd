//! Whether another load generator and this one say the same of the same server.
//!
//! A closed loop's throughput is as much the generator's as the server's: a connection that has its reply waits until the
//! generator turns to it again, and in that time asks nothing. So two generators must agree where both leave their core idle
//! for half of the time or more, because then the server alone sets the pace; beyond that each figure is the speed of the one
//! that measured it. Where the throughput is not the same load, the latency is not of the same load either.
//!
//! What a generator's clock leaves out shows by Little's law: a closed loop of N requests under way has throughput × latency
//! = N if the clock runs from reply to reply. The part that is missing is what the generator keeps to itself.

use super::cases::{Case, ToolOutput};
use super::outcome::{Measurement, Row};
use super::statistics::Spread;
use crate::report::table::percent;
use crate::verdict::FOREIGN_SHARE_MAX;
use serde::Serialize;

/// Throughputs that mean the same lie this near each other.
pub const THROUGHPUT_WITHIN: f64 = 0.05;
/// Medians of the latency that mean the same do.
pub const MEDIAN_WITHIN: f64 = 0.10;
/// A generator that uses more of its core sets the pace of a closed loop together with the server.
const GENERATOR_SHARE_MAX: f64 = 0.5;

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both say the same.
    Agrees,
    /// They do not, and should.
    Differs,
    /// They need not.
    NotComparable,
    /// One of them says nothing.
    NotMeasured,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Outcome::Agrees => "agrees",
            Outcome::Differs => "DIFFERS",
            Outcome::NotComparable => "not comparable",
            Outcome::NotMeasured => "not measured",
        })
    }
}

/// One figure of another generator beside this one's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// The target that the other one drove.
    pub target: String,
    /// The same server, driven by this tool.
    pub undriven: String,
    /// What is held side by side.
    pub figure: &'static str,
    /// Theirs over ours, paired by round.
    pub ratio: Option<Spread>,
    /// How far from 1 its median may lie.
    pub within: f64,
    /// What became of it.
    pub outcome: Outcome,
    /// Why they need not agree, and what is known of the difference.
    pub why: Option<String>,
}

impl Agreement {
    /// For a table: tool, figure, ratio, allowed, outcome, why.
    pub fn cells(&self) -> Vec<String> {
        vec![
            format!("{} / {}", self.target, self.undriven),
            self.figure.into(),
            self.ratio.as_ref().map_or("–".into(), Spread::ratio_text),
            format!("± {}", percent(Some(self.within))),
            self.outcome.to_string(),
            self.why.clone().unwrap_or("–".into()),
        ]
    }
}

/// Of the table of them.
pub const COLUMNS: [&str; 6] = ["theirs / ours", "figure", "ratio", "allowed", "outcome", "why"];

/// One side of a comparison: its row, its measurements.
pub struct Side<'a> {
    /// What is known of it over all rounds.
    pub row: &'a Row,
    /// Round by round.
    pub measurements: &'a [&'a Measurement],
}

/// Holds what another tool says of a server beside what this one does: throughput, then the median of the latency.
pub fn between(
    case: &Case,
    tool: ToolOutput,
    ours: &Side<'_>,
    theirs: &Side<'_>,
    connections: usize,
    seed: u64,
) -> [Agreement; 2] {
    let ratio = |pick: &dyn Fn(&Measurement) -> Option<f64>| {
        let pair = |one: &&Measurement| {
            let same_round = ours.measurements.iter().find(|other| other.round == one.round)?;
            Some(pick(one)? / pick(same_round).filter(|value| *value > 0.0)?)
        };
        Spread::of(&theirs.measurements.iter().filter_map(pair).collect::<Vec<_>>(), seed)
    };
    let of = |figure, within, ratio: Option<Spread>, why: Option<String>| {
        let outcome = match (&ratio, &why) {
            (None, _) => Outcome::NotMeasured,
            (Some(_), Some(_)) => Outcome::NotComparable,
            (Some(ratio), None) if (ratio.median - 1.0).abs() <= within => Outcome::Agrees,
            (Some(_), None) => Outcome::Differs,
        };
        let (target, undriven) = (theirs.row.target.clone(), ours.row.target.clone());
        Agreement { target, undriven, figure, ratio, within, outcome, why }
    };
    let other_load = tool
        .other_throughput(case)
        .or_else(|| disturbed(ours, theirs))
        .or_else(|| paced_by_a_generator(ours.row, theirs.row));
    let other_clock = match (&other_load, tool.other_median(case)) {
        (Some(_), _) => {
            let covered = |side: &Side<'_>| percent(covered(side.row, connections, case.pipeline));
            Some(format!(
                "see throughput; of its connections' time its clock covers {}, this tool's {}",
                covered(theirs),
                covered(ours)
            ))
        }
        (None, why) => why.map(str::to_string),
    };
    [
        of("throughput", THROUGHPUT_WITHIN, ratio(&|one| Some(one.throughput_per_s)), other_load),
        of("median latency", MEDIAN_WITHIN, ratio(&|one| one.p50_ns.map(|ns| ns as f64)), other_clock),
    ]
}

/// Says so where something else ran beside either.
fn disturbed(ours: &Side<'_>, theirs: &Side<'_>) -> Option<String> {
    let foreign = |side: &Side<'_>| {
        let shares: Vec<f64> = side.measurements.iter().filter_map(|one| one.foreign_share).collect();
        Spread::of(&shares, 0).map_or(0.0, |spread| spread.median)
    };
    let most = foreign(ours).max(foreign(theirs));
    (most > FOREIGN_SHARE_MAX).then(|| {
        format!("other programs used {} of a core: free the machine, and measure again", percent(Some(most)))
    })
}

/// Says so where the pace was not the server's alone.
fn paced_by_a_generator(ours: &Row, theirs: &Row) -> Option<String> {
    let share = |row: &Row| row.generator_share.as_ref().map(|share| share.median);
    match (share(theirs), share(ours)) {
        (Some(theirs), Some(ours)) if theirs.max(ours) > GENERATOR_SHARE_MAX => Some(format!(
            "the generators set the pace, not the server alone: the other one used {} of a core, this one {}",
            percent(Some(theirs)),
            percent(Some(ours))
        )),
        (Some(_), Some(_)) => None,
        _ => Some("how busy a generator was is not known".into()),
    }
}

/// The part of its connections' time that a closed loop's clock covers: throughput × median over what is under way. About 1
/// where it waits for nothing but replies; the median stands for the mean, so it may be a little over.
fn covered(row: &Row, connections: usize, pipeline: u32) -> Option<f64> {
    let seconds = row.p50_ns.as_ref()?.median / 1e9;
    Some(row.throughput_per_s.median * seconds / (connections as f64 * f64::from(pipeline)))
}

/// All of a comparison in a line; `None`: no other generator took part.
pub fn summary<'a>(all: impl Iterator<Item = &'a Agreement>) -> Option<String> {
    let all: Vec<Outcome> = all.map(|one| one.outcome).collect();
    let count = |outcome| all.iter().filter(|one| **one == outcome).count();
    (!all.is_empty()).then(|| {
        format!(
            "Cross-check: of {} figures of other generators {} agree with this one's, {} differ, {} cannot be compared, {} were \
             not measured.",
            all.len(),
            count(Outcome::Agrees),
            count(Outcome::Differs),
            count(Outcome::NotComparable),
            count(Outcome::NotMeasured)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::cases::CaseFile;
    use super::super::outcome::{row, tests::measurement};
    use super::*;

    /// Three rounds of a target with these figures.
    fn rounds(target: &str, throughput: f64, p50_us: Option<u64>, share: Option<f64>) -> Vec<Measurement> {
        let one = |round| Measurement {
            // Both sides drift alike from round to round: pairs do not.
            throughput_per_s: throughput * (1.0 + f64::from(round) / 10.0),
            p50_ns: p50_us.map(|us| us * 1_000),
            generator_share: share,
            ..measurement(round, target, 1.0)
        };
        (1..=3).map(one).collect()
    }

    fn check(case: &Case, tool: ToolOutput, ours: &[Measurement], theirs: &[Measurement]) -> [Agreement; 2] {
        let (ours, theirs): (Vec<_>, Vec<_>) = (ours.iter().collect(), theirs.iter().collect());
        let (our_row, their_row) = (row("us", &ours, &[], true, 1), row("them", &theirs, &[], true, 1));
        let ours = Side { row: &our_row, measurements: &ours };
        let theirs = Side { row: &their_row, measurements: &theirs };
        between(case, tool, &ours, &theirs, 50, 1)
    }

    fn case(pipeline: u32) -> Case {
        Case { pipeline, ..CaseFile::default().case.remove(0) }
    }

    #[test]
    fn idle_generators_must_agree_to_five_and_ten_percent() {
        let ours = rounds("us", 2_480.0, Some(20_100), Some(0.05));
        let outcome = |throughput, p50, share| {
            let theirs = rounds("them", throughput, Some(p50), Some(share));
            check(&case(1), ToolOutput::K6Summary, &ours, &theirs).map(|one| one.outcome)
        };
        use Outcome::*;
        assert_eq!(outcome(2_480.0, 20_100, 0.3), [Agrees, Agrees]);
        assert_eq!(outcome(2_480.0 * 0.951, 20_100, 0.3), [Agrees, Agrees]);
        assert_eq!(outcome(2_480.0 * 1.049, 20_100, 0.3), [Agrees, Agrees]);
        assert_eq!(outcome(2_480.0 * 0.949, 20_100, 0.3), [Differs, Agrees]);
        assert_eq!(outcome(2_480.0 * 1.051, 22_000, 0.3), [Differs, Agrees]);
        assert_eq!(outcome(2_480.0, 18_000, 0.3), [Agrees, Differs]);
        assert_eq!(outcome(2_480.0, 22_200, 0.5), [Agrees, Differs]);
        assert_eq!(outcome(2_480.0, 20_100, 0.51), [NotComparable, NotComparable]);
    }

    #[test]
    fn a_busy_generator_is_no_witness_and_its_clock_is_said() {
        let ours = rounds("us", 190_000.0, Some(213), Some(0.97));
        let theirs = rounds("them", 76_000.0, Some(280), Some(0.98));
        let [throughput, median] = check(&case(1), ToolOutput::RedisBenchmarkCsv, &ours, &theirs);
        assert_eq!((throughput.outcome, median.outcome), (Outcome::NotComparable, Outcome::NotComparable));
        let why = throughput.why.clone().expect("a reason");
        assert!(why.contains("98 %") && why.contains("97 %"), "{why}");
        // 76,000 × 1.2 a second × 280 µs are 25.5 of 50 connections; the rest of the time it was not their turn.
        let why = median.why.expect("a reason");
        assert!(why.contains("51 %") && why.contains("97 %"), "{why}");
        let [_, median] = check(&case(16), ToolOutput::MemtierJson, &ours, &theirs);
        let why = median.why.expect("a reason");
        assert!(why.contains("covers 3 %"), "sixteen times as many are under way: {why}");
        let ratio = throughput.ratio.expect("it was measured");
        assert!((ratio.median - 0.4).abs() < 1e-9 && ratio.max - ratio.min < 1e-9, "paired: {ratio:?}");
        // Nor is a machine on which something else runs.
        let noisy = |mut all: Vec<Measurement>| {
            all.iter_mut().for_each(|one| one.foreign_share = Some(0.06));
            all
        };
        let idle = rounds("us", 2_480.0, Some(20_100), Some(0.05));
        for (ours, theirs) in [(noisy(idle.clone()), idle.clone()), (idle.clone(), noisy(idle.clone()))] {
            let [throughput, median] = check(&case(1), ToolOutput::WrkText, &ours, &theirs);
            assert_eq!(
                (throughput.outcome, median.outcome),
                (Outcome::NotComparable, Outcome::NotComparable)
            );
            assert!(throughput.why.is_some_and(|why| why.contains("other programs used 6 %")));
        }
        let unknown = check(&case(1), ToolOutput::WrkText, &ours, &rounds("them", 1.0, Some(1), None));
        assert!(unknown[0].why.as_ref().is_some_and(|why| why.contains("not known")));
    }

    #[test]
    fn definitions_that_are_others_are_named() {
        let ours = rounds("us", 1_000.0, Some(50_000), Some(0.1));
        let theirs = rounds("them", 1_000.0, Some(50_000), Some(0.1));
        let why = |case: &Case, tool| {
            check(case, tool, &ours, &theirs).map(|one| (one.outcome, one.why.unwrap_or_default()))
        };
        let [throughput, median] = why(&case(16), ToolOutput::RedisBenchmarkCsv);
        assert_eq!((throughput.0, median.0), (Outcome::Agrees, Outcome::NotComparable));
        assert!(median.1.contains("first read"), "{}", median.1);
        assert!(why(&case(16), ToolOutput::WrkText)[0].1.contains("no pipeline"));
        assert!(why(&case(16), ToolOutput::NullClientText)[1].1.contains("last reply"));
        assert_eq!(why(&case(16), ToolOutput::MemtierJson).map(|one| one.0), [Outcome::Agrees; 2]);
        let mix = Case { sets: 1, ..case(1) };
        assert!(why(&mix, ToolOutput::RedisBenchmarkCsv)[0].1.contains("a mix"));
        assert_eq!(why(&mix, ToolOutput::MemtierJson)[0].0, Outcome::Agrees);
        let open = Case { rate: Some(5.0), ..case(1) };
        assert!(why(&open, ToolOutput::MemtierJson)[0].1.contains("an open one"));
        // Nothing is held beside nothing.
        let silent = rounds("them", 1_000.0, None, Some(0.1));
        let [throughput, median] = check(&case(1), ToolOutput::RedisBenchmarkCsv, &ours, &silent);
        assert_eq!((throughput.outcome, median.outcome), (Outcome::Agrees, Outcome::NotMeasured));
        let line = summary([&throughput, &median].into_iter()).expect("there are some");
        assert!(
            line.contains("of 2 figures") && line.contains("1 agree") && line.contains("0 differ"),
            "{line}"
        );
        assert_eq!(summary([].into_iter()), None);
    }
}
