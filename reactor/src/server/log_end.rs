//! A shard's end of the log: what it executed goes out, what became durable comes in.
//!
//! Before a turn the shard learns what is durable, and asks for room for what the turn may write; after it the turn's
//! records are handed over. Nothing here waits for the disk. A shard that has nothing to do but wait for the log sleeps like
//! any other: the log's thread rings its bell.

use super::log_handle::{LogHandle, LogState, Refusal};
use super::pipeline::Pipeline;
use crate::io::sync::Bell;
use crate::io::sys;
use std::sync::Arc;
use std::time::Duration;
use store::metrics::LogFigures;
use store::stages::BlockTimes;
use store::time::{Nanos, Now};
use wal::lsn::Lsn;

/// Bytes of records that a turn may write without having asked for more: about what it can receive.
const WINDOW: usize = 1 << 20;
/// Where the log gathers, a shard hands over its records when they are so many bytes: each time wakes the log's thread,
/// which on a core of its own costs nothing, and on this shard's two switches.
const GATHER_BYTES: usize = 128 << 10;
/// Or when the first of them is so old. Short against what `everysec` may lose, and against the time within which
/// records reach the system (`write_period`).
const GATHER_TIME: Nanos = Nanos(2_000_000);
/// How often a shard that is always busy lets the log's thread have the core that they share. That thread interrupts nobody
/// (see `LogThread::start`): beside a shard with reads to serve it would come in once in a scheduler's slice, some 4 ms, and
/// each write that waits for it takes several turns of it.
const LET_IN_TIME: Nanos = Nanos(100_000);
/// How long a shard rests that has executed more than the log can take, unless the log has room before.
pub const REST: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct LogEnd {
    handle: LogHandle,
    bell: Arc<Bell>,
    /// The pipeline knows that everything up to here is durable.
    told: Lsn,
    /// Writes are refused, for this reason.
    refused: Option<Refusal>,
    /// The pipeline knows that the log has failed.
    has_failed: bool,
    /// This shard tells the operator, for all of them.
    speaks: bool,
    /// Bytes of records that a turn may write.
    window: usize,
    /// Since when records have been kept for more to join them.
    kept_since: Option<Nanos>,
    /// The log's thread has no core but this shard's; when it was let in last.
    let_in: Option<Nanos>,
}

impl LogEnd {
    /// With the handle of this shard; `bell` is what its waker rings.
    pub fn new(handle: LogHandle, bell: Arc<Bell>, speaks: bool) -> LogEnd {
        let told = handle.durable_lsn();
        LogEnd {
            handle,
            bell,
            told,
            refused: None,
            has_failed: false,
            speaks,
            window: WINDOW,
            kept_since: None,
            let_in: None,
        }
    }

    /// For a shard on whose core the log's thread runs too.
    pub fn sharing_its_core(self) -> LogEnd {
        LogEnd { let_in: Some(Nanos::default()), ..self }
    }

    /// With another window than a server has: small files want a small one. It must suffice for what a turn receives.
    pub fn with_window(self, window: usize) -> LogEnd {
        LogEnd { window, ..self }
    }

    /// Rings when something has become durable that this shard waits for.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What INFO and `/metrics` say of the log.
    pub fn figures(&self) -> LogFigures {
        let shared = self.handle.shared();
        let metrics = shared.metrics();
        LogFigures {
            state: shared.state().word(),
            records: metrics.log.records,
            bytes: metrics.log.block_bytes,
            writes: metrics.log.writes,
            flushes: metrics.flushes,
            flush_us_total: metrics.flush_us_total,
            pending_bytes: shared.pending_bytes(),
            batch_records: metrics.log.records_per_block,
            flush_us: metrics.flush_us,
        }
    }

    /// How long the driver may wait, now that the log knows what for.
    pub fn before_waiting(
        &self,
        pipeline: &Pipeline,
        now: Now,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        let kept = self.kept_since.map(|since| (since.0 + GATHER_TIME.0).saturating_sub(now.monotonic.0));
        let timeout = match (timeout, kept.map(Duration::from_nanos)) {
            (Some(timeout), Some(kept)) => Some(timeout.min(kept)),
            (timeout, kept) => timeout.or(kept),
        };
        if timeout == Some(Duration::ZERO) {
            return timeout;
        }
        if self.refused.is_some() {
            self.handle.wait_for_room();
        }
        match pipeline.first_awaited() {
            Some(lsn) if !self.has_failed && !self.handle.wait_for(Lsn(lsn)) => Some(Duration::ZERO),
            _ => timeout,
        }
    }

    /// Releases what has become durable.
    #[inline]
    pub fn look(&mut self, pipeline: &mut Pipeline) {
        let durable = self.handle.durable_lsn();
        if durable > self.told {
            self.told = durable;
            pipeline.set_durable(durable.0);
            while let Some(lsn) = pipeline.next_durable_sample() {
                let times = self.handle.shared().block_times(Lsn(lsn));
                let times = times
                    .map(|took| BlockTimes { begun: Nanos(took.begun_ns), durable: Nanos(took.ended_ns) });
                pipeline.stamp_log(lsn, times);
            }
        }
    }

    /// Records go on behind this one, which is durable: others than this shard's have been written meanwhile.
    pub(super) fn go_on_behind(&mut self, last: Lsn) {
        self.told = last;
        self.kept_since = None;
    }

    /// Releases what has become durable. `false`: nothing may be executed in this turn, the log has enough to do.
    pub fn begin_turn(&mut self, pipeline: &mut Pipeline) -> bool {
        self.look(pipeline);
        if pipeline.engine_mut().shared().replication.is_following() {
            // It writes nothing.
            return true;
        }
        // A value that came in many pieces is executed in one: without room for it, it would wait for the disk for ever.
        match self.handle.admit(self.window + pipeline.record_bytes() + pipeline.kept_input()) {
            Ok(()) => {
                if self.refused.take().is_some() {
                    if self.speaks {
                        eprintln!("millrace: writes are welcome again");
                    }
                    pipeline.refuse_writes(None);
                }
                true
            }
            Err(Refusal::Busy) => false,
            Err(refusal) => {
                if self.refused != Some(refusal) {
                    self.refused = Some(refusal);
                    let reason = self.reason();
                    if self.speaks {
                        eprintln!("millrace: writes are refused: {reason}");
                    }
                    pipeline.refuse_writes(Some(reason));
                }
                if !self.has_failed && self.handle.shared().state().is_failed() {
                    self.has_failed = true;
                    pipeline.fail_pending();
                }
                true
            }
        }
    }

    /// Why writes are refused, in words for a client.
    fn reason(&self) -> String {
        match self.handle.shared().state() {
            // What is left is not enough for a turn.
            LogState::Open => {
                "no room for the log: ENOSPC: no space left on device; free space on its disk".to_string()
            }
            state => state.to_string(),
        }
    }

    /// Says that this shard is about to stand back for the log: its bell rings when there is room, and it waits no longer
    /// than [`REST`].
    pub fn prepare_rest(&self) {
        self.handle.wait_for_room();
    }

    /// Stands back for the log, a moment.
    pub fn rest(&self) {
        self.prepare_rest();
        self.bell.wait(Some(REST));
    }

    /// Hands over what the turn wrote; `stands`: the shard will not be here again soon.
    pub fn end_turn(&mut self, pipeline: &mut Pipeline, now: Now, stands: bool) {
        let wants_flush = pipeline.take_flush_wish();
        if pipeline.has_records() {
            let since = *self.kept_since.get_or_insert(now.monotonic);
            let is_kept = self.handle.shared().gathers()
                && !stands
                && !wants_flush
                && pipeline.record_bytes() < GATHER_BYTES
                && now.monotonic.since(since) < GATHER_TIME;
            if !is_kept {
                self.kept_since = None;
                let mut batch = self.handle.batch(now.unix_us);
                pipeline.take_records(&mut batch.records);
                self.handle.submit(batch);
            }
        }
        if wants_flush {
            self.handle.request_flush();
        }
        if let Some(last) = &mut self.let_in
            && pipeline.first_awaited().is_some()
            && now.monotonic.since(*last) >= LET_IN_TIME
        {
            *last = now.monotonic;
            sys::yield_core();
        }
    }
}
