//! Where a log ends and why, and how a writer goes on from there.

use alloc::vec::Vec;
use core::fmt;

use crate::damage::Damage;
use crate::group_commit::Start;
use crate::lsn::{Epoch, Lsn};
use crate::segment::{FileName, Sequence};
use crate::spares::KnownSegment;

/// What stands where the next block should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The segment's end.
    EndOfSegment,
    /// Zeros: nothing was written.
    Zeros,
    /// No header of this segment: one that was torn, or what a recycled file held before.
    OtherBytes,
    /// A header, and behind it bytes that are not the block's.
    TornBlock {
        /// The first LSN it would hold.
        first_lsn: Lsn,
        /// How many frames it would hold.
        count: u32,
        /// Bytes it would take.
        length: u32,
    },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::EndOfSegment => f.write_str("the end of the segment"),
            Found::Zeros => f.write_str("zeros"),
            Found::OtherBytes => f.write_str("bytes that are no block of this segment"),
            Found::TornBlock { first_lsn, count, length } => write!(
                f,
                "the header of a block of {length} bytes with {count} records from LSN {first_lsn}, and a body that does \
                 not match its checksum"
            ),
        }
    }
}

/// Why reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// The log was closed: nothing is missing.
    Closed,
    /// It was not closed. What was being written when it ended is cut.
    Open {
        /// What stands at the end.
        found: Found,
        /// Valid blocks behind it, written before the one in between was.
        blocks_after: u64,
    },
    /// The record or time to stop at was reached.
    Until,
    /// Damage, and the caller decided to go on without what follows.
    CutAtDamage(Damage),
}

/// Where a log ends, and what was read up to there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfLog {
    /// The record that would come next.
    pub next_lsn: Lsn,
    /// The time of the last record read.
    pub last_unix_us: u64,
    /// The latest history in the directory.
    pub epoch: Epoch,
    /// Where that history began.
    pub epoch_first_lsn: Lsn,
    /// The segment it ends in; `None` if there is none.
    pub file: Option<FileName>,
    /// Where in it.
    pub offset: u64,
    /// Why there.
    pub tail: Tail,
    /// Records handed out.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Blocks that were valid.
    pub blocks: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// All segments, oldest first.
    pub segments: Vec<KnownSegment>,
}

impl EndOfLog {
    /// How a writer goes on from here. `spares` are the other files of the log in the directory, `uid_seed`
    /// is random. Where records are left behind on purpose (a point in time, a cut at damage) it goes on
    /// under a new epoch, and the files that hold them need not be touched: the first segment of the new
    /// epoch says from where on they do not count.
    pub fn start(&self, spares: &[Sequence], uid_seed: u64) -> Start {
        let highest =
            self.segments.iter().map(|segment| segment.sequence).chain(spares.iter().copied()).max();
        let forks = matches!(self.tail, Tail::Until | Tail::CutAtDamage(_));
        Start {
            next_lsn: self.next_lsn,
            epoch: if forks { self.epoch.next() } else { self.epoch },
            epoch_first_lsn: if forks { self.next_lsn } else { self.epoch_first_lsn },
            next_sequence: highest.map_or(Sequence::FIRST, Sequence::next),
            segments: self.segments.clone(),
            spares: spares.to_vec(),
            last_unix_us: self.last_unix_us,
            is_marked: self.tail == Tail::Closed,
            uid_seed,
        }
    }

    /// True if something that had been begun was cut.
    pub fn is_torn(&self) -> bool {
        match self.tail {
            Tail::Open { found, blocks_after } => {
                matches!(found, Found::TornBlock { .. }) || blocks_after > 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for EndOfLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log ends before LSN {}", self.next_lsn)?;
        if let Some(file) = self.file {
            write!(f, " in {file} at offset {}", self.offset)?;
        }
        match &self.tail {
            Tail::Closed => f.write_str(": it was closed"),
            Tail::Open { found, blocks_after: 0 } => write!(f, ": there follow {found}"),
            Tail::Open { found, blocks_after } => {
                write!(
                    f,
                    ": there follow {found}, and {blocks_after} blocks that were written ahead, all of them cut"
                )
            }
            Tail::Until => f.write_str(", where it was to stop"),
            Tail::CutAtDamage(damage) => write!(f, ", cut at damage: {damage}"),
        }
    }
}
