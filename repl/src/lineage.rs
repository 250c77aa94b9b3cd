//! Which history a log belongs to, and what two logs have in common.
//!
//! An LSN alone says little: after a failover two nodes may both have a record 1001, and not the same one. So
//! a history is a row of *branches*. A branch is begun by a node that becomes a primary, be it by promotion
//! or by a restart; it has an epoch, one more than any the node knows of, a random id, because two nodes may
//! begin the same epoch, and the LSN of its first record. All records of a branch are written by the node
//! that began it, in one run, so a branch's id and an LSN together name one record and never two.
//!
//! What two nodes have in common follows without looking at a record: the latest branch that both have, up to
//! where the first of them leaves it ([`Lineage::common`]). A replica whose last record is inside that goes
//! on from there. One whose last record is beyond has records that nobody else has, and is given the
//! primary's data in full; nothing is ever mixed.
//!
//! A primary begins a branch at every start, not only at a promotion. So a data directory that was restored
//! from a backup, copied, or that a disk which lies has cut, meets replicas that know more than it does, and
//! tells.

use alloc::vec::Vec;
use core::fmt;

use wal::checksum::Checksum;
use wal::layout::{Field, is_dense};
use wal::lsn::{Epoch, Lsn};

/// Names a branch; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub u64);

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Part of a history: what one node wrote in one run as a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Higher than that of any branch before.
    pub epoch: Epoch,
    /// Its name.
    pub id: BranchId,
    /// Its first record. The branch before ends with the one before it.
    pub first_lsn: Lsn,
}

/// Bytes of a branch in a lineage.
pub const BRANCH_BYTES: usize = 24;

/// The fields of a branch.
pub mod branch {
    use super::Field;

    /// [`super::Branch::epoch`].
    pub const EPOCH: Field = Field::new("epoch", 0, 8);
    /// [`super::Branch::id`].
    pub const ID: Field = Field::new("id", 8, 8);
    /// [`super::Branch::first_lsn`].
    pub const FIRST_LSN: Field = Field::new("first_lsn", 16, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[EPOCH, ID, FIRST_LSN];
}

/// The first eight bytes of the file that keeps a lineage.
pub const FILE_MAGIC: [u8; 8] = *b"MILLRLIN";
/// The version of that file.
pub const FILE_VERSION: u32 = 1;
/// Bytes before the branches in that file.
pub const FILE_HEADER_BYTES: usize = 20;

/// The fields of the file that keeps a lineage.
pub mod file {
    use super::Field;

    /// [`super::FILE_MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// [`super::FILE_VERSION`].
    pub const VERSION: Field = Field::new("version", 8, 4);
    /// Of bytes 0 to 11 and 16 to the end.
    pub const CRC: Field = Field::new("crc32c", 12, 4);
    /// Number of branches that follow.
    pub const COUNT: Field = Field::new("count", 16, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, VERSION, CRC, COUNT];
}

const _: () = assert!(is_dense(branch::FIELDS, BRANCH_BYTES));
const _: () = assert!(is_dense(file::FIELDS, FILE_HEADER_BYTES));

impl Branch {
    /// Adds its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.first_lsn.0.to_le_bytes());
    }

    /// Reads [`BRANCH_BYTES`] bytes.
    pub fn decode(bytes: &[u8]) -> Option<Branch> {
        if bytes.len() != BRANCH_BYTES {
            return None;
        }
        let read = Branch {
            epoch: Epoch(branch::EPOCH.u64(bytes)),
            id: BranchId(branch::ID.u64(bytes)),
            first_lsn: Lsn(branch::FIRST_LSN.u64(bytes)),
        };
        // The last number is kept free, so that "the one after" always exists.
        let sane = read.epoch >= Epoch::FIRST && read.epoch.0 < u64::MAX;
        (sane && read.first_lsn >= Lsn::FIRST && read.first_lsn < Lsn::MAX).then_some(read)
    }
}

/// More branches than this are not remembered: the oldest go, and a replica that knows only those is given
/// everything anew. One is added for each restart and promotion that wrote something.
pub const BRANCHES_MAX: usize = 64;

/// The branches of a history, oldest first. Epochs and first LSNs only go up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(Vec<Branch>);

/// What another log, with a lineage of its own, has in common with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Common {
    /// All its records are this log's records, too, as far as this one has them.
    Prefix,
    /// Its records up to here are this log's, and after it they are others.
    DivergedAfter(Lsn),
    /// No branch is known to both.
    Nothing,
}

/// Why bytes are no lineage file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidLineage {
    /// Not [`FILE_MAGIC`], or too short for a header.
    Magic,
    /// The checksum or the length does not match.
    Damaged,
    /// Written by a later version.
    Version(u32),
    /// Checksummed, and no lineage.
    Nonsense,
}

impl fmt::Display for InvalidLineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected the branches of a replicated history, found ")?;
        match self {
            InvalidLineage::Magic => f.write_str("another file")?,
            InvalidLineage::Damaged => f.write_str("a file that was cut or changed")?,
            InvalidLineage::Version(version) => {
                return write!(
                    f,
                    "version {version}, where {FILE_VERSION} is known; start the program that wrote it, or a \
                     later one"
                );
            }
            InvalidLineage::Nonsense => f.write_str("branches that do not follow one another")?,
        }
        f.write_str("; remove it, and replicas will be given everything anew")
    }
}

impl core::error::Error for InvalidLineage {}

impl Lineage {
    /// These branches, if they can follow one another.
    pub fn new(branches: Vec<Branch>) -> Option<Lineage> {
        let ascending =
            |pair: &[Branch]| pair[0].epoch < pair[1].epoch && pair[0].first_lsn < pair[1].first_lsn;
        (branches.len() <= BRANCHES_MAX && branches.windows(2).all(ascending)).then_some(Lineage(branches))
    }

    /// The branches, oldest first.
    pub fn branches(&self) -> &[Branch] {
        &self.0
    }

    /// The branch that records are added to now.
    pub fn latest(&self) -> Option<Branch> {
        self.0.last().copied()
    }

    /// Begins a branch with this record: what a node does that becomes a primary, before it writes anything.
    /// Its epoch is above all this lineage and the log (`log_epoch`) have seen.
    pub fn begin(&mut self, first_lsn: Lsn, id: BranchId, log_epoch: Epoch) -> Branch {
        let known = self.latest().map_or(log_epoch, |latest| latest.epoch.max(log_epoch));
        let begun = Branch { epoch: known.next(), id, first_lsn };
        self.push(begun);
        begun
    }

    /// Adds a branch that the primary has begun. False, and nothing changed, if its epoch is not a later one.
    #[must_use]
    pub fn follow(&mut self, branch: Branch) -> bool {
        let follows = self.latest().is_none_or(|latest| latest.epoch < branch.epoch);
        if follows {
            self.push(branch);
        }
        follows
    }

    fn push(&mut self, branch: Branch) {
        // Branches without a record leave nothing behind.
        self.0.retain(|earlier| earlier.first_lsn < branch.first_lsn);
        if self.0.len() == BRANCHES_MAX {
            self.0.remove(0);
        }
        self.0.push(branch);
    }

    /// The branch that a record belongs to; none if that is forgotten.
    pub fn branch_of(&self, lsn: Lsn) -> Option<Branch> {
        self.0.iter().rev().find(|branch| branch.first_lsn <= lsn).copied()
    }

    /// The last record that can be in the same branch as this one.
    pub fn branch_end(&self, lsn: Lsn) -> Lsn {
        self.0
            .iter()
            .find(|branch| branch.first_lsn > lsn)
            .map_or(Lsn(Lsn::MAX.0 - 1), |branch| branch.first_lsn.previous())
    }

    /// True if the state after this record, said to be of this epoch, is one that this history went through.
    pub fn holds(&self, epoch: Epoch, lsn: Lsn) -> bool {
        let Some(index) = self.0.iter().position(|branch| branch.epoch == epoch) else { return false };
        self.0.get(index + 1).is_none_or(|next| lsn < next.first_lsn)
            && self.0[index].first_lsn.previous() <= lsn
    }

    /// True if the record that a branch of this id has at this LSN is in this history.
    pub fn holds_record(&self, id: BranchId, lsn: Lsn) -> bool {
        self.branch_of(lsn).is_some_and(|branch| branch.id == id)
    }

    /// Whether a log can be the one of this history: it ends with `last`, and is in this epoch, of which it has records
    /// from `epoch_first` on, if that is not behind `last`. A branch is written down before the log goes on in its epoch, so
    /// the log may be behind, and is never in an epoch of which nothing was written down.
    pub fn fits(&self, epoch: Epoch, epoch_first: Lsn, last: Lsn) -> bool {
        let has_records = epoch_first <= last;
        match self.branch_of(last) {
            Some(branch) if has_records => branch.epoch == epoch && branch.first_lsn <= epoch_first,
            Some(branch) => branch.epoch <= epoch,
            None => !has_records || self.0.first().is_none_or(|first| epoch < first.epoch),
        }
    }

    /// What a log with another lineage, and this last record, has in common with the log of this lineage.
    pub fn common(&self, other: &Lineage, other_last: Lsn) -> Common {
        if other_last == Lsn::ZERO {
            return Common::Prefix;
        }
        // Branches that begin after the last record hold nothing.
        let held = other.0.iter().rev().skip_while(|branch| branch.first_lsn > other_last);
        for theirs in held {
            let Some(ours) = self.0.iter().find(|ours| ours.id == theirs.id) else { continue };
            if ours != theirs {
                return Common::Nothing;
            }
            let shared =
                self.branch_end(ours.first_lsn).min(other.branch_end(theirs.first_lsn)).min(other_last);
            return if shared == other_last { Common::Prefix } else { Common::DivergedAfter(shared) };
        }
        Common::Nothing
    }

    /// Adds the bytes of all branches.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|branch| branch.encode(out));
    }

    /// Reads branches, which must fill the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Lineage> {
        if bytes.len() > BRANCHES_MAX * BRANCH_BYTES {
            return None;
        }
        Lineage::new(bytes.chunks(BRANCH_BYTES).map(Branch::decode).collect::<Option<_>>()?)
    }

    /// What the file says that keeps a lineage in the data directory.
    pub fn encode_file(&self, checksum: Checksum) -> Vec<u8> {
        let mut bytes = alloc::vec![0; FILE_HEADER_BYTES];
        file::MAGIC.put(&mut bytes, &FILE_MAGIC);
        file::VERSION.put(&mut bytes, &FILE_VERSION.to_le_bytes());
        file::COUNT.put(&mut bytes, &(self.0.len() as u32).to_le_bytes());
        self.encode(&mut bytes);
        let crc = file_crc(&bytes, checksum);
        file::CRC.put(&mut bytes, &crc.to_le_bytes());
        bytes
    }

    /// Reads such a file.
    pub fn decode_file(bytes: &[u8], checksum: Checksum) -> Result<Lineage, InvalidLineage> {
        if bytes.len() < FILE_HEADER_BYTES || file::MAGIC.get(bytes) != FILE_MAGIC {
            return Err(InvalidLineage::Magic);
        }
        // Place and rule of the checksum stay the same in every version.
        if file::CRC.u32(bytes) != file_crc(bytes, checksum) {
            return Err(InvalidLineage::Damaged);
        }
        let version = file::VERSION.u32(bytes);
        if version != FILE_VERSION {
            return Err(InvalidLineage::Version(version));
        }
        let lineage = Lineage::decode(&bytes[FILE_HEADER_BYTES..]).ok_or(InvalidLineage::Nonsense)?;
        if lineage.0.len() != file::COUNT.u32(bytes) as usize {
            return Err(InvalidLineage::Nonsense);
        }
        Ok(lineage)
    }
}

fn file_crc(bytes: &[u8], checksum: Checksum) -> u32 {
    checksum.continued(checksum.of(&bytes[..file::CRC.offset]), &bytes[file::COUNT.offset..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(branches: &[(u64, u64, u64)]) -> Lineage {
        let branch =
            |&(epoch, id, lsn)| Branch { epoch: Epoch(epoch), id: BranchId(id), first_lsn: Lsn(lsn) };
        Lineage::new(branches.iter().map(branch).collect()).unwrap()
    }

    #[test]
    fn a_log_fits_its_history_and_no_other() {
        let history = lineage(&[(2, 20, 101), (4, 40, 151)]);
        let fits = |epoch, first, last| history.fits(Epoch(epoch), Lsn(first), Lsn(last));
        // Both branches with records; the second still without; the log not yet in it, or in one that left no trace.
        assert!(fits(4, 151, 170) && fits(4, 151, 150) && fits(2, 101, 150) && fits(3, 151, 150));
        // A replica's log that begins in the middle of a branch.
        assert!(fits(4, 160, 170) && fits(2, 120, 150));
        // Data of before the history, and the log not yet in its first epoch; nothing at all.
        assert!(fits(1, 1, 100) && fits(2, 101, 100) && fits(1, 1, 0));
        // Records of an epoch of which nothing was written down: the history is an older one, or another's.
        assert!(!fits(5, 171, 180) && !fits(3, 151, 170) && !fits(5, 1, 100));
        // Records that the history has in a later epoch than the log ever was in.
        assert!(!fits(2, 101, 151) && !fits(1, 1, 160) && !fits(3, 171, 170));
        // The branch begins behind what the log has of its epoch.
        assert!(!fits(4, 140, 170));
        assert!(Lineage::default().fits(Epoch(7), Lsn(3), Lsn(9)));
    }

    #[test]
    fn what_two_logs_have_in_common() {
        // b was promoted at 101 while a went on; c follows a; d never met them.
        let a = lineage(&[(1, 10, 1), (2, 20, 51)]);
        let b = lineage(&[(1, 10, 1), (2, 20, 51), (3, 30, 101)]);
        let again = lineage(&[(1, 10, 1), (2, 20, 51), (3, 31, 91)]);
        let d = lineage(&[(1, 11, 1), (2, 21, 40)]);
        assert_eq!(b.common(&a, Lsn(100)), Common::Prefix);
        assert_eq!(b.common(&a, Lsn(51)), Common::Prefix);
        assert_eq!(b.common(&a, Lsn(50)), Common::Prefix);
        assert_eq!(b.common(&a, Lsn(101)), Common::DivergedAfter(Lsn(100)));
        assert_eq!(a.common(&b, Lsn(100)), Common::Prefix, "nothing of the branch was written");
        assert_eq!(a.common(&b, Lsn(101)), Common::DivergedAfter(Lsn(100)));
        // The same epoch begun twice.
        assert_eq!(b.common(&again, Lsn(90)), Common::Prefix);
        assert_eq!(b.common(&again, Lsn(95)), Common::DivergedAfter(Lsn(90)));
        assert_eq!(again.common(&b, Lsn(95)), Common::DivergedAfter(Lsn(90)));
        assert_eq!(b.common(&d, Lsn(1)), Common::Nothing);
        assert_eq!(b.common(&Lineage::default(), Lsn(7)), Common::Nothing);
        assert_eq!(b.common(&d, Lsn::ZERO), Common::Prefix, "nothing is a prefix of everything");
        // An id that two lineages place differently was made up.
        assert_eq!(b.common(&lineage(&[(1, 10, 2)]), Lsn(5)), Common::Nothing);
    }

    #[test]
    fn branches_without_records_leave_nothing_and_the_oldest_go() {
        let mut line = Lineage::default();
        assert_eq!(line.begin(Lsn(1), BranchId(1), Epoch(4)).epoch, Epoch(5));
        line.begin(Lsn(1), BranchId(2), Epoch::FIRST);
        assert_eq!(line, lineage(&[(6, 2, 1)]));
        line.begin(Lsn(9), BranchId(3), Epoch(40));
        assert_eq!(line, lineage(&[(6, 2, 1), (41, 3, 9)]));
        assert!(!line.follow(Branch { epoch: Epoch(41), id: BranchId(4), first_lsn: Lsn(20) }));
        for n in 0..BRANCHES_MAX as u64 {
            line.begin(Lsn(10 + n), BranchId(n), Epoch::FIRST);
        }
        assert_eq!((line.branches().len(), line.branches()[0].first_lsn), (BRANCHES_MAX, Lsn(10)));
        assert_eq!((line.branch_of(Lsn(9)), line.branch_end(Lsn(9))), (None, Lsn(9)));
        assert_eq!(line.branch_of(Lsn(12)).unwrap().id, BranchId(2));
    }

    #[test]
    fn a_state_belongs_to_the_history_or_not() {
        let line = lineage(&[(1, 10, 1), (3, 30, 101)]);
        for (epoch, lsn, held) in
            [(1, 0, true), (1, 100, true), (1, 101, false), (2, 50, false), (3, 99, false), (3, 100, true)]
        {
            assert_eq!(line.holds(Epoch(epoch), Lsn(lsn)), held, "{epoch} {lsn}");
        }
        assert!(line.holds_record(BranchId(10), Lsn(100)) && !line.holds_record(BranchId(10), Lsn(101)));
    }

    #[test]
    fn a_file_with_any_bit_flipped_is_refused() {
        let checksum = Checksum::portable();
        let line = lineage(&[(1, 10, 1), (3, 30, 101)]);
        let bytes = line.encode_file(checksum);
        assert_eq!(Lineage::decode_file(&bytes, checksum), Ok(line));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Lineage::decode_file(&flipped, checksum).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Lineage::decode_file(&bytes[..length], checksum).is_err(), "cut at {length}");
        }
    }
}
