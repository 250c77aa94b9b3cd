//! The writer: parts of regions in any order go in, operations on one file come out.
//!
//! What is known at the begin, the lengths of all regions and the meta bytes, fixes every place in the file.
//! So its whole length is set aside before anything is written (a full disk is found then), parts are written
//! where they belong as they come, and the shards may be at different speeds. The tables are made at the
//! begin, too; each part fills in the checksums of its pages.
//!
//! Parts that follow each other gather in one aligned buffer. There are [`Settings::buffers`] of these and never
//! more: when all are on their way, [`SnapshotWriter::handle_part`] says [`Refused::Full`], and the caller has
//! operations completed first. Beside the buffers the writer holds the tables and a bit for each page, which
//! together are about a thousandth of the file.
//!
//! A caller that has parts in aligned buffers of its own, each a run of the file ([`SnapshotWriter::handle_run`]), saves the
//! copy. Such a buffer comes back when it is written ([`SnapshotWriter::take_returned`]).
//!
//! The order at the end is what makes the name a promise: every page, the tables and the trailer are written;
//! the file is flushed; the log is durable up to the last record any image has seen (or a crash of the log
//! would leave a state that never was); the file is renamed; the directory is flushed. Only then is the
//! snapshot complete, and may log before it be let go. A failure is never retried: the file is removed.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use wal::block::{BlockBuffer, PAGE_BYTES};
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Completion, Doing, Errno, OperationId};

use crate::format::{Header, LENGTH_LIMIT, PAGE, REGIONS_OFFSET, Trailer, region, tables};
use crate::names::SnapshotId;
use crate::operation::{Action, Failure, Operation};

/// A write that makes no progress so often has failed.
const STALLS_MAX: u32 = 3;

/// What can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a buffer, a multiple of 4096: the longest write.
    pub buffer_bytes: usize,
    /// Number of buffers.
    pub buffers: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { buffer_bytes: 256 << 10, buffers: 8 }
    }
}

/// A region of a shard's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionPlan {
    /// What the keyspace uses it for.
    pub kind: u32,
    /// Its number among the regions of that kind.
    pub number: u32,
    /// Its bytes: pages, and at least one.
    pub length: u64,
}

/// A shard's image, as known when it was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// All records up to this LSN are in it, and none after it.
    pub lsn: Lsn,
    /// All that the keyspace must know beside the regions.
    pub meta: Vec<u8>,
    /// Its regions, in the order in which parts name them.
    pub regions: Vec<RegionPlan>,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Random.
    pub uid: u64,
    /// The history the LSNs belong to.
    pub epoch: Epoch,
    /// Now, in microseconds since 1970.
    pub unix_us: u64,
    /// At least one.
    pub shards: Vec<ShardPlan>,
}

/// Why nothing can be written by a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPlan(pub String);

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for InvalidPlan {}

/// Why something was not taken. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All buffers are on their way: have operations completed, and come again.
    Full,
    /// The part is empty, does not consist of whole pages, is longer than a buffer or lies outside of the region.
    Misplaced,
    /// A page of it was there before.
    Twice,
    /// So many pages have not come yet.
    Incomplete(u64),
    /// The writer takes no more: it was finished, was abandoned or has failed.
    Ended,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Full => f.write_str("all buffers of the snapshot are being written"),
            Refused::Misplaced => {
                f.write_str("a part of a snapshot that does not consist of pages of its region")
            }
            Refused::Twice => f.write_str("a page of a snapshot came twice"),
            Refused::Incomplete(pages) => write!(f, "{pages} pages of the snapshot are missing"),
            Refused::Ended => f.write_str("the snapshot takes no more parts"),
        }
    }
}

/// What became of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is being written.
    Working,
    /// It is durable under its name.
    Complete,
    /// An operation failed.
    Failed(Failure),
    /// It was given up.
    Abandoned,
}

/// The one operation at a time that is not a write, and where the writer is by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Create,
    Reserve,
    Write,
    Flush,
    Rename,
    FlushDirectory,
    Delete,
    Ended,
}

#[derive(Debug)]
struct Write {
    offset: u64,
    buffer: BlockBuffer,
    start: usize,
    stalls: u32,
    /// The buffer is the caller's.
    is_lent: bool,
}

/// A part of a region that lies in a caller's buffer, behind the part before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPart {
    /// Which region.
    pub region: usize,
    /// Where in it.
    pub offset: u64,
    /// How many bytes, whole pages.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: OperationId,
    offset: u64,
    start: usize,
    length: usize,
    stalls: u32,
    is_lent: bool,
}

/// Where a region lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    length: u64,
    /// Where the checksum of its first page stands in the tables.
    checksums_at: usize,
}

/// Writes one snapshot.
#[derive(Debug)]
pub struct SnapshotWriter {
    id: SnapshotId,
    header: Header,
    settings: Settings,
    checksum: Checksum,
    seed: u32,
    places: Vec<Vec<Place>>,
    /// The tables; from [`SnapshotWriter::finish`] on with their padding and the trailer.
    tail: Vec<u8>,
    tail_offset: u64,
    tail_sent: usize,
    is_finished: bool,
    /// A bit for each page of all regions that has come.
    pages: Vec<u64>,
    pages_missing: u64,
    gathering: Option<(u64, BlockBuffer)>,
    queue: VecDeque<Write>,
    in_flight: Vec<InFlight>,
    pool: Vec<BlockBuffer>,
    /// Buffers of the caller that are not needed any more.
    returned: Vec<BlockBuffer>,
    buffers_made: usize,
    stage: Stage,
    /// The operation of the stage, if it was handed out.
    step: Option<OperationId>,
    operations: u64,
    durable_lsn: Lsn,
    bytes_written: u64,
    outcome: Outcome,
}

impl SnapshotWriter {
    /// Begins a snapshot. With it all places in the file are fixed.
    pub fn new(plan: &Plan, settings: Settings, checksum: Checksum) -> Result<SnapshotWriter, InvalidPlan> {
        let invalid = |text: String| Err(InvalidPlan(text));
        if settings.buffers == 0
            || settings.buffer_bytes == 0
            || !settings.buffer_bytes.is_multiple_of(PAGE_BYTES)
        {
            return invalid(format!("expected buffers of whole pages, found {settings:?}"));
        }
        let Ok(shards @ 1..) = u32::try_from(plan.shards.len()) else {
            return invalid(format!("expected 1 to {} shards, found {}", u32::MAX, plan.shards.len()));
        };
        let (mut tail, mut places) = (Vec::new(), Vec::with_capacity(plan.shards.len()));
        let mut end = REGIONS_OFFSET;
        for (number, shard) in plan.shards.iter().enumerate() {
            let begin = end;
            let mut seen = BTreeSet::new();
            for region in &shard.regions {
                let whole_pages = region.length > 0 && region.length.is_multiple_of(PAGE);
                let after = end.checked_add(region.length).filter(|&after| after < LENGTH_LIMIT / 2);
                match after {
                    Some(after) if whole_pages && seen.insert((region.kind, region.number)) => end = after,
                    _ => {
                        return invalid(format!(
                            "{region:?} of shard {number} is empty, too long, no pages or twice"
                        ));
                    }
                }
            }
            places.push(put_shard(&mut tail, shard, begin, (end - begin) / PAGE));
        }
        let length = end + (tail.len() as u64).next_multiple_of(PAGE) + PAGE;
        let lsns = plan.shards.iter().map(|shard| shard.lsn);
        let header = Header {
            uid: plan.uid,
            length,
            epoch: plan.epoch,
            lsn: lsns.clone().min().expect("there is a shard"),
            lsn_max: lsns.max().expect("there is a shard"),
            unix_us: plan.unix_us,
            shards,
        };
        let pages = (end - REGIONS_OFFSET) / PAGE;
        // The regions follow the header: it gathers with the first parts.
        let mut buffer = BlockBuffer::with_capacity(settings.buffer_bytes);
        buffer.append(&header.encode(checksum));
        Ok(SnapshotWriter {
            id: SnapshotId { epoch: header.epoch, lsn: header.lsn },
            seed: header.seed(checksum),
            header,
            settings,
            checksum,
            places,
            tail,
            tail_offset: end,
            tail_sent: 0,
            is_finished: false,
            pages: alloc::vec![0; pages.div_ceil(64) as usize],
            pages_missing: pages,
            gathering: Some((0, buffer)),
            queue: VecDeque::new(),
            in_flight: Vec::new(),
            pool: Vec::new(),
            returned: Vec::new(),
            buffers_made: 1,
            stage: Stage::Create,
            step: None,
            operations: 0,
            durable_lsn: Lsn::ZERO,
            bytes_written: 0,
            outcome: Outcome::Working,
        })
    }

    /// Which snapshot this is: the name of its file.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What its header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What became of it.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// True if no operation will come any more.
    pub fn is_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Bytes written so far, of [`Header::length`].
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// Takes a part of a region: whole pages, each once, in any order, not more than a buffer at a time.
    pub fn handle_part(
        &mut self,
        shard: usize,
        region: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        if self.is_finished || self.outcome != Outcome::Working {
            return Err(Refused::Ended);
        }
        if bytes.len() > self.settings.buffer_bytes {
            return Err(Refused::Misplaced);
        }
        let part = RunPart { region, offset, bytes: bytes.len() };
        let at = self.place(shard, part)?;
        self.gather(at, bytes)?;
        self.note(shard, part, bytes);
        Ok(())
    }

    /// Takes parts that lie one behind the other in a buffer, as they do in the file, and nothing else in it. Where
    /// something is wrong the buffer comes back at once; else by [`take_returned`](Self::take_returned). This is never
    /// [`Refused::Full`]: the caller's buffers are bounded by the caller.
    pub fn handle_run(
        &mut self,
        shard: usize,
        parts: &[RunPart],
        buffer: BlockBuffer,
    ) -> Result<(), (Refused, BlockBuffer)> {
        if self.is_finished || self.outcome != Outcome::Working {
            return Err((Refused::Ended, buffer));
        }
        let (mut offset, mut length) = (None, 0);
        for &part in parts {
            match self.place(shard, part) {
                Ok(at) if at == *offset.get_or_insert(at) + length as u64 => length += part.bytes,
                Ok(_) => return Err((Refused::Misplaced, buffer)),
                Err(refused) => return Err((refused, buffer)),
            }
        }
        let Some(offset) = offset.filter(|_| length == buffer.used()) else {
            return Err((Refused::Misplaced, buffer));
        };
        let mut rest = buffer.as_slice();
        for &part in parts {
            let (bytes, behind) = rest.split_at(part.bytes);
            self.note(shard, part, bytes);
            rest = behind;
        }
        self.queue.push_back(Write { offset, buffer, start: 0, stalls: 0, is_lent: true });
        Ok(())
    }

    /// The next buffer of the caller that is not needed any more.
    pub fn take_returned(&mut self) -> Option<BlockBuffer> {
        self.returned.pop()
    }

    /// Where a part belongs in the file.
    fn place(&self, shard: usize, part: RunPart) -> Result<u64, Refused> {
        let RunPart { region, offset, bytes } = part;
        let place = self.places.get(shard).and_then(|places| places.get(region)).copied();
        let end = offset.checked_add(bytes as u64);
        let place = place.filter(|place| {
            bytes > 0
                && bytes.is_multiple_of(PAGE_BYTES)
                && offset.is_multiple_of(PAGE)
                && end.is_some_and(|end| end <= place.length)
        });
        let Some(place) = place else { return Err(Refused::Misplaced) };
        let at = place.offset + offset;
        let first = ((at - REGIONS_OFFSET) / PAGE) as usize;
        let mut numbers = first..first + bytes / PAGE_BYTES;
        if numbers.any(|page| self.pages[page / 64] >> (page % 64) & 1 == 1) {
            return Err(Refused::Twice);
        }
        Ok(at)
    }

    /// A part that has its place has come.
    fn note(&mut self, shard: usize, part: RunPart, bytes: &[u8]) {
        let place = self.places[shard][part.region];
        let first = ((place.offset + part.offset - REGIONS_OFFSET) / PAGE) as usize;
        for page in first..first + bytes.len() / PAGE_BYTES {
            self.pages[page / 64] |= 1 << (page % 64);
            self.pages_missing -= 1;
        }
        let checksums_at = place.checksums_at + (part.offset / PAGE) as usize * tables::CHECKSUM_BYTES;
        let cells = self.tail[checksums_at..].chunks_exact_mut(tables::CHECKSUM_BYTES);
        for (page, cell) in bytes.chunks_exact(PAGE_BYTES).zip(cells) {
            cell.copy_from_slice(&self.checksum.continued(self.seed, page).to_le_bytes());
        }
    }

    /// All parts have come: the tables, the trailer and what makes them durable follow.
    pub fn finish(&mut self) -> Result<(), Refused> {
        if self.is_finished || self.outcome != Outcome::Working {
            return Err(Refused::Ended);
        }
        if self.pages_missing > 0 {
            return Err(Refused::Incomplete(self.pages_missing));
        }
        let tables_length = self.tail.len();
        self.tail.resize(tables_length.next_multiple_of(PAGE_BYTES), 0);
        let trailer = Trailer {
            tables_crc: self.checksum.continued(self.seed, &self.tail),
            tables_offset: self.tail_offset,
            tables_length: tables_length as u64,
        };
        self.tail.extend_from_slice(&trailer.encode(&self.header, self.checksum));
        assert_eq!(self.tail_offset + self.tail.len() as u64, self.header.length);
        self.is_finished = true;
        Ok(())
    }

    /// The log is durable up to here. The file gets its name when that is [`Header::lsn_max`] at least: images
    /// may have seen records that the log has not, and a start from them would then be ahead of the log.
    pub fn handle_durable(&mut self, lsn: Lsn) {
        self.durable_lsn = self.durable_lsn.max(lsn);
    }

    /// Gives it up and has the file removed. Once it is being renamed it is too late, and nothing happens.
    pub fn abandon(&mut self) {
        let is_renaming = self.stage == Stage::Rename && self.step.is_some();
        if self.outcome == Outcome::Working && !is_renaming && self.stage != Stage::FlushDirectory {
            self.end(Outcome::Abandoned);
        }
    }

    /// What to do next. `None`: operations have to complete, more parts or [`SnapshotWriter::handle_durable`]
    /// have to come first, or all is done.
    pub fn poll_operation(&mut self) -> Option<Operation> {
        if self.step.is_some() {
            return None;
        }
        if self.stage == Stage::Write
            && let Some(operation) = self.poll_write()
        {
            return Some(operation);
        }
        let is_written = self.is_finished
            && self.tail_sent == self.tail.len()
            && self.gathering.is_none()
            && self.queue.is_empty()
            && self.in_flight.is_empty();
        if self.stage == Stage::Write && is_written {
            assert_eq!(self.bytes_written, self.header.length);
            self.stage = Stage::Flush;
        }
        let action = match self.stage {
            Stage::Create => Action::Create,
            Stage::Reserve => Action::Reserve { length: self.header.length },
            Stage::Flush => Action::Flush,
            Stage::Rename if self.durable_lsn >= self.header.lsn_max => Action::Rename,
            Stage::FlushDirectory => Action::FlushDirectory,
            // Writes go on in the file until they are done.
            Stage::Delete if self.in_flight.is_empty() => Action::Delete,
            Stage::Write | Stage::Rename | Stage::Delete | Stage::Ended => return None,
        };
        let id = self.next_id();
        self.step = Some(id);
        Some(Operation { id, action })
    }

    /// Takes what became of an operation.
    pub fn handle_completion(&mut self, completion: Completion) {
        if self.step == Some(completion.id) {
            self.step = None;
            return self.after_step(completion.result.err());
        }
        let index = self.in_flight.iter().position(|write| write.id == completion.id);
        let Some(index) = index else {
            panic!("a completion of {:?}, which is not in flight", completion.id)
        };
        let InFlight { offset, start, length, stalls, is_lent, .. } = self.in_flight.swap_remove(index);
        let buffer = completion.buffer.expect("a write returns its buffer");
        let at = offset + start as u64;
        let errno = match completion.result {
            Ok(written) => {
                assert!(written <= length - start, "{written} bytes written of {}", length - start);
                // Whole pages only, because the rest must be aligned as well.
                let pages = written / PAGE_BYTES * PAGE_BYTES;
                self.bytes_written += pages as u64;
                if start + pages == length || self.outcome != Outcome::Working {
                    return self.give_buffer(buffer, is_lent);
                }
                let stalls = if pages > 0 { 0 } else { stalls + 1 };
                if stalls < STALLS_MAX {
                    let start = start + pages;
                    return self.queue.push_front(Write { offset, buffer, start, stalls, is_lent });
                }
                Errno::EIO
            }
            Err(errno) => errno,
        };
        self.give_buffer(buffer, is_lent);
        self.fail(Doing::Writing, at, errno);
    }

    fn after_step(&mut self, errno: Option<Errno>) {
        let stage = self.stage;
        if let Some(errno) = errno {
            let doing = match stage {
                Stage::Create => Doing::Creating,
                Stage::Reserve => Doing::Preallocating,
                Stage::Flush => Doing::Flushing,
                Stage::Rename => Doing::Renaming,
                Stage::FlushDirectory => Doing::FlushingDirectory,
                // What cannot be removed is removed by the next start.
                Stage::Delete => return self.stage = Stage::Ended,
                Stage::Write | Stage::Ended => unreachable!("nothing but writes is asked for then"),
            };
            self.fail(doing, 0, errno);
            // Nothing was created; or the file has its name, is whole and may be used, but nobody may count on it.
            let is_ended = matches!(stage, Stage::Create | Stage::FlushDirectory);
            self.stage = if is_ended { Stage::Ended } else { Stage::Delete };
            return;
        }
        self.stage = match stage {
            // Given up meanwhile.
            _ if self.outcome != Outcome::Working && stage != Stage::Delete => Stage::Delete,
            Stage::Create => Stage::Reserve,
            Stage::Reserve => Stage::Write,
            Stage::Flush => Stage::Rename,
            Stage::Rename => Stage::FlushDirectory,
            Stage::FlushDirectory => {
                self.outcome = Outcome::Complete;
                Stage::Ended
            }
            Stage::Delete => Stage::Ended,
            Stage::Write | Stage::Ended => unreachable!("nothing but writes is asked for then"),
        };
    }

    fn fail(&mut self, doing: Doing, offset: u64, errno: Errno) {
        if self.outcome == Outcome::Working {
            self.end(Outcome::Failed(Failure { doing, id: self.id, offset, errno }));
        }
    }

    /// Nothing more is written. The file goes when what is on its way has come back.
    fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.gathering = None;
        self.queue.clear();
        self.pool.clear();
        self.tail = Vec::new();
        self.tail_sent = 0;
        // A file that nobody created is not removed; a step on its way decides when it comes back.
        if self.step.is_none() {
            self.stage = if self.stage == Stage::Create { Stage::Ended } else { Stage::Delete };
        }
    }

    fn next_id(&mut self) -> OperationId {
        self.operations += 1;
        OperationId(self.operations)
    }

    fn take_buffer(&mut self) -> Option<BlockBuffer> {
        let mut buffer = self.pool.pop().or_else(|| {
            let buffer = (self.buffers_made < self.settings.buffers)
                .then(|| BlockBuffer::with_capacity(self.settings.buffer_bytes));
            self.buffers_made += usize::from(buffer.is_some());
            buffer
        })?;
        buffer.clear();
        Some(buffer)
    }

    fn give_buffer(&mut self, buffer: BlockBuffer, is_lent: bool) {
        if is_lent { self.returned.push(buffer) } else { self.pool.push(buffer) }
    }

    fn send_gathered(&mut self) {
        if let Some((offset, buffer)) = self.gathering.take() {
            self.queue.push_back(Write { offset, buffer, start: 0, stalls: 0, is_lent: false });
        }
    }

    /// Puts bytes behind those that gather, or begins to gather anew.
    fn gather(&mut self, at: u64, bytes: &[u8]) -> Result<(), Refused> {
        let room = match &self.gathering {
            Some((offset, buffer)) if offset + buffer.used() as u64 == at => {
                buffer.capacity() - buffer.used()
            }
            _ => 0,
        };
        let (now, later) = bytes.split_at(bytes.len().min(room));
        let next = if later.is_empty() {
            None
        } else {
            let Some(buffer) = self.take_buffer() else {
                // What gathers is sent even so: with one buffer nothing else would ever free it.
                self.send_gathered();
                return Err(Refused::Full);
            };
            Some(buffer)
        };
        if let Some((_, buffer)) = &mut self.gathering {
            buffer.append(now);
            if buffer.used() == buffer.capacity() {
                self.send_gathered();
            }
        }
        if let Some(mut buffer) = next {
            self.send_gathered();
            buffer.append(later);
            self.gathering = Some((at + now.len() as u64, buffer));
        }
        Ok(())
    }

    fn poll_write(&mut self) -> Option<Operation> {
        if self.is_finished {
            self.send_gathered();
        }
        if self.queue.is_empty() && self.is_finished && self.tail_sent < self.tail.len() {
            let mut buffer = self.take_buffer()?;
            let length = (self.tail.len() - self.tail_sent).min(self.settings.buffer_bytes);
            buffer.append(&self.tail[self.tail_sent..][..length]);
            let offset = self.tail_offset + self.tail_sent as u64;
            self.tail_sent += length;
            self.queue.push_back(Write { offset, buffer, start: 0, stalls: 0, is_lent: false });
        }
        let Write { offset, buffer, start, stalls, is_lent } = self.queue.pop_front()?;
        let id = self.next_id();
        let length = buffer.as_slice().len();
        self.in_flight.push(InFlight { id, offset, start, length, stalls, is_lent });
        Some(Operation { id, action: Action::Write { offset: offset + start as u64, buffer, start } })
    }
}

/// Appends a shard's tables, its checksums still zeros, and says where its regions lie.
fn put_shard(tail: &mut Vec<u8>, shard: &ShardPlan, begin: u64, pages: u64) -> Vec<Place> {
    let mut head = [0; tables::HEAD_BYTES];
    tables::LSN.put(&mut head, &shard.lsn.0.to_le_bytes());
    tables::META_LENGTH.put(&mut head, &(shard.meta.len() as u64).to_le_bytes());
    tables::REGIONS.put(&mut head, &(shard.regions.len() as u64).to_le_bytes());
    tables::PAGES.put(&mut head, &pages.to_le_bytes());
    tail.extend_from_slice(&head);
    let mut checksums_at = tail.len() + shard.regions.len() * region::BYTES;
    let (mut places, mut offset) = (Vec::with_capacity(shard.regions.len()), begin);
    for plan in &shard.regions {
        let mut row = [0; region::BYTES];
        region::KIND.put(&mut row, &plan.kind.to_le_bytes());
        region::NUMBER.put(&mut row, &plan.number.to_le_bytes());
        region::OFFSET.put(&mut row, &offset.to_le_bytes());
        region::LENGTH.put(&mut row, &plan.length.to_le_bytes());
        tail.extend_from_slice(&row);
        places.push(Place { offset, length: plan.length, checksums_at });
        offset += plan.length;
        checksums_at += (plan.length / PAGE) as usize * tables::CHECKSUM_BYTES;
    }
    tail.resize(checksums_at, 0);
    tail.extend_from_slice(&shard.meta);
    tail.resize(tail.len().next_multiple_of(tables::ALIGNMENT), 0);
    places
}
