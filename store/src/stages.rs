//! Where the time of a request goes: how long some of them spend in each stage on their way through the server.
//!
//! Timed is what one receive brought: a **batch**, up to the last reply of its commands. Not every batch: the setting
//! `stage-sampling` is the mean gap between two that are, and the gaps are drawn at random, so that clients that take
//! turns in a fixed order are all seen. A batch that is not timed costs one subtraction.
//!
//! Each moment is stamped when it is passed, with a reading that is an argument here or comes from the lent clock, and none
//! earlier than the one before it. A stage is the time between two neighbours, so **the stages of a batch add up to its
//! whole time in the server**, to the nanosecond. What has nothing to wait for (a read of keys that are durable, a key of this
//! shard) passes a stage in no time, and is counted there with 0.
//!
//! Reads and writes are kept apart; a batch with both is a write. Not timed are commands over several shards and WAITAOF,
//! messages to listeners, and what is executed later than it arrived because the client was paused.

use crate::command::{COMMANDS, flag};
use crate::engine::Shared;
use crate::session::{ConnectionId, Session};
use crate::time::{Clock, Nanos, Now};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

/// One stage, in the order in which a request passes them.
pub struct Stage {
    /// As in INFO's fields and Prometheus' label.
    pub name: &'static str,
    /// What ends it; it begins where the one before it ends.
    pub until: &'static str,
    /// What takes time in it.
    pub help: &'static str,
}

/// Number of stages.
pub const STAGE_COUNT: usize = 7;

/// Every stage. The first begins when the wait of the turn that brought the batch returned: what the bytes waited in the
/// kernel before that, while the shard was busy with its last turn, no clock here can see.
#[rustfmt::skip]
pub const STAGES: [Stage; STAGE_COUNT] = [
    Stage { name: "receive", until: "the batch begins to be parsed", help: "batches before it in the same turn; with epoll also reading the socket" },
    Stage { name: "execute", until: "its last command is executed", help: "parsing, memory, the commands themselves" },
    Stage { name: "hop", until: "the turn that takes the last answer of another shard begins", help: "keys of other shards: two queues, their execution, and their wait for the log" },
    Stage { name: "log_wait", until: "the block of the log with what the replies depend on begins to be written", help: "the rest of the turn, the log's thread waking up, the block before" },
    Stage { name: "flush", until: "that block is on stable storage", help: "the disk" },
    Stage { name: "reveal", until: "the replies are handed to the driver, at the end of a turn", help: "waking the shard, the other connections of the turn, a send before it on the same connection" },
    Stage { name: "send", until: "the wait of the turn that brought the completion of the send returned", help: "system calls and TCP: io_uring's completion, or send() having taken the last byte, with epoll" },
];

/// Batches that only read, and those that write.
pub const KINDS: [&str; 2] = ["read", "write"];

/// Batches of a shard that are under way at once. More are left out, and counted.
const ACTIVE_MAX: usize = 64;

/// Each power of two is divided into so many buckets: a value is known to an eighth.
const DIVISIONS: usize = 8;
const DIVISION_BITS: u32 = DIVISIONS.trailing_zeros();
/// Buckets up to 2^37 nanoseconds, more than two minutes; the last also takes what is longer.
const BUCKETS: usize = (37 - DIVISION_BITS as usize + 1) * DIVISIONS;
/// Prometheus sees whole powers of two only, from 2^8 (256 ns) to 2^34 (17 s): a page has to stay small.
const PROMETHEUS_POWERS: core::ops::RangeInclusive<u32> = 8..=34;

/// Times by how long they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageHistogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for StageHistogram {
    fn default() -> StageHistogram {
        StageHistogram { counts: vec![0; BUCKETS], count: 0, sum: 0, max: 0 }
    }
}

impl StageHistogram {
    /// Counts one time.
    pub fn record(&mut self, time: Nanos) {
        self.counts[bucket_of(time.0)] += 1;
        self.count += 1;
        self.sum += time.0;
        self.max = self.max.max(time.0);
    }

    /// Adds another shard's.
    pub fn add(&mut self, other: &StageHistogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum in nanoseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The longest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A time that a share of `thousandths` is not longer than: the upper end of its bucket, so at most an eighth too much.
    pub fn at_thousandths(&self, thousandths: u64) -> u64 {
        let rank = (self.count * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_end(bucket).min(self.max);
            }
        }
        self.max
    }

    /// Times of at most 2^power − 1 nanoseconds.
    fn count_below(&self, power: u32) -> u64 {
        self.counts[..bucket_of(1 << power)].iter().sum()
    }

    /// Every bucket with something in it: the most it holds, and how many.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (upper_end(bucket), *count))
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < DIVISIONS as u64 {
        return nanos as usize;
    }
    let power = nanos.ilog2();
    let division = (nanos >> (power - DIVISION_BITS)) as usize % DIVISIONS;
    ((power - DIVISION_BITS + 1) as usize * DIVISIONS + division).min(BUCKETS - 1)
}

/// The greatest value of a bucket.
fn upper_end(bucket: usize) -> u64 {
    if bucket < DIVISIONS {
        return bucket as u64;
    }
    let (power, division) = (bucket / DIVISIONS - 1, bucket % DIVISIONS);
    (((DIVISIONS + division + 1) as u64) << power) - 1
}

/// What is known of the batches of one kind.
#[derive(Clone, Debug, Default)]
pub struct KindFigures {
    /// By stage.
    pub stages: [StageHistogram; STAGE_COUNT],
    /// All stages of a batch together.
    pub total: StageHistogram,
}

/// What is known of all that were timed.
#[derive(Clone, Debug, Default)]
pub struct StageFigures {
    /// By kind, as [`KINDS`] names them.
    pub kinds: [KindFigures; KINDS.len()],
    /// Batches that were drawn, and of which not everything is known: too many were under way, the connection ended, the log
    /// has forgotten the block, or it was nothing that is timed.
    pub left_out: u64,
}

impl StageFigures {
    /// Batches timed.
    pub fn samples(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.total.count).sum()
    }

    fn add(&mut self, other: &StageFigures) {
        for (kind, of) in self.kinds.iter_mut().zip(&other.kinds) {
            kind.stages.iter_mut().zip(&of.stages).for_each(|(sum, stage)| sum.add(stage));
            kind.total.add(&of.total);
        }
        self.left_out += other.left_out;
    }

    fn record(&mut self, sample: &Sample) {
        let kind = &mut self.kinds[usize::from(sample.is_write)];
        let mut at = sample.moments[0];
        for (stage, &moment) in kind.stages.iter_mut().zip(&sample.moments[1..]) {
            // Where there was nothing to wait for, or it had happened before: the stage took no time.
            let next = moment.max(at);
            stage.record(next.since(at));
            at = next;
        }
        kind.total.record(at.since(sample.moments[0]));
    }
}

/// The figures of the whole server, as far as it is in hand.
pub fn merged_stages(shared: &Shared) -> StageFigures {
    let mut merged = StageFigures::default();
    shared.all().for_each(|shard| merged.add(&shard.metrics.stages));
    merged
}

/// The lines of INFO's section behind those of the metrics' table: for each kind and stage, and for all stages together,
/// figures, and the histogram they come from (the upper end of each bucket that is not empty, and how many it holds).
pub(crate) fn write_info(shared: &Shared, mut line: impl FnMut(&str, &dyn core::fmt::Display)) {
    line("stage_sampling", &shared.config.stage_sampling);
    let figures = merged_stages(shared);
    for (name, kind) in KINDS.iter().zip(&figures.kinds) {
        for (stage, histogram) in named(kind) {
            let of = |thousandths| histogram.at_thousandths(thousandths);
            let figures = format!(
                "samples={},nanoseconds={},p50={},p99={},p99.9={},max={}",
                histogram.count,
                histogram.sum,
                of(500),
                of(990),
                of(999),
                histogram.max
            );
            line(&format!("stage_{name}_{stage}"), &figures);
            let buckets: Vec<String> =
                histogram.filled().map(|(end, count)| format!("{end}={count}")).collect();
            line(&format!("stage_{name}_{stage}_histogram"), &buckets.join(","));
        }
    }
}

/// The histograms in Prometheus' text format.
pub(crate) fn write_prometheus(shared: &Shared, out: &mut Vec<u8>) {
    let figures = merged_stages(shared);
    let mut text = String::from(
        "# HELP millrace_stage_seconds Time of sampled batches of requests by stage.\n\
         # TYPE millrace_stage_seconds histogram\n",
    );
    for (name, kind) in KINDS.iter().zip(&figures.kinds) {
        for (stage, histogram) in STAGES.iter().zip(&kind.stages) {
            let labels = format!("kind=\"{name}\",stage=\"{}\"", stage.name);
            prometheus_histogram(&mut text, "stage_seconds", &labels, histogram);
        }
    }
    text.push_str(
        "# HELP millrace_request_seconds Time of sampled batches of requests in the server, all stages.\n\
         # TYPE millrace_request_seconds histogram\n",
    );
    for (name, kind) in KINDS.iter().zip(&figures.kinds) {
        prometheus_histogram(&mut text, "request_seconds", &format!("kind=\"{name}\""), &kind.total);
    }
    out.extend_from_slice(text.as_bytes());
}

fn prometheus_histogram(text: &mut String, name: &str, labels: &str, histogram: &StageHistogram) {
    let seconds = |nanos: u64| format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    for power in PROMETHEUS_POWERS {
        let (end, count) = (seconds((1 << power) - 1), histogram.count_below(power));
        let _ = writeln!(text, "millrace_{name}_bucket{{{labels},le=\"{end}\"}} {count}");
    }
    let (count, sum) = (histogram.count, seconds(histogram.sum));
    let _ = writeln!(text, "millrace_{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ =
        writeln!(text, "millrace_{name}_sum{{{labels}}} {sum}\nmillrace_{name}_count{{{labels}}} {count}");
}

/// The histograms of a kind by name, the total last.
fn named(kind: &KindFigures) -> impl Iterator<Item = (&'static str, &StageHistogram)> {
    let stages = STAGES.iter().map(|stage| stage.name).zip(&kind.stages);
    stages.chain(core::iter::once(("total", &kind.total)))
}

/// The table of stages as it stands in `docs/stages.md`.
pub fn documentation() -> String {
    let mut text = String::from("| stage | ends when | what takes time in it |\n|---|---|---|\n");
    for stage in &STAGES {
        let _ = writeln!(text, "| `{}` | {} | {} |", stage.name, stage.until, stage.help);
    }
    text
}

/// The moments between which the stages lie.
const WOKE: usize = 0;
const BEGUN: usize = 1;
const EXECUTED: usize = 2;
const ANSWERED: usize = 3;
const WRITTEN: usize = 4;
const DURABLE: usize = 5;
const HANDED: usize = 6;
const SENT: usize = 7;
const _: () = assert!(SENT == STAGE_COUNT, "a stage lies between two moments");

/// A batch under way.
#[derive(Clone, Debug)]
struct Sample {
    connection: ConnectionId,
    is_write: bool,
    /// Output up to the end of its replies that has not been handed over.
    to_hand: usize,
    /// Replies of other shards that are missing before that end.
    holes: usize,
    /// The record of the log its replies depend on; 0: none that is pending.
    lsn: u64,
    is_handed: bool,
    /// Zero: not passed, or nothing to wait for.
    moments: [Nanos; STAGE_COUNT + 1],
}

/// What was there when a batch began.
pub(crate) struct Begun {
    at: Nanos,
    output: usize,
    holes: usize,
}

/// Draws the batches that are timed, and follows them.
#[derive(Debug)]
pub struct Sampler {
    /// The mean gap; 0: none is drawn.
    period: u64,
    /// Batches until the next.
    left: u64,
    random: u64,
    /// The batch in execution is timed.
    is_timing: bool,
    /// A command of it writes.
    has_written: bool,
    active: Vec<Sample>,
    /// Something was handed over in this turn and has no stamp yet.
    has_unstamped: bool,
}

impl Sampler {
    /// Draws nothing yet.
    pub(crate) fn new(seed: u64) -> Sampler {
        Sampler {
            period: 0,
            left: u64::MAX,
            // Zero would stay zero.
            random: seed | 1,
            is_timing: false,
            has_written: false,
            active: Vec::new(),
            has_unstamped: false,
        }
    }

    /// One batch in `period` is drawn from now on; 0: none.
    pub(crate) fn set_period(&mut self, period: u64) {
        if self.period != period {
            self.period = period;
            self.draw();
        }
    }

    /// Whether the batch that begins now is drawn.
    #[inline]
    pub(crate) fn is_due(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.draw();
        self.period > 0
    }

    /// Gaps are uniform between 1 and 2 · period − 1.
    #[cold]
    fn draw(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.left = match self.period {
            0 => u64::MAX,
            period => 1 + self.random % (2 * period - 1),
        };
    }

    /// Whether the batch in execution is timed: then it is asked what it does.
    #[inline]
    pub(crate) fn is_timing(&self) -> bool {
        self.is_timing
    }

    /// What the batch in execution does.
    pub(crate) fn note(&mut self, writes: bool) {
        self.has_written |= writes;
    }

    fn of(&mut self, connection: ConnectionId) -> impl Iterator<Item = &mut Sample> {
        self.active.iter_mut().filter(move |sample| sample.connection == connection)
    }

    /// A reply of another shard, so long, found its place in the output.
    pub(crate) fn fill(&mut self, connection: ConnectionId, length: usize) {
        for sample in self.of(connection).filter(|sample| sample.holes > 0) {
            sample.holes -= 1;
            sample.to_hand += length;
        }
    }

    /// An answer of another shard was taken in the turn that began at `woke`. Where nobody wants a reply (CLIENT REPLY),
    /// that is the end of it.
    pub(crate) fn answered(&mut self, connection: ConnectionId, woke: Nanos) {
        for sample in self.of(connection).filter(|sample| sample.holes == 0) {
            if sample.moments[ANSWERED] == Nanos(0) {
                sample.moments[ANSWERED] = woke;
            }
        }
        self.active.retain(|sample| {
            sample.connection != connection || sample.to_hand + sample.holes > 0 || sample.is_handed
        });
    }

    /// The first `length` bytes of the output were taken to be handed over.
    pub(crate) fn taken(&mut self, connection: ConnectionId, length: usize) {
        let mut some = false;
        for sample in self.of(connection).filter(|sample| !sample.is_handed) {
            sample.to_hand = sample.to_hand.saturating_sub(length);
            sample.is_handed = sample.to_hand + sample.holes == 0;
            some |= sample.is_handed;
        }
        self.has_unstamped |= some;
    }

    /// Whether output of a batch that is timed was taken since [`handed`](Self::handed) was last called.
    #[inline]
    pub fn has_unstamped(&self) -> bool {
        self.has_unstamped
    }

    /// What was taken is handed to the driver now, at the end of a turn.
    #[cold]
    pub fn handed(&mut self, at: Nanos) {
        self.has_unstamped = false;
        let fresh = |sample: &&mut Sample| sample.is_handed && sample.moments[HANDED] == Nanos(0);
        self.active.iter_mut().filter(fresh).for_each(|sample| sample.moments[HANDED] = at);
    }
}

/// The log's part of a batch's way; times are of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTimes {
    /// When the block that holds the record began to be written.
    pub begun: Nanos,
    /// When it was on stable storage.
    pub durable: Nanos,
}

impl Shared {
    /// A batch that was drawn begins.
    #[cold]
    pub(crate) fn begin_sample(&mut self, session: &Session, clock: &dyn Clock) -> Begun {
        self.sampler.is_timing = true;
        self.sampler.has_written = false;
        Begun { at: clock.monotonic(), output: session.output.len(), holes: session.missing_replies() }
    }

    /// Its commands are executed: what it waits for now.
    #[cold]
    pub(crate) fn end_sample(&mut self, session: &mut Session, begun: Begun, now: Now, clock: &dyn Clock) {
        let executed = clock.monotonic();
        self.sampler.is_timing = false;
        let holes = session.missing_replies();
        let is_answered = session.output.len() > begun.output || holes > begun.holes;
        if session.aborted || !(is_answered || session.gathers) {
            // A part of a command, or one that nobody wants a reply to.
            return;
        }
        if session.gathers || self.sampler.active.len() >= ACTIVE_MAX {
            self.metrics.stages.left_out += 1;
            return;
        }
        let last = COMMANDS.get(usize::from(session.last_command));
        let is_write =
            self.sampler.has_written || last.is_some_and(|command| command.flags & flag::WRITE != 0);
        let durable = self.journal.as_ref().map_or(u64::MAX, |journal| journal.durable_lsn());
        // What stands before it on the same connection holds it up as well.
        let gates = session.gates.as_ref().filter(|_| session.is_gated).map_or(0, |gates| gates.latest());
        let lsn = session.gate.max(gates);
        let mut moments = [Nanos(0); STAGE_COUNT + 1];
        moments[WOKE] = now.monotonic;
        moments[BEGUN] = begun.at;
        moments[EXECUTED] = executed;
        session.is_sampled = true;
        self.sampler.active.push(Sample {
            connection: session.connection,
            is_write,
            to_hand: session.output.len(),
            holes,
            lsn: if lsn > durable { lsn } else { 0 },
            is_handed: false,
            moments,
        });
    }

    /// The send in flight on a connection is complete, as the wait that returned at `woke` brought.
    #[cold]
    pub(crate) fn end_samples(&mut self, connection: ConnectionId, woke: Nanos) {
        let Shared { sampler, metrics, sessions, .. } = self;
        let mut others = false;
        sampler.active.retain_mut(|sample| {
            let is_over = sample.connection == connection && sample.is_handed;
            if is_over {
                sample.moments[SENT] = woke;
                metrics.stages.record(sample);
            }
            others |= sample.connection == connection && !is_over;
            !is_over
        });
        if let Some(session) = sessions.get_mut(connection) {
            session.is_sampled = others;
        }
    }

    /// The connection is gone.
    #[cold]
    pub(crate) fn drop_samples(&mut self, connection: ConnectionId) {
        let before = self.sampler.active.len();
        self.sampler.active.retain(|sample| sample.connection != connection);
        self.metrics.stages.left_out += (before - self.sampler.active.len()) as u64;
    }

    /// A record that is durable, of which the log is to say when that came about; then [`stamp_log`](Self::stamp_log).
    pub fn next_durable_sample(&self) -> Option<u64> {
        let durable = self.journal.as_ref()?.durable_lsn();
        let waits = |sample: &&Sample| sample.moments[DURABLE] == Nanos(0);
        self.sampler
            .active
            .iter()
            .filter(waits)
            .map(|sample| sample.lsn)
            .find(|&lsn| lsn > 0 && lsn <= durable)
    }

    /// What the log says of the record. `None`: it has forgotten, so much was written since.
    pub fn stamp_log(&mut self, lsn: u64, times: Option<BlockTimes>) {
        let Some(times) = times else {
            let before = self.sampler.active.len();
            self.sampler.active.retain(|sample| sample.lsn != lsn);
            self.metrics.stages.left_out += (before - self.sampler.active.len()) as u64;
            return;
        };
        for sample in self.sampler.active.iter_mut().filter(|sample| sample.lsn == lsn) {
            sample.moments[WRITTEN] = times.begun;
            // Never zero, which would be asked for again.
            sample.moments[DURABLE] = times.durable.max(Nanos(1));
        }
    }
}

#[cfg(test)]
mod tests;
