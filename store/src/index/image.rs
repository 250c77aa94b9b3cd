//! What an image asks of the index: pages copied before they change, and an index that lives in a file's pages.
//!
//! While an image is taken, a page (64 buckets) that is about to change for the first time is copied, and the copy waits
//! until its place comes: slabs are handed out from front to back. (Handed out at once, pages in random order would be as
//! many small writes to a file: a disk that took 900 MB/s in pieces of a megabyte took 62 in pieces of 4 KiB.) So
//! the slower the index goes out, the more pages wait, but never more than it has. What an access leaves behind is no
//! change: an image may hold an access field or the one before it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{
    Bucket, CHUNK_BUCKETS, CHUNK_SHIFT, CHUNKS_MAX, CHUNKS_MIN, DEPTH_MAX, Index, Piece, SLAB_BUCKETS,
};
use super::{SLAB_CHUNKS, SLAB_SHIFT, SLABS_MAX, SLOTS, Stashed, alternative, home_of, tag_of};
use crate::arena::{Offset, PAGE_BYTES, SEGMENT_BYTES};
use crate::image::{ImagePart, PART_BYTES_MAX, RegionInfo, RegionKind};

const PAGE_BUCKETS: usize = PAGE_BYTES / size_of::<Bucket>();
const PAGE_SHIFT: u32 = PAGE_BUCKETS.trailing_zeros();
const SLAB_PAGES: usize = SEGMENT_BYTES / PAGE_BYTES;
const WORDS: usize = SLAB_PAGES / 64;

/// A slab of the image that is being taken.
struct SlabCapture {
    region: u32,
    /// A bit for each page that is not copied yet; none for a slab that is not in the image.
    missing: [u64; WORDS],
    /// By number, the pages that were copied before they changed; empty while there is none.
    early: Vec<Option<Box<[u8]>>>,
    /// Its memory, where the index was cleared since.
    kept: Option<&'static mut [Bucket]>,
}

impl SlabCapture {
    fn is_missing(&self, page: usize) -> bool {
        self.missing[page / 64] >> (page % 64) & 1 != 0
    }

    fn note_copied(&mut self, page: usize) {
        self.missing[page / 64] &= !(1 << (page % 64));
    }
}

/// How far the copying has come.
pub(super) struct Capture {
    slabs: Vec<SlabCapture>,
    at: usize,
    page: usize,
    /// Pages that wait, and the most that ever did.
    early: usize,
    early_max: usize,
    kept: usize,
}

impl Capture {
    /// Keeps the memory of a slab that is not copied yet; else it is given back.
    pub fn keep(&mut self, number: usize, memory: &'static mut [Bucket]) -> Option<&'static mut [Bucket]> {
        match self.slabs.get_mut(number) {
            Some(slab) if slab.kept.is_none() && slab.missing != [0; WORDS] => {
                self.kept += 1;
                slab.kept = Some(memory);
                None
            }
            _ => Some(memory),
        }
    }

    fn copy_early(&mut self, number: usize, page: usize, memory: &[Bucket]) {
        let Some(slab) = self.slabs.get_mut(number) else { return };
        // What has the number of a slab that is kept is another slab.
        if slab.kept.is_some() || !slab.is_missing(page) {
            return;
        }
        slab.note_copied(page);
        let bytes = bytemuck::cast_slice(&memory[page << PAGE_SHIFT..][..PAGE_BUCKETS]);
        if slab.early.is_empty() {
            slab.early.resize(SLAB_PAGES, None);
        }
        slab.early[page] = Some(bytes.into());
        self.early += 1;
        self.early_max = self.early_max.max(self.early);
    }
}

impl Index {
    // ---- taking an image --------------------------------------------------------------------------------

    /// From now on pages are copied before they change; appends the regions of the image.
    pub fn begin_image(&mut self, regions: &mut Vec<RegionInfo>) {
        debug_assert!(self.image.is_none());
        let mut slabs = Vec::with_capacity(self.slabs.len());
        for (number, slab) in self.slabs.iter().enumerate() {
            let is_there = !slab.is_empty();
            let missing = [if is_there { u64::MAX } else { 0 }; WORDS];
            slabs.push(SlabCapture { region: regions.len() as u32, missing, early: Vec::new(), kept: None });
            if is_there {
                let (kind, bytes) = (RegionKind::Index, SEGMENT_BYTES);
                regions.push(RegionInfo { kind, number: number as u32, bytes });
            }
        }
        self.image = Some(Box::new(Capture { slabs, at: 0, page: 0, early: 0, early_max: 0, kept: 0 }));
    }

    /// Copies the page of a bucket that is about to change.
    #[cold]
    #[inline(never)]
    pub(super) fn copy_before_change(&mut self, id: u32) {
        if let Some(image) = &mut self.image {
            let number = (id >> SLAB_SHIFT) as usize;
            image.copy_early(number, (id as usize & (SLAB_BUCKETS - 1)) >> PAGE_SHIFT, self.slabs[number]);
        }
    }

    /// Copies what the image misses of a slab that is about to be emptied.
    pub(super) fn copy_before_reuse(&mut self, number: usize, memory: &[Bucket]) {
        if let Some(image) = &mut self.image {
            (0..SLAB_PAGES).for_each(|page| image.copy_early(number, page, memory));
        }
    }

    /// Hands out the next parts, for which `budget` bytes are left. True: all of them.
    pub fn image_step(&mut self, budget: &mut usize, sink: &mut dyn FnMut(ImagePart<'_>)) -> bool {
        let Some(image) = &mut self.image else { return true };
        while *budget > 0 && image.at < image.slabs.len() {
            let slab = &mut image.slabs[image.at];
            let is_early =
                |slab: &SlabCapture, page: usize| slab.early.get(page).is_some_and(Option::is_some);
            let first = (image.page..SLAB_PAGES).find(|&page| slab.is_missing(page) || is_early(slab, page));
            let Some(first) = first else {
                slab.early = Vec::new();
                if let Some(memory) = slab.kept.take() {
                    image.kept -= 1;
                    self.released.push(bytemuck::cast_slice_mut(memory));
                }
                (image.at, image.page) = (image.at + 1, 0);
                continue;
            };
            let (region, offset) = (slab.region, first * PAGE_BYTES);
            if let Some(bytes) = slab.early.get_mut(first).and_then(Option::take) {
                image.early -= 1;
                image.page = first + 1;
                sink(ImagePart { region, offset, bytes: &bytes });
                *budget = budget.saturating_sub(PAGE_BYTES);
                continue;
            }
            let most = (PART_BYTES_MAX.min(*budget) / PAGE_BYTES).max(1);
            let end = (first..SLAB_PAGES.min(first + most)).find(|&page| !slab.is_missing(page));
            let end = end.unwrap_or(SLAB_PAGES.min(first + most));
            (first..end).for_each(|page| slab.note_copied(page));
            let memory: &[Bucket] = match &slab.kept {
                Some(memory) => memory,
                None => self.slabs[image.at],
            };
            let bytes = bytemuck::cast_slice(&memory[first << PAGE_SHIFT..end << PAGE_SHIFT]);
            sink(ImagePart { region, offset, bytes });
            *budget = budget.saturating_sub(bytes.len());
            image.page = end;
        }
        image.at == image.slabs.len()
    }

    /// The image is taken, or given up.
    pub fn end_image(&mut self) {
        let Some(image) = self.image.take() else { return };
        for memory in image.slabs.into_iter().filter_map(|slab| slab.kept) {
            self.released.push(bytemuck::cast_slice_mut(memory));
        }
        // Slabs that were emptied meanwhile; see `give_back_chunk`.
        for slab in 0..self.slabs.len() {
            if self.slab_chunks[slab] == 0
                && !self.slabs[slab].is_empty()
                && self.free_chunks.len() >= 2 * SLAB_CHUNKS
            {
                self.give_back_slab(slab);
            }
        }
    }

    /// Bytes of pages copied early that wait, the most that ever waited, and of slabs that only the image needs.
    pub fn image_bytes(&self) -> (usize, usize, usize) {
        self.image.as_ref().map_or((0, 0, 0), |image| {
            (image.early * PAGE_BYTES, image.early_max * PAGE_BYTES, image.kept * SEGMENT_BYTES)
        })
    }

    // ---- what an image says of it -----------------------------------------------------------------------

    /// Everything of the index that is not in its slabs, as an image's meta has it.
    pub fn tables(&self) -> IndexTables<&[u32], &[Piece], impl Iterator<Item = (Offset, u16)>> {
        let stashed = self.stashed.iter().filter(|stashed| stashed.offset != 0);
        IndexTables {
            entries: self.entries as u64,
            slabs: self.slabs.iter().map(|slab| !slab.is_empty()).collect(),
            directory: &self.directory,
            pieces: &self.pieces,
            stashed: stashed.map(|stashed| (stashed.offset, stashed.access)),
        }
    }

    /// The index of an image. `tables` has passed [`check_tables`]; the stash is filled by
    /// [`restash`](Self::restash) next.
    pub fn restore(
        tables: IndexTables<Vec<u32>, Vec<Piece>, Vec<(Offset, u16)>>,
        slabs: Vec<&'static mut [u8]>,
    ) -> Index {
        let mut index = Index::bare();
        let slabs: Vec<&'static mut [Bucket]> = slabs.into_iter().map(slab_of).collect();
        let mut used = vec![false; slabs.len() * SLAB_CHUNKS];
        let mut is_free = vec![true; tables.pieces.len()];
        for &number in &tables.directory {
            is_free[number as usize] = false;
        }
        index.slab_chunks = vec![0; slabs.len()];
        index.chunks_used = 0;
        for (piece, _) in tables.pieces.iter().zip(&is_free).filter(|(_, is_free)| !**is_free) {
            for &chunk in &piece.chunks[..usize::from(piece.chunk_count)] {
                used[chunk as usize] = true;
                index.slab_chunks[chunk as usize / SLAB_CHUNKS] += 1;
                index.chunks_used += 1;
            }
        }
        let chunks = (0..used.len()).rev();
        let is_free_chunk = |&chunk: &usize| !used[chunk] && !slabs[chunk / SLAB_CHUNKS].is_empty();
        index.free_chunks = chunks.filter(is_free_chunk).map(|chunk| chunk as u32).collect();
        index.free_pieces = (0..is_free.len()).filter(|&i| is_free[i]).map(|i| i as u32).collect();
        index.depth = tables.directory.len().ilog2();
        index.directory = tables.directory;
        index.pieces = tables.pieces;
        index.entries = tables.entries as usize;
        index.slabs = slabs;
        index.is_cold = true;
        index
    }

    /// Puts an entry back into the stash.
    pub fn restash(&mut self, hash: u64, key: &[u8], offset: Offset, access: u16) {
        self.stash.entry(hash).or_default().insert(key.into(), self.stashed.len() as u32);
        self.stashed.push(Stashed { offset, access });
    }

    // ---- living on an image -----------------------------------------------------------------------------

    /// Everything is checked: pieces may shrink and grow as ever.
    pub fn end_cold(&mut self) {
        self.is_cold = false;
    }

    /// The piece of this hash may be read in full: its buckets and the keys of its records are checked.
    pub fn may_read(&mut self, hash: u64) {
        self.readable = self.piece_number(hash);
    }

    /// The bytes of a slab.
    pub fn slab_memory(&self, slab: usize) -> &[u8] {
        bytemuck::cast_slice(self.slabs[slab])
    }

    /// Lets a slab lie elsewhere: `memory` has the same bytes.
    pub fn move_slab(&mut self, slab: usize, memory: &'static mut [u8]) {
        let old = core::mem::replace(&mut self.slabs[slab], bytemuck::cast_slice_mut(memory));
        self.released.push(bytemuck::cast_slice_mut(old));
    }

    /// The home bucket of a hash and its alternative.
    pub fn buckets_of(&self, hash: u64) -> [u32; 2] {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        let home = home_of(hash, piece.buckets());
        [home, alternative(home, tag_of(hash), piece.buckets())].map(|bucket| piece.bucket_id(bucket))
    }

    /// Slab and page in which a bucket lies.
    pub fn page_of(id: u32) -> (usize, usize) {
        ((id >> SLAB_SHIFT) as usize, (id as usize & (SLAB_BUCKETS - 1)) >> PAGE_SHIFT)
    }

    /// The offsets in a bucket that a hash's tag leads to. True: entries are away from it.
    pub fn candidates(&self, id: u32, hash: u64, visit: &mut dyn FnMut(Offset)) -> bool {
        let bucket = self.bucket(id);
        let mut matches = bucket.matches(tag_of(hash));
        while matches != 0 {
            visit(bucket.offsets[matches.trailing_zeros() as usize]);
            matches &= matches - 1;
        }
        bucket.away() != 0
    }

    /// The offset of a stashed entry.
    pub fn stashed_offset(&self, hash: u64, key: &[u8]) -> Option<Offset> {
        let position = *self.stash.get(&hash)?.get(key)?;
        Some(self.stashed[position as usize].offset)
    }

    /// The first buckets of the chunks of a hash's piece, and of those it would take next.
    pub fn chunks_near(&self, hash: u64) -> impl Iterator<Item = u32> {
        let piece = self.pieces[self.piece_number(hash) as usize];
        let next = self.free_chunks.len().saturating_sub(CHUNKS_MIN);
        let own = piece.chunks.into_iter().take(usize::from(piece.chunk_count));
        own.chain(self.free_chunks[next..].iter().copied()).map(|chunk| chunk << CHUNK_SHIFT)
    }

    /// The offsets of all entries in the buckets of a hash's piece.
    pub fn piece_offsets(&self, hash: u64, visit: &mut dyn FnMut(Offset)) {
        let piece = self.pieces[self.piece_number(hash) as usize];
        for bucket in 0..piece.buckets() {
            let bucket = self.bucket(piece.bucket_id(bucket));
            let occupied = (0..SLOTS).filter(|&slot| bucket.tags[slot] != 0);
            occupied.for_each(|slot| visit(bucket.offsets[slot]));
        }
    }
}

/// A slab's memory as buckets; there is none where a slab is missing.
fn slab_of(memory: &'static mut [u8]) -> &'static mut [Bucket] {
    if memory.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(memory) }
}

/// What an image says of the index, apart from the slabs themselves.
pub(crate) struct IndexTables<D, P, S> {
    pub entries: u64,
    /// By slab number: whether there is one.
    pub slabs: Vec<bool>,
    pub directory: D,
    pub pieces: P,
    pub stashed: S,
}

/// Checks that directory and pieces make an index, whatever the slabs hold.
pub(crate) fn check_tables(
    tables: &IndexTables<Vec<u32>, Vec<Piece>, Vec<(Offset, u16)>>,
) -> Result<(), String> {
    let IndexTables { entries, slabs, directory, pieces, stashed } = tables;
    if slabs.len() > SLABS_MAX || !slabs.contains(&true) {
        return Err(format!("{} slabs; expected 1 to {SLABS_MAX}", slabs.len()));
    }
    if !directory.len().is_power_of_two() || directory.len() > 1 << DEPTH_MAX {
        let most = 1u32 << DEPTH_MAX;
        return Err(format!(
            "a directory of {} entries; expected a power of two up to {most}",
            directory.len()
        ));
    }
    let depth = directory.len().ilog2();
    let mut is_met = vec![false; pieces.len()];
    let mut is_used = vec![false; slabs.len() * SLAB_CHUNKS];
    let (mut at, mut found) = (0, stashed.len() as u64);
    while at < directory.len() {
        let number = directory[at] as usize;
        let Some(piece) = pieces.get(number) else {
            return Err(format!(
                "entry {at} of the directory is piece {number}; expected one below {}",
                pieces.len()
            ));
        };
        if u32::from(piece.depth) > depth {
            return Err(format!("piece {number} has depth {}; expected at most {depth}", piece.depth));
        }
        let width = 1usize << (depth - u32::from(piece.depth));
        let run = directory.get(at..at + width);
        let is_whole = run.is_some_and(|run| run.iter().all(|&other| other as usize == number));
        if !at.is_multiple_of(width) || !is_whole || core::mem::replace(&mut is_met[number], true) {
            return Err(format!(
                "piece {number} at entry {at} of the directory; expected it {width} times in a row, and once"
            ));
        }
        let count = usize::from(piece.chunk_count);
        if !(CHUNKS_MIN..=CHUNKS_MAX).contains(&count) {
            return Err(format!("piece {number} has {count} chunks; expected {CHUNKS_MIN} to {CHUNKS_MAX}"));
        }
        for &chunk in &piece.chunks[..count] {
            let slab = chunk as usize / SLAB_CHUNKS;
            if !slabs.get(slab).is_some_and(|&is_there| is_there)
                || core::mem::replace(&mut is_used[chunk as usize], true)
            {
                return Err(format!(
                    "piece {number} has chunk {chunk}; expected one of a slab that is there, and nobody else's"
                ));
            }
        }
        let slots = count * CHUNK_BUCKETS * SLOTS;
        if usize::from(piece.entries) > slots {
            return Err(format!("piece {number} has {} entries; expected up to {slots}", piece.entries));
        }
        found += u64::from(piece.entries);
        at += width;
    }
    if found != *entries {
        return Err(format!("{found} entries in pieces and stash; expected {entries}"));
    }
    Ok(())
}

const _: () = assert!(SLAB_PAGES.is_multiple_of(64));
