//! Median, range and bootstrap interval of a few values.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

const RESAMPLES: usize = 10_000;
/// With fewer values no interval is worth a word. The bootstrap interval of the median of three is their range, and of three
/// ratios of two servers that are the same every fourth time all lie on one side of 1; of five, every sixteenth time.
const VALUES_MIN: usize = 5;

/// A handful of values in a few figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Bootstrap 95 % interval of the median. With five values it is close to their range: more cannot be known.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// In the order they were measured.
    pub values: Vec<f64>,
}

impl Spread {
    /// `None` where there are none.
    pub fn of(values: &[f64], seed: u64) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = bootstrap(values, seed);
        Some(Spread { median: median(&sorted), min, max, low, high, values: values.to_vec() })
    }

    /// `4.200 [4.150–4.250] (4.100–4.300)`.
    pub fn text(&self) -> String {
        let interval = self.interval_text(|value| format!("{value:.3}"));
        format!("{:.3}{interval} ({:.3}–{:.3})", self.median, self.min, self.max)
    }

    /// ` [4.150–4.250]`, with the numbers as `show` writes them; nothing of a single value.
    pub fn interval_text(&self, show: impl Fn(f64) -> String) -> String {
        match self.values.len() {
            0 | 1 => String::new(),
            _ => format!(" [{}–{}]", show(self.low), show(self.high)),
        }
    }

    /// `0.81 [0.80–0.83] (0.79–0.85)`.
    pub fn ratio_text(&self) -> String {
        format!("{:.2} [{:.2}–{:.2}] ({:.2}–{:.2})", self.median, self.low, self.high, self.min, self.max)
    }

    /// What a ratio says: `below` if its interval lies below 1, `above` if above. Fewer than [`VALUES_MIN`] values say
    /// nothing.
    pub fn words(&self, below: &'static str, above: &'static str) -> &'static str {
        match self.values.len() {
            few if few < VALUES_MIN => "cannot tell",
            _ if self.high < 1.0 => below,
            _ if self.low > 1.0 => above,
            _ => "cannot tell",
        }
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// 2.5th and 97.5th percentile of the medians of resamples.
fn bootstrap(values: &[f64], seed: u64) -> (f64, f64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            resample.fill_with(|| values[random.random_range(0..values.len())]);
            resample.sort_by(f64::total_cmp);
            median(&resample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        let spread = Spread::of(&[3.0, 1.0, 2.0], 1).expect("values");
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0], 1).expect("values").median, 2.5);
        assert_eq!(Spread::of(&[], 1), None);
        assert_eq!(spread.text(), "2.000 [1.000–3.000] (1.000–3.000)");
        assert_eq!(Spread::of(&[4.0], 1).expect("a value").text(), "4.000 (4.000–4.000)");
    }

    #[test]
    fn the_interval_is_narrow_for_many_like_values_and_covers_the_truth() {
        let seed = 42;
        println!("seed {seed}");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut covered = 0;
        for run in 0..40 {
            let values: Vec<f64> = (0..25).map(|_| 0.8 + 0.1 * random.random::<f64>()).collect();
            let spread = Spread::of(&values, run).expect("values");
            assert!(spread.low <= spread.median && spread.median <= spread.high);
            assert!(spread.high - spread.low < 0.09);
            covered += u32::from(spread.low <= 0.85 && 0.85 <= spread.high);
        }
        assert!(covered >= 34, "{covered} of 40 intervals hold the true median");
    }

    #[test]
    fn words_need_an_interval_off_one() {
        let words = |values: &[f64]| Spread::of(values, 1).expect("values").words("less", "more");
        assert_eq!(words(&[0.8, 0.81, 0.82, 0.8, 0.79]), "less");
        assert_eq!(words(&[1.2, 1.21, 1.3, 1.25, 1.22]), "more");
        // Three of identical servers lie on one side of 1 in a quarter of all comparisons, four in an eighth.
        assert_eq!(words(&[1.2, 1.21, 1.3]), "cannot tell");
        assert_eq!(words(&[0.8, 0.81, 0.82, 0.8]), "cannot tell");
        assert_eq!(words(&[0.9, 1.1, 1.0, 0.95, 1.05]), "cannot tell");
        assert_eq!(words(&[0.5, 0.5]), "cannot tell");
        // The median alone decides nothing.
        assert_eq!(words(&[0.9, 0.95, 1.2, 0.9, 1.1]), "cannot tell");
        assert_eq!(words(&[0.8, 1.05, 1.1, 1.2, 0.9]), "cannot tell");
    }
}
