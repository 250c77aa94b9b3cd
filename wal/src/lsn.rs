//! The numbers of records and of histories.

use core::fmt;

/// Log sequence number: the number of a record. The first is 1 and each is one more than the last, so that a
/// gap in the log, in a replica's stream or in a backlog is seen without any other knowledge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record: what `durable_lsn` says of an empty log.
    pub const ZERO: Lsn = Lsn(0);
    /// The first record of a log.
    pub const FIRST: Lsn = Lsn(1);
    /// Later than every record.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The one after this.
    pub fn next(self) -> Lsn {
        self.plus(1)
    }

    /// The one `count` after this.
    pub fn plus(self, count: u64) -> Lsn {
        Lsn(self.0.checked_add(count).expect("fewer than 2^64 records"))
    }

    /// The one before this; nothing is before [`Lsn::ZERO`].
    pub fn previous(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A history. A log that is continued from an earlier point than its end (recovery to a point in time,
/// repair, a promoted replica) goes on under the next epoch: the same LSN may then mean another record, and
/// whoever compares LSNs compares epochs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new log's.
    pub const FIRST: Epoch = Epoch(1);

    /// The one after this.
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("fewer than 2^64 epochs"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
