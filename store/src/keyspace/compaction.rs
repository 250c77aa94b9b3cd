//! Compaction: segments that are mostly dead are emptied in bounded steps, and their memory goes back.

use super::{Change, Keyspace, StoreError};
use crate::arena::{FIRST_UNIT, Kind, Offset, SEGMENT_BYTES, Segment, Slot};
use crate::time::Now;

/// Compaction starts when more than one byte in this many is dead.
const DEAD_DIVISOR: usize = 16;
/// Below this many dead bytes compaction is not worth a thought.
const DEAD_BYTES_MIN: usize = SEGMENT_BYTES;
/// A segment of which more than this share lives (in 256ths) is not worth moving.
const VICTIM_LIVE_MAX: usize = 240;
/// Slots that died while an image was taken, listed in one call.
const TIDY_BUDGET: usize = 512;

pub(super) struct Compaction {
    segment: usize,
    unit: u32,
}

impl Keyspace {
    /// Moves live records out of segments that are mostly dead and gives those back, looking at about `budget_bytes`, and
    /// at four times as many while twice the tolerated share is dead: writers must not outrun it. True: there is more to
    /// do now.
    pub fn compact_some(&mut self, now: Now, budget_bytes: usize) -> bool {
        while let Some(slab) = self.index.released_slab() {
            self.arena.give_back(slab);
        }
        self.arena.release_some(4);
        if self.image.is_some() || self.is_unsure() || self.arena.has_aside() {
            let more = self.arena.tidy_some(TIDY_BUDGET);
            return more || self.arena.can_release();
        }
        let is_behind = self.arena.dead_bytes() * DEAD_DIVISOR > 2 * self.arena.capacity_bytes();
        let mut budget = budget_bytes as isize * if is_behind { 4 } else { 1 };
        while budget > 0 {
            if self.compaction.is_none() {
                self.compaction = self.choose_victim();
            }
            let Some(mut at) = self.compaction.take() else { break };
            let done = match self.compact_segment(&mut at, now, &mut budget) {
                Ok(done) => done,
                Err(_) => {
                    // Nowhere to move to. What was moved stays moved, and the rest is tried again later.
                    self.compaction = Some(at);
                    return false;
                }
            };
            if !done {
                self.compaction = Some(at);
                return true;
            }
        }
        self.arena.can_release() || self.compaction.is_some() || self.victim().is_some()
    }

    fn wants_compaction(&self) -> bool {
        let dead = self.arena.dead_bytes();
        dead >= DEAD_BYTES_MIN && dead > self.arena.capacity_bytes() / DEAD_DIVISOR
    }

    /// The segment with the least live bytes, if there is enough dead and it is not nearly full of life.
    fn victim(&self) -> Option<usize> {
        if !self.wants_compaction() {
            return None;
        }
        let worth = |segment: &Segment| {
            segment.kind == Kind::Shared && segment.live * 256 <= SEGMENT_BYTES * VICTIM_LIVE_MAX
        };
        let segments = self.arena.segments().iter().enumerate();
        let candidates = segments.filter(|&(number, segment)| worth(segment) && !self.arena.is_open(number));
        candidates.min_by_key(|(_, segment)| segment.live).map(|(number, _)| number)
    }

    fn choose_victim(&mut self) -> Option<Compaction> {
        let segment = self.victim()?;
        self.arena.segment_mut(segment).evacuating = true;
        Some(Compaction { segment, unit: FIRST_UNIT })
    }

    /// Has the next calls of [`Keyspace::compact_some`] empty this segment, whatever lives in it. False: it cannot be
    /// emptied (it is open, one long record's, or not there), or another one is being emptied.
    pub fn evacuate_segment(&mut self, number: usize) -> bool {
        let is_shared = self.arena.segments().get(number).is_some_and(|s| s.kind == Kind::Shared);
        let rests = self.image.is_some() || self.is_unsure() || self.arena.has_aside();
        if !is_shared || rests || self.compaction.is_some() || self.arena.is_open(number) {
            return false;
        }
        self.arena.segment_mut(number).evacuating = true;
        self.compaction = Some(Compaction { segment: number, unit: FIRST_UNIT });
        true
    }

    /// Walks on through the segment being emptied. True: it is empty and was given up.
    fn compact_segment(
        &mut self,
        at: &mut Compaction,
        now: Now,
        budget: &mut isize,
    ) -> Result<bool, StoreError> {
        const BATCH: usize = 16;
        let end = self.arena.end_unit(at.segment);
        let mut batch = core::mem::take(&mut self.moving);
        while at.unit < end && *budget > 0 {
            let mut unit = at.unit;
            while unit < end && batch.len() < BATCH {
                let (offset, slot, next) = self.arena.walk(at.segment, unit);
                match slot {
                    Slot::Free { units, listed: true } => self.arena.unlink(offset, units),
                    Slot::Free { .. } => {}
                    Slot::Record(header) => {
                        self.index.prefetch(self.hash(self.arena.key(offset, &header)).0);
                        batch.push(offset);
                    }
                }
                *budget -= (next - unit) as isize * 8;
                unit = next;
            }
            for &offset in &batch {
                if let Err(error) = self.move_record(offset, now) {
                    batch.clear();
                    self.moving = batch;
                    return Err(error);
                }
            }
            batch.clear();
            at.unit = unit;
        }
        self.moving = batch;
        if at.unit < end {
            return Ok(false);
        }
        self.arena.release_segment(at.segment);
        self.expiry.forget_segment(at.segment);
        self.stats.compacted_segments += 1;
        Ok(true)
    }

    /// Leaves the segment being emptied as it is.
    pub(crate) fn stop_compaction(&mut self) {
        if let Some(compaction) = self.compaction.take() {
            self.arena.segment_mut(compaction.segment).evacuating = false;
        }
    }

    fn move_record(&mut self, offset: Offset, now: Now) -> Result<(), StoreError> {
        let header = self.arena.header(offset);
        let hash = self.hash(self.arena.key(offset, &header));
        let Some(place) = self.index.find_offset(hash.0, self.arena.key(offset, &header), offset) else {
            return Ok(());
        };
        if header.is_expired(now.unix_ms()) {
            self.remove_at(place, hash, &header, Change::Expired);
            return Ok(());
        }
        let target = self.allocate(&header.layout(), header.expires_at, now)?;
        self.arena.copy((offset, 0), (target, 0), header.slot_bytes as usize);
        self.index.set_offset(place, target);
        self.arena.free(offset, header.slot_bytes);
        if header.expires_at != 0 {
            self.arena.note_expiry(target, header.expires_at);
            self.expiry.note(self.arena.segment_number(target), header.expires_at);
        }
        self.stats.compacted_bytes += u64::from(header.slot_bytes);
        Ok(())
    }
}
