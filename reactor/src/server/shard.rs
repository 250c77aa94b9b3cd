//! The loop: one thread, one driver, one pipeline. Read this first.
//!
//! A turn waits, takes the time once, lets the pipeline handle everything that happened, and hands the driver
//! what the pipeline wants done. Nothing here decides anything.

use super::pipeline::Pipeline;
use crate::clock::SystemClock;
use crate::cpu;
use crate::io::driver::{Driver, DriverCounters};
use std::io;
use std::time::Duration;
use store::metrics::Metrics;
use store::time::{Clock, Nanos, Now};

/// When a turn has lasted this long it ends, and what else has arrived waits for the next: replies of the first
/// connections do not wait for the growth of the index that the last ones cause, and background work gets its turn.
const TURN_BUDGET: Nanos = Nanos(400_000);
/// Bytes of input, or their worth in events, between two looks at the clock within a turn.
const BUDGET_CHECK_BYTES: usize = 4096;

/// How often the process' own memory and CPU time are read for INFO and `/metrics`.
const USAGE_INTERVAL: Nanos = Nanos(200_000_000);

/// Turns until every connection is closed after a stop was asked for.
pub fn run<D: Driver>(mut driver: D, mut pipeline: Pipeline, mut clock: SystemClock) -> io::Result<()> {
    let mut now = clock.tick();
    let mut usage_read = Nanos(0);
    while !pipeline.is_stopped() {
        let timeout = pipeline.poll_timeout(now).map(|left| Duration::from_nanos(left.0));
        driver.submit_and_wait(timeout)?;
        now = clock.tick();
        if now.monotonic.since(usage_read) > USAGE_INTERVAL {
            usage_read = now.monotonic;
            copy_usage(pipeline.engine_mut().metrics_mut());
        }
        let mut unchecked = 0;
        while let Some(event) = driver.next_event() {
            unchecked += event.weight();
            pipeline.handle(event, now, &clock);
            if unchecked >= BUDGET_CHECK_BYTES {
                unchecked = 0;
                if clock.monotonic().since(now.monotonic) > TURN_BUDGET {
                    break;
                }
            }
        }
        pipeline.finish_turn(now);
        let stall = pipeline.take_stall();
        if stall.0 > 0 {
            std::thread::sleep(Duration::from_nanos(stall.0));
        }
        while let Some(operation) = pipeline.poll_operation() {
            driver.enqueue(operation);
        }
        copy_counters(pipeline.engine_mut().metrics_mut(), &driver.counters(), now, &clock);
    }
    Ok(())
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
