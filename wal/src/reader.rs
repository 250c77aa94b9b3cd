//! Recovery: the records of a log in order, where it ends, and why there.
//!
//! [`LogReader`] is given the first bytes of every segment, then the chunks it asks for, and hands out
//! records. The question it has to answer is what a block that is not valid means: a write that a crash
//! interrupted, which nobody was told of and which is cut; or damage to what had been acknowledged, which is
//! refused. Each block says up to where the log was durable when it was written, so any later block that is
//! valid decides it:
//!
//! | at the place where LSN *e* should follow | behind it | meaning |
//! |---|---|---|
//! | no valid block | a later segment begins with *e* | the end of this segment: the log went on in the next |
//! | no valid block | a later segment begins after *e* | records are missing: **refused** |
//! | no valid block | a later segment begins before *e* | records are there twice: **refused** |
//! | no valid block | no later segment has begun, and a valid block says that *e*, or that place, was durable | damage: **refused** |
//! | no valid block | nothing says so | a torn tail, or nothing was written there: **cut**, and said |
//! | a valid block with another LSN | – | no writer does that: **refused** |
//! | a file with a segment's name, but without a valid header or its full length | – | damage: **refused** |
//!
//! Whoever opens a log flushes its files before believing what was read: it may be in the page cache only.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::block::{BLOCK_HEADER_BYTES, BlockHeader, PAGE_BYTES, flags};
use crate::checksum::Checksum;
use crate::damage::{Damage, DamageKind};
pub use crate::end_of_log::{EndOfLog, Found, Tail};
use crate::lsn::{Epoch, Lsn};
use crate::record::{FRAME_BYTES, Record, frame};
use crate::segment::{
    FIRST_BLOCK_OFFSET, FileName, InvalidHeader, SEGMENT_MAGIC, SegmentHeader, Sequence, VERSION,
};
use crate::spares::KnownSegment;

/// How many bytes from the start of each segment [`LogReader::open`] wants to see.
pub const HEAD_BYTES: usize = 2 * PAGE_BYTES;

/// Bytes read at once behind the end of a log.
const SCAN_BYTES: usize = 256 << 10;
/// Bytes of which the heads of pages are read at once.
const HEADS_BYTES: usize = 4 << 20;
/// Bytes read at once at first, twice as many each time: what is wanted may be a few records, or all of a long log.
const FIRST_CHUNK_BYTES: usize = 128 << 10;

/// A file with a segment's name.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFile<'a> {
    /// The number in its name.
    pub sequence: Sequence,
    /// Bytes of the file.
    pub length: u64,
    /// Its first [`HEAD_BYTES`] bytes, or all if it is shorter.
    pub head: &'a [u8],
}

/// Where to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// At the end of the log.
    End,
    /// After this record, whatever follows. Up to its durable LSN a log may be read while it is being
    /// written.
    Lsn(Lsn),
    /// Before the first record of a later time, in microseconds since 1970.
    UnixMicros(u64),
}

/// What to read, and how.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// The first record wanted: the one after those that a snapshot holds.
    pub from: Lsn,
    /// Where to stop.
    pub until: Until,
    /// What is known from elsewhere to have been durable: a log that ends before it is damaged.
    pub durable_at_least: Lsn,
    /// Bytes to read at once; more where a block is longer.
    pub chunk_bytes: usize,
    /// Requests may be [`heads_only`](ReadRequest::heads_only).
    pub may_read_heads: bool,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        let (from, until) = (Lsn::FIRST, Until::End);
        let (durable_at_least, may_read_heads) = (Lsn::ZERO, false);
        ReadOptions { from, until, durable_at_least, chunk_bytes: 4 << 20, may_read_heads }
    }
}

/// Bytes wanted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Of this segment.
    pub sequence: Sequence,
    /// From here on; a multiple of 4096.
    pub offset: u64,
    /// So many; a multiple of 4096, and never beyond the end of the file.
    pub length: usize,
    /// Of each 4096 of them only the first [`BLOCK_HEADER_BYTES`] are wanted, one behind the other: where blocks are looked for,
    /// and where they hold nothing that is wanted. Only if [`ReadOptions::may_read_heads`].
    pub heads_only: bool,
}

impl ReadRequest {
    /// Bytes that are to be handed in.
    pub fn bytes(&self) -> usize {
        if self.heads_only { self.length / PAGE_BYTES * BLOCK_HEADER_BYTES } else { self.length }
    }
}

#[derive(Debug)]
struct Segment {
    header: SegmentHeader,
    seed: u32,
    /// Its first block's header, if it is valid.
    first: Option<BlockHeader>,
    /// Something stands where that block should.
    has_bytes: bool,
    /// Records from here on belong to a history that a later segment's epoch replaced.
    ceiling: Lsn,
}

impl Segment {
    fn file(&self) -> FileName {
        FileName::Segment(self.header.sequence)
    }

    /// Its first block goes on with a record of the segment before.
    fn begins_within(&self) -> bool {
        self.first.is_some_and(|first| first.has(flags::CONTINUED))
    }

    /// The LSN it begins with, if it has begun and counts.
    fn first_lsn(&self) -> Option<Lsn> {
        self.first.map(|first| first.first_lsn).filter(|&first| first < self.ceiling)
    }
}

/// A block that is being read.
#[derive(Clone, Copy, Debug)]
struct OpenBlock {
    header: BlockHeader,
    /// The next frame, and the end of the last, in the chunk.
    at: usize,
    end: usize,
    frames_left: u32,
}

/// Where the payload of the record found is.
enum Payload {
    InChunk(Range<usize>),
    /// Gathered from several blocks.
    Joined,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Blocks,
    /// The log may end at this segment and offset; looking for a block that says it must not.
    Scanning {
        end_index: usize,
        end_offset: u64,
        found: Found,
        blocks_after: u64,
    },
    Ended,
}

/// Reads a log. After an error nothing that was read may be served.
#[derive(Debug)]
pub struct LogReader {
    options: ReadOptions,
    checksum: Checksum,
    segments: Vec<Segment>,
    state: State,
    /// Where reading stands.
    index: usize,
    offset: u64,
    /// The next record, and whether its beginning has been read.
    expected: Lsn,
    is_within: bool,
    is_closed: bool,
    /// How much is read next.
    chunk_bytes: usize,
    chunk: Vec<u8>,
    chunk_offset: u64,
    /// The segment of the chunk; none before the first read.
    chunk_index: usize,
    /// It has the heads of pages only.
    chunk_is_heads: bool,
    /// Blocks are passed over by their heads: until one has to be read.
    may_skip: bool,
    wanted: Option<ReadRequest>,
    block: Option<OpenBlock>,
    joined: Vec<u8>,
    joined_unix_us: u64,
    last_unix_us: u64,
    records: u64,
    payload_bytes: u64,
    blocks: u64,
    bytes_read: u64,
    end: Option<EndOfLog>,
    damage: Option<Damage>,
}

impl LogReader {
    /// Looks at the segments' headers and finds where to begin. The files may come in any order.
    pub fn open(
        files: &[SegmentFile<'_>],
        options: ReadOptions,
        checksum: Checksum,
    ) -> Result<LogReader, Damage> {
        assert!(options.from >= Lsn::FIRST && options.chunk_bytes > 0, "{options:?}");
        let mut files = files.to_vec();
        files.sort_by_key(|file| file.sequence);
        let mut segments: Vec<Segment> = Vec::with_capacity(files.len());
        for file in &files {
            let segment = open_segment(file, options.from, checksum)?;
            if let Some(before) = segments.last() {
                check_order(before, &segment, options.from)?;
            }
            segments.push(segment);
        }
        let mut ceiling = Lsn::MAX;
        for index in (0..segments.len()).rev() {
            if let Some(later) = segments.get(index + 1)
                && later.header.epoch > segments[index].header.epoch
            {
                ceiling = ceiling.min(later.header.epoch_first_lsn);
            }
            segments[index].ceiling = ceiling;
        }
        let mut reader = LogReader {
            options,
            checksum,
            segments,
            state: State::Blocks,
            index: 0,
            offset: FIRST_BLOCK_OFFSET,
            expected: options.from,
            is_within: false,
            is_closed: false,
            chunk_bytes: options.chunk_bytes.min(FIRST_CHUNK_BYTES),
            chunk: Vec::new(),
            chunk_offset: 0,
            chunk_index: usize::MAX,
            chunk_is_heads: false,
            may_skip: options.may_read_heads,
            wanted: None,
            block: None,
            joined: Vec::new(),
            joined_unix_us: 0,
            last_unix_us: 0,
            records: 0,
            payload_bytes: 0,
            blocks: 0,
            bytes_read: 0,
            end: None,
            damage: None,
        };
        reader.begin()?;
        Ok(reader)
    }

    /// Finds the segment that holds the first record wanted.
    fn begin(&mut self) -> Result<(), Damage> {
        let from = self.options.from;
        let holds = |segment: &Segment| {
            segment.first_lsn().is_some_and(|first| first < from || first == from && !segment.begins_within())
        };
        if let Some(index) = self.segments.iter().rposition(holds) {
            let first = self.segments[index].first.expect("it holds records");
            self.index = index;
            self.expected = first.first_lsn;
            // The beginning of that record is in the segment before, but nobody wants it.
            self.is_within = first.has(flags::CONTINUED);
            return Ok(());
        }
        if let Some(index) = self.segments.iter().position(|segment| segment.first_lsn().is_some()) {
            let first = self.segments[index].first_lsn().expect("just seen");
            // If a segment before it holds bytes that are no block, it is that one that is damaged.
            let damaged = self.segments[..index].iter().find(|segment| segment.has_bytes);
            let (file, expected) = match damaged {
                Some(segment) => (segment.file(), format!("a block that begins with LSN {from}")),
                None => (self.segments[index].file(), format!("a segment that holds LSN {from}")),
            };
            let found = format!("that the log begins with LSN {first} in {}", self.segments[index].file());
            let (kind, offset) = (DamageKind::Gap, FIRST_BLOCK_OFFSET);
            return Err(Damage { kind, file, offset, expected, found, intact_before: from });
        }
        Ok(())
    }

    /// The bytes wanted next; `None` once reading has ended.
    pub fn poll_read(&self) -> Option<ReadRequest> {
        self.wanted
    }

    /// Takes the bytes wanted, and gives the memory of the last ones back to be used again.
    pub fn handle_read(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let request = self.wanted.take().expect("bytes were wanted");
        self.bytes_read += bytes.len() as u64;
        if bytes.len() != request.bytes() {
            let found =
                if request.heads_only { bytes.len() / BLOCK_HEADER_BYTES * PAGE_BYTES } else { bytes.len() };
            self.damage = Some(Damage {
                kind: DamageKind::Length,
                file: FileName::Segment(request.sequence),
                offset: request.offset + found as u64,
                expected: format!("{} bytes at offset {}", request.length, request.offset),
                found: format!("{found} bytes"),
                intact_before: self.expected,
            });
        }
        self.chunk_index = self.index;
        self.chunk_offset = request.offset;
        self.chunk_is_heads = request.heads_only;
        core::mem::replace(&mut self.chunk, bytes)
    }

    /// The next record. `None` if bytes are wanted first ([`LogReader::poll_read`]), or after the end.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Damage> {
        match self.find_record() {
            Err(damage) => {
                self.damage = Some(damage.clone());
                self.block = None;
                self.state = State::Ended;
                Err(damage)
            }
            Ok(None) => Ok(None),
            Ok(Some((lsn, unix_us, payload))) => {
                let payload = match payload {
                    Payload::InChunk(range) => &self.chunk[range],
                    Payload::Joined => &self.joined,
                };
                self.records += 1;
                self.payload_bytes += payload.len() as u64;
                Ok(Some(Record { lsn, unix_us, payload }))
            }
        }
    }

    /// Where and why the log ends, once it has been read.
    pub fn end(&self) -> Option<&EndOfLog> {
        self.end.as_ref()
    }

    /// After damage: the log as it would be if it were cut there. What follows is lost by that, so it is for
    /// a person to decide.
    pub fn cut_at_damage(&self) -> Option<EndOfLog> {
        let damage = self.damage.clone()?;
        Some(self.make_end(self.index, self.offset, Tail::CutAtDamage(damage)))
    }

    /// How far reading is, in bytes of segments, for a progress display: done and in total.
    pub fn progress(&self) -> (u64, u64) {
        let length = |segments: &[Segment]| segments.iter().map(|segment| segment.header.length).sum::<u64>();
        let total = length(&self.segments);
        match self.state {
            State::Ended => (total, total),
            _ => (length(&self.segments[..self.index.min(self.segments.len())]) + self.offset, total),
        }
    }

    fn find_record(&mut self) -> Result<Option<(Lsn, u64, Payload)>, Damage> {
        loop {
            if let Some(damage) = &self.damage {
                return Err(damage.clone());
            }
            match self.state {
                State::Ended => return Ok(None),
                State::Blocks if self.block.is_some() => {
                    if let Some(found) = self.next_frame()? {
                        return Ok(Some(found));
                    }
                }
                State::Blocks => {
                    if !self.next_block()? {
                        return Ok(None);
                    }
                }
                State::Scanning { .. } => {
                    if !self.scan()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// One frame of the open block: a record, or nothing yet.
    fn next_frame(&mut self) -> Result<Option<(Lsn, u64, Payload)>, Damage> {
        let mut block = self.block.expect("a block is open");
        if block.frames_left == 0 {
            if block.at != block.end {
                return Err(self.inconsistent("a block that ends with its last frame", "more bytes"));
            }
            self.block = None;
            return Ok(None);
        }
        let lsn = self.expected;
        // Decided before anything of the record is kept: it may be longer than what is wanted.
        let unix_us = match self.chunk[..block.end].get(block.at..block.at + FRAME_BYTES) {
            Some(bytes) => block.header.unix_us.saturating_add(u64::from(frame::DELAY.u32(bytes))),
            None => return Err(self.inconsistent("a frame", "the end of the block")),
        };
        let start = block.at + FRAME_BYTES;
        let length = frame::LENGTH.u32(&self.chunk[block.at..]) as usize;
        let Some(end) = start.checked_add(length).filter(|&end| end <= block.end) else {
            return Err(self.inconsistent("a frame that fits its block", "a longer one"));
        };
        if lsn >= self.segments[self.index].ceiling {
            self.block = None;
            self.leave_segment(None)?;
            return Ok(None);
        }
        let is_past = match self.options.until {
            Until::End => false,
            Until::Lsn(last) => lsn > last,
            Until::UnixMicros(last) => unix_us > last && lsn >= self.options.from && !self.is_within,
        };
        if is_past {
            self.block = None;
            self.finish(self.index, block.header.offset, Tail::Until)?;
            return Ok(None);
        }
        block.at = end;
        block.frames_left -= 1;
        self.block = Some(block);
        let goes_on = block.frames_left == 0 && block.header.has(flags::CONTINUES);
        let payload = if self.is_within || goes_on {
            if !self.is_within {
                self.joined.clear();
                self.joined_unix_us = unix_us;
            }
            self.joined.extend_from_slice(&self.chunk[start..end]);
            Payload::Joined
        } else {
            Payload::InChunk(start..end)
        };
        let unix_us = if self.is_within { self.joined_unix_us } else { unix_us };
        self.is_within = goes_on;
        if goes_on {
            return Ok(None);
        }
        self.expected = lsn.next();
        self.last_unix_us = self.last_unix_us.max(unix_us);
        Ok((lsn >= self.options.from).then_some((lsn, unix_us, payload)))
    }

    /// Opens the next block, or leaves the segment. False if bytes are wanted first.
    fn next_block(&mut self) -> Result<bool, Damage> {
        let Some(segment) = self.segments.get(self.index) else {
            self.finish(0, 0, Tail::Open { found: Found::EndOfSegment, blocks_after: 0 })?;
            return Ok(true);
        };
        // Without a look at what follows: a log that is being written can be read up to what is durable.
        if matches!(self.options.until, Until::Lsn(last) if self.expected > last) {
            self.finish(self.index, self.offset, Tail::Until)?;
            return Ok(true);
        }
        let (length, seed) = (segment.header.length, segment.seed);
        if self.offset == length {
            self.leave_segment(Some(Found::EndOfSegment))?;
            return Ok(true);
        }
        match self.skip_block() {
            None => return Ok(false),
            Some(true) => return Ok(true),
            Some(false) => {}
        }
        let Some(start) = self.in_chunk(PAGE_BYTES) else { return Ok(false) };
        let page = &self.chunk[start..start + PAGE_BYTES];
        let Some(header) = BlockHeader::decode(page, self.offset, seed, self.checksum) else {
            let is_empty = page.iter().all(|&byte| byte == 0);
            self.leave_segment(Some(if is_empty { Found::Zeros } else { Found::OtherBytes }))?;
            return Ok(true);
        };
        if u64::from(header.length) > length - self.offset {
            return Err(self.inconsistent("a block that fits its segment", "a longer one"));
        }
        let Some(start) = self.in_chunk(header.length as usize) else { return Ok(false) };
        let block = &self.chunk[start..start + header.length as usize];
        if self.checksum.continued(seed, &block[BLOCK_HEADER_BYTES..]) != header.body_crc {
            let BlockHeader { first_lsn, count, length, .. } = header;
            self.leave_segment(Some(Found::TornBlock { first_lsn, count, length }))?;
            return Ok(true);
        }
        // The log was cut within a record and went on in this segment with another in its place.
        let is_afresh = self.is_within && self.offset == FIRST_BLOCK_OFFSET && !header.has(flags::CONTINUED);
        if is_afresh {
            self.is_within = false;
        }
        // A block without frames stands between records, never within one.
        let continues_rightly = header.has(flags::CONTINUED) == self.is_within;
        if header.first_lsn != self.expected || !continues_rightly {
            let within = if self.is_within { "the rest of LSN" } else { "LSN" };
            let expected = format!("a block that begins with {within} {}", self.expected);
            let rest = if header.has(flags::CONTINUED) { "the rest of " } else { "" };
            return Err(self.inconsistent(
                &expected,
                &format!("a valid block that begins with {rest}LSN {}", header.first_lsn),
            ));
        }
        self.blocks += 1;
        self.is_closed = header.has(flags::CLOSED);
        let (at, end) = (start + BLOCK_HEADER_BYTES, start + header.used as usize);
        self.block = Some(OpenBlock { header, at, end, frames_left: header.count });
        self.offset += u64::from(header.length);
        Ok(true)
    }

    /// Where in the chunk the bytes at the current offset stand; wants them if they are not there.
    fn in_chunk(&mut self, bytes: usize) -> Option<usize> {
        if self.chunk_index == self.index && !self.chunk_is_heads && self.offset >= self.chunk_offset {
            let start = (self.offset - self.chunk_offset) as usize;
            if start + bytes <= self.chunk.len() {
                return Some(start);
            }
        }
        let header = &self.segments[self.index].header;
        // Looking for a block behind the end reads a whole segment that is mostly zeros, at every start. What fits into the
        // nearest cache is copied there several times as fast.
        let most = match self.state {
            State::Scanning { .. } => SCAN_BYTES,
            _ => usize::MAX,
        };
        let chunk = self.chunk_bytes.min(most).next_multiple_of(PAGE_BYTES).max(bytes) as u64;
        let length = chunk.min(header.length - self.offset) as usize;
        self.chunk_bytes = (2 * self.chunk_bytes).min(self.options.chunk_bytes);
        let (sequence, offset) = (header.sequence, self.offset);
        self.wanted = Some(ReadRequest { sequence, offset, length, heads_only: false });
        None
    }

    /// Where in the chunk the head of the page at the current offset stands; wants it if it is not there.
    fn head_in_chunk(&mut self) -> Option<usize> {
        if !self.options.may_read_heads {
            return self.in_chunk(PAGE_BYTES);
        }
        if self.chunk_index == self.index && self.chunk_is_heads && self.offset >= self.chunk_offset {
            let start = ((self.offset - self.chunk_offset) / PAGE_BYTES as u64) as usize * BLOCK_HEADER_BYTES;
            if start + BLOCK_HEADER_BYTES <= self.chunk.len() {
                return Some(start);
            }
        }
        let header = &self.segments[self.index].header;
        let (sequence, offset) = (header.sequence, self.offset);
        let length = (HEADS_BYTES as u64).min(header.length - offset) as usize;
        self.wanted = Some(ReadRequest { sequence, offset, length, heads_only: true });
        None
    }

    /// Goes on behind a block that a snapshot holds all of: by its head alone. The one with the record before the first that is
    /// wanted is read, for its time. `None`: bytes are wanted first; false: this one and those behind it are to be read.
    fn skip_block(&mut self) -> Option<bool> {
        if self.may_skip && self.expected < self.options.from {
            let start = self.head_in_chunk()?;
            let Segment { header: SegmentHeader { length, .. }, seed, ceiling, .. } =
                self.segments[self.index];
            let head = BlockHeader::decode(&self.chunk[start..], self.offset, seed, self.checksum);
            let is_plain = |block: &BlockHeader| {
                block.first_lsn == self.expected
                    && !self.is_within
                    && !block.has(flags::CONTINUED)
                    && !block.has(flags::CONTINUES)
                    && u64::from(block.length) <= length - self.offset
            };
            if let Some(block) = head.filter(is_plain)
                && let behind = block.first_lsn.plus(u64::from(block.count))
                && behind < self.options.from
                && behind <= ceiling
            {
                self.blocks += 1;
                self.is_closed = block.has(flags::CLOSED);
                self.expected = behind;
                self.offset += u64::from(block.length);
                return Some(true);
            }
        }
        self.may_skip = false;
        Some(false)
    }

    /// No block follows here (`found` says what does, or that a later epoch begins): the next segment goes
    /// on, or the log ends, or it is damaged.
    fn leave_segment(&mut self, found: Option<Found>) -> Result<(), Damage> {
        let next =
            (self.index + 1..self.segments.len()).find(|&index| self.segments[index].first_lsn().is_some());
        let Some(next) = next else {
            let (end_index, end_offset) = (self.index, self.offset);
            match found {
                Some(found) if !self.is_closed && found != Found::EndOfSegment => {
                    self.offset += PAGE_BYTES as u64;
                    self.state = State::Scanning { end_index, end_offset, found, blocks_after: 0 };
                }
                // Nothing can follow in this segment that would say anything.
                _ => {
                    let epoch = self.segments[self.index].header.epoch;
                    let is_later = |segment: &Segment| found.is_some() || segment.header.epoch > epoch;
                    let later =
                        (self.index + 1..self.segments.len()).find(|&at| is_later(&self.segments[at]));
                    self.index = later.unwrap_or(self.segments.len());
                    self.offset = FIRST_BLOCK_OFFSET;
                    let found = found.unwrap_or(Found::EndOfSegment);
                    self.state = State::Scanning { end_index, end_offset, found, blocks_after: 0 };
                }
            }
            return Ok(());
        };
        let first = self.segments[next].first_lsn().expect("just seen");
        let file = self.segments[next].file();
        if first != self.expected {
            let (kind, missing) = if first > self.expected {
                (
                    DamageKind::Gap,
                    format!("the records up to LSN {}, after which {file} begins", first.previous()),
                )
            } else {
                (DamageKind::Duplicate, format!("{file} to begin with LSN {}", self.expected))
            };
            let found = match (kind, found) {
                (DamageKind::Gap, Some(found)) => format!("{found}"),
                (DamageKind::Gap, None) => String::from("the end of its epoch"),
                _ => format!("that it begins with LSN {first} again"),
            };
            return Err(self.damaged(kind, missing, found));
        }
        self.index = next;
        self.offset = FIRST_BLOCK_OFFSET;
        self.is_closed = false;
        Ok(())
    }

    /// Looks at one page behind the end for a block that says that the log went on. False if bytes are wanted
    /// first.
    fn scan(&mut self) -> Result<bool, Damage> {
        let State::Scanning { end_index, end_offset, found, blocks_after } = self.state else {
            unreachable!("only called while scanning")
        };
        let Some(segment) = self.segments.get(self.index) else {
            let tail = match self.is_closed {
                true => Tail::Closed,
                false => Tail::Open { found, blocks_after },
            };
            self.finish(end_index, end_offset, tail)?;
            return Ok(true);
        };
        let (length, seed, file) = (segment.header.length, segment.seed, segment.file());
        // What a snapshot holds may be missing, and a history that a later epoch took over from here on says nothing of what is.
        let wanted = self.expected.max(self.options.from);
        if self.offset == length || segment.ceiling <= wanted {
            self.index += 1;
            self.offset = FIRST_BLOCK_OFFSET;
            return Ok(true);
        }
        let Some(start) = self.head_in_chunk() else { return Ok(false) };
        if let Some(header) = BlockHeader::decode(&self.chunk[start..], self.offset, seed, self.checksum) {
            // In a later segment, what it says of its own first pages: all before it was durable before it
            // began.
            let missing = if self.index == end_index { end_offset } else { FIRST_BLOCK_OFFSET };
            if header.durable_lsn >= wanted || header.durable_bytes() > missing {
                let (lsn, bytes, offset) = (header.durable_lsn, header.durable_bytes(), self.offset);
                let expected = format!(
                    "a block that begins with LSN {}, because the block at offset {offset} of {file} says that all up to \
                     LSN {lsn} and {bytes} bytes of that file were durable",
                    self.expected
                );
                // That segment began when all before it was durable. So unless a torn block says otherwise,
                // what went before ended rightly, and the segment's own first block is what is missing.
                if self.index != end_index && matches!(found, Found::TornBlock { .. }) {
                    (self.index, self.offset) = (end_index, end_offset);
                } else {
                    self.offset = missing;
                }
                let found = match self.index == end_index {
                    true => format!("{found}"),
                    false => String::from("no valid block"),
                };
                return Err(self.damaged(DamageKind::Block, expected, found));
            }
            self.state = State::Scanning { end_index, end_offset, found, blocks_after: blocks_after + 1 };
        }
        self.offset += PAGE_BYTES as u64;
        Ok(true)
    }

    /// The end, unless something from elsewhere says that it cannot be.
    fn finish(&mut self, index: usize, offset: u64, tail: Tail) -> Result<(), Damage> {
        self.index = index.min(self.segments.len().saturating_sub(1));
        self.offset = offset;
        let durable = self.options.durable_at_least;
        let is_until = tail == Tail::Until;
        if !is_until && self.expected <= durable {
            let expected = format!("records up to LSN {durable}, which is known to have been durable");
            return Err(self.damaged(DamageKind::Gap, expected, String::from("the end of the log")));
        }
        let end = self.make_end(index, offset, tail);
        if !is_until && end.next_lsn < end.epoch_first_lsn {
            let expected = format!(
                "records up to LSN {}, after which a later epoch begins",
                end.epoch_first_lsn.previous()
            );
            return Err(self.damaged(DamageKind::Gap, expected, String::from("the end of the log")));
        }
        self.end = Some(end);
        self.state = State::Ended;
        Ok(())
    }

    fn make_end(&self, index: usize, offset: u64, tail: Tail) -> EndOfLog {
        let last = self.segments.last().map(|segment| segment.header);
        let is_natural = matches!(tail, Tail::Closed | Tail::Open { .. });
        let witness = |index| self.is_witness(index);
        let last_witness = (0..self.segments.len()).rfind(|&index| witness(index));
        let known = |(index, segment): (usize, &Segment)| KnownSegment {
            sequence: segment.header.sequence,
            length: segment.header.length,
            first_lsn: match segment.first {
                Some(first) => Some(first.first_whole_lsn()),
                None => witness(index).then_some(segment.header.epoch_first_lsn),
            },
            // One before an epoch without a block is let go of by a snapshot only: that epoch does not say yet that what is
            // before it is durable.
            is_empty: is_natural && last_witness.is_none_or(|last| index > last) && self.is_empty(index),
        };
        EndOfLog {
            // What a snapshot holds is not numbered again, even if the log ends before.
            next_lsn: self.expected.max(self.options.from),
            last_unix_us: self.last_unix_us,
            epoch: last.map_or(Epoch::FIRST, |header| header.epoch),
            epoch_first_lsn: last.map_or(Lsn::FIRST, |header| header.epoch_first_lsn),
            file: self.segments.get(index).map(Segment::file),
            offset,
            tail,
            records: self.records,
            payload_bytes: self.payload_bytes,
            blocks: self.blocks,
            bytes_read: self.bytes_read,
            segments: self.segments.iter().enumerate().map(known).collect(),
        }
    }

    /// Whether a segment has begun and holds nothing of a record that counts: what it begins with, the next one begins
    /// with again, or is yet to come.
    fn is_empty(&self, index: usize) -> bool {
        let segment = &self.segments[index];
        let Some(first) = segment.first_lsn().filter(|_| !segment.begins_within()) else { return false };
        let next = self.segments[index + 1..].iter().find(|next| next.first_lsn().is_some());
        match next {
            Some(next) => next.first_lsn() == Some(first) && !next.begins_within(),
            None => first == self.expected,
        }
    }

    /// Whether a segment without a block is all that says that its epoch has begun, and what that epoch dropped: it stays
    /// until a later one has a durable block.
    fn is_witness(&self, index: usize) -> bool {
        let Segment { header: SegmentHeader { epoch, .. }, ref first, .. } = self.segments[index];
        let says_so = |(other, segment): (usize, &Segment)| {
            segment.header.epoch == epoch && (other < index || segment.first.is_some())
        };
        epoch > Epoch::FIRST && first.is_none() && !self.segments.iter().enumerate().any(says_so)
    }

    fn damaged(&self, kind: DamageKind, expected: String, found: String) -> Damage {
        let file = match self.segments.get(self.index) {
            Some(segment) => segment.file(),
            None => FileName::Segment(Sequence::FIRST),
        };
        Damage { kind, file, offset: self.offset, expected, found, intact_before: self.expected }
    }

    fn inconsistent(&self, expected: &str, found: &str) -> Damage {
        let mut damage = self.damaged(DamageKind::Inconsistent, expected.into(), found.into());
        // While a block is open, reading stands behind it.
        damage.offset = self.block.map_or(damage.offset, |block| block.header.offset);
        damage
    }
}

fn open_segment(file: &SegmentFile<'_>, from: Lsn, checksum: Checksum) -> Result<Segment, Damage> {
    let damaged = |kind, offset, expected: String, found: String| Damage {
        kind,
        file: FileName::Segment(file.sequence),
        offset,
        expected,
        found,
        intact_before: from,
    };
    let header = SegmentHeader::decode(file.head, checksum).map_err(|invalid| match invalid {
        InvalidHeader::Short(bytes) => damaged(
            DamageKind::Length,
            bytes as u64,
            format!("a segment's header of {PAGE_BYTES} bytes"),
            format!("{bytes} bytes"),
        ),
        InvalidHeader::Magic(found) => damaged(
            DamageKind::Header,
            0,
            format!("{}", SEGMENT_MAGIC.escape_ascii()),
            format!("{}", found.escape_ascii()),
        ),
        InvalidHeader::Checksum { stored, computed } => damaged(
            DamageKind::Header,
            0,
            format!("a header with the checksum {stored:#010x}"),
            format!("one with {computed:#010x}"),
        ),
        InvalidHeader::Version(version) => damaged(
            DamageKind::Version,
            8,
            format!("a version up to {VERSION}"),
            format!("version {version}"),
        ),
        InvalidHeader::Nonsense(found) => {
            damaged(DamageKind::Inconsistent, 0, String::from("a segment's header"), found)
        }
    })?;
    if header.sequence != file.sequence {
        let (expected, found) =
            (format!("segment {:#x}", file.sequence.0), format!("{:#x}", header.sequence.0));
        return Err(damaged(DamageKind::Order, 24, expected, found));
    }
    if header.length != file.length {
        let (expected, found) =
            (format!("a file of {} bytes", header.length), format!("{} bytes", file.length));
        return Err(damaged(DamageKind::Length, file.length.min(header.length), expected, found));
    }
    let seed = header.seed(checksum);
    let page = &file.head[PAGE_BYTES..];
    let first = BlockHeader::decode(page, FIRST_BLOCK_OFFSET, seed, checksum);
    let has_bytes = page.iter().any(|&byte| byte != 0);
    Ok(Segment { header, seed, first, has_bytes, ceiling: Lsn::MAX })
}

fn check_order(before: &Segment, segment: &Segment, from: Lsn) -> Result<(), Damage> {
    let (earlier, later) = (&before.header, &segment.header);
    let damaged = |offset, expected, found| Damage {
        kind: DamageKind::Order,
        file: segment.file(),
        offset,
        expected,
        found,
        intact_before: from,
    };
    if earlier.sequence == later.sequence {
        return Err(damaged(0, String::from("one file of this number"), String::from("two")));
    }
    if later.epoch < earlier.epoch {
        let expected = format!("epoch {} as in {}, or a later one", earlier.epoch, before.file());
        return Err(damaged(40, expected, format!("epoch {}", later.epoch)));
    }
    if later.epoch == earlier.epoch && later.epoch_first_lsn != earlier.epoch_first_lsn {
        let (epoch, first) = (earlier.epoch, earlier.epoch_first_lsn);
        let expected = format!("that epoch {epoch} begins with LSN {first} as in {}", before.file());
        return Err(damaged(48, expected, format!("LSN {}", later.epoch_first_lsn)));
    }
    Ok(())
}

/// Reads a whole log that lies in memory: what tests, tools and fuzzers call.
pub fn read_all(
    files: &[(Sequence, &[u8])],
    options: ReadOptions,
    checksum: Checksum,
    mut each: impl FnMut(Record<'_>),
) -> Result<EndOfLog, Damage> {
    let head = |bytes: &[u8]| bytes.len().min(HEAD_BYTES);
    let segments: Vec<SegmentFile<'_>> = files
        .iter()
        .map(|&(sequence, bytes)| SegmentFile {
            sequence,
            length: bytes.len() as u64,
            head: &bytes[..head(bytes)],
        })
        .collect();
    let mut reader = LogReader::open(&segments, options, checksum)?;
    let mut memory = Vec::new();
    loop {
        while let Some(record) = reader.next_record()? {
            each(record);
        }
        let Some(request) = reader.poll_read() else {
            return Ok(reader.end().expect("nothing more is wanted").clone());
        };
        let (_, bytes) =
            files.iter().find(|(sequence, _)| *sequence == request.sequence).expect("it was given");
        let wanted = &bytes[request.offset as usize..][..request.length];
        memory.clear();
        match request.heads_only {
            true => wanted
                .chunks_exact(PAGE_BYTES)
                .for_each(|page| memory.extend_from_slice(&page[..BLOCK_HEADER_BYTES])),
            false => memory.extend_from_slice(wanted),
        }
        memory = reader.handle_read(memory);
    }
}
