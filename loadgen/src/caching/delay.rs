//! From an acknowledged write to the invalidation at N trackers: one key, one write after the other, and nothing else.
//!
//! Before each write every tracker has read the key, and some time passes in which the server has nothing to do. Then the
//! writer writes, and everybody waits. The three moments of a write are its send, its acknowledgement at the writer, and for
//! each tracker its invalidation; the last two may come in either order, so the time between them has a sign. Meanwhile
//! the trackers read their caches at a rate of their own, an open loop: a read is stale where the write was acknowledged
//! and the tracker was not told.

use super::links::{Links, put_command};
use super::replies::Reply;
use super::truth::{Truth, read_version, write_version};
use super::{Mode, key_number, write_key};
use crate::client::{Failure, Stage};
use crate::histogram;
use crate::schedule::{Arrival, Schedule};
use crate::worker::Machine;
use hdrhistogram::Histogram;
use reactor::server::event::{ConnectionId, Event, Operation, Target};

/// The key.
const KEY: u32 = 0;
/// Discarded before the measurement.
const WARM_UP_WRITES: u64 = 50;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct DelayPlan {
    /// Where to.
    pub target: Target,
    /// AUTH.
    pub password: Option<String>,
    /// How many track the key.
    pub trackers: usize,
    /// How.
    pub mode: Mode,
    /// Writes measured.
    pub writes: u64,
    /// Between two of them.
    pub pause_ns: u64,
    /// Reads a second of each tracker's cache.
    pub reads_per_s: f64,
    /// Bytes of the value.
    pub value_bytes: usize,
    /// Nothing takes longer.
    pub timeout_ns: u64,
    /// Seed of the reads.
    pub seed: u64,
}

/// Times that may be negative, as two histograms.
#[derive(Clone, Debug)]
pub struct Signed {
    below: Histogram<u64>,
    above: Histogram<u64>,
}

impl Default for Signed {
    fn default() -> Signed {
        Signed { below: histogram::empty(), above: histogram::empty() }
    }
}

impl Signed {
    /// `later − earlier`.
    pub fn record(&mut self, later: u64, earlier: u64) {
        match later >= earlier {
            true => self.above.saturating_record(later - earlier),
            false => self.below.saturating_record(earlier - later),
        }
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.below.len() + self.above.len()
    }

    /// How many are below zero.
    pub fn negative(&self) -> u64 {
        self.below.len()
    }

    /// The value at a quantile, if enough lie beyond it.
    pub fn at(&self, quantile: f64) -> Option<i64> {
        let count = self.len();
        if !histogram::enough_samples(count, quantile) {
            return None;
        }
        let rank = ((count as f64 * quantile).ceil() as u64).clamp(1, count);
        let below = self.below.len();
        Some(if rank <= below {
            // The smallest of all is the largest distance below zero.
            let from_zero = (below - rank + 1) as f64 / below as f64;
            -(self.below.value_at_quantile(from_zero) as i64)
        } else {
            let share = (rank - below) as f64 / self.above.len() as f64;
            self.above.value_at_quantile(share) as i64
        })
    }

    /// The largest.
    pub fn max(&self) -> Option<i64> {
        match (self.above.is_empty(), self.below.is_empty()) {
            (false, _) => Some(self.above.max() as i64),
            (true, false) => Some(-(self.below.min() as i64)),
            (true, true) => None,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct DelayFigures {
    /// Invalidated − acknowledged, of every tracker.
    pub since_acknowledged: Signed,
    /// Invalidated − sent.
    pub since_sent: Signed,
    /// The last tracker's invalidation − acknowledged, of every write.
    pub last_told: Signed,
    /// Acknowledged − sent.
    pub acknowledged: Signed,
    /// Writes measured.
    pub writes: u64,
    /// Reads that caches answered.
    pub reads: u64,
    /// Of these stale.
    pub stale_reads: u64,
    /// The longest that a value had been overwritten and acknowledged when it was read.
    pub stale_age_max_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many trackers have not got the value.
    Reading(usize),
    /// Until then nothing happens.
    Pausing(u64),
    /// So many have not been told, and the writer may still wait.
    Writing(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Delay {
    plan: DelayPlan,
    links: Links,
    body: Body,
    stage: Stage,
    checked: u64,
    failure: Option<Failure>,
    interrupted: bool,
}

/// All but the connections. The last link is the writer's.
#[derive(Debug)]
struct Body {
    truth: Truth,
    /// Version + 1 in each tracker's cache.
    caches: Vec<u64>,
    told_at: Vec<u64>,
    step: Step,
    /// The write's send, its acknowledgement (0: not yet), and when the step began.
    sent_at: u64,
    acknowledged_at: u64,
    began: u64,
    version: u64,
    done: u64,
    wrong: Option<Failure>,
    figures: DelayFigures,
    reads: Option<Schedule>,
    reads_began: u64,
    next_reader: usize,
}

impl Delay {
    /// At the beginning.
    pub fn new(plan: DelayPlan) -> Delay {
        let mut greetings = vec![plan.mode.greeting(plan.password.as_deref()); plan.trackers];
        greetings.push(Mode::Off.greeting(plan.password.as_deref()));
        let reads = (plan.reads_per_s > 0.0)
            .then(|| Schedule::new(Arrival::Poisson, plan.reads_per_s * plan.trackers as f64, plan.seed));
        let body = Body {
            truth: Truth::new(1),
            caches: vec![0; plan.trackers],
            told_at: vec![0; plan.trackers],
            step: Step::Pausing(0),
            sent_at: 0,
            acknowledged_at: 0,
            began: 0,
            version: 0,
            done: 0,
            wrong: None,
            figures: DelayFigures::default(),
            reads,
            reads_began: 0,
            next_reader: 0,
        };
        let links = Links::new(plan.target.clone(), greetings);
        Delay { plan, links, body, stage: Stage::Connect, checked: 0, failure: None, interrupted: false }
    }

    /// What was measured; why it ended early, and whether somebody asked for that.
    pub fn into_figures(self) -> (DelayFigures, Option<Failure>, bool) {
        (self.body.figures, self.failure, self.interrupted)
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.stage = Stage::Done;
    }

    /// Everybody reads the key.
    fn read(&mut self, now: u64) {
        let get = super::links::command(&[b"GET", &write_key(KEY)]);
        for index in 0..self.plan.trackers {
            self.links.send(index).extend_from_slice(&get);
        }
        self.body.begin(Step::Reading(self.plan.trackers), now);
    }

    fn write(&mut self, now: u64) {
        let version = self.body.truth.begin_write(KEY).expect("nobody else writes");
        let mut value = vec![b'v'; self.plan.value_bytes];
        write_version(&mut value, version);
        put_command(self.links.send(self.plan.trackers), &[b"SET", &write_key(KEY), &value]);
        (self.body.version, self.body.sent_at, self.body.acknowledged_at) = (version, now, 0);
        self.body.begin(Step::Writing(self.plan.trackers), now);
    }
}

impl Body {
    fn begin(&mut self, step: Step, now: u64) {
        (self.step, self.began) = (step, now);
    }

    fn found(&mut self, index: usize, reply: Reply<'_>, now: u64) {
        let is_writer = index == self.caches.len();
        match (reply, self.step) {
            (Reply::Push, _) => {}
            (Reply::InvalidateAll | Reply::Invalidate(_), _) if is_writer => {}
            (Reply::Invalidate(key), _) if key_number(key) != Some(KEY) => {}
            (Reply::InvalidateAll | Reply::Invalidate(_), step) => {
                self.caches[index] = 0;
                if let (Step::Writing(missing), 0) = (step, self.told_at[index]) {
                    self.told_at[index] = now;
                    self.step = Step::Writing(missing - 1);
                }
            }
            (Reply::Error(text), _) => {
                self.wrong = Some(Failure::Rejected(String::from_utf8_lossy(text).into_owned()));
            }
            (Reply::Simple(_), Step::Writing(_)) if is_writer => {
                self.acknowledged_at = now;
                self.truth.acknowledge(KEY, self.version, now);
            }
            (Reply::Value(value), Step::Reading(missing)) if !is_writer => match read_version(value) {
                Some(version) if version == self.version => {
                    self.caches[index] = version + 1;
                    self.step = Step::Reading(missing - 1);
                }
                _ => {
                    self.wrong =
                        Some(Failure::Garbage("the value is not the one that was written last".into()))
                }
            },
            (reply, step) => self.wrong = Some(Failure::Garbage(format!("{reply:?} while {step:?}"))),
        }
    }

    /// A write that everybody knows of: its times.
    fn note(&mut self, warm_up: bool) {
        self.done += 1;
        let told = std::mem::replace(&mut self.told_at, vec![0; self.caches.len()]);
        if warm_up {
            return;
        }
        let figures = &mut self.figures;
        figures.writes += 1;
        figures.acknowledged.record(self.acknowledged_at, self.sent_at);
        for told in &told {
            figures.since_acknowledged.record(*told, self.acknowledged_at);
            figures.since_sent.record(*told, self.sent_at);
        }
        if let Some(last) = told.iter().max() {
            figures.last_told.record(*last, self.acknowledged_at);
        }
    }

    /// The reads of caches that are due.
    fn read_caches(&mut self, now: u64) {
        let Some(reads) = &mut self.reads else { return };
        while reads.take_due(now - self.reads_began).is_some() {
            let index = self.next_reader;
            self.next_reader = (index + 1) % self.caches.len();
            if self.caches[index] == 0 {
                continue;
            }
            self.figures.reads += 1;
            if let Some(since) = self.truth.stale_since(KEY, self.caches[index] - 1) {
                self.figures.stale_reads += 1;
                self.figures.stale_age_max_ns = self.figures.stale_age_max_ns.max(now.saturating_sub(since));
            }
        }
    }
}

impl Machine for Delay {
    fn stage(&self) -> Stage {
        self.stage
    }

    fn handle_time(&mut self, now: u64) {
        if self.stage == Stage::Connect && self.links.are_ready() {
            self.stage = Stage::WarmUp;
            self.read(now);
        }
        if self.stage == Stage::Measure {
            self.body.read_caches(now);
        }
        match self.body.step {
            _ if !matches!(self.stage, Stage::WarmUp | Stage::Measure) => {}
            Step::Reading(0) => self.body.begin(Step::Pausing(now + self.plan.pause_ns), now),
            Step::Pausing(until) if now >= until => self.write(now),
            Step::Writing(0) if self.body.acknowledged_at > 0 => {
                self.body.note(self.stage == Stage::WarmUp);
                if self.stage == Stage::WarmUp && self.body.done == WARM_UP_WRITES {
                    self.stage = Stage::Measure;
                    self.body.reads_began = now;
                }
                if self.body.figures.writes == self.plan.writes {
                    self.stage = Stage::Done;
                } else {
                    self.read(now);
                }
            }
            _ => {}
        }
        if now >= self.checked + 50_000_000 && self.stage != Stage::Done {
            self.checked = now;
            let waits = !matches!(self.body.step, Step::Pausing(_)) || self.stage == Stage::Connect;
            if waits && now.saturating_sub(self.body.began) > self.plan.timeout_ns {
                self.fail(match self.body.step {
                    Step::Writing(missing) if missing > 0 => Failure::NotTold(missing, self.plan.trackers),
                    _ => Failure::Silent(self.stage),
                });
            }
        }
    }

    fn handle(&mut self, event: Event<'_>, now: u64) {
        if matches!(event, Event::StopRequested) {
            (self.interrupted, self.stage) = (true, Stage::Done);
        }
        if self.stage == Stage::Done {
            return;
        }
        let body = &mut self.body;
        if let Err(failure) = self.links.handle(event, |index, reply| body.found(index, reply, now)) {
            self.fail(failure);
        } else if let Some(failure) = self.body.wrong.take() {
            self.fail(failure);
        }
    }

    fn poll_unconnected(&mut self, _now: u64) -> Option<usize> {
        self.links.poll_unconnected()
    }

    fn connect(&mut self, index: usize, id: ConnectionId) {
        self.links.connect(index, id);
    }

    fn poll_operation(&mut self, _now: u64) -> Option<Operation> {
        self.links.poll_operation()
    }

    fn poll_timeout(&self, now: u64) -> u64 {
        let mut left = 50_000_000;
        if let Step::Pausing(until) = self.body.step {
            left = left.min(until.saturating_sub(now));
        }
        if let (Stage::Measure, Some(reads)) = (self.stage, &self.body.reads) {
            left = left.min((self.body.reads_began + reads.peek()).saturating_sub(now));
        }
        left
    }

    fn driver_failed(&mut self, error: &std::io::Error, _now: u64) {
        self.fail(Failure::Driver(error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_below_zero_have_their_places_among_the_others() {
        let mut signed = Signed::default();
        (1..=1_000).for_each(|value| signed.record(1_000_000, 1_000_000 + value * 1_000));
        (1..=3_000).for_each(|value| signed.record(value * 1_000, 0));
        assert_eq!((signed.len(), signed.negative()), (4_000, 1_000));
        let near = |quantile: f64, expected: f64| {
            let found = signed.at(quantile).expect("enough") as f64;
            assert!((found - expected).abs() <= 3_000.0, "{quantile}: {found}");
        };
        near(0.125, -500_000.0);
        near(0.25, -1_000.0);
        near(0.5, 1_000_000.0);
        near(0.99, 2_960_000.0);
        assert_eq!(signed.at(0.9999), None, "too few");
        assert!(signed.max() >= Some(2_999_000));
    }

    fn delay(trackers: usize) -> Delay {
        Delay::new(DelayPlan {
            target: Target::Unix("/nowhere".into()),
            password: None,
            trackers,
            mode: Mode::Reads,
            writes: 1,
            pause_ns: 100,
            reads_per_s: 0.0,
            value_bytes: 16,
            timeout_ns: 1_000_000_000,
            seed: 1,
        })
    }

    #[test]
    fn who_was_told_before_the_writer_and_who_after() {
        let mut delay = delay(2);
        (delay.stage, delay.body.done) = (Stage::Measure, WARM_UP_WRITES);
        delay.read(0);
        delay.body.found(0, Reply::Value(b"0000000000000000"), 5);
        delay.body.found(1, Reply::Value(b"0000000000000000"), 6);
        delay.handle_time(10);
        delay.handle_time(110);
        assert_eq!((delay.body.step, delay.body.sent_at), (Step::Writing(2), 110));
        delay.body.found(1, Reply::Invalidate(&write_key(KEY)), 150);
        delay.body.found(2, Reply::Simple(b"OK"), 160);
        delay.handle_time(165);
        assert_eq!(delay.stage, Stage::Measure, "one has not been told");
        delay.body.found(0, Reply::Invalidate(&write_key(KEY)), 190);
        delay.handle_time(200);
        assert_eq!(delay.stage, Stage::Done);
        let figures = &delay.body.figures;
        assert_eq!((figures.since_acknowledged.negative(), figures.since_acknowledged.max()), (1, Some(30)));
        assert_eq!((figures.since_sent.max(), figures.last_told.max()), (Some(80), Some(30)));
        assert_eq!(figures.acknowledged.max(), Some(50));
    }

    #[test]
    fn who_is_never_told_ends_it() {
        let mut delay = delay(3);
        delay.stage = Stage::Measure;
        delay.write(0);
        delay.body.found(1, Reply::Invalidate(&write_key(KEY)), 5);
        delay.body.found(3, Reply::Simple(b"OK"), 6);
        delay.handle_time(2_000_000_000);
        assert_eq!(delay.failure, Some(Failure::NotTold(2, 3)));
    }
}
