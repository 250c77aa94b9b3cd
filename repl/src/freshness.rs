//! How far behind a replica is at most: a bound that no clock of another machine and no delay can make a lie.
//!
//! A replica stamps its acks with its own time, and the primary sends the latest stamp back with where it
//! stands. So a heartbeat with stamp *s* was written after *s*: whatever was durable at *s* is in the LSN it
//! names. Once that LSN is applied, the replica has everything there was at *s*, by its own clock. The bound
//! is loose by one round trip and one interval of acks, and it is a bound.

use alloc::collections::VecDeque;

use wal::lsn::Lsn;

/// Heartbeats that wait for their LSN to be applied. Beyond it later ones are left out: the bound gets
/// looser.
const MARKS_MAX: usize = 64;

/// What is known.
#[derive(Debug, Default)]
pub struct Freshness {
    marks: VecDeque<(Lsn, u64)>,
    fresh_as_of: Option<u64>,
}

impl Freshness {
    /// A heartbeat: with `echo`, a stamp of this connection, its sender may lack what became durable `age_us`
    /// before it.
    pub fn note(&mut self, durable_lsn: Lsn, echo: u64, age_us: u64, applied: Lsn) {
        let Some(as_of) = echo.checked_sub(age_us).filter(|_| echo > 0) else { return };
        if self.marks.len() < MARKS_MAX && self.marks.back().is_none_or(|&(_, last)| last < as_of) {
            self.marks.push_back((durable_lsn, as_of));
        }
        self.applied(applied);
    }

    /// Records have been applied.
    pub fn applied(&mut self, applied: Lsn) {
        while let Some(&(lsn, as_of)) = self.marks.front() {
            if lsn > applied {
                return;
            }
            self.fresh_as_of = self.fresh_as_of.max(Some(as_of));
            self.marks.pop_front();
        }
    }

    /// The connection is gone: stamps of another one say nothing about the next.
    pub fn disconnect(&mut self) {
        self.marks.clear();
    }

    /// The data was replaced, or is of another history from now on. What was all there was on one primary at some
    /// time says nothing about what another had by then.
    pub fn restart(&mut self) {
        *self = Freshness::default();
    }

    /// Everything that was durable then is there; none if nothing is known.
    pub fn fresh_as_of(&self) -> Option<u64> {
        self.fresh_as_of
    }

    /// How far behind the data may be; none if nothing is known.
    pub fn lag_us(&self, now_micros: u64) -> Option<u64> {
        self.fresh_as_of.map(|as_of| now_micros.saturating_sub(as_of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_as_fresh_as_the_latest_echo_it_has_applied() {
        let mut fresh = Freshness::default();
        fresh.note(Lsn(10), 0, 0, Lsn(10));
        assert_eq!(fresh.lag_us(5000), None, "the primary has not seen an ack");
        fresh.note(Lsn(10), 1000, 0, Lsn(10));
        assert_eq!(fresh.lag_us(5000), Some(4000));
        fresh.note(Lsn(20), 2000, 0, Lsn(10));
        fresh.note(Lsn(30), 3000, 0, Lsn(10));
        assert_eq!(fresh.lag_us(5000), Some(4000));
        fresh.applied(Lsn(29));
        assert_eq!(fresh.lag_us(5000), Some(3000));
        fresh.note(Lsn(30), 4000, 1500, Lsn(30));
        assert_eq!(fresh.lag_us(5000), Some(2000), "a replica of a replica is no fresher than that");
        fresh.note(Lsn(30), 4500, u64::MAX, Lsn(30));
        assert_eq!(fresh.lag_us(5000), Some(2000), "its primary knows nothing");
        for n in 0..1000 {
            fresh.note(Lsn(100 + n), 5000 + n, 0, Lsn(30));
        }
        assert_eq!(fresh.marks.len(), MARKS_MAX);
    }
}
