//! Whether a run can be believed, and why not.
//!
//! INVALID: the figures do not describe the server. SUSPECT: they may, but something stood beside them. Each
//! reason says what was seen, what was expected, and what to try.

use crate::arrivals::{ArrivalTest, Statistic};
use crate::trend::Trend;
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
    /// What was seen, and what was expected.
    pub text: String,
    /// What to try.
    pub advice: &'static str,
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
    /// Of these: before the last request was meant to leave.
    pub completed_in_time: u64,
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
    /// Whether requests left as they were drawn.
    pub arrivals: Option<ArrivalTest>,
    /// What became of the latency while the run lasted.
    pub trend: Option<Trend>,
    /// The schedule itself changes over time: so may the latency.
    pub rate_changes: bool,
    /// The server puts writes on stable storage, with threads of its own.
    pub durable_server: Option<bool>,
    /// What the generator spun.
    pub spun_share: Option<f64>,
    /// The server's CPU.
    pub server_share: Option<f64>,
    /// Cores that both may use; 0: not known.
    pub cores: usize,
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
pub const FOREIGN_SHARE_MAX: f64 = 0.05;
/// Of what was offered, this much must be served within the measurement.
const SERVED_SHARE_MIN: f64 = 0.99;
/// With fewer requests not even p99 can be named.
const SAMPLES_MIN: u64 = 1_000;
/// Arrivals this many times further from what was drawn than chance explains are another process.
const ARRIVALS_INVALID: f64 = 20.0;
/// A durable server's threads need at least this part of a core.
const IDLE_SHARE_MIN: f64 = 0.10;

/// Judges a run: the worst grade, and every reason.
pub fn judge(evidence: &Evidence) -> (Verdict, Vec<Reason>) {
    let mut reasons = Vec::new();
    answers(evidence, &mut reasons);
    if evidence.open {
        open_loop(evidence, &mut reasons);
    }
    steadiness(evidence, &mut reasons);
    machine(evidence, &mut reasons);
    let verdict = reasons.iter().map(|reason| reason.grade).max().unwrap_or(Verdict::Valid);
    (verdict, reasons)
}

fn add(reasons: &mut Vec<Reason>, grade: Verdict, rule: &'static str, text: String, advice: &'static str) {
    reasons.push(Reason { grade, rule, text, advice });
}

/// Whether the server did what it was asked.
fn answers(evidence: &Evidence, reasons: &mut Vec<Reason>) {
    let Evidence { completed, samples, .. } = *evidence;
    if let Some(why) = &evidence.incomplete {
        let text = format!("the run did not end as planned: {why}");
        add(reasons, Verdict::Invalid, "incomplete", text, "let it run to its end");
    }
    if completed == 0 {
        let text = "no reply arrived during the measurement".into();
        add(
            reasons,
            Verdict::Invalid,
            "no_replies",
            text,
            "look whether the server works, and measure longer",
        );
    } else if evidence.errors > 0 {
        let grade = if evidence.errors * 2 > completed { Verdict::Invalid } else { Verdict::Suspect };
        let first = evidence.first_error.as_deref().unwrap_or("?");
        let text = format!("{} of {completed} replies are errors, the first: {first}", evidence.errors);
        add(reasons, grade, "errors", text, "errors are often cheaper than answers: mend the cause first");
    }
    if evidence.wrong > 0 {
        let first = evidence.first_wrong.as_deref().unwrap_or("?");
        let text = format!("{} of the replies checked are wrong, the first: {first}", evidence.wrong);
        let advice = "a fast wrong answer is none; with --verify, fill with the same seed and sizes";
        add(reasons, Verdict::Invalid, "wrong_replies", text, advice);
    }
    if completed > 0 && samples < SAMPLES_MIN {
        let text = format!(
            "{samples} samples name no percentile beyond p50 or p90: ten must lie beyond it, which p99 has from \
             {SAMPLES_MIN} on"
        );
        add(reasons, Verdict::Suspect, "few_samples", text, "run longer");
    }
    if evidence.timeouts > 0 {
        let text = format!("{} requests timed out; their latencies are lower bounds", evidence.timeouts);
        add(
            reasons,
            Verdict::Suspect,
            "timeouts",
            text,
            "find the stall, or raise --timeout to see all of it",
        );
    }
    if evidence.lost > 0 {
        let text = format!("{} requests were lost with their connections", evidence.lost);
        add(reasons, Verdict::Suspect, "lost", text, "see the server's log for why it closes connections");
    }
    if evidence.unanswered > 0 && evidence.incomplete.is_none() {
        let text = format!("{} requests were unanswered at the end: lower bounds", evidence.unanswered);
        add(reasons, Verdict::Suspect, "unanswered", text, "lower --rate, or raise --drain to wait for them");
    }
    if completed > 0 && evidence.nulls as f64 > completed as f64 * 0.01 {
        let share = evidence.nulls as f64 / completed as f64 * 100.0;
        let text = format!("{share:.0} % of the replies found no value: this measures misses");
        add(reasons, Verdict::Suspect, "misses", text, "use --prefill");
    }
}

/// Whether the load was the one asked for.
fn open_loop(evidence: &Evidence, reasons: &mut Vec<Reason>) {
    let Evidence { offered, completed, completed_in_time, .. } = *evidence;
    if let (Some(late), Some(all)) = (evidence.lateness_p99_ns, evidence.latency_p99_ns) {
        let share = late as f64 / all.max(1) as f64;
        if share > LATENESS_SHARE_MAX {
            let grade = if share > LATENESS_SHARE_INVALID { Verdict::Invalid } else { Verdict::Suspect };
            let text = format!(
                "the generator was late: p99 of its lateness is {:.0} µs, {:.0} % of the response time's \
                 (limit {:.0} %), which overstates the server",
                late as f64 / 1e3,
                share * 100.0,
                LATENESS_SHARE_MAX * 100.0
            );
            add(
                reasons,
                grade,
                "late",
                text,
                "lower --rate, or give the generator a core of its own (--pin)",
            );
        }
    }
    // Poisson arrivals vary: three standard deviations of the count belong to the noise.
    let served_min = offered as f64 * SERVED_SHARE_MIN - 3.0 * (offered as f64).sqrt();
    if completed > 0 && (completed_in_time as f64) < served_min {
        let text = format!(
            "{:.1} % of the offered requests were served in time: the backlog grows as long as the load \
             lasts, and the latencies with it",
            completed_in_time as f64 / offered as f64 * 100.0
        );
        add(
            reasons,
            Verdict::Invalid,
            "rate_not_reached",
            text,
            "lower --rate; `loadgen knee` finds the limit",
        );
    }
    if let Some(share) = evidence.generator_share.filter(|share| *share > GENERATOR_SHARE_MAX) {
        let text = format!(
            "the generator used {:.0} % of its core: what was measured is partly the generator",
            share * 100.0
        );
        add(reasons, Verdict::Suspect, "generator_saturated", text, "lower --rate, or use a faster core");
    }
    if let Some(test) = evidence.arrivals.filter(|test| !test.is_as_drawn()) {
        let far = test.value > test.limit * ARRIVALS_INVALID;
        let grade = if far { Verdict::Invalid } else { Verdict::Suspect };
        let text = match test.statistic {
            Statistic::AndersonDarling => format!(
                "requests did not leave as a Poisson process: A² of {} gaps is {:.1}, and exceeds {:.1} by chance \
                 once in a thousand runs",
                test.picked, test.value, test.limit
            ),
            Statistic::QuantileDistance => format!(
                "requests did not leave as drawn: the gaps of {} of them are off by {:.0} % on average (limit {:.0} %)",
                test.picked,
                test.value * 100.0,
                test.limit * 100.0
            ),
        };
        let advice = "something held the generator up in bursts: give it a core of its own, or lower --rate";
        add(reasons, grade, "arrivals", text, advice);
    }
}

/// Whether the run was the same at its end as at its beginning.
fn steadiness(evidence: &Evidence, reasons: &mut Vec<Reason>) {
    if let Some(trend) = evidence.trend.filter(|trend| !trend.is_flat() && !evidence.rate_changes) {
        let text = format!(
            "not stationary: the median latency {} from {:.0} to {:.0} µs ({:+.1} standard deviations of \
             Mann-Kendall's test)",
            if trend.deviations > 0.0 { "rose" } else { "fell" },
            trend.first_ns / 1e3,
            trend.last_ns / 1e3,
            trend.deviations
        );
        let advice = "lengthen --warmup until it is flat (auto does); if it keeps rising, a backlog grows: lower --rate";
        add(reasons, Verdict::Suspect, "not_stationary", text, advice);
    }
}

/// Whether the machine and the build were fit for it.
fn machine(evidence: &Evidence, reasons: &mut Vec<Reason>) {
    for (rule, what, share, advice) in [
        ("foreign_cpu", "other programs used", evidence.foreign_share, "stop them, and measure again"),
        (
            "steal",
            "the hypervisor took",
            evidence.steal_share,
            "measure at another hour, or on a machine of your own",
        ),
    ] {
        if let Some(share) = share.filter(|share| *share > FOREIGN_SHARE_MAX) {
            let text = format!(
                "noisy machine: {what} {:.0} % of a core (limit {:.0} %)",
                share * 100.0,
                FOREIGN_SHARE_MAX * 100.0
            );
            add(reasons, Verdict::Suspect, rule, text, advice);
        }
    }
    if let (Some(true), Some(spun), Some(generator), Some(server)) =
        (evidence.durable_server, evidence.spun_share, evidence.generator_share, evidence.server_share)
    {
        let idle = evidence.cores as f64 - spun - generator - server;
        if evidence.cores > 0 && spun > IDLE_SHARE_MIN && idle < IDLE_SHARE_MIN {
            let text = format!(
                "generator and server held all {} cores, {:.0} % of one spinning, beside a durable server: the \
                 threads that write its log had to wait for a core",
                evidence.cores,
                spun * 100.0
            );
            add(reasons, Verdict::Suspect, "log_without_core", text, "use --spin never, or a third core");
        }
    }
    if evidence.debug_build {
        let text = "this is a debug build".into();
        add(reasons, Verdict::Suspect, "debug_build", text, "use cargo run --release");
    }
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
            completed_in_time: 100_000,
            ..Evidence::default()
        }
    }

    /// The verdict after `change`, and the rules that were broken.
    fn judged(change: impl FnOnce(&mut Evidence)) -> (Verdict, Vec<&'static str>) {
        let mut evidence = good();
        change(&mut evidence);
        let (verdict, reasons) = judge(&evidence);
        assert!(reasons.iter().all(|reason| !reason.text.is_empty() && !reason.advice.is_empty()));
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
        assert_eq!(judged(|e| e.completed_in_time = 97_000), (Invalid, vec!["rate_not_reached"]));
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
        // What a run that was cut short left open is no reason of its own.
        let cut_short = judged(|e| (e.unanswered, e.incomplete) = (1, Some("Ctrl-C".into())));
        assert_eq!(cut_short, (Invalid, vec!["incomplete"]));
        assert_eq!(judged(|e| e.nulls = 2_000), (Suspect, vec!["misses"]));
        assert_eq!(judged(|e| e.debug_build = true), (Suspect, vec!["debug_build"]));
        assert_eq!(judged(|e| e.incomplete = Some("Ctrl-C".into())), (Invalid, vec!["incomplete"]));
        assert_eq!(judged(|e| e.completed = 0), (Invalid, vec!["no_replies"]));
    }

    #[test]
    fn arrivals_that_are_not_as_drawn_are_held_against_an_open_loop() {
        use Verdict::{Invalid, Suspect, Valid};
        let test = |statistic, value: f64, limit| {
            move |e: &mut Evidence| {
                e.arrivals = Some(ArrivalTest { statistic, value, limit, picked: 500, one_in: 1.0 });
            }
        };
        let (poisson, other) = (Statistic::AndersonDarling, Statistic::QuantileDistance);
        assert_eq!(judged(test(poisson, 6.0, 6.0)), (Valid, vec![]));
        assert_eq!(judged(test(poisson, 6.1, 6.0)), (Suspect, vec!["arrivals"]));
        assert_eq!(judged(test(poisson, 130.0, 6.0)), (Invalid, vec!["arrivals"]));
        assert_eq!(judged(test(other, 0.11, 0.1)), (Suspect, vec!["arrivals"]));
        let closed = |e: &mut Evidence| {
            test(poisson, 130.0, 6.0)(e);
            e.open = false;
        };
        assert_eq!(judged(closed), (Valid, vec![]));
    }

    #[test]
    fn a_trend_is_held_against_a_run_whose_load_had_none() {
        let rising = |e: &mut Evidence| {
            e.trend = Some(Trend { deviations: 5.0, first_ns: 100_000.0, last_ns: 180_000.0 });
        };
        assert_eq!(judged(rising), (Verdict::Suspect, vec!["not_stationary"]));
        let flat = |e: &mut Evidence| {
            e.trend = Some(Trend { deviations: 5.0, first_ns: 100_000.0, last_ns: 110_000.0 });
        };
        assert_eq!(judged(flat), (Verdict::Valid, vec![]));
        let ramp = |e: &mut Evidence| {
            rising(e);
            e.rate_changes = true;
        };
        assert_eq!(judged(ramp), (Verdict::Valid, vec![]));
    }

    #[test]
    fn a_durable_servers_log_needs_a_core() {
        let full = |e: &mut Evidence| {
            (e.durable_server, e.cores) = (Some(true), 2);
            (e.generator_share, e.spun_share, e.server_share) = (Some(0.4), Some(0.59), Some(0.95));
        };
        assert_eq!(judged(full), (Verdict::Suspect, vec!["log_without_core"]));
        let with = |change: fn(&mut Evidence)| {
            judged(|e| {
                full(e);
                change(e);
            })
        };
        assert_eq!(with(|e| e.durable_server = Some(false)).0, Verdict::Valid);
        assert_eq!(with(|e| e.durable_server = None).0, Verdict::Valid);
        assert_eq!(with(|e| e.cores = 3).0, Verdict::Valid);
        assert_eq!(with(|e| e.spun_share = Some(0.05)).0, Verdict::Valid);
        assert_eq!(with(|e| e.server_share = Some(0.5)).0, Verdict::Valid);
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
        let few = |e: &mut Evidence| (e.offered, e.completed_in_time) = (200, 160);
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
