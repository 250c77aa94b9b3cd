//! The check of everything that must be true of segments and free lists, for tests.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

use super::{Arena, FIRST_UNIT, Kind, Offset, Slot, list_of, read_u32};
use crate::expiry::TTL_CLASSES;
use crate::value::{Header, UNIT};

impl Arena {
    /// Checks what must be true of segments and lists; `record` is told of every record and says whether it is
    /// live. For tests: it walks everything.
    pub fn check(&self, mut record: impl FnMut(Offset, &Header) -> bool) -> Result<(), String> {
        let (mut live_total, mut capacity) = (0, 0);
        let mut listed = BTreeSet::new();
        for (number, segment) in self.segments.iter().enumerate() {
            if matches!(segment.kind, Kind::Empty | Kind::Continuation) {
                if !self.memory[number].is_empty() || segment.live != 0 {
                    return Err(format!("segment {number} is {:?} and has memory or records", segment.kind));
                }
                continue;
            }
            capacity += self.memory[number].len() - FIRST_UNIT as usize * UNIT;
            let (mut unit, end) = (FIRST_UNIT, self.end_unit(number));
            let mut live = 0;
            while unit < end {
                let (at, slot, next) = self.walk(number, unit);
                match slot {
                    Slot::Free { listed: true, .. } => drop(listed.insert(at)),
                    Slot::Free { .. } => {}
                    Slot::Record(header) => {
                        if record(at, &header) {
                            live += header.slot_bytes as usize;
                            if header.expires_at != 0 && segment.class == 0 {
                                return Err(format!("a record that expires in class 0 at {at:#x}"));
                            }
                            if header.expires_at != 0
                                && !(segment.earliest..=segment.latest).contains(&header.expires_at)
                            {
                                return Err(format!("segment {number}: expiry bounds exclude {at:#x}"));
                            }
                        }
                    }
                }
                if next <= unit || next > end {
                    return Err(format!("the slot at {at:#x} has an impossible length"));
                }
                unit = next;
            }
            if live != segment.live {
                return Err(format!("segment {number}: {live} live bytes found, {} counted", segment.live));
            }
            if segment.due < self.due_next {
                return Err(format!("segment {number} is due before the next due moment"));
            }
            if segment.earliest != u64::MAX && segment.due > segment.earliest.max(segment.not_before) + 1 {
                return Err(format!("segment {number} would be walked too late"));
            }
            live_total += live;
        }
        if live_total != self.live || capacity != self.capacity {
            return Err(format!(
                "{live_total} live bytes in {capacity}, counted {} in {}",
                self.live, self.capacity
            ));
        }
        let mut linked = 0;
        let aside = self.aside.iter().flat_map(|aside| aside.heads.iter().zip(&aside.tails).enumerate());
        let lists = self.heads.iter().zip(&self.tails).enumerate().chain(aside);
        for (i, (class, (heads, tails))) in lists.enumerate() {
            // The first classes are those of the lists in use, and those may not lead into sealed segments.
            let in_use = i < TTL_CLASSES;
            for (list, (&head, &tail)) in heads.iter().zip(tails).enumerate() {
                let (mut at, mut previous) = (head, 0);
                while at != 0 {
                    let bytes = self.at(at);
                    let units = read_u32(bytes, 0) >> 8;
                    if !listed.contains(&at)
                        || list_of(units) != list
                        || read_u32(bytes, 8) != previous
                        || self.class_of(at) as usize != class
                        || (in_use && self.is_sealed(at))
                    {
                        return Err(format!("free list {list} of class {class} is broken at {at:#x}"));
                    }
                    linked += 1;
                    previous = at;
                    at = read_u32(bytes, 4);
                }
                if head != 0 && tail != previous {
                    return Err(format!(
                        "free list {list} of class {class} ends at {previous:#x}, not {tail:#x}"
                    ));
                }
            }
        }
        if linked != listed.len() {
            return Err(format!("{} slots say they are listed, {linked} are", listed.len()));
        }
        Ok(())
    }
}
