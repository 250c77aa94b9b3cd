//! Segment files behind the one being written: prepared ahead, recycled when nobody needs them, and removed.
//!
//! One task at a time, one operation at a time, beside the writing of blocks and never in its way. Where a
//! step relies on a rename or a deletion being durable, the directory is flushed first: a file is overwritten
//! only after the name under which recovery would read it is gone for good, and bears a segment's name only
//! after its content is durable.
//!
//! What an earlier run prepared and did not begin, and the segments in which it wrote nothing but marks, are recycled like
//! released ones: starts without writes do not make the directory grow.
//!
//! Where there is nothing to write to and nothing to recycle, everybody waits for a segment to be created. That one is short
//! ([`Settings::first_segment_bytes`](crate::settings::Settings::first_segment_bytes)), and the next is prepared at once.
//!
//! A full disk is met here and nowhere else. It is no failure of the log: what is prepared can still be
//! filled, and [`Spares::retry`] or a segment that is released ends it.

use alloc::collections::VecDeque;

use crate::block::PAGE_BYTES;
use crate::checksum::Checksum;
use crate::lsn::{Epoch, Lsn};
use crate::operation::{Action, Completion, Doing, Errno, Failure, Operation, OperationId, Sync};
use crate::segment::{FIRST_BLOCK_OFFSET, FileName, SegmentHeader, Sequence, uid};

/// Zeros per operation: small enough not to stand in the way of a block for long.
const ZEROS_BYTES_MAX: u64 = 1 << 20;

/// Numbers of operations, shared by all who issue them.
#[derive(Debug, Default)]
pub(crate) struct OperationIds(u64);

impl OperationIds {
    pub(crate) fn next(&mut self) -> OperationId {
        self.0 += 1;
        OperationId(self.0)
    }
}

/// A segment that is in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownSegment {
    /// Its number.
    pub sequence: Sequence,
    /// Bytes of the file.
    pub length: u64,
    /// The first record that begins in it or later: not one whose beginning is in the segment before. `None`
    /// if it holds no block, and is not needed to say that its epoch has begun.
    pub first_lsn: Option<Lsn>,
    /// It holds blocks, but nothing of a record that counts: marks of runs that wrote nothing, or what was cut.
    pub is_empty: bool,
}

/// What stays the same from segment to segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) segment_bytes: u64,
    pub(crate) first_bytes: u64,
    pub(crate) block_bytes_max: u64,
    pub(crate) spare_segments: usize,
    pub(crate) epoch: Epoch,
    pub(crate) epoch_first_lsn: Lsn,
    pub(crate) uid_seed: u64,
}

impl Plan {
    /// Of so many bytes at a segment's end, those that blocks can certainly use: the last block may not fit.
    fn usable(&self, remaining: u64) -> u64 {
        remaining.saturating_sub(self.block_bytes_max - PAGE_BYTES as u64)
    }
}

/// How often things happened to segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCounters {
    /// Prepared by writing zeros.
    pub created: u64,
    /// Prepared from a released segment.
    pub recycled: u64,
    /// Deleted.
    pub deleted: u64,
    /// Preparations that failed; nearly always a full disk.
    pub preparations_failed: u64,
    /// Deletions that failed; the file stays until the next start finds it.
    pub deletions_failed: u64,
}

impl SegmentCounters {
    /// These, and those of the writer before.
    pub fn behind(self, before: &SegmentCounters) -> SegmentCounters {
        SegmentCounters {
            created: self.created + before.created,
            recycled: self.recycled + before.recycled,
            deleted: self.deleted + before.deleted,
            preparations_failed: self.preparations_failed + before.preparations_failed,
            deletions_failed: self.deletions_failed + before.deletions_failed,
        }
    }
}

/// The segment that is being written.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) sequence: Sequence,
    pub(crate) seed: u32,
    /// Where the next block goes.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    first_lsn: Lsn,
}

impl Current {
    pub(crate) fn file(&self) -> FileName {
        FileName::Segment(self.sequence)
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.length - self.offset >= bytes as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Reserve,
    WriteZeros(u64),
    /// A released segment takes the name of a spare…
    RenameRecycled(FileName),
    /// …for good…
    FlushRecycledName,
    /// …before its header is overwritten.
    WriteHeader,
    FlushFile,
    RenamePrepared,
    FlushName,
    /// A preparation failed: the file goes, so that the space is there for what could end the shortage.
    Discard(FileName),
}

#[derive(Debug)]
enum Task {
    Prepare { sequence: Sequence, length: u64, step: Step },
    Delete { file: FileName, deleted: bool },
    Close { file: FileName },
}

/// All segments but for the writing into the current one.
#[derive(Debug)]
pub struct Spares {
    plan: Plan,
    checksum: Checksum,
    next_sequence: Sequence,
    /// Segments with records that may still be needed, oldest first, the current one not among them.
    live: VecDeque<KnownSegment>,
    pub(crate) current: Option<Current>,
    /// A block of the current one is durable.
    has_begun: bool,
    /// What is before is in a durable snapshot.
    needed: Lsn,
    /// Prepared, with their lengths: the names of segments, durable.
    ready: VecDeque<(Sequence, u64)>,
    /// Released, complete, and of the right length.
    recyclable: VecDeque<FileName>,
    garbage: VecDeque<FileName>,
    /// So many of these, the first ones, an earlier run left. They go before anything is created: runs that end early
    /// would else leave more and more.
    stale: usize,
    closable: VecDeque<FileName>,
    task: Option<Task>,
    in_flight: Option<OperationId>,
    /// Why the last preparation failed, until it is tried again.
    shortage: Option<Failure>,
    /// What was last asked for and was not there, and what is prepared for it.
    wanted_room: u64,
    target_room: u64,
    stopped: bool,
    counters: SegmentCounters,
}

impl Spares {
    pub(crate) fn new(
        plan: Plan,
        checksum: Checksum,
        next_sequence: Sequence,
        segments: &[KnownSegment],
        spares: &[Sequence],
    ) -> Spares {
        let mut new = Spares {
            plan,
            checksum,
            next_sequence,
            live: VecDeque::new(),
            current: None,
            has_begun: false,
            needed: Lsn::ZERO,
            ready: VecDeque::new(),
            recyclable: VecDeque::new(),
            // Whatever its crash left of a spare is not known to be complete.
            garbage: spares.iter().map(|&sequence| FileName::Spare(sequence)).collect(),
            stale: 0,
            closable: VecDeque::new(),
            task: None,
            in_flight: None,
            shortage: None,
            wanted_room: 0,
            target_room: 0,
            stopped: false,
            counters: SegmentCounters::default(),
        };
        for (index, &segment) in segments.iter().enumerate() {
            assert!(segment.sequence < next_sequence, "{segment:?} is not before {next_sequence:?}");
            let later = segments[index + 1..].iter().find(|later| later.first_lsn.is_some());
            let goes_on_elsewhere = later.is_some_and(|later| later.first_lsn == segment.first_lsn);
            match segment.first_lsn {
                // What says that all before it is durable is also said by that the later one has begun.
                Some(_) if segment.is_empty && goes_on_elsewhere => new.dispose(segment),
                Some(_) => new.live.push_back(segment),
                // Prepared by an earlier run. Pieces of its last, unacknowledged blocks may stand in it under
                // its uid, so it is not written to before it has another.
                None => new.dispose(segment),
            }
        }
        new.stale = new.garbage.len();
        new
    }

    /// Counters so far.
    pub(crate) fn counters(&self) -> SegmentCounters {
        self.counters
    }

    /// Bytes of blocks that certainly find room in the current and the prepared segments.
    pub(crate) fn room(&self) -> u64 {
        let current = self.current.as_ref().map_or(0, |current| current.length - current.offset);
        let whole = |&(_, length): &(Sequence, u64)| self.plan.usable(length - FIRST_BLOCK_OFFSET);
        self.plan.usable(current) + self.ready.iter().map(whole).sum::<u64>()
    }

    /// Prepares so much room, even beyond the configured number of spares: a large record is coming. Smaller
    /// wishes do not take back a larger one before it was fulfilled once.
    pub(crate) fn want_room(&mut self, bytes: u64) {
        let room = self.room();
        if room >= self.wanted_room {
            (self.wanted_room, self.target_room) = (bytes, 0);
        }
        self.wanted_room = self.wanted_room.max(bytes);
        if room < self.wanted_room {
            // A segment more than is missing: until the large record is tried again, small ones take some of
            // the room.
            let ahead = self.plan.usable(self.plan.segment_bytes - FIRST_BLOCK_OFFSET);
            self.target_room = self.wanted_room + ahead;
        }
    }

    /// Why no segment can be prepared.
    pub(crate) fn shortage(&self) -> Option<Failure> {
        self.shortage
    }

    /// Forgets that the disk was full: the next operation tries again.
    pub(crate) fn retry(&mut self) {
        self.shortage = None;
    }

    /// Nothing more is written or removed: the log failed or was closed.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// All segments that hold blocks, oldest first.
    pub(crate) fn known(&self) -> impl Iterator<Item = KnownSegment> {
        let current = self.current.as_ref().map(|current| KnownSegment {
            sequence: current.sequence,
            length: current.length,
            first_lsn: Some(current.first_lsn),
            is_empty: false,
        });
        self.live.iter().copied().chain(current)
    }

    /// Segments that hold no block and files to be removed, for a writer that takes over, and their lengths: none of those
    /// that are not to be recycled.
    pub(crate) fn leftovers(&self) -> impl Iterator<Item = (FileName, u64)> {
        let task = match self.task {
            Some(Task::Prepare { sequence, length, step: Step::FlushName }) => {
                Some((FileName::Segment(sequence), length))
            }
            Some(Task::Prepare { step: Step::Discard(file), .. }) => Some((file, 0)),
            Some(Task::Prepare { sequence, .. }) => Some((FileName::Spare(sequence), 0)),
            Some(Task::Delete { file, deleted: false }) => Some((file, 0)),
            _ => None,
        };
        let ready = self.ready.iter().map(|&(sequence, length)| (FileName::Segment(sequence), length));
        let recyclable = self.recyclable.iter().map(|&file| (file, self.plan.segment_bytes));
        let garbage = self.garbage.iter().map(|&file| (file, 0));
        ready.chain(recyclable).chain(garbage).chain(task)
    }

    pub(crate) fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    /// Begins the next segment if one is ready. The caller has made sure that all before it is durable.
    pub(crate) fn switch(&mut self, first_lsn: Lsn) -> bool {
        let Some((sequence, length)) = self.ready.pop_front() else { return false };
        let seed = self.header(sequence, length).seed(self.checksum);
        let next = Current { sequence, seed, offset: FIRST_BLOCK_OFFSET, length, first_lsn };
        self.has_begun = false;
        if let Some(old) = self.current.replace(next) {
            self.closable.push_back(old.file());
            self.live.push_back(KnownSegment {
                sequence: old.sequence,
                length: old.length,
                first_lsn: Some(old.first_lsn),
                is_empty: false,
            });
        }
        true
    }

    /// Lets go of segments that hold only records before `needed`.
    pub(crate) fn release(&mut self, needed: Lsn) {
        self.needed = self.needed.max(needed);
        while !self.live.is_empty() {
            let next = self.live.get(1).and_then(|segment| segment.first_lsn);
            // The one before says that its epoch has begun, as long as the current one does not.
            let current = self.current.as_ref().filter(|_| self.has_begun);
            let next = next.or(current.map(|current| current.first_lsn));
            // What begins in a segment begins before the first that begins in the next.
            if next.is_none_or(|next| next > self.needed) {
                break;
            }
            let segment = self.live.pop_front().expect("not empty");
            self.dispose(segment);
        }
    }

    /// The first block of the current segment is durable. The last segment of the run before is then no longer needed, if
    /// it held marks only: the log goes on here with the same record.
    pub(crate) fn handle_begun(&mut self) {
        if core::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let first = self.current.as_ref().map(|current| current.first_lsn);
        if let Some(last) = self.live.pop_back_if(|last| last.is_empty && last.first_lsn == first) {
            self.dispose(last);
        }
        self.release(self.needed);
    }

    fn dispose(&mut self, segment: KnownSegment) {
        let file = FileName::Segment(segment.sequence);
        // It is deleted, which closes it, or soon written to again.
        self.closable.retain(|&closable| closable != file);
        if segment.length != self.plan.segment_bytes {
            return self.garbage.push_back(file);
        }
        self.recyclable.push_back(file);
        // The oldest go first: what a crash in between leaves is a log that begins later, never one with a
        // hole.
        // At the start there is none to write to either.
        let wanted = self.plan.spare_segments + usize::from(self.current.is_none());
        if self.recyclable.len() > wanted {
            self.garbage.extend(self.recyclable.pop_front());
        }
    }

    fn header(&self, sequence: Sequence, length: u64) -> SegmentHeader {
        SegmentHeader {
            uid: uid(self.plan.uid_seed, sequence),
            sequence,
            length,
            epoch: self.plan.epoch,
            epoch_first_lsn: self.plan.epoch_first_lsn,
        }
    }

    pub(crate) fn poll_operation(&mut self, ids: &mut OperationIds) -> Option<Operation> {
        if self.in_flight.is_some() || self.stopped {
            return None;
        }
        let task = match self.task.take() {
            Some(task) => task,
            None => self.next_task()?,
        };
        let action = self.action(&task);
        self.task = Some(task);
        let id = ids.next();
        self.in_flight = Some(id);
        Some(Operation { id, action })
    }

    fn next_task(&mut self) -> Option<Task> {
        // A short one is for those who wait, and no spare.
        let spares = self.ready.iter().filter(|&&(_, length)| length == self.plan.segment_bytes).count();
        let wanted = spares < self.plan.spare_segments || self.room() < self.target_room;
        if wanted && let Some(old) = self.recyclable.pop_front() {
            return Some(self.prepare(Step::RenameRecycled(old)));
        }
        if wanted && self.shortage.is_none() && self.stale == 0 {
            return Some(self.prepare(Step::Create));
        }
        if let Some(file) = self.garbage.pop_front() {
            self.stale = self.stale.saturating_sub(1);
            return Some(Task::Delete { file, deleted: false });
        }
        self.closable.pop_front().map(|file| Task::Close { file })
    }

    fn prepare(&mut self, step: Step) -> Task {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        let is_waited_for = self.current.is_none() && self.ready.is_empty() && matches!(step, Step::Create);
        let length = if is_waited_for { self.plan.first_bytes } else { self.plan.segment_bytes };
        Task::Prepare { sequence, length, step }
    }

    fn action(&self, task: &Task) -> Action {
        let (sequence, length, step) = match *task {
            Task::Close { file } => return Action::Close { file },
            Task::Delete { file, deleted: false } => return Action::Delete { file },
            Task::Delete { deleted: true, .. } => return Action::FlushDirectory,
            Task::Prepare { sequence, length, step } => (sequence, length, step),
        };
        let file = FileName::Spare(sequence);
        match step {
            Step::Create => Action::Create { file },
            Step::Reserve => Action::Reserve { file, length },
            Step::WriteZeros(offset) => Action::WriteZeros { file, offset, length: zeros_at(offset, length) },
            Step::RenameRecycled(from) => Action::Rename { from, to: file },
            Step::FlushRecycledName | Step::FlushName => Action::FlushDirectory,
            Step::WriteHeader => {
                let buffer = self.header(sequence, length).encode(self.checksum);
                Action::Write { file, offset: 0, buffer, start: 0, sync: Sync::None }
            }
            Step::FlushFile => Action::Flush { file },
            Step::RenamePrepared => Action::Rename { from: file, to: FileName::Segment(sequence) },
            Step::Discard(file) => Action::Delete { file },
        }
    }

    /// True if the completion was of an operation issued here.
    pub(crate) fn handle_completion(&mut self, completion: &Completion) -> bool {
        if self.in_flight != Some(completion.id) {
            return false;
        }
        self.in_flight = None;
        self.task = match self.task.take().expect("an operation belongs to a task") {
            Task::Close { .. } => None,
            Task::Delete { file, deleted: false } => match completion.result {
                Ok(_) => {
                    self.counters.deleted += 1;
                    Some(Task::Delete { file, deleted: true })
                }
                Err(_) => {
                    self.counters.deletions_failed += 1;
                    None
                }
            },
            Task::Delete { deleted: true, .. } => None,
            Task::Prepare { sequence, length, step } => self.after(sequence, length, step, completion.result),
        };
        true
    }

    fn after(
        &mut self,
        sequence: Sequence,
        length: u64,
        step: Step,
        result: Result<usize, Errno>,
    ) -> Option<Task> {
        let spare = FileName::Spare(sequence);
        let result = match (step, result) {
            // The header is one page, and its space is reserved: nothing is short about it but for an error.
            (Step::WriteHeader, Ok(written)) if written < PAGE_BYTES => Err(Errno::EIO),
            (_, result) => result,
        };
        let next = match (step, result) {
            (Step::Discard(_), _) => return None,
            (_, Err(errno)) => {
                let failure = |doing, file, offset, length| Failure { doing, file, offset, length, errno };
                let (failure, leftover) = match step {
                    Step::Create => (failure(Doing::Creating, spare, 0, 0), None),
                    Step::Reserve => (failure(Doing::Preallocating, spare, 0, length), Some(spare)),
                    Step::WriteZeros(offset) => {
                        (failure(Doing::Preallocating, spare, offset, zeros_at(offset, length)), Some(spare))
                    }
                    // The segment keeps its old name, or is a spare that the next start removes.
                    Step::RenameRecycled(from) => (failure(Doing::Renaming, from, 0, 0), None),
                    Step::FlushRecycledName => (failure(Doing::FlushingDirectory, spare, 0, 0), Some(spare)),
                    Step::WriteHeader => (failure(Doing::Writing, spare, 0, FIRST_BLOCK_OFFSET), Some(spare)),
                    Step::FlushFile => (failure(Doing::Flushing, spare, 0, 0), Some(spare)),
                    Step::RenamePrepared => (failure(Doing::Renaming, spare, 0, 0), Some(spare)),
                    Step::FlushName => (
                        failure(Doing::FlushingDirectory, FileName::Segment(sequence), 0, 0),
                        Some(FileName::Segment(sequence)),
                    ),
                    Step::Discard(_) => unreachable!("answered above"),
                };
                self.shortage = Some(failure);
                self.counters.preparations_failed += 1;
                return leftover.map(|file| Task::Prepare { sequence, length, step: Step::Discard(file) });
            }
            (Step::Create, Ok(_)) => Step::Reserve,
            (Step::Reserve, Ok(_)) => Step::WriteZeros(0),
            (Step::WriteZeros(offset), Ok(_)) => match offset + zeros_at(offset, length) {
                end if end == length => {
                    self.counters.created += 1;
                    Step::WriteHeader
                }
                end => Step::WriteZeros(end),
            },
            (Step::RenameRecycled(_), Ok(_)) => Step::FlushRecycledName,
            (Step::FlushRecycledName, Ok(_)) => {
                self.counters.recycled += 1;
                Step::WriteHeader
            }
            (Step::WriteHeader, Ok(_)) => Step::FlushFile,
            (Step::FlushFile, Ok(_)) => Step::RenamePrepared,
            (Step::RenamePrepared, Ok(_)) => Step::FlushName,
            (Step::FlushName, Ok(_)) => {
                self.shortage = None;
                self.ready.push_back((sequence, length));
                return None;
            }
        };
        Some(Task::Prepare { sequence, length, step: next })
    }
}

/// Zeros written at once from there on, in a segment of that length.
fn zeros_at(offset: u64, length: u64) -> u64 {
    ZEROS_BYTES_MAX.min(length - offset)
}
