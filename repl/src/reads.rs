//! Reads that want at least some LSN: answered now, made to wait a bounded time, or refused; never wrongly.
//!
//! An LSN alone can lie: after a failover another record may have it. So a reader that was told the branch
//! along with the LSN of its write gives both back, and learns if the write is not part of this history.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

use wal::lsn::Lsn;

use crate::lineage::{BranchId, Lineage};

/// Names a read that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What a reader has seen already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtLeast {
    /// Up to this record.
    pub lsn: Lsn,
    /// Of this branch, if it was told.
    pub branch: Option<BranchId>,
}

/// What becomes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// The data has it: answer now.
    Now,
    /// It may come: [`Reads::poll`] will tell.
    Wait(ReadId),
    /// It is not there, and the wait is over or there is no room to wait: `-BEHIND`, 409.
    Behind {
        /// What is there.
        applied_lsn: Lsn,
    },
    /// What the reader has seen is not known to be part of this history: it was lost in a failover, or is
    /// older than what is remembered of it.
    Lost,
    /// The data may be further behind than it may be: `-STALE`, 503.
    Stale {
        /// By so much; none if nothing is known.
        lag_us: Option<u64>,
    },
    /// There is no data yet: `-LOADING`, 503.
    Loading,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    branch: Option<BranchId>,
    deadline: u64,
}

/// Reads that wait.
#[derive(Debug)]
pub struct Reads {
    by_lsn: BTreeMap<(Lsn, ReadId), Waiting>,
    by_deadline: BTreeSet<(u64, Lsn, ReadId)>,
    done: VecDeque<(ReadId, ReadVerdict)>,
    next: u64,
    waiting_max: usize,
    refused: u64,
}

impl Reads {
    /// None wait, and no more than so many will.
    pub fn new(waiting_max: usize) -> Reads {
        let (by_lsn, by_deadline, done) = Default::default();
        Reads { by_lsn, by_deadline, done, next: 1, waiting_max, refused: 0 }
    }

    /// A read of data that is neither stale nor loading.
    pub fn read(&mut self, wanted: AtLeast, applied: Lsn, lineage: &Lineage, deadline: u64) -> ReadVerdict {
        match verdict(wanted, applied, lineage) {
            ReadVerdict::Behind { .. } if self.by_lsn.len() < self.waiting_max => {
                let id = ReadId(self.next);
                self.next += 1;
                self.by_lsn.insert((wanted.lsn, id), Waiting { branch: wanted.branch, deadline });
                self.by_deadline.insert((deadline, wanted.lsn, id));
                ReadVerdict::Wait(id)
            }
            verdict => {
                self.refused += u64::from(matches!(verdict, ReadVerdict::Behind { .. }));
                verdict
            }
        }
    }

    /// Records have been applied.
    pub fn applied(&mut self, applied: Lsn, lineage: &Lineage) {
        while let Some((&(lsn, id), waiting)) = self.by_lsn.first_key_value() {
            if lsn > applied {
                return;
            }
            let verdict = verdict(AtLeast { lsn, branch: waiting.branch }, applied, lineage);
            self.end(lsn, id, verdict);
        }
    }

    /// Time has passed.
    pub fn expire(&mut self, applied: Lsn, now_micros: u64) {
        while let Some(&(deadline, lsn, id)) = self.by_deadline.first() {
            if deadline > now_micros {
                return;
            }
            self.end(lsn, id, ReadVerdict::Behind { applied_lsn: applied });
        }
    }

    /// Nobody can be given what it waits for.
    pub fn end_all(&mut self, verdict: ReadVerdict) {
        while let Some((&(lsn, id), _)) = self.by_lsn.first_key_value() {
            self.end(lsn, id, verdict);
        }
    }

    fn end(&mut self, lsn: Lsn, id: ReadId, verdict: ReadVerdict) {
        if let Some(waiting) = self.by_lsn.remove(&(lsn, id)) {
            self.by_deadline.remove(&(waiting.deadline, lsn, id));
            self.done.push_back((id, verdict));
        }
    }

    /// A read that need not wait any more, to be answered before anything else is applied.
    pub fn poll(&mut self) -> Option<(ReadId, ReadVerdict)> {
        self.done.pop_front()
    }

    /// When the next one has waited long enough.
    pub fn deadline(&self) -> Option<u64> {
        self.by_deadline.first().map(|first| first.0)
    }

    /// Reads that wait, and those that found no room to.
    pub fn waiting(&self) -> (usize, u64) {
        (self.by_lsn.len(), self.refused)
    }
}

/// What a reader is told that does not wait. Never [`ReadVerdict::Wait`].
pub fn verdict(wanted: AtLeast, applied: Lsn, lineage: &Lineage) -> ReadVerdict {
    match wanted.branch {
        _ if applied < wanted.lsn => ReadVerdict::Behind { applied_lsn: applied },
        Some(branch) if wanted.lsn > Lsn::ZERO && !lineage.holds_record(branch, wanted.lsn) => {
            ReadVerdict::Lost
        }
        _ => ReadVerdict::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::lsn::Epoch;

    #[test]
    fn a_read_waits_for_its_lsn_and_its_branch() {
        let mut lineage = Lineage::default();
        lineage.begin(Lsn(1), BranchId(1), Epoch::FIRST);
        lineage.begin(Lsn(11), BranchId(2), Epoch::FIRST);
        let mut reads = Reads::new(2);
        let wanted = |lsn, branch| AtLeast { lsn: Lsn(lsn), branch: Some(BranchId(branch)) };
        assert_eq!(reads.read(wanted(10, 1), Lsn(10), &lineage, 50), ReadVerdict::Now);
        assert_eq!(reads.read(wanted(11, 1), Lsn(12), &lineage, 50), ReadVerdict::Lost);
        let any = AtLeast { lsn: Lsn(12), branch: None };
        assert_eq!(reads.read(any, Lsn(12), &lineage, 50), ReadVerdict::Now);
        let ReadVerdict::Wait(lost) = reads.read(wanted(13, 1), Lsn(12), &lineage, 50) else { panic!() };
        let ReadVerdict::Wait(late) = reads.read(wanted(20, 2), Lsn(12), &lineage, 40) else { panic!() };
        let behind = ReadVerdict::Behind { applied_lsn: Lsn(12) };
        assert_eq!(reads.read(any_at(99), Lsn(12), &lineage, 50), behind, "no room to wait");
        reads.applied(Lsn(15), &lineage);
        assert_eq!(reads.poll(), Some((lost, ReadVerdict::Lost)));
        assert_eq!((reads.poll(), reads.deadline()), (None, Some(40)));
        reads.expire(Lsn(15), 40);
        assert_eq!(reads.poll(), Some((late, ReadVerdict::Behind { applied_lsn: Lsn(15) })));
        assert_eq!((reads.waiting(), reads.deadline()), ((0, 1), None));
    }

    fn any_at(lsn: u64) -> AtLeast {
        AtLeast { lsn: Lsn(lsn), branch: None }
    }
}
