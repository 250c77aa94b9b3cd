//! WAIT: who waits until how many replicas have which record.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use wal::lsn::Lsn;

/// Names a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// What becomes of a wait at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitVerdict {
    /// So many replicas have the record; there is nothing to wait for, or no room to.
    Done(usize),
    /// [`Action::WaitDone`](super::Action::WaitDone) will tell.
    Waiting(WaitId),
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    replicas: usize,
    deadline: Option<u64>,
}

/// All waits, by what they wait for.
#[derive(Debug)]
pub(super) struct Waits {
    by_lsn: BTreeMap<(Lsn, WaitId), Wait>,
    by_deadline: BTreeSet<(u64, Lsn, WaitId)>,
    done: VecDeque<(WaitId, usize)>,
    next: u64,
    waits_max: usize,
}

impl Waits {
    pub(super) fn new(waits_max: usize) -> Waits {
        let (by_lsn, by_deadline, done) = Default::default();
        Waits { by_lsn, by_deadline, done, next: 1, waits_max }
    }

    /// None if there are too many.
    pub(super) fn begin(&mut self, lsn: Lsn, replicas: usize, deadline: Option<u64>) -> Option<WaitId> {
        if self.by_lsn.len() >= self.waits_max {
            return None;
        }
        let id = WaitId(self.next);
        self.next += 1;
        self.by_lsn.insert((lsn, id), Wait { replicas, deadline });
        if let Some(deadline) = deadline {
            self.by_deadline.insert((deadline, lsn, id));
        }
        Some(id)
    }

    pub(super) fn cancel(&mut self, id: WaitId) {
        let found = self.by_lsn.keys().find(|key| key.1 == id).copied();
        if let Some((lsn, id)) = found {
            self.end(lsn, id, None);
        }
        self.done.retain(|done| done.0 != id);
    }

    fn end(&mut self, lsn: Lsn, id: WaitId, count: Option<usize>) {
        let Some(wait) = self.by_lsn.remove(&(lsn, id)) else { return };
        if let Some(deadline) = wait.deadline {
            self.by_deadline.remove(&(deadline, lsn, id));
        }
        if let Some(count) = count {
            self.done.push_back((id, count));
        }
    }

    /// A replica has acknowledged up to `lsn`; `count` says how many have a record.
    pub(super) fn acknowledged(&mut self, lsn: Lsn, count: impl Fn(Lsn) -> usize) {
        let reached = self.by_lsn.range(..=(lsn, WaitId(u64::MAX)));
        let counted = reached.map(|(&(lsn, id), wait)| (lsn, id, wait.replicas, count(lsn)));
        let over: Vec<_> = counted.filter(|&(_, _, wanted, count)| count >= wanted).collect();
        over.into_iter().for_each(|(lsn, id, _, count)| self.end(lsn, id, Some(count)));
    }

    pub(super) fn expire(&mut self, now_micros: u64, count: impl Fn(Lsn) -> usize) {
        while let Some(&(deadline, lsn, id)) = self.by_deadline.first() {
            if deadline > now_micros {
                return;
            }
            self.end(lsn, id, Some(count(lsn)));
        }
    }

    pub(super) fn poll_done(&mut self) -> Option<(WaitId, usize)> {
        self.done.pop_front()
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.by_deadline.first().map(|first| first.0)
    }

    pub(super) fn len(&self) -> usize {
        self.by_lsn.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_enough_replicas_or_its_time() {
        let mut waits = Waits::new(3);
        let both = waits.begin(Lsn(10), 2, None).unwrap();
        let one = waits.begin(Lsn(20), 1, Some(500)).unwrap();
        let late = waits.begin(Lsn(30), 1, Some(700)).unwrap();
        assert_eq!(waits.begin(Lsn(5), 1, None), None, "three are enough");
        waits.acknowledged(Lsn(15), |_| 1);
        assert_eq!(waits.poll_done(), None);
        waits.acknowledged(Lsn(20), |lsn| if lsn <= Lsn(15) { 2 } else { 1 });
        assert_eq!((waits.poll_done(), waits.poll_done()), (Some((both, 2)), Some((one, 1))));
        assert_eq!(waits.deadline(), Some(700));
        waits.expire(699, |_| 0);
        assert_eq!(waits.poll_done(), None);
        waits.expire(700, |_| 0);
        assert_eq!((waits.poll_done(), waits.len(), waits.deadline()), (Some((late, 0)), 0, None));
        let cancelled = waits.begin(Lsn(40), 1, Some(900)).unwrap();
        waits.cancel(cancelled);
        assert_eq!((waits.len(), waits.deadline()), (0, None));
    }
}
