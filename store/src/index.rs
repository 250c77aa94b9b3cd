//! From key hash to record offset: cache-line buckets in pieces that grow one at a time.
//!
//! The 64 bits of a key's hash are spent like this, so that no choice leans on another:
//!
//! | bits | choose |
//! |---|---|
//! | 63..40 | the *piece*, through a directory indexed by as many of them as it is deep |
//! | 39..32 | the *tag*, eight bits beside each offset (0 means an empty slot) |
//! | 31..0 | the *home bucket* in the piece, by multiply-shift: any number of buckets will do |
//!
//! A **bucket** is one cache line: nine offsets, nine access fields, nine tags, and a byte of counts. An entry lies
//! in its home bucket or, when that was full, in one alternative that follows from bucket and tag alone (a reflection,
//! so that it is its own inverse): entries can be moved without reading their keys. Entries away from home (*guests*)
//! stand at the end of the bucket that hosts them. One nibble counts the guests, the other says how many of the bucket's
//! own entries are *away*, so that a miss normally touches one line.
//!
//! A **piece** has 64 to 112 buckets in chunks of 16. It grows by a chunk, and from the largest size it splits in two
//! of the smallest: at most a thousand records are read again, some tens of microseconds, and nothing else moves.
//! Chunks all have one size, so what one piece gives up another can take. A piece that cannot place an entry though it
//! is far from full holds many equal hashes, by attack or by astonishing chance; those entries go to an ordered *stash*,
//! where they cost a logarithm each, instead of splitting for ever.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use bytemuck::{Pod, Zeroable};

use crate::arena::{Offset, SEGMENT_BYTES, SegmentSource, prefetch_line};

mod image;
mod walk;

pub(crate) use image::{IndexTables, check_tables};

/// Entries a bucket can hold.
pub(crate) const SLOTS: usize = 9;

/// One cache line of the index.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    offsets: [Offset; SLOTS],
    access: [u16; SLOTS],
    tags: [u8; SLOTS],
    /// Low nibble: own entries that are away, stuck at 15 until the piece is rebuilt. High nibble: guests here.
    counts: u8,
}

const _: () = assert!(size_of::<Bucket>() == 64);

const AWAY_MAX: u8 = 15;
const ALL_SLOTS: u32 = (1 << SLOTS) - 1;

impl Bucket {
    #[inline(always)]
    fn away(&self) -> u8 {
        self.counts & 15
    }

    /// The first slot that holds a guest; all after it do.
    #[inline(always)]
    fn guests_from(&self) -> usize {
        SLOTS - (self.counts >> 4) as usize
    }

    /// A bit for each slot with this tag.
    #[inline(always)]
    fn matches(&self, tag: u8) -> u32 {
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
        {
            // The last sixteen bytes of the line: a slot and a half of access fields, the tags, the counts.
            let tail: [u8; 16] = bytemuck::bytes_of(self)[48..64].try_into().expect("sixteen bytes");
            let equal =
                safe_arch::cmp_eq_mask_i8_m128i(tail.into(), safe_arch::set_splat_i8_m128i(tag as i8));
            (safe_arch::move_mask_i8_m128i(equal) as u32 >> 6) & ALL_SLOTS
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
        {
            self.tags.iter().enumerate().fold(0, |mask, (slot, &t)| mask | u32::from(t == tag) << slot)
        }
    }

    #[inline(always)]
    fn occupied(&self) -> u32 {
        !self.matches(0) & ALL_SLOTS
    }

    fn is_full(&self) -> bool {
        self.matches(0) == 0
    }

    fn put(&mut self, slot: usize, entry: Item) {
        self.offsets[slot] = entry.offset;
        self.access[slot] = entry.access;
        self.tags[slot] = entry.tag;
    }

    fn item(&self, slot: usize) -> Item {
        Item { offset: self.offsets[slot], access: self.access[slot], tag: self.tags[slot] }
    }

    /// Places an entry that is at home here. The bucket must not be full.
    fn put_resident(&mut self, entry: Item) {
        let free = self.matches(0).trailing_zeros() as usize;
        debug_assert!(free < self.guests_from());
        self.put(free, entry);
    }

    /// Places an entry that is away from home. The bucket must not be full.
    fn put_guest(&mut self, entry: Item) {
        let slot = self.guests_from() - 1;
        if self.tags[slot] != 0 {
            let free = self.matches(0).trailing_zeros() as usize;
            self.put(free, self.item(slot));
        }
        self.put(slot, entry);
        self.counts += 16;
    }

    /// Empties a slot, keeping the guests together. True: it was a guest.
    fn take(&mut self, slot: usize) -> bool {
        let first_guest = self.guests_from();
        let hole = if slot < first_guest {
            slot
        } else {
            self.put(slot, self.item(first_guest));
            self.counts -= 16;
            first_guest
        };
        self.put(hole, Item { offset: 0, access: 0, tag: 0 });
        slot >= first_guest
    }

    fn note_away(&mut self) {
        if self.away() < AWAY_MAX {
            self.counts += 1;
        }
    }

    fn note_back(&mut self) {
        // A count that has stuck no longer knows how many there are.
        if self.away() < AWAY_MAX {
            debug_assert!(self.away() > 0);
            self.counts -= 1;
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy)]
struct Item {
    offset: Offset,
    access: u16,
    tag: u8,
}

/// An entry on its way from one shape of a piece to the next.
#[derive(Clone, Copy)]
struct Moving {
    hash: u64,
    offset: Offset,
    access: u16,
}

const CHUNK_BUCKETS: usize = 16;
const CHUNK_SHIFT: u32 = CHUNK_BUCKETS.trailing_zeros();
const SLAB_BUCKETS: usize = SEGMENT_BYTES / size_of::<Bucket>();
const SLAB_SHIFT: u32 = SLAB_BUCKETS.trailing_zeros();
const SLAB_CHUNKS: usize = SLAB_BUCKETS / CHUNK_BUCKETS;
const CHUNKS_MIN: usize = 4;
const CHUNKS_MAX: usize = 7;

/// A part of the hash space with buckets of its own: one half of a cache line. An image has it byte for byte.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(32))]
pub(crate) struct Piece {
    chunks: [u32; CHUNKS_MAX],
    entries: u16,
    chunk_count: u8,
    /// How many leading bits of the hash its entries share.
    depth: u8,
}

const _: () = assert!(size_of::<Piece>() == 32);

impl Piece {
    #[inline(always)]
    fn buckets(&self) -> u32 {
        u32::from(self.chunk_count) << CHUNK_SHIFT
    }

    #[inline(always)]
    fn bucket_id(&self, bucket: u32) -> u32 {
        (self.chunks[(bucket >> CHUNK_SHIFT) as usize] << CHUNK_SHIFT) | (bucket & (CHUNK_BUCKETS as u32 - 1))
    }

    fn slots(&self) -> usize {
        self.buckets() as usize * SLOTS
    }
}

/// Leading hash bits the directory can use; the scan cursor has room for as many.
const DEPTH_MAX: u32 = 24;
/// The directory never has more entries than this many for each piece, whatever the hashes look like.
const DIRECTORY_PER_PIECE: usize = 64;
/// The stash takes no more than this; a keyspace that needs more refuses the write.
const STASH_MAX: usize = 16 << 10;

#[inline(always)]
fn tag_of(hash: u64) -> u8 {
    ((hash >> 32) as u8).max(1)
}

#[inline(always)]
fn home_of(hash: u64, buckets: u32) -> u32 {
    ((u64::from(hash as u32) * u64::from(buckets)) >> 32) as u32
}

/// The other bucket for an entry with this tag: reflecting twice leads back.
#[inline(always)]
fn alternative(bucket: u32, tag: u8, buckets: u32) -> u32 {
    let centre = ((u32::from(tag).wrapping_mul(0x9e37_79b1) >> 16) * buckets) >> 16;
    if centre >= bucket { centre - bucket } else { centre + buckets - bucket }
}

/// Where an entry was found. Valid until the index is changed. Eight bytes, also as an `Option`, so that it travels in
/// registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bucket and slot, or [`STASHED`] and the position in the stash.
    at: u32,
    offset: NonZeroU32,
}

const STASHED: u32 = 1 << 31;
const SLOT_BITS: u32 = 4;
const _: () = assert!(SLOTS <= 1 << SLOT_BITS);
/// So that a bucket's number fits beside its slot: eight gibibytes of buckets, for 900 million keys a shard.
const SLABS_MAX: usize = 1 << (31 - SLOT_BITS - SLAB_SHIFT);

impl Place {
    #[inline(always)]
    fn new(bucket: u32, slot: u32, offset: Offset) -> Option<Place> {
        Some(Place { at: bucket << SLOT_BITS | slot, offset: NonZeroU32::new(offset)? })
    }

    fn stashed(position: u32, offset: Offset) -> Option<Place> {
        Some(Place { at: STASHED | position, offset: NonZeroU32::new(offset)? })
    }

    /// Where the record lies.
    #[inline(always)]
    pub fn offset(self) -> Offset {
        self.offset.get()
    }

    /// The position in the stash, if the entry is there.
    #[inline(always)]
    fn position(self) -> Option<usize> {
        (self.at & STASHED != 0).then_some((self.at & !STASHED) as usize)
    }

    #[inline(always)]
    fn bucket(self) -> u32 {
        self.at >> SLOT_BITS
    }

    #[inline(always)]
    fn slot(self) -> usize {
        (self.at & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// What the index must be able to ask about a record when it moves entries: only the record has the key.
pub(crate) trait Records {
    fn hash_of(&self, offset: Offset) -> u64;
    fn key_of(&self, offset: Offset) -> &[u8];
    fn prefetch(&self, offset: Offset);
}

/// Recognises the record that is looked for. A trait and not a closure so that it can be inlined by decree: outlined,
/// it costs as much as the rest of the lookup.
pub(crate) trait Probe {
    fn recognises(&self, offset: Offset) -> bool;
}

/// Looks for the entry that points to an offset.
impl Probe for Offset {
    #[inline(always)]
    fn recognises(&self, offset: Offset) -> bool {
        *self == offset
    }
}

/// Why an entry cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// Another slab is needed: call [`Index::add_slab`] and try again.
    NeedsSlab,
    /// The stash is full.
    StashFull,
    /// The index was restored, and a piece has to grow whose records have not been checked: see [`Index::may_read`].
    Unread,
}

#[derive(Clone, Copy)]
struct Stashed {
    offset: Offset,
    access: u16,
}

/// The directory, the pieces, the slabs their chunks lie in, and the stash.
pub(crate) struct Index {
    directory: Vec<u32>,
    depth: u32,
    pieces: Vec<Piece>,
    free_pieces: Vec<u32>,
    /// Empty where a slab was given back.
    slabs: Vec<&'static mut [Bucket]>,
    /// Chunks in use, by slab.
    slab_chunks: Vec<u32>,
    free_chunks: Vec<u32>,
    chunks_used: usize,
    /// Slabs in which no chunk is used any more, on their way out; see [`Index::released_slab`].
    released: Vec<&'static mut [u8]>,
    entries: usize,
    /// See [`Index::expect`].
    expected: usize,
    /// Equal hashes first, then by key; the value is a position in `stashed`.
    stash: BTreeMap<u64, BTreeMap<Box<[u8]>, u32>>,
    stashed: Vec<Stashed>,
    free_stashed: Vec<u32>,
    moving: Vec<Moving>,
    sweep_at: u32,
    sweep_left: usize,
    /// The image that is being taken; see [`image`].
    image: Option<Box<image::Capture>>,
    /// Restored, and not all of it checked: no piece shrinks, and one only grows that [`may_read`](Self::may_read) named.
    is_cold: bool,
    readable: u32,
    pub growths: u64,
    pub splits: u64,
    pub merges: u64,
}

impl Index {
    /// An index of one piece; `None` where the source refuses the first slab.
    pub fn new(source: &mut dyn SegmentSource) -> Option<Index> {
        let mut index = Index::bare();
        index.add_slab(source)?;
        index.start();
        Some(index)
    }

    /// An index without a piece.
    fn bare() -> Index {
        Index {
            directory: Vec::new(),
            depth: 0,
            pieces: Vec::new(),
            free_pieces: Vec::new(),
            slabs: Vec::new(),
            slab_chunks: Vec::new(),
            free_chunks: Vec::new(),
            chunks_used: 0,
            released: Vec::new(),
            entries: 0,
            expected: 0,
            stash: BTreeMap::new(),
            stashed: Vec::new(),
            free_stashed: Vec::new(),
            moving: Vec::new(),
            sweep_at: 0,
            sweep_left: 0,
            image: None,
            is_cold: false,
            readable: u32::MAX,
            growths: 0,
            splits: 0,
            merges: 0,
        }
    }

    fn start(&mut self) {
        let mut piece =
            Piece { chunks: [0; CHUNKS_MAX], entries: 0, chunk_count: CHUNKS_MIN as u8, depth: 0 };
        for chunk in &mut piece.chunks[..CHUNKS_MIN] {
            *chunk = self.take_chunk();
        }
        self.pieces.push(piece);
        self.directory.push(0);
    }

    /// Forgets every entry. All slabs but one go where [`Index::released_slab`] finds them; what an image that is being taken
    /// still needs, it keeps.
    pub fn clear(&mut self, source: &mut dyn SegmentSource) {
        // A slab of an image, or of a file, is better not written to, if there is memory.
        let fresh = match self.image.is_some() || self.is_cold {
            true => source.allocate(SEGMENT_BYTES),
            false => None,
        };
        let mut slabs = core::mem::take(&mut self.slabs);
        let first = match fresh {
            Some(memory) => bytemuck::cast_slice_mut(memory),
            None => {
                let number = slabs.iter().position(|slab| !slab.is_empty()).expect("an index has a slab");
                self.copy_before_reuse(number, slabs[number]);
                let first = core::mem::take(&mut slabs[number]);
                first.fill(Bucket::zeroed());
                first
            }
        };
        for (number, slab) in slabs.into_iter().enumerate().filter(|(_, slab)| !slab.is_empty()) {
            let slab = match &mut self.image {
                Some(image) => image.keep(number, slab),
                None => Some(slab),
            };
            self.released.extend(slab.map(bytemuck::cast_slice_mut));
        }
        self.slab_chunks.clear();
        self.free_chunks = Vec::new();
        self.directory = Vec::new();
        self.pieces = Vec::new();
        self.free_pieces = Vec::new();
        self.stash = BTreeMap::new();
        self.stashed = Vec::new();
        self.free_stashed = Vec::new();
        (self.depth, self.chunks_used, self.entries) = (0, 0, 0);
        (self.sweep_at, self.sweep_left) = (0, 0);
        self.is_cold = false;
        self.adopt_slab(first);
        self.start();
    }

    /// Gives up all slabs; the index cannot be used any more.
    pub fn release_slabs(&mut self) {
        let slabs = core::mem::take(&mut self.slabs).into_iter().filter(|slab| !slab.is_empty());
        self.released.extend(slabs.map(bytemuck::cast_slice_mut));
    }

    /// A slab that is no longer needed, to be given back to the source.
    pub fn released_slab(&mut self) -> Option<&'static mut [u8]> {
        self.released.pop()
    }

    pub fn len(&self) -> usize {
        self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Says how many entries there will be before long; 0: nobody knows. A piece that is full then grows in one step to
    /// what its share of them needs, where it would go through every size on the way: five moves of an entry become
    /// one. It never grows before it is full, so an expectation that is far too high costs a little memory.
    pub fn expect(&mut self, entries: usize) {
        self.expected = entries;
    }

    /// Bytes of the buckets, pieces and directory in use.
    pub fn used_bytes(&self) -> usize {
        self.chunks_used * CHUNK_BUCKETS * size_of::<Bucket>()
            + (self.pieces.len() - self.free_pieces.len()) * size_of::<Piece>()
            + self.directory.len() * size_of::<u32>()
            + (self.stashed.len() - self.free_stashed.len()) * 128
    }

    /// Bytes of memory held: whole slabs, and the tables as allocated.
    pub fn held_bytes(&self) -> usize {
        (self.slabs.iter().filter(|slab| !slab.is_empty()).count() + self.released.len()) * SEGMENT_BYTES
            + self.pieces.capacity() * size_of::<Piece>()
            + self.directory.capacity() * size_of::<u32>()
    }

    /// Entries that could not be placed in buckets.
    pub fn stashed(&self) -> usize {
        self.stashed.len() - self.free_stashed.len()
    }

    // ---- finding ----------------------------------------------------------------------------------------

    #[inline(always)]
    fn piece_number(&self, hash: u64) -> u32 {
        // Two shifts, because a depth of zero would shift by the width of the word.
        self.directory[((hash >> 1) >> (63 - self.depth)) as usize]
    }

    #[inline(always)]
    fn bucket(&self, id: u32) -> &Bucket {
        &self.slabs[(id >> SLAB_SHIFT) as usize][id as usize & (SLAB_BUCKETS - 1)]
    }

    #[inline(always)]
    fn bucket_mut(&mut self, id: u32) -> &mut Bucket {
        if self.image.is_some() {
            self.copy_before_change(id);
        }
        &mut self.slabs[(id >> SLAB_SHIFT) as usize][id as usize & (SLAB_BUCKETS - 1)]
    }

    /// The entry of `key` whose record `probe` recognises.
    #[inline(always)]
    pub fn find(&self, hash: u64, key: &[u8], probe: &impl Probe) -> Option<Place> {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        let tag = tag_of(hash);
        let id = piece.bucket_id(home_of(hash, piece.buckets()));
        let bucket = self.bucket(id);
        let mut candidates = bucket.matches(tag);
        while candidates != 0 {
            let slot = candidates.trailing_zeros();
            let offset = bucket.offsets[slot as usize];
            if probe.recognises(offset) {
                return Place::new(id, slot, offset);
            }
            candidates &= candidates - 1;
        }
        if bucket.away() == 0 && self.stash.is_empty() {
            return None;
        }
        self.find_away(hash, key, probe)
    }

    #[inline(never)]
    fn find_away(&self, hash: u64, key: &[u8], probe: &impl Probe) -> Option<Place> {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        let tag = tag_of(hash);
        let id = piece.bucket_id(alternative(home_of(hash, piece.buckets()), tag, piece.buckets()));
        let bucket = self.bucket(id);
        let mut candidates = bucket.matches(tag);
        while candidates != 0 {
            let slot = candidates.trailing_zeros();
            let offset = bucket.offsets[slot as usize];
            if probe.recognises(offset) {
                return Place::new(id, slot, offset);
            }
            candidates &= candidates - 1;
        }
        let slot = *self.stash.get(&hash)?.get(key)?;
        let offset = self.stashed[slot as usize].offset;
        probe.recognises(offset).then(|| Place::stashed(slot, offset))?
    }

    /// The entry that points to `offset`, whose record has this key.
    #[inline]
    pub fn find_offset(&self, hash: u64, key: &[u8], offset: Offset) -> Option<Place> {
        self.find(hash, key, &offset)
    }

    /// Asks the processor for the home bucket.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        prefetch_line(self.bucket(piece.bucket_id(home_of(hash, piece.buckets()))));
    }

    /// Tells `prefetch` of the offsets that may be the entry's; the home bucket should be near by now. True: the entry
    /// is not at home, its alternative bucket is being fetched, and [`prefetch_away`](Self::prefetch_away) can go on.
    #[inline(always)]
    pub fn prefetch_records(&self, hash: u64, mut prefetch: impl FnMut(Offset)) -> bool {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        let tag = tag_of(hash);
        let home = home_of(hash, piece.buckets());
        let bucket = self.bucket(piece.bucket_id(home));
        let mut candidates = bucket.matches(tag);
        if candidates == 0 && bucket.away() != 0 {
            prefetch_line(self.bucket(piece.bucket_id(alternative(home, tag, piece.buckets()))));
            return true;
        }
        while candidates != 0 {
            prefetch(bucket.offsets[candidates.trailing_zeros() as usize]);
            candidates &= candidates - 1;
        }
        false
    }

    /// The same for an entry that is away from home, once its alternative bucket is likely to be near.
    #[inline]
    pub fn prefetch_away(&self, hash: u64, mut prefetch: impl FnMut(Offset)) {
        let piece = &self.pieces[self.piece_number(hash) as usize];
        let tag = tag_of(hash);
        let away = alternative(home_of(hash, piece.buckets()), tag, piece.buckets());
        let bucket = self.bucket(piece.bucket_id(away));
        let mut candidates = bucket.matches(tag);
        while candidates != 0 {
            prefetch(bucket.offsets[candidates.trailing_zeros() as usize]);
            candidates &= candidates - 1;
        }
    }

    // ---- changing one entry -----------------------------------------------------------------------------

    #[inline(always)]
    pub fn access(&self, place: Place) -> u16 {
        match place.position() {
            None => self.bucket(place.bucket()).access[place.slot()],
            Some(position) => self.stashed[position].access,
        }
    }

    #[inline(always)]
    pub fn set_access(&mut self, place: Place, access: u16) {
        match place.position() {
            None => {
                // An image may have it or not.
                let id = place.bucket();
                let bucket = &mut self.slabs[(id >> SLAB_SHIFT) as usize][id as usize & (SLAB_BUCKETS - 1)];
                bucket.access[place.slot()] = access;
            }
            Some(position) => self.stashed[position].access = access,
        }
    }

    /// Points an entry to where its record lies now.
    #[inline]
    pub fn set_offset(&mut self, place: Place, offset: Offset) {
        match place.position() {
            None => self.bucket_mut(place.bucket()).offsets[place.slot()] = offset,
            Some(position) => self.stashed[position].offset = offset,
        }
    }

    /// Removes the entry at `place`, whose key has this hash.
    pub fn remove(&mut self, place: Place, hash: u64, key: &[u8], records: &impl Records) {
        self.entries -= 1;
        if let Some(position) = place.position() {
            let equal = self.stash.get_mut(&hash).expect("the stash has this hash");
            equal.remove(key);
            if equal.is_empty() {
                self.stash.remove(&hash);
            }
            self.stashed[position].offset = 0;
            self.free_stashed.push(position as u32);
            return;
        }
        let number = self.piece_number(hash);
        let piece = &mut self.pieces[number as usize];
        piece.entries -= 1;
        let piece = *piece;
        if self.bucket_mut(place.bucket()).take(place.slot()) {
            self.bucket_mut(piece.bucket_id(home_of(hash, piece.buckets()))).note_back();
        }
        if usize::from(piece.entries) * SHRINK_BELOW < piece.slots()
            && (piece.depth > 0 || usize::from(piece.chunk_count) > CHUNKS_MIN)
            && !self.is_cold
        {
            self.shrink(number, hash, records);
        }
    }

    /// Adds an entry for a key that has none.
    pub fn insert(
        &mut self,
        hash: u64,
        offset: Offset,
        access: u16,
        records: &impl Records,
    ) -> Result<(), InsertError> {
        let moving = Moving { hash, offset, access };
        loop {
            let number = self.piece_number(hash);
            let piece = &self.pieces[number as usize];
            let is_full = usize::from(piece.entries) * 16 >= piece.slots() * FILL_MAX_16THS;
            if !is_full && self.place(number, moving) {
                break;
            }
            if !self.grow(number, hash, records)? {
                // A piece that may not grow is filled to the last slot first.
                if !self.place(number, moving) {
                    self.stash(moving, records)?;
                }
                break;
            }
        }
        self.entries += 1;
        Ok(())
    }

    /// Places an entry in its home bucket, in its alternative, or in the room one displaced entry makes.
    fn place(&mut self, number: u32, moving: Moving) -> bool {
        let piece = self.pieces[number as usize];
        let buckets = piece.buckets();
        let item = Item { offset: moving.offset, access: moving.access, tag: tag_of(moving.hash) };
        let home = home_of(moving.hash, buckets);
        let home_id = piece.bucket_id(home);
        if !self.bucket(home_id).is_full() || self.displace(&piece, home, DISPLACE_FURTHER) {
            self.bucket_mut(home_id).put_resident(item);
        } else {
            let other = alternative(home, item.tag, buckets);
            if other == home
                || (self.bucket(piece.bucket_id(other)).is_full()
                    && !self.displace(&piece, other, DISPLACE_FURTHER))
            {
                return false;
            }
            self.bucket_mut(piece.bucket_id(other)).put_guest(item);
            self.bucket_mut(home_id).note_away();
        }
        self.pieces[number as usize].entries += 1;
        true
    }

    /// Makes room in a full bucket by moving one of its entries to that entry's other bucket, in which the same is tried
    /// `further` times if it is full too. Guests are sent home before residents are sent away. One step finds room
    /// nearly always and two find it in practically every piece that has any.
    fn displace(&mut self, piece: &Piece, bucket: u32, further: u32) -> bool {
        let id = piece.bucket_id(bucket);
        let other_of = |item: Item| alternative(bucket, item.tag, piece.buckets());
        for slot in (0..SLOTS).rev() {
            let other = other_of(self.bucket(id).item(slot));
            if other != bucket && !self.bucket(piece.bucket_id(other)).is_full() {
                self.exchange(piece, id, slot, other);
                return true;
            }
        }
        for slot in (0..SLOTS).rev() {
            let other = other_of(self.bucket(id).item(slot));
            // The last step only moves entries into buckets that have room, so it leaves this full one alone.
            if other != bucket && further > 0 && self.displace(piece, other, further - 1) {
                self.exchange(piece, id, slot, other);
                return true;
            }
        }
        false
    }

    /// Moves an entry to its other bucket, which has room.
    fn exchange(&mut self, piece: &Piece, id: u32, slot: usize, other: u32) {
        let other_id = piece.bucket_id(other);
        let item = self.bucket(id).item(slot);
        if self.bucket_mut(id).take(slot) {
            self.bucket_mut(other_id).put_resident(item);
            self.bucket_mut(other_id).note_back();
        } else {
            self.bucket_mut(other_id).put_guest(item);
            self.bucket_mut(id).note_away();
        }
    }

    // ---- growing and shrinking --------------------------------------------------------------------------

    /// Gives all memory back: the end of the index.
    pub fn give_back(&mut self, source: &mut dyn SegmentSource) {
        let slabs = self.slabs.drain(..).filter(|slab| !slab.is_empty()).map(bytemuck::cast_slice_mut);
        for memory in slabs.chain(self.released.drain(..)) {
            source.release(memory);
        }
    }

    /// Gives the index another two mebibytes for buckets; `None` where the source refuses.
    pub fn add_slab(&mut self, source: &mut dyn SegmentSource) -> Option<()> {
        let hole = self.slabs.iter().any(|slab| slab.is_empty());
        if self.slabs.len() == SLABS_MAX && !hole {
            return None;
        }
        let memory = source.allocate(SEGMENT_BYTES)?;
        self.adopt_slab(bytemuck::cast_slice_mut(memory));
        Some(())
    }

    fn adopt_slab(&mut self, slab: &'static mut [Bucket]) {
        let number = match self.slabs.iter().position(|slab| slab.is_empty()) {
            Some(hole) => {
                self.slabs[hole] = slab;
                hole
            }
            None => {
                self.slabs.push(slab);
                self.slab_chunks.push(0);
                self.slabs.len() - 1
            }
        };
        let first = (number * SLAB_CHUNKS) as u32;
        self.free_chunks.extend((first..first + SLAB_CHUNKS as u32).rev());
    }

    /// Whether `count` chunks can be taken.
    fn reserve_chunks(&self, count: usize) -> Result<(), InsertError> {
        if self.free_chunks.len() < count { Err(InsertError::NeedsSlab) } else { Ok(()) }
    }

    fn take_chunk(&mut self) -> u32 {
        let chunk = self.free_chunks.pop().expect("a reserved chunk");
        self.chunks_used += 1;
        self.slab_chunks[chunk as usize / SLAB_CHUNKS] += 1;
        chunk
    }

    /// Takes back an emptied chunk. A slab of which no chunk is used is given up once there are free chunks enough
    /// elsewhere.
    fn give_back_chunk(&mut self, chunk: u32) {
        let slab = chunk as usize / SLAB_CHUNKS;
        self.chunks_used -= 1;
        self.slab_chunks[slab] -= 1;
        self.free_chunks.push(chunk);
        if self.slab_chunks[slab] == 0 && self.free_chunks.len() >= 2 * SLAB_CHUNKS && self.image.is_none() {
            self.give_back_slab(slab);
        }
    }

    fn give_back_slab(&mut self, slab: usize) {
        self.free_chunks.retain(|&chunk| chunk as usize / SLAB_CHUNKS != slab);
        let memory = core::mem::take(&mut self.slabs[slab]);
        self.released.push(bytemuck::cast_slice_mut(memory));
    }

    fn zero_chunk(&mut self, chunk: u32) {
        let first = (chunk as usize * CHUNK_BUCKETS) & (SLAB_BUCKETS - 1);
        if self.image.is_some() {
            self.copy_before_change((chunk as usize * CHUNK_BUCKETS) as u32);
        }
        self.slabs[chunk as usize / SLAB_CHUNKS][first..first + CHUNK_BUCKETS].fill(Bucket::zeroed());
    }

    /// Moves the entries of a piece out of its buckets and reads their hashes again, sixteen records ahead.
    fn empty_piece(&mut self, number: u32, records: &impl Records) {
        const AHEAD: usize = 16;
        let piece = self.pieces[number as usize];
        let first = self.moving.len();
        for bucket in 0..piece.buckets() {
            let bucket = self.slabs_bucket(piece.bucket_id(bucket));
            let mut occupied = bucket.occupied();
            while occupied != 0 {
                let slot = occupied.trailing_zeros() as usize;
                let (offset, access) = (bucket.offsets[slot], bucket.access[slot]);
                self.moving.push(Moving { hash: 0, offset, access });
                occupied &= occupied - 1;
            }
        }
        for moving in &self.moving[first..self.moving.len().min(first + AHEAD)] {
            records.prefetch(moving.offset);
        }
        for i in first..self.moving.len() {
            if let Some(ahead) = self.moving.get(i + AHEAD) {
                records.prefetch(ahead.offset);
            }
            self.moving[i].hash = records.hash_of(self.moving[i].offset);
        }
        for chunk in &piece.chunks[..usize::from(piece.chunk_count)] {
            self.zero_chunk(*chunk);
        }
        self.pieces[number as usize].entries = 0;
    }

    /// A copy, so that other fields can be changed while it is read.
    fn slabs_bucket(&self, id: u32) -> Bucket {
        *self.bucket(id)
    }

    /// Places what [`Index::empty_piece`] took out. What finds no place is stashed, however full the stash is.
    fn place_moving(&mut self, records: &impl Records) {
        let moving = core::mem::take(&mut self.moving);
        for &entry in &moving {
            if !self.place(self.piece_number(entry.hash), entry) {
                self.stash_anyway(entry, records);
            }
        }
        self.moving = moving;
        self.moving.clear();
    }

    /// Gives a piece that cannot place an entry another chunk, or splits it. False: that would not help.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, number: u32, hash: u64, records: &impl Records) -> Result<bool, InsertError> {
        let piece = self.pieces[number as usize];
        // With two choices of nine slots and a displacement a piece fills to some 90 %. One that is stuck below 60 %
        // holds equal hashes.
        if usize::from(piece.entries) * 10 < piece.slots() * 6 {
            return Ok(false);
        }
        if self.is_cold && self.readable != number {
            return Err(InsertError::Unread);
        }
        let chunk_count = usize::from(piece.chunk_count);
        // A directory that is as deep as it may be leaves only the other way.
        let may_split = u32::from(piece.depth) < self.depth || {
            let pieces = self.pieces.len() - self.free_pieces.len();
            self.depth < DEPTH_MAX && self.directory.len() * 2 <= (pieces + 1) * DIRECTORY_PER_PIECE
        };
        let wanted = self.chunks_expected(piece.depth).max(chunk_count + 1);
        if wanted > CHUNKS_MAX && may_split {
            self.reserve_chunks(2 * CHUNKS_MIN - chunk_count)?;
            if u32::from(piece.depth) == self.depth {
                self.double_directory();
            }
            self.empty_piece(number, records);
            self.split(number, hash);
            self.splits += 1;
        } else if chunk_count < CHUNKS_MAX {
            let wanted = wanted.min(CHUNKS_MAX);
            self.reserve_chunks(wanted - chunk_count)?;
            self.empty_piece(number, records);
            for slot in chunk_count..wanted {
                let chunk = self.take_chunk();
                self.pieces[number as usize].chunks[slot] = chunk;
            }
            self.pieces[number as usize].chunk_count = wanted as u8;
            self.growths += 1;
        } else {
            return Ok(false);
        }
        self.place_moving(records);
        Ok(true)
    }

    /// How many chunks a piece of this depth will need for its share of what is expected, and some more because no two
    /// shares are equal.
    fn chunks_expected(&self, depth: u8) -> usize {
        const CHUNK_ENTRIES: usize = CHUNK_BUCKETS * SLOTS * FILL_MAX_16THS / 16;
        let share = self.expected >> depth;
        (share + share / 16).div_ceil(CHUNK_ENTRIES)
    }

    fn double_directory(&mut self) {
        let mut directory = Vec::with_capacity(self.directory.len() * 2);
        for &number in &self.directory {
            directory.extend_from_slice(&[number, number]);
        }
        self.directory = directory;
        self.depth += 1;
    }

    /// Shares the chunks of an emptied piece between it and a new one, and gives both what the smallest size has.
    fn split(&mut self, number: u32, hash: u64) {
        let piece = &mut self.pieces[number as usize];
        piece.depth += 1;
        let depth = u32::from(piece.depth);
        let mut new =
            Piece { chunks: [0; CHUNKS_MAX], entries: 0, chunk_count: CHUNKS_MIN as u8, depth: depth as u8 };
        let moved = usize::from(piece.chunk_count) - CHUNKS_MIN;
        new.chunks[..moved].copy_from_slice(&piece.chunks[CHUNKS_MIN..][..moved]);
        piece.chunk_count = CHUNKS_MIN as u8;
        for slot in moved..CHUNKS_MIN {
            new.chunks[slot] = self.take_chunk();
        }
        let new_number = match self.free_pieces.pop() {
            Some(free) => {
                self.pieces[free as usize] = new;
                free
            }
            None => {
                self.pieces.push(new);
                self.pieces.len() as u32 - 1
            }
        };
        // Everything with the parent's prefix and a one behind it belongs to the new piece.
        let prefix = (hash >> (64 - depth)) | 1;
        let width = self.depth - depth;
        let first = (prefix << width) as usize;
        self.directory[first..first + (1 << width)].fill(new_number);
    }

    /// Makes a piece that has become sparse smaller, or joins it with its sibling.
    #[cold]
    #[inline(never)]
    fn shrink(&mut self, number: u32, hash: u64, records: &impl Records) {
        let piece = self.pieces[number as usize];
        if usize::from(piece.chunk_count) > CHUNKS_MIN {
            self.empty_piece(number, records);
            self.drop_chunks(number, CHUNKS_MIN);
            self.place_moving(records);
            return;
        }
        let depth = u32::from(piece.depth);
        let prefix = hash >> (64 - depth);
        let width = self.depth - depth;
        let sibling = self.directory[((prefix ^ 1) << width) as usize];
        let other = self.pieces[sibling as usize];
        // Joined they must be far from having to split again.
        if u32::from(other.depth) != depth
            || usize::from(other.entries + piece.entries) * 3 > CHUNKS_MIN * CHUNK_BUCKETS * SLOTS
        {
            return;
        }
        self.empty_piece(number, records);
        self.empty_piece(sibling, records);
        self.drop_chunks(sibling, 0);
        self.drop_chunks(number, CHUNKS_MIN);
        self.free_pieces.push(sibling);
        self.pieces[number as usize].depth -= 1;
        let first = ((prefix & !1) << width) as usize;
        self.directory[first..first + (2 << width)].fill(number);
        self.place_moving(records);
        self.merges += 1;
    }

    fn drop_chunks(&mut self, number: u32, keep: usize) {
        let piece = self.pieces[number as usize];
        self.pieces[number as usize].chunk_count = keep as u8;
        for &chunk in &piece.chunks[keep..usize::from(piece.chunk_count)] {
            self.give_back_chunk(chunk);
        }
    }

    #[cold]
    fn stash(&mut self, moving: Moving, records: &impl Records) -> Result<(), InsertError> {
        if self.stashed() >= STASH_MAX {
            return Err(InsertError::StashFull);
        }
        self.stash_anyway(moving, records);
        Ok(())
    }

    fn stash_anyway(&mut self, moving: Moving, records: &impl Records) {
        let entry = Stashed { offset: moving.offset, access: moving.access };
        let slot = match self.free_stashed.pop() {
            Some(slot) => {
                self.stashed[slot as usize] = entry;
                slot
            }
            None => {
                self.stashed.push(entry);
                self.stashed.len() as u32 - 1
            }
        };
        let key = records.key_of(moving.offset).into();
        self.stash.entry(moving.hash).or_default().insert(key, slot);
    }
}

/// See [`Index::displace`], which is right for one step beyond the first and no more.
const DISPLACE_FURTHER: u32 = 1;
/// A piece grows when this share of its slots is taken. It could be filled to some 95 %, but then most buckets have
/// entries away, and a miss touches two lines.
const FILL_MAX_16THS: usize = 15;
/// A piece is made smaller when less than one slot in this many is taken.
const SHRINK_BELOW: usize = 8;

#[cfg(test)]
mod tests;
