//! The log's owner: puts the records of all shards into one order and has them written.

use super::log_handle::{HelperWork, LogBatch, LogMetrics, LogShared, LogState, Message};
use crate::clock::monotonic_ns;
use crate::io::log_files::{LogDisk, LogWriteMode};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::time::Duration;
use wal::group_commit::{GroupCommit, Refused};
use wal::lsn::Lsn;
use wal::operation::{Action, Operation};
use wal::record::FRAME_BYTES;
use wal::segment::{FIRST_BLOCK_OFFSET, FileName};
use wal::settings::{FlushPolicy, Settings};

/// Records that are appended before the disk is looked after again.
const ROUND_BYTES: usize = 1 << 20;
/// A batch that grew beyond this is given back to the allocator.
const EMPTY_BATCH_BYTES_MAX: usize = 256 << 10;
/// Not promised to anybody: marks take it, the blocks without records that say what is durable.
const ROOM_KEPT_BYTES: u64 = 6 * 4096;

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Bytes of the largest block.
    pub block_bytes_max: usize,
    /// Memory of records that are not durable yet; beyond it shards are told that the log is busy.
    pub pending_bytes_max: u64,
    /// Segments prepared ahead.
    pub spare_segments: usize,
    /// `EveryBlock`: always. `OnRequest`: everysec.
    pub policy: FlushPolicy,
    /// How a block reaches the disk.
    pub write_mode: LogWriteMode,
    /// Under `OnRequest`: how often it is flushed. Less than a second, because the flush itself takes time, and no
    /// more than a second may be lost.
    pub flush_period: Duration,
    /// How often a full disk is tried again.
    pub retry_period: Duration,
    /// An idle log says in a mark, after so long, what is durable: damage is then told from a torn tail.
    pub idle_period: Duration,
    /// How long the thread looks for records before it sleeps. Worth it only with a core to spare.
    pub spin: Duration,
    /// The core of both threads.
    pub core: Option<usize>,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        let wal = Settings::default();
        LogOptions {
            segment_bytes: wal.segment_bytes,
            block_bytes_max: wal.block_bytes_max,
            pending_bytes_max: wal.pending_bytes_max as u64,
            spare_segments: wal.spare_segments,
            policy: FlushPolicy::EveryBlock,
            write_mode: LogWriteMode::Direct,
            flush_period: Duration::from_millis(900),
            retry_period: Duration::from_secs(1),
            idle_period: Duration::from_secs(1),
            spin: Duration::ZERO,
            core: None,
        }
    }
}

impl LogOptions {
    pub(super) fn settings(&self) -> Result<Settings, String> {
        let settings = Settings {
            segment_bytes: self.segment_bytes,
            block_bytes_max: self.block_bytes_max,
            // Shards were admitted before they executed, and what was executed must be taken.
            pending_bytes_max: isize::MAX as usize,
            append_bytes_max: 0,
            writes_in_flight_max: 1,
            spare_segments: self.spare_segments,
            write_mode: self.write_mode.of_wal(),
            flush_policy: self.policy,
        };
        settings.validate().map(|()| settings)
    }
}

/// Whether it is time for what is `wanted` once in a period; the first period begins when it becomes wanted.
fn is_due(at: &mut Option<u64>, now: u64, period: Duration, wanted: bool) -> bool {
    if !wanted {
        *at = None;
        return false;
    }
    if at.is_some_and(|at| at <= now) {
        *at = None;
        return true;
    }
    at.get_or_insert(now + period.as_nanos() as u64);
    false
}

/// How much certainly fits: the current segment's rest and the prepared ones, seen from the operations.
#[derive(Debug)]
pub(super) struct RoomMeter {
    segment_bytes: u64,
    /// The last block of a segment may not fit.
    lost_at_end: u64,
    current: Option<FileName>,
    current_left: u64,
    prepared: u64,
    is_named: bool,
}

impl RoomMeter {
    pub(super) fn new(settings: &Settings) -> RoomMeter {
        let (segment_bytes, lost_at_end) = (settings.segment_bytes, settings.block_bytes_max as u64 - 4096);
        RoomMeter { segment_bytes, lost_at_end, current: None, current_left: 0, prepared: 0, is_named: false }
    }

    /// A block is about to be written.
    fn write(&mut self, file: FileName, offset: u64, length: usize) {
        if self.current != Some(file) {
            self.current = Some(file);
            self.prepared -= 1;
        }
        self.current_left = self.segment_bytes - offset - length as u64;
    }

    fn done(&mut self, what: HelperWork, succeeded: bool) {
        match what {
            HelperWork::Name => self.is_named = succeeded,
            HelperWork::FlushDirectory => {
                // Only a segment whose name is durable counts.
                self.prepared += u64::from(self.is_named && succeeded);
                self.is_named = false;
            }
            HelperWork::FlushSegment | HelperWork::Other => {}
        }
    }

    fn bytes(&self) -> u64 {
        let whole = (self.segment_bytes - FIRST_BLOCK_OFFSET).saturating_sub(self.lost_at_end);
        self.current_left.saturating_sub(self.lost_at_end) + self.prepared * whole
    }
}

/// A batch of which something is still to be appended.
pub(super) struct Waiting {
    batch: LogBatch,
    /// The next record.
    at: usize,
}

impl Waiting {
    fn lsn(&self) -> u64 {
        self.batch.records[self.at].lsn
    }

    fn begin(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.batch.records[before].end)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// What is there is appended first.
    Gathering,
    /// The writer has been told.
    Closed,
    Abandoned,
}

/// The log's thread.
pub(super) struct Owner<D> {
    pub(super) log: GroupCommit,
    pub(super) meter: RoomMeter,
    pub(super) disk: Arc<D>,
    pub(super) messages: Receiver<Message>,
    pub(super) work: Sender<(Operation, HelperWork)>,
    pub(super) helper_busy: usize,
    pub(super) returns: Vec<SyncSender<LogBatch>>,
    pub(super) shared: Arc<LogShared>,
    pub(super) state: LogState,
    /// Batches by the LSN they go on with. The first is the next, or a record of another shard is missing.
    pub(super) waiting: BTreeMap<u64, Waiting>,
    /// Memory that is free again when an LSN is durable, in their order.
    pub(super) pending: VecDeque<(Lsn, u64)>,
    /// Room that was reserved for what has been appended since this was last published.
    pub(super) reserved_of_appended: u64,
    pub(super) metrics: LogMetrics,
    /// Room that was asked for in vain, until it is there.
    pub(super) wanted_room: u64,
    /// A flush was asked for when records up to here were on their way.
    pub(super) flush_to: Option<Lsn>,
    /// Times of CLOCK_MONOTONIC.
    pub(super) next_flush: Option<u64>,
    pub(super) next_retry: Option<u64>,
    pub(super) next_mark: Option<u64>,
    /// Nothing has come since a mark was asked for.
    pub(super) is_marked: bool,
    pub(super) closing: Closing,
    pub(super) ready: Option<SyncSender<()>>,
    pub(super) options: LogOptions,
}

impl<D: LogDisk> Owner<D> {
    pub(super) fn run(mut self) -> Result<(), String> {
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.take(message);
            }
            let is_abandoned = self.closing == Closing::Abandoned;
            if is_abandoned {
                break;
            }
            let appended = self.append();
            self.act();
            self.publish();
            if self.is_finished() {
                break;
            }
            if !appended {
                self.wait();
            }
        }
        self.finish()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Records(batch) => {
                self.is_marked = false;
                let waiting = Waiting { batch, at: 0 };
                if self.log.failure().is_some() {
                    return self.forget(waiting.batch);
                }
                let lsn = waiting.lsn();
                let is_new = lsn > self.log.appended_lsn().0 && self.waiting.insert(lsn, waiting).is_none();
                assert!(is_new, "LSN {lsn} was given to two records");
            }
            Message::Done(done) => {
                self.helper_busy -= 1;
                let succeeded = done.completion.result.is_ok();
                if done.what == HelperWork::FlushSegment && succeeded {
                    self.metrics.add_flush(done.elapsed_us);
                }
                self.meter.done(done.what, succeeded);
                self.log.handle_completion(done.completion);
            }
            Message::WantRoom => {
                let wish = self.shared.take_wish();
                self.wanted_room = self.wanted_room.max(wish);
                // The answer does not matter: asking has the room prepared.
                let _ = self.log.admission(usize::try_from(wish).unwrap_or(usize::MAX / 4));
            }
            Message::Flush => self.flush_to = self.flush_to.max(Some(self.shared.allocated_lsn())),
            Message::SetPolicy(policy) => {
                self.options.policy = policy;
                self.log.set_flush_policy(policy);
            }
            Message::Release(needed) => self.log.release(needed),
            Message::Close if self.closing == Closing::No => self.closing = Closing::Gathering,
            Message::Close => {}
            Message::Abandon => self.closing = Closing::Abandoned,
        }
    }

    /// Appends what is next, up to a bound. True if there may be more to do at once.
    fn append(&mut self) -> bool {
        let mut left = ROUND_BYTES;
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() == self.log.appended_lsn().next().0
        {
            let mut waiting = entry.remove();
            // The records of a batch that follow each other are appended in one go.
            let (first, mut end, mut framed) = (waiting.at, waiting.at, 0);
            let base = waiting.lsn() - first as u64;
            while end < waiting.batch.records.len() && waiting.batch.records[end].lsn == base + end as u64 {
                let bytes = waiting.batch.records[end].end - waiting.begin(end) + FRAME_BYTES;
                if end > first && framed + bytes > left {
                    break;
                }
                framed += bytes;
                end += 1;
            }
            // Room was reserved for it. Where a shard did not ask, it may have to wait for a segment.
            if self.log.admission(framed).is_err() {
                self.waiting.insert(waiting.lsn(), waiting);
                return false;
            }
            for index in first..end {
                let payload = &waiting.batch.bytes[waiting.begin(index)..waiting.batch.records[index].end];
                match self.log.append(payload, waiting.batch.unix_us) {
                    Ok(lsn) => debug_assert_eq!(lsn.0, waiting.batch.records[index].lsn),
                    Err(refused) => unreachable!("admitted, then refused: {refused}"),
                }
            }
            waiting.at = end;
            if end < waiting.batch.records.len() {
                self.waiting.insert(waiting.lsn(), waiting);
            } else {
                self.appended(waiting.batch);
            }
            left = left.saturating_sub(framed);
            if left == 0 {
                return true;
            }
        }
        if self.flush_to.is_some_and(|lsn| lsn <= self.log.appended_lsn()) {
            self.flush_to = None;
            self.log.request_flush();
        }
        false
    }

    /// A batch is in blocks: its memory counts until they are durable, its reservation ends once the room that
    /// is left is published.
    fn appended(&mut self, batch: LogBatch) {
        self.pending.push_back((self.log.appended_lsn(), batch.memory_bytes()));
        self.reserved_of_appended += batch.reserved;
        self.give_back(batch);
    }

    /// A batch will never be appended.
    fn forget(&mut self, batch: LogBatch) {
        self.shared.forget_pending(batch.memory_bytes());
        self.reserved_of_appended += batch.reserved;
        self.give_back(batch);
    }

    fn give_back(&mut self, mut batch: LogBatch) {
        batch.clear();
        if batch.bytes.capacity() <= EMPTY_BATCH_BYTES_MAX {
            // A shard that has enough of them, or is gone, needs none.
            let _ = self.returns[batch.shard].try_send(batch);
        }
    }

    /// Performs what the writer wants done: blocks here, all else by the helper.
    fn act(&mut self) {
        while let Some(operation) = self.log.poll_operation() {
            let what = match &operation.action {
                Action::Write { file: file @ FileName::Segment(_), offset, buffer, start, .. } => {
                    self.meter.write(*file, *offset, buffer.as_slice().len() - start);
                    self.write_block(operation);
                    // A shard that waits for this block must not wait for the next.
                    self.publish();
                    continue;
                }
                Action::Rename { to: FileName::Segment(_), .. } => HelperWork::Name,
                Action::FlushDirectory => HelperWork::FlushDirectory,
                Action::Flush { file: FileName::Segment(_) } => HelperWork::FlushSegment,
                _ => HelperWork::Other,
            };
            self.helper_busy += 1;
            if self.work.send((operation, what)).is_err() {
                unreachable!("the helper lives as long as its orders");
            }
        }
    }

    fn write_block(&mut self, operation: Operation) {
        let flushes =
            matches!(&operation.action, Action::Write { sync, .. } if *sync != wal::operation::Sync::None);
        let begun = monotonic_ns();
        let completion = self.disk.perform(operation);
        if flushes && completion.result.is_ok() {
            self.metrics.add_flush((monotonic_ns() - begun) / 1000);
        }
        self.log.handle_completion(completion);
    }

    fn publish(&mut self) {
        if let Some(failure) = self.log.failure() {
            if !matches!(self.state, LogState::Failed(_)) {
                self.state = LogState::Failed(failure);
                self.pending.drain(..).for_each(|(_, bytes)| self.shared.forget_pending(bytes));
                let waiting = std::mem::take(&mut self.waiting);
                waiting.into_values().for_each(|waiting| self.forget(waiting.batch));
            }
        } else if !matches!(self.state, LogState::Closed) {
            let room = self.room();
            if room >= self.wanted_room {
                self.wanted_room = 0;
            }
            let is_low =
                self.wanted_room > 0 || room < self.shared.image_bytes_max(self.options.block_bytes_max);
            self.state = match (self.log.shortage(), &self.state) {
                (Some(failure), _) if is_low => LogState::Full(failure),
                // While it is tried again nothing has changed yet.
                (None, LogState::Full(failure)) if is_low => LogState::Full(*failure),
                _ => LogState::Open,
            };
        }
        let durable = self.log.durable_lsn();
        while let Some((_, bytes)) = self.pending.pop_front_if(|(lsn, _)| *lsn <= durable) {
            self.shared.forget_pending(bytes);
        }
        self.metrics.log = self.log.counters();
        self.metrics.segments = self.log.segment_counters();
        self.metrics.waiting_batches = self.waiting.len() as u64;
        self.shared.set_metrics(self.metrics);
        let is_short = self.log.shortage().is_some() || matches!(self.state, LogState::Full(_));
        let room = self.room();
        let appended = std::mem::take(&mut self.reserved_of_appended);
        self.shared.publish(durable, room, appended, is_short, &self.state);
        if (room > 0 || self.state != LogState::Open)
            && let Some(ready) = self.ready.take()
        {
            // One message, room for one.
            let _ = ready.try_send(());
        }
    }

    /// What can be promised.
    fn room(&self) -> u64 {
        self.meter.bytes().saturating_sub(self.log.pending_bytes() + ROOM_KEPT_BYTES)
    }

    /// Waits for a message, or until it is time for something.
    fn wait(&mut self) {
        let now = monotonic_ns();
        let is_pending = self.log.durable_lsn() < self.log.appended_lsn();
        let is_everysec = self.options.policy == FlushPolicy::OnRequest;
        if is_due(&mut self.next_flush, now, self.options.flush_period, is_everysec && is_pending) {
            return self.log.request_flush();
        }
        if is_due(&mut self.next_retry, now, self.options.retry_period, self.log.shortage().is_some()) {
            return self.log.retry();
        }
        let is_idle = !self.is_marked && !is_pending && self.waiting.is_empty();
        if is_due(&mut self.next_mark, now, self.options.idle_period, is_idle) {
            self.is_marked = true;
            return self.log.write_mark();
        }
        let wake_at = [self.next_flush, self.next_retry, self.next_mark].into_iter().flatten().min();
        self.receive(now, wake_at);
    }

    fn receive(&mut self, now: u64, wake_at: Option<u64>) {
        let spin_until = now + self.options.spin.as_nanos() as u64;
        while monotonic_ns() < spin_until {
            match self.messages.try_recv() {
                Ok(message) => return self.take(message),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        let received = match wake_at {
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.messages.recv_timeout(Duration::from_nanos(at.saturating_sub(now))),
        };
        match received {
            Ok(message) => self.take(message),
            Err(RecvTimeoutError::Timeout) => {}
            // The helper holds a sender, so this is not reached while it lives.
            Err(RecvTimeoutError::Disconnected) => self.closing = Closing::Abandoned,
        }
    }

    /// Goes through the steps of closing; true at the end.
    fn is_finished(&mut self) -> bool {
        if self.closing == Closing::No {
            return false;
        }
        if self.log.failure().is_some() {
            return self.helper_busy == 0;
        }
        if self.closing == Closing::Gathering {
            // What cannot be appended now never will: records of a shard that is gone are missing before it, or
            // the disk is full.
            let next = self.waiting.first_key_value().map(|(&lsn, _)| lsn);
            let can_go_on = next == Some(self.log.appended_lsn().next().0) && self.log.shortage().is_none();
            if !can_go_on {
                self.log.close();
                self.closing = Closing::Closed;
                self.act();
            }
        }
        self.closing == Closing::Closed && self.log.is_closed() && self.helper_busy == 0
    }

    fn finish(mut self) -> Result<(), String> {
        let result = match (&self.state, self.waiting.first_key_value()) {
            (_, _) if self.closing == Closing::Abandoned => Ok(()),
            (LogState::Failed(failure), _) => Err(failure.to_string()),
            (LogState::Full(failure), Some(_)) => Err(format!(
                "records from LSN {} on were not written, and nobody was told that they were: {}",
                self.log.appended_lsn().next(),
                Refused::Full(*failure)
            )),
            (_, Some((lsn, _))) => Err(format!(
                "records from LSN {lsn} on were not written: LSN {} was given to a record that never came; this is a \
                 bug",
                self.log.appended_lsn().next()
            )),
            (_, None) => Ok(()),
        };
        if !matches!(self.state, LogState::Failed(_)) {
            self.state = LogState::Closed;
        }
        self.publish();
        result
    }
}
