//! Latencies as HDR histograms, and the rule which percentiles may be named.
//!
//! Nanoseconds, three significant digits, up to an hour. The timeline keeps a second, coarser histogram of the
//! current interval only: small enough to be read and cleared in a few microseconds, so that statistics do not
//! delay the requests they describe.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longer latencies are recorded as this.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// The percentiles a report names, as quantiles.
pub const QUANTILES: [f64; 7] = [0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 0.99999];

/// A percentile is a statement about the samples beyond it: with fewer than ten of them it is noise.
pub fn enough_samples(samples: u64, quantile: f64) -> bool {
    samples as f64 * (1.0 - quantile) >= 10.0 - 1e-6
}

/// An empty histogram with this project's range and precision.
pub fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants that fit")
}

/// One interval of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Its start, milliseconds since the measurement began.
    pub start_ms: u64,
    /// How long it was.
    pub length_ms: f64,
    /// Replies that arrived in it.
    pub completed: u64,
    /// Median latency of these.
    pub p50_ns: Option<u64>,
    /// 99th percentile of these.
    pub p99_ns: Option<u64>,
    /// Their largest latency.
    pub max_ns: Option<u64>,
}

/// The history of a run, interval by interval.
#[derive(Clone, Debug)]
pub struct Timeline {
    current: Histogram<u64>,
    completed: u64,
    intervals: Vec<Interval>,
}

impl Default for Timeline {
    fn default() -> Timeline {
        let current = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("constants that fit");
        Timeline { current, completed: 0, intervals: Vec::new() }
    }
}

impl Timeline {
    /// `count` replies that each took `ns`.
    #[inline]
    pub fn record(&mut self, ns: u64, count: u64) {
        self.current.saturating_record_n(ns, count);
    }

    /// `count` replies, whether or not their latency is recorded.
    #[inline]
    pub fn complete(&mut self, count: u64) {
        self.completed += count;
    }

    /// Ends an interval that ran from `start_ns` to `end_ns` of the measurement.
    pub fn end_interval(&mut self, start_ns: u64, end_ns: u64) -> Interval {
        let samples = self.current.len();
        let at =
            |quantile| enough_samples(samples, quantile).then(|| self.current.value_at_quantile(quantile));
        let interval = Interval {
            start_ms: start_ns / 1_000_000,
            length_ms: (end_ns - start_ns) as f64 / 1e6,
            completed: self.completed,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            max_ns: (samples > 0).then(|| self.current.max()),
        };
        self.current.reset();
        self.completed = 0;
        self.intervals.push(interval);
        interval
    }

    /// Every interval so far.
    pub fn into_intervals(self) -> Vec<Interval> {
        self.intervals
    }
}

/// One named percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentile {
    /// Between 0 and 1.
    pub quantile: f64,
    /// Nanoseconds; `None` where there are too few samples to name it.
    pub ns: Option<u64>,
}

/// A histogram in a few figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many were recorded.
    pub samples: u64,
    /// `None` where nothing was recorded.
    pub min_ns: Option<u64>,
    /// The mean.
    pub mean_ns: Option<f64>,
    /// Those of [`QUANTILES`].
    pub percentiles: Vec<Percentile>,
    /// The largest.
    pub max_ns: Option<u64>,
}

impl Summary {
    /// Reads a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Summary {
        let samples = histogram.len();
        let some = samples > 0;
        let percentiles = QUANTILES
            .iter()
            .map(|quantile| Percentile {
                quantile: *quantile,
                ns: enough_samples(samples, *quantile).then(|| histogram.value_at_quantile(*quantile)),
            })
            .collect();
        Summary {
            samples,
            min_ns: some.then(|| histogram.min()),
            mean_ns: some.then(|| histogram.mean()),
            percentiles,
            max_ns: some.then(|| histogram.max()),
        }
    }

    /// The percentile of that quantile, if it may be named.
    pub fn at(&self, quantile: f64) -> Option<u64> {
        self.percentiles.iter().find(|percentile| percentile.quantile == quantile)?.ns
    }
}

/// The points of an HDR plot: (quantile, ns), as far as the samples carry.
pub fn curve(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut points = Vec::new();
    // Twelve points a decade of 1/(1−q), evenly spaced on the plot's logarithmic axis.
    for step in 0..=72 {
        let quantile = 1.0 - 10f64.powf(-f64::from(step) / 12.0);
        if !enough_samples(histogram.len(), quantile) {
            break;
        }
        points.push((quantile, histogram.value_at_quantile(quantile)));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(values: impl Iterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = empty();
        values.for_each(|value| histogram.saturating_record(value));
        histogram
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        for (quantile, needed) in [(0.5, 20), (0.9, 100), (0.99, 1_000), (0.999, 10_000), (0.9999, 100_000)] {
            assert!(enough_samples(needed, quantile), "{quantile}");
            assert!(!enough_samples(needed - 1, quantile), "{quantile}");
        }
        let summary = Summary::of(&recorded((0..999).map(|_| 1_000)));
        assert!(summary.at(0.9).is_some());
        assert_eq!(summary.at(0.99), None);
        assert_eq!(summary.samples, 999);
    }

    #[test]
    fn percentiles_are_right_within_the_precision() {
        let summary = Summary::of(&recorded((1..=100_000).map(|value| value * 1_000)));
        assert_eq!(summary.samples, 100_000);
        for (quantile, expected) in [(0.5, 50_000_000.0), (0.99, 99_000_000.0), (0.999, 99_900_000.0)] {
            let found = summary.at(quantile).expect("enough samples") as f64;
            assert!((found / expected - 1.0).abs() < 0.001, "{quantile}: {found}");
        }
        assert_eq!(Summary::of(&empty()).max_ns, None);
        assert!(recorded([u64::MAX].into_iter()).max() >= LATENCY_NS_MAX);
    }

    #[test]
    fn an_interval_holds_its_own_replies_only() {
        let mut timeline = Timeline::default();
        timeline.record(5_000_000, 100);
        timeline.complete(120);
        let first = timeline.end_interval(0, 100_000_000);
        assert_eq!((first.completed, first.p99_ns), (120, None));
        assert!((first.p50_ns.expect("enough") as f64 / 5e6 - 1.0).abs() < 0.01);
        let second = timeline.end_interval(100_000_000, 200_000_000);
        assert_eq!((second.start_ms, second.completed, second.max_ns), (100, 0, None));
        assert_eq!(timeline.into_intervals(), [first, second]);
    }

    #[test]
    fn the_curve_stops_where_samples_do() {
        let points = curve(&recorded(1..=10_000));
        assert!((points.last().expect("points").0 - 0.999).abs() < 1e-9);
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
