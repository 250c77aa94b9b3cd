//! What a run is to do, where it is, why it cannot go on, and what it leaves behind.

use crate::arrivals::Picker;
use crate::histogram::Interval;
use crate::scan::Garbage;
use crate::schedule::Arrival;
use crate::workload::{Share, WorkloadError, WorkloadOptions};
use hdrhistogram::Histogram;
use reactor::server::event::Target;
use serde::Serialize;
use std::fmt;

/// A backlog beyond this ends the run: the offered rate is out of reach, and memory is not.
pub(super) const OUTSTANDING_MAX: usize = 4_000_000;

/// How requests are paced.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// The next batch waits for the last one's replies.
    Closed {
        /// Requests in a batch.
        pipeline: u32,
    },
    /// Requests come when the schedule says.
    Open {
        /// Arrivals a second.
        rate: f64,
        /// The distribution of their gaps.
        arrival: Arrival,
    },
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this many nanoseconds.
    After(u64),
    /// After this many requests.
    Requests(u64),
}

/// All that determines a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// What.
    pub workload: WorkloadOptions,
    /// Over how many connections.
    pub connections: usize,
    /// In which loop.
    pub load: Load,
    /// Set every key once before.
    pub prefill: bool,
    /// Discarded at the beginning.
    pub warmup_ns: u64,
    /// And more than that, until the latency shows no trend any more.
    pub warmup_is_tested: bool,
    /// The measurement's length.
    pub stop: Stop,
    /// How long replies are waited for afterwards.
    pub drain_ns: u64,
    /// A connection whose oldest request is unanswered for longer is given up and opened again.
    pub timeout_ns: u64,
    /// One point of the timeline.
    pub interval_ns: u64,
    /// Connections are opened no faster than that; `None`: all at once.
    pub connects_per_s: Option<f64>,
    /// A connection is closed and opened again after so many requests; `None`: it stays.
    pub requests_per_connection: Option<u64>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connections are being opened and greeted.
    Connect,
    /// Every key is set once.
    Prefill,
    /// The other threads of the generator are not ready yet.
    Wait,
    /// Load runs, nothing is recorded.
    WarmUp,
    /// Load runs and is recorded.
    Measure,
    /// No new requests; replies are awaited.
    Drain,
    /// Over.
    Done,
}

/// Why a run cannot go on. What was measured before remains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The target does not accept connections; the errno.
    Refused(i32),
    /// It accepted, then closed before the first answer.
    ClosedEarly,
    /// It sent what is no reply.
    Garbage(String),
    /// It answers nothing.
    Silent(Stage),
    /// It refuses the handshake or the prefill.
    Rejected(String),
    /// It closed a connection while it was being filled.
    LostInPrefill,
    /// Of so many trackers that many were not told of a write: missing, all.
    NotTold(usize, usize),
    /// It closed the connection of a client with a cache.
    LostConnection,
    /// It keeps closing connections.
    ClosesAll(u64),
    /// The flags describe no workload.
    Workload(String),
    /// The driver failed.
    Driver(String),
    /// More requests wait than the run may hold.
    Backlog,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(out, "cannot connect: {error}; is the server running, and is this its address?")
            }
            Failure::ClosedEarly => out.write_str(
                "the server closes connections before answering; maxclients, TLS, or another protocol?",
            ),
            Failure::Garbage(what) => write!(out, "the server's bytes are no replies: {what}"),
            Failure::Silent(stage) => {
                let what = match stage {
                    Stage::Connect => "connect or greet",
                    Stage::Prefill => "prefill",
                    _ => "requests",
                };
                write!(out, "the server does not answer ({what}): nothing arrived within --timeout")
            }
            Failure::Rejected(text) => write!(out, "the server refuses: {text}"),
            Failure::LostInPrefill => {
                out.write_str("the server closed a connection while it was being filled; did it end?")
            }
            Failure::NotTold(missing, all) => {
                write!(out, "{missing} of {all} trackers were not told of a write within --timeout")
            }
            Failure::LostConnection => {
                out.write_str("the server closed a connection while it was used; did it end?")
            }
            Failure::ClosesAll(count) => {
                write!(out, "the server keeps closing connections: {count} were opened again, giving up")
            }
            Failure::Workload(text) => out.write_str(text),
            Failure::Driver(text) => write!(out, "the I/O driver failed: {text}"),
            Failure::Backlog => write!(
                out,
                "{OUTSTANDING_MAX} requests are waiting: the offered rate is far above what is served"
            ),
        }
    }
}

impl From<Garbage> for Failure {
    fn from(garbage: Garbage) -> Failure {
        Failure::Garbage(garbage.0)
    }
}

impl From<WorkloadError> for Failure {
    fn from(error: WorkloadError) -> Failure {
        Failure::Workload(error.0)
    }
}

/// What is counted during the measurement, as reports have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests whose intended time (open) or send (closed) lies in the measurement.
    pub offered: u64,
    /// Of these: handed to the driver.
    pub sent: u64,
    /// Replies that arrived while it lasted, whenever asked for.
    pub completed: u64,
    /// Replies to requests of the measurement, drain included.
    pub answered: u64,
    /// Error replies.
    pub errors: u64,
    /// Null replies and 404s: GETs that found nothing.
    #[serde(rename = "misses")]
    pub nulls: u64,
    /// Pushes.
    pub pushes: u64,
    /// Requests on connections given up after the time-out.
    pub timeouts: u64,
    /// Requests on connections that broke.
    pub lost: u64,
    /// Requests unanswered at the end: their latencies are lower bounds.
    pub unanswered: u64,
    /// Replies picked out and checked.
    pub checked: u64,
    /// Of these: not what was asked for.
    pub wrong: u64,
    /// Connections opened again because they broke.
    pub reconnects: u64,
    /// Connections opened again because their requests were used up.
    pub churned: u64,
    /// Bytes of requests.
    pub sent_bytes: u64,
    /// Bytes of replies.
    pub received_bytes: u64,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended early, if it did.
    pub failure: Option<Failure>,
    /// Someone pressed Ctrl-C.
    pub interrupted: bool,
    /// When the measurement began, on the worker's clock.
    pub measure_began_ns: Option<u64>,
    /// Length of the measurement.
    pub window_ns: u64,
    /// From its beginning to the last moment at which one of a number of requests was meant to leave (open loop); `None`: as
    /// long as the measurement. Those that are late prolong the measurement, and must not stretch what was offered.
    pub offered_ns: Option<u64>,
    /// Replies that arrived by then.
    pub completed_in_time: u64,
    /// Requests picked to see whether they left as they were drawn. Open loop only.
    pub picked: Option<Picker>,
    /// See there.
    pub counts: Counts,
    /// Received − intended. Empty in a closed loop.
    pub response: Histogram<u64>,
    /// Received − sent.
    pub service: Histogram<u64>,
    /// Sent − intended. Empty in a closed loop.
    pub lateness: Histogram<u64>,
    /// How long the warm-up was.
    pub warmup_ns: u64,
    /// Whether latency had settled when it ended; `None`: nobody asked.
    pub warmup_settled: Option<bool>,
    /// The history.
    pub intervals: Vec<Interval>,
    /// Text of the first error reply.
    pub first_error: Option<String>,
    /// What was wrong with the first wrong reply.
    pub first_wrong: Option<String>,
}

impl Plan {
    /// The part of it that one of several threads carries out. All draw the same arrivals and take turns in them.
    pub fn share(&self, index: usize, of: usize) -> Plan {
        let part = |whole: u64| whole / of as u64 + u64::from((index as u64) < whole % of as u64);
        Plan {
            workload: WorkloadOptions { share: Share { index, of }, ..self.workload.clone() },
            connections: part(self.connections as u64) as usize,
            stop: match self.stop {
                Stop::After(length) => Stop::After(length),
                Stop::Requests(count) => Stop::Requests(part(count)),
            },
            connects_per_s: self.connects_per_s.map(|rate| rate / of as f64),
            ..self.clone()
        }
    }
}

impl Outcome {
    /// Adds what another thread of the same generator measured. Intervals are merged elsewhere.
    pub fn merge(&mut self, other: Outcome) {
        self.failure = self.failure.take().or(other.failure);
        self.interrupted |= other.interrupted;
        if let Some(theirs) = other.measure_began_ns {
            let ours = self.measure_began_ns.unwrap_or(theirs);
            let end = if self.measure_began_ns.is_some() { ours + self.window_ns } else { 0 };
            let began = ours.min(theirs);
            let offered = |from: u64, length: Option<u64>| Some(from + length?);
            let offer_ended = offered(ours, self.offered_ns).max(offered(theirs, other.offered_ns));
            self.offered_ns = offer_ended.map(|ended| ended - began);
            self.window_ns = end.max(theirs + other.window_ns) - began;
            self.measure_began_ns = Some(began);
        }
        match (&mut self.picked, other.picked) {
            (Some(ours), Some(theirs)) => ours.merge(theirs),
            (ours, theirs) => *ours = ours.take().or(theirs),
        }
        self.completed_in_time += other.completed_in_time;
        self.warmup_ns = self.warmup_ns.max(other.warmup_ns);
        self.warmup_settled = self.warmup_settled.or(other.warmup_settled);
        self.counts.add(&other.counts);
        for (ours, theirs) in [
            (&mut self.response, other.response),
            (&mut self.service, other.service),
            (&mut self.lateness, other.lateness),
        ] {
            ours.add(theirs).expect("all have the same range");
        }
        self.first_error = self.first_error.take().or(other.first_error);
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        let pairs = [
            (&mut self.offered, other.offered),
            (&mut self.sent, other.sent),
            (&mut self.completed, other.completed),
            (&mut self.answered, other.answered),
            (&mut self.errors, other.errors),
            (&mut self.nulls, other.nulls),
            (&mut self.pushes, other.pushes),
            (&mut self.timeouts, other.timeouts),
            (&mut self.lost, other.lost),
            (&mut self.unanswered, other.unanswered),
            (&mut self.checked, other.checked),
            (&mut self.wrong, other.wrong),
            (&mut self.reconnects, other.reconnects),
            (&mut self.churned, other.churned),
            (&mut self.sent_bytes, other.sent_bytes),
            (&mut self.received_bytes, other.received_bytes),
        ];
        for (ours, theirs) in pairs {
            *ours += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{histogram, report};

    #[test]
    fn shares_add_up_to_the_plan() {
        let mut plan = report::tests::plan(true);
        (plan.connections, plan.stop) = (50, Stop::Requests(1_001));
        let shares: Vec<Plan> = (0..3).map(|index| plan.share(index, 3)).collect();
        assert_eq!(shares.iter().map(|share| share.connections).sum::<usize>(), 50);
        let requests = |share: &Plan| if let Stop::Requests(count) = share.stop { count } else { 0 };
        assert_eq!(shares.iter().map(requests).collect::<Vec<_>>(), [334, 334, 333]);
        // The rate is the whole one: threads take turns in the arrivals of one schedule.
        assert!(shares.iter().all(|share| share.load == plan.load));
    }

    #[test]
    fn outcomes_are_added_and_their_windows_united() {
        let outcome = |began: u64, window_ns: u64, value: u64| {
            let mut service = histogram::empty();
            service.saturating_record_n(value, 10);
            Outcome {
                measure_began_ns: Some(began),
                window_ns,
                service,
                counts: Counts { completed: 10, lost: 1, ..Counts::default() },
                ..report::tests::worked(false, 0).outcome
            }
        };
        let mut sum = outcome(100, 1_000, 5_000);
        sum.merge(outcome(90, 900, 7_000));
        assert_eq!((sum.measure_began_ns, sum.window_ns), (Some(90), 1_010));
        assert_eq!((sum.counts.completed, sum.counts.lost, sum.service.len()), (20, 2, 20));
        assert!(sum.service.min() < 5_010 && sum.service.max() >= 7_000);
        // One that failed before it began leaves its reason and no window.
        let nothing = Outcome {
            failure: Some(Failure::ClosedEarly),
            measure_began_ns: None,
            ..report::tests::worked(false, 0).outcome
        };
        sum.merge(nothing);
        assert_eq!((sum.failure.clone(), sum.window_ns), (Some(Failure::ClosedEarly), 1_010));
    }
}
