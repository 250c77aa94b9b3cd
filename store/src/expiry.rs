//! Entries that end by themselves: TTL classes, and active expiry in bounded steps.
//!
//! An entry is gone the moment its millisecond has passed: every lookup checks ([`crate::keyspace`]). Active
//! expiry gives the memory back. It does not sample keys as Redis does: records with an expiry lie in segments
//! of their TTL class, every segment knows a lower bound of its expiries, and a segment is walked only when
//! something in it is due. How soon it is walked again depends on what the walk found, so that a segment
//! whose records expire one by one over an hour is not walked ten times a second.
//!
//! The slow sweep of the index's access fields rides along here, because it needs the same pacing.

use alloc::vec::Vec;

use crate::arena::{FIRST_UNIT, Offset, Slot};
use crate::keyspace::{Change, Keyspace};
use crate::time::{Nanos, Now};

/// What becomes of an entry's expiry when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It keeps the one it has, if any (KEEPTTL).
    Keep,
    /// It lives until it is removed.
    Never,
    /// It ends once this unix millisecond has passed.
    At(u64),
}

/// Class 0 holds what never expires. The others double roughly by how long a time to live people use: seconds for
/// locks, minutes for rate limits, hours for sessions, days for caches.
pub(crate) const TTL_CLASSES: usize = 6;
const CLASS_MS_MAX: [u64; TTL_CLASSES - 2] = [30_000, 600_000, 4 * 3_600_000, 48 * 3_600_000];

/// The class of a record that expires then (0 = never).
#[inline]
pub(crate) fn ttl_class(expires_at: u64, now_ms: u64) -> u8 {
    if expires_at == 0 {
        return 0;
    }
    let left = expires_at.saturating_sub(now_ms);
    1 + CLASS_MS_MAX.iter().take_while(|&&max| left > max).count() as u8
}

/// A segment is not walked more often than this.
const WALK_INTERVAL_MS: u64 = 100;
/// Nor so often that walking all records that can expire takes more than about two percent of the time: a slot
/// costs some 5 ns to look at.
const WALK_INTERVAL_NS_PER_RECORD: u64 = 250;
/// The access fields are looked through this often at least, if only for a part; see `Index::sweep_access`.
const SWEEP_INTERVAL_MS: u64 = 10_000;

/// Where active expiry stands.
#[derive(Default)]
pub(crate) struct ExpiryState {
    walk: Option<Walk>,
    expired: Vec<Offset>,
    swept_until: u64,
}

struct Walk {
    segment: usize,
    unit: u32,
    earliest: u64,
    latest: u64,
}

impl ExpiryState {
    /// What was being walked is gone.
    pub fn forget_walk(&mut self) {
        self.walk = None;
    }

    /// The segment being walked was given up.
    pub fn forget_segment(&mut self, number: usize) {
        if self.walk.as_ref().is_some_and(|walk| walk.segment == number) {
            self.walk = None;
        }
    }

    /// A record that expires then was written into a segment; the walk may have passed its place already.
    #[inline]
    pub fn note(&mut self, segment: usize, expires_at: u64) {
        if let Some(walk) = &mut self.walk
            && walk.segment == segment
        {
            walk.earliest = walk.earliest.min(expires_at);
            walk.latest = walk.latest.max(expires_at);
        }
    }
}

impl Keyspace {
    /// Removes entries whose time has come, looking at no more than `budget_records` slots. True: there is more
    /// to do now.
    pub fn expire_some(&mut self, now: Now, budget_records: usize) -> bool {
        // Segments that nobody has looked at are not walked: what has expired in them goes when it is met.
        if self.is_unsure() {
            return false;
        }
        self.sweep_access(now);
        let now_ms = now.unix_ms();
        let mut budget = budget_records;
        while budget > 0 {
            let mut walk = match self.expiry.walk.take() {
                Some(walk) => walk,
                None => {
                    if self.arena.due_next() > now_ms {
                        break;
                    }
                    let Some(segment) = self.arena.find_due(now_ms) else { break };
                    Walk { segment, unit: FIRST_UNIT, earliest: u64::MAX, latest: 0 }
                }
            };
            self.walk_segment(&mut walk, now, &mut budget);
            // A span that expired was released with its record.
            if walk.unit < self.arena.end_unit(walk.segment) {
                self.expiry.walk = Some(walk);
                return true;
            }
            self.end_walk(&walk, now_ms);
        }
        self.arena.due_next() <= now_ms || self.index.is_sweeping()
    }

    fn walk_segment(&mut self, walk: &mut Walk, now: Now, budget: &mut usize) {
        let now_ms = now.unix_ms();
        let end = self.arena.end_unit(walk.segment);
        let mut expired = core::mem::take(&mut self.expiry.expired);
        while walk.unit < end && *budget > 0 {
            while walk.unit < end && *budget > 0 && expired.len() < 16 {
                let (offset, slot, next) = self.arena.walk(walk.segment, walk.unit);
                if let Slot::Record(header) = slot
                    && header.expires_at != 0
                {
                    if header.is_expired(now_ms) {
                        self.index.prefetch(self.hash(self.arena.key(offset, &header)).0);
                        expired.push(offset);
                    } else {
                        walk.earliest = walk.earliest.min(header.expires_at);
                        walk.latest = walk.latest.max(header.expires_at);
                    }
                }
                walk.unit = next;
                *budget -= 1;
            }
            for offset in expired.drain(..) {
                let header = self.arena.header(offset);
                let hash = self.hash(self.arena.key(offset, &header));
                // In a segment that was sealed, dead records look alive; only the index knows.
                if let Some(place) = self.index.find_offset(hash.0, self.arena.key(offset, &header), offset) {
                    self.remove_at(place, hash, &header, Change::Expired);
                }
            }
        }
        self.expiry.expired = expired;
    }

    fn end_walk(&mut self, walk: &Walk, now_ms: u64) {
        if self.arena.end_unit(walk.segment) == FIRST_UNIT {
            return;
        }
        let spread = walk.latest.saturating_sub(walk.earliest);
        let cost = self.expires as u64 * WALK_INTERVAL_NS_PER_RECORD / 1_000_000;
        let delay = WALK_INTERVAL_MS.max(cost.min(spread / 32));
        let segment = self.arena.segment_mut(walk.segment);
        segment.earliest = walk.earliest;
        segment.latest = walk.latest;
        segment.not_before = now_ms + delay;
        let due = if walk.earliest == u64::MAX { u64::MAX } else { (walk.earliest + 1).max(now_ms + delay) };
        self.arena.set_due(walk.segment, due);
    }

    /// When [`Keyspace::expire_some`] has something to do next, counted from `now`; `None` if nothing is foreseen.
    pub fn next_expiry_check(&self, now: Now) -> Option<Nanos> {
        if self.is_unsure() {
            return None;
        }
        let now_ms = now.unix_ms();
        let mut due = self.arena.due_next();
        if self.expiry.walk.is_some() {
            due = now_ms;
        }
        if self.index.is_sweeping() {
            due = now_ms;
        } else if !self.index.is_empty() {
            due = due.min(now_ms + SWEEP_INTERVAL_MS);
        }
        (due != u64::MAX).then(|| Nanos(due.saturating_sub(now_ms).saturating_mul(1_000_000)))
    }

    /// Keeps the short clocks of the access fields from wrapping unnoticed: a part of the index every ten seconds.
    fn sweep_access(&mut self, now: Now) {
        let now_ms = now.unix_ms();
        if self.expiry.swept_until == 0 {
            self.expiry.swept_until = now_ms;
        }
        let since = now_ms.wrapping_sub(self.expiry.swept_until);
        let mut periods = 0;
        if since >= SWEEP_INTERVAL_MS {
            // A clock that was set back looks like a very long sleep: the whole index is due, spread over calls.
            periods = since / SWEEP_INTERVAL_MS;
            self.expiry.swept_until = now_ms;
        } else if !self.index.is_sweeping() {
            return;
        }
        let access = self.access;
        self.index.sweep(periods, access.sweep_periods(), |field| access.saturate(field, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_with_the_time_to_live() {
        assert_eq!(ttl_class(0, 5), 0);
        assert_eq!(ttl_class(1, 5), 1);
        let mut last = 1;
        for seconds in 0..400_000 {
            let class = ttl_class(1_000_000 + seconds * 1000, 1_000_000);
            assert!(class >= last && (class as usize) < TTL_CLASSES);
            last = class;
        }
        assert_eq!(last as usize, TTL_CLASSES - 1);
    }
}
