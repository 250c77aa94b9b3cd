//! What shards and the log's thread share: records on their way, the durable LSN, the room there is.
//!
//! A shard asks for room before it executes ([`LogHandle::admit`]), takes LSNs for what it did
//! ([`LogHandle::allocate`]), hands over the turn's records ([`LogHandle::submit`]) and releases replies up to
//! [`LogHandle::durable_lsn`]. None of these waits or makes a system call, but for the wake-up of a log thread
//! that sleeps. LSNs come from one counter, so the batches of several shards interleave in any way; the log's
//! thread puts them in order.
//!
//! The queue has no limit on the number of batches; what bounds it is that nothing is executed that was not
//! admitted, and what is admitted is bounded in bytes, of memory and of the disk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::journal::{RecordEnd, Records};
use wal::block::{BLOCK_HEADER_BYTES, PAGE_BYTES};
use wal::group_commit::{LogFailure, Refused};
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Completion, Failure};
use wal::record::FRAME_BYTES;
use wal::settings::FlushPolicy;

/// No shard waits for this LSN.
const NOT_WAITING: u64 = u64::MAX;

/// What the log keeps of a record beside its bytes.
const RECORD_BYTES: usize = size_of::<RecordEnd>();

/// Wakes a shard, wherever it sleeps; may be called from any thread.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// The records of one shard's turn, LSNs ascending, perhaps with holes that other shards fill.
#[derive(Debug, Default)]
pub struct LogBatch {
    pub(super) unix_us: u64,
    pub(super) records: Records,
    pub(super) shard: usize,
    /// Room that was reserved for it.
    pub(super) reserved: u64,
}

impl LogBatch {
    /// Adds a record.
    pub fn push(&mut self, lsn: Lsn, payload: &[u8]) {
        self.push_with(lsn, |bytes| bytes.extend_from_slice(payload));
    }

    /// Adds the record that `encode` appends to the bytes it is given. It must only append.
    pub fn push_with(&mut self, lsn: Lsn, encode: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(self.records.ends.last().is_none_or(|last| last.lsn < lsn.0), "LSNs ascend in a batch");
        encode(&mut self.records.bytes);
        self.records.ends.push(RecordEnd { lsn: lsn.0, end: self.records.bytes.len() });
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.ends.len()
    }

    /// The records: LSN and payload.
    pub fn records(&self) -> impl Iterator<Item = (Lsn, &[u8])> {
        self.records.iter().map(|(lsn, payload)| (Lsn(lsn), payload))
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of the records with their frames: what they take in blocks, and what [`LogHandle::admit`] counts.
    pub fn framed_bytes(&self) -> usize {
        self.records.bytes.len() + self.len() * FRAME_BYTES
    }

    /// Memory it takes until it is durable.
    pub(super) fn memory_bytes(&self) -> u64 {
        (self.records.bytes.len() + self.len() * RECORD_BYTES + size_of::<LogBatch>()) as u64
    }

    pub(super) fn clear(&mut self) {
        self.records.bytes.clear();
        self.records.ends.clear();
    }
}

/// What the log's owner is told.
#[derive(Debug)]
pub enum Message {
    /// A shard's turn.
    Records(LogBatch),
    /// An operation of the helper is done.
    Done(Done),
    /// Room is wanted; `LogShared` knows how much.
    WantRoom,
    /// Everything appended so far is to become durable.
    Flush,
    /// See [`LogThread::set_policy`](super::log_thread::LogThread::set_policy).
    SetPolicy(FlushPolicy),
    /// See [`LogThread::release`](super::log_thread::LogThread::release).
    Release(Lsn),
    /// See [`LogThread::close`](super::log_thread::LogThread::close).
    Close,
    /// See [`LogThread::abandon`](super::log_thread::LogThread::abandon).
    Abandon,
    /// Records that are appended from now on are wanted.
    Tap(u64),
    /// Nothing is on its way, and the log is to go on in another epoch, or with another content.
    Restart(Box<Restart>),
}

/// How a running log goes on: see [`Message::Restart`].
pub struct Restart {
    /// The epoch of the records to come.
    pub epoch: Epoch,
    /// Random.
    pub uid_seed: u64,
    /// All that is in the directory is replaced, by this, and records go on with this LSN.
    pub fresh: Option<(Lsn, Replace)>,
    /// Told when it is done.
    pub done: Box<dyn FnOnce(Result<(), String>) + Send>,
}

/// Replaces what is in the directory.
pub type Replace = Box<dyn FnOnce() -> Result<(), String> + Send>;

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Restart(epoch {}, fresh from {:?})", self.epoch, self.fresh.as_ref().map(|(lsn, _)| lsn))
    }
}

/// Something the helper has done.
#[derive(Debug)]
pub struct Done {
    /// What became of it.
    pub completion: Completion,
    /// What it was, as it was handed out.
    pub what: HelperWork,
    /// When.
    pub took: Took,
}

/// What the log's owner has to know of the work it gave away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperWork {
    /// A spare gets a segment's name, which is not durable yet.
    Name,
    /// Names become durable.
    FlushDirectory,
    /// Blocks become durable.
    FlushSegment,
    /// Anything else.
    Other,
}

/// Two moments of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    /// When something began.
    pub begun_ns: u64,
    /// When it was done.
    pub ended_ns: u64,
}

impl Took {
    /// The time between.
    pub fn elapsed_us(&self) -> u64 {
        (self.ended_ns - self.begun_ns) / 1000
    }
}

/// Blocks of which it is kept when they were written: some milliseconds of a fast disk.
const BLOCKS_KEPT: usize = 256;

/// When the last blocks were written, for shards that time requests.
#[derive(Debug, Default)]
struct Blocks {
    /// The last record of each, and its times.
    kept: VecDeque<(Lsn, Took)>,
    /// Records up to here are in blocks that were forgotten, or older than this process.
    forgotten: Lsn,
}

/// How the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogState {
    /// Records are taken.
    Open,
    /// The disk is full: what needs more than the rest of the room is refused. It ends by itself.
    Full(Failure),
    /// A write or flush failed. It ends with a restart.
    Failed(LogFailure),
    /// The same of a journal, in words.
    JournalFull(String),
    /// And so its failure.
    JournalFailed(String),
    /// Nothing is taken any more.
    Closed,
}

impl fmt::Display for LogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogState::Open => f.write_str("the log is open"),
            LogState::Full(failure) => Refused::Full(*failure).fmt(f),
            LogState::Failed(failure) => failure.fmt(f),
            LogState::JournalFull(text) | LogState::JournalFailed(text) => f.write_str(text),
            LogState::Closed => f.write_str("the log is closed"),
        }
    }
}

const OPEN: u8 = 0;
const FULL: u8 = 1;
const FAILED: u8 = 2;
const CLOSED: u8 = 3;

impl LogState {
    /// It in one word, for INFO.
    pub fn word(&self) -> &'static str {
        match self {
            LogState::Open => "open",
            LogState::Full(_) | LogState::JournalFull(_) => "full",
            LogState::Failed(_) | LogState::JournalFailed(_) => "failed",
            LogState::Closed => "closed",
        }
    }

    /// Whether there is no room: it ends by itself.
    pub fn is_full(&self) -> bool {
        self.code() == FULL
    }

    /// Whether it has failed: it ends with a restart.
    pub fn is_failed(&self) -> bool {
        self.code() == FAILED
    }

    fn code(&self) -> u8 {
        match self {
            LogState::Open => OPEN,
            LogState::Full(_) | LogState::JournalFull(_) => FULL,
            LogState::Failed(_) | LogState::JournalFailed(_) => FAILED,
            LogState::Closed => CLOSED,
        }
    }
}

/// Why a command that writes may not be executed now. [`LogShared::state`] has the words for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too much is pending, or the next segment is being prepared: it passes, see [`LogHandle::wait_for_room`].
    Busy,
    /// The disk is full.
    Full,
    /// The log has failed.
    Failed,
    /// The log is closed.
    Closed,
}

/// How often things happened; what is behind INFO and `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogMetrics {
    /// The writer's counters.
    pub log: wal::group_commit::Counters,
    /// And its segments'.
    pub segments: wal::spares::SegmentCounters,
    /// Times something was made durable: writes that flush, and flushes.
    pub flushes: u64,
    /// `[n]`: of these, those that took 2^(n-1) to 2^n - 1 microseconds; the last also what took longer.
    pub flush_us: [u64; 24],
    /// Time that took, in all.
    pub flush_us_total: u64,
    /// Records and memory of batches that wait for records of other shards.
    pub waiting_batches: u64,
}

impl LogMetrics {
    pub(super) fn add_flush(&mut self, elapsed_us: u64) {
        self.flushes += 1;
        self.flush_us_total += elapsed_us;
        let bucket = (u64::BITS - elapsed_us.leading_zeros()) as usize;
        self.flush_us[bucket.min(self.flush_us.len() - 1)] += 1;
    }

    /// Writes and flushes for a thousand records.
    pub fn per_thousand_records(&self) -> (f64, f64) {
        let thousands = self.log.records as f64 / 1000.0;
        if thousands == 0.0 {
            return (0.0, 0.0);
        }
        (self.log.writes as f64 / thousands, self.flushes as f64 / thousands)
    }
}

/// How records turn into bytes on disk, at the most.
#[derive(Clone, Copy, Debug)]
pub(super) enum Image {
    /// Blocks of up to so many bytes.
    Blocks(usize),
    /// Pages of the encrypted journal.
    #[cfg_attr(not(feature = "sqlcipher"), expect(dead_code, reason = "there is no such journal"))]
    Journal(fn(usize) -> u64),
}

/// On a cache line of its own: what one thread writes often must not slow what others read beside it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line<T>(T);

/// What one shard waits for.
struct Slot {
    wanted_lsn: AtomicU64,
    wants_room: AtomicBool,
    waker: Waker,
}

/// The state that everybody sees.
pub struct LogShared {
    durable_lsn: Line<AtomicU64>,
    next_lsn: Arc<AtomicU64>,
    /// Bytes of blocks that shards were promised and that have not been appended yet.
    reserved_bytes: Line<AtomicU64>,
    /// Memory of records submitted that are not durable yet.
    pending_bytes: Line<AtomicU64>,
    room_bytes: Line<AtomicU64>,
    state_code: AtomicU8,
    is_short: AtomicBool,
    /// A flush of `everysec` takes so long that more than a second could be lost.
    is_late: AtomicBool,
    /// Nobody waits for a record but by asking for a flush (`everysec`): shards may hand over several turns' at once.
    gathers: AtomicBool,
    /// The most room that was asked for in vain since the log's thread looked last.
    wish: AtomicU64,
    state: Mutex<LogState>,
    metrics: Mutex<LogMetrics>,
    blocks: Mutex<Blocks>,
    slots: Vec<Line<Slot>>,
    epoch: AtomicU64,
    pending_bytes_max: u64,
    image: Image,
}

impl fmt::Debug for LogShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (durable, pending) = (self.durable_lsn(), self.pending_bytes());
        write!(f, "LogShared(durable {durable}, {pending} bytes pending, {:?})", self.state())
    }
}

impl LogShared {
    pub(super) fn new(
        next_lsn: Lsn,
        epoch: Epoch,
        pending_bytes_max: u64,
        image: Image,
        wakers: Vec<Waker>,
    ) -> LogShared {
        let slot = |waker| {
            let (wanted_lsn, wants_room) = (AtomicU64::new(NOT_WAITING), AtomicBool::new(false));
            Line(Slot { wanted_lsn, wants_room, waker })
        };
        LogShared {
            durable_lsn: Line(AtomicU64::new(next_lsn.previous().0)),
            next_lsn: Arc::new(AtomicU64::new(next_lsn.0)),
            reserved_bytes: Line::default(),
            pending_bytes: Line::default(),
            room_bytes: Line::default(),
            state_code: AtomicU8::new(OPEN),
            is_short: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            gathers: AtomicBool::new(false),
            wish: AtomicU64::new(0),
            state: Mutex::new(LogState::Open),
            metrics: Mutex::default(),
            blocks: Mutex::new(Blocks { forgotten: next_lsn.previous(), ..Blocks::default() }),
            slots: wakers.into_iter().map(slot).collect(),
            epoch: AtomicU64::new(epoch.0),
            pending_bytes_max,
            image,
        }
    }

    /// Everything up to here is on stable storage; nothing that shows more may be revealed.
    #[inline]
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable_lsn.0.load(Ordering::Acquire))
    }

    /// The counter that LSNs are taken from: the next one.
    pub fn lsns(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.next_lsn)
    }

    /// The last LSN that was given to a record.
    pub fn allocated_lsn(&self) -> Lsn {
        Lsn(self.next_lsn.load(Ordering::Acquire)).previous()
    }

    /// The history the LSNs belong to.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The log goes on here: nothing is on its way.
    pub(super) fn go_on(&self, epoch: Epoch, next_lsn: Lsn) {
        self.epoch.store(epoch.0, Ordering::Release);
        self.next_lsn.store(next_lsn.0, Ordering::SeqCst);
        self.durable_lsn.0.store(next_lsn.previous().0, Ordering::SeqCst);
        *lock(&self.blocks) = Blocks { forgotten: next_lsn.previous(), ..Blocks::default() };
    }

    /// The records to come begin here: those before were written by whoever follows another server.
    pub(super) fn set_next_lsn(&self, next_lsn: Lsn) {
        self.next_lsn.store(next_lsn.0, Ordering::SeqCst);
    }

    /// Memory of records that are not durable yet.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes.0.load(Ordering::Relaxed)
    }

    /// What certainly fits into prepared segments, promised room included.
    pub fn room_bytes(&self) -> u64 {
        self.room_bytes.0.load(Ordering::Relaxed)
    }

    /// Of that, what was promised and is not used yet.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.0.load(Ordering::Relaxed)
    }

    /// True if records are taken; one load.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state_code.load(Ordering::SeqCst) == OPEN
    }

    /// How the log is, with the words for it.
    pub fn state(&self) -> LogState {
        lock(&self.state).clone()
    }

    /// Counters so far.
    pub fn metrics(&self) -> LogMetrics {
        *lock(&self.metrics)
    }

    pub(super) fn set_metrics(&self, metrics: LogMetrics) {
        *lock(&self.metrics) = metrics;
    }

    /// When the block with this record, which is durable, was written and became so. `None`: that was too long ago.
    pub fn block_times(&self, lsn: Lsn) -> Option<Took> {
        let blocks = lock(&self.blocks);
        let at = blocks.kept.partition_point(|(last, _)| *last < lsn);
        blocks.kept.get(at).filter(|_| lsn > blocks.forgotten).map(|(_, took)| *took)
    }

    pub(super) fn keep_block(&self, last: Lsn, took: Took) {
        let mut blocks = lock(&self.blocks);
        if blocks.kept.len() == BLOCKS_KEPT
            && let Some((forgotten, _)) = blocks.kept.pop_front()
        {
            blocks.forgotten = forgotten;
        }
        blocks.kept.push_back((last, took));
    }

    /// The most that so many bytes of framed records can take in blocks, whatever they are mixed with. Not less
    /// than `wal` asks for: two blocks in a row hold more than one block's capacity between them.
    pub fn image_bytes_max(&self, framed: usize) -> u64 {
        let block_bytes_max = match self.image {
            Image::Blocks(bytes) => bytes,
            Image::Journal(image_bytes_max) => return image_bytes_max(framed),
        };
        let capacity = block_bytes_max - BLOCK_HEADER_BYTES;
        let blocks = 2 * (framed / capacity) + 2;
        framed as u64 + (blocks * (BLOCK_HEADER_BYTES + FRAME_BYTES + PAGE_BYTES - 1)) as u64
    }

    pub(super) fn take_wish(&self) -> u64 {
        self.wish.swap(0, Ordering::Relaxed)
    }

    pub(super) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    pub(super) fn set_late(&self, is_late: bool) {
        self.is_late.store(is_late, Ordering::SeqCst);
    }

    /// Whether shards may hand over the records of several turns at once.
    #[inline]
    pub fn gathers(&self) -> bool {
        self.gathers.load(Ordering::Relaxed)
    }

    pub(super) fn set_gathers(&self, gathers: bool) {
        self.gathers.store(gathers, Ordering::Relaxed);
    }

    fn give_back(&self, reserved: u64) {
        self.reserved_bytes.0.fetch_sub(reserved, Ordering::SeqCst);
    }

    pub(super) fn forget_pending(&self, bytes: u64) {
        self.pending_bytes.0.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// What the log's thread has to say; wakes whom it concerns. `appended` is the room that was reserved for what
    /// stands in blocks by now: `room_bytes` is without it, so it is given back, and before anybody looks again.
    pub(super) fn publish(
        &self,
        durable: Lsn,
        room_bytes: u64,
        appended: u64,
        is_short: bool,
        state: &LogState,
    ) {
        let has_advanced = self.durable_lsn.0.swap(durable.0, Ordering::SeqCst) != durable.0;
        let has_room = self.room_bytes.0.swap(room_bytes, Ordering::SeqCst) < room_bytes || appended > 0;
        self.give_back(appended);
        self.is_short.store(is_short, Ordering::Relaxed);
        let has_changed = self.state_code.load(Ordering::Relaxed) != state.code();
        if has_changed {
            *lock(&self.state) = state.clone();
            self.state_code.store(state.code(), Ordering::SeqCst);
        }
        if !(has_advanced || has_room || has_changed) {
            return;
        }
        // A shard announces what it waits for and then looks again; here it is the other way round. Both are
        // sequentially consistent, so one of the two sees the other.
        for Line(slot) in &self.slots {
            let wanted = slot.wanted_lsn.load(Ordering::SeqCst);
            let waits = wanted != NOT_WAITING && (wanted <= durable.0 || has_changed);
            let blocked = slot.wants_room.load(Ordering::SeqCst);
            if waits || blocked {
                if waits {
                    slot.wanted_lsn.store(NOT_WAITING, Ordering::SeqCst);
                }
                if blocked {
                    slot.wants_room.store(false, Ordering::SeqCst);
                }
                (slot.waker)();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One shard's end of the log.
pub struct LogHandle {
    shared: Arc<LogShared>,
    queue: Sender<Message>,
    /// Batches that come back to be used again.
    empties: Receiver<LogBatch>,
    shard: usize,
    /// Room that was reserved and not used.
    granted: u64,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogHandle(shard {}, {:?})", self.shard, self.shared)
    }
}

impl LogHandle {
    pub(super) fn new(
        shared: Arc<LogShared>,
        queue: Sender<Message>,
        empties: Receiver<LogBatch>,
        shard: usize,
    ) -> LogHandle {
        LogHandle { shared, queue, empties, shard, granted: 0 }
    }

    /// What everybody sees.
    pub fn shared(&self) -> &Arc<LogShared> {
        &self.shared
    }

    /// See [`LogShared::durable_lsn`].
    #[inline]
    pub fn durable_lsn(&self) -> Lsn {
        self.shared.durable_lsn()
    }

    /// Whether commands whose records take up to `framed` bytes in sum (payloads and 8 bytes each) may be
    /// executed now. After an `Ok` there is memory and a place on disk for them, whatever happens; what was
    /// not used counts for the next time.
    pub fn admit(&mut self, framed: usize) -> Result<(), Refusal> {
        match self.shared.state_code.load(Ordering::Relaxed) {
            FAILED => return Err(Refusal::Failed),
            CLOSED => return Err(Refusal::Closed),
            _ => {}
        }
        // All of this is sequentially consistent, for the same reason as in `publish`.
        let pending = self.shared.pending_bytes.0.load(Ordering::SeqCst);
        // One large record alone is always taken: nothing else could make room for it.
        if pending > 0 && pending + framed as u64 > self.shared.pending_bytes_max {
            return Err(Refusal::Busy);
        }
        if self.shared.is_late.load(Ordering::SeqCst) {
            return Err(Refusal::Busy);
        }
        let need = self.shared.image_bytes_max(framed);
        let Some(more) = need.checked_sub(self.granted) else { return Ok(()) };
        if more == 0 {
            return Ok(());
        }
        let reserved = self.shared.reserved_bytes.0.fetch_add(more, Ordering::SeqCst) + more;
        if reserved <= self.shared.room_bytes.0.load(Ordering::SeqCst) {
            self.granted = need;
            return Ok(());
        }
        self.shared.give_back(more);
        if self.shared.wish.fetch_max(reserved, Ordering::Relaxed) < reserved {
            self.tell(Message::WantRoom);
        }
        Err(if self.shared.is_short.load(Ordering::Relaxed) { Refusal::Full } else { Refusal::Busy })
    }

    /// Takes `count` LSNs, the first of which is returned. Each must be submitted, and in this turn or, where the log
    /// [gathers](LogShared::gathers), soon: what other shards have behind them waits for that.
    #[inline]
    pub fn allocate(&self, count: u64) -> Lsn {
        Lsn(self.shared.next_lsn.fetch_add(count, Ordering::AcqRel))
    }

    /// An empty batch for a turn that began at `unix_us`.
    pub fn batch(&mut self, unix_us: u64) -> LogBatch {
        let mut batch = self.empties.try_recv().unwrap_or_default();
        batch.unix_us = unix_us;
        batch
    }

    /// Hands over the turn's records.
    pub fn submit(&mut self, mut batch: LogBatch) {
        if batch.is_empty() {
            return;
        }
        let need = self.shared.image_bytes_max(batch.framed_bytes());
        // What nobody asked for, as an expired key may do, is taken from what others were not promised yet.
        if let Some(more) = need.checked_sub(self.granted).filter(|&more| more > 0) {
            self.shared.reserved_bytes.0.fetch_add(more, Ordering::Relaxed);
            self.granted = 0;
        } else {
            self.granted -= need;
        }
        batch.reserved = need;
        batch.shard = self.shard;
        self.shared.pending_bytes.0.fetch_add(batch.memory_bytes(), Ordering::Relaxed);
        self.tell(Message::Records(batch));
        if self.granted > self.shared.image_bytes_max(0) * 8 {
            self.give_back_unused();
        }
    }

    /// Takes back what was admitted and not used, as after a large command that was refused for another reason.
    pub fn give_back_unused(&mut self) {
        self.shared.give_back(std::mem::take(&mut self.granted));
    }

    /// Announces that this shard will sleep until `lsn` is durable or the state changes. False if there is
    /// nothing to wait for: it is, or the log has failed. Otherwise the shard's waker will be called, once.
    pub fn wait_for(&self, lsn: Lsn) -> bool {
        let slot = &self.shared.slots[self.shard].0;
        slot.wanted_lsn.store(lsn.0, Ordering::SeqCst);
        let done = self.shared.durable_lsn.0.load(Ordering::SeqCst) >= lsn.0
            || matches!(self.shared.state_code.load(Ordering::SeqCst), FAILED | CLOSED);
        if done {
            slot.wanted_lsn.store(NOT_WAITING, Ordering::SeqCst);
        }
        !done
    }

    /// Announces that this shard will sleep until something became durable, room was prepared or the state
    /// changed: what a refusal as [`Refusal::Busy`] calls for. Ask once more afterwards, before sleeping.
    pub fn wait_for_room(&self) {
        self.shared.slots[self.shard].0.wants_room.store(true, Ordering::SeqCst);
    }

    /// Under `everysec`: has everything submitted so far made durable now.
    pub fn request_flush(&self) {
        self.tell(Message::Flush);
    }

    fn tell(&self, message: Message) {
        // That nobody listens any more is seen in the state.
        let _ = self.queue.send(message);
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        self.shared.give_back(self.granted);
    }
}
