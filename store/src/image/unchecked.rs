//! Pages of a restored keyspace that nobody has looked at yet, and the looking.
//!
//! While there are any, each operation of the keyspace first has the pages it will touch checked: those of the buckets, of
//! every record that the buckets' tags lead to, and of the whole slot that it found. So nothing is read, and nothing written
//! to, that was not found right. What is decoded before a keyspace acts on it is held against its bounds, because
//! a checksum only says that the bytes are those that were written.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Cause, Damage, PAGE_BYTES, PageCheck, RegionInfo};
use crate::arena::{FIRST_UNIT, Offset, SEGMENT_UNITS, Slot, offset_of};
use crate::index::{Index, SLOTS};
use crate::keyspace::{KeyHash, Keyspace};
use crate::value::{FREE, Header, UNIT, same_bytes};

/// A region that was not moved into memory of the keyspace's own.
pub(super) struct Region {
    pub info: RegionInfo,
    /// Where it is mapped; what has its number and lies elsewhere is something else.
    pub address: usize,
    /// A bit for each page that is not checked.
    unchecked: Vec<u64>,
    pub left: usize,
}

impl Region {
    /// The first page that is unchecked; the region's end where none is.
    pub(super) fn first_unchecked(&self) -> usize {
        let word = self.unchecked.iter().position(|&word| word != 0);
        let page = word.map(|word| word * 64 + self.unchecked[word].trailing_zeros() as usize);
        page.unwrap_or(self.info.bytes / PAGE_BYTES)
    }
}

/// The regions of an image a keyspace lives on.
pub(crate) struct Unchecked {
    check: Box<dyn PageCheck + Send>,
    pub(super) regions: Vec<Region>,
    slabs: Vec<u32>,
    segments: Vec<u32>,
    pub(super) warm: super::warm::Warming,
}

const NONE: u32 = u32::MAX;

impl Unchecked {
    pub fn new(check: Box<dyn PageCheck + Send>) -> Unchecked {
        Unchecked {
            check,
            regions: Vec::new(),
            slabs: Vec::new(),
            segments: Vec::new(),
            warm: super::warm::Warming::default(),
        }
    }

    pub fn add(&mut self, info: RegionInfo, address: usize) {
        let pages = info.bytes / PAGE_BYTES;
        let mut unchecked = vec_of_ones(pages.div_ceil(64));
        if !pages.is_multiple_of(64)
            && let Some(last) = unchecked.last_mut()
        {
            *last = (1 << (pages % 64)) - 1;
        }
        let by_number = match info.kind {
            super::RegionKind::Index => &mut self.slabs,
            super::RegionKind::Segment | super::RegionKind::Span => &mut self.segments,
        };
        by_number.resize(by_number.len().max(info.number as usize + 1), NONE);
        by_number[info.number as usize] = self.regions.len() as u32;
        self.regions.push(Region { info, address, unchecked, left: pages });
    }

    /// The region a slab lies in, if pages of it are unchecked.
    fn of_slab(&self, slab: usize) -> Option<usize> {
        self.with_work(*self.slabs.get(slab)?)
    }

    /// The same of a segment.
    fn of_segment(&self, number: usize) -> Option<usize> {
        self.with_work(*self.segments.get(number)?)
    }

    fn with_work(&self, region: u32) -> Option<usize> {
        self.regions.get(region as usize).filter(|region| region.left > 0).map(|_| region as usize)
    }

    /// Checks those of some pages of a region that are not checked yet; returns how many it looked at.
    pub(super) fn check_pages(
        &mut self,
        region: usize,
        memory: &[u8],
        pages: core::ops::RangeInclusive<usize>,
    ) -> Result<usize, Damage> {
        let state = &mut self.regions[region];
        let mut looked_at = 0;
        for page in pages {
            let bit = 1 << (page % 64);
            if state.unchecked[page / 64] & bit == 0 {
                continue;
            }
            let bytes = &memory[page * PAGE_BYTES..][..PAGE_BYTES];
            self.check.check(region as u32, page as u32, bytes).map_err(|(expected, found)| Damage {
                region: region as u32,
                kind: state.info.kind,
                number: state.info.number,
                page: page as u32,
                cause: Cause::Checksum { expected, found },
            })?;
            state.unchecked[page / 64] &= !bit;
            state.left -= 1;
            self.warm.checked_bytes += PAGE_BYTES as u64;
            looked_at += 1;
        }
        Ok(looked_at)
    }

    /// The first region of which a page is unchecked.
    pub(super) fn next_with_work(&mut self) -> Option<usize> {
        let past = &mut self.warm.checked_regions;
        *past += self.regions[*past..].iter().take_while(|region| region.left == 0).count();
        (*past < self.regions.len()).then_some(*past)
    }

    /// Regions of which no page was checked yet.
    fn whole(&self) -> impl Iterator<Item = (usize, &Region)> {
        let is_whole = |region: &Region| region.left == region.info.bytes / PAGE_BYTES;
        self.regions.iter().enumerate().filter(move |(_, region)| is_whole(region))
    }

    /// Somebody else has checked all pages of a region.
    fn note_checked(&mut self, region: usize) {
        let state = &mut self.regions[region];
        self.warm.checked_bytes += (state.left * PAGE_BYTES) as u64;
        state.left = 0;
        state.unchecked.fill(0);
    }

    /// Pages that do not exist any more need no check.
    pub(super) fn forget(&mut self, region: usize) {
        let state = &mut self.regions[region];
        state.left = 0;
        state.unchecked = Vec::new();
    }
}

fn vec_of_ones(words: usize) -> Vec<u64> {
    alloc::vec![u64::MAX; words]
}

/// How much of a record is about to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Its header and its key.
    Key,
    /// All of its slot.
    Slot,
}

impl Keyspace {
    /// The regions of which nobody has looked at any page, by their number in the image, for somebody who has several threads to
    /// check them with: [`note_checked`](Self::note_checked) says that he has.
    pub fn unchecked_regions(&self) -> Vec<(u32, &[u8])> {
        let Some(unchecked) = &self.unchecked else { return Vec::new() };
        let memory = |region: &Region| match region.info.kind {
            super::RegionKind::Index => self.index.slab_memory(region.info.number as usize),
            super::RegionKind::Segment | super::RegionKind::Span => {
                self.arena.memory(region.info.number as usize)
            }
        };
        let regions = unchecked.whole().map(|(number, region)| (number as u32, region, memory(region)));
        let is_mapped = |region: &Region, memory: &[u8]| {
            memory.as_ptr().addr() == region.address && self.arena.is_mapped(memory)
        };
        regions
            .filter(|(_, region, memory)| is_mapped(region, memory))
            .map(|(number, _, memory)| (number, memory))
            .collect()
    }

    /// All pages of these regions are what they should be. They have not been written to since they were
    /// [`unchecked_regions`](Self::unchecked_regions).
    pub fn note_checked(&mut self, regions: &[u32]) {
        if let Some(unchecked) = &mut self.unchecked {
            regions.iter().for_each(|&region| unchecked.note_checked(region as usize));
        }
    }

    /// Remembers the first damage. Always false: what was asked for must not be used.
    #[cold]
    pub(super) fn note_damage(&mut self, damage: Damage) -> bool {
        self.damage.get_or_insert(damage);
        false
    }

    fn note_contents(&mut self, region: Option<usize>, byte: usize, what: &'static str) -> bool {
        let known = self.unchecked.as_ref().and_then(|unchecked| unchecked.regions.get(region?));
        let info = known
            .map_or(RegionInfo { kind: super::RegionKind::Segment, number: 0, bytes: 0 }, |region| {
                region.info
            });
        self.note_damage(Damage {
            region: region.unwrap_or(0) as u32,
            kind: info.kind,
            number: info.number,
            page: (byte / PAGE_BYTES) as u32,
            cause: Cause::Contents(what),
        })
    }

    /// Has the page of a bucket checked. False: it is damaged, or something was before.
    fn check_bucket(&mut self, id: u32) -> bool {
        if self.damage.is_some() {
            return false;
        }
        let (slab, page) = Index::page_of(id);
        let Some(unchecked) = &mut self.unchecked else { return true };
        let Some(region) = unchecked.of_slab(slab) else { return true };
        let memory = self.index.slab_memory(slab);
        if memory.as_ptr().addr() != unchecked.regions[region].address || !self.arena.is_mapped(memory) {
            unchecked.forget(region);
            return true;
        }
        match unchecked.check_pages(region, memory, page..=page) {
            Ok(_) => true,
            Err(damage) => self.note_damage(damage),
        }
    }

    /// Has bytes of a segment checked, as far as there are any.
    pub(super) fn check_bytes(&mut self, number: usize, bytes: core::ops::Range<usize>) -> bool {
        if self.damage.is_some() {
            return false;
        }
        let Some(unchecked) = &mut self.unchecked else { return true };
        let Some(region) = unchecked.of_segment(number) else { return true };
        let memory = self.arena.memory(number);
        if memory.as_ptr().addr() != unchecked.regions[region].address || !self.arena.is_mapped(memory) {
            unchecked.forget(region);
            return true;
        }
        let end = bytes.end.min(memory.len());
        if bytes.start >= end {
            return true;
        }
        match unchecked.check_pages(region, memory, bytes.start / PAGE_BYTES..=(end - 1) / PAGE_BYTES) {
            Ok(_) => true,
            Err(damage) => self.note_damage(damage),
        }
    }

    /// Has the record at `offset` checked; `key`: no more than is needed to see that it has another one.
    pub(crate) fn check_record(&mut self, offset: Offset, key: Option<&[u8]>, extent: Extent) -> bool {
        self.check_candidate(offset, key, extent).is_some()
    }

    /// The same, and whether it has this key. `None`: something is damaged.
    fn check_candidate(&mut self, offset: Offset, key: Option<&[u8]>, extent: Extent) -> Option<bool> {
        let (number, unit) = ((offset / SEGMENT_UNITS) as usize, offset % SEGMENT_UNITS);
        let region = self
            .unchecked
            .as_ref()
            .and_then(|unchecked| unchecked.segments.get(number).map(|&region| region as usize));
        let start = unit as usize * UNIT;
        let len = if number < self.arena.segments().len() { self.arena.memory(number).len() } else { 0 };
        if unit < FIRST_UNIT || start + UNIT > len {
            self.note_contents(region, start, "an entry that leads out of every segment");
            return None;
        }
        let is_right = self.check_bytes(number, start..start + Header::BYTES_MAX);
        let bytes = &self.arena.memory(number)[start..];
        let header = is_right.then(|| Header::read_untrusted(bytes))?;
        let Some(header) = header else {
            self.note_contents(region, start, "no record where an entry leads");
            return None;
        };
        let key_bytes = header.prefix as usize..header.value_start();
        let key_len = header.key_len as usize;
        if key.is_some_and(|key| key.len() != key_len) {
            return Some(false);
        }
        if !self.check_bytes(number, start..start + key_bytes.end) {
            return None;
        }
        if key.is_some_and(|key| !same_bytes(&self.arena.memory(number)[start..][key_bytes], key)) {
            return Some(false);
        }
        let is_whole =
            extent == Extent::Key || self.check_bytes(number, start..start + header.slot_bytes as usize);
        is_whole.then_some(true)
    }

    /// Has everything checked that a lookup of this key, and a change of its entry, will touch, in the order in which it
    /// does: where the entry is at home, nothing of its other bucket. False: something is damaged.
    #[cold]
    #[inline(never)]
    pub(crate) fn check_lookup(&mut self, key: &[u8], hash: KeyHash) -> bool {
        let [home, other] = self.index.buckets_of(hash.0);
        let mut is_away = true;
        for id in [home, other] {
            if !self.check_bucket(id) {
                return false;
            }
            let (mut offsets, mut count) = ([0; SLOTS], 0);
            let is_left = self.index.candidates(id, hash.0, &mut |offset| {
                offsets[count] = offset;
                count += 1;
            });
            for &offset in &offsets[..count] {
                match self.check_candidate(offset, Some(key), Extent::Slot) {
                    Some(false) => {}
                    has_key => return has_key.is_some(),
                }
            }
            if id == home {
                is_away = is_left || self.index.stashed() > 0;
            }
            if !is_away || other == home {
                break;
            }
        }
        let stashed = if is_away { self.index.stashed_offset(hash.0, key) } else { None };
        stashed.is_none_or(|offset| self.check_record(offset, Some(key), Extent::Slot))
    }

    /// Has everything checked that leads to a record with this key, wherever it may be. False: something is damaged.
    #[cold]
    pub(crate) fn check_key(&mut self, key: &[u8], hash: KeyHash) -> bool {
        let mut offsets = [0; 2 * SLOTS + 1];
        let mut count = 0;
        let [home, other] = self.index.buckets_of(hash.0);
        if !self.check_bucket(home) {
            return false;
        }
        let mut note = |offset| {
            offsets[count] = offset;
            count += 1;
        };
        if self.index.candidates(home, hash.0, &mut note) || self.index.stashed() > 0 {
            if !self.check_bucket(other) {
                return false;
            }
            if other != home {
                self.index.candidates(other, hash.0, &mut note);
            }
            self.index.stashed_offset(hash.0, key).into_iter().for_each(note);
        }
        offsets[..count].iter().all(|&offset| self.check_record(offset, Some(key), Extent::Slot))
    }

    /// Has the buckets of this hash's piece checked, in which a new entry may go anywhere, and those it would grow into.
    #[cold]
    #[inline(never)]
    pub(crate) fn check_piece(&mut self, hash: KeyHash) -> bool {
        let chunks: Vec<u32> = self.index.chunks_near(hash.0).collect();
        chunks.into_iter().all(|id| self.check_bucket(id))
    }

    /// Has the keys of all records of this hash's piece checked, so that it can grow.
    #[cold]
    pub(crate) fn check_piece_records(&mut self, hash: KeyHash) -> bool {
        if !self.check_piece(hash) {
            return false;
        }
        let mut offsets = Vec::new();
        self.index.piece_offsets(hash.0, &mut |offset| offsets.push(offset));
        let right = offsets.into_iter().all(|offset| self.check_record(offset, None, Extent::Key));
        if right {
            self.index.may_read(hash.0);
        }
        right
    }

    /// Has the piece checked that a sample with this random number will look at.
    #[cold]
    pub(crate) fn check_sample(&mut self, random: u64) -> bool {
        let hash = KeyHash(self.index.sampled_hash(random));
        self.check_piece(hash)
    }

    /// Has everything checked that a walk over a segment will touch of the slot at `unit`, which is the start of one: the slot,
    /// and what leads to it if it is a record. False: something is damaged.
    #[cold]
    pub(crate) fn check_walk(&mut self, number: usize, unit: u32, end_unit: u32) -> bool {
        let offset = offset_of(number, unit);
        if !self.check_slot(offset, end_unit) {
            return false;
        }
        let (_, slot, _) = self.arena.walk(number, unit);
        let Slot::Record(header) = slot else { return true };
        if !self.check_record(offset, None, Extent::Slot) {
            return false;
        }
        let key = self.arena.key(offset, &header).to_vec();
        self.check_key(&key, self.hash(&key))
    }

    /// Has the slot at `offset`, which is the start of one, checked as far as its length is concerned. False: it is damaged, or
    /// reaches beyond `end_unit`.
    fn check_slot(&mut self, offset: Offset, end_unit: u32) -> bool {
        let (number, unit) = ((offset / SEGMENT_UNITS) as usize, offset % SEGMENT_UNITS);
        let start = unit as usize * UNIT;
        if !self.check_bytes(number, start..start + Header::BYTES_MAX) {
            return false;
        }
        let bytes = &self.arena.memory(number)[start..];
        let units = if bytes[0] & FREE != 0 {
            u32::from_le_bytes([bytes[1], bytes[2], bytes[3], 0])
        } else {
            Header::read_untrusted(bytes).map_or(0, |header| header.slot_bytes / UNIT as u32)
        };
        // A span is one record, however long, counted as one unit.
        let fits = units > 0 && (self.arena.is_span(offset) || units <= end_unit - unit);
        fits || self.note_contents(
            self.unchecked.as_ref().and_then(|unchecked| unchecked.of_segment(number)),
            start,
            "a slot of an impossible length",
        )
    }
}
