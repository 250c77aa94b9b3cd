//! When each request of an open loop is meant to be sent.
//!
//! The arrivals are a function of seed, rate and process alone: nothing the server does can move one. They are
//! drawn in order, always ahead of the moment they are due, so a run of an hour needs no more memory than one of
//! a second. One process feeds all connections, dealt round-robin: connections that each kept a clock of their
//! own would beat in phase (memtier's rate limiter sends all its connections' requests in one burst).

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Exp1};
use serde::Serialize;

/// The distribution of the gaps between arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// Exponential gaps: independent users.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// The arrivals of one run, in nanoseconds since its start.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Xoshiro256PlusPlus,
    arrival: Arrival,
    gap_ns: f64,
    /// Exact time of the last arrival drawn. A float keeps fractions of a nanosecond, so that a constant rate
    /// does not drift by rounding; 2^53 ns are 104 days.
    at_ns: f64,
    next: u64,
}

impl Schedule {
    /// Arrivals at `rate` a second on average, from time 0.
    pub fn new(arrival: Arrival, rate: f64, seed: u64) -> Schedule {
        assert!(rate.is_finite() && rate > 0.0, "a rate is a positive number");
        let random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5c4e_d01e_a221_7a15);
        let mut schedule = Schedule { random, arrival, gap_ns: 1e9 / rate, at_ns: 0.0, next: 0 };
        schedule.draw();
        schedule
    }

    /// The next arrival, not taken.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.next
    }

    /// Takes the next arrival if it is due at `now`.
    #[inline]
    pub fn take_due(&mut self, now: u64) -> Option<u64> {
        if self.next > now {
            return None;
        }
        let due = self.next;
        self.draw();
        Some(due)
    }

    #[inline]
    fn draw(&mut self) {
        let gaps: f64 = match self.arrival {
            Arrival::Poisson => Exp1.sample(&mut self.random),
            Arrival::Constant => 1.0,
        };
        self.at_ns += gaps * self.gap_ns;
        self.next = self.at_ns as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(arrival: Arrival, rate: f64, seed: u64, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrival, rate, seed);
        (0..count).map(|_| schedule.take_due(u64::MAX).expect("always due")).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals_and_another_seed_others() {
        let first = draw(Arrival::Poisson, 1e5, 7, 10_000);
        assert_eq!(first, draw(Arrival::Poisson, 1e5, 7, 10_000));
        assert_ne!(first, draw(Arrival::Poisson, 1e5, 8, 10_000));
    }

    #[test]
    fn arrivals_do_not_depend_on_when_they_are_asked_for() {
        let expected = draw(Arrival::Poisson, 1e6, 3, 5_000);
        let mut schedule = Schedule::new(Arrival::Poisson, 1e6, 3);
        let mut taken = Vec::new();
        // Ask rarely and often in turn, as a stalled and a spinning generator would.
        let mut now = 0;
        while taken.len() < expected.len() {
            now += if taken.len() % 2 == 0 { 100_000 } else { 100 };
            while let Some(due) = schedule.take_due(now) {
                assert!(due <= now && schedule.peek() >= due);
                taken.push(due);
            }
        }
        assert_eq!(taken[..expected.len()], expected);
    }

    #[test]
    fn constant_arrivals_are_even_and_do_not_drift() {
        let arrivals = draw(Arrival::Constant, 3e5, 1, 300_000);
        assert_eq!(arrivals[299_999], 1_000_000_000);
        let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.into_iter().all(|gap| gap == 3333 || gap == 3334));
    }

    #[test]
    fn poisson_gaps_have_the_mean_the_spread_and_the_shape() {
        let rate = 50_000.0;
        for seed in 0..5 {
            let arrivals = draw(Arrival::Poisson, rate, seed, 200_000);
            let gaps: Vec<f64> =
                arrivals.windows(2).map(|pair| (pair[1] - pair[0]) as f64 * rate / 1e9).collect();
            let count = gaps.len() as f64;
            let mean = gaps.iter().sum::<f64>() / count;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
            // Five standard errors: 1/√n for the mean, √(8/n) for the variance of an exponential.
            assert!((mean - 1.0).abs() < 5.0 / count.sqrt(), "seed {seed}: mean {mean}");
            assert!((variance - 1.0).abs() < 5.0 * (8.0 / count).sqrt(), "seed {seed}: variance {variance}");
            // Kolmogorov-Smirnov distance to 1 − e^−x, at a level no honest seed reaches.
            let mut sorted = gaps;
            sorted.sort_by(f64::total_cmp);
            let distance = sorted
                .iter()
                .enumerate()
                .map(|(rank, gap)| ((rank as f64 + 0.5) / count - (1.0 - (-gap).exp())).abs())
                .fold(0.0, f64::max);
            assert!(distance < 2.2 / count.sqrt(), "seed {seed}: distance {distance}");
        }
    }
}
