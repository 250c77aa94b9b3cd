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
//! * **Sealed** segments are immutable (a snapshot owns their bytes, and they may be file mappings that cannot be
//!   written): a record in one dies by accounting alone, and only the index knows that it is dead.
//! * **Long records** (over 1 MiB) get an allocation of their own that spans as many numbers as it needs.
//!
//! The arena never looks at the index and never decides what is live: [`crate::keyspace`] tells it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bytemuck::{Pod, Zeroable};

use crate::expiry::TTL_CLASSES;
use crate::value::{EXPIRY, FREE, Header, LISTED, Layout, MIN_SLOT_BYTES, SLACK, UNIT, WIDE, same_bytes};

/// Bytes of a segment: one huge page.
pub const SEGMENT_BYTES: usize = 2 << 20;
const SEGMENT_SHIFT: u32 = 18;
const SEGMENT_UNITS: u32 = 1 << SEGMENT_SHIFT;
const _: () = assert!(SEGMENT_UNITS as usize * UNIT == SEGMENT_BYTES);
/// As many segment numbers as 32-bit offsets can name.
const SEGMENTS_MAX: usize = 1 << (32 - SEGMENT_SHIFT);
/// The first unit of every segment holds no record, which keeps offset 0 free to mean "none".
pub(crate) const FIRST_UNIT: u32 = 1;
/// Records above this size get memory of their own. Half a segment: smaller ones leave tails that others fill,
/// larger ones would waste up to half of what they lie in.
pub(crate) const SPAN_BYTES: usize = SEGMENT_BYTES / 2;
/// Up to this size every size has a free list of its own.
const EXACT_UNITS: usize = 512;
/// Above, four lists for each power of two: from 2^9 to 2^18 units.
const MAGNITUDES: usize = 4 * 10;
/// How many slots of one magnitude are looked at before a larger magnitude is tried.
const FIRST_FIT_PROBES: usize = 8;
/// A freed slot this long may become the open region of its class again, bytes.
const REGION_BYTES_MIN: usize = 64 << 10;
/// Spans are a multiple of this.
const PAGE_BYTES: usize = 4096;

/// Where segments come from. The reactor hands out huge-page memory, tests and tools use [`HeapSource`].
pub trait SegmentSource: Send {
    /// `bytes` (a multiple of 4096) of zeroed memory aligned to 4096, or `None` where there is no more.
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]>;
    /// Takes back what [`SegmentSource::allocate`] gave.
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
        self.handed_out -= memory.len();
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
fn offset_of(segment: usize, unit: u32) -> Offset {
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
struct Region {
    segment: usize,
    unit: u32,
    units: u32,
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
    /// Heads of the free lists: `[class][units]`.
    exact: Vec<[Offset; EXACT_UNITS + 1]>,
    /// Heads of the lists of longer slots: `[class][magnitude]`.
    magnitudes: Vec<[Offset; MAGNITUDES]>,
    source: Box<dyn SegmentSource>,
    /// Memory no longer used and not yet given back; see [`Arena::release_some`].
    released: Vec<&'static mut [u8]>,
    live: usize,
    capacity: usize,
    /// Smallest `due` of all segments, or something below it.
    due_next: u64,
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
            exact: vec![[0; EXACT_UNITS + 1]; TTL_CLASSES],
            magnitudes: vec![[0; MAGNITUDES]; TTL_CLASSES],
            source,
            released: Vec::new(),
            live: 0,
            capacity: 0,
            due_next: u64::MAX,
        }
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
        let bytes = self.at(offset);
        prefetch_line(&bytes[0]);
        if let Some(byte) = bytes.get(64) {
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
        self.capacity + self.released.iter().map(|memory| memory.len()).sum::<usize>()
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
        let reusable = self.released.iter().position(|memory| memory.len() == bytes);
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
            let memory = self.released.swap_remove(0);
            self.source.release(memory);
        }
    }

    /// Whether [`Arena::release_some`] would release something.
    pub fn can_release(&self) -> bool {
        match &self.released[..] {
            [] => false,
            [only] => only.len() != SEGMENT_BYTES,
            _ => true,
        }
    }

    /// Forgets every record at once. Sealed segments are forgotten too: whoever sealed them must have let go.
    pub fn clear(&mut self) {
        for memory in self.memory.drain(..) {
            if !memory.is_empty() {
                self.released.push(memory);
            }
        }
        self.segments.clear();
        self.first_empty = 0;
        self.open = [None; TTL_CLASSES];
        self.exact.iter_mut().for_each(|lists| lists.fill(0));
        self.magnitudes.iter_mut().for_each(|lists| lists.fill(0));
        (self.live, self.capacity, self.due_next) = (0, 0, u64::MAX);
    }

    /// Makes a segment immutable. Its free slots leave their lists first, since a list writes into its members.
    pub fn seal(&mut self, number: usize) {
        if self.segments[number].sealed
            || matches!(self.segments[number].kind, Kind::Empty | Kind::Continuation)
        {
            return;
        }
        for region in &mut self.open {
            if region.is_some_and(|region| region.segment == number) {
                *region = None;
            }
        }
        let (mut unit, end) = (FIRST_UNIT, self.end_unit(number));
        while unit < end {
            let (offset, slot, next) = self.walk(number, unit);
            if let Slot::Free { units, listed: true } = slot {
                self.unlink(offset, units);
            }
            unit = next;
        }
        self.segments[number].sealed = true;
    }

    /// Allows writing again. What died meanwhile is reclaimed by compaction.
    pub fn unseal(&mut self, number: usize) {
        self.segments[number].sealed = false;
        if matches!(self.segments[number].kind, Kind::Span(_)) && self.segments[number].live == 0 {
            self.release_segment(number);
        }
    }

    // ---- slots ------------------------------------------------------------------------------------------

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
            let head = self.exact[class as usize][units as usize];
            if head == 0 {
                return None;
            }
            let bytes = self.at(head);
            debug_assert_eq!(read_u32(bytes, 0), u32::from(FREE | LISTED) | units << 8);
            let next = read_u32(bytes, 4);
            self.exact[class as usize][units as usize] = next;
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
        for list in magnitude(units)..MAGNITUDES {
            let mut at = self.magnitudes[class as usize][list];
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
        if segment.sealed {
            return;
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
    fn mark_free(&mut self, offset: Offset, units: u32) {
        write_u32(self.at_mut(offset), 0, u32::from(FREE) | units << 8);
    }

    fn head(&mut self, class: u8, units: u32) -> &mut Offset {
        if units as usize <= EXACT_UNITS {
            &mut self.exact[class as usize][units as usize]
        } else {
            &mut self.magnitudes[class as usize][magnitude(units)]
        }
    }

    /// Puts a slot at the front of its list. A slot of one unit has no room for links and waits for compaction.
    fn list(&mut self, offset: Offset, units: u32) {
        if (units as usize) * UNIT < MIN_SLOT_BYTES {
            self.mark_free(offset, units);
            return;
        }
        let class = self.class_of(offset);
        let old = core::mem::replace(self.head(class, units), offset);
        let bytes = self.at_mut(offset);
        write_u32(bytes, 0, u32::from(FREE | LISTED) | units << 8);
        write_u32(bytes, 4, old);
        write_u32(bytes, 8, 0);
        if old != 0 {
            write_u32(self.at_mut(old), 8, offset);
        }
    }

    /// Takes a listed slot off its list, from wherever in it.
    pub fn unlink(&mut self, offset: Offset, units: u32) {
        let bytes = self.at(offset);
        debug_assert_eq!(read_u32(bytes, 0), u32::from(FREE | LISTED) | units << 8);
        let (next, previous) = (read_u32(bytes, 4), read_u32(bytes, 8));
        if previous != 0 {
            write_u32(self.at_mut(previous), 4, next);
        } else {
            let class = self.class_of(offset);
            *self.head(class, units) = next;
        }
        if next != 0 {
            write_u32(self.at_mut(next), 8, previous);
        }
        self.mark_free(offset, units);
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

    /// Checks what must be true of segments and lists; `record` is told of every record and says whether it is
    /// live. For tests: it walks everything.
    pub fn check(&self, mut record: impl FnMut(Offset, &Header) -> bool) -> Result<(), String> {
        use alloc::collections::BTreeSet;
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
                    Slot::Free { listed: true, .. } if segment.sealed => {
                        return Err(format!("a listed slot in sealed segment {number}"));
                    }
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
        for class in 0..TTL_CLASSES {
            let exact = self.exact[class].iter().enumerate().map(|(units, &head)| (head, units, true));
            let longer = self.magnitudes[class].iter().enumerate().map(|(list, &head)| (head, list, false));
            for (head, list, is_exact) in exact.chain(longer) {
                let (mut at, mut previous) = (head, 0);
                while at != 0 {
                    let bytes = self.at(at);
                    let units = read_u32(bytes, 0) >> 8;
                    let fits = if is_exact { units as usize == list } else { magnitude(units) == list };
                    if !listed.contains(&at)
                        || !fits
                        || read_u32(bytes, 8) != previous
                        || self.class_of(at) as usize != class
                    {
                        return Err(format!("free list {list} of class {class} is broken at {at:#x}"));
                    }
                    linked += 1;
                    previous = at;
                    at = read_u32(bytes, 4);
                }
            }
        }
        if linked != listed.len() {
            return Err(format!("{} slots say they are listed, {linked} are", listed.len()));
        }
        Ok(())
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
