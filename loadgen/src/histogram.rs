//! Latencies as HDR histograms, and the rule which percentiles may be named.
//!
//! Nanoseconds, three significant digits, up to an hour. The timeline keeps a second, coarser histogram of the
//! current interval only: small enough to be read and cleared in a few microseconds, so that statistics do not
//! delay the requests they describe.

use crate::worker::IntervalPart;
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

impl Interval {
    fn of(span_ns: (u64, u64), completed: u64, latencies: &Histogram<u64>) -> Interval {
        let samples = latencies.len();
        let at = |quantile| enough_samples(samples, quantile).then(|| latencies.value_at_quantile(quantile));
        Interval {
            start_ms: span_ns.0 / 1_000_000,
            length_ms: (span_ns.1 - span_ns.0) as f64 / 1e6,
            completed,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            max_ns: (samples > 0).then(|| latencies.max()),
        }
    }
}

/// The intervals of several threads on their way to become those of all. An interval is whole when every thread has ended
/// its part; what is not whole in the end counts as far as it goes.
#[derive(Debug)]
pub struct Merging {
    threads: usize,
    parts: std::collections::BTreeMap<u64, (usize, IntervalPart)>,
    whole: Vec<Interval>,
}

impl Merging {
    /// Of so many threads.
    pub fn new(threads: usize) -> Merging {
        Merging { threads, parts: Default::default(), whole: Vec::new() }
    }

    /// Takes a part; the interval, if it is whole with it.
    pub fn add(&mut self, part: IntervalPart) -> Option<Interval> {
        let number = part.number;
        let count = match self.parts.get_mut(&number) {
            None => {
                self.parts.insert(number, (1, part));
                1
            }
            Some((count, sum)) => {
                sum.span_ns = (sum.span_ns.0.min(part.span_ns.0), sum.span_ns.1.max(part.span_ns.1));
                sum.completed += part.completed;
                sum.latencies.add(part.latencies).expect("all have the same range");
                *count += 1;
                *count
            }
        };
        if count < self.threads {
            return None;
        }
        let (_, sum) = self.parts.remove(&number)?;
        let interval = Interval::of(sum.span_ns, sum.completed, &sum.latencies);
        self.whole.push(interval);
        Some(interval)
    }

    /// All intervals.
    pub fn end(self) -> Vec<Interval> {
        let rest = self.parts.into_values();
        let rest = rest.map(|(_, sum)| Interval::of(sum.span_ns, sum.completed, &sum.latencies));
        self.whole.into_iter().chain(rest).collect()
    }
}

/// The history of a run, interval by interval.
#[derive(Clone, Debug)]
pub struct Timeline {
    current: Histogram<u64>,
    completed: u64,
    intervals: Vec<Interval>,
    /// Ended by [`Timeline::end_part`].
    parts: u64,
}

/// Two significant digits: small enough to be read and cleared while requests wait.
fn coarse() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("constants that fit")
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { current: coarse(), completed: 0, intervals: Vec::new(), parts: 0 }
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

    /// Ends a thread's part of an interval, and leaves the percentiles to others.
    pub fn end_part(&mut self, span_ns: (u64, u64)) -> IntervalPart {
        let number = self.parts;
        self.parts += 1;
        let latencies = std::mem::replace(&mut self.current, coarse());
        IntervalPart { number, span_ns, completed: std::mem::take(&mut self.completed), latencies }
    }

    /// Ends an interval that ran from `start_ns` to `end_ns` of the measurement.
    pub fn end_interval(&mut self, start_ns: u64, end_ns: u64) -> Interval {
        let interval = Interval::of((start_ns, end_ns), self.completed, &self.current);
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
    /// Lower end of its 95 % interval: the sample that many standard deviations of the rank below.
    pub low_ns: Option<u64>,
    /// Upper end.
    pub high_ns: Option<u64>,
}

/// The 95 % interval of a percentile, by order statistics: the number of samples below it is binomial, so its rank
/// lies within np ± 1.96·√(np(1−p)). It takes samples as independent; a stall that hits many together makes it wider.
fn interval_of(histogram: &Histogram<u64>, quantile: f64) -> (u64, u64) {
    let samples = histogram.len() as f64;
    let margin = 1.96 * (samples * quantile * (1.0 - quantile)).sqrt() / samples;
    let at = |quantile: f64| histogram.value_at_quantile(quantile.clamp(0.0, 1.0));
    (at(quantile - margin), at(quantile + margin))
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
            .map(|quantile| {
                let named = enough_samples(samples, *quantile);
                let interval = named.then(|| interval_of(histogram, *quantile));
                Percentile {
                    quantile: *quantile,
                    ns: named.then(|| histogram.value_at_quantile(*quantile)),
                    low_ns: interval.map(|(low, _)| low),
                    high_ns: interval.map(|(_, high)| high),
                }
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
    fn the_interval_of_a_percentile_covers_the_truth() {
        use rand::{RngExt, SeedableRng};
        let mut covered = 0;
        for seed in 0..200 {
            let mut random = rand::rngs::Xoshiro256PlusPlus::seed_from_u64(seed);
            let summary =
                Summary::of(&recorded((0..2_000).map(|_| random.random_range(1_000_000..2_000_000))));
            let p90 = summary.percentiles.iter().find(|one| one.quantile == 0.9).expect("it is in the list");
            let (low, high) = (p90.low_ns.expect("named"), p90.high_ns.expect("named"));
            assert!(low <= p90.ns.expect("named") && p90.ns.expect("named") <= high && high - low < 60_000);
            covered += u32::from(low <= 1_900_000 && 1_900_000 <= high);
        }
        assert!((182..=199).contains(&covered), "{covered} of 200 intervals hold the true p90");
        let few = Summary::of(&recorded((0..50).map(|_| 5)));
        assert!(few.percentiles.iter().all(|one| one.ns.is_some() == one.low_ns.is_some()));
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
    fn parts_of_threads_become_the_intervals_of_all() {
        let (mut merging, mut timelines) = (Merging::new(2), [Timeline::default(), Timeline::default()]);
        for (index, timeline) in timelines.iter_mut().enumerate() {
            timeline.record(1_000_000 * (1 + index as u64), 50);
            timeline.complete(50);
        }
        let [first, second] = timelines.each_mut().map(|timeline| timeline.end_part((5, 100)));
        assert_eq!(merging.add(first), None, "one thread is missing");
        let whole = merging.add(second).expect("both are there");
        assert_eq!(whole.completed, 100);
        // A percentile of all, which is no mean of percentiles.
        assert!((whole.p50_ns.expect("enough") as f64 / 1e6 - 1.0).abs() < 0.02);
        assert!((whole.max_ns.expect("some") as f64 / 2e6 - 1.0).abs() < 0.02);
        // What only one thread ended counts as far as it goes, and parts are numbered by thread.
        let late = timelines[0].end_part((100, 200));
        assert_eq!(late.number, 1);
        assert_eq!(merging.add(late), None);
        assert_eq!(merging.end().len(), 2);
    }

    #[test]
    fn the_curve_stops_where_samples_do() {
        let points = curve(&recorded(1..=10_000));
        assert!((points.last().expect("points").0 - 0.999).abs() < 1e-9);
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
