//! The keyspace: every key, its value and its end. The only mutator of data.
//!
//! A lookup goes hash → bucket → record: two cache misses, both of which a caller that has several keys in hand
//! can prefetch ([`Keyspace::prefetch_bucket`], then [`Keyspace::prefetch_record`]). A write goes into the slot
//! its key already has if the size is the same, else into a freed slot of that size, else to the front of the open
//! segment. Whatever it was, it passes through [`Changes::note`]: that one function tells watchers, the log and client
//! tracking.
//!
//! Nothing here blocks or runs long: growth moves one piece of the index, [`Keyspace::expire_some`] and
//! [`Keyspace::compact_some`] take budgets, and [`Keyspace::clear`] drops the structure at once and gives the memory
//! back over the following turns. Time is always an argument; an entry whose millisecond has passed is removed by
//! whoever looks at it first.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::arena::{Arena, Kind, Offset, SPAN_BYTES, SegmentSource};
use crate::eviction::{Access, Pool, Rng};
use crate::expiry::{ExpiryState, ttl_class};
use crate::image::Damage;
use crate::image::unchecked::{Extent, Unchecked};
use crate::index::{Index, InsertError, Place, Probe, Records};
use crate::mutation::Mutation;
use crate::time::Now;
use crate::value::{Header, Layout, MAX_LEN};

mod changes;
mod compaction;

use changes::Changes;
use compaction::Compaction;

pub use self::changes::WatchToken;
pub use crate::eviction::{AccessMode, EvictionPolicy};
pub use crate::expiry::Expiry;
pub use crate::value::Encoding;

/// The hash of a key under the keyspace's seed. Computed once per command, used by every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(pub u64);

/// What a keyspace is made with.
#[derive(Clone, Copy, Debug)]
pub struct KeyspaceOptions {
    /// Seeds the hash of keys; random for each data directory.
    pub hash_seed: u64,
    /// Seeds every random choice: eviction samples, RANDOMKEY, the frequency counter.
    pub random_seed: u64,
    /// What accesses leave behind.
    pub access: AccessMode,
    /// `maxmemory-samples`.
    pub samples: usize,
    /// `lfu-log-factor`.
    pub lfu_log_factor: u32,
    /// `lfu-decay-time`, minutes.
    pub lfu_decay_minutes: u32,
}

impl Default for KeyspaceOptions {
    fn default() -> KeyspaceOptions {
        KeyspaceOptions {
            hash_seed: 0,
            random_seed: 0,
            access: AccessMode::Lru,
            samples: 5,
            lfu_log_factor: 10,
            lfu_decay_minutes: 1,
        }
    }
}

/// What a lookup finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The value's bytes, where they lie.
    pub value: &'a [u8],
    /// Unix milliseconds after which the entry is gone.
    pub expires_at: Option<u64>,
    /// What OBJECT ENCODING should know.
    pub encoding: Encoding,
}

/// Why a write is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The source of segments refused, or all of the 32 GiB that offsets reach are taken.
    OutOfSpace,
    /// A key or value longer than [`MAX_LEN`].
    TooLarge,
    /// The image the keyspace was restored from is damaged: see [`Keyspace::damage`].
    Damaged,
}

/// Why a key is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was removed on demand.
    Removed,
    /// Its time had come.
    Expired,
    /// It was removed to make room.
    Evicted,
}

/// Counters since the start or the last reset, and sizes as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceStats {
    /// Lookups that found their key.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Entries removed because their time had come.
    pub expired: u64,
    /// Entries removed to make room.
    pub evicted: u64,
    /// Pieces of the index that split in two.
    pub splits: u64,
    /// Bytes of live records that compaction moved.
    pub compacted_bytes: u64,
    /// Segments that compaction emptied.
    pub compacted_segments: u64,
    /// Segments with memory.
    pub segments: usize,
    /// Bytes of memory held for records.
    pub arena_bytes: usize,
    /// Bytes of live records, padding included.
    pub live_bytes: usize,
    /// Bytes of segments in which nothing lives.
    pub dead_bytes: usize,
    /// Bytes of memory held for the index.
    pub index_bytes: usize,
    /// Entries that found no place in the index's buckets (equal hashes).
    pub stashed: usize,
    /// Bytes held only for the image that is being taken.
    pub image_bytes: usize,
}

/// Reads keys for the index while it moves entries.
struct Reader<'a> {
    arena: &'a Arena,
    seed: u64,
}

impl Records for Reader<'_> {
    #[inline]
    fn hash_of(&self, offset: Offset) -> u64 {
        xxh3_64_with_seed(self.key_of(offset), self.seed)
    }

    #[inline]
    fn key_of(&self, offset: Offset) -> &[u8] {
        self.arena.key(offset, &self.arena.header(offset))
    }

    #[inline]
    fn prefetch(&self, offset: Offset) {
        self.arena.prefetch(offset);
    }
}

/// Looks for the record that has a key.
struct KeyProbe<'a> {
    arena: &'a Arena,
    key: &'a [u8],
}

impl Probe for KeyProbe<'_> {
    #[inline(always)]
    fn recognises(&self, offset: Offset) -> bool {
        self.arena.has_key(offset, self.key)
    }
}

/// Every key of one shard.
pub struct Keyspace {
    pub(crate) arena: Arena,
    pub(crate) index: Index,
    pub(crate) expiry: ExpiryState,
    pub(crate) access: Access,
    pub(crate) rng: Rng,
    pub(crate) pool: Pool,
    pub(crate) samples: usize,
    /// Entries that have an expiry.
    pub(crate) expires: usize,
    /// The image that is being taken.
    pub(crate) image: Option<Box<crate::image::capture::Capture>>,
    /// Pages of the image it was restored from that nobody has looked at.
    pub(crate) unchecked: Option<Box<Unchecked>>,
    pub(crate) damage: Option<Damage>,
    changes: Changes,
    /// The time while effects are applied, for which time stands still; else 0.
    pub(crate) applying_ms: u64,
    pub(crate) seed: u64,
    stats: KeyspaceStats,
    compaction: Option<Compaction>,
    moving: Vec<Offset>,
}

impl Drop for Keyspace {
    /// What the index held goes back to its source; the arena does the same for itself.
    fn drop(&mut self) {
        self.index.give_back(self.arena.source());
    }
}

impl Keyspace {
    /// An empty keyspace.
    ///
    /// # Panics
    /// If `source` cannot give the first two mebibytes: there is no server to be had without them.
    pub fn new(options: KeyspaceOptions, source: Box<dyn SegmentSource>) -> Keyspace {
        let mut arena = Arena::new(source);
        let index = Index::new(arena.source()).expect("memory for the first two mebibytes of the index");
        Keyspace::with_parts(options, arena, index)
    }

    /// A keyspace of what there is; nothing in it expires.
    pub(crate) fn with_parts(options: KeyspaceOptions, arena: Arena, index: Index) -> Keyspace {
        Keyspace {
            arena,
            index,
            expiry: ExpiryState::default(),
            access: Access {
                mode: options.access,
                lfu_log_factor: options.lfu_log_factor,
                lfu_decay_minutes: options.lfu_decay_minutes,
                shift: 0,
            },
            rng: Rng::new(options.random_seed),
            pool: Pool::new(),
            samples: options.samples,
            expires: 0,
            image: None,
            unchecked: None,
            damage: None,
            changes: Changes::default(),
            applying_ms: 0,
            seed: options.hash_seed,
            stats: KeyspaceStats::default(),
            compaction: None,
            moving: Vec::new(),
        }
    }

    /// The hash of a key, which every operation on it wants to be given.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(xxh3_64_with_seed(key, self.seed))
    }

    /// First step of a batched lookup: fetches the key's bucket.
    #[inline]
    pub fn prefetch_bucket(&self, hash: KeyHash) {
        self.index.prefetch(hash.0);
    }

    /// Second step, once the bucket is likely to be near: fetches the record. True: the key is not in its home
    /// bucket, and [`prefetch_away`](Self::prefetch_away) is worth a third step.
    #[inline]
    pub fn prefetch_record(&self, hash: KeyHash) -> bool {
        self.index.prefetch_records(hash.0, |offset| self.arena.prefetch(offset))
    }

    /// Third step, for the few keys away from home.
    #[inline]
    pub fn prefetch_away(&self, hash: KeyHash) {
        self.index.prefetch_away(hash.0, |offset| self.arena.prefetch(offset));
    }

    /// Says how many keys there will be before long, so that the index grows in one step and not in many; 0: nobody knows.
    pub fn expect(&mut self, keys: usize) {
        self.index.expect(keys);
    }

    // ---- lookups ----------------------------------------------------------------------------------------

    #[inline(always)]
    fn find(&self, key: &[u8], hash: KeyHash) -> Option<(Place, Header)> {
        let place = self.index.find(hash.0, key, &KeyProbe { arena: &self.arena, key })?;
        Some((place, self.arena.header(place.offset())))
    }

    /// The entry of a key unless its time has come, in which case it is removed.
    #[inline(always)]
    fn find_live(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<(Place, Header)> {
        if let Some(effects) = &mut self.changes.effects {
            effects.observe(hash);
        }
        if self.is_unsure() && !self.check_lookup(key, hash) {
            return None;
        }
        let (place, header) = self.find(key, hash)?;
        if header.expires_at != 0 && header.is_expired(now.unix_ms()) {
            self.remove_at(place, hash, &header, Change::Expired);
            return None;
        }
        Some((place, header))
    }

    #[inline(always)]
    fn touch_at(&mut self, place: Place, now: Now) {
        if self.access.mode == AccessMode::Off {
            return;
        }
        let field = self.index.access(place);
        let touched = self.access.touch(field, now, &mut self.rng);
        // Most accesses fall into the second of the one before: the line stays clean.
        if touched != field {
            self.index.set_access(place, touched);
        }
    }

    #[inline(always)]
    pub(crate) fn entry(&self, place: Place, header: &Header) -> Entry<'_> {
        Entry {
            value: self.arena.value(place.offset(), header),
            expires_at: (header.expires_at != 0).then_some(header.expires_at),
            encoding: header.encoding(),
        }
    }

    /// Looks a key up; counts a hit or a miss and records the access.
    #[inline]
    pub fn get(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<Entry<'_>> {
        let Some((place, header)) = self.find_live(key, hash, now) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        self.touch_at(place, now);
        Some(self.entry(place, &header))
    }

    /// Looks a key up and leaves no trace of it.
    #[inline]
    pub fn peek(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<Entry<'_>> {
        let (place, header) = self.find_live(key, hash, now)?;
        Some(self.entry(place, &header))
    }

    /// Records an access without reading. False: no such key.
    pub fn touch(&mut self, key: &[u8], hash: KeyHash, now: Now) -> bool {
        let Some((place, _)) = self.find_live(key, hash, now) else { return false };
        self.touch_at(place, now);
        true
    }

    /// Seconds since the last access, exact up to nine hours and no more than that afterwards.
    pub fn idle_seconds(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<u64> {
        let (place, _) = self.find_live(key, hash, now)?;
        Some(u64::from(self.access.idle_seconds(self.index.access(place), now)))
    }

    /// Redis' logarithmic access counter, decayed to now.
    pub fn frequency(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<u8> {
        let (place, _) = self.find_live(key, hash, now)?;
        Some(self.access.frequency(self.index.access(place), now))
    }

    /// Bytes a key takes: its slot, and its share of the index.
    pub fn record_bytes(&mut self, key: &[u8], hash: KeyHash, now: Now) -> Option<usize> {
        let (_, header) = self.find_live(key, hash, now)?;
        Some(header.slot_bytes as usize + self.index.used_bytes().div_ceil(self.len()).min(16))
    }

    /// Keys, those included that have expired and were not looked at since.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Keys that have an expiry.
    pub fn expires_len(&self) -> usize {
        self.expires
    }

    /// Visits some keys from `cursor` on and returns the cursor to go on with; 0 starts and 0 ends. A key that is present
    /// from the first call to the last is visited at least once, however the keyspace grows or shrinks between calls.
    pub fn scan(&mut self, cursor: u64, count: usize, now: Now, visit: &mut dyn FnMut(&[u8])) -> u64 {
        self.observe_everything();
        const AHEAD: usize = 8;
        let now_ms = now.unix_ms();
        let mut offsets = core::mem::take(&mut self.moving);
        let next = match self.is_unsure() {
            true => self.scan_checked(cursor, count, &mut offsets),
            false => self.index.scan(cursor, count, usize::MAX, &mut |offset| offsets.push(offset)),
        };
        for (i, &offset) in offsets.iter().enumerate() {
            if let Some(&ahead) = offsets.get(i + AHEAD) {
                self.arena.prefetch(ahead);
            }
            let header = self.arena.header(offset);
            if !header.is_expired(now_ms) {
                visit(self.arena.key(offset, &header));
            }
        }
        offsets.clear();
        self.moving = offsets;
        next
    }

    /// As `scan` of the index, looking at each piece and record before they are used. Nothing, and the end, where something is
    /// damaged.
    #[cold]
    fn scan_checked(&mut self, cursor: u64, count: usize, offsets: &mut Vec<Offset>) -> u64 {
        let mut next = cursor;
        // Sparse pieces are not searched for ever.
        for _ in 0..=count / 4 {
            if !self.check_piece(KeyHash(Index::scan_hash(next))) {
                break;
            }
            let wanted = count.saturating_sub(offsets.len());
            next = self.index.scan(next, wanted, 1, &mut |offset| offsets.push(offset));
            if next == 0 || offsets.len() >= count {
                break;
            }
        }
        if self.damage.is_none() && offsets.iter().all(|&at| self.check_record(at, None, Extent::Key)) {
            return next;
        }
        offsets.clear();
        0
    }

    /// A key chosen at random. Expired ones met on the way are removed.
    pub fn random_key(&mut self, now: Now) -> Option<Vec<u8>> {
        self.observe_everything();
        loop {
            let place = self.random_place()?;
            if self.is_unsure() && !self.check_record(place.offset(), None, Extent::Slot) {
                return None;
            }
            let header = self.arena.header(place.offset());
            let key = self.arena.key(place.offset(), &header).to_vec();
            if !header.is_expired(now.unix_ms()) {
                return Some(key);
            }
            self.remove_at(place, self.hash(&key), &header, Change::Expired);
        }
    }

    /// A number below `bound`, which must not be zero, from the keyspace's own randomness.
    pub(crate) fn draw(&mut self, bound: usize) -> usize {
        self.rng.below(bound)
    }

    // ---- writes -----------------------------------------------------------------------------------------

    /// Gives a key a value, whether it had one or not.
    #[inline]
    pub fn set(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        value: &[u8],
        expiry: Expiry,
        encoding: Encoding,
        now: Now,
    ) -> Result<(), StoreError> {
        let found = self.find_live(key, hash, now);
        let expires_at = match expiry {
            Expiry::Never => 0,
            Expiry::At(at) => at.max(1),
            Expiry::Keep => found.map_or(0, |(_, header)| header.expires_at),
        };
        let layout =
            Layout::exact(key.len(), value.len(), expires_at != 0, SPAN_BYTES).ok_or(StoreError::TooLarge)?;
        let mutation =
            Mutation::Set { key, value, expires_at: Some(expires_at).filter(|&at| at != 0), encoding };
        let Some((place, header)) = found else {
            let offset = self.allocate(&layout, expires_at, now)?;
            self.arena.write(offset, &layout, key, value, expires_at, encoding);
            self.insert(key, hash, offset, &layout, expires_at, now)?;
            self.changes.note(mutation, hash);
            return Ok(());
        };
        if layout.slot_bytes == header.slot_bytes && self.may_stay(place.offset(), expires_at) {
            self.arena.write(place.offset(), &layout, key, value, expires_at, encoding);
            self.note_expiry(place.offset(), header.expires_at, expires_at, now);
        } else {
            let offset = self.allocate(&layout, expires_at, now)?;
            self.arena.write(offset, &layout, key, value, expires_at, encoding);
            self.replace(place, offset, &header, expires_at, now);
        }
        self.touch_at(place, now);
        self.changes.note(mutation, hash);
        Ok(())
    }

    /// Appends to a key's value and returns the new length. A key that is missing is created.
    pub fn append(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        suffix: &[u8],
        now: Now,
    ) -> Result<usize, StoreError> {
        let Some((place, header)) = self.find_live(key, hash, now) else {
            self.set(key, hash, suffix, Expiry::Never, Encoding::Auto, now)?;
            return Ok(suffix.len());
        };
        let old_len = header.value_len as usize;
        let (offset, start) = self.resize(place, &header, old_len + suffix.len(), now)?;
        self.arena.bytes_mut(offset, start + old_len, suffix.len()).copy_from_slice(suffix);
        self.touch_at(place, now);
        self.changes.note(Mutation::Append { key, bytes: suffix }, hash);
        Ok(old_len + suffix.len())
    }

    /// Overwrites part of a key's value, which grows as needed with zeros in the gap; returns the new length. A key that is
    /// missing counts as empty and is created, unless there is nothing to write.
    pub fn write_range(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        offset: usize,
        bytes: &[u8],
        now: Now,
    ) -> Result<usize, StoreError> {
        let end = offset.checked_add(bytes.len()).ok_or(StoreError::TooLarge)?;
        if end > MAX_LEN {
            return Err(StoreError::TooLarge);
        }
        let mutation = Mutation::WriteRange { key, offset: offset as u64, bytes };
        let found = self.find_live(key, hash, now);
        if bytes.is_empty() {
            return Ok(found.map_or(0, |(_, header)| header.value_len as usize));
        }
        let Some((place, header)) = found else {
            let layout = Layout::exact(key.len(), end, false, SPAN_BYTES).ok_or(StoreError::TooLarge)?;
            let record = self.allocate(&layout, 0, now)?;
            self.arena.write(record, &layout, key, &[], 0, Encoding::Raw);
            let value = self.arena.bytes_mut(record, layout.value_start(), end);
            value[..offset].fill(0);
            value[offset..].copy_from_slice(bytes);
            self.insert(key, hash, record, &layout, 0, now)?;
            // The effect creates the key where there is none: an expired one must be gone first.
            self.changes.note(Mutation::Remove { key }, hash);
            self.changes.note(mutation, hash);
            return Ok(end);
        };
        let old_len = header.value_len as usize;
        let new_len = old_len.max(end);
        let (record, start) = self.resize(place, &header, new_len, now)?;
        if offset > old_len {
            self.arena.bytes_mut(record, start + old_len, offset - old_len).fill(0);
        }
        self.arena.bytes_mut(record, start + offset, bytes.len()).copy_from_slice(bytes);
        self.touch_at(place, now);
        self.changes.note(mutation, hash);
        Ok(new_len)
    }

    /// Makes the value at `place` `new_len` bytes long (no shorter than it was), where it lies if it can. What lies
    /// beyond its old length is undefined. Returns the record's offset and where in it the value starts.
    fn resize(
        &mut self,
        place: Place,
        header: &Header,
        new_len: usize,
        now: Now,
    ) -> Result<(Offset, usize), StoreError> {
        if new_len > MAX_LEN {
            return Err(StoreError::TooLarge);
        }
        let mut layout = header.layout();
        if layout.holds(new_len) && !self.arena.is_sealed(place.offset()) {
            layout.value_len = new_len as u32;
            self.arena.write_header(place.offset(), &layout, header.expires_at, Encoding::Raw);
            return Ok((place.offset(), layout.value_start()));
        }
        // Twice the length while that is little, then an eighth more: appending a byte costs constant time on average
        // at every size, and a large value wastes little.
        const DOUBLE_UP_TO: usize = 1 << 20;
        let room = if new_len < DOUBLE_UP_TO { new_len } else { DOUBLE_UP_TO.max(new_len / 8) };
        let key_len = header.key_len as usize;
        let layout = Layout::growing(key_len, new_len, new_len + room, header.expires_at != 0, SPAN_BYTES)
            .ok_or(StoreError::TooLarge)?;
        let offset = self.allocate(&layout, header.expires_at, now)?;
        self.arena.write_header(offset, &layout, header.expires_at, Encoding::Raw);
        let old_len = key_len + (header.value_len as usize).min(new_len);
        self.arena.copy((place.offset(), header.prefix as usize), (offset, layout.prefix as usize), old_len);
        self.replace(place, offset, header, header.expires_at, now);
        Ok((offset, layout.value_start()))
    }

    /// Sets or removes a key's expiry. False: no such key.
    pub fn set_expiry(
        &mut self,
        key: &[u8],
        hash: KeyHash,
        expires_at: Option<u64>,
        now: Now,
    ) -> Result<bool, StoreError> {
        let Some((place, header)) = self.find_live(key, hash, now) else { return Ok(false) };
        let expires_at = expires_at.map_or(0, |at| at.max(1));
        let layout = header.layout();
        if layout.has_expiry_field() && self.may_stay(place.offset(), expires_at) {
            self.arena.write_header(place.offset(), &layout, expires_at, header.encoding());
            self.note_expiry(place.offset(), header.expires_at, expires_at, now);
        } else if header.expires_at != expires_at {
            let (key_len, value_len) = (header.key_len as usize, header.value_len as usize);
            let layout = Layout::exact(key_len, value_len, expires_at != 0, SPAN_BYTES)
                .expect("a length that was accepted before");
            let offset = self.allocate(&layout, expires_at, now)?;
            self.arena.write_header(offset, &layout, expires_at, header.encoding());
            let (from, to) = ((place.offset(), header.prefix as usize), (offset, layout.prefix as usize));
            self.arena.copy(from, to, key_len + value_len);
            self.replace(place, offset, &header, expires_at, now);
        }
        let expires_at = Some(expires_at).filter(|&at| at != 0);
        self.changes.note(Mutation::SetExpiry { key, expires_at }, hash);
        Ok(true)
    }

    /// Removes a key. False: there was none, or its time had come.
    pub fn remove(&mut self, key: &[u8], hash: KeyHash, now: Now) -> bool {
        let Some((place, header)) = self.find_live(key, hash, now) else { return false };
        self.remove_at(place, hash, &header, Change::Removed);
        true
    }

    /// Removes every key. The memory goes back over the next calls of [`Keyspace::compact_some`].
    pub fn clear(&mut self, _now: Now) {
        // As in Redis, a watched key is touched by this if there was something to remove.
        let keys: Vec<Vec<u8>> = self.changes.watched.keys().cloned().collect();
        for key in keys {
            let hash = self.hash(&key);
            let is_sure = !self.is_unsure() || self.check_lookup(&key, hash);
            if is_sure && self.find(&key, hash).is_some() {
                self.changes.touched(&key);
            }
        }
        self.changes.note(Mutation::Clear, KeyHash(0));
        self.stop_compaction();
        self.give_up_warming();
        self.arena.clear();
        self.index.clear(self.arena.source());
        self.expires = 0;
        self.pool.clear();
        self.expiry.forget_walk();
    }

    // ---- what every write is made of --------------------------------------------------------------------

    /// Whether a record that will expire then (0 = never) may be written where one lies. Not into a sealed segment;
    /// and records that expire lie apart from those that do not.
    #[inline(always)]
    fn may_stay(&self, offset: Offset, expires_at: u64) -> bool {
        !self.arena.is_sealed(offset)
            && ((self.arena.class_of(offset) != 0) == (expires_at != 0) || self.arena.is_span(offset))
    }

    /// Which segments a record lies in that expires then.
    #[inline]
    fn class_of(&self, expires_at: u64, now: Now) -> u8 {
        ttl_class(expires_at, now.unix_ms().max(self.applying_ms))
    }

    #[inline(always)]
    fn allocate(&mut self, layout: &Layout, expires_at: u64, now: Now) -> Result<Offset, StoreError> {
        let class = if expires_at == 0 { 0 } else { self.class_of(expires_at, now) };
        self.arena.allocate(layout, class).ok_or(StoreError::OutOfSpace)
    }

    /// Adds the entry of a record just written.
    fn insert(
        &mut self,
        _key: &[u8],
        hash: KeyHash,
        offset: Offset,
        layout: &Layout,
        expires_at: u64,
        now: Now,
    ) -> Result<(), StoreError> {
        if self.is_unsure() && !self.check_piece(hash) {
            self.arena.free(offset, layout.slot_bytes);
            return Err(StoreError::Damaged);
        }
        let access = self.access.start(now);
        loop {
            let records = Reader { arena: &self.arena, seed: self.seed };
            match self.index.insert(hash.0, offset, access, &records) {
                Ok(()) => break,
                Err(InsertError::NeedsSlab) if self.index.add_slab(self.arena.source()).is_some() => {}
                Err(InsertError::Unread) if self.check_piece_records(hash) => {}
                Err(error) => {
                    self.arena.free(offset, layout.slot_bytes);
                    let is_damaged = error == InsertError::Unread;
                    return Err(if is_damaged { StoreError::Damaged } else { StoreError::OutOfSpace });
                }
            }
        }
        self.note_expiry(offset, 0, expires_at, now);
        Ok(())
    }

    /// Lets the entry at `place` point to a record just written instead of the one it had.
    #[inline]
    fn replace(&mut self, place: Place, offset: Offset, old: &Header, expires_at: u64, now: Now) {
        self.index.set_offset(place, offset);
        self.arena.free(place.offset(), old.slot_bytes);
        self.note_expiry(offset, old.expires_at, expires_at, now);
    }

    /// What an estimate of the mean time to live is made of, in milliseconds: for each segment with expiries the middle
    /// between the first and the last, times its live bytes; and these bytes. Of one class they do not lie far apart.
    pub fn ttl_estimate(&self, now: Now) -> (u128, u128) {
        let now_ms = now.unix_ms();
        let left = |at: u64| u128::from(at.saturating_sub(now_ms));
        let of_class =
            self.arena.segments().iter().filter(|segment| segment.class != 0 && segment.latest > 0);
        of_class.fold((0, 0), |(sum, weight), segment| {
            let live = segment.live as u128;
            (sum + (left(segment.earliest) + left(segment.latest)) / 2 * live, weight + live)
        })
    }

    /// Keeps the count of expiring entries and the bounds of the segment.
    #[inline(always)]
    fn note_expiry(&mut self, offset: Offset, old: u64, new: u64, now: Now) {
        if old | new != 0 {
            self.note_expiry_changed(offset, old, new, now);
        }
    }

    fn note_expiry_changed(&mut self, offset: Offset, old: u64, new: u64, now: Now) {
        self.expires = self.expires + usize::from(new != 0) - usize::from(old != 0);
        if self.arena.is_span(offset) {
            let class = self.class_of(new, now);
            self.arena.set_span_class(offset, class);
        }
        if new != 0 {
            self.arena.note_expiry(offset, new);
            self.expiry.note(self.arena.segment_number(offset), new);
        }
    }

    /// Removes the entry at `place` for whatever reason.
    pub(crate) fn remove_at(&mut self, place: Place, hash: KeyHash, header: &Header, change: Change) {
        let key = self.arena.key(place.offset(), header);
        match change {
            Change::Expired => self.changes.expired(key, hash),
            Change::Evicted => self.changes.note_unasked(Mutation::Remove { key }, hash),
            Change::Removed => self.changes.note(Mutation::Remove { key }, hash),
        }
        let records = Reader { arena: &self.arena, seed: self.seed };
        self.index.remove(place, hash.0, key, &records);
        self.arena.free(place.offset(), header.slot_bytes);
        self.expires -= usize::from(header.expires_at != 0);
        match change {
            Change::Expired => self.stats.expired += 1,
            Change::Evicted => self.stats.evicted += 1,
            Change::Removed => {}
        }
    }

    // ---- settings and figures ---------------------------------------------------------------------------

    /// Changes what accesses record. The fields keep the bits of the old meaning until their keys are next accessed,
    /// as in Redis: eviction is only approximate until then.
    pub fn set_access_mode(&mut self, mode: AccessMode, _now: Now) {
        if self.access.mode != mode {
            self.access.mode = mode;
            self.pool.clear();
        }
    }

    /// Sets Redis' parameters `lfu-log-factor`, `lfu-decay-time` and `maxmemory-samples`.
    pub fn set_eviction_parameters(&mut self, lfu_log_factor: u32, lfu_decay_minutes: u32, samples: usize) {
        self.access.lfu_log_factor = lfu_log_factor;
        self.access.lfu_decay_minutes = lfu_decay_minutes;
        self.samples = samples;
    }

    /// Bytes of live records and of the index: what `--maxmemory` bounds.
    pub fn used_bytes(&self) -> usize {
        self.arena.live_bytes() + self.index.used_bytes()
    }

    /// Counters and sizes as they are now.
    pub fn stats(&self) -> KeyspaceStats {
        KeyspaceStats {
            splits: self.index.splits,
            segments: self
                .arena
                .segments()
                .iter()
                .filter(|s| matches!(s.kind, Kind::Shared | Kind::Span(_)))
                .count(),
            arena_bytes: self.arena.held_bytes(),
            live_bytes: self.arena.live_bytes(),
            dead_bytes: self.arena.dead_bytes(),
            index_bytes: self.index.held_bytes(),
            stashed: self.index.stashed(),
            image_bytes: self.image_progress().map_or(0, |progress| progress.held_bytes),
            ..self.stats
        }
    }

    /// The counters, for CONFIG RESETSTAT. Sizes in it mean nothing; see [`Keyspace::stats`].
    pub fn stats_mut(&mut self) -> &mut KeyspaceStats {
        &mut self.stats
    }

    // ---- checking ---------------------------------------------------------------------------------------

    /// Checks every invariant of index, arena, free lists and counters by walking everything. For tests.
    pub fn check(&self) -> Result<(), String> {
        let records = Reader { arena: &self.arena, seed: self.seed };
        self.index.check(&records)?;
        let (mut live, mut expires) = (0, 0);
        self.arena.check(|offset, header| {
            let key = self.arena.key(offset, header);
            let is_live = self.index.find_offset(self.hash(key).0, key, offset).is_some();
            live += usize::from(is_live);
            expires += usize::from(is_live && header.expires_at != 0);
            is_live
        })?;
        if live != self.len() || expires != self.expires {
            return Err(format!(
                "{live} records of which {expires} expire, the index has {} and {}",
                self.len(),
                self.expires
            ));
        }
        Ok(())
    }
}
