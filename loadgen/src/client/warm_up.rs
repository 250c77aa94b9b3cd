//! A warm-up that ends by a test and not by the clock alone: when the latency's medians, one for each tenth of a second, show no
//! trend any more.
//!
//! Whether it goes on is decided shortly before it would end, by one thread of the generator; the others find what it decided
//! at the [`Gate`](crate::gate::Gate). So nobody has taken a request for a measured one that is none.

use crate::histogram;
use crate::trend::Trend;
use hdrhistogram::Histogram;

/// The shortest.
pub const SHORTEST_NS: u64 = 2_000_000_000;
/// The longest, whatever the test says.
pub const LONGEST_NS: u64 = 30_000_000_000;
/// By so much it is lengthened at a time.
const STEP_NS: u64 = 500_000_000;
/// Replies of so long make a median.
const WINDOW_NS: u64 = 100_000_000;
/// So many medians are looked at, the latest.
const WINDOWS: usize = 20;
/// It is decided no earlier than so long before the end, and no later: the other threads must know of it in time.
const DECIDE_NS: (u64, u64) = (200_000_000, 100_000_000);

/// See the module.
#[derive(Debug)]
pub(super) struct WarmUp {
    latencies: Histogram<u64>,
    window_began: u64,
    medians: Vec<f64>,
    decided_for: u64,
    has_settled: bool,
}

impl WarmUp {
    pub(super) fn new() -> WarmUp {
        let (latencies, medians) = (histogram::empty(), Vec::new());
        WarmUp { latencies, window_began: 0, medians, decided_for: 0, has_settled: false }
    }

    /// Replies that came.
    pub(super) fn record(&mut self, latency_ns: u64, count: u64) {
        self.latencies.saturating_record_n(latency_ns, count);
    }

    /// Lets time pass in a warm-up of this length that began then. Says how long it shall be, where that is longer.
    pub(super) fn lengthen(&mut self, began: u64, length_ns: u64, now: u64) -> Option<u64> {
        self.window_began = self.window_began.max(began);
        if now >= self.window_began + WINDOW_NS {
            self.window_began = now;
            if !self.latencies.is_empty() {
                self.medians.push(self.latencies.value_at_quantile(0.5) as f64);
                self.latencies.reset();
            }
        }
        let end = began + length_ns;
        let is_time = now + DECIDE_NS.0 >= end && now + DECIDE_NS.1 < end;
        if !is_time || self.decided_for == length_ns {
            return None;
        }
        self.decided_for = length_ns;
        let latest = &self.medians[self.medians.len().saturating_sub(WINDOWS)..];
        self.has_settled = Trend::of_medians(latest).is_some_and(|trend| trend.has_settled());
        (!self.has_settled && length_ns < LONGEST_NS).then_some((length_ns + STEP_NS).min(LONGEST_NS))
    }

    /// What the test said last.
    pub(super) fn has_settled(&self) -> bool {
        self.has_settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// How long the warm-up lasts, and whether it settled, at a server whose latency is this after so many nanoseconds.
    fn played(latency_ns: impl Fn(u64) -> Option<u64>) -> (u64, bool) {
        let (mut warm_up, began, mut length) = (WarmUp::new(), 77 * MS, SHORTEST_NS);
        let mut since = 0;
        while since < length {
            let longer = warm_up.lengthen(began, length, began + since);
            assert!(longer.is_none_or(|longer| longer > length && longer <= LONGEST_NS));
            length = longer.unwrap_or(length);
            latency_ns(since).into_iter().for_each(|latency| warm_up.record(latency, 3));
            since += 7 * MS;
        }
        (length, warm_up.has_settled())
    }

    #[test]
    fn it_ends_soon_where_latency_is_flat() {
        assert_eq!(played(|_| Some(250_000)), (SHORTEST_NS, true));
        // Noise is no trend.
        let noisy = |since: u64| Some(250_000 + since.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 50_000);
        assert_eq!(played(noisy), (SHORTEST_NS, true));
    }

    #[test]
    fn it_lasts_until_what_is_warming_is_warm() {
        // A cache that fills for six seconds.
        let cold = |since: u64| Some(1_000_000 - 900_000 * since.min(6_000 * MS) / (6_000 * MS));
        let (length, has_settled) = played(cold);
        assert!(has_settled && (6_500 * MS..=8_500 * MS).contains(&length), "{length} ns");
    }

    #[test]
    fn it_ends_at_last_and_says_that_nothing_settled() {
        assert_eq!(played(|since| Some(100_000 + since / 10)), (LONGEST_NS, false));
        assert_eq!(played(|_| None), (LONGEST_NS, false), "nothing is known of a server that is silent");
    }

    #[test]
    fn whoever_comes_too_late_to_decide_lets_it_end() {
        let mut warm_up = WarmUp::new();
        let end = SHORTEST_NS;
        assert_eq!(warm_up.lengthen(0, SHORTEST_NS, end - DECIDE_NS.0 - 1), None);
        assert_eq!(warm_up.lengthen(0, SHORTEST_NS, end - DECIDE_NS.1), None);
        assert_eq!(warm_up.lengthen(0, SHORTEST_NS, end - DECIDE_NS.1 - 1), Some(SHORTEST_NS + STEP_NS));
        assert_eq!(warm_up.lengthen(0, SHORTEST_NS, end - DECIDE_NS.1 - 1), None, "once for each end");
    }
}
