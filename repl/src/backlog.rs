//! The newest records, encoded once: the same bytes go to every replica that is up to date.
//!
//! Records that became durable together are one frame (several, if they are many or long), and a frame is
//! shared memory. So one more replica costs its socket, not another encoding. A replica that wants to begin
//! in the middle of a frame is sent all of it, and skips what it has. What is too old is dropped, whoever has
//! not had it yet: it is in the log.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::lsn::Lsn;
use wal::record::{FRAME_BYTES, Record};

use crate::frame::{FRAME_HEADER_BYTES, begin_frame, finish_frame};
use crate::lineage::Lineage;
use crate::message::kind;
use crate::run::{Position, Run, RunWriter};

/// Bytes that several owners send.
pub type SharedBytes = Arc<Vec<u8>>;

/// A frame of records.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Where it begins.
    pub first: Position,
    /// Where the next one begins.
    pub end: Position,
    /// Bytes of its records, without anything around them.
    pub payload_bytes: u64,
    /// The frame.
    pub frame: SharedBytes,
}

impl Chunk {
    /// Its records.
    pub fn run(&self) -> Run<'_> {
        Run::parse(&self.frame[FRAME_HEADER_BYTES..]).expect("it was encoded here")
    }
}

/// Encodes records, which follow each other, as frames with bodies of no more than `body_bytes_max`; none of
/// them crosses a branch.
pub fn encode_chunks<'a>(
    records: impl Iterator<Item = Record<'a>>,
    lineage: &Lineage,
    durable: Lsn,
    body_bytes_max: usize,
    checksum: Checksum,
    mut take: impl FnMut(Chunk),
) {
    let mut open: Option<OpenChunk> = None;
    let mut branch_end = Lsn::ZERO;
    for record in records {
        if record.lsn > branch_end {
            open.take().into_iter().for_each(|open| take(open.close(checksum)));
            branch_end = lineage.branch_end(record.lsn);
        }
        let mut at = 0;
        loop {
            let rest = &record.payload[at..];
            let position = Position { lsn: record.lsn, offset: at as u32 };
            let begun = open.get_or_insert_with(|| {
                let branch = lineage.branch_of(record.lsn).expect("a record of this history");
                OpenChunk::begin(position, branch.epoch, durable, record.unix_us)
            });
            let room = body_bytes_max.checked_sub(begun.body_bytes() + FRAME_BYTES);
            if room.is_some_and(|room| rest.len() <= room) {
                begun.push(rest, record.unix_us, false);
                break;
            }
            // A record that fits into a frame of its own is not cut; one that does not fills every frame.
            if let Some(room) = room.filter(|_| begun.run.count() == 0) {
                begun.push(&rest[..room], record.unix_us, true);
                at += room;
            }
            open.take().into_iter().for_each(|open| take(open.close(checksum)));
        }
    }
    open.into_iter().for_each(|open| take(open.close(checksum)));
}

struct OpenChunk {
    frame: Vec<u8>,
    run: RunWriter,
    first: Position,
    end: Position,
    payload_bytes: u64,
}

impl OpenChunk {
    fn begin(first: Position, epoch: wal::lsn::Epoch, durable: Lsn, unix_us: u64) -> OpenChunk {
        let mut frame = Vec::new();
        begin_frame(&mut frame, kind::RECORDS);
        let run = RunWriter::begin(&mut frame, epoch, first, durable, unix_us);
        OpenChunk { frame, run, first, end: first, payload_bytes: 0 }
    }

    fn body_bytes(&self) -> usize {
        self.frame.len() - FRAME_HEADER_BYTES
    }

    fn push(&mut self, payload: &[u8], unix_us: u64, continues: bool) {
        self.run.push(&mut self.frame, payload, unix_us, continues);
        self.payload_bytes += payload.len() as u64;
        self.end = match continues {
            true => Position { lsn: self.end.lsn, offset: self.end.offset + payload.len() as u32 },
            false => Position::start_of(self.end.lsn.next()),
        };
    }

    fn close(mut self, checksum: Checksum) -> Chunk {
        finish_frame(&mut self.frame, 0, checksum);
        let OpenChunk { frame, first, end, payload_bytes, .. } = self;
        Chunk { first, end, payload_bytes, frame: Arc::new(frame) }
    }
}

#[derive(Debug)]
struct Kept {
    chunk: Chunk,
    /// Bytes of all records before it since the start.
    log_bytes_before: u64,
    at_micros: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Backlog {
    chunks: VecDeque<Kept>,
    bytes: usize,
    bytes_max: usize,
    end: Position,
    log_bytes: u64,
    dropped_chunks: u64,
}

impl Backlog {
    /// An empty one; the next record to come is `next`.
    pub fn new(next: Lsn, bytes_max: usize) -> Backlog {
        Backlog {
            chunks: VecDeque::new(),
            bytes: 0,
            bytes_max,
            end: Position::start_of(next),
            log_bytes: 0,
            dropped_chunks: 0,
        }
    }

    /// Adds what follows, and drops the oldest beyond the bound; the newest stays whatever it takes.
    pub fn push(&mut self, chunk: Chunk, now_micros: u64) {
        assert!(chunk.first == self.end, "{:?} after {:?}", chunk.first, self.end);
        self.end = chunk.end;
        self.bytes += chunk.frame.len();
        let log_bytes_before = self.log_bytes;
        self.log_bytes += chunk.payload_bytes;
        self.chunks.push_back(Kept { chunk, log_bytes_before, at_micros: now_micros });
        while self.bytes > self.bytes_max && self.chunks.len() > 1 {
            let dropped = self.chunks.pop_front().expect("more than one");
            self.bytes -= dropped.chunk.frame.len();
            self.dropped_chunks += 1;
        }
    }

    /// The oldest record it has all of; the next to come if it has none.
    pub fn first_lsn(&self) -> Lsn {
        let first = self.first();
        first.lsn.plus(u64::from(first.offset > 0))
    }

    /// Where it begins.
    pub fn first(&self) -> Position {
        self.chunks.front().map_or(self.end, |oldest| oldest.chunk.first)
    }

    /// Where it ends: where the next record will begin.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Its bytes of memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of all records since the start.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Frames dropped since the start.
    pub fn dropped_chunks(&self) -> u64 {
        self.dropped_chunks
    }

    /// The frames from the one on that has this position.
    pub fn from(&self, position: Position) -> impl Iterator<Item = &Chunk> {
        let at = self.index_of(position);
        let held = self.chunks.get(at).is_some_and(|kept| kept.chunk.first <= position);
        let at = if held { at } else { self.chunks.len() };
        self.chunks.range(at..).map(|kept| &kept.chunk)
    }

    /// How far this record is from the end: bytes of records from it on, and since when it has been there.
    /// What was dropped is not counted.
    pub fn distance(&self, lsn: Lsn) -> Option<(u64, u64)> {
        let kept = self.chunks.get(self.index_of(Position::start_of(lsn)))?;
        Some((self.log_bytes - kept.log_bytes_before, kept.at_micros))
    }

    fn index_of(&self, position: Position) -> usize {
        self.chunks.partition_point(|kept| kept.chunk.end <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::BranchId;
    use wal::lsn::Epoch;

    fn chunks(payloads: &[&[u8]], body_bytes_max: usize) -> Vec<Chunk> {
        let mut lineage = Lineage::default();
        lineage.begin(Lsn(1), BranchId(1), Epoch::FIRST);
        lineage.begin(Lsn(4), BranchId(2), Epoch::FIRST);
        let records = payloads.iter().zip(1..).map(|(payload, lsn)| Record {
            lsn: Lsn(lsn),
            unix_us: 100 + lsn,
            payload,
        });
        let mut made = Vec::new();
        encode_chunks(records, &lineage, Lsn(99), body_bytes_max, Checksum::portable(), |chunk| {
            made.push(chunk)
        });
        made
    }

    #[test]
    fn frames_hold_all_records_and_no_branch_begins_within() {
        let long = [7; 500];
        let payloads: [&[u8]; 6] = [b"one", &long, b"", b"four", &[9; 70], b"six"];
        for body_bytes_max in [112, 120, 200, 4096] {
            let made = chunks(&payloads, body_bytes_max);
            let mut joined: Vec<Vec<u8>> = vec![Vec::new(); payloads.len()];
            let mut at = Position::start_of(Lsn(1));
            for chunk in &made {
                let run = chunk.run();
                assert!(chunk.frame.len() - FRAME_HEADER_BYTES <= body_bytes_max);
                assert_eq!((run.first(), chunk.first), (at, at));
                for part in run.parts() {
                    assert_eq!(part.position, at);
                    assert_eq!(run.epoch(), Epoch(if part.position.lsn < Lsn(4) { 2 } else { 3 }));
                    joined[part.position.lsn.0 as usize - 1].extend_from_slice(part.bytes);
                    at = part.end();
                }
                assert_eq!(chunk.end, at);
            }
            assert_eq!(
                (joined.as_slice(), at),
                (payloads.map(<[u8]>::to_vec).as_slice(), Position::start_of(Lsn(7)))
            );
        }
        assert_eq!(chunks(&payloads, 4096).len(), 2);
    }

    #[test]
    fn the_oldest_frames_go_and_the_rest_is_found() {
        let made = chunks(&[&[1; 60], &[2; 60], &[3; 150], &[4; 60]], 128);
        let mut backlog = Backlog::new(Lsn(1), 350);
        for chunk in &made {
            backlog.push(chunk.clone(), 5);
        }
        assert!(backlog.bytes() <= 350 && backlog.dropped_chunks() > 0, "{backlog:?}");
        // It begins in the middle of record 3.
        assert!(backlog.first().offset > 0 && backlog.first_lsn() == Lsn(4), "{:?}", backlog.first());
        assert_eq!(backlog.from(Position::start_of(Lsn(3))).count(), 0);
        assert_eq!(backlog.from(Position::start_of(Lsn(4))).count(), 1);
        assert_eq!(backlog.from(backlog.end()).count(), 0);
        assert_eq!((backlog.distance(Lsn(4)), backlog.distance(Lsn(5))), (Some((60, 5)), None));
        assert_eq!(backlog.log_bytes(), 330);
    }
}
