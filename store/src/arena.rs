//! Where records lie: two-mebibyte segments of slots, and who may reuse a slot.
//!
//! A record is found by a 32-bit *offset* in units of eight bytes: `offset >> 18` is the segment's number, the
//! rest is the place inside it, 32 GiB in all. Memory and snapshot file therefore have the same layout. A
//! segment is at every moment completely covered by slots, each of which says its own length, so it can be
//! walked from its first unit to its end. Slots never coalesce and never move their start, so a walk can stop
//! anywhere and be resumed.
//!
//! * **Allocation** takes a freed slot of exactly the size wanted, else the front of the open region of its TTL
//!   class, else a new segment. Overwrites with a stationary mix of sizes then live off the slots they free
//!   themselves, and the arena does not grow.
//! * **Free slots** are doubly linked *through the slots themselves*, one list for each size up to 4 KiB and
//!   for each TTL class; larger ones in lists by magnitude. Links cost no memory, and a slot can leave its list
//!   from the middle when its segment is compacted.
//! * **TTL classes**: records with an expiry lie in segments with others that expire at about the same time.
//!   [`Segment::earliest`] is a lower bound of what a segment holds, so that active expiry looks only where
//!   something is due.
//! * **Sealed** segments are immutable, because an image of them is being taken ([`image`]): a record in one dies by
//!   accounting alone, and only the index knows that it is dead. Their free slots wait aside, in lists of their own.
//! * **Long records** (over 1 MiB) get an allocation of their own that spans as many numbers as it needs.
//!
//! The arena never looks at the index and never decides what is live: [`crate::keyspace`] tells it.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use bytemuck::{Pod, Zeroable};

use crate::expiry::TTL_CLASSES;
use crate::value::{EXPIRY, FREE, Header, LISTED, Layout, SLACK, UNIT, WIDE, same_bytes};

mod check;
mod image;
mod slots;

pub(crate) use image::{RestoredLists, restored_segment};

/// Bytes of a segment: one huge page.
pub const SEGMENT_BYTES: usize = 2 << 20;
const SEGMENT_SHIFT: u32 = 18;
pub(crate) const SEGMENT_UNITS: u32 = 1 << SEGMENT_SHIFT;
const _: () = assert!(SEGMENT_UNITS as usize * UNIT == SEGMENT_BYTES);
/// As many segment numbers as 32-bit offsets can name.
pub(crate) const SEGMENTS_MAX: usize = 1 << (32 - SEGMENT_SHIFT);
/// The first unit of every segment holds no record, which keeps offset 0 free to mean "none".
pub(crate) const FIRST_UNIT: u32 = 1;
/// Records above this size get memory of their own. Half a segment: smaller ones leave tails that others fill,
/// larger ones would waste up to half of what they lie in.
pub(crate) const SPAN_BYTES: usize = SEGMENT_BYTES / 2;
/// Up to this size every size has a free list of its own.
const EXACT_UNITS: usize = 512;
/// Above, four lists for each power of two: from 2^9 to 2^18 units.
const MAGNITUDES: usize = 4 * 10;
/// Free lists of a TTL class: by exact size, then by magnitude.
pub(crate) const LISTS: usize = EXACT_UNITS + 1 + MAGNITUDES;
/// How many slots of one magnitude are looked at before a larger magnitude is tried.
const FIRST_FIT_PROBES: usize = 8;
/// A freed slot this long may become the open region of its class again, bytes.
const REGION_BYTES_MIN: usize = 64 << 10;
/// Spans are a multiple of this.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Where segments come from. The reactor hands out huge-page memory, tests and tools use [`HeapSource`].
pub trait SegmentSource: Send {
    /// `bytes` (a multiple of 4096) of zeroed memory aligned to 4096, or `None` where there is no more.
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]>;
    /// Takes back what [`SegmentSource::allocate`] gave, and the regions of an image that a keyspace was restored from.
    fn release(&mut self, memory: &'static mut [u8]);
}

/// Bytes and nothing else: its alignment is its only purpose.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Memory from the global allocator, for tests and small tools. What is released is kept and handed out again;
/// what is kept when the source is dropped is leaked, since a `'static` slice cannot be freed safely.
#[derive(Default)]
pub struct HeapSource {
    kept: Vec<&'static mut [u8]>,
    handed_out: usize,
    limit: Option<usize>,
}

impl HeapSource {
    /// A source that refuses once `limit` bytes are handed out.
    pub fn with_limit(limit: usize) -> HeapSource {
        HeapSource { limit: Some(limit), ..HeapSource::default() }
    }
}

impl SegmentSource for HeapSource {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES), "segments are whole pages");
        if self.limit.is_some_and(|limit| self.handed_out + bytes > limit) {
            return None;
        }
        self.handed_out += bytes;
        let fits = |memory: &&'static mut [u8]| memory.len() >= bytes;
        let best = (0..self.kept.len()).filter(|&i| fits(&self.kept[i])).min_by_key(|&i| self.kept[i].len());
        if let Some(i) = best {
            let (memory, rest) = self.kept.swap_remove(i).split_at_mut(bytes);
            if !rest.is_empty() {
                self.kept.push(rest);
            }
            memory.fill(0);
            return Some(memory);
        }
        let pages: &'static mut [Page] =
            Box::leak(vec![Page([0; PAGE_BYTES]); bytes / PAGE_BYTES].into_boxed_slice());
        Some(bytemuck::cast_slice_mut(pages))
    }

    fn release(&mut self, memory: &'static mut [u8]) {
        // Regions of an image come from elsewhere.
        self.handed_out = self.handed_out.saturating_sub(memory.len());
        self.kept.push(memory);
    }
}

/// Where a record lies: segment and unit. Zero means "none".
pub(crate) type Offset = u32;

#[inline(always)]
fn segment_of(offset: Offset) -> usize {
    (offset >> SEGMENT_SHIFT) as usize
}

#[inline(always)]
fn byte_of(offset: Offset) -> usize {
    (offset & (SEGMENT_UNITS - 1)) as usize * UNIT
}

#[inline(always)]
pub(crate) fn offset_of(segment: usize, unit: u32) -> Offset {
    (segment as u32) << SEGMENT_SHIFT | unit
}

/// What a segment number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No memory.
    Empty,
    /// Two mebibytes that many records share.
    Shared,
    /// Memory of one long record, spanning this many numbers.
    Span(u32),
    /// A number inside a span.
    Continuation,
}

/// Bookkeeping of one segment number.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub kind: Kind,
    /// Immutable: nothing may write into it.
    pub sealed: bool,
    /// Slots that are freed in it are remembered instead of listed: it is sealed, or will be before it moves out of a file.
    pub keeps_dead: bool,
    /// Being emptied by compaction: slots freed in it are not listed, and slots listed in it are not taken.
    pub evacuating: bool,
    pub class: u8,
    /// Bytes of live records, padding included.
    pub live: usize,
    /// Lower bound of the expiries in it, unix milliseconds; `u64::MAX` if it holds none.
    pub earliest: u64,
    /// Upper bound of the expiries in it.
    pub latest: u64,
    /// When active expiry should walk it, unix milliseconds; `u64::MAX` for never.
    pub due: u64,
    /// No walk before this moment.
    pub not_before: u64,
    /// Where eviction takes its next sample: always the start of a slot.
    pub sample_unit: u32,
}

const NO_SEGMENT: Segment = Segment {
    kind: Kind::Empty,
    sealed: false,
    keeps_dead: false,
    evacuating: false,
    class: 0,
    live: 0,
    earliest: u64::MAX,
    latest: 0,
    due: u64::MAX,
    not_before: 0,
    sample_unit: FIRST_UNIT,
};

/// The part of a segment that is handed out from the front. Its rest is one unlisted free slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub segment: usize,
    pub unit: u32,
    pub units: u32,
}

/// One slot met on a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Free { units: u32, listed: bool },
    Record(Header),
}

/// Segments, regions and free lists.
pub(crate) struct Arena {
    /// By segment number; empty where the number has no memory of its own. Apart from `segments` because every
    /// access goes through it: sixteen bytes a segment stay in the first-level cache.
    memory: Vec<&'static mut [u8]>,
    segments: Vec<Segment>,
    /// No number below this one is empty.
    first_empty: usize,
    open: [Option<Region>; TTL_CLASSES],
    /// Heads of the free lists: `[class][list]`, see [`list_of`].
    heads: Vec<[Offset; LISTS]>,
    /// Their last slots; stale where the head is 0. They let two lists be joined, and cost nothing elsewhere.
    tails: Vec<[Offset; LISTS]>,
    source: Box<dyn SegmentSource>,
    /// Memory no longer used and not yet given back; see [`Arena::release_some`].
    released: Vec<&'static mut [u8]>,
    /// Addresses of the memory that is a file's pages: it is never used again for something else.
    mapped: BTreeSet<usize>,
    /// The image that is being taken; see [`image`].
    image: Option<Box<image::Capture>>,
    /// Free slots that wait until an image is taken, or warm.
    aside: Option<Box<image::Aside>>,
    live: usize,
    capacity: usize,
    /// Smallest `due` of all segments, or something below it.
    due_next: u64,
}

/// The number of the free list for slots of this length.
#[inline(always)]
fn list_of(units: u32) -> usize {
    if units as usize <= EXACT_UNITS { units as usize } else { EXACT_UNITS + 1 + magnitude(units) }
}

fn magnitude(units: u32) -> usize {
    let log = units.ilog2();
    ((log - 9) * 4 + (units >> (log - 2) & 3)) as usize
}

impl Drop for Arena {
    /// What it held goes back to its source.
    fn drop(&mut self) {
        for memory in self.memory.drain(..).chain(self.released.drain(..)).filter(|memory| !memory.is_empty())
        {
            self.source.release(memory);
        }
    }
}

impl Arena {
    pub fn new(source: Box<dyn SegmentSource>) -> Arena {
        Arena {
            memory: Vec::new(),
            segments: Vec::new(),
            first_empty: 0,
            open: [None; TTL_CLASSES],
            heads: vec![[0; LISTS]; TTL_CLASSES],
            tails: vec![[0; LISTS]; TTL_CLASSES],
            source,
            released: Vec::new(),
            mapped: BTreeSet::new(),
            image: None,
            aside: None,
            live: 0,
            capacity: 0,
            due_next: u64::MAX,
        }
    }

    /// Takes the source out of an arena that is to end, whose memory must be given back already.
    pub fn take_source(&mut self) -> Box<dyn SegmentSource> {
        debug_assert!(self.memory.iter().all(|memory| memory.is_empty()) && self.released.is_empty());
        core::mem::replace(&mut self.source, Box::new(HeapSource::default()))
    }

    /// Memory that is not for records: the index takes its slabs from the same source.
    pub fn source(&mut self) -> &mut dyn SegmentSource {
        &mut *self.source
    }

    // ---- reading ----------------------------------------------------------------------------------------

    /// The bytes from `offset` to the end of its segment.
    #[inline(always)]
    fn at(&self, offset: Offset) -> &[u8] {
        &self.memory[segment_of(offset)][byte_of(offset)..]
    }

    #[inline(always)]
    fn at_mut(&mut self, offset: Offset) -> &mut [u8] {
        &mut self.memory[segment_of(offset)][byte_of(offset)..]
    }

    /// Whether the record at `offset` has this key. The usual record, without any optional field, is recognised from
    /// its first word; the caller decodes the header once more only where this said yes.
    #[inline(always)]
    pub fn has_key(&self, offset: Offset, key: &[u8]) -> bool {
        let bytes = self.at(offset);
        let word = read_u32(bytes, 0);
        let prefix = if word as u8 & (EXPIRY | WIDE | SLACK) == 0 {
            if (word >> 8) as u8 as usize != key.len() {
                return false;
            }
            4
        } else {
            let header = Header::read(bytes);
            if header.key_len as usize != key.len() {
                return false;
            }
            header.prefix as usize
        };
        same_bytes(&bytes[prefix..prefix + key.len()], key)
    }

    #[inline(always)]
    pub fn header(&self, offset: Offset) -> Header {
        Header::read(self.at(offset))
    }

    #[inline(always)]
    pub fn key(&self, offset: Offset, header: &Header) -> &[u8] {
        let prefix = header.prefix as usize;
        &self.at(offset)[prefix..prefix + header.key_len as usize]
    }

    #[inline(always)]
    pub fn value(&self, offset: Offset, header: &Header) -> &[u8] {
        let start = header.value_start();
        &self.at(offset)[start..start + header.value_len as usize]
    }

    /// Asks the processor for the first two lines of the record, where header, key and the front of the value are.
    #[inline(always)]
    pub fn prefetch(&self, offset: Offset) {
        // An offset from a bucket that nobody has checked may be anything.
        let Some(memory) = self.memory.get(segment_of(offset)) else { return };
        for byte in [memory.get(byte_of(offset)), memory.get(byte_of(offset) + 64)].into_iter().flatten() {
            prefetch_line(byte);
        }
    }

    /// The slot at `offset`, which must be the start of one.
    #[inline]
    pub fn slot(&self, offset: Offset) -> Slot {
        let bytes = self.at(offset);
        if bytes[0] & FREE != 0 {
            let word = read_u32(bytes, 0);
            return Slot::Free { units: word >> 8, listed: word as u8 & LISTED != 0 };
        }
        Slot::Record(Header::read(bytes))
    }

    // ---- segments ---------------------------------------------------------------------------------------

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub fn segment_mut(&mut self, number: usize) -> &mut Segment {
        &mut self.segments[number]
    }

    #[inline(always)]
    pub fn is_sealed(&self, offset: Offset) -> bool {
        self.segments[segment_of(offset)].sealed
    }

    #[inline(always)]
    pub fn class_of(&self, offset: Offset) -> u8 {
        self.segments[segment_of(offset)].class
    }

    pub fn is_span(&self, offset: Offset) -> bool {
        matches!(self.segments[segment_of(offset)].kind, Kind::Span(_))
    }

    /// The unit behind the segment's last slot: where a walk that starts at [`FIRST_UNIT`] ends.
    pub fn end_unit(&self, number: usize) -> u32 {
        match self.segments[number].kind {
            Kind::Shared => SEGMENT_UNITS,
            // One record, counted as one unit; what follows it in its last page belongs to nobody.
            Kind::Span(_) => FIRST_UNIT + 1,
            Kind::Empty | Kind::Continuation => FIRST_UNIT,
        }
    }

    /// The slot at `unit` of a segment and the unit at which the next one starts.
    #[inline]
    pub fn walk(&self, number: usize, unit: u32) -> (Offset, Slot, u32) {
        let offset = offset_of(number, unit);
        let slot = self.slot(offset);
        let units = match (slot, self.segments[number].kind) {
            (_, Kind::Span(_)) => 1,
            (Slot::Free { units, .. }, _) => units,
            (Slot::Record(header), _) => header.slot_bytes / UNIT as u32,
        };
        (offset, slot, unit + units)
    }

    #[inline(always)]
    pub fn segment_number(&self, offset: Offset) -> usize {
        segment_of(offset)
    }

    /// All bytes of a segment.
    pub fn memory(&self, number: usize) -> &[u8] {
        self.memory[number]
    }

    /// Takes memory that is no longer used, to be reused or released.
    pub fn give_back(&mut self, memory: &'static mut [u8]) {
        self.released.push(memory);
    }

    /// Whether some open region lies in this segment.
    pub fn is_open(&self, number: usize) -> bool {
        self.open.iter().flatten().any(|region| region.segment == number)
    }

    /// Bytes of live records.
    pub fn live_bytes(&self) -> usize {
        self.live
    }

    /// Bytes of all memory held for records, in use or waiting to be given back.
    pub fn held_bytes(&self) -> usize {
        let released = self.released.iter().map(|memory| memory.len()).sum::<usize>();
        self.capacity + released + self.image.as_ref().map_or(0, |image| image.kept_bytes())
    }

    /// Bytes in segments that are neither live nor waiting in an open region.
    pub fn dead_bytes(&self) -> usize {
        self.capacity - self.live - self.open.iter().flatten().map(|r| r.units as usize * UNIT).sum::<usize>()
    }

    /// Bytes of the segments in use.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity
    }

    /// A moment before which no segment is due for active expiry.
    pub fn due_next(&self) -> u64 {
        self.due_next
    }

    /// Recomputes [`Arena::due_next`] and names a segment that is due, if any.
    pub fn find_due(&mut self, now_ms: u64) -> Option<usize> {
        let (mut next, mut found) = (u64::MAX, None);
        for (number, segment) in self.segments.iter().enumerate() {
            if segment.due <= now_ms && found.is_none() {
                found = Some(number);
            }
            next = next.min(segment.due);
        }
        self.due_next = next;
        found
    }

    pub fn set_due(&mut self, number: usize, due: u64) {
        self.segments[number].due = due;
        self.due_next = self.due_next.min(due);
    }

    /// Says that the record at `offset` expires then.
    #[inline]
    pub fn note_expiry(&mut self, offset: Offset, expires_at: u64) {
        let segment = &mut self.segments[segment_of(offset)];
        segment.latest = segment.latest.max(expires_at);
        if expires_at < segment.earliest {
            segment.earliest = expires_at;
            // A record is expired once its millisecond has passed.
            let due = (expires_at + 1).max(segment.not_before);
            if due < segment.due {
                segment.due = due;
                self.due_next = self.due_next.min(due);
            }
        }
    }

    /// A span's class follows its only record.
    pub fn set_span_class(&mut self, offset: Offset, class: u8) {
        debug_assert!(self.is_span(offset));
        self.segments[segment_of(offset)].class = class;
    }

    fn take_segment(&mut self, numbers: usize, bytes: usize, kind: Kind, class: u8) -> Option<usize> {
        let first = self.find_numbers(numbers)?;
        let reusable =
            self.released.iter().position(|memory| memory.len() == bytes && !self.is_mapped(memory));
        let memory = match reusable {
            Some(i) => self.released.swap_remove(i),
            None => self.source.allocate(bytes)?,
        };
        debug_assert_eq!(memory.len(), bytes);
        while self.segments.len() < first + numbers {
            self.segments.push(NO_SEGMENT);
            self.memory.push(&mut []);
        }
        self.memory[first] = memory;
        self.segments[first] = Segment { kind, class, ..NO_SEGMENT };
        for segment in &mut self.segments[first + 1..first + numbers] {
            *segment = Segment { kind: Kind::Continuation, ..NO_SEGMENT };
        }
        self.capacity += bytes - FIRST_UNIT as usize * UNIT;
        if first == self.first_empty {
            self.first_empty += numbers;
        }
        Some(first)
    }

    /// The first of `numbers` consecutive segment numbers that are free.
    fn find_numbers(&mut self, numbers: usize) -> Option<usize> {
        while self.segments.get(self.first_empty).is_some_and(|segment| segment.kind != Kind::Empty) {
            self.first_empty += 1;
        }
        let (mut first, mut run) = (self.first_empty, 0);
        for number in self.first_empty..self.segments.len() {
            if self.segments[number].kind == Kind::Empty {
                run += 1;
                if run == numbers {
                    return Some(first);
                }
            } else {
                (first, run) = (number + 1, 0);
            }
        }
        (first + numbers <= SEGMENTS_MAX).then_some(first)
    }

    /// Gives up a segment that holds no live record and no listed slot.
    pub fn release_segment(&mut self, number: usize) {
        debug_assert!(
            self.segments[number].live == 0 && !self.is_open(number) && !self.segments[number].sealed
        );
        let numbers = match self.segments[number].kind {
            Kind::Shared => 1,
            Kind::Span(numbers) => numbers as usize,
            Kind::Empty | Kind::Continuation => unreachable!("segment {number} has no memory to release"),
        };
        let memory = core::mem::take(&mut self.memory[number]);
        self.capacity -= memory.len() - FIRST_UNIT as usize * UNIT;
        self.released.push(memory);
        for segment in &mut self.segments[number..number + numbers] {
            *segment = NO_SEGMENT;
        }
        self.first_empty = self.first_empty.min(number);
    }

    /// Gives up to `count` pieces of unused memory back to the source. One segment is kept for the next need.
    /// Unmapping is work for the kernel, which is why FLUSHALL spreads it over turns.
    pub fn release_some(&mut self, count: usize) {
        for _ in 0..count {
            if !self.can_release() {
                return;
            }
            let mapped = self.released.iter().position(|memory| self.is_mapped(memory));
            let memory = self.released.swap_remove(mapped.unwrap_or(0));
            self.mapped.remove(&memory.as_ptr().addr());
            self.source.release(memory);
        }
    }

    /// Gives all unused memory back to the source.
    pub fn release_all(&mut self) {
        for memory in self.released.drain(..) {
            self.source.release(memory);
        }
    }

    /// Whether [`Arena::release_some`] would release something.
    pub fn can_release(&self) -> bool {
        match &self.released[..] {
            [] => false,
            [only] => only.len() != SEGMENT_BYTES || self.is_mapped(only),
            _ => true,
        }
    }

    /// Forgets every record at once. What an image that is being taken still needs, it keeps.
    pub fn clear(&mut self) {
        for (number, memory) in self.memory.drain(..).enumerate() {
            if memory.is_empty() {
                continue;
            }
            let memory = match &mut self.image {
                Some(image) => image.keep(number, memory),
                None => Some(memory),
            };
            self.released.extend(memory);
        }
        self.segments.clear();
        self.first_empty = 0;
        self.open = [None; TTL_CLASSES];
        self.heads.iter_mut().for_each(|lists| lists.fill(0));
        self.aside = None;
        (self.live, self.capacity, self.due_next) = (0, 0, u64::MAX);
    }

    /// Whether this memory is a file's pages.
    pub fn is_mapped(&self, memory: &[u8]) -> bool {
        !self.mapped.is_empty() && self.mapped.contains(&memory.as_ptr().addr())
    }

    // ---- records ----------------------------------------------------------------------------------------

    /// Writes header, key and value.
    #[inline]
    pub fn write(
        &mut self,
        offset: Offset,
        layout: &Layout,
        key: &[u8],
        value: &[u8],
        expires_at: u64,
        encoding: crate::value::Encoding,
    ) {
        debug_assert!(!self.is_sealed(offset), "a sealed segment is immutable");
        let bytes = self.at_mut(offset);
        layout.write(bytes, expires_at, encoding);
        let prefix = layout.prefix as usize;
        bytes[prefix..prefix + key.len()].copy_from_slice(key);
        let start = prefix + key.len();
        bytes[start..start + value.len()].copy_from_slice(value);
    }

    /// Writes the header alone, over a record or before one that is copied here.
    pub fn write_header(
        &mut self,
        offset: Offset,
        layout: &Layout,
        expires_at: u64,
        encoding: crate::value::Encoding,
    ) {
        debug_assert!(!self.is_sealed(offset), "a sealed segment is immutable");
        layout.write(self.at_mut(offset), expires_at, encoding);
    }

    /// Part of the slot at `offset`, for writing.
    pub fn bytes_mut(&mut self, offset: Offset, start: usize, len: usize) -> &mut [u8] {
        debug_assert!(!self.is_sealed(offset), "a sealed segment is immutable");
        &mut self.at_mut(offset)[start..start + len]
    }

    /// Copies `len` bytes from inside one slot to inside another.
    pub fn copy(&mut self, from: (Offset, usize), to: (Offset, usize), len: usize) {
        debug_assert!(!self.is_sealed(to.0), "a sealed segment is immutable");
        let (from_segment, to_segment) = (segment_of(from.0), segment_of(to.0));
        let (source, target) = (byte_of(from.0) + from.1, byte_of(to.0) + to.1);
        if from_segment == to_segment {
            self.memory[from_segment].copy_within(source..source + len, target);
            return;
        }
        let [a, b] =
            self.memory.get_disjoint_mut([from_segment, to_segment]).expect("two different segments");
        b[target..target + len].copy_from_slice(&a[source..source + len]);
    }
}

#[inline(always)]
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline(always)]
fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Asks the processor to fetch a cache line that will be needed soon.
#[inline(always)]
pub(crate) fn prefetch_line<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    safe_arch::prefetch_t0(at);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
