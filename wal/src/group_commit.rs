//! The writer: records in, block writes out, and the LSN up to which everything is durable.
//!
//! Group commit without a timer: while one block is being flushed the next one fills, so a lone client waits
//! for one flush and a thousand share one. [`GroupCommit::append`] numbers records,
//! [`GroupCommit::poll_operation`] says what to do next, [`GroupCommit::handle_completion`] takes what became
//! of it, and [`GroupCommit::durable_lsn`] is the end of the contiguous prefix that is on stable storage: no
//! reply that shows a later record may leave.
//!
//! Two things are settled before a record is accepted: that there is memory for it (a limit on pending bytes)
//! and that there is a place on disk for it (segments prepared ahead). So a full disk refuses writes before
//! they are executed and fails none that was. A write or flush that fails is never repeated: the kernel may
//! have dropped the data and would report success. The log is then failed for good, and continues only as a
//! new one in new files ([`GroupCommit::start_afresh`]).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::iter::once;
use core::mem;

use crate::block::{BLOCK_HEADER_BYTES, Block, BlockBuffer, PAGE_BYTES, flags};
use crate::checksum::Checksum;
use crate::lsn::{Epoch, Lsn};
use crate::operation::{Action, Completion, Doing, Errno, Failure, Operation, OperationId, Sync};
use crate::record::{Batch, FRAME_BYTES};
use crate::segment::{FIRST_BLOCK_OFFSET, FileName, Sequence};
use crate::settings::MARKS_BYTES;
pub use crate::settings::{FlushPolicy, Settings, WriteMode};
use crate::spares::{KnownSegment, OperationIds, Plan, SegmentCounters, Spares};

/// A write that is cut short before the next page this often in a row is an error.
const STALLS_MAX: u32 = 8;

/// From where a log goes on. [`crate::reader::EndOfLog::start`] makes it from what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The number of the first record to come.
    pub next_lsn: Lsn,
    /// The history it belongs to.
    pub epoch: Epoch,
    /// Where that history began.
    pub epoch_first_lsn: Lsn,
    /// The number of the first segment to be made; higher than any in the directory.
    pub next_sequence: Sequence,
    /// Segments in the directory, oldest first.
    pub segments: Vec<KnownSegment>,
    /// Spares in the directory, to be removed.
    pub spares: Vec<Sequence>,
    /// The time of the last record; no later record is given an earlier one.
    pub last_unix_us: u64,
    /// A block says already that everything before `next_lsn` is durable: the log was closed. A run that writes nothing
    /// then leaves the log as it found it.
    pub is_marked: bool,
    /// Random, new for each start.
    pub uid_seed: u64,
}

impl Start {
    /// A new log in an empty directory.
    pub fn empty(uid_seed: u64) -> Start {
        Start {
            next_lsn: Lsn::FIRST,
            epoch: Epoch::FIRST,
            epoch_first_lsn: Lsn::FIRST,
            next_sequence: Sequence::FIRST,
            segments: Vec::new(),
            spares: Vec::new(),
            last_unix_us: 0,
            is_marked: false,
            uid_seed,
        }
    }
}

/// Why nothing can be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The first segment is being prepared.
    Starting,
    /// Too much is pending, or room is still being prepared; it will pass without anybody's help.
    Busy,
    /// It can never be taken.
    TooLarge {
        /// What it would take.
        bytes: u64,
        /// What there may be.
        bytes_max: u64,
    },
    /// There is no room, and this is why no more can be had. It passes when [`GroupCommit::retry`] or
    /// [`GroupCommit::release`] finds room.
    Full(Failure),
    /// The log failed; it does not pass.
    Failed(LogFailure),
    /// The log is closed or being closed.
    Closed,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Starting => f.write_str("the log's first segment is still being prepared; try again"),
            Refused::Busy => f.write_str("the log has as much pending as it may; try again"),
            Refused::TooLarge { bytes, bytes_max } => {
                write!(f, "a record that takes {bytes} bytes in the log, which may have {bytes_max} pending")
            }
            Refused::Full(failure) => write!(
                f,
                "no room for the log: {failure}; {}, or take a snapshot that lets old segments go",
                failure.errno.remedy()
            ),
            Refused::Failed(failure) => failure.fmt(f),
            Refused::Closed => f.write_str("the log is closed"),
        }
    }
}

/// A write or flush that failed, and what the log had promised by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFailure {
    /// What failed.
    pub failure: Failure,
    /// Everything up to here is durable, and nothing after it will be acknowledged.
    pub durable_lsn: Lsn,
}

impl fmt::Display for LogFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogFailure { failure, durable_lsn } = self;
        write!(
            f,
            "the log failed {failure}; durable up to LSN {durable_lsn}, nothing after it is acknowledged; check the disk, \
             then restart: it goes on in new files, with what is durable"
        )
    }
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records appended.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Blocks handed out to be written.
    pub blocks: u64,
    /// Their bytes, headers and padding included.
    pub block_bytes: u64,
    /// Write operations: more than blocks where writes were short.
    pub writes: u64,
    /// Flushes of their own, beyond those that are part of a write.
    pub flushes: u64,
    /// Writes that were short.
    pub short_writes: u64,
    /// Appends refused because too much was pending.
    pub refused_busy: u64,
    /// Appends refused because no room could be had.
    pub refused_full: u64,
    /// `[n]`: blocks with 2^(n-1) to 2^n - 1 frames; `[0]`: none. No block has room for 2^23.
    pub records_per_block: [u64; 24],
}

impl Counters {
    /// These, and those of the writer before.
    pub fn behind(self, before: &Counters) -> Counters {
        let mut records_per_block = self.records_per_block;
        records_per_block.iter_mut().zip(before.records_per_block).for_each(|(mine, more)| *mine += more);
        Counters {
            records: self.records + before.records,
            payload_bytes: self.payload_bytes + before.payload_bytes,
            blocks: self.blocks + before.blocks,
            block_bytes: self.block_bytes + before.block_bytes,
            writes: self.writes + before.writes,
            flushes: self.flushes + before.flushes,
            short_writes: self.short_writes + before.short_writes,
            refused_busy: self.refused_busy + before.refused_busy,
            refused_full: self.refused_full + before.refused_full,
            records_per_block,
        }
    }
}

/// A block whose write has been handed out. They stand in order; the front ones, once written, are the
/// prefix.
#[derive(Debug)]
struct InFlight {
    id: OperationId,
    file: FileName,
    offset: u64,
    length: usize,
    /// Bytes of it that are written.
    start: usize,
    /// The buffer, between a short write and the operation for its rest.
    rest: Option<BlockBuffer>,
    stalls: u32,
    sync: Sync,
    is_written: bool,
    last_lsn: Lsn,
}

#[derive(Debug)]
struct FlushInFlight {
    id: OperationId,
    file: FileName,
    blocks: u64,
    lsn: Lsn,
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// What is pending becomes durable first.
    Draining,
    /// The last block, which says so, is on its way.
    Marked,
}

/// The writer of one log.
#[derive(Debug)]
pub struct GroupCommit {
    settings: Settings,
    checksum: Checksum,
    epoch: Epoch,
    ids: OperationIds,
    spares: Spares,

    /// The last record numbered.
    appended_lsn: Lsn,
    /// The last record of the contiguous prefix that is written, and that is durable; and the same counted in
    /// blocks, because a block may complete no record.
    written_lsn: Lsn,
    durable_lsn: Lsn,
    blocks_written: u64,
    blocks_durable: u64,
    /// And as offsets in the current segment.
    written_end: u64,
    durable_end: u64,

    last_unix_us: u64,
    open: Option<Block>,
    sealed: VecDeque<Block>,
    /// Bytes of `sealed`.
    sealed_bytes: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    /// Framed bytes that may still be appended in this turn without another look.
    granted_bytes: usize,
    flush: Option<FlushInFlight>,
    /// The record up to which [`GroupCommit::request_flush`] wants everything durable.
    flush_target: Lsn,
    /// And the one up to which [`GroupCommit::request_write`] wants everything written.
    write_target: Lsn,
    /// A block without records shall say what is durable.
    mark_wanted: bool,
    /// The highest `durable_lsn` that a block says.
    marked_lsn: Lsn,
    closing: Closing,
    failure: Option<LogFailure>,
    pool: Vec<BlockBuffer>,
    counters: Counters,
}

impl GroupCommit {
    /// A writer that goes on where `start` says. Everything before it must be durable: whoever read the log
    /// has flushed its files. Panics if the settings are not valid.
    pub fn new(settings: Settings, start: &Start, checksum: Checksum) -> GroupCommit {
        if let Err(wrong) = settings.validate() {
            panic!("{wrong}");
        }
        let plan = Plan {
            segment_bytes: settings.segment_bytes,
            first_bytes: settings.first_bytes(),
            block_bytes_max: settings.block_bytes_max as u64,
            spare_segments: settings.spare_segments,
            epoch: start.epoch,
            epoch_first_lsn: start.epoch_first_lsn,
            uid_seed: start.uid_seed,
        };
        assert!(start.next_lsn >= start.epoch_first_lsn, "{start:?}");
        let last_lsn = start.next_lsn.previous();
        GroupCommit {
            settings,
            checksum,
            epoch: start.epoch,
            ids: OperationIds::default(),
            spares: Spares::new(plan, checksum, start.next_sequence, &start.segments, &start.spares),
            appended_lsn: last_lsn,
            written_lsn: last_lsn,
            durable_lsn: last_lsn,
            blocks_written: 0,
            blocks_durable: 0,
            written_end: FIRST_BLOCK_OFFSET,
            durable_end: FIRST_BLOCK_OFFSET,
            last_unix_us: start.last_unix_us,
            open: None,
            sealed: VecDeque::new(),
            sealed_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            granted_bytes: 0,
            flush: None,
            flush_target: Lsn::ZERO,
            write_target: Lsn::ZERO,
            // A run begins by saying that all it found is durable: from then on damage to it is told from a
            // torn tail.
            mark_wanted: !start.is_marked,
            marked_lsn: if start.is_marked { last_lsn } else { Lsn::ZERO },
            closing: Closing::No,
            failure: None,
            pool: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Whether `bytes` of framed records could be appended now. Asked before a command is executed; after an
    /// `Ok`, appending up to `bytes` (and in any case up to [`Settings::append_bytes_max`]) is not refused
    /// until the next [`GroupCommit::poll_operation`].
    ///
    /// Asking for more than there is room for has that room prepared.
    pub fn admission(&mut self, bytes: usize) -> Result<(), Refused> {
        let bytes = bytes.max(self.settings.append_bytes_max);
        self.granted_bytes = 0;
        self.admit(bytes)?;
        self.granted_bytes = bytes;
        Ok(())
    }

    /// Appends one record; see [`GroupCommit::append_batch`].
    pub fn append(&mut self, payload: &[u8], unix_us: u64) -> Result<Lsn, Refused> {
        self.append_all(once(payload), FRAME_BYTES + payload.len(), unix_us)
    }

    /// Appends the records of one shard's turn, all or none of them, under consecutive LSNs in their order.
    /// Returns the last one's: a reply that shows any of them waits for that. `unix_us` is the turn's time.
    pub fn append_batch(&mut self, batch: &Batch, unix_us: u64) -> Result<Lsn, Refused> {
        self.append_all(batch.iter(), batch.framed_bytes(), unix_us)
    }

    /// The same with records from anywhere, which take `framed` bytes in all.
    pub fn append_all<'a>(
        &mut self,
        payloads: impl Iterator<Item = &'a [u8]>,
        framed: usize,
        unix_us: u64,
    ) -> Result<Lsn, Refused> {
        self.admit(framed)?;
        let mut payloads = payloads.peekable();
        while payloads.peek().is_some() {
            self.last_unix_us = self.last_unix_us.max(unix_us);
            // Nearly all of them fit into the block that is open: one loop that does nothing else.
            if let Some(open) = &mut self.open {
                let before = open.count;
                let bytes = open.push_fitting(&mut payloads, self.last_unix_us);
                let count = u64::from(open.count - before);
                self.appended_lsn = self.appended_lsn.plus(count);
                self.counters.records += count;
                self.counters.payload_bytes += bytes as u64 - count * FRAME_BYTES as u64;
            }
            if let Some(payload) = payloads.next() {
                self.push(payload);
            }
        }
        Ok(self.appended_lsn)
    }

    fn admit(&mut self, framed: usize) -> Result<(), Refused> {
        if let Some(failure) = self.failure {
            return Err(Refused::Failed(failure));
        }
        if self.closing != Closing::No {
            return Err(Refused::Closed);
        }
        if let Some(rest) = self.granted_bytes.checked_sub(framed) {
            self.granted_bytes = rest;
            return Ok(());
        }
        let (image, bytes_max) =
            (self.settings.image_bytes_max(framed), self.settings.pending_bytes_max as u64);
        if image > bytes_max {
            return Err(Refused::TooLarge { bytes: image, bytes_max });
        }
        if self.pending_bytes() + image > bytes_max {
            self.counters.refused_busy += 1;
            return Err(Refused::Busy);
        }
        let wanted = self.unplaced_bytes() + image + MARKS_BYTES;
        self.spares.want_room(wanted);
        if self.spares.room() >= wanted {
            return Ok(());
        }
        match self.spares.shortage() {
            Some(failure) => {
                self.counters.refused_full += 1;
                Err(Refused::Full(failure))
            }
            None if self.spares.current.is_none() => Err(Refused::Starting),
            None => {
                self.counters.refused_busy += 1;
                Err(Refused::Busy)
            }
        }
    }

    fn push(&mut self, payload: &[u8]) {
        let lsn = self.appended_lsn.next();
        let framed = FRAME_BYTES + payload.len();
        let open_bytes = self.open.as_ref().map_or(BLOCK_HEADER_BYTES, |open| open.buffer.used());
        if open_bytes + framed > self.settings.block_bytes_max {
            self.seal_open();
        }
        if framed <= self.settings.capacity() {
            self.push_frame(payload, lsn, 0);
        } else {
            // Longer than a block: one part a block, and the last part's block takes other records, too.
            let (mut rest, mut continued) = (payload, 0);
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(rest.len().min(self.settings.capacity() - FRAME_BYTES));
                self.push_frame(part, lsn, continued);
                if !behind.is_empty() {
                    self.open.as_mut().expect("just pushed to").flags |= flags::CONTINUES;
                    self.seal_open();
                }
                (rest, continued) = (behind, flags::CONTINUED);
            }
        }
        self.appended_lsn = lsn;
        self.counters.records += 1;
        self.counters.payload_bytes += payload.len() as u64;
    }

    fn push_frame(&mut self, payload: &[u8], lsn: Lsn, flags: u32) {
        let unix_us = self.last_unix_us;
        if self.open.is_none() {
            let buffer = self.take_buffer();
            self.open = Some(Block::new(buffer, lsn, flags, unix_us));
        }
        self.open.as_mut().expect("just made").push(payload, unix_us);
    }

    fn seal_open(&mut self) {
        if let Some(block) = self.open.take() {
            self.sealed_bytes += block.image_bytes() as u64;
            self.sealed.push_back(block);
        }
    }

    fn take_buffer(&mut self) -> BlockBuffer {
        self.pool.pop().unwrap_or_else(|| BlockBuffer::with_capacity(self.settings.block_bytes_max))
    }

    fn give_buffer(&mut self, buffer: Option<BlockBuffer>) {
        // What a burst needed beyond these is given back to the allocator.
        let keep = self.settings.writes_in_flight_max + 2;
        let buffer = buffer.filter(|buffer| buffer.capacity() == self.settings.block_bytes_max);
        self.pool.extend(buffer.filter(|_| self.pool.len() < keep));
    }

    /// Everything up to here is durable. It never goes back.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// Everything up to here has been handed to the operating system: what survives the process but not the
    /// machine.
    pub fn written_lsn(&self) -> Lsn {
        self.written_lsn
    }

    /// The last record appended.
    pub fn appended_lsn(&self) -> Lsn {
        self.appended_lsn
    }

    /// The history records are appended to.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Bytes of blocks that are not durable yet.
    pub fn pending_bytes(&self) -> u64 {
        self.unplaced_bytes() + self.in_flight_bytes
    }

    /// Bytes of blocks that have no place in a segment yet.
    fn unplaced_bytes(&self) -> u64 {
        self.sealed_bytes + self.open.as_ref().map_or(0, |open| open.image_bytes() as u64)
    }

    /// What went wrong for good.
    pub fn failure(&self) -> Option<LogFailure> {
        self.failure
    }

    /// Why no segment can be prepared, nearly always a full disk; appending goes on while there is room.
    pub fn shortage(&self) -> Option<Failure> {
        self.spares.shortage()
    }

    /// How often things happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How often things happened to segments.
    pub fn segment_counters(&self) -> SegmentCounters {
        self.spares.counters()
    }

    /// The segments that hold blocks, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = KnownSegment> {
        self.spares.known()
    }

    /// Under [`FlushPolicy::OnRequest`]: makes everything appended so far durable. Called once a second, and
    /// when a client asks for more durability than the others get.
    pub fn request_flush(&mut self) {
        self.flush_target = self.appended_lsn;
    }

    /// Under [`FlushPolicy::OnRequest`]: hands everything appended so far to the operating system, which costs the rest of
    /// a page and no flush. The end of the process alone then loses nothing of it.
    pub fn request_write(&mut self) {
        self.write_target = self.appended_lsn;
    }

    /// True if records wait for their block to be full, or for a flush.
    pub fn has_open_block(&self) -> bool {
        self.open.is_some()
    }

    /// Changes the policy while running (CONFIG SET). Going to `EveryBlock` has everything pending flushed.
    pub fn set_flush_policy(&mut self, policy: FlushPolicy) {
        self.settings.flush_policy = policy;
    }

    /// Has a block without records say what is durable, if no block says so yet: damage to what it covers is
    /// then told from a torn tail. Called when the log has been idle for a while.
    pub fn write_mark(&mut self) {
        self.mark_wanted |= self.marked_lsn < self.durable_lsn;
    }

    /// Everything before `needed` is in a durable snapshot: segments that hold nothing else are recycled or
    /// removed. The current one is kept, and with it all that is not durable yet.
    pub fn release(&mut self, needed: Lsn) {
        self.spares.release(needed);
    }

    /// Tries again to prepare a segment after [`Refused::Full`]. Called about once a second while there is a
    /// shortage.
    pub fn retry(&mut self) {
        self.spares.retry();
    }

    /// Nothing more is appended; what is pending becomes durable, then a last block says that nothing is
    /// missing.
    pub fn close(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Draining;
            // All that is pending has room already; a segment in preparation is left to the next start.
            self.spares.stop();
        }
    }

    /// True once the last block is durable and no operation is in flight.
    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Marked
            && self.in_flight.is_empty()
            && self.blocks_durable == self.blocks_written
            && self.is_quiet()
    }

    /// True if no operation is in flight.
    pub fn is_quiet(&self) -> bool {
        let waiting = |block: &InFlight| !block.is_written && block.rest.is_none();
        self.spares.is_idle() && self.flush.is_none() && !self.in_flight.iter().any(waiting)
    }

    /// After a failure: how a new writer goes on in new files under a new epoch. The caller first makes a
    /// snapshot of everything up to [`GroupCommit::appended_lsn`] durable: it holds what this log lost.
    /// `None` while an operation of this writer is in flight, whose buffer the kernel still reads.
    pub fn start_afresh(&self, uid_seed: u64) -> Option<Start> {
        self.failure.filter(|_| self.is_quiet())?;
        Some(self.start_behind(self.epoch.next(), uid_seed))
    }

    /// After [`GroupCommit::close`]: how a new writer goes on behind the last record under a later epoch, as a node
    /// does that is promoted, or whose primary was. `None` while an operation of this writer is in flight.
    pub fn start_epoch(&self, epoch: Epoch, uid_seed: u64) -> Option<Start> {
        (self.failure.is_none() && self.is_closed())
            .then(|| self.start_behind(epoch.max(self.epoch), uid_seed))
    }

    fn start_behind(&self, epoch: Epoch, uid_seed: u64) -> Start {
        let (mut segments, mut spares): (Vec<KnownSegment>, Vec<Sequence>) = Default::default();
        for (file, length) in self.spares.leftovers() {
            match file {
                FileName::Segment(sequence) => {
                    segments.push(KnownSegment { sequence, length, first_lsn: None, is_empty: false })
                }
                FileName::Spare(sequence) => spares.push(sequence),
            }
        }
        // A segment without records says that its epoch has begun. The one that is to say so instead may go only when a block
        // in that one is durable: else the history before the epoch would come back.
        let has_begun = self.durable_end > FIRST_BLOCK_OFFSET;
        let keep =
            |segment: KnownSegment| KnownSegment { is_empty: segment.is_empty && has_begun, ..segment };
        segments.extend(self.spares.known().map(keep));
        segments.sort_by_key(|segment| segment.sequence);
        Start {
            next_lsn: self.appended_lsn.next(),
            epoch,
            epoch_first_lsn: self.appended_lsn.next(),
            next_sequence: self.spares.next_sequence(),
            segments,
            spares,
            last_unix_us: self.last_unix_us,
            is_marked: false,
            uid_seed,
        }
    }

    /// The next thing to do, until there is nothing. Asked at the end of a turn, when all of the turn's
    /// records are in.
    pub fn poll_operation(&mut self) -> Option<Operation> {
        // A block that is sent takes its padding with it, which nobody was granted.
        self.granted_bytes = 0;
        if self.failure.is_some() {
            return None;
        }
        self.poll_rest()
            .or_else(|| self.poll_flush())
            .or_else(|| self.poll_block())
            .or_else(|| self.spares.poll_operation(&mut self.ids))
    }

    /// The rest of a write that was short.
    fn poll_rest(&mut self) -> Option<Operation> {
        let block = self.in_flight.iter_mut().find(|block| block.rest.is_some())?;
        let buffer = block.rest.take()?;
        block.id = self.ids.next();
        self.counters.writes += 1;
        let (file, start, sync) = (block.file, block.start, block.sync);
        let action = Action::Write { file, offset: block.offset + start as u64, buffer, start, sync };
        Some(Operation { id: block.id, action })
    }

    /// A flush of its own, for blocks that were written without one.
    fn poll_flush(&mut self) -> Option<Operation> {
        if self.flush.is_some() || self.blocks_durable == self.blocks_written {
            return None;
        }
        let requested = self.durable_lsn < self.flush_target && self.flush_target <= self.written_lsn;
        let due = self.settings.flush_policy == FlushPolicy::EveryBlock
            || requested
            // A segment is left, or the log closed, only when everything in it is durable.
            || self.in_flight.is_empty() && (self.closing != Closing::No || self.must_switch());
        if !due {
            return None;
        }
        let file = self.spares.current.as_ref().expect("blocks were written").file();
        let id = self.ids.next();
        let (blocks, lsn, end) = (self.blocks_written, self.written_lsn, self.written_end);
        self.flush = Some(FlushInFlight { id, file, blocks, lsn, end });
        self.counters.flushes += 1;
        Some(Operation { id, action: Action::Flush { file } })
    }

    /// True if the next block has no room in the current segment.
    fn must_switch(&self) -> bool {
        let current = self.spares.current.as_ref();
        let fits = |block: &Block| current.is_some_and(|current| current.has_room(block.image_bytes()));
        self.sealed.front().is_some_and(|block| !fits(block))
    }

    fn poll_block(&mut self) -> Option<Operation> {
        if self.in_flight.len() >= self.settings.writes_in_flight_max {
            return None;
        }
        if self.sealed.is_empty() {
            let due = self.settings.flush_policy == FlushPolicy::EveryBlock
                || self.closing != Closing::No
                || self.written_lsn < self.flush_target.max(self.write_target);
            if self.open.is_some() && due {
                self.seal_open();
            } else if self.open.is_none() {
                self.seal_mark();
            }
        }
        if self.must_switch() {
            // Segments follow each other only when everything in the first is durable. So what is missing
            // before a segment that has begun is damage, and never a write that was still in flight.
            let all_durable = self.in_flight.is_empty() && self.blocks_durable == self.blocks_written;
            let first_lsn = self.sealed.front().expect("it must switch").first_whole_lsn();
            if !all_durable {
                // The block may have been sealed only now, after flushes were asked for.
                return self.poll_flush();
            }
            if !self.spares.switch(first_lsn) {
                return None;
            }
            // The header is durable since before the segment had its name.
            (self.written_end, self.durable_end) = (FIRST_BLOCK_OFFSET, FIRST_BLOCK_OFFSET);
        }
        let mut block = self.sealed.pop_front()?;
        let length = block.image_bytes();
        self.sealed_bytes -= length as u64;
        let current = self.spares.current.as_mut().expect("the block has room in it");
        block.seal(current.offset, self.durable_lsn, self.durable_end, current.seed, self.checksum);
        let (file, offset) = (current.file(), current.offset);
        current.offset += length as u64;
        self.mark_wanted = false;
        self.marked_lsn = self.durable_lsn;
        // A block without records is rare, and its purpose is to be durable.
        let sync = match (self.settings.flush_policy, self.settings.write_mode) {
            (FlushPolicy::OnRequest, _) if block.count > 0 => Sync::None,
            (_, WriteMode::DurableWrite) => Sync::Data,
            (_, WriteMode::WriteThenFlush) => Sync::Flush,
        };
        let id = self.ids.next();
        self.counters.blocks += 1;
        self.counters.block_bytes += length as u64;
        self.counters.writes += 1;
        self.counters.records_per_block[(u32::BITS - block.count.leading_zeros()) as usize] += 1;
        self.in_flight_bytes += length as u64;
        let last_lsn = block.last_lsn();
        let (start, rest, stalls, is_written) = (0, None, 0, false);
        self.in_flight.push_back(InFlight {
            id,
            file,
            offset,
            length,
            start,
            rest,
            stalls,
            sync,
            is_written,
            last_lsn,
        });
        Some(Operation { id, action: Action::Write { file, offset, buffer: block.buffer, start, sync } })
    }

    /// A block without records, if one is wanted and can tell the truth: everything before it is durable.
    fn seal_mark(&mut self) {
        let all_durable = self.in_flight.is_empty()
            && self.durable_lsn == self.appended_lsn
            && self.blocks_durable == self.blocks_written;
        let closing = self.closing == Closing::Draining;
        if closing && self.spares.current.is_none() {
            // This run never wrote anything: the log stands as it was found.
            self.closing = Closing::Marked;
            return;
        }
        if !all_durable || !(self.mark_wanted || closing) || self.spares.room() < MARKS_BYTES && !closing {
            return;
        }
        let flags = if closing { flags::CLOSED } else { 0 };
        let buffer = self.take_buffer();
        self.open = Some(Block::new(buffer, self.appended_lsn.next(), flags, self.last_unix_us));
        self.seal_open();
        if closing {
            self.closing = Closing::Marked;
        }
    }

    /// Takes what became of an operation. Look at [`GroupCommit::durable_lsn`] and [`GroupCommit::failure`]
    /// afterwards.
    pub fn handle_completion(&mut self, mut completion: Completion) {
        if self.spares.handle_completion(&completion) {
            return;
        }
        if self.flush.as_ref().is_some_and(|flush| flush.id == completion.id) {
            let flush = self.flush.take().expect("just seen");
            self.after_flush(&flush, completion.result);
            return self.let_go_of_empty();
        }
        let waits = |block: &InFlight| block.id == completion.id && !block.is_written && block.rest.is_none();
        let Some(index) = self.in_flight.iter().position(waits) else {
            panic!("a completion of {:?}, which is not in flight", completion.id);
        };
        let buffer = completion.buffer.take();
        self.after_write(index, completion.result, buffer);
        self.let_go_of_empty();
    }

    /// Once this run has durably begun a segment, one in which the run before wrote nothing may go.
    fn let_go_of_empty(&mut self) {
        if self.durable_end > FIRST_BLOCK_OFFSET && self.failure.is_none() {
            self.spares.handle_begun();
        }
    }

    fn after_write(&mut self, index: usize, result: Result<usize, Errno>, buffer: Option<BlockBuffer>) {
        let block = &mut self.in_flight[index];
        let remaining = block.length - block.start;
        let errno = match result {
            Ok(written) if written == remaining => {
                block.is_written = true;
                self.give_buffer(buffer);
                return self.advance();
            }
            Ok(written) => {
                assert!(written < remaining, "{written} bytes written of {remaining}");
                // Whole pages only, because the rest must be aligned as well.
                let pages = written / PAGE_BYTES * PAGE_BYTES;
                block.start += pages;
                block.stalls = if pages > 0 { 0 } else { block.stalls + 1 };
                self.counters.short_writes += 1;
                if self.failure.is_none() && block.stalls < STALLS_MAX {
                    block.rest = Some(buffer.expect("a write returns its buffer"));
                    return;
                }
                Errno::EIO
            }
            Err(errno) => errno,
        };
        let failure = Failure {
            doing: Doing::Writing,
            file: block.file,
            offset: block.offset + block.start as u64,
            length: (block.length - block.start) as u64,
            errno,
        };
        // It stays in the queue for ever, so that nothing behind it counts as a prefix.
        block.is_written = true;
        self.give_buffer(buffer);
        self.fail(failure);
    }

    /// Takes blocks from the front as far as they are written.
    fn advance(&mut self) {
        if self.failure.is_some() {
            return;
        }
        while let Some(block) = self.in_flight.pop_front_if(|block| block.is_written) {
            self.in_flight_bytes -= block.length as u64;
            // A durable write says nothing of the blocks before it.
            let durable = block.sync != Sync::None && self.blocks_durable == self.blocks_written;
            self.blocks_written += 1;
            self.written_lsn = block.last_lsn;
            self.written_end = block.offset + block.length as u64;
            if durable {
                self.blocks_durable = self.blocks_written;
                self.durable_lsn = self.written_lsn;
                self.durable_end = self.written_end;
            }
        }
    }

    fn after_flush(&mut self, flush: &FlushInFlight, result: Result<usize, Errno>) {
        if self.failure.is_some() {
            return;
        }
        match result {
            Ok(_) => {
                self.blocks_durable = self.blocks_durable.max(flush.blocks);
                self.durable_lsn = self.durable_lsn.max(flush.lsn);
                self.durable_end = self.durable_end.max(flush.end);
            }
            Err(errno) => {
                self.fail(Failure { doing: Doing::Flushing, file: flush.file, offset: 0, length: 0, errno });
            }
        }
    }

    /// The end: nothing is acknowledged, written or removed any more.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(LogFailure { failure, durable_lsn: self.durable_lsn });
        }
        self.open = None;
        self.sealed_bytes = 0;
        drop(mem::take(&mut self.sealed));
        for block in &mut self.in_flight {
            // What was to be written again will not be.
            block.is_written |= block.rest.take().is_some();
        }
    }
}
