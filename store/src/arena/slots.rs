//! Which slot a record gets, and what becomes of one that is free: the lists, the open regions, new segments.

use super::{
    Arena, EXACT_UNITS, FIRST_FIT_PROBES, FIRST_UNIT, Kind, LISTS, Offset, PAGE_BYTES, REGION_BYTES_MIN,
    Region,
};
use super::{SEGMENT_BYTES, SEGMENT_UNITS, SPAN_BYTES, list_of, offset_of, read_u32, segment_of, write_u32};
use crate::value::{FREE, LISTED, Layout, MIN_SLOT_BYTES, UNIT};

impl Arena {
    /// A slot of `layout`'s size in a segment of `class`, contents undefined.
    #[inline]
    pub fn allocate(&mut self, layout: &Layout, class: u8) -> Option<Offset> {
        let units = layout.units();
        let offset = if units as usize <= EXACT_UNITS {
            match self.take_listed(units, class) {
                Some(offset) => offset,
                None => self.take_front(units, class)?,
            }
        } else if layout.slot_bytes as usize <= SPAN_BYTES {
            self.take_long(units, class)?
        } else {
            let bytes =
                (layout.slot_bytes as usize + FIRST_UNIT as usize * UNIT).next_multiple_of(PAGE_BYTES);
            let numbers = bytes.div_ceil(SEGMENT_BYTES);
            let number = self.take_segment(numbers, bytes, Kind::Span(numbers as u32), class)?;
            offset_of(number, FIRST_UNIT)
        };
        self.segments[segment_of(offset)].live += layout.slot_bytes as usize;
        self.live += layout.slot_bytes as usize;
        Some(offset)
    }

    /// Takes the newest free slot of this size. Slots of a segment being emptied are dropped from the list on the
    /// way, which is work its compaction then need not do.
    #[inline]
    fn take_listed(&mut self, units: u32, class: u8) -> Option<Offset> {
        loop {
            let head = self.heads[class as usize][units as usize];
            if head == 0 {
                return None;
            }
            let bytes = self.at(head);
            debug_assert_eq!(read_u32(bytes, 0), u32::from(FREE | LISTED) | units << 8);
            let next = read_u32(bytes, 4);
            self.heads[class as usize][units as usize] = next;
            if next != 0 {
                write_u32(self.at_mut(next), 8, 0);
            }
            if !self.segments[segment_of(head)].evacuating {
                return Some(head);
            }
            self.mark_free(head, units);
        }
    }

    #[inline]
    fn take_front(&mut self, units: u32, class: u8) -> Option<Offset> {
        loop {
            if let Some(region) = &mut self.open[class as usize]
                && region.units >= units
            {
                let offset = offset_of(region.segment, region.unit);
                region.unit += units;
                region.units -= units;
                let rest = *region;
                if rest.units == 0 {
                    self.open[class as usize] = None;
                } else {
                    self.mark_free(offset_of(rest.segment, rest.unit), rest.units);
                }
                return Some(offset);
            }
            self.open_region(units, class)?;
        }
    }

    /// Opens a region of at least `units`: a long free slot if there is one, else a new segment.
    #[cold]
    fn open_region(&mut self, units: u32, class: u8) -> Option<()> {
        let wanted = units.max((REGION_BYTES_MIN / UNIT) as u32);
        let region = match self.take_longer(wanted, class) {
            Some((offset, units)) => {
                Region { segment: segment_of(offset), unit: offset & (SEGMENT_UNITS - 1), units }
            }
            None => self.new_region(class)?,
        };
        self.mark_free(offset_of(region.segment, region.unit), region.units);
        if let Some(old) = self.open[class as usize].replace(region) {
            self.list(offset_of(old.segment, old.unit), old.units);
        }
        Some(())
    }

    fn new_region(&mut self, class: u8) -> Option<Region> {
        let segment = self.take_segment(1, SEGMENT_BYTES, Kind::Shared, class)?;
        Some(Region { segment, unit: FIRST_UNIT, units: SEGMENT_UNITS - FIRST_UNIT })
    }

    /// A slot for a record between 4 KiB and 1 MiB: from the free slots, the open region or a new segment.
    #[cold]
    fn take_long(&mut self, units: u32, class: u8) -> Option<Offset> {
        if let Some((offset, have)) = self.take_longer(units, class) {
            if have > units {
                self.list(offset + units, have - units);
            }
            return Some(offset);
        }
        if self.open[class as usize].is_some_and(|region| region.units >= units) {
            return self.take_front(units, class);
        }
        // The longer of the two rests stays open, the other is listed.
        let mut region = self.new_region(class)?;
        let offset = offset_of(region.segment, region.unit);
        region.unit += units;
        region.units -= units;
        let rest = offset_of(region.segment, region.unit);
        match self.open[class as usize] {
            Some(old) if old.units >= region.units => self.list(rest, region.units),
            old => {
                self.mark_free(rest, region.units);
                self.open[class as usize] = Some(region);
                if let Some(old) = old {
                    self.list(offset_of(old.segment, old.unit), old.units);
                }
            }
        }
        Some(offset)
    }

    /// Takes a listed slot of at least `units` (more than [`EXACT_UNITS`]) off its list.
    fn take_longer(&mut self, units: u32, class: u8) -> Option<(Offset, u32)> {
        for list in list_of(units)..LISTS {
            let mut at = self.heads[class as usize][list];
            for _ in 0..FIRST_FIT_PROBES {
                if at == 0 {
                    break;
                }
                let bytes = self.at(at);
                let (have, next) = (read_u32(bytes, 0) >> 8, read_u32(bytes, 4));
                if have >= units && !self.segments[segment_of(at)].evacuating {
                    self.unlink(at, have);
                    return Some((at, have));
                }
                at = next;
            }
        }
        None
    }

    /// Says that the record at `offset` is dead. Its slot is reused unless its segment is sealed or being emptied.
    pub fn free(&mut self, offset: Offset, slot_bytes: u32) {
        let number = segment_of(offset);
        let segment = &mut self.segments[number];
        segment.live -= slot_bytes as usize;
        self.live -= slot_bytes as usize;
        if segment.keeps_dead {
            return self.note_dead(offset);
        }
        if let Kind::Span(_) = segment.kind {
            self.release_segment(number);
            return;
        }
        let units = slot_bytes / UNIT as u32;
        if segment.evacuating {
            self.mark_free(offset, units);
        } else {
            self.list(offset, units);
        }
    }

    /// Writes the header of a free slot that is on no list.
    #[inline]
    pub(super) fn mark_free(&mut self, offset: Offset, units: u32) {
        write_u32(self.at_mut(offset), 0, u32::from(FREE) | units << 8);
    }

    /// Puts a slot at the front of its list. A slot of one unit has no room for links and waits for compaction.
    pub(super) fn list(&mut self, offset: Offset, units: u32) {
        if (units as usize) * UNIT < MIN_SLOT_BYTES {
            self.mark_free(offset, units);
            return;
        }
        let class = self.class_of(offset);
        let (class, list) = (class as usize, list_of(units));
        let old = core::mem::replace(&mut self.heads[class][list], offset);
        let bytes = self.at_mut(offset);
        write_u32(bytes, 0, u32::from(FREE | LISTED) | units << 8);
        write_u32(bytes, 4, old);
        write_u32(bytes, 8, 0);
        if old != 0 {
            write_u32(self.at_mut(old), 8, offset);
        } else {
            self.tails[class][list] = offset;
        }
    }

    /// Takes a listed slot off its list, from wherever in it.
    pub fn unlink(&mut self, offset: Offset, units: u32) {
        let bytes = self.at(offset);
        debug_assert_eq!(read_u32(bytes, 0), u32::from(FREE | LISTED) | units << 8);
        let (next, previous) = (read_u32(bytes, 4), read_u32(bytes, 8));
        let (class, list) = (self.class_of(offset) as usize, list_of(units));
        if previous != 0 {
            write_u32(self.at_mut(previous), 4, next);
        } else {
            self.heads[class][list] = next;
        }
        if next != 0 {
            write_u32(self.at_mut(next), 8, previous);
        } else {
            self.tails[class][list] = previous;
        }
        self.mark_free(offset, units);
    }
}
