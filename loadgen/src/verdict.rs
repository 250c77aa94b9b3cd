//! Whether a run can be believed, and why not.
//!
//! INVALID: the figures do not describe the server. SUSPECT: they may, but something stood beside them. Each
//! reason says what was seen, what was expected, and what to try.

use serde::Serialize;

/// The grade of a run, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Nothing was found against it.
    Valid,
    /// Read the reasons before you quote it.
    Suspect,
    /// Do not quote it.
    Invalid,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Verdict::Valid => "VALID",
            Verdict::Suspect => "SUSPECT",
            Verdict::Invalid => "INVALID",
        })
    }
}

/// One thing against a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// How bad it is.
    pub grade: Verdict,
    /// Which rule, for programs.
    pub rule: &'static str,
    /// For people.
    pub text: String,
}

/// What a judgement rests on. Shares are of one core, or of all requests.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Open loop.
    pub open: bool,
    /// Requests whose latency was recorded.
    pub samples: u64,
    /// 99th percentile of the response time (open) or service time (closed).
    pub latency_p99_ns: Option<u64>,
    /// 99th percentile of the lateness.
    pub lateness_p99_ns: Option<u64>,
    /// The generator's CPU, spinning not counted.
    pub generator_share: Option<f64>,
    /// CPU of everything that is neither generator nor server.
    pub foreign_share: Option<f64>,
    /// CPU taken by the hypervisor.
    pub steal_share: Option<f64>,
    /// Requests the schedule meant for the measurement.
    pub offered: u64,
    /// Replies that came while it lasted.
    pub completed: u64,
    /// Error replies.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// Null replies.
    pub nulls: u64,
    /// Sampled replies that were wrong, and what was wrong with the first.
    pub wrong: u64,
    /// See `wrong`.
    pub first_wrong: Option<String>,
    /// Requests that timed out.
    pub timeouts: u64,
    /// Requests lost with their connection.
    pub lost: u64,
    /// Requests unanswered at the end.
    pub unanswered: u64,
    /// Why the run ended before its time.
    pub incomplete: Option<String>,
    /// This tool was built without optimisation.
    pub debug_build: bool,
}

/// Lateness may be this part of the latency it is contained in: more, and the figure overstates the server.
const LATENESS_SHARE_MAX: f64 = 0.10;
/// More than this, and the figure describes the generator as much as the server. The two limits are apart because
/// against a server whose whole turn is ten microseconds, a generator's turn is no less: its p99 of lateness is a
/// sixth of the response time's even on a quiet core, and that is worth a warning, not a rejection.
const LATENESS_SHARE_INVALID: f64 = 0.30;
/// Beyond this the generator queues behind itself.
const GENERATOR_SHARE_MAX: f64 = 0.90;
/// What else may run beside a measurement.
const FOREIGN_SHARE_MAX: f64 = 0.05;
/// Of what was offered, this much must be served within the measurement.
const SERVED_SHARE_MIN: f64 = 0.99;
/// With fewer requests not even p99 can be named.
const SAMPLES_MIN: u64 = 1_000;

/// Judges a run: the worst grade, and every reason.
pub fn judge(evidence: &Evidence) -> (Verdict, Vec<Reason>) {
    let mut reasons = Vec::new();
    let mut add = |grade, rule, text: String| reasons.push(Reason { grade, rule, text });
    let Evidence { samples, offered, completed, .. } = *evidence;
    if let Some(why) = &evidence.incomplete {
        add(Verdict::Invalid, "incomplete", format!("the run did not end as planned: {why}"));
    }
    if completed == 0 {
        add(Verdict::Invalid, "no_replies", "no reply arrived during the measurement".into());
    } else if evidence.errors * 2 > completed {
        let first = evidence.first_error.as_deref().unwrap_or("?");
        let text = format!("{} of {completed} replies are errors, the first: {first}", evidence.errors);
        add(Verdict::Invalid, "errors", text);
    } else if evidence.errors > 0 {
        let first = evidence.first_error.as_deref().unwrap_or("?");
        let text = format!("{} of {completed} replies are errors, the first: {first}", evidence.errors);
        add(Verdict::Suspect, "errors", text);
    }
    if evidence.wrong > 0 {
        let first = evidence.first_wrong.as_deref().unwrap_or("?");
        let text = format!("{} of the replies checked are wrong, the first: {first}", evidence.wrong);
        add(Verdict::Invalid, "wrong_replies", text);
    }
    if evidence.open {
        if let (Some(late), Some(all)) = (evidence.lateness_p99_ns, evidence.latency_p99_ns) {
            let share = late as f64 / all.max(1) as f64;
            if share > LATENESS_SHARE_MAX {
                let grade = if share > LATENESS_SHARE_INVALID { Verdict::Invalid } else { Verdict::Suspect };
                let text = format!(
                    "the generator was late: p99 of its lateness is {:.0} µs, {:.0} % of the response time's \
                     (limit {:.0} %), which overstates the server; lower --rate or give the generator a core of \
                     its own",
                    late as f64 / 1e3,
                    share * 100.0,
                    LATENESS_SHARE_MAX * 100.0
                );
                add(grade, "late", text);
            }
        }
        // Poisson arrivals vary: three standard deviations of the count belong to the noise.
        let served_min = offered as f64 * SERVED_SHARE_MIN - 3.0 * (offered as f64).sqrt();
        if completed > 0 && (completed as f64) < served_min {
            let text = format!(
                "{:.1} % of the offered requests were served in time: the backlog grows as long as the load \
                 lasts, and the latencies with it; lower --rate",
                completed as f64 / offered as f64 * 100.0
            );
            add(Verdict::Invalid, "rate_not_reached", text);
        }
        if let Some(share) = evidence.generator_share.filter(|share| *share > GENERATOR_SHARE_MAX) {
            let text = format!(
                "the generator used {:.0} % of its core: what was measured is partly the generator",
                share * 100.0
            );
            add(Verdict::Suspect, "generator_saturated", text);
        }
    }
    if completed > 0 && samples < SAMPLES_MIN {
        let text = format!("{samples} samples name no percentile beyond p50 or p90; run longer");
        add(Verdict::Suspect, "few_samples", text);
    }
    for (rule, what, share) in [
        ("foreign_cpu", "other programs used", evidence.foreign_share),
        ("steal", "the hypervisor took", evidence.steal_share),
    ] {
        if let Some(share) = share.filter(|share| *share > FOREIGN_SHARE_MAX) {
            let text = format!(
                "noisy machine: {what} {:.0} % of a core (limit {:.0} %)",
                share * 100.0,
                FOREIGN_SHARE_MAX * 100.0
            );
            add(Verdict::Suspect, rule, text);
        }
    }
    if evidence.timeouts > 0 {
        let text = format!("{} requests timed out; their latencies are lower bounds", evidence.timeouts);
        add(Verdict::Suspect, "timeouts", text);
    }
    if evidence.lost > 0 {
        let text = format!("{} requests were lost with their connections", evidence.lost);
        add(Verdict::Suspect, "lost", text);
    }
    if evidence.unanswered > 0 && evidence.incomplete.is_none() {
        let text = format!("{} requests were unanswered at the end: lower bounds", evidence.unanswered);
        add(Verdict::Suspect, "unanswered", text);
    }
    if completed > 0 && evidence.nulls as f64 > completed as f64 * 0.01 {
        let text = format!(
            "{:.0} % of the replies found no value: this measures misses; use --prefill",
            evidence.nulls as f64 / completed as f64 * 100.0
        );
        add(Verdict::Suspect, "misses", text);
    }
    if evidence.debug_build {
        add(Verdict::Suspect, "debug_build", "this is a debug build; use cargo run --release".into());
    }
    let verdict = reasons.iter().map(|reason| reason.grade).max().unwrap_or(Verdict::Valid);
    (verdict, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Evidence {
        Evidence {
            open: true,
            samples: 100_000,
            latency_p99_ns: Some(400_000),
            lateness_p99_ns: Some(20_000),
            generator_share: Some(0.5),
            foreign_share: Some(0.01),
            steal_share: Some(0.0),
            offered: 100_000,
            completed: 100_000,
            ..Evidence::default()
        }
    }

    /// The verdict after `change`, and the rules that were broken.
    fn judged(change: impl FnOnce(&mut Evidence)) -> (Verdict, Vec<&'static str>) {
        let mut evidence = good();
        change(&mut evidence);
        let (verdict, reasons) = judge(&evidence);
        assert!(reasons.iter().all(|reason| !reason.text.is_empty()));
        (verdict, reasons.iter().map(|reason| reason.rule).collect())
    }

    #[test]
    fn a_good_run_is_valid() {
        assert_eq!(judged(|_| {}), (Verdict::Valid, vec![]));
        let closed = |evidence: &mut Evidence| {
            // In a closed loop a busy generator and lateness mean nothing against the run.
            evidence.open = false;
            evidence.generator_share = Some(1.0);
            evidence.completed = 10_000;
        };
        assert_eq!(judged(closed), (Verdict::Valid, vec![]));
    }

    #[test]
    fn each_reason_is_found() {
        use Verdict::{Invalid, Suspect};
        assert_eq!(judged(|e| e.lateness_p99_ns = Some(40_001)), (Suspect, vec!["late"]));
        assert_eq!(judged(|e| e.lateness_p99_ns = Some(120_001)), (Invalid, vec!["late"]));
        assert_eq!(judged(|e| e.completed = 97_000), (Invalid, vec!["rate_not_reached"]));
        assert_eq!(judged(|e| e.generator_share = Some(0.91)), (Suspect, vec!["generator_saturated"]));
        assert_eq!(judged(|e| e.samples = 999), (Suspect, vec!["few_samples"]));
        assert_eq!(judged(|e| e.foreign_share = Some(0.06)), (Suspect, vec!["foreign_cpu"]));
        assert_eq!(judged(|e| e.steal_share = Some(0.06)), (Suspect, vec!["steal"]));
        assert_eq!(judged(|e| e.errors = 1), (Suspect, vec!["errors"]));
        assert_eq!(judged(|e| e.errors = 60_000), (Invalid, vec!["errors"]));
        assert_eq!(judged(|e| e.wrong = 1), (Invalid, vec!["wrong_replies"]));
        assert_eq!(judged(|e| e.timeouts = 1), (Suspect, vec!["timeouts"]));
        assert_eq!(judged(|e| e.lost = 1), (Suspect, vec!["lost"]));
        assert_eq!(judged(|e| e.unanswered = 1), (Suspect, vec!["unanswered"]));
        assert_eq!(judged(|e| e.nulls = 2_000), (Suspect, vec!["misses"]));
        assert_eq!(judged(|e| e.debug_build = true), (Suspect, vec!["debug_build"]));
        assert_eq!(judged(|e| e.incomplete = Some("Ctrl-C".into())), (Invalid, vec!["incomplete"]));
        assert_eq!(judged(|e| e.completed = 0), (Invalid, vec!["no_replies"]));
    }

    #[test]
    fn limits_are_inclusive_and_unknowns_accuse_nobody() {
        assert_eq!(judged(|e| e.lateness_p99_ns = Some(40_000)).0, Verdict::Valid);
        let unknown = |e: &mut Evidence| {
            (e.generator_share, e.foreign_share, e.steal_share) = (None, None, None);
            (e.lateness_p99_ns, e.latency_p99_ns) = (None, None);
        };
        assert_eq!(judged(unknown).0, Verdict::Valid);
        // 200 requests vary by 14: 170 of 200 in time is what chance does to the window's edges.
        let few = |e: &mut Evidence| (e.offered, e.completed) = (200, 160);
        assert_eq!(judged(few).0, Verdict::Valid);
    }

    #[test]
    fn the_worst_reason_decides() {
        let both = |e: &mut Evidence| {
            e.debug_build = true;
            e.lateness_p99_ns = Some(400_000);
        };
        assert_eq!(judged(both), (Verdict::Invalid, vec!["late", "debug_build"]));
    }
}
