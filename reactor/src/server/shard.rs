//! The loop: one thread, one driver, one pipeline. Read this first.
//!
//! A turn waits, takes the time once, lets the pipeline handle everything that happened, and hands the driver
//! what the pipeline wants done. Nothing here decides anything.
//!
//! With several shards a turn also takes what the others sent and sends what they shall hear ([`Company`]). A shard
//! alone has no company and pays nothing for it.

use super::log_end::LogEnd;
use super::mailbox::Mailbox;
use super::pipeline::Pipeline;
use crate::clock::SystemClock;
use crate::cpu;
use crate::io::driver::{Driver, DriverCounters};
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use std::io;
use std::time::Duration;
use store::metrics::Metrics;
use store::shards::Message;
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
pub fn run<D: Driver>(
    mut driver: D,
    mut pipeline: Pipeline,
    mut clock: SystemClock,
    mut company: Option<Company>,
    mut log: Option<LogEnd>,
) -> io::Result<()> {
    let mut now = clock.tick();
    let mut usage_read = Nanos(0);
    while !pipeline.is_stopped() || !company.as_mut().is_none_or(Company::is_over) {
        let mut timeout = pipeline.poll_timeout(now).map(|left| Duration::from_nanos(left.0));
        if let Some(log) = &log {
            timeout = log.before_waiting(&pipeline, timeout);
        }
        if let Some(company) = &mut company {
            timeout = company.before_waiting(timeout);
        }
        driver.submit_and_wait(timeout)?;
        now = clock.tick();
        if now.monotonic.since(usage_read) > USAGE_INTERVAL {
            usage_read = now.monotonic;
            let metrics = pipeline.engine_mut().metrics_mut();
            copy_usage(metrics);
            if let Some(log) = &log {
                metrics.log = log.figures();
            }
        }
        let executes = log.as_mut().is_none_or(|log| log.begin_turn(&mut pipeline));
        let mut unchecked = 0;
        while executes && let Some(event) = driver.next_event() {
            unchecked += event.weight();
            pipeline.handle(event, now, &clock);
            if unchecked >= BUDGET_CHECK_BYTES {
                unchecked = 0;
                if clock.monotonic().since(now.monotonic) > TURN_BUDGET {
                    break;
                }
            }
        }
        if let Some(company) = &mut company {
            company.receive(&mut pipeline, now, &clock)?;
        }
        pipeline.finish_turn(now);
        if let Some(log) = &mut log {
            log.end_turn(&mut pipeline, now);
            if !executes {
                log.rest();
            }
        }
        let stall = pipeline.take_stall();
        if stall.0 > 0 {
            match &mut company {
                None => std::thread::sleep(Duration::from_nanos(stall.0)),
                Some(company) => company.stand_for(stall, &mut pipeline, &mut clock)?,
            }
        }
        while let Some(operation) = pipeline.poll_operation() {
            driver.enqueue(operation);
        }
        if let Some(company) = &mut company
            && company.send(&mut pipeline)
        {
            // What was enqueued must not wait for our return.
            driver.submit_and_wait(Some(Duration::ZERO))?;
            company.stand_until_returned(&mut pipeline, &mut clock)?;
        }
        copy_counters(pipeline.engine_mut().metrics_mut(), &driver.counters(), now, &clock);
    }
    Ok(())
}

/// The other shards, as the loop meets them.
#[derive(Debug)]
pub struct Company {
    mailbox: Mailbox<Message>,
    stop: StopSignal,
    /// The last turn had to do with others: look once more before sleeping. Saying that one sleeps costs every sender a
    /// system call, a turn without events costs only us one.
    lively: bool,
}

impl Company {
    /// Those at the other ends of `mailbox`; `stop` stops all of them.
    pub fn new(mailbox: Mailbox<Message>, stop: StopSignal) -> Self {
        Company { mailbox, stop, lively: false }
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
    fn receive(&mut self, pipeline: &mut Pipeline, now: Now, clock: &SystemClock) -> io::Result<()> {
        self.mailbox.woke();
        self.heed_failure()?;
        for count in 1..=MESSAGES_MAX {
            let Some((from, message)) = self.mailbox.receive() else { break };
            self.lively = true;
            pipeline.handle_message(from, message, now, clock);
            if count.is_multiple_of(BUDGET_CHECK_MESSAGES)
                && clock.monotonic().since(now.monotonic) > TURN_BUDGET
            {
                break;
            }
        }
        Ok(())
    }

    /// Sends what the others shall hear. `true`: the shard itself was in it.
    fn send(&mut self, pipeline: &mut Pipeline) -> bool {
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

    /// Waits until another shard has given this one back.
    fn stand_until_returned(&mut self, pipeline: &mut Pipeline, clock: &mut SystemClock) -> io::Result<()> {
        while pipeline.is_lent() {
            self.mailbox.wait(None);
            self.heed_failure()?;
            self.take_all(pipeline, clock);
        }
        // What it missed may have replies to send.
        self.lively = true;
        Ok(())
    }

    /// Stands still for so long, but tells the others that it does.
    fn stand_for(&mut self, span: Nanos, pipeline: &mut Pipeline, clock: &mut SystemClock) -> io::Result<()> {
        let until = Nanos(clock.monotonic().0 + span.0);
        pipeline.begin_stall();
        self.send(pipeline);
        loop {
            let left = until.since(clock.monotonic());
            if left.0 == 0 {
                break;
            }
            self.mailbox.wait(Some(Duration::from_nanos(left.0)));
            self.heed_failure()?;
            self.take_all(pipeline, clock);
            self.send(pipeline);
        }
        pipeline.end_stall(clock.tick(), clock);
        self.lively = true;
        Ok(())
    }

    fn take_all(&mut self, pipeline: &mut Pipeline, clock: &mut SystemClock) {
        while let Some((from, message)) = self.mailbox.receive() {
            let now = clock.tick();
            pipeline.handle_message(from, message, now, clock);
        }
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
fn copy_counters(metrics: &mut Metrics, counters: &DriverCounters, now: Now, clock: &SystemClock) {
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
