//! Whether a run was the same at its end as at its beginning.
//!
//! A percentile over a run in which latency kept rising is the percentile of no state the server was ever in: it
//! describes how long one measured. So the medians of the intervals are looked at, in their order. Mann-Kendall's test
//! says whether they rise or fall more than chance would have them, and the last third against the first says
//! whether by enough to matter; only both together are held against a run.

use crate::histogram::Interval;
use serde::Serialize;

/// With fewer intervals nothing is said.
const INTERVALS_MIN: usize = 10;
/// Beyond this many standard deviations of Mann-Kendall's statistic it is no chance (one run in a thousand).
const DEVIATIONS_MAX: f64 = 3.29;
/// The last third's median may differ by this part of the first third's.
const CHANGE_MAX: f64 = 0.20;
/// The same of a warm-up that may end: one in twenty by chance, and a twentieth.
const SETTLED_DEVIATIONS_MAX: f64 = 1.96;
const SETTLED_CHANGE_MAX: f64 = 0.05;

/// What became of the latency while a run lasted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trend {
    /// Mann-Kendall's statistic in standard deviations; positive: it rose.
    pub deviations: f64,
    /// Median of the first third of the intervals' medians.
    pub first_ns: f64,
    /// Of the last third's.
    pub last_ns: f64,
}

impl Trend {
    /// Of these intervals; `None`: too few.
    pub fn of(intervals: &[Interval]) -> Option<Trend> {
        let medians: Vec<f64> =
            intervals.iter().filter_map(|interval| Some(interval.p50_ns? as f64)).collect();
        Trend::of_medians(&medians)
    }

    /// Of medians of equal spans of time, in their order; `None`: too few.
    pub fn of_medians(medians: &[f64]) -> Option<Trend> {
        if medians.len() < INTERVALS_MIN {
            return None;
        }
        let third = medians.len() / 3;
        let (first_ns, last_ns) = (median(&medians[..third]), median(&medians[medians.len() - third..]));
        Some(Trend { deviations: mann_kendall(medians), first_ns, last_ns })
    }

    /// Whether a warm-up may end: stricter than [`is_flat`](Trend::is_flat), since to go on costs half a second, and to be wrong
    /// the run.
    pub fn has_settled(&self) -> bool {
        self.deviations.abs() <= SETTLED_DEVIATIONS_MAX || self.change() <= SETTLED_CHANGE_MAX
    }

    fn change(&self) -> f64 {
        (self.last_ns - self.first_ns).abs() / self.first_ns.max(1.0)
    }

    /// Whether there is none worth a word.
    pub fn is_flat(&self) -> bool {
        self.deviations.abs() <= DEVIATIONS_MAX || self.change() <= CHANGE_MAX
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// How many pairs rise less how many fall, in standard deviations, corrected for ties.
fn mann_kendall(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mut score: f64 = 0.0;
    for (index, earlier) in values.iter().enumerate() {
        for later in &values[index + 1..] {
            score += match later.total_cmp(earlier) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Less => -1.0,
                std::cmp::Ordering::Equal => 0.0,
            };
        }
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let weight = |count: f64| count * (count - 1.0) * (2.0 * count + 5.0);
    let tied: f64 = sorted.chunk_by(|a, b| a == b).map(|alike| weight(alike.len() as f64)).sum();
    let variance = (weight(count) - tied) / 18.0;
    if variance <= 0.0 || score == 0.0 {
        return 0.0;
    }
    // One less, towards zero: the statistic moves in steps of two.
    (score - score.signum()) / variance.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    fn intervals(medians: impl Iterator<Item = u64>) -> Vec<Interval> {
        let interval = |(index, p50): (usize, u64)| Interval {
            start_ms: index as u64 * 100,
            length_ms: 100.0,
            completed: 100,
            p50_ns: Some(p50),
            p99_ns: None,
            max_ns: None,
        };
        medians.enumerate().map(interval).collect()
    }

    #[test]
    fn noise_is_no_trend() {
        let accused = (0..200)
            .filter(|seed| {
                let mut random = Xoshiro256PlusPlus::seed_from_u64(*seed);
                let noisy = (0..40).map(|_| 100_000 + random.random_range(0..60_000));
                !Trend::of(&intervals(noisy)).expect("enough").is_flat()
            })
            .count();
        assert!(accused <= 1, "{accused} of 200");
        // A single stall moves nothing; neither does a slow drift by a tenth.
        let stall = (0..40).map(|index| if index == 30 { 9_000_000 } else { 100_000 + index % 3 });
        assert!(Trend::of(&intervals(stall)).expect("enough").is_flat());
        let drift = Trend::of(&intervals((0..40).map(|index| 100_000 + index * 250))).expect("enough");
        assert!(drift.deviations > DEVIATIONS_MAX && drift.is_flat());
    }

    #[test]
    fn a_growing_backlog_and_a_warm_up_that_was_too_short_are_trends() {
        let rising = Trend::of(&intervals((0..20).map(|index| 100_000 + index * 20_000))).expect("enough");
        assert!(!rising.is_flat() && rising.deviations > 0.0 && rising.last_ns > rising.first_ns);
        let falling = Trend::of(&intervals((0..20).map(|index| 500_000 - index * 20_000))).expect("enough");
        assert!(!falling.is_flat() && falling.deviations < 0.0);
    }

    #[test]
    fn the_statistic_is_that_of_the_textbook() {
        assert_eq!(mann_kendall(&[1.0; 12]), 0.0);
        // 1 to 5 in order: S = 10, variance 5·4·15/18.
        let expected = 9.0 / (300.0f64 / 18.0).sqrt();
        assert!((mann_kendall(&[1.0, 2.0, 3.0, 4.0, 5.0]) - expected).abs() < 1e-12);
        assert!((mann_kendall(&[5.0, 4.0, 3.0, 2.0, 1.0]) + expected).abs() < 1e-12);
        assert_eq!(Trend::of(&intervals(0..9)), None);
    }
}
