//! The loop: one thread, one driver, one pipeline. Read this first.
//!
//! A turn waits, takes the time once, lets the pipeline handle everything that happened, and hands the driver
//! what the pipeline wants done. Nothing here decides anything.
//!
//! With several shards a turn also takes what the others sent and sends what they shall hear ([`Company`]). A shard
//! alone has no company and pays nothing for it.
//!
//! **No acknowledgement overtakes an invalidation** (`store/src/tracking`). What a turn has to tell other shards' clients is
//! there to be heard before the log has the turn's records, before an answer to another shard is, and before a
//! reply leaves: where a queue is full all of these wait ([`Shard::turn`]). And before a shard takes what a client has
//! sent it hears what it was told, and then asks what is durable. So whoever was shown a write, by whatever shard, and
//! then sends something on a tracked connection is answered behind the invalidation.
//!
//! [`run`] is what a thread does, and the only place that waits. The parts of a turn between two waits are
//! methods of [`Shard`], so that the simulator in `tests/` takes the same turns in the same order, with its own driver, clock and idea
//! of who runs when.

use super::event::Event;
use super::log_end::LogEnd;
use super::mailbox::Mailbox;
use super::pipeline::Pipeline;
use super::replication::end::ReplicationEnd;
use super::snapshot_end::SnapshotEnd;
use super::snapshot_start::Origin;
use crate::clock::{SystemClock, TurnClock};
use crate::cpu;
use crate::io::driver::{Driver, DriverCounters};
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use store::metrics::Metrics;
use store::shards::{Message, ShardSet};
use store::time::{Clock, Nanos, Now};

/// When a turn has lasted this long it ends, and what else has arrived waits for the next: replies of the first
/// connections do not wait for the growth of the index that the last ones cause, and background work gets its turn.
const TURN_BUDGET: Nanos = Nanos(400_000);
/// Bytes of input, or their worth in events, between two looks at the clock within a turn.
const BUDGET_CHECK_BYTES: usize = 4096;
/// Messages between two looks at the clock within a turn: each may be many commands.
const BUDGET_CHECK_MESSAGES: usize = 8;
/// Messages in one turn.
const MESSAGES_MAX: usize = 256;

/// How often the process' own memory and CPU time, and the log's figures, are read for INFO and `/metrics`.
const USAGE_INTERVAL: Nanos = Nanos(200_000_000);

/// Turns until every connection is closed after a stop was asked for, and those of all other shards too.
pub fn run<D: Driver>(mut shard: Shard<D, SystemClock>) -> io::Result<()> {
    let mut usage_read = Nanos(0);
    while !shard.is_over() {
        let timeout = shard.before_waiting();
        shard.driver.submit_and_wait(timeout)?;
        let halt = shard.turn()?;
        if halt.rests {
            shard.rest();
        }
        if halt.stall.0 > 0 {
            shard.stand_for(halt.stall)?;
        }
        if shard.dispatch() {
            // What was enqueued must not wait for our return.
            shard.driver.submit_and_wait(Some(Duration::ZERO))?;
            shard.stand_until_returned()?;
        }
        shard.count();
        if shard.now.monotonic.since(usage_read) > USAGE_INTERVAL {
            usage_read = shard.now.monotonic;
            shard.read_usage();
        }
    }
    shard.say_over();
    while let Some(timeout) = shard.last_turn() {
        shard.wait_for_snapshots(timeout);
    }
    Ok(())
}

/// One shard and what its loop holds.
pub struct Shard<D, C> {
    driver: D,
    pipeline: Pipeline,
    clock: C,
    /// The time of this turn.
    now: Now,
    company: Option<Company>,
    log: Option<LogEnd>,
    /// The snapshot it may live on.
    origin: Option<Arc<Origin>>,
    snapshots: Option<SnapshotEnd>,
    replication: Option<ReplicationEnd>,
    /// Other shards can hear what this one has told them: nothing is kept back for that.
    is_told: bool,
}

/// What has to pass between a turn and its replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Halt {
    /// The log has enough to do: see [`LogEnd::prepare_rest`].
    pub rests: bool,
    /// DEBUG SLEEP.
    pub stall: Nanos,
}

impl<D: Driver, C: TurnClock> Shard<D, C> {
    /// A shard before its first turn.
    pub fn new(
        driver: D,
        pipeline: Pipeline,
        mut clock: C,
        company: Option<Company>,
        log: Option<LogEnd>,
    ) -> Self {
        let now = clock.tick();
        let (origin, snapshots, replication, is_told) = (None, None, None, true);
        Shard { driver, pipeline, clock, now, company, log, origin, snapshots, replication, is_told }
    }

    /// The same that lives on a snapshot.
    pub fn with_origin(self, origin: Option<Arc<Origin>>) -> Self {
        Shard { origin, ..self }
    }

    /// The same with an end of snapshots.
    pub fn with_snapshots(self, snapshots: Option<SnapshotEnd>) -> Self {
        Shard { snapshots, ..self }
    }

    /// The same with an end of replication.
    pub fn with_replication(self, replication: Option<ReplicationEnd>) -> Self {
        Shard { replication, ..self }
    }

    /// Every connection is closed after a stop was asked for, and those of all other shards too.
    #[inline]
    pub fn is_over(&mut self) -> bool {
        self.pipeline.is_stopped() && self.company.as_mut().is_none_or(Company::is_over)
    }

    /// How long the driver may wait. Where it waits, whoever has something for this shard has been told to wake it.
    #[inline]
    pub fn before_waiting(&mut self) -> Option<Duration> {
        let mut timeout = self.pipeline.poll_timeout(self.now).map(|left| Duration::from_nanos(left.0));
        if let Some(log) = &self.log {
            timeout = log.before_waiting(&self.pipeline, self.now, timeout);
        }
        if let Some(snapshots) = &self.snapshots {
            timeout = snapshots.before_waiting(self.now, timeout);
        }
        if let Some(company) = &mut self.company {
            timeout = company.before_waiting(timeout);
        }
        if let Some(replication) = &self.replication {
            replication.rest();
        }
        timeout
    }

    /// Takes what happened while the driver waited: everything that can be executed is.
    #[inline]
    pub fn turn(&mut self) -> io::Result<Halt> {
        if let Some(replication) = &self.replication {
            replication.before_clock();
        }
        let mut now = self.clock.tick();
        if let Some(replication) = &mut self.replication {
            if replication.heed(&mut self.pipeline, self.log.as_mut(), now) {
                now = self.clock.tick();
            }
            replication.begin_turn(&mut self.pipeline, now);
        }
        self.now = now;
        let executes = self.log.as_mut().is_none_or(|log| log.begin_turn(&mut self.pipeline));
        let snapshots = self.snapshots.as_mut();
        // An image is begun in a turn of its own: the two together could be too long.
        let begins = snapshots.is_some_and(|snapshots| snapshots.begin_turn(&mut self.pipeline, now));
        let (mut unchecked, mut is_busy) = (0, begins);
        let mut is_told = true;
        if let Some(company) = &mut self.company {
            // What found no room in the last turn, or was to be told while the shard stood still.
            is_told = company.tell(&mut self.pipeline);
            company.receive(&mut self.pipeline, now, &self.clock)?;
            is_busy |= company.lively;
            if let Some(log) = &mut self.log {
                log.look(&mut self.pipeline);
            }
        }
        while executes
            && !begins
            && is_told
            && let Some(event) = self.driver.next_event()
        {
            is_busy = true;
            unchecked += event.weight();
            if let Event::Received { .. } = &event
                && let Some(company) = &mut self.company
                && self.pipeline.has_trackers()
            {
                // What was received may be younger than the beginning of the turn.
                company.hasten(&mut self.pipeline, now, &self.clock);
                if let Some(log) = &mut self.log {
                    log.look(&mut self.pipeline);
                }
            }
            self.pipeline.handle(event, now, &self.clock);
            if unchecked >= BUDGET_CHECK_BYTES {
                unchecked = 0;
                if self.clock.monotonic().since(now.monotonic) > TURN_BUDGET {
                    break;
                }
            }
        }
        self.pipeline.finish_turn(now);
        self.heed_damage()?;
        self.is_told = self.company.as_mut().is_none_or(|company| company.tell(&mut self.pipeline));
        let halt = Halt { rests: !executes, stall: self.pipeline.take_stall() };
        if let Some(log) = self.log.as_mut().filter(|_| self.is_told) {
            let stands = halt != Halt::default() || self.pipeline.is_stopping();
            log.end_turn(&mut self.pipeline, now, stands);
        }
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.end_turn(&mut self.pipeline, now, &self.clock, is_busy);
        }
        Ok(halt)
    }

    /// Hands on what the turn wants done. `true`: the shard itself was in it. Then the driver submits, and the shard hears
    /// nothing but its mailbox until it [`is_lent`](Self::is_lent) no more.
    #[inline]
    pub fn dispatch(&mut self) -> bool {
        if let Some(company) = &mut self.company {
            self.is_told &= company.tell(&mut self.pipeline);
            if !self.is_told {
                return false;
            }
        }
        while let Some(operation) = self.pipeline.poll_operation() {
            self.driver.enqueue(operation);
        }
        self.pipeline.note_handed(&self.clock);
        self.company.as_mut().is_some_and(|company| company.send(&mut self.pipeline))
    }

    /// The shard is over, and a snapshot of the end may be wanted of it.
    pub fn say_over(&mut self) {
        if let Some(snapshots) = &self.snapshots {
            snapshots.say_over(&mut self.pipeline);
        }
    }

    /// A turn for that snapshot. How long to wait until the next; `None`: the shard may end.
    pub fn last_turn(&mut self) -> Option<Option<Duration>> {
        let snapshots = self.snapshots.as_mut()?;
        let now = self.clock.tick();
        self.now = now;
        if snapshots.begin_turn(&mut self.pipeline, now) {
            // What the image before it left is put in order first.
            self.pipeline.finish_turn(now);
            if let Some(log) = &mut self.log {
                log.end_turn(&mut self.pipeline, now, true);
            }
        }
        if snapshots.may_leave() {
            return None;
        }
        snapshots.end_turn(&mut self.pipeline, now, &self.clock, false);
        Some(snapshots.before_waiting(now, None))
    }

    /// Waits until there is news of snapshots.
    fn wait_for_snapshots(&self, timeout: Option<Duration>) {
        if timeout != Some(Duration::ZERO)
            && let Some(snapshots) = &self.snapshots
        {
            snapshots.bell().wait(timeout);
        }
    }

    /// Ends a turn: what it cost.
    #[inline]
    pub fn count(&mut self) {
        let metrics = self.pipeline.engine_mut().metrics_mut();
        copy_counters(metrics, &self.driver.counters(), self.now, &self.clock);
    }

    /// All this shard has is with another.
    pub fn is_lent(&self) -> bool {
        self.pipeline.is_lent()
    }

    /// A shard that stands still says that it is about to sleep. `false`: it must not, there is something to hear.
    pub fn prepare_sleep(&mut self) -> bool {
        self.company.as_mut().is_some_and(|company| company.mailbox.prepare_sleep())
    }

    /// A shard that stands still takes what the others sent.
    pub fn hear(&mut self) -> io::Result<()> {
        if let Some(company) = &mut self.company {
            company.hear(&mut self.pipeline, &mut self.clock)?;
        }
        self.heed_damage()
    }

    /// Ends the server where a page of the snapshot was met that is not what was written: what was executed since may be
    /// made of keys that were not found, and neither a record, nor a message, nor a reply of it may leave.
    #[inline]
    fn heed_damage(&self) -> io::Result<()> {
        match self.pipeline.damage() {
            None => Ok(()),
            Some(damage) => Err(match &self.origin {
                Some(origin) => origin.fail(damage),
                None => io::Error::other(damage.to_string()),
            }),
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// The driver.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// The core.
    pub fn pipeline_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    /// This shard's end of the log.
    pub fn log(&self) -> Option<&LogEnd> {
        self.log.as_ref()
    }

    /// The other shards.
    pub fn company(&self) -> Option<&Company> {
        self.company.as_ref()
    }

    /// Stands back for the log, a moment.
    fn rest(&self) {
        if let Some(log) = &self.log {
            log.rest();
        }
    }

    fn stand_for(&mut self, span: Nanos) -> io::Result<()> {
        match &mut self.company {
            None => std::thread::sleep(Duration::from_nanos(span.0)),
            Some(company) => company.stand_for(span, &mut self.pipeline, &mut self.clock)?,
        }
        self.heed_damage()
    }

    /// Waits until another shard has given this one back.
    fn stand_until_returned(&mut self) -> io::Result<()> {
        while self.is_lent() {
            if let Some(company) = &mut self.company {
                company.mailbox.wait(None);
            }
            self.hear()?;
        }
        Ok(())
    }

    fn read_usage(&mut self) {
        let metrics = self.pipeline.engine_mut().metrics_mut();
        copy_usage(metrics);
        if let Some(log) = &self.log {
            metrics.log = log.figures();
        }
    }
}

/// The other shards, as the loop meets them.
#[derive(Debug)]
pub struct Company {
    mailbox: Mailbox<Message>,
    stop: StopSignal,
    /// The last turn had to do with others: look once more before sleeping. Saying that one sleeps costs every sender a
    /// system call, a turn without events costs only us one.
    lively: bool,
    /// What was taken from the mailbox to get at what lay behind it.
    kept: VecDeque<(usize, Message)>,
    /// Shards that may not be able to hear what they were told, for want of room.
    untold: ShardSet,
}

impl Company {
    /// Those at the other ends of `mailbox`; `stop` stops all of them.
    pub fn new(mailbox: Mailbox<Message>, stop: StopSignal) -> Self {
        Company { mailbox, stop, lively: false, kept: VecDeque::new(), untold: ShardSet::default() }
    }

    /// Rings when this shard sleeps and another has something for it.
    pub fn bell(&self) -> &Bell {
        self.mailbox.bell()
    }

    /// How long the driver may wait. Where it waits, the others have been told to wake it.
    fn before_waiting(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let waits = !std::mem::take(&mut self.lively) && timeout != Some(Duration::ZERO);
        if waits && self.mailbox.prepare_sleep() { timeout } else { Some(Duration::ZERO) }
    }

    /// Takes what the others sent, a bounded amount.
    fn receive(&mut self, pipeline: &mut Pipeline, now: Now, clock: &dyn Clock) -> io::Result<()> {
        self.mailbox.woke();
        self.heed_failure()?;
        for count in 1..=MESSAGES_MAX {
            let Some((from, message)) = self.next() else { return Ok(()) };
            self.lively = true;
            pipeline.handle_message(from, message, now, clock);
            if count.is_multiple_of(BUDGET_CHECK_MESSAGES)
                && clock.monotonic().since(now.monotonic) > TURN_BUDGET
            {
                break;
            }
        }
        if pipeline.has_trackers() {
            self.hasten(pipeline, now, clock);
        }
        Ok(())
    }

    fn next(&mut self) -> Option<(usize, Message)> {
        match self.kept.pop_front() {
            None => self.mailbox.receive(),
            kept => kept,
        }
    }

    /// Takes what this shard has been told and can hear by now, and nothing else.
    fn hasten(&mut self, pipeline: &mut Pipeline, now: Now, clock: &dyn Clock) {
        // What can be heard now is heard in one round of the queues; what arrives meanwhile must not keep us.
        for _ in 0..2 * self.mailbox.audible_max() {
            let Some((from, message)) = self.mailbox.receive() else { break };
            self.lively = true;
            match message.is_tell() {
                true => pipeline.handle_message(from, message, now, clock),
                false => self.kept.push_back((from, message)),
            }
        }
    }

    /// Tells the others' clients what they are to be told. `false`: there is no room for some of it, and what depends on its
    /// having been told must wait.
    fn tell(&mut self, pipeline: &mut Pipeline) -> bool {
        let mut has_told = false;
        while let Some((to, message)) = pipeline.poll_tell() {
            (self.lively, has_told) = (true, true);
            self.mailbox.send(to, message);
            self.untold.insert(to);
        }
        if has_told || !self.untold.is_empty() {
            self.mailbox.flush();
            let mut rest = self.untold;
            while let Some(shard) = rest.first() {
                rest.remove(shard);
                if !self.mailbox.keeps_back(shard) {
                    self.untold.remove(shard);
                }
            }
        }
        self.untold.is_empty()
    }

    /// Sends what the others shall hear. `true`: the shard itself was in it.
    fn send(&mut self, pipeline: &mut Pipeline) -> bool {
        if !self.tell(pipeline) {
            return false;
        }
        while let Some((to, message)) = pipeline.poll_message() {
            self.lively = true;
            self.mailbox.send(to, message);
        }
        self.mailbox.flush();
        if pipeline.is_lent() {
            return true;
        }
        if pipeline.wants_stop() {
            self.stop.request();
        }
        false
    }

    /// Takes what the others sent to a shard that stands still.
    fn hear(&mut self, pipeline: &mut Pipeline, clock: &mut impl TurnClock) -> io::Result<()> {
        self.mailbox.woke();
        self.heed_failure()?;
        while let Some((from, message)) = self.next() {
            let now = clock.tick();
            pipeline.handle_message(from, message, now, clock);
        }
        // What it missed may have replies to send.
        self.lively = true;
        Ok(())
    }

    /// Stands still for so long, but tells the others that it does.
    fn stand_for(
        &mut self,
        span: Nanos,
        pipeline: &mut Pipeline,
        clock: &mut impl TurnClock,
    ) -> io::Result<()> {
        let until = Nanos(clock.monotonic().0 + span.0);
        pipeline.begin_stall();
        self.send(pipeline);
        loop {
            let left = until.since(clock.monotonic());
            if left.0 == 0 {
                break;
            }
            self.mailbox.wait(Some(Duration::from_nanos(left.0)));
            self.hear(pipeline, clock)?;
            if pipeline.damage().is_some() {
                return Ok(());
            }
            self.send(pipeline);
        }
        pipeline.end_stall(clock.tick(), clock);
        Ok(())
    }

    /// This shard has no clients any more; whether that is so of all. Until then it has keys the others may want.
    fn is_over(&mut self) -> bool {
        self.mailbox.finish()
    }

    /// A shard that ended for another reason than being asked takes a part of the keys with it.
    fn heed_failure(&self) -> io::Result<()> {
        match self.mailbox.is_broken() {
            false => Ok(()),
            true => Err(io::Error::new(io::ErrorKind::BrokenPipe, "another shard has failed")),
        }
    }
}

/// What the loop counts, into the table that INFO and `/metrics` read.
#[inline]
fn copy_counters(metrics: &mut Metrics, counters: &DriverCounters, now: Now, clock: &impl Clock) {
    let turn = clock.monotonic().since(now.monotonic).0;
    metrics.loop_turns += 1;
    metrics.loop_busy_nanos += turn;
    metrics.loop_turn_nanos_max = metrics.loop_turn_nanos_max.max(turn);
    metrics.loop_enters = counters.enters;
    metrics.loop_events = counters.completions;
    metrics.loop_buffer_exhaustions = counters.buffers_exhausted;
    metrics.loop_short_sends = counters.short_sends;
}

fn copy_usage(metrics: &mut Metrics) {
    let usage = cpu::process_usage();
    metrics.process_user_us = usage.user.as_micros() as u64;
    metrics.process_system_us = usage.system.as_micros() as u64;
    metrics.process_resident_bytes = cpu::resident_bytes();
}
