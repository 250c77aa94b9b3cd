//! Who has read what: for every key that somebody was told the value of, the readers to be told when it changes.
//!
//! One of these lies beside the keys of a shard, and every change of a key passes it ([`Table::touch`]): an entry fires
//! once and is gone. An entry takes 40 bytes with a key of up to 22 and one reader in it, and 8 more for its place in a
//! bucket and in the list of its reader, by which a reader that leaves is forgotten without a search.
//!
//! Nothing here stops to grow: the buckets are a linear hash table, one more for one more key; entries lie in pages
//! without gaps, the last one moves where one was removed, so what is held follows what is there. A key with several
//! readers has a map of its own ([`Crowd`]), so that reading again what one has read costs the same however many others
//! have: [`Table::knows`] is what a cache that is filled costs the server, and touches three lines of memory.
//!
//! **Bounds.** At most `pairs_max` pairs of key and reader are kept: beyond that entries chosen at random fire.

use super::Target;
use super::crowd::Crowd;
use crate::arena::prefetch_line;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem;

/// Entries, or buckets, that are allocated together.
const PAGE: usize = 256;
/// Pages of a table that was cleared which go in one turn.
const PAGES_DISCARDED: usize = 16;
/// Buckets that are always there.
const BUCKETS_MIN: usize = 16;
/// The end of a chain.
const NONE: u32 = u32::MAX;
/// In place of a reader: there are several, in a map.
const CROWD: u32 = u32::MAX;
/// Pairs of a reader that leaves which are forgotten at once; the rest goes in the following turns.
const FORGOTTEN_AT_ONCE: usize = 1024;

/// A vector that grows without moving what it has. What lies behind its end is of no meaning.
#[derive(Debug)]
struct Pages<T> {
    pages: Vec<Page<T>>,
    len: usize,
}

type Page<T> = Box<[T; PAGE]>;

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages { pages: Vec::new(), len: 0 }
    }
}

impl<T: Default> Pages<T> {
    fn push(&mut self, item: T) {
        if self.len.is_multiple_of(PAGE) {
            self.pages.push(Box::new(core::array::from_fn(|_| T::default())));
        }
        self.pages[self.len / PAGE][self.len % PAGE] = item;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        let item = mem::take(&mut self.pages[self.len / PAGE][self.len % PAGE]);
        if self.len.is_multiple_of(PAGE) {
            self.pages.pop();
        }
        Some(item)
    }

    #[inline]
    fn at(&self, at: u32) -> &T {
        &self.pages[at as usize / PAGE][at as usize % PAGE]
    }

    #[inline]
    fn at_mut(&mut self, at: u32) -> &mut T {
        &mut self.pages[at as usize / PAGE][at as usize % PAGE]
    }

    fn bytes(&self) -> usize {
        self.pages.len() * PAGE * size_of::<T>() + self.pages.capacity() * size_of::<Page<T>>()
    }
}

/// The bytes of a key: beside the rest where they are few.
#[derive(Debug)]
enum Name {
    Short { len: u8, bytes: [u8; Name::SHORT_MAX] },
    Long(Box<[u8]>),
}

impl Name {
    const SHORT_MAX: usize = 22;

    fn new(key: &[u8]) -> Name {
        if key.len() > Name::SHORT_MAX {
            return Name::Long(key.into());
        }
        let mut bytes = [0; Name::SHORT_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Name::Short { len: key.len() as u8, bytes }
    }

    /// What a name of this length takes beside its entry, with what the allocator adds.
    fn bytes_apart(len: usize) -> usize {
        if len > Name::SHORT_MAX { len + 16 } else { 0 }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        match self {
            Name::Short { len, bytes } => &bytes[..usize::from(*len)],
            Name::Long(bytes) => bytes,
        }
    }

    /// Of few bytes without a call: this is asked at every GET of a client that tracks.
    #[inline]
    fn is(&self, key: &[u8]) -> bool {
        let (name, mut at) = (self.as_slice(), 0);
        if name.len() != key.len() {
            return false;
        }
        if name.len() > Name::SHORT_MAX {
            return name == key;
        }
        while let (Some(one), Some(other)) = (name[at..].first_chunk::<8>(), key[at..].first_chunk::<8>()) {
            if one != other {
                return false;
            }
            at += 8;
        }
        name[at..].iter().zip(&key[at..]).all(|(one, other)| one == other)
    }

    fn into_box(self) -> Box<[u8]> {
        match self {
            Name::Short { len, bytes } => bytes[..usize::from(len)].into(),
            Name::Long(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
#[repr(C)]
struct Entry {
    hash: u32,
    /// The next of its bucket.
    next: u32,
    name: Name,
    /// The reader, or [`CROWD`].
    reader: u32,
    /// Where it stands in the list of its reader; of a crowd, which map.
    at: u32,
}

impl Default for Entry {
    fn default() -> Self {
        let name = Name::Short { len: 0, bytes: [0; Name::SHORT_MAX] };
        Entry { hash: 0, next: NONE, name, reader: NONE, at: NONE }
    }
}

const _: () = assert!(size_of::<Entry>() <= 40, "what a tracked key costs is a promise");

#[derive(Debug)]
struct Reader {
    target: Target,
    /// Its keys, as places of entries.
    keys: Vec<u32>,
    is_leaving: bool,
}

/// Why those who read a key are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The table is full. It concerns nobody else.
    Full,
    /// It expired, and it was there because of this record of the log, if that may not be durable; else 0.
    Expired(u64),
    /// It was evicted.
    Evicted,
    /// A command asked for it.
    Asked,
}

/// A key that changed, and who is to be told because he read it.
#[derive(Debug)]
pub struct Fired {
    /// Its name.
    pub key: Box<[u8]>,
    /// What became of it; of several things the last of [`Cause`]'s.
    pub cause: Cause,
    /// Those who read it.
    pub targets: Vec<Target>,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    entries: Pages<Entry>,
    buckets: Pages<u32>,
    /// One less than the power of two that the buckets are on their way to.
    mask: u32,
    crowds: Pages<Crowd>,
    free_crowds: Vec<u32>,
    /// What the maps allocate beside themselves.
    crowd_bytes: usize,
    readers: Vec<Reader>,
    free_readers: Vec<u32>,
    by_id: BTreeMap<u64, u32>,
    /// Who read last: a batch of commands is of one reader.
    last: (u64, u32),
    pairs: usize,
    /// Bytes of names that lie apart.
    long_bytes: usize,
    /// Pairs of readers that leave.
    leaving_pairs: usize,
    leaving: Vec<u32>,
    /// Pages of a table that was cleared; they go one at a time.
    discarded: Vec<Page<Entry>>,
    pairs_max: usize,
    /// Somebody wants to hear of every key, read or not.
    hears_all: bool,
    fired: Vec<Fired>,
    is_cleared: bool,
    evictions: u64,
    random: u64,
}

impl Table {
    /// An empty table.
    pub fn new(pairs_max: usize) -> Table {
        let mut buckets = Pages::default();
        (0..BUCKETS_MIN).for_each(|_| buckets.push(NONE));
        Table {
            entries: Pages::default(),
            buckets,
            mask: BUCKETS_MIN as u32 - 1,
            crowds: Pages::default(),
            free_crowds: Vec::new(),
            crowd_bytes: 0,
            readers: Vec::new(),
            free_readers: Vec::new(),
            by_id: BTreeMap::new(),
            last: (u64::MAX, NONE),
            pairs: 0,
            long_bytes: 0,
            leaving_pairs: 0,
            leaving: Vec::new(),
            discarded: Vec::new(),
            pairs_max,
            hears_all: false,
            fired: Vec::new(),
            is_cleared: false,
            evictions: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Keys that somebody has read.
    pub fn keys(&self) -> usize {
        self.entries.len
    }

    /// Pairs of a key and one who has read it.
    pub fn pairs(&self) -> usize {
        self.pairs - self.leaving_pairs
    }

    /// Readers that are known here.
    pub fn readers(&self) -> usize {
        self.by_id.len()
    }

    /// Keys whose readers were told only because the table was full.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// CONFIG RESETSTAT
    pub fn reset_evictions(&mut self) {
        self.evictions = 0;
    }

    /// Nothing is kept, and nothing is to be given back.
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty() && self.leaving.is_empty() && self.discarded.is_empty() && !self.has_fired()
    }

    /// Changes the bound; [`tidy`](Self::tidy) gets below it.
    pub fn set_pairs_max(&mut self, pairs_max: usize) {
        self.pairs_max = pairs_max;
    }

    /// Whether every key that changes is of interest.
    pub fn set_hears_all(&mut self, hears_all: bool) {
        self.hears_all = hears_all;
    }

    /// What it allocates.
    pub fn bytes(&self) -> usize {
        let lists = |reader: &Reader| size_of::<Reader>() + reader.keys.capacity() * size_of::<u32>();
        self.entries.bytes()
            + self.discarded.len() * PAGE * size_of::<Entry>()
            + self.long_bytes
            + self.buckets.bytes()
            + self.crowds.bytes()
            + self.crowd_bytes
            + self.readers.iter().map(lists).sum::<usize>()
            + self.by_id.len() * 32
    }

    // ---- reading ------------------------------------------------------------------------------------------------

    /// First step of a batched lookup, as in [`crate::engine`]: fetches the key's bucket.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch_line(self.buckets.at(self.bucket(hash as u32)));
    }

    /// Second step, once the bucket is likely to be near: fetches the entry, which may lie on two lines.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: u64) {
        let at = *self.buckets.at(self.bucket(hash as u32));
        if at != NONE {
            let entry = self.entries.at(at);
            prefetch_line(entry);
            prefetch_line(&entry.at);
        }
    }

    /// Third step, once the entry is likely to be near: fetches the one behind it, if it is not the one that is looked
    /// for, or what is known of the many who have read it.
    #[inline(always)]
    pub fn prefetch_behind(&self, hash: u64) {
        let at = *self.buckets.at(self.bucket(hash as u32));
        if at == NONE {
            return;
        }
        let entry = self.entries.at(at);
        if entry.hash != hash as u32 {
            if entry.next != NONE {
                prefetch_line(self.entries.at(entry.next));
            }
        } else if entry.reader == CROWD {
            self.crowds.at(entry.at).prefetch(self.last.1);
        }
    }

    /// This reader's commands come next: [`knows`](Self::knows) and [`prefetch_behind`](Self::prefetch_behind) are about it.
    #[inline]
    pub fn turn_to(&mut self, id: u64) {
        if self.last.0 != id
            && let Some(&reader) = self.by_id.get(&id)
        {
            self.last = (id, reader);
        }
    }

    /// Whether a reader will be told of the key already, without anything having to be done; what a client that reads what
    /// it has read costs. `false`: it may be so all the same.
    #[inline]
    pub fn knows(&self, key: &[u8], hash: u64, id: u64) -> bool {
        let (last, reader) = self.last;
        if last != id {
            return false;
        }
        let Some(at) = self.find(key, hash as u32) else { return false };
        let entry = self.entries.at(at);
        match entry.reader {
            CROWD => self.crowds.at(entry.at).place_of(reader).is_some(),
            present => present == reader,
        }
    }

    /// From now on this reader is told when the key changes, once.
    pub fn register(&mut self, key: &[u8], hash: u64, target: Target) {
        let reader = self.reader(target);
        let entry = match self.find(key, hash as u32) {
            Some(entry) => entry,
            None => self.insert(key, hash as u32),
        };
        if !self.add_pair(entry, reader) {
            return;
        }
        if self.pairs > self.pairs_max {
            self.evict(Some(entry));
        }
    }

    fn reader(&mut self, target: Target) -> u32 {
        if self.last.0 == target.id {
            return self.last.1;
        }
        let reader = match self.by_id.get(&target.id) {
            Some(&reader) => reader,
            None => {
                let new = Reader { target, keys: Vec::new(), is_leaving: false };
                let reader = match self.free_readers.pop() {
                    Some(free) => {
                        self.readers[free as usize] = new;
                        free
                    }
                    None => {
                        self.readers.push(new);
                        self.readers.len() as u32 - 1
                    }
                };
                self.by_id.insert(target.id, reader);
                reader
            }
        };
        self.last = (target.id, reader);
        reader
    }

    /// `false`: it was there.
    fn add_pair(&mut self, entry: u32, reader: u32) -> bool {
        let place = self.readers[reader as usize].keys.len() as u32;
        let Entry { reader: present, at, .. } = *self.entries.at(entry);
        if present == reader {
            return false;
        }
        if present == NONE && at == NONE {
            let entry = self.entries.at_mut(entry);
            (entry.reader, entry.at) = (reader, place);
        } else if present == CROWD {
            let crowd = self.crowds.at_mut(at);
            let bytes = crowd.bytes();
            if !crowd.insert(reader, place) {
                return false;
            }
            self.crowd_bytes += crowd.bytes() - bytes;
        } else {
            let crowd = Crowd::of_two((present, at), (reader, place));
            self.crowd_bytes += crowd.bytes();
            let map = match self.free_crowds.pop() {
                Some(free) => {
                    *self.crowds.at_mut(free) = crowd;
                    free
                }
                None => {
                    self.crowds.push(crowd);
                    self.crowds.len as u32 - 1
                }
            };
            let entry = self.entries.at_mut(entry);
            (entry.reader, entry.at) = (CROWD, map);
        }
        self.readers[reader as usize].keys.push(entry);
        self.pairs += 1;
        true
    }

    // ---- changes ------------------------------------------------------------------------------------------------

    /// A key has changed, or is gone: its readers are to be told, and it is forgotten.
    pub fn touch(&mut self, key: &[u8], hash: u64, cause: Cause) {
        let found = self.find(key, hash as u32);
        if found.is_none() && !self.hears_all {
            return;
        }
        let targets = found.map_or(Vec::new(), |entry| self.take(entry).1);
        if self.hears_all || !targets.is_empty() {
            self.fire(key, cause, targets);
        }
    }

    fn fire(&mut self, key: &[u8], cause: Cause, targets: Vec<Target>) {
        match self.fired.last_mut().filter(|last| *last.key == *key) {
            Some(last) => {
                last.cause = last.cause.max(cause);
                last.targets.extend(targets);
            }
            None => self.fired.push(Fired { key: key.into(), cause, targets }),
        }
    }

    /// Every key is gone.
    pub fn clear(&mut self) {
        self.is_cleared = true;
        self.discarded.append(&mut self.entries.pages);
        self.entries.len = 0;
        self.buckets = Pages::default();
        (0..BUCKETS_MIN).for_each(|_| self.buckets.push(NONE));
        self.mask = BUCKETS_MIN as u32 - 1;
        self.crowds = Pages::default();
        self.free_crowds = Vec::new();
        self.crowd_bytes = 0;
        self.readers.iter_mut().for_each(|reader| reader.keys = Vec::new());
        self.pairs = 0;
        self.long_bytes = 0;
        self.leaving_pairs = 0;
    }

    /// Something is to be told.
    #[inline]
    pub fn has_fired(&self) -> bool {
        self.is_cleared || !self.fired.is_empty()
    }

    /// What is to be told: the keys, and whether all are gone.
    pub fn take_fired(&mut self) -> (Vec<Fired>, bool) {
        (mem::take(&mut self.fired), mem::take(&mut self.is_cleared))
    }

    // ---- leaving ------------------------------------------------------------------------------------------------

    /// A reader is told nothing any more.
    pub fn forget(&mut self, id: u64) {
        let Some(reader) = self.by_id.remove(&id) else { return };
        self.last = (u64::MAX, NONE);
        let leaving = &mut self.readers[reader as usize];
        leaving.is_leaving = true;
        self.leaving_pairs += leaving.keys.len();
        self.leaving.push(reader);
        self.drain(FORGOTTEN_AT_ONCE);
    }

    /// Forgets pairs of those who leave, at most so many. Returns what is left of the budget.
    fn drain(&mut self, mut budget: usize) -> usize {
        while let Some(&reader) = self.leaving.last() {
            while let Some(entry) = self.readers[reader as usize].keys.pop() {
                if budget == 0 {
                    self.readers[reader as usize].keys.push(entry);
                    return 0;
                }
                budget -= 1;
                self.pairs -= 1;
                self.leaving_pairs -= 1;
                if self.drop_reader(entry, reader) {
                    self.remove(entry);
                }
            }
            self.readers[reader as usize].keys = Vec::new();
            self.leaving.pop();
            self.free_readers.push(reader);
        }
        budget
    }

    /// Takes a reader out of an entry, whose list knows of it no more. `true`: nobody is left.
    fn drop_reader(&mut self, entry: u32, reader: u32) -> bool {
        let Entry { reader: present, at, .. } = *self.entries.at(entry);
        if present != CROWD {
            debug_assert_eq!(present, reader);
            let entry = self.entries.at_mut(entry);
            (entry.reader, entry.at) = (NONE, NONE);
            return true;
        }
        let crowd = self.crowds.at_mut(at);
        let bytes = crowd.bytes();
        crowd.remove(reader);
        let left = crowd.only();
        if left.is_some() {
            *crowd = Crowd::default();
        }
        self.crowd_bytes -= bytes - crowd.bytes();
        if let Some((reader, place)) = left {
            self.free_crowds.push(at);
            let entry = self.entries.at_mut(entry);
            (entry.reader, entry.at) = (reader, place);
        }
        false
    }

    /// Does some of what is left to do: a bounded amount. `true`: there is more.
    pub fn tidy(&mut self, budget: usize) -> bool {
        self.discarded.truncate(self.discarded.len().saturating_sub(PAGES_DISCARDED));
        let mut budget = self.drain(budget);
        while self.pairs > self.pairs_max && budget > 0 {
            budget -= 1;
            self.evict(None);
        }
        !self.leaving.is_empty() || !self.discarded.is_empty() || self.pairs > self.pairs_max
    }

    /// Makes room: a key chosen at random, another than `spared` if there is one, is as if it had changed.
    fn evict(&mut self, spared: Option<u32>) {
        let keys = self.entries.len as u64;
        if keys == 0 {
            return;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut entry = (self.random % keys) as u32;
        if spared == Some(entry) {
            entry = ((u64::from(entry) + 1) % keys) as u32;
        }
        let (name, targets) = self.take(entry);
        self.evictions += 1;
        self.fire(&name.into_box(), Cause::Full, targets);
    }

    // ---- entries ------------------------------------------------------------------------------------------------

    /// The bucket of a hash: of two powers of two of buckets, the greater where it is there already.
    #[inline]
    fn bucket(&self, hash: u32) -> u32 {
        let bucket = hash & self.mask;
        if (bucket as usize) < self.buckets.len { bucket } else { bucket & (self.mask >> 1) }
    }

    #[inline]
    fn find(&self, key: &[u8], hash: u32) -> Option<u32> {
        let mut at = *self.buckets.at(self.bucket(hash));
        while at != NONE {
            let entry = self.entries.at(at);
            if entry.hash == hash && entry.name.is(key) {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    fn insert(&mut self, key: &[u8], hash: u32) -> u32 {
        if self.entries.len >= self.buckets.len {
            self.split();
        }
        let at = self.entries.len as u32;
        let bucket = self.bucket(hash);
        let next = mem::replace(self.buckets.at_mut(bucket), at);
        self.long_bytes += Name::bytes_apart(key.len());
        self.entries.push(Entry { name: Name::new(key), hash, next, reader: NONE, at: NONE });
        at
    }

    /// One bucket more: it takes its share of the one it was part of.
    fn split(&mut self) {
        let new = self.buckets.len as u32;
        let old = new & !(1 << new.ilog2());
        self.buckets.push(NONE);
        self.mask |= new;
        let mut at = mem::replace(self.buckets.at_mut(old), NONE);
        while at != NONE {
            let bucket = self.bucket(self.entries.at(at).hash);
            debug_assert!(bucket == old || bucket == new);
            let head = mem::replace(self.buckets.at_mut(bucket), at);
            at = mem::replace(&mut self.entries.at_mut(at).next, head);
        }
    }

    /// One bucket less: the last one joins the one it was split from.
    fn join(&mut self) {
        let last = self.buckets.len as u32 - 1;
        let into = last & !(1 << last.ilog2());
        let Some(mut at) = self.buckets.pop() else { return };
        if last.is_power_of_two() {
            self.mask >>= 1;
        }
        while at != NONE {
            let head = mem::replace(self.buckets.at_mut(into), at);
            at = mem::replace(&mut self.entries.at_mut(at).next, head);
        }
    }

    /// Takes an entry out, with those of its readers who have not left.
    fn take(&mut self, entry: u32) -> (Name, Vec<Target>) {
        let Entry { reader, at, .. } = *self.entries.at(entry);
        let mut targets = Vec::new();
        if reader == CROWD {
            let crowd = mem::take(self.crowds.at_mut(at));
            self.free_crowds.push(at);
            self.crowd_bytes -= crowd.bytes();
            targets.reserve_exact(crowd.len());
            crowd.iter().for_each(|(reader, place)| self.take_pair(reader, place, &mut targets));
        } else if reader != NONE {
            self.take_pair(reader, at, &mut targets);
        }
        (self.remove(entry), targets)
    }

    /// Takes a place out of a reader's list. Where another key comes to stand there, its entry hears of it.
    fn take_pair(&mut self, reader: u32, place: u32, targets: &mut Vec<Target>) {
        self.pairs -= 1;
        let Reader { target, keys, is_leaving } = &mut self.readers[reader as usize];
        if *is_leaving {
            self.leaving_pairs -= 1;
        } else {
            targets.push(*target);
        }
        keys.swap_remove(place as usize);
        if keys.capacity() > 64 && keys.len() < keys.capacity() / 4 {
            keys.shrink_to(keys.len() * 2);
        }
        if let Some(&moved) = keys.get(place as usize) {
            let entry = self.entries.at_mut(moved);
            match entry.reader {
                CROWD => self.crowds.at_mut(entry.at).moved(reader, place),
                _ => entry.at = place,
            }
        }
    }

    /// Removes an entry without readers; the last entry takes its place.
    fn remove(&mut self, entry: u32) -> Name {
        self.relink(entry, self.entries.at(entry).next);
        let last = self.entries.len as u32 - 1;
        if entry != last {
            self.relink(last, entry);
            let Entry { reader, at, .. } = *self.entries.at(last);
            if reader == CROWD {
                for (reader, place) in self.crowds.at(at).iter() {
                    self.readers[reader as usize].keys[place as usize] = entry;
                }
            } else if reader != NONE {
                self.readers[reader as usize].keys[at as usize] = entry;
            }
        }
        let popped = self.entries.pop().expect("an entry is there to be removed");
        let removed = if entry == last { popped } else { mem::replace(self.entries.at_mut(entry), popped) };
        // Two for one: there were up to a quarter too many.
        for _ in 0..2 {
            if self.entries.len + self.entries.len / 4 < self.buckets.len && self.buckets.len > BUCKETS_MIN {
                self.join();
            }
        }
        self.long_bytes -= Name::bytes_apart(removed.name.as_slice().len());
        if self.entries.len == 0 {
            self.crowds = Pages::default();
            self.free_crowds = Vec::new();
        }
        removed.name
    }

    /// Lets whatever points to an entry point to another, or past it.
    fn relink(&mut self, entry: u32, to: u32) {
        let bucket = self.bucket(self.entries.at(entry).hash);
        let mut at = *self.buckets.at(bucket);
        if at == entry {
            *self.buckets.at_mut(bucket) = to;
            return;
        }
        while self.entries.at(at).next != entry {
            at = self.entries.at(at).next;
        }
        self.entries.at_mut(at).next = to;
    }
}

#[cfg(test)]
mod tests;
