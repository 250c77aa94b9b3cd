//! Whether the reads and writes of a register could have happened one after the other, each at a moment between its
//! beginning and its end.
//!
//! Every write has a value of its own, so this needs no search (Gibbons and Korach, "Testing shared memories", 1997).
//! A write and the reads of its value are a *cluster*. From the first end in it to the last beginning the register must
//! have held that value, where the one is before the other: those spans may not overlap. Where it is not, all of the
//! cluster can happen at one moment in between, unless another value holds throughout.

use std::collections::BTreeMap;

/// What happened to one register.
#[derive(Clone, Debug, Default)]
pub struct History {
    writes: BTreeMap<u64, (u64, u64)>,
    reads: Vec<(u64, u64, u64)>,
}

impl History {
    /// A write of `value`, which no other writes, begun at `begin`; `end` is `u64::MAX` where nobody knows whether it
    /// happened.
    pub fn write(&mut self, value: u64, begin: u64, end: u64) {
        let before = self.writes.insert(value, (begin, end));
        assert!(before.is_none(), "{value} is written twice: the test is wrong");
    }

    /// A read that gave `value`.
    pub fn read(&mut self, value: u64, begin: u64, end: u64) {
        self.reads.push((value, begin, end));
    }

    /// How many operations.
    pub fn len(&self) -> usize {
        self.writes.len() + self.reads.len()
    }

    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why there is no order, if there is none.
    pub fn check(&self) -> Result<(), String> {
        // Of each value: the first end, the last beginning.
        let mut clusters: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (&value, &(begin, end)) in &self.writes {
            clusters.insert(value, (end, begin));
        }
        let mut seen = std::collections::BTreeSet::new();
        for &(value, begin, end) in &self.reads {
            let Some(&(written, _)) = self.writes.get(&value) else {
                return Err(format!("{value} was read and never written"));
            };
            if end < written {
                return Err(format!("{value} was read at {end}, before it was written at {written}"));
            }
            seen.insert(value);
            if let Some((first_end, last_begin)) = clusters.get_mut(&value) {
                *first_end = (*first_end).min(end);
                *last_begin = (*last_begin).max(begin);
            }
        }
        // A write without an end that nobody saw may never have happened.
        let happened = |value: &u64| seen.contains(value) || self.writes[value].1 != u64::MAX;
        clusters.retain(|value, _| happened(value));
        let mut forward: Vec<(u64, u64, u64)> = Vec::new();
        for (&value, &(first_end, last_begin)) in &clusters {
            if first_end < last_begin {
                forward.push((first_end, last_begin, value));
            }
        }
        forward.sort_unstable();
        for pair in forward.windows(2) {
            if pair[1].0 < pair[0].1 {
                return Err(format!(
                    "{} was there from {} to {} and {} from {} to {}",
                    pair[0].2, pair[0].0, pair[0].1, pair[1].2, pair[1].0, pair[1].1
                ));
            }
        }
        for (&value, &(first_end, last_begin)) in &clusters {
            let within = |span: &&(u64, u64, u64)| span.0 < last_begin && first_end < span.1;
            if first_end >= last_begin
                && let Some(span) = forward.iter().find(within)
            {
                return Err(format!(
                    "{value} was there at a moment from {last_begin} to {first_end}, but {} from {} to {}",
                    span.2, span.0, span.1
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]) -> History {
        let mut history = History::default();
        writes.iter().for_each(|&(value, begin, end)| history.write(value, begin, end));
        reads.iter().for_each(|&(value, begin, end)| history.read(value, begin, end));
        history
    }

    #[test]
    fn what_could_have_happened_passes() {
        assert_eq!(history(&[(1, 0, 1), (2, 5, 20)], &[(1, 6, 7), (2, 8, 9), (2, 30, 31)]).check(), Ok(()));
        assert_eq!(history(&[(1, 0, 10), (2, 0, 10)], &[(1, 11, 12)]).check(), Ok(()));
        assert_eq!(history(&[(1, 0, 1), (2, 5, u64::MAX)], &[(1, 50, 60)]).check(), Ok(()));
        assert_eq!(history(&[(1, 0, 1), (2, 5, u64::MAX)], &[(1, 50, 60), (2, 70, 71)]).check(), Ok(()));
    }

    #[test]
    fn what_could_not_have_happened_is_found() {
        let stale = history(&[(1, 0, 1), (2, 5, 6)], &[(1, 8, 9)]);
        assert!(stale.check().is_err(), "an old value is read after a new one was written");
        let back = history(&[(1, 0, 1), (2, 5, 20)], &[(2, 6, 7), (1, 8, 9)]);
        assert!(back.check().is_err(), "an old value is read after a new one was read");
        assert!(history(&[(1, 5, 6)], &[(1, 1, 2)]).check().is_err(), "a value is read before it is written");
        assert!(history(&[], &[(1, 1, 2)]).check().is_err(), "a value is read that nobody wrote");
        let hidden = history(&[(1, 0, 1), (2, 3, 4)], &[(1, 2, 9)]);
        assert_eq!(hidden.check(), Ok(()), "it was read early");
        let twice = history(&[(1, 0, 1), (2, 10, 12)], &[(1, 2, 3), (1, 20, 21)]);
        assert!(twice.check().is_err(), "a value came back");
    }
}
