//! The log's owner: puts the records of all shards into one order and has them written. Pure but for what it shares
//! with the shards: no thread, no clock, no system call.
//!
//! What is decided about blocks and segments is decided by [`wal::group_commit::GroupCommit`]; the owner puts batches
//! into LSN order before it, keeps the account of memory and room, and tells the shards what is durable. A round, as
//! its thread takes it:
//!
//! ```text
//! for each message:  handle          records, room wanted, what the helper has done
//! append                             what is next in the order of LSNs
//! poll_operation                     a block: written by the owner's thread itself, which stands in that one call,
//!                                    then handle_block and once more; all else is the helper's
//! publish                            what is durable, what room there is; wakes shards
//! is_finished? handle_time, wake_at  what is due; when to look again
//! ```
//!
//! While a block is on its way nothing but messages gathers: whoever steps the owner calls nothing between
//! [`LogOwner::poll_operation`] handing out a block and [`LogOwner::handle_block`]. [`log_thread`](super::log_thread)
//! runs it on threads, the simulator in `tests/` beside shards on a clock of its own.

use super::log_handle::{
    HelperWork, Image, LogBatch, LogHandle, LogMetrics, LogShared, LogState, Message, Replace, Restart, Took,
    Waker,
};
use super::replication::tap::Tap;
use crate::io::log_files::LogWriteMode;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;
use wal::checksum::Checksum;
use wal::group_commit::{Counters, GroupCommit, Refused, Start};
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Action, Completion, Operation, Sync};
use wal::record::FRAME_BYTES;
use wal::segment::{FIRST_BLOCK_OFFSET, FileName};
use wal::settings::{FlushPolicy, Settings};
use wal::spares::SegmentCounters;

/// Records that are appended before the disk is looked after again.
const ROUND_BYTES: usize = 1 << 20;
/// Batches kept for a shard to use again.
pub(super) const EMPTY_BATCHES: usize = 16;
/// A batch that grew beyond this is given back to the allocator.
pub(super) const EMPTY_BATCH_BYTES_MAX: usize = 256 << 10;
/// Not promised to anybody: marks take it, the blocks without records that say what is durable.
const ROOM_KEPT_BYTES: u64 = 6 * 4096;

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Bytes of the one that a start waits for where nothing is left to be recycled.
    pub first_segment_bytes: u64,
    /// Bytes of the largest block.
    pub block_bytes_max: usize,
    /// Memory of records that are not written yet; beyond it shards are told that the log is busy.
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
    /// Under `OnRequest`: how long a record waits at most until it is handed to the operating system, when the thread has
    /// nothing else to do. The end of the process alone loses no more than this. Each write takes a page, so it is not
    /// shorter.
    pub write_period: Duration,
    /// How often a full disk is tried again.
    pub retry_period: Duration,
    /// An idle log says in a mark, after so long, what is durable: damage is then told from a torn tail.
    pub idle_period: Duration,
    /// How long the thread looks for records before it sleeps. Worth it only with a core to spare.
    pub spin: Duration,
    /// The core of both threads.
    pub core: Option<usize>,
    /// Where records are left for replicas.
    pub tap: Option<Arc<Tap>>,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        let wal = Settings::default();
        LogOptions {
            segment_bytes: wal.segment_bytes,
            first_segment_bytes: wal.first_segment_bytes,
            block_bytes_max: wal.block_bytes_max,
            pending_bytes_max: wal.pending_bytes_max as u64,
            spare_segments: wal.spare_segments,
            policy: FlushPolicy::EveryBlock,
            write_mode: LogWriteMode::Direct,
            flush_period: Duration::from_millis(900),
            write_period: Duration::from_millis(10),
            retry_period: Duration::from_secs(1),
            idle_period: Duration::from_secs(1),
            spin: Duration::ZERO,
            core: None,
            tap: None,
        }
    }
}

impl LogOptions {
    fn settings(&self) -> Result<Settings, String> {
        let settings = Settings {
            segment_bytes: self.segment_bytes,
            first_segment_bytes: self.first_segment_bytes,
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
pub(super) fn is_due(at: &mut Option<u64>, now: u64, period: Duration, wanted: bool) -> bool {
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
struct RoomMeter {
    segment_bytes: u64,
    /// The last block of a segment may not fit.
    lost_at_end: u64,
    current: Option<FileName>,
    current_length: u64,
    current_left: u64,
    /// The length of the one that is being prepared, and of those that are.
    preparing: u64,
    prepared: VecDeque<u64>,
    is_named: bool,
}

impl RoomMeter {
    fn new(settings: &Settings) -> RoomMeter {
        let (segment_bytes, lost_at_end) = (settings.segment_bytes, settings.block_bytes_max as u64 - 4096);
        RoomMeter {
            segment_bytes,
            lost_at_end,
            current: None,
            current_length: 0,
            current_left: 0,
            preparing: 0,
            prepared: VecDeque::new(),
            is_named: false,
        }
    }

    /// A block is about to be written.
    fn write(&mut self, file: FileName, offset: u64, length: usize) {
        if self.current != Some(file) {
            self.current = Some(file);
            self.current_length = self.prepared.pop_front().expect("blocks go to segments that are prepared");
        }
        self.current_left = self.current_length - offset - length as u64;
    }

    fn done(&mut self, what: HelperWork, succeeded: bool) {
        match what {
            HelperWork::Name => self.is_named = succeeded,
            HelperWork::FlushDirectory => {
                // Only a segment whose name is durable counts.
                if self.is_named && succeeded {
                    self.prepared.push_back(self.preparing);
                }
                self.is_named = false;
            }
            HelperWork::FlushSegment | HelperWork::Other => {}
        }
    }

    fn bytes(&self) -> u64 {
        let whole = |length: &u64| (length - FIRST_BLOCK_OFFSET).saturating_sub(self.lost_at_end);
        self.current_left.saturating_sub(self.lost_at_end) + self.prepared.iter().map(whole).sum::<u64>()
    }
}

/// A batch of which something is still to be appended.
pub(super) struct Waiting {
    pub(super) batch: LogBatch,
    /// The next record.
    pub(super) at: usize,
}

impl Waiting {
    pub(super) fn lsn(&self) -> u64 {
        self.batch.records.ends[self.at].lsn
    }

    pub(super) fn begin(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.batch.records.ends[before].end)
    }

    pub(super) fn payload(&self, index: usize) -> &[u8] {
        &self.batch.records.bytes[self.begin(index)..self.batch.records.ends[index].end]
    }

    fn payloads(&self, indices: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let mut begin = self.begin(indices.start);
        self.batch.records.ends[indices].iter().map(move |record| {
            let payload = &self.batch.records.bytes[begin..record.end];
            begin = record.end;
            payload
        })
    }

    /// The records that follow each other from the next one on, up to so many framed bytes but at least one: where they
    /// end, and what they take.
    pub(super) fn run(&self, framed_max: usize) -> (usize, usize) {
        let (mut end, mut framed) = (self.at, 0);
        let base = self.lsn() - self.at as u64;
        while end < self.batch.len() && self.batch.records.ends[end].lsn == base + end as u64 {
            let bytes = self.payload(end).len() + FRAME_BYTES;
            if end > self.at && framed + bytes > framed_max {
                break;
            }
            framed += bytes;
            end += 1;
        }
        (end, framed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// What is there is appended first.
    Gathering,
    /// The writer has been told.
    Closed,
    Abandoned,
}

/// What is to be done next, and by whom.
#[derive(Debug)]
pub enum Work {
    /// A block, for the owner's own thread: its completion goes to [`LogOwner::handle_block`].
    Block(Operation),
    /// Something slow that no record waits for: its completion comes back as [`Message::Done`].
    Helper(Operation, HelperWork),
}

/// A block on its way.
#[derive(Clone, Copy, Debug)]
struct Writing {
    /// Bytes that are to be written.
    length: usize,
    /// It is durable when it is written.
    flushes: bool,
}

/// A log that has begun.
#[derive(Debug)]
pub struct OpenedLog {
    /// The owner.
    pub owner: LogOwner,
    /// One for each shard.
    pub handles: Vec<LogHandle>,
    /// The way to the owner.
    pub queue: Sender<Message>,
    /// Its end, for whoever steps the owner.
    pub messages: Receiver<Message>,
}

/// See the module.
pub struct LogOwner {
    log: GroupCommit,
    meter: RoomMeter,
    helper_busy: usize,
    /// A block is on its way.
    writing: Option<Writing>,
    /// When a block of which a part is written began to be.
    begun_ns: Option<u64>,
    /// The last record of each block that is written and not durable yet, and when its writing began: what lies
    /// between two flushes.
    written: VecDeque<(Lsn, u64)>,
    returns: Vec<SyncSender<LogBatch>>,
    shared: Arc<LogShared>,
    state: LogState,
    /// Batches by the LSN they go on with. The first is the next, or a record of another shard is missing.
    waiting: BTreeMap<u64, Waiting>,
    /// Memory that is free again when an LSN is written, in their order.
    pending: VecDeque<(Lsn, u64)>,
    /// Room that was reserved for what has been appended since this was last published.
    reserved_of_appended: u64,
    metrics: LogMetrics,
    /// Room that was asked for in vain, until it is there.
    wanted_room: u64,
    /// A flush was asked for when records up to here were on their way.
    flush_to: Option<Lsn>,
    /// Times of CLOCK_MONOTONIC.
    next_flush: Option<u64>,
    next_write: Option<u64>,
    next_retry: Option<u64>,
    next_mark: Option<u64>,
    /// Under `everysec`: what the flush that is on its way covers, and by when it should be done. If it is not, no
    /// more is taken: what was acknowledged in a second is all that may be lost.
    late: Option<(Lsn, u64)>,
    /// Nothing has come since a mark was asked for.
    is_marked: bool,
    closing: Closing,
    options: LogOptions,
    checksum: Checksum,
    /// Where records are left for replicas.
    tap: Option<Arc<Tap>>,
    restart: Option<Box<Restart>>,
    /// The writer was told to close for it.
    ends_writer: bool,
    /// What the writers before this one have counted.
    counted: (Counters, SegmentCounters),
}

impl fmt::Debug for LogOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogOwner({:?})", self.shared)
    }
}

impl LogOwner {
    /// Begins where `start` says, with one handle for each waker.
    pub fn open(
        start: &Start,
        options: LogOptions,
        checksum: Checksum,
        wakers: Vec<Waker>,
    ) -> Result<OpenedLog, String> {
        let settings = options.settings()?;
        let shards = wakers.len();
        let shared = Arc::new(LogShared::new(
            start.next_lsn,
            start.epoch,
            options.pending_bytes_max,
            Image::Blocks(options.block_bytes_max),
            wakers,
        ));
        shared.set_gathers(options.policy == FlushPolicy::OnRequest);
        let (queue, messages) = channel();
        let (returns, empties): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| sync_channel::<LogBatch>(EMPTY_BATCHES)).unzip();
        let handles = empties.into_iter().enumerate();
        let handles = handles
            .map(|(shard, empties)| LogHandle::new(Arc::clone(&shared), queue.clone(), empties, shard))
            .collect();
        let owner = LogOwner {
            log: GroupCommit::new(settings, start, checksum),
            meter: RoomMeter::new(&settings),
            helper_busy: 0,
            writing: None,
            begun_ns: None,
            written: VecDeque::new(),
            returns,
            shared,
            state: LogState::Open,
            waiting: BTreeMap::new(),
            pending: VecDeque::new(),
            reserved_of_appended: 0,
            metrics: LogMetrics::default(),
            wanted_room: 0,
            flush_to: None,
            next_flush: None,
            next_write: None,
            next_retry: None,
            next_mark: None,
            late: None,
            is_marked: false,
            closing: Closing::No,
            checksum,
            tap: options.tap.clone(),
            restart: None,
            ends_writer: false,
            counted: Default::default(),
            options,
        };
        Ok(OpenedLog { owner, handles, queue, messages })
    }

    /// What everybody sees.
    pub fn shared(&self) -> &Arc<LogShared> {
        &self.shared
    }

    /// Takes a message.
    pub fn handle(&mut self, message: Message) {
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
                    self.metrics.add_flush(done.took.elapsed_us());
                }
                self.meter.done(done.what, succeeded);
                self.log.handle_completion(done.completion);
                self.note_durable(done.took.ended_ns);
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
                self.shared.set_gathers(policy == FlushPolicy::OnRequest);
                self.log.set_flush_policy(policy);
            }
            Message::Release(needed) => self.log.release(needed),
            Message::Tap(asked) => {
                if let Some(tap) = &self.tap {
                    tap.open(asked, self.log.appended_lsn(), self.log.durable_lsn());
                }
            }
            Message::Restart(restart) => self.restart = Some(restart),
            Message::Close if self.closing == Closing::No => self.closing = Closing::Gathering,
            Message::Close => {}
            Message::Abandon => self.closing = Closing::Abandoned,
        }
    }

    /// Appends what is next, up to a bound. True if there may be more to do at once.
    pub fn append(&mut self) -> bool {
        debug_assert!(self.writing.is_none(), "the owner stands in a write");
        let is_more = self.append_next();
        // What cannot be appended now never will: records of a shard that is gone are missing before it, or the disk
        // is full.
        if self.closing == Closing::Gathering && self.log.failure().is_none() {
            let next = self.waiting.first_key_value().map(|(&lsn, _)| lsn);
            let can_go_on = next == Some(self.log.appended_lsn().next().0) && self.log.shortage().is_none();
            if !can_go_on {
                self.log.close();
                self.closing = Closing::Closed;
            }
        }
        is_more
    }

    fn append_next(&mut self) -> bool {
        let mut left = ROUND_BYTES;
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() == self.log.appended_lsn().next().0
        {
            let mut waiting = entry.remove();
            // The records of a batch that follow each other are appended in one go.
            let first = waiting.at;
            let (end, framed) = waiting.run(left);
            // Room was reserved for it. Where a shard did not ask, it may have to wait for a segment.
            if self.log.admission(framed).is_err() {
                self.waiting.insert(waiting.lsn(), waiting);
                return false;
            }
            match self.log.append_all(waiting.payloads(first..end), framed, waiting.batch.unix_us) {
                Ok(lsn) => {
                    debug_assert_eq!(lsn.0, waiting.batch.records.ends[end - 1].lsn);
                    if let Some(tap) = self.tap.as_ref().filter(|tap| tap.is_open()) {
                        tap.push(waiting.lsn(), waiting.batch.unix_us, waiting.payloads(first..end));
                    }
                }
                Err(refused) => unreachable!("admitted, then refused: {refused}"),
            }
            waiting.at = end;
            if end < waiting.batch.len() {
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

    /// A batch is in blocks: its memory counts until they are written, its reservation ends once the room that
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
        if batch.records.bytes.capacity() <= EMPTY_BATCH_BYTES_MAX {
            // A shard that has enough of them, or is gone, needs none.
            let _ = self.returns[batch.shard].try_send(batch);
        }
    }

    /// The next thing the writer wants done.
    pub fn poll_operation(&mut self) -> Option<Work> {
        debug_assert!(self.writing.is_none(), "the owner stands in a write");
        let operation = self.log.poll_operation()?;
        let what = match &operation.action {
            Action::Write { file: file @ FileName::Segment(_), offset, buffer, start, sync } => {
                let length = buffer.as_slice().len() - start;
                self.meter.write(*file, *offset, length);
                self.writing = Some(Writing { length, flushes: *sync != Sync::None });
                return Some(Work::Block(operation));
            }
            Action::Reserve { length, .. } => {
                self.meter.preparing = *length;
                HelperWork::Other
            }
            Action::Rename { to: FileName::Spare(_), .. } => {
                // One that is recycled is as long as all are.
                self.meter.preparing = self.meter.segment_bytes;
                HelperWork::Other
            }
            Action::Rename { to: FileName::Segment(_), .. } => HelperWork::Name,
            Action::FlushDirectory => HelperWork::FlushDirectory,
            Action::Flush { file: FileName::Segment(_) } => HelperWork::FlushSegment,
            _ => HelperWork::Other,
        };
        self.helper_busy += 1;
        Some(Work::Helper(operation, what))
    }

    /// A block is written, or not, and that took its time. Says at once what is durable: a shard that waits for this block
    /// must not wait for the next.
    pub fn handle_block(&mut self, completion: Completion, took: Took) {
        let writing = self.writing.take().expect("a block was on its way");
        if writing.flushes && completion.result.is_ok() {
            self.metrics.add_flush(took.elapsed_us());
        }
        let is_whole = completion.result.is_ok_and(|bytes| bytes >= writing.length);
        self.begun_ns.get_or_insert(took.begun_ns);
        let before = self.log.written_lsn();
        self.log.handle_completion(completion);
        if is_whole && let Some(begun_ns) = self.begun_ns.take() {
            // A mark holds no record.
            if self.log.written_lsn() > before {
                self.written.push_back((self.log.written_lsn(), begun_ns));
            }
            self.note_durable(took.ended_ns);
        }
        self.publish();
    }

    /// Keeps when the blocks that are durable by now began to be written and became so, for whoever times requests.
    fn note_durable(&mut self, at_ns: u64) {
        let durable = self.log.durable_lsn();
        while let Some((lsn, begun_ns)) = self.written.pop_front_if(|(lsn, _)| *lsn <= durable) {
            self.shared.keep_block(lsn, Took { begun_ns, ended_ns: at_ns });
        }
    }

    /// Tells the shards how the log is, and wakes those whom it concerns.
    pub fn publish(&mut self) {
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
        // What is written takes no memory here any more, flushed or not: a second's records of `everysec` would be far
        // more than the bound, and shards would stand before it until the next flush.
        let written = self.log.written_lsn();
        while let Some((_, bytes)) = self.pending.pop_front_if(|(lsn, _)| *lsn <= written) {
            self.shared.forget_pending(bytes);
        }
        if self.late.is_some_and(|(lsn, _)| lsn <= durable) {
            self.late = None;
            self.shared.set_late(false);
        }
        self.metrics.log = self.log.counters().behind(&self.counted.0);
        self.metrics.segments = self.log.segment_counters().behind(&self.counted.1);
        self.metrics.waiting_batches = self.waiting.len() as u64;
        self.shared.set_metrics(self.metrics);
        let is_short = self.log.shortage().is_some() || matches!(self.state, LogState::Full(_));
        let room = self.room();
        let appended = std::mem::take(&mut self.reserved_of_appended);
        self.shared.publish(durable, room, appended, is_short, &self.state);
        if let Some(tap) = self.tap.as_ref().filter(|tap| tap.is_open()) {
            tap.note_durable(durable);
        }
    }

    /// Goes on in another epoch, or with other content, once nothing of the writer before is on its way. True: there is
    /// more to do now, do not wait.
    pub fn see_to_restart(&mut self) -> bool {
        if self.restart.is_none() {
            return false;
        }
        // What is pending has a place then, and so has the mark that says that it is all.
        if self.is_ready() && !self.ends_writer {
            self.ends_writer = true;
            self.log.close();
            return true;
        }
        let failure = self.log.failure().map(|failure| failure.to_string());
        let is_still = self.helper_busy == 0 && self.waiting.is_empty();
        if failure.is_none() && !(self.log.is_closed() && is_still) {
            return false;
        }
        let Some(restart) = self.restart.take() else { return false };
        self.ends_writer = false;
        let Restart { epoch, uid_seed, fresh, done } = *restart;
        done(match failure {
            Some(why) => Err(why),
            None => self.restart_with(epoch, uid_seed, fresh),
        });
        true
    }

    fn restart_with(
        &mut self,
        epoch: Epoch,
        uid_seed: u64,
        fresh: Option<(Lsn, Replace)>,
    ) -> Result<(), String> {
        let Some(mut start) = self.log.start_epoch(epoch, uid_seed) else {
            return Err("the log that should be closed is not; this is a bug".into());
        };
        if let Some((next_lsn, replace)) = fresh {
            replace()?;
            // Files have other names than those before, which may still be open.
            (start.next_lsn, start.epoch, start.epoch_first_lsn) = (next_lsn, epoch, next_lsn);
            start.segments.clear();
            start.spares.clear();
            start.last_unix_us = 0;
        }
        let settings = self.options.settings()?;
        self.counted = (
            self.log.counters().behind(&self.counted.0),
            self.log.segment_counters().behind(&self.counted.1),
        );
        self.shared.go_on(start.epoch, start.next_lsn);
        self.log = GroupCommit::new(settings, &start, self.checksum);
        self.meter = RoomMeter::new(&settings);
        self.written.clear();
        self.pending.drain(..).for_each(|(_, bytes)| self.shared.forget_pending(bytes));
        (self.begun_ns, self.flush_to, self.late) = (None, None, None);
        Ok(())
    }

    /// The first segment is there, or it is known that there will be none for now.
    pub fn is_ready(&self) -> bool {
        self.state != LogState::Open || self.room() > 0
    }

    /// What can be promised.
    fn room(&self) -> u64 {
        self.meter.bytes().saturating_sub(self.log.pending_bytes() + ROOM_KEPT_BYTES)
    }

    /// Sees to what is due now, when there is nothing else to do. True: there is now, do not wait.
    pub fn handle_time(&mut self, now: u64) -> bool {
        let is_pending = self.log.durable_lsn() < self.log.appended_lsn();
        let is_everysec = self.options.policy == FlushPolicy::OnRequest;
        if is_due(&mut self.next_flush, now, self.options.flush_period, is_everysec && is_pending) {
            self.log.request_flush();
            let late =
                now + Duration::from_secs(1).saturating_sub(self.options.flush_period).as_nanos() as u64;
            self.late.get_or_insert((self.log.appended_lsn(), late));
            return true;
        }
        if is_due(
            &mut self.next_write,
            now,
            self.options.write_period,
            is_everysec && self.log.has_open_block(),
        ) {
            self.log.request_write();
            return true;
        }
        if self.late.is_some_and(|(_, at)| at <= now) {
            self.shared.set_late(true);
        }
        if is_due(&mut self.next_retry, now, self.options.retry_period, self.log.shortage().is_some()) {
            self.log.retry();
            return true;
        }
        let is_idle = !self.is_marked && !is_pending && self.waiting.is_empty();
        if is_due(&mut self.next_mark, now, self.options.idle_period, is_idle) {
            self.is_marked = true;
            self.log.write_mark();
            return true;
        }
        false
    }

    /// When something is due, if no message comes before.
    pub fn wake_at(&self) -> Option<u64> {
        let late = self.late.map(|(_, at)| at).filter(|_| !self.shared.is_late());
        [self.next_flush, self.next_write, self.next_retry, self.next_mark, late].into_iter().flatten().min()
    }

    /// The log was abandoned, and nothing more is to be done.
    pub fn is_abandoned(&self) -> bool {
        self.closing == Closing::Abandoned
    }

    /// The log was closed, and nothing is on its way any more.
    pub fn is_finished(&self) -> bool {
        let is_settled = match self.closing {
            Closing::No => return false,
            _ if self.log.failure().is_some() => true,
            closing => closing == Closing::Closed && self.log.is_closed(),
        };
        is_settled && self.helper_busy == 0
    }

    /// The end. The error says what could not be made durable.
    pub fn finish(mut self) -> Result<(), String> {
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
