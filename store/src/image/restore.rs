//! A keyspace that lives on an image: made from its meta alone, its regions where somebody mapped them.
//!
//! The lists of free slots stay aside, compaction and active expiry rest and pieces of the index do not shrink until
//! everything is checked ([`super::warm`]); all else works from the start, on pages that are checked when they are first
//! used ([`super::unchecked`]).

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use super::unchecked::{Extent, Unchecked};
use super::{Damage, ImageError, PageCheck, RegionKind, meta};
use crate::arena::{Arena, FIRST_UNIT, PAGE_BYTES, SegmentSource, Slot};
use crate::index::Index;
use crate::keyspace::{Entry, Keyspace, KeyspaceOptions};
use crate::time::Now;

/// Where a walk over all records stands; see [`Keyspace::for_each_live`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveCursor {
    segment: usize,
    unit: u32,
}

impl LiveCursor {
    /// Before the first record.
    pub const START: LiveCursor = LiveCursor { segment: 0, unit: FIRST_UNIT };
}

impl Keyspace {
    /// A keyspace as it was when an image was begun. `regions` are those of [`ImageBegin`](super::ImageBegin), in its order;
    /// their pages are not looked at now but when they are first used, by `check`, and what is wrong then is
    /// [`damage`](Keyspace::damage). Whatever happens, the regions end with `source`, each released as a whole.
    ///
    /// `meta` may be anything: what it says is held against itself, the regions and `options.hash_seed`.
    pub fn from_image(
        options: KeyspaceOptions,
        source: Box<dyn SegmentSource>,
        meta: &[u8],
        regions: Vec<&'static mut [u8]>,
        check: Box<dyn PageCheck + Send>,
        now: Now,
    ) -> Result<Keyspace, ImageError> {
        let made = Keyspace::try_from_image(options, source, meta, regions, check, now);
        made.map_err(|(error, _source)| error)
    }

    /// The same for somebody who wants his source back.
    pub(super) fn try_from_image(
        options: KeyspaceOptions,
        mut source: Box<dyn SegmentSource>,
        meta: &[u8],
        regions: Vec<&'static mut [u8]>,
        check: Box<dyn PageCheck + Send>,
        now: Now,
    ) -> Result<Keyspace, (ImageError, Box<dyn SegmentSource>)> {
        let found = meta::decode(meta).and_then(|decoded| {
            fits(&decoded, &options, &regions)?;
            Ok(decoded)
        });
        let decoded = match found {
            Ok(decoded) => decoded,
            Err(error) => {
                regions.into_iter().for_each(|memory| source.release(memory));
                return Err((error, source));
            }
        };
        let mut unchecked = Unchecked::new(check);
        let mut arena = Arena::new(source);
        let mut slabs: Vec<&'static mut [u8]> = Vec::new();
        slabs.resize_with(decoded.index.slabs.len(), Default::default);
        let mut memory: Vec<&'static mut [u8]> = Vec::new();
        memory.resize_with(decoded.segments.len(), Default::default);
        for (info, region) in decoded.regions.iter().zip(regions) {
            unchecked.add(*info, region.as_ptr().addr());
            match info.kind {
                RegionKind::Index => {
                    arena.note_mapped(region);
                    slabs[info.number as usize] = region;
                }
                RegionKind::Segment | RegionKind::Span => memory[info.number as usize] = region,
            }
        }
        arena.restore(decoded.segments, memory, decoded.lists);
        let stash = decoded.index.stashed.clone();
        let index = Index::restore(decoded.index, slabs);
        let mut keyspace = Keyspace::with_parts(options, arena, index);
        keyspace.expires = decoded.summary.expires as usize;
        keyspace.access.resume(decoded.summary.access_nanos, decoded.summary.unix_us, now);
        unchecked.warm.total_bytes = decoded.regions.iter().map(|region| region.bytes as u64).sum();
        keyspace.unchecked = Some(Box::new(unchecked));
        // The stash is ordered by keys, and only the records have them.
        for (offset, access) in stash {
            if !keyspace.check_record(offset, None, Extent::Key) {
                let damage = keyspace.damage.expect("what was not right was noted");
                keyspace.release_everything();
                return Err((ImageError::Damaged(damage), keyspace.arena.take_source()));
            }
            let header = keyspace.arena.header(offset);
            let key = keyspace.arena.key(offset, &header);
            keyspace.index.restash(keyspace.hash(key).0, key, offset, access);
        }
        Ok(keyspace)
    }

    /// Gives all memory back to the source.
    pub(super) fn release_everything(&mut self) {
        self.arena.clear();
        self.index.release_slabs();
        while let Some(slab) = self.index.released_slab() {
            self.arena.give_back(slab);
        }
        self.arena.release_all();
    }

    /// What is wrong with the image the keyspace lives on, as far as somebody came across it. From then on every lookup finds
    /// nothing and every write is refused, so no answer that was given since can be used.
    #[inline]
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// Takes the damage of another keyspace for one's own: answers here were made of what is there.
    pub(crate) fn adopt_damage(&mut self, damage: &Damage) {
        self.damage.get_or_insert(*damage);
    }

    /// The same as [`damage`](Self::damage) for a tool that reads on elsewhere.
    pub fn take_damage(&mut self) -> Option<Damage> {
        self.damage.take()
    }

    /// The seed of the keys' hashes.
    pub fn hash_seed(&self) -> u64 {
        self.seed
    }

    /// Visits records that have not expired in the order in which they lie, about `budget_bytes` of them, and returns where to
    /// go on; `None`: that was all, or there is [`damage`](Self::damage). What is written between calls may be missed or met
    /// twice: this is for a keyspace that stands still.
    pub fn for_each_live(
        &mut self,
        from: LiveCursor,
        budget_bytes: usize,
        now: Now,
        visit: &mut dyn FnMut(&[u8], Entry<'_>),
    ) -> Option<LiveCursor> {
        let (mut at, mut budget) = (from, budget_bytes.max(1) as isize);
        while at.segment < self.arena.segments().len() {
            let end = self.arena.end_unit(at.segment);
            while at.unit < end {
                if budget <= 0 {
                    return Some(at);
                }
                if self.is_unsure() && !self.check_walk(at.segment, at.unit, end) {
                    return None;
                }
                let (offset, slot, next) = self.arena.walk(at.segment, at.unit);
                at.unit = next;
                let Slot::Record(header) = slot else {
                    budget -= 64;
                    continue;
                };
                budget -= header.slot_bytes as isize;
                if header.is_expired(now.unix_ms()) {
                    continue;
                }
                let key = self.arena.key(offset, &header);
                if let Some(place) = self.index.find_offset(self.hash(key).0, key, offset) {
                    visit(key, self.entry(place, &header));
                }
            }
            at = LiveCursor { segment: at.segment + 1, unit: FIRST_UNIT };
        }
        None
    }
}

/// Whether what came with a meta is what it describes.
fn fits(
    decoded: &meta::Decoded,
    options: &KeyspaceOptions,
    regions: &[&'static mut [u8]],
) -> Result<(), ImageError> {
    let seed = decoded.summary.hash_seed;
    if seed != options.hash_seed {
        let expected = options.hash_seed;
        return Err(ImageError::Meta(format!("its hash seed is {seed:#x}; expected {expected:#x}")));
    }
    if regions.len() != decoded.regions.len() {
        let (found, expected) = (regions.len(), decoded.regions.len());
        return Err(ImageError::Regions(format!("{found} regions; expected {expected}")));
    }
    for (number, (memory, info)) in regions.iter().zip(&decoded.regions).enumerate() {
        let found = memory.len();
        if found != info.bytes || !memory.as_ptr().addr().is_multiple_of(PAGE_BYTES) {
            let (address, expected) = (memory.as_ptr().addr(), info.bytes);
            return Err(ImageError::Regions(format!(
                "region {number} ({} {}) has {found} bytes at {address:#x}; expected {expected} on a page boundary",
                info.kind, info.number
            )));
        }
    }
    Ok(())
}
