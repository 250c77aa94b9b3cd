//! A run: consecutive records, or parts of one, as bytes. The body of a frame of records and of a datagram.
//!
//! Records stand in it as they stand in the log: [`wal::record::frame`] in front of each payload. A record
//! that is too long for a frame or a datagram goes on in the next run, as in blocks of the log; but since
//! datagrams get lost, a run says at which byte of its first record it begins. A [`Position`] is thus a place
//! in the stream of all bytes of all records, and a receiver tells from it alone what is next, what is early
//! and what it has had: runs from the backlog, from the log and from datagrams may be cut anywhere and
//! overlap.

use alloc::vec::Vec;
use core::fmt;

use wal::layout::{Field, is_dense};
use wal::lsn::{Epoch, Lsn};
use wal::record::{FRAME_BYTES, Record, frame};

/// Bytes before the records of a run.
pub const RUN_HEADER_BYTES: usize = 48;
/// A flag: the last record goes on behind the run, by at least a byte.
pub const CONTINUES: u32 = 1;

/// The fields before the records.
pub mod header {
    use super::Field;

    /// The branch of all records in the run.
    pub const EPOCH: Field = Field::new("epoch", 0, 8);
    /// The first record; without records, the one that comes next.
    pub const FIRST_LSN: Field = Field::new("first_lsn", 8, 8);
    /// Everything up to here is durable on the sender.
    pub const DURABLE_LSN: Field = Field::new("durable_lsn", 16, 8);
    /// Time of the first record, microseconds since 1970.
    pub const UNIX_US: Field = Field::new("unix_us", 24, 8);
    /// So many bytes of the first record are in runs before.
    pub const FIRST_OFFSET: Field = Field::new("first_offset", 32, 4);
    /// Number of records, parts of one included.
    pub const COUNT: Field = Field::new("count", 36, 4);
    /// [`super::CONTINUES`] or 0.
    pub const FLAGS: Field = Field::new("flags", 40, 4);
    /// Zero.
    pub const RESERVED: Field = Field::new("reserved", 44, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] =
        &[EPOCH, FIRST_LSN, DURABLE_LSN, UNIX_US, FIRST_OFFSET, COUNT, FLAGS, RESERVED];
}

const _: () = assert!(is_dense(header::FIELDS, RUN_HEADER_BYTES));

/// A place in the stream: a record, and a byte of its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The record.
    pub lsn: Lsn,
    /// So many of its bytes lie before.
    pub offset: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => write!(f, "LSN {}", self.lsn),
            offset => write!(f, "byte {offset} of LSN {}", self.lsn),
        }
    }
}

impl Position {
    /// Where this record begins.
    pub fn start_of(lsn: Lsn) -> Position {
        Position { lsn, offset: 0 }
    }
}

/// One record of a run, or what the run has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Where it begins.
    pub position: Position,
    /// The record's time.
    pub unix_us: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The record ends with them.
    pub is_last: bool,
}

impl Part<'_> {
    /// The place behind it.
    pub fn end(&self) -> Position {
        match self.is_last {
            true => Position::start_of(self.position.lsn.next()),
            false => {
                Position { lsn: self.position.lsn, offset: self.position.offset + self.bytes.len() as u32 }
            }
        }
    }
}

/// Checked bytes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    bytes: &'a [u8],
}

impl<'a> Run<'a> {
    /// The run that these bytes are, all of them, if they are one.
    pub fn parse(bytes: &'a [u8]) -> Option<Run<'a>> {
        let run = Run { bytes };
        if bytes.len() < RUN_HEADER_BYTES {
            return None;
        }
        let (first, count) = (header::FIRST_LSN.u64(bytes), u64::from(run.count()));
        let last = first.checked_add(count)?;
        let head_is_sane = header::EPOCH.u64(bytes) >= Epoch::FIRST.0
            && first >= Lsn::FIRST.0
            && last < u64::MAX
            && last - 1 <= header::DURABLE_LSN.u64(bytes)
            && header::FLAGS.u32(bytes) & !CONTINUES == 0
            && header::RESERVED.u32(bytes) == 0
            && (count > 0 || header::FLAGS.u32(bytes) == 0);
        if !head_is_sane {
            return None;
        }
        let (mut rest, mut offset) = (&bytes[RUN_HEADER_BYTES..], header::FIRST_OFFSET.u32(bytes));
        for left in (0..count).rev() {
            let (head, behind) = rest.split_at_checked(FRAME_BYTES)?;
            let length = frame::LENGTH.u32(head);
            header::UNIX_US.u64(bytes).checked_add(u64::from(frame::DELAY.u32(head)))?;
            offset.checked_add(length)?;
            if left == 0 && run.continues() && length == 0 {
                return None;
            }
            (_, rest) = behind.split_at_checked(length as usize)?;
            offset = 0;
        }
        rest.is_empty().then_some(run)
    }

    /// See [`header::EPOCH`].
    pub fn epoch(&self) -> Epoch {
        Epoch(header::EPOCH.u64(self.bytes))
    }

    /// Where it begins.
    pub fn first(&self) -> Position {
        Position { lsn: Lsn(header::FIRST_LSN.u64(self.bytes)), offset: header::FIRST_OFFSET.u32(self.bytes) }
    }

    /// The last record it has anything of; without records the one before it.
    pub fn last_lsn(&self) -> Lsn {
        self.first().lsn.plus(u64::from(self.count())).previous()
    }

    /// Number of records, or parts.
    pub fn count(&self) -> u32 {
        header::COUNT.u32(self.bytes)
    }

    /// The last record goes on behind it.
    pub fn continues(&self) -> bool {
        header::FLAGS.u32(self.bytes) & CONTINUES != 0
    }

    /// See [`header::DURABLE_LSN`].
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(header::DURABLE_LSN.u64(self.bytes))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its records in order.
    pub fn parts(&self) -> impl Iterator<Item = Part<'a>> + use<'a> {
        let Run { bytes } = *self;
        let (count, continues) = (self.count(), self.continues());
        let unix_us = header::UNIX_US.u64(bytes);
        let mut position = self.first();
        let mut rest = &bytes[RUN_HEADER_BYTES..];
        (1..=count).map(move |number| {
            let (head, behind) = rest.split_at(FRAME_BYTES);
            let (payload, behind) = behind.split_at(frame::LENGTH.u32(head) as usize);
            rest = behind;
            let part = Part {
                position,
                unix_us: unix_us + u64::from(frame::DELAY.u32(head)),
                bytes: payload,
                is_last: number < count || !continues,
            };
            position = part.end();
            part
        })
    }
}

/// Builds a run at the end of some bytes.
#[derive(Debug)]
pub struct RunWriter {
    start: usize,
    unix_us: u64,
    count: u32,
}

impl RunWriter {
    /// Begins one. Its time is that of the first record.
    pub fn begin(out: &mut Vec<u8>, epoch: Epoch, first: Position, durable: Lsn, unix_us: u64) -> RunWriter {
        let start = out.len();
        out.resize(start + RUN_HEADER_BYTES, 0);
        let bytes = &mut out[start..];
        header::EPOCH.put(bytes, &epoch.0.to_le_bytes());
        header::FIRST_LSN.put(bytes, &first.lsn.0.to_le_bytes());
        header::FIRST_OFFSET.put(bytes, &first.offset.to_le_bytes());
        header::DURABLE_LSN.put(bytes, &durable.0.to_le_bytes());
        header::UNIX_US.put(bytes, &unix_us.to_le_bytes());
        RunWriter { start, unix_us, count: 0 }
    }

    /// Adds the next record, or a part of it. After one that `continues`, nothing may be added.
    pub fn push(&mut self, out: &mut Vec<u8>, payload: &[u8], unix_us: u64, continues: bool) {
        debug_assert!(header::FLAGS.u32(&out[self.start..]) == 0, "a run goes on behind its end");
        // Times never go back; should two records be more than 71 minutes apart, time stands still in the
        // run.
        let delay = u32::try_from(unix_us.saturating_sub(self.unix_us)).unwrap_or(u32::MAX);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&delay.to_le_bytes());
        out.extend_from_slice(payload);
        self.count += 1;
        let bytes = &mut out[self.start..];
        header::COUNT.put(bytes, &self.count.to_le_bytes());
        header::FLAGS.put(bytes, &u32::from(continues).to_le_bytes());
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// Whole records on their way to the shards, in order and without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The first.
    pub first_lsn: Lsn,
    /// The last.
    pub last_lsn: Lsn,
    /// The branch of all of them.
    pub epoch: Epoch,
    pub(crate) source: Source,
}

/// Where the records of a delivery lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a run, among others perhaps.
    Run(Vec<u8>),
    /// One that came in parts.
    Joined { unix_us: u64, payload: Vec<u8> },
}

impl Delivery {
    /// The records.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let (first, last) = (self.first_lsn, self.last_lsn);
        let (run, joined) = match &self.source {
            Source::Run(bytes) => (Some(Run { bytes }), None),
            Source::Joined { unix_us, payload } => {
                (None, Some(Record { lsn: first, unix_us: *unix_us, payload }))
            }
        };
        let parts = run.into_iter().flat_map(|run| run.parts());
        let wanted = parts.filter(move |part| (first..=last).contains(&part.position.lsn));
        let whole =
            wanted.map(|part| Record { lsn: part.position.lsn, unix_us: part.unix_us, payload: part.bytes });
        whole.chain(joined)
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        match &self.source {
            Source::Run(bytes) => bytes.len(),
            Source::Joined { payload, .. } => payload.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_reads_back_and_says_where_its_parts_lie() {
        let mut out = Vec::from(*b"before");
        let first = Position { lsn: Lsn(7), offset: 100 };
        let mut run = RunWriter::begin(&mut out, Epoch(2), first, Lsn(20), 1000);
        run.push(&mut out, b"end of 7", 1000, false);
        run.push(&mut out, b"", 1005, false);
        run.push(&mut out, b"head of 9", 1010, true);
        let run = Run::parse(&out[6..]).unwrap();
        assert_eq!((run.epoch(), run.first(), run.last_lsn(), run.count()), (Epoch(2), first, Lsn(9), 3));
        let parts: Vec<Part<'_>> = run.parts().collect();
        assert_eq!((parts[0].bytes, parts[0].end()), (b"end of 7".as_slice(), Position::start_of(Lsn(8))));
        assert_eq!((parts[1].position.lsn, parts[1].unix_us, parts[1].is_last), (Lsn(8), 1005, true));
        assert_eq!(parts[2].end(), Position { lsn: Lsn(9), offset: 9 });
        // Neither a byte more nor one less.
        out.push(0);
        assert_eq!(Run::parse(&out[6..]), None);
        assert_eq!(Run::parse(&out[6..out.len() - 2]), None);
    }

    #[test]
    fn what_no_writer_writes_is_no_run() {
        let made = |change: &dyn Fn(&mut [u8])| {
            let mut out = Vec::new();
            let mut run = RunWriter::begin(&mut out, Epoch(2), Position::start_of(Lsn(7)), Lsn(8), 1000);
            run.push(&mut out, b"seven", 1000, false);
            run.push(&mut out, b"eight", 1000, true);
            change(&mut out);
            Run::parse(&out).is_some()
        };
        assert!(made(&|_| ()));
        assert!(!made(&|run| header::DURABLE_LSN.put(run, &7_u64.to_le_bytes())), "not durable");
        assert!(!made(&|run| header::EPOCH.put(run, &[0; 8])));
        assert!(!made(&|run| header::FIRST_LSN.put(run, &[0; 8])));
        assert!(!made(&|run| header::FIRST_LSN.put(run, &[0xff; 8])));
        assert!(!made(&|run| header::COUNT.put(run, &1_u32.to_le_bytes())));
        assert!(!made(&|run| header::COUNT.put(run, &u32::MAX.to_le_bytes())));
        assert!(!made(&|run| header::FLAGS.put(run, &2_u32.to_le_bytes())));
        assert!(!made(&|run| header::RESERVED.put(run, &1_u32.to_le_bytes())));
        assert!(!made(&|run| header::FIRST_OFFSET.put(run, &u32::MAX.to_le_bytes())));
    }
}
