//! Names of snapshot files: which file of a directory is a snapshot, which is the newest, and what a crash left.
//!
//! A snapshot is written under a temporary name, flushed, renamed, and the directory flushed. So a file with a
//! snapshot's name was complete once; whether it still is, its checksums say.

use alloc::vec::Vec;
use core::fmt;

use wal::lsn::{Epoch, Lsn};

const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".mrs";
const TEMPORARY_SUFFIX: &str = ".mrs.tmp";
const DIGITS: usize = 16;

/// Names a snapshot. Later ones of the same history are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// The history it belongs to.
    pub epoch: Epoch,
    /// The lowest LSN of a shard: reading the log begins behind it.
    pub lsn: Lsn,
}

/// A file of the data directory that belongs to snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A snapshot that is being written; worthless after a crash.
    Temporary(SnapshotId),
}

impl FileName {
    /// What a directory entry names, if it belongs to snapshots.
    pub fn parse(name: &str) -> Option<FileName> {
        let numbers = name.strip_prefix(PREFIX)?;
        let (numbers, is_temporary) = match numbers.strip_suffix(TEMPORARY_SUFFIX) {
            Some(numbers) => (numbers, true),
            None => (numbers.strip_suffix(SUFFIX)?, false),
        };
        let (epoch, lsn) = numbers.split_once('-')?;
        let id = SnapshotId { epoch: Epoch(hexadecimal(epoch)?), lsn: Lsn(hexadecimal(lsn)?) };
        Some(if is_temporary { FileName::Temporary(id) } else { FileName::Snapshot(id) })
    }
}

/// Sixteen lower-case digits: one name for each number.
fn hexadecimal(digits: &str) -> Option<u64> {
    let canonical = digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|_| canonical)
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, suffix) = match self {
            FileName::Snapshot(id) => (id, SUFFIX),
            FileName::Temporary(id) => (id, TEMPORARY_SUFFIX),
        };
        write!(f, "{PREFIX}{:016x}-{:016x}{suffix}", id.epoch.0, id.lsn.0)
    }
}

/// What a directory holds of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Newest first: the order in which a start tries them.
    pub snapshots: Vec<SnapshotId>,
    /// What a crash left behind; to be removed.
    pub temporary: Vec<SnapshotId>,
}

impl Listing {
    /// Sorts a directory's entries.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Listing {
        let mut listing = Listing::default();
        for name in names {
            match FileName::parse(name) {
                Some(FileName::Snapshot(id)) => listing.snapshots.push(id),
                Some(FileName::Temporary(id)) => listing.temporary.push(id),
                None => {}
            }
        }
        listing.snapshots.sort_unstable_by(|a, b| b.cmp(a));
        listing.temporary.sort_unstable();
        listing
    }

    /// The snapshots that are not among the newest `keep`.
    pub fn beyond(&self, keep: usize) -> &[SnapshotId] {
        &self.snapshots[keep.min(self.snapshots.len())..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_read_back() {
        for (epoch, lsn) in [(1, 0), (2, 0xfeed), (u64::MAX, u64::MAX)] {
            let id = SnapshotId { epoch: Epoch(epoch), lsn: Lsn(lsn) };
            for name in [FileName::Snapshot(id), FileName::Temporary(id)] {
                assert_eq!(FileName::parse(&name.to_string()), Some(name));
            }
        }
        for foreign in [
            "snapshot-0000000000000001-1.mrs",
            "snapshot-0000000000000001-00000000000000FF.mrs",
            "snapshot-+000000000000001-0000000000000001.mrs",
            "snapshot-00000000000000010000000000000001.mrs",
            "snapshot-0000000000000001-0000000000000001.mrs.bak",
            "snapshot-0000000000000001-0000000000000001",
            "log-0000000000000001.wal",
            "",
        ] {
            assert_eq!(FileName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_newest_snapshot_comes_first() {
        let id = |epoch, lsn| SnapshotId { epoch: Epoch(epoch), lsn: Lsn(lsn) };
        let names: Vec<_> = [
            FileName::Snapshot(id(1, 900)),
            FileName::Snapshot(id(2, 16)),
            FileName::Temporary(id(3, 1)),
            FileName::Snapshot(id(2, 200)),
        ]
        .iter()
        .map(ToString::to_string)
        .collect();
        let listing = Listing::of(names.iter().map(|name| name.as_str()).chain(["dump.rdb", "lock"]));
        assert_eq!(listing.snapshots, [id(2, 200), id(2, 16), id(1, 900)]);
        assert_eq!(listing.temporary, [id(3, 1)]);
        assert_eq!(listing.beyond(2), [id(1, 900)]);
        assert_eq!(listing.beyond(7), []);
    }
}
