//! What an image asks of the arena: memory that stands still, and free slots that wait meanwhile.
//!
//! At the begin every segment is sealed, in time that depends on the number of segments only: the free lists are not
//! walked but set *aside*, heads and tails, and fresh ones are begun; the links inside the segments stay as they are and are
//! part of the image. A segment whose bytes are copied is written again at once. Slots that died while it was sealed
//! were only remembered; they are listed in small steps. At the end the lists that were set aside are joined behind the
//! new ones, a few lists at a time.
//!
//! A keyspace that was restored has its lists aside too until every page has been checked: nothing it does then leads
//! into a page that nobody has looked at.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::{
    Arena, FIRST_UNIT, Kind, LISTS, NO_SEGMENT, Offset, Region, Segment, Slot, segment_of, write_u32,
};
use super::{SEGMENT_BYTES, SEGMENT_UNITS, offset_of};
use crate::expiry::TTL_CLASSES;
use crate::image::{ImagePart, PART_BYTES_MAX, RegionInfo, RegionKind};
use crate::value::UNIT;

/// A region of the image that is being taken.
struct Part {
    number: usize,
    bytes: usize,
    /// Its memory, where the keyspace was cleared since.
    kept: Option<&'static mut [u8]>,
}

/// How far the copying has come.
pub(super) struct Capture {
    parts: Vec<Part>,
    at: usize,
    offset: usize,
    kept_bytes: usize,
}

impl Capture {
    /// Keeps the memory of a segment that is not copied yet; else it is given back.
    pub fn keep(&mut self, number: usize, memory: &'static mut [u8]) -> Option<&'static mut [u8]> {
        let part = self.parts[self.at..].binary_search_by_key(&number, |part| part.number);
        match part.map(|i| &mut self.parts[self.at + i]) {
            Ok(part) if part.kept.is_none() => {
                self.kept_bytes += memory.len();
                part.kept = Some(memory);
                None
            }
            _ => Some(memory),
        }
    }

    /// Bytes of memory that nothing but the image needs.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }
}

/// Free slots that wait.
pub(super) struct Aside {
    pub heads: Vec<[Offset; LISTS]>,
    pub tails: Vec<[Offset; LISTS]>,
    open: [Option<Region>; TTL_CLASSES],
    /// The lists must be left alone for now.
    is_held: bool,
    /// By segment: the units of slots that died while it was sealed.
    dead: Vec<Vec<u32>>,
    dead_slots: usize,
    /// Segments that are no longer sealed and have dead slots to be listed.
    listable: Vec<usize>,
    /// Lists before this one are joined.
    joined: usize,
}

/// The free lists and open regions of an image.
pub(crate) struct RestoredLists {
    pub heads: Vec<[Offset; LISTS]>,
    pub tails: Vec<[Offset; LISTS]>,
    pub open: [Option<Region>; TTL_CLASSES],
}

impl RestoredLists {
    pub fn new() -> RestoredLists {
        RestoredLists {
            heads: vec![[0; LISTS]; TTL_CLASSES],
            tails: vec![[0; LISTS]; TTL_CLASSES],
            open: [None; TTL_CLASSES],
        }
    }
}

impl Arena {
    // ---- taking an image --------------------------------------------------------------------------------

    /// The free lists that are not empty, for the meta of an image: class, list, head, tail.
    pub fn lists(&self) -> impl Iterator<Item = (usize, usize, Offset, Offset)> {
        let lists = self.heads.iter().zip(&self.tails).enumerate();
        lists.flat_map(|(class, (heads, tails))| {
            let lists = heads.iter().zip(tails).enumerate().filter(|(_, (head, _))| **head != 0);
            lists.map(move |(list, (&head, &tail))| (class, list, head, tail))
        })
    }

    /// The open regions by TTL class.
    pub fn open_regions(&self) -> &[Option<Region>; TTL_CLASSES] {
        &self.open
    }

    /// Whether free slots wait for an image, or to be put back into the lists.
    pub fn has_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// Seals everything; appends the regions of the image.
    pub fn begin_image(&mut self, regions: &mut Vec<RegionInfo>) {
        debug_assert!(self.image.is_none() && self.aside.is_none());
        let mut parts = Vec::with_capacity(self.segments.len());
        for (number, segment) in self.segments.iter_mut().enumerate() {
            let kind = match segment.kind {
                Kind::Shared => RegionKind::Segment,
                Kind::Span(_) => RegionKind::Span,
                Kind::Empty | Kind::Continuation => continue,
            };
            (segment.sealed, segment.keeps_dead) = (true, true);
            let bytes = self.memory[number].len();
            regions.push(RegionInfo { kind, number: number as u32, bytes });
            parts.push(Part { number, bytes, kept: None });
        }
        self.image = Some(Box::new(Capture { parts, at: 0, offset: 0, kept_bytes: 0 }));
        self.aside = Some(Box::new(Aside {
            heads: core::mem::replace(&mut self.heads, vec![[0; LISTS]; TTL_CLASSES]),
            tails: core::mem::replace(&mut self.tails, vec![[0; LISTS]; TTL_CLASSES]),
            open: core::mem::take(&mut self.open),
            is_held: true,
            dead: vec![Vec::new(); self.segments.len()],
            dead_slots: 0,
            listable: Vec::new(),
            joined: 0,
        }));
    }

    /// Hands out the next parts of the image, for which `budget` bytes are left. True: all of them.
    pub fn image_step(
        &mut self,
        first_region: usize,
        budget: &mut usize,
        sink: &mut dyn FnMut(ImagePart<'_>),
    ) -> bool {
        let Some(mut image) = self.image.take() else { return true };
        while *budget > 0 && image.at < image.parts.len() {
            let region = (first_region + image.at) as u32;
            let part = &mut image.parts[image.at];
            let memory = match &part.kept {
                Some(memory) => &memory[..],
                None => &*self.memory[part.number],
            };
            let end = part.bytes.min(image.offset + (*budget).min(PART_BYTES_MAX));
            sink(ImagePart { region, offset: image.offset, bytes: &memory[image.offset..end] });
            *budget -= end - image.offset;
            image.offset = end;
            if end == part.bytes {
                match part.kept.take() {
                    Some(memory) => {
                        image.kept_bytes -= memory.len();
                        self.released.push(memory);
                    }
                    None => self.unseal(image.parts[image.at].number),
                }
                image.at += 1;
                image.offset = 0;
            }
        }
        let done = image.at == image.parts.len();
        self.image = Some(image);
        done
    }

    /// The image is taken, or given up: nothing is sealed any more.
    pub fn end_image(&mut self) {
        let Some(mut image) = self.image.take() else { return };
        for part in &mut image.parts[image.at..] {
            match part.kept.take() {
                Some(memory) => self.released.push(memory),
                None => self.unseal(part.number),
            }
        }
        self.release_lists();
    }

    /// Bytes of slots that wait to be usable, and of memory that only the image needs, roughly.
    pub fn image_bytes(&self) -> usize {
        let dead = self.aside.as_ref().map_or(0, |aside| aside.dead_slots * size_of::<u32>() * 2);
        dead + self.image.as_ref().map_or(0, |image| image.kept_bytes)
    }

    /// Allows writing again.
    fn unseal(&mut self, number: usize) {
        let segment = &mut self.segments[number];
        (segment.sealed, segment.keeps_dead) = (false, false);
        match segment.kind {
            Kind::Span(_) if segment.live == 0 => self.release_segment(number),
            _ => {
                if let Some(aside) = &mut self.aside
                    && aside.dead.get(number).is_some_and(|dead| !dead.is_empty())
                {
                    aside.listable.push(number);
                }
            }
        }
    }

    /// A record died in a segment that keeps its dead.
    #[cold]
    #[inline(never)]
    pub(super) fn note_dead(&mut self, offset: Offset) {
        let number = segment_of(offset);
        if self.segments[number].kind == Kind::Shared {
            let aside = self.aside.as_mut().expect("something is aside while a segment keeps its dead");
            aside.dead[number].push(offset & (SEGMENT_UNITS - 1));
            aside.dead_slots += 1;
        }
    }

    // ---- putting things in order afterwards -------------------------------------------------------------

    /// From now on [`tidy_some`](Self::tidy_some) may join the lists.
    pub fn release_lists(&mut self) {
        if let Some(aside) = &mut self.aside {
            aside.is_held = false;
        }
    }

    /// Lists slots that died in sealed segments, and joins lists, about `budget` of both. True: there is more to do now.
    pub fn tidy_some(&mut self, budget: usize) -> bool {
        let Some(mut aside) = self.aside.take() else { return false };
        let mut budget = budget;
        while budget > 0
            && let Some(&number) = aside.listable.last()
        {
            let Some(unit) = aside.dead[number].pop() else {
                aside.dead[number] = Vec::new();
                aside.listable.pop();
                continue;
            };
            let offset = offset_of(number, unit);
            let Slot::Record(header) = self.slot(offset) else {
                unreachable!("a slot that died in its segment")
            };
            self.list(offset, header.slot_bytes / UNIT as u32);
            aside.dead_slots -= 1;
            budget -= 1;
        }
        if aside.is_held {
            let more = !aside.listable.is_empty();
            self.aside = Some(aside);
            return more;
        }
        while budget > 0 && aside.joined < TTL_CLASSES * LISTS {
            let (class, list) = (aside.joined / LISTS, aside.joined % LISTS);
            if list == 0
                && let Some(region) = aside.open[class].take()
            {
                self.reopen(class, region);
            }
            if aside.heads[class][list] != 0 {
                self.join(class, list, aside.heads[class][list], aside.tails[class][list]);
                // The lists that wait are checked too.
                aside.heads[class][list] = 0;
                budget -= 1;
            }
            aside.joined += 1;
        }
        if !aside.listable.is_empty() || aside.joined < TTL_CLASSES * LISTS {
            self.aside = Some(aside);
        }
        self.aside.is_some()
    }

    fn reopen(&mut self, class: usize, region: Region) {
        if self.open[class].is_none() {
            self.open[class] = Some(region);
        } else {
            self.list(offset_of(region.segment, region.unit), region.units);
        }
    }

    /// Appends the list from `head` to `tail` to a list in use.
    fn join(&mut self, class: usize, list: usize, head: Offset, tail: Offset) {
        if self.heads[class][list] == 0 {
            self.heads[class][list] = head;
        } else {
            let last = self.tails[class][list];
            write_u32(self.at_mut(last), 4, head);
            write_u32(self.at_mut(head), 8, last);
        }
        self.tails[class][list] = tail;
    }

    // ---- living on an image -----------------------------------------------------------------------------

    /// Adopts the segments of an image, whose pages are a file's. The lists stay aside until
    /// [`release_lists`](Self::release_lists).
    pub fn restore(&mut self, segments: Vec<Segment>, memory: Vec<&'static mut [u8]>, lists: RestoredLists) {
        debug_assert!(self.segments.is_empty() && self.memory.is_empty());
        for (segment, memory) in segments.iter().zip(&memory) {
            self.live += segment.live;
            self.due_next = self.due_next.min(segment.due);
            if !memory.is_empty() {
                self.capacity += memory.len() - FIRST_UNIT as usize * UNIT;
                self.mapped.insert(memory.as_ptr().addr());
            }
        }
        (self.segments, self.memory) = (segments, memory);
        // Records are not written where they lie: the kernel would copy a page for each. They move to memory of the
        // arena's own, to which others are written next.
        for segment in self.segments.iter_mut().filter(|segment| segment.kind == Kind::Shared) {
            (segment.sealed, segment.keeps_dead) = (true, true);
        }
        self.aside = Some(Box::new(Aside {
            heads: lists.heads,
            tails: lists.tails,
            open: lists.open,
            is_held: true,
            dead: vec![Vec::new(); self.segments.len()],
            dead_slots: 0,
            listable: Vec::new(),
            joined: 0,
        }));
    }

    /// Memory of a file that is not a segment's.
    pub fn note_mapped(&mut self, memory: &[u8]) {
        self.mapped.insert(memory.as_ptr().addr());
    }

    /// Memory for a region that moves out of a file.
    pub fn allocate_memory(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let reusable =
            self.released.iter().position(|memory| memory.len() == bytes && !self.is_mapped(memory));
        match reusable {
            Some(i) => Some(self.released.swap_remove(i)),
            None => self.source.allocate(bytes),
        }
    }

    /// Lets a segment lie elsewhere: `memory` has the same bytes.
    pub fn move_segment(&mut self, number: usize, memory: &'static mut [u8]) {
        debug_assert_eq!(memory.len(), self.memory[number].len());
        let old = core::mem::replace(&mut self.memory[number], memory);
        self.released.push(old);
    }

    /// Has a segment stand still while it is copied in parts: overwriting a record gives it another place.
    pub fn seal_moving(&mut self, number: usize) {
        let segment = &mut self.segments[number];
        (segment.sealed, segment.keeps_dead) = (true, true);
    }

    /// It is copied, or stays where it is.
    pub fn end_moving(&mut self, number: usize) {
        self.unseal(number);
    }
}

/// A segment of an image as its meta describes it.
pub(crate) fn restored_segment(kind: Kind, class: u8, live: usize, earliest: u64, latest: u64) -> Segment {
    let due = if earliest == u64::MAX { u64::MAX } else { earliest.saturating_add(1) };
    Segment { kind, class, live, earliest, latest, due, ..NO_SEGMENT }
}

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(PART_BYTES_MAX));
