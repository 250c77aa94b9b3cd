//! What must hold of a case beside its figures: pure, so that every bound is tested where it lies.

use super::{CaseReport, STALL, micros};
use hdrhistogram::Histogram;

/// What must hold, and whether it does.
pub type Claims = Vec<(String, bool)>;

/// Whether an attempt is better than the best so far: what must hold comes before how near the figures are.
pub fn is_better(report: &CaseReport, best: Option<&CaseReport>) -> bool {
    let rank = |report: &CaseReport| (!report.claims_hold(), report.excess_ns());
    best.is_none_or(|best| rank(report) < rank(best))
}

/// How far a report is outside of the span of its truth: above it, or, negative, below.
pub fn outside_ns(truth_ns: u64, truth_ns_max: u64, reported_ns: u64) -> f64 {
    if reported_ns > truth_ns_max {
        (reported_ns - truth_ns_max) as f64
    } else {
        (reported_ns as f64 - truth_ns as f64).min(0.0)
    }
}

/// Of the two loops against a server that stalls. The closed loop's figure is true as far as it goes; it is about other requests
/// than users would send.
pub fn of_contrast(open_p99_ns: u64, closed_p99_ns: u64, closed_longest_ns: u64) -> Claims {
    let stall_ns = STALL.as_nanos() as u64;
    vec![
        (
            format!("the closed loop saw the stall as its maximum, {}", micros(closed_longest_ns)),
            // The request under way when it began was sent a moment before or after.
            closed_longest_ns >= stall_ns * 99 / 100,
        ),
        // A tenth of all moments lies in a stall, so the ninetieth part of a stall is exceeded by one in a hundred.
        (
            format!("the open loop's p99, {}, shows the stall", micros(open_p99_ns)),
            open_p99_ns >= stall_ns * 8 / 10,
        ),
        (
            format!("the closed loop's p99, {}, does not", micros(closed_p99_ns)),
            // Half of the stall leaves room for a machine on which everything is late, and none for the stall.
            closed_p99_ns <= stall_ns / 2,
        ),
    ]
}

/// Of an open loop with a constant rate against a process that was stopped for so long.
pub fn of_stop(stopped_ns: u64, rate: f64, response: &Histogram<u64>, offered: u64) -> Claims {
    // Of the requests meant for the time of the stop, those with more than a tenth of it left had to wait that long.
    let tenth_ns = stopped_ns / 10;
    let expected = ((stopped_ns - tenth_ns) as f64 / 1e9 * rate).floor() as u64 - 1;
    let waited = response.count_between(tenth_ns - tenth_ns / 500, u64::MAX);
    let longest = response.max();
    let gap_ns = (1e9 / rate) as u64;
    vec![
        (
            format!("stopped for {}: the longest response time is {}", micros(stopped_ns), micros(longest)),
            longest + gap_ns >= stopped_ns,
        ),
        (
            format!("{expected} requests had to wait more than {}: {waited} did", micros(tenth_ns)),
            waited >= expected,
        ),
        ("every request offered is in the histogram".into(), response.len() == offered),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::super::{Agreement, Row};
    use super::*;

    fn hold(claims: &Claims) -> Vec<bool> {
        claims.iter().map(|(_, holds)| *holds).collect()
    }

    #[test]
    fn a_better_attempt_holds_what_must_hold_and_is_nearer() {
        let report = |holds, excess: &[u64]| {
            let far = |ns: &u64| Row { truth_ns_max: 100, reported_ns: 100 + ns, ..row(Agreement::TooHigh) };
            let (rows, claims) = (excess.iter().map(far).collect(), vec![("it holds".into(), holds)]);
            CaseReport { name: "c", rows, claims, attempts: 1, held_up_ns: 0, foreign_share: None }
        };
        // Of several rows, all together count; what is below the span does not make up for it.
        assert_eq!(report(true, &[5, 7]).excess_ns(), 12);
        let below = Row { truth_ns_max: 100, reported_ns: 40, ..row(Agreement::TooLow) };
        let mut mixed = report(true, &[5]);
        mixed.rows.push(below);
        assert_eq!(mixed.excess_ns(), 5);
        assert!(is_better(&report(false, &[9]), None));
        assert!(is_better(&report(true, &[4]), Some(&report(true, &[5]))));
        // The first of equals stays, and a nearer one whose claims do not hold is worse.
        assert!(!is_better(&report(true, &[5]), Some(&report(true, &[5]))));
        assert!(!is_better(&report(true, &[6]), Some(&report(true, &[5]))));
        assert!(is_better(&report(true, &[999]), Some(&report(false, &[0]))));
        assert!(!is_better(&report(false, &[0]), Some(&report(true, &[999]))));
    }

    #[test]
    fn within_its_span_a_report_is_not_outside() {
        for (reported, outside) in [(89, -1.0), (90, 0.0), (95, 0.0), (100, 0.0), (101, 1.0), (0, -90.0)] {
            assert_eq!(outside_ns(90, 100, reported), outside, "{reported}");
        }
    }

    #[test]
    fn the_contrast_has_its_bounds() {
        let of = |open, closed, longest| hold(&of_contrast(open, closed, longest));
        assert_eq!(of(80_000_000, 50_000_000, 99_000_000), [true, true, true]);
        assert_eq!(of(80_000_000, 50_000_000, 98_999_999), [false, true, true]);
        assert_eq!(of(79_999_999, 50_000_000, 99_000_000), [true, false, true]);
        assert_eq!(of(80_000_000, 50_000_001, 99_000_000), [true, true, false]);
        assert!(of_contrast(1, 2_000, 3_000_000)[1].0.contains("open loop's p99, 0.00 µs"));
    }

    /// Half a second at 1,000 a second: one request each millisecond, the first has to wait all of it. A tenth, 50 ms, less the
    /// histogram's precision, counts as having waited.
    #[test]
    fn a_stop_has_its_bounds() {
        let response = |waits: &mut dyn Iterator<Item = u64>| {
            let mut histogram = crate::histogram::empty();
            waits.for_each(|ms| histogram.saturating_record(ms * 1_000_000));
            histogram
        };
        let of = |response: &Histogram<u64>, offered| hold(&of_stop(500_000_000, 1_000.0, response, offered));
        let all = response(&mut (1..=500));
        assert_eq!(of(&all, 500), [true, true, true]);
        assert_eq!(of(&all, 499), [true, true, false]);
        assert_eq!(of(&all, 501), [true, true, false]);
        // 450 are meant with more than a tenth left, and one may be on its way at either end.
        let waited = |count: u64| response(&mut (0..count).map(|at| if at == 0 { 500 } else { 60 }));
        assert_eq!(of(&waited(449), 449), [true, true, true]);
        assert_eq!(of(&waited(448), 448), [true, false, true]);
        assert!(
            of_stop(500_000_000, 1_000.0, &all, 500)[1]
                .0
                .starts_with("449 requests had to wait more than 50.00 ms: 4")
        );
        // What waited less does not count.
        let less = |ms| response(&mut (0..500).map(|at| if at == 0 { 500 } else { ms }));
        assert_eq!(of(&less(50), 500), [true, true, true]);
        assert_eq!(of(&less(49), 500), [true, false, true]);
        // The longest may be one gap short of the stop: nothing was sent in between.
        let longest = |ns| {
            let mut histogram = response(&mut (0..460).map(|_| 60));
            histogram.saturating_record(ns);
            histogram
        };
        assert_eq!(of(&longest(499_000_000), 461)[..2], [true, true]);
        assert_eq!(of(&longest(498_000_000), 461)[..2], [false, true]);
        let is_long_enough = |stopped_ns| of_stop(stopped_ns, 1_000.0, &all, 500)[0].1;
        assert!(is_long_enough(all.max() + 1_000_000) && !is_long_enough(all.max() + 1_000_001));
    }
}
