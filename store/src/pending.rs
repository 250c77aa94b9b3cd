//! Which keys have writes that are not durable yet.
//!
//! A read of such a key shows what a crash could take back, so its reply waits; a read of any other does not wait, and
//! must find that out quickly: one look into an open table of as many entries as there are writes on their way.
//! Entries leave in the order of their LSNs as the log becomes durable.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

/// An entry that is free. A key with this hash is looked for as its neighbour: at worst a reply waits in vain.
const FREE: u64 = 0;
const SLOTS_MIN: usize = 64;

/// Key hashes and the LSN of the last write to each.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Linear probing over a power of two of slots, at most half full.
    slots: Vec<(u64, u64)>,
    used: usize,
    /// In the order of their LSNs; a hash that was written again stands here again.
    order: VecDeque<(u64, u64)>,
}

impl Default for Pending {
    fn default() -> Pending {
        Pending { slots: vec![(FREE, 0); SLOTS_MIN], used: 0, order: VecDeque::new() }
    }
}

impl Pending {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The LSN of the last write to a key, if it may not be durable.
    #[inline]
    pub(crate) fn get(&self, hash: u64) -> Option<u64> {
        let hash = hash.max(1);
        let slot = self.slot(hash);
        (self.slots[slot].0 == hash).then(|| self.slots[slot].1)
    }

    /// Notes a write. LSNs of one table never fall.
    pub(crate) fn insert(&mut self, hash: u64, lsn: u64) {
        let hash = hash.max(1);
        if (self.used + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(hash);
        self.used += usize::from(self.slots[slot].0 == FREE);
        self.slots[slot] = (hash, lsn);
        self.order.push_back((lsn, hash));
    }

    /// Forgets what is durable now.
    pub(crate) fn settle(&mut self, durable: u64) {
        while let Some(&(lsn, hash)) = self.order.front().filter(|entry| entry.0 <= durable) {
            self.order.pop_front();
            let slot = self.slot(hash);
            if self.slots[slot] == (hash, lsn) {
                self.remove(slot);
            }
        }
    }

    /// The slot of a hash, or the free one where it would be.
    #[inline]
    fn slot(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.home(hash);
        while self.slots[slot].0 != hash && self.slots[slot].0 != FREE {
            slot = (slot + 1) & mask;
        }
        slot
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.slots.len() - 1)
    }

    /// Empties a slot and moves up what was displaced by it.
    fn remove(&mut self, mut slot: usize) {
        let mask = self.slots.len() - 1;
        let mut next = slot;
        loop {
            next = (next + 1) & mask;
            if self.slots[next].0 == FREE {
                break;
            }
            // May it lie at `slot`? Not if its home is behind it.
            let home = self.home(self.slots[next].0);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(slot) & mask {
                self.slots[slot] = self.slots[next];
                slot = next;
            }
        }
        self.slots[slot] = (FREE, 0);
        self.used -= 1;
    }

    fn grow(&mut self) {
        let larger = vec![(FREE, 0); self.slots.len() * 2];
        let old = core::mem::replace(&mut self.slots, larger);
        for (hash, lsn) in old.into_iter().filter(|entry| entry.0 != FREE) {
            let slot = self.slot(hash);
            self.slots[slot] = (hash, lsn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    /// Against a map, with hashes that collide and leave in order.
    #[test]
    fn it_is_a_map_whose_entries_leave_in_order() {
        let mut pending = Pending::default();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut random = 0x1234_5678_9abc_def1u64;
        let mut durable = 0;
        for lsn in 1..20_000u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let hash = (random >> 20) % 500;
            pending.insert(hash, lsn);
            model.insert(hash.max(1), lsn);
            if random.is_multiple_of(7) {
                durable += random % (lsn - durable + 1);
                pending.settle(durable);
                model.retain(|_, last| *last > durable);
            }
            let asked = (random >> 40) % 600;
            assert_eq!(pending.get(asked), model.get(&asked.max(1)).copied(), "LSN {lsn}, hash {asked}");
            assert_eq!(pending.used, model.len());
        }
        pending.settle(u64::MAX);
        assert!(pending.is_empty() && pending.order.is_empty());
        assert!(pending.slots.iter().all(|slot| slot.0 == FREE));
    }
}
