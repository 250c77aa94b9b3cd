//! Whether requests left as they were drawn.
//!
//! A generator can offer the right rate and still send in bursts (memtier_benchmark's rate limiter once sent 2,000
//! requests every 20 ms): its percentiles then describe the generator. So a few of the requests are picked while
//! the run lasts, with the moment each was meant to leave and the moment it left, and looked at afterwards.
//!
//! **Picking** is random and independent of everything, one request in m: what is picked of a Poisson process is a
//! Poisson process m times slower. m is chosen so that picked requests lie two milliseconds apart or more: a turn
//! of the loop, some ten microseconds in which all that is due leaves together, then is no part of the picture.
//! What it does to latencies is lateness, and has its own figure and rule.
//!
//! **Poisson**: the Anderson-Darling statistic of the gaps between picked sends against the exponential
//! distribution of the rate asked for. **Any other process**: how far the quantiles of the gaps of sends lie from
//! those of the gaps drawn, on average, in mean gaps. On the hot path all this costs a decrement.

use crate::schedule::Arrival;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Picked requests lie this far apart on average, or more.
const SPAN_S: f64 = 2e-3;
/// No more are picked.
const PICKED_MAX: usize = 2_000;
/// With fewer, nothing is said.
const PICKED_MIN: usize = 100;
/// A²  of gaps that are what they should be exceeds this once in a thousand runs (Anderson-Darling, distribution
/// fully known).
pub const ANDERSON_DARLING_MAX: f64 = 6.0;
/// Quantiles of sent gaps may be off by this part of a mean gap, on average.
pub const DISTANCE_MAX: f64 = 0.1;

/// Picks requests while a run lasts.
#[derive(Clone, Debug)]
pub struct Picker {
    /// So many requests are passed over before the next one is picked.
    skip: u64,
    /// One in so many is picked.
    one_in: f64,
    random: Xoshiro256PlusPlus,
    intended: Vec<u64>,
    sent: Vec<u64>,
}

impl Picker {
    /// For a run of about `expected` requests at `rate` a second.
    pub fn new(rate: f64, expected: f64, seed: u64) -> Picker {
        let one_in = (rate * SPAN_S).max(expected / PICKED_MAX as f64).max(1.0);
        let random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x7069_636b);
        let mut picker = Picker { skip: 0, one_in, random, intended: Vec::new(), sent: Vec::new() };
        picker.intended.reserve_exact(PICKED_MAX);
        picker.sent.reserve_exact(PICKED_MAX);
        picker.draw();
        picker
    }

    /// A request of the measurement leaves.
    #[inline]
    pub fn see(&mut self, intended: u64, sent: u64) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.pick(intended, sent);
    }

    #[cold]
    fn pick(&mut self, intended: u64, sent: u64) {
        // Twice as many as expected: the rest of a long run is not looked at, and no memory is asked for.
        if self.sent.len() < PICKED_MAX {
            self.intended.push(intended);
            self.sent.push(sent);
        }
        self.draw();
    }

    /// The number passed over is geometric: each request is picked with the same chance, whatever the others were.
    fn draw(&mut self) {
        let chance = 1.0 / self.one_in;
        self.skip = match chance < 1.0 {
            true => ((1.0 - self.random.random::<f64>()).ln() / (1.0 - chance).ln()) as u64,
            false => 0,
        };
    }

    /// Adds what another thread has picked of the same arrivals.
    pub fn merge(&mut self, other: Picker) {
        self.intended.extend(other.intended);
        self.sent.extend(other.sent);
    }

    /// What the picked ones say.
    pub fn judge(mut self, arrival: &Arrival, rate: f64) -> Option<ArrivalTest> {
        if self.sent.len() < PICKED_MIN {
            return None;
        }
        // Connections are served in any order within a turn.
        self.intended.sort_unstable();
        self.sent.sort_unstable();
        let gaps = |times: &[u64]| -> Vec<f64> {
            let mut gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
            gaps.sort_by(f64::total_cmp);
            gaps
        };
        let (drawn, sent) = (gaps(&self.intended), gaps(&self.sent));
        let mean_ns = 1e9 / rate * self.one_in;
        let (statistic, value, limit) = match arrival {
            Arrival::Poisson => {
                (Statistic::AndersonDarling, anderson_darling(&sent, mean_ns), ANDERSON_DARLING_MAX)
            }
            _ => (Statistic::QuantileDistance, quantile_distance(&drawn, &sent), DISTANCE_MAX),
        };
        Some(ArrivalTest { statistic, value, limit, picked: self.sent.len(), one_in: self.one_in })
    }
}

/// How arrivals were tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Against the exponential distribution of the rate.
    AndersonDarling,
    /// Between quantiles drawn and quantiles sent, in mean gaps.
    QuantileDistance,
}

/// The outcome of the test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ArrivalTest {
    /// Which.
    pub statistic: Statistic,
    /// Its value.
    pub value: f64,
    /// Beyond it the arrivals were not as drawn.
    pub limit: f64,
    /// Requests looked at.
    pub picked: usize,
    /// One request in so many was picked.
    pub one_in: f64,
}

impl ArrivalTest {
    /// Whether requests left as drawn.
    pub fn is_as_drawn(&self) -> bool {
        self.value <= self.limit
    }
}

/// A² of sorted values against the exponential distribution with this mean.
fn anderson_darling(sorted: &[f64], mean: f64) -> f64 {
    let count = sorted.len() as f64;
    // Two sends of one turn have a gap of nothing, whose logarithm would decide alone: no probability below that of
    // the smallest value expected.
    let floor = 0.5 / count;
    let at = |value: f64| (1.0 - (-value / mean).exp()).clamp(floor, 1.0 - floor);
    let sum: f64 = sorted
        .iter()
        .zip(sorted.iter().rev())
        .enumerate()
        .map(|(index, (low, high))| (2.0 * index as f64 + 1.0) * (at(*low).ln() + (1.0 - at(*high)).ln()))
        .sum();
    -count - sum / count
}

/// Mean distance between the quantiles of two sorted lists of one length, in means of the first.
fn quantile_distance(drawn: &[f64], sent: &[f64]) -> f64 {
    let distance: f64 = drawn.iter().zip(sent).map(|(drawn, sent)| (drawn - sent).abs()).sum();
    let whole: f64 = drawn.iter().sum();
    if whole > 0.0 { distance / whole } else { f64::from(u8::from(distance > 0.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Schedule;

    /// Sends a schedule as `leave` says and judges it.
    fn judged(
        arrival: Arrival,
        drawn: Arrival,
        rate: f64,
        seed: u64,
        leave: impl Fn(u64) -> u64,
    ) -> ArrivalTest {
        let count = (rate * 4.0) as usize;
        let mut schedule = Schedule::new(drawn, rate, seed);
        let mut picker = Picker::new(rate, count as f64, seed);
        for _ in 0..count {
            let intended = schedule.take_due(u64::MAX).expect("always due");
            picker.see(intended, leave(intended));
        }
        picker.judge(&arrival, rate).expect("enough were picked")
    }

    #[test]
    fn poisson_sends_pass_at_any_rate_even_in_turns_of_twenty_microseconds() {
        for rate in [200.0, 5_000.0, 200_000.0] {
            let accused = (0..60)
                .filter(|seed| {
                    let turn = |at: u64| at.div_ceil(20_000) * 20_000;
                    let test = judged(Arrival::Poisson, Arrival::Poisson, rate, *seed, turn);
                    assert_eq!(test.statistic, Statistic::AndersonDarling);
                    assert!((100..=2_000).contains(&test.picked), "{}", test.picked);
                    !test.is_as_drawn()
                })
                .count();
            // One in a thousand is expected to be accused for nothing; two of sixty would be a mistake of ours.
            assert!(accused <= 1, "{accused} of 60 runs at {rate}/s");
        }
    }

    #[test]
    fn bursts_beats_and_equal_gaps_are_no_poisson_process() {
        for seed in 0..10 {
            // memtier's rate limiter: all that is due, every 20 ms.
            let burst = |at: u64| at.div_ceil(20_000_000) * 20_000_000;
            let test = judged(Arrival::Poisson, Arrival::Poisson, 50_000.0, seed, burst);
            assert!(test.value > 10.0 * ANDERSON_DARLING_MAX, "seed {seed}: {test:?}");
            // Equal gaps: seen where every request is looked at.
            let test = judged(Arrival::Poisson, Arrival::Constant, 300.0, seed, |at| at);
            assert!(!test.is_as_drawn(), "seed {seed}: {test:?}");
            // A generator that is stopped for 30 ms in every 100 and sends what was due then.
            let stopped = |at: u64| at.max(at / 100_000_000 * 100_000_000 + 30_000_000);
            let test = judged(Arrival::Poisson, Arrival::Poisson, 20_000.0, seed, stopped);
            assert!(!test.is_as_drawn(), "seed {seed}: {test:?}");
        }
    }

    #[test]
    fn other_processes_are_held_against_what_was_drawn() {
        let others = [
            Arrival::Constant,
            Arrival::Pareto { shape: 1.5 },
            Arrival::OnOff { on_s: 0.05, off_s: 0.05 },
            Arrival::Ramp { to: 4_000.0, over_s: 4.0 },
        ];
        for arrival in others {
            for rate in [1_000.0, 40_000.0] {
                let late = |at: u64| at + 5_000 + at % 7 * 3_000;
                let test = judged(arrival.clone(), arrival.clone(), rate, 3, late);
                assert_eq!(test.statistic, Statistic::QuantileDistance);
                assert!(test.is_as_drawn(), "{arrival} at {rate}: {test:?}");
                let burst = |at: u64| at.div_ceil(20_000_000) * 20_000_000;
                let test = judged(arrival.clone(), arrival.clone(), rate, 3, burst);
                assert!(!test.is_as_drawn(), "{arrival} at {rate}: {test:?}");
            }
        }
    }

    #[test]
    fn the_statistic_is_that_of_the_textbook() {
        // Of the exact quantiles (i − 1/2)/n of the distribution itself, A² is close to its smallest possible value.
        let quantiles: Vec<f64> =
            (0..1_000).map(|i| -(1.0 - (f64::from(i) + 0.5) / 1_000.0).ln() * 7.0).collect();
        assert!(anderson_darling(&quantiles, 7.0).abs() < 0.05);
        // Three values worked out by hand: F = 0.25, 0.5, 0.75.
        let three: Vec<f64> = [0.25f64, 0.5, 0.75].iter().map(|p| -(1.0 - p).ln()).collect();
        let sum = 2.0 * 0.25f64.ln() + 6.0 * 0.5f64.ln() + 10.0 * 0.75f64.ln();
        assert!((anderson_darling(&three, 1.0) - (-3.0 - sum / 3.0)).abs() < 1e-12);
        assert_eq!(quantile_distance(&[1.0, 3.0], &[1.0, 3.0]), 0.0);
        assert_eq!(quantile_distance(&[1.0, 3.0], &[0.0, 4.0]), 0.5);
    }

    #[test]
    fn too_few_say_nothing() {
        let mut picker = Picker::new(10.0, 50.0, 1);
        (0..99).for_each(|at| picker.see(at, at));
        assert_eq!(picker.judge(&Arrival::Poisson, 10.0), None);
    }
}
