//! The readers of a key that several have read: by reader, where the key stands in the reader's list.
//!
//! A hash table with open addressing in one piece of memory, 8 bytes a slot and between 7/16 and 7/8 full once it
//! has grown: whether a reader is in it is mostly seen in one line, which is asked at every GET of a key that many
//! have read. Readers are small numbers, given in turn: the table multiplies them, so that they lie apart.

use crate::arena::prefetch_line;
use alloc::vec::Vec;

/// No reader.
const FREE: u32 = u32::MAX;
/// Slots of the smallest.
const SLOTS_MIN: usize = 4;

/// See the module. Never holds fewer than two, but while it is made or emptied.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Reader and place; a power of two of them, or none.
    slots: Vec<(u32, u32)>,
    len: usize,
}

impl Crowd {
    pub(super) fn of_two(one: (u32, u32), two: (u32, u32)) -> Crowd {
        let mut crowd = Crowd { slots: alloc::vec![(FREE, 0); SLOTS_MIN], len: 0 };
        crowd.insert(one.0, one.1);
        crowd.insert(two.0, two.1);
        crowd
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What it allocates.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<(u32, u32)>()
    }

    /// Where the table would like to have a reader. It must have slots.
    #[inline]
    fn home(&self, reader: u32) -> usize {
        let bits = self.slots.len().trailing_zeros();
        (reader.wrapping_mul(0x9e37_79b1) >> (u32::BITS - bits)) as usize
    }

    /// The slot that has a reader, or that is free for it.
    #[inline]
    fn slot_of(&self, reader: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(reader);
        while self.slots[at].0 != reader && self.slots[at].0 != FREE {
            at = (at + 1) & mask;
        }
        at
    }

    /// Fetches what [`place_of`](Self::place_of) will look at first.
    #[inline(always)]
    pub(super) fn prefetch(&self, reader: u32) {
        prefetch_line(&self.slots[self.home(reader)]);
    }

    #[inline]
    pub(super) fn place_of(&self, reader: u32) -> Option<u32> {
        let (present, place) = self.slots[self.slot_of(reader)];
        (present == reader).then_some(place)
    }

    /// `false`: it was there, and stays as it is.
    pub(super) fn insert(&mut self, reader: u32, place: u32) -> bool {
        debug_assert!(reader != FREE);
        if self.place_of(reader).is_some() {
            return false;
        }
        if (self.len + 1) * 8 > self.slots.len() * 7 {
            self.resize(self.slots.len() * 2);
        }
        let at = self.slot_of(reader);
        self.slots[at] = (reader, place);
        self.len += 1;
        true
    }

    /// The key stands elsewhere in the list of a reader who is here.
    pub(super) fn moved(&mut self, reader: u32, place: u32) {
        let at = self.slot_of(reader);
        debug_assert_eq!(self.slots[at].0, reader);
        self.slots[at].1 = place;
    }

    pub(super) fn remove(&mut self, reader: u32) {
        let mask = self.slots.len() - 1;
        let mut hole = self.slot_of(reader);
        if self.slots[hole].0 == FREE {
            return;
        }
        self.len -= 1;
        // Whoever stands behind a hole and would be looked for before it or at it takes its place.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let (other, _) = self.slots[at];
            if other == FREE {
                break;
            }
            let from_home = at.wrapping_sub(self.home(other)) & mask;
            if from_home >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = (FREE, 0);
        if self.slots.len() > SLOTS_MIN && self.len * 4 < self.slots.len() {
            self.resize(self.slots.len() / 2);
        }
    }

    /// Who is left, if that is one.
    pub(super) fn only(&self) -> Option<(u32, u32)> {
        if self.len == 1 { self.iter().next() } else { None }
    }

    /// All of them, in an order that follows from what was done.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.slots.iter().copied().filter(|(reader, _)| *reader != FREE)
    }

    fn resize(&mut self, slots: usize) {
        let old = core::mem::replace(&mut self.slots, alloc::vec![(FREE, 0); slots]);
        for (reader, place) in old.into_iter().filter(|(reader, _)| *reader != FREE) {
            let at = self.slot_of(reader);
            self.slots[at] = (reader, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 29)) % bound
        }
    }

    #[test]
    fn it_is_a_map_and_gives_back_what_it_does_not_need() {
        let seed = 0x5eed_0001;
        let mut random = Random(seed);
        for readers in [3, 20, 300] {
            let mut model = BTreeMap::from([(0, 7), (1, 8)]);
            let mut crowd = Crowd::of_two((0, 7), (1, 8));
            for step in 0..30_000 {
                let (reader, place) = (random.below(readers) as u32, random.below(1 << 20) as u32);
                // It grows and shrinks by turns.
                let grows = random.below(100) < if step / 3000 % 2 == 0 { 70 } else { 30 };
                if grows {
                    let is_new = !model.contains_key(&reader);
                    assert_eq!(crowd.insert(reader, place), is_new, "seed {seed}, step {step}");
                    model.entry(reader).or_insert(place);
                } else if random.below(2) == 0 {
                    crowd.remove(reader);
                    model.remove(&reader);
                } else if let Some(known) = model.get_mut(&reader) {
                    crowd.moved(reader, place);
                    *known = place;
                }
                assert_eq!((crowd.len(), crowd.place_of(reader)), (model.len(), model.get(&reader).copied()));
                let only = model.iter().next().map(|(reader, place)| (*reader, *place));
                assert_eq!(crowd.only(), only.filter(|_| model.len() == 1));
                if step % 100 == 0 {
                    let all: BTreeMap<u32, u32> = crowd.iter().collect();
                    assert_eq!(all, model, "seed {seed}, step {step}");
                }
                let bound = (SLOTS_MIN * 8).max(model.len() * 4 * 8);
                assert!(crowd.bytes() <= bound, "{} bytes for {}", crowd.bytes(), model.len());
            }
        }
    }
}
