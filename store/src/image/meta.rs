//! The meta of an image: what is not in its regions. All numbers are little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `MRIMAGE` and the version, 1 |
//! | 8 | hash seed |
//! | 8 | entries |
//! | 8 | entries that have an expiry |
//! | 8 | the moment of the image, unix µs |
//! | 8 | the clock of access fields at that moment, ns |
//! | 4 | what access fields hold: 0 nothing, 1 recency, 2 frequency |
//! | 4 each | s slabs, d directory entries, p pieces, t stashed entries, n segment numbers, f free lists |
//! | 4 | 0 |
//! | 1 · s, zeros to a multiple of 8 | for each slab number: 1 there is one, 0 there is none |
//! | 4 · d, zeros to a multiple of 8 | the directory: numbers of pieces |
//! | 32 · p | pieces: 7 × 4 chunks, 2 entries, 1 chunks in use, 1 depth |
//! | 8 · t | stashed entries: 4 offset, 2 access field, 2 zero |
//! | 32 · n | segments: 1 kind (0 none, 1 shared, 2 span, 3 inside a span), 1 TTL class, 2 zero, 4 bytes of memory, 8 bytes of live records, 8 earliest expiry (all ones: none), 8 latest |
//! | 12 · 6 | open region of each TTL class: 4 segment, 4 unit, 4 units (0: none) |
//! | 12 · f | free lists: 2 TTL class, 2 list, 4 first slot, 4 last slot |
//!
//! The regions of the image are its slabs by number, then the memory of shared segments and spans by number. Valid is a meta
//! of exactly that length of which every number is possible: each chunk belongs to one piece at most, the directory leads to
//! each of its pieces in one aligned run, sums agree. What is free (chunks, pieces, segment numbers) follows. That
//! the meta is what was written is not for it to say: whoever keeps it has a checksum.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bytemuck::Pod;

use super::{ImageError, RegionInfo, RegionKind};
use crate::arena::{
    FIRST_UNIT, Kind, LISTS, PAGE_BYTES, Region, RestoredLists, SEGMENT_BYTES, SEGMENT_UNITS,
};
use crate::arena::{Offset, SEGMENTS_MAX, Segment, restored_segment};
use crate::eviction::AccessMode;
use crate::expiry::TTL_CLASSES;
use crate::index::{IndexTables, Piece, check_tables};
use crate::keyspace::Keyspace;
use crate::time::Now;
use crate::value::UNIT;

const MAGIC: [u8; 8] = *b"MRIMAGE\x01";
const NO_REGION: [u32; 3] = [0; 3];

/// What a meta says at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The seed of the keys' hashes: who restores the image must use the same.
    pub hash_seed: u64,
    /// Keys.
    pub entries: u64,
    /// Keys that have an expiry.
    pub expires: u64,
    /// The moment of the image, unix microseconds.
    pub unix_us: u64,
    /// The clock of access fields at that moment.
    pub access_nanos: u64,
    /// What access fields hold.
    pub access: AccessMode,
}

/// What a meta says, checked.
pub(crate) struct Decoded {
    pub summary: Summary,
    pub regions: Vec<RegionInfo>,
    pub index: IndexTables<Vec<u32>, Vec<Piece>, Vec<(Offset, u16)>>,
    pub segments: Vec<Segment>,
    pub lists: RestoredLists,
}

/// The meta of a keyspace as it is.
pub(crate) fn encode(keyspace: &Keyspace, now: Now) -> Vec<u8> {
    let index = keyspace.index.tables();
    let stashed: Vec<(Offset, u16)> = index.stashed.collect();
    let segments = keyspace.arena.segments();
    let lists: Vec<_> = keyspace.arena.lists().collect();
    let len = 8 * 11 + index.slabs.len() + index.directory.len() * 4 + size_of_val(index.pieces) + 16;
    let mut out = Vec::with_capacity(len + stashed.len() * 8 + segments.len() * 32 + lists.len() * 12 + 72);
    out.extend_from_slice(&MAGIC);
    let numbers = [
        keyspace.hash_seed(),
        index.entries,
        keyspace.expires as u64,
        now.unix_us,
        keyspace.access.clock(now),
    ];
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    let access = match keyspace.access.mode {
        AccessMode::Off => 0,
        AccessMode::Lru => 1,
        AccessMode::Lfu => 2,
    };
    let counts = [
        index.slabs.len(),
        index.directory.len(),
        index.pieces.len(),
        stashed.len(),
        segments.len(),
        lists.len(),
    ];
    push(&mut out, access);
    counts.iter().for_each(|&count| push(&mut out, count as u32));
    push(&mut out, 0);
    out.extend(index.slabs.iter().map(|&is_there| u8::from(is_there)));
    pad(&mut out);
    out.extend_from_slice(bytemuck::cast_slice(index.directory));
    pad(&mut out);
    out.extend_from_slice(bytemuck::cast_slice(index.pieces));
    for (offset, access) in stashed {
        push(&mut out, offset);
        push(&mut out, u32::from(access));
    }
    for (number, segment) in segments.iter().enumerate() {
        let kind = match segment.kind {
            Kind::Empty => 0,
            Kind::Shared => 1,
            Kind::Span(_) => 2,
            Kind::Continuation => 3,
        };
        out.extend_from_slice(&[kind, segment.class, 0, 0]);
        push(&mut out, keyspace.arena.memory(number).len() as u32);
        for number in [segment.live as u64, segment.earliest, segment.latest] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    for region in keyspace.arena.open_regions() {
        let words = region.map_or(NO_REGION, |region| [region.segment as u32, region.unit, region.units]);
        words.iter().for_each(|&word| push(&mut out, word));
    }
    for (class, list, head, tail) in lists {
        push(&mut out, class as u32 | (list as u32) << 16);
        push(&mut out, head);
        push(&mut out, tail);
    }
    out
}

fn push(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Reads a meta from its front to its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Err(format!("{} bytes are left; expected {count} more", self.0.len()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &str, most: usize) -> Result<usize, String> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(format!("{count} {what}; expected at most {most}"));
        }
        Ok(count)
    }

    /// Zeros from a table of `bytes` bytes to the next multiple of eight.
    fn padding(&mut self, bytes: usize) -> Result<(), String> {
        let zeros = self.take(bytes.next_multiple_of(8) - bytes)?;
        if zeros.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(String::from("padding is not zero")) }
    }
}

/// The beginning of a meta: what its reader must know before anything else.
pub fn summary(meta: &[u8]) -> Result<Summary, ImageError> {
    take_summary(&mut Input(meta)).map_err(ImageError::Meta)
}

fn take_summary(input: &mut Input<'_>) -> Result<Summary, String> {
    let magic: [u8; 8] = input.array()?;
    if magic != MAGIC {
        return Err(format!("it begins with {}; expected {}", magic.escape_ascii(), MAGIC.escape_ascii()));
    }
    let [hash_seed, entries, expires, unix_us, access_nanos] =
        [input.u64()?, input.u64()?, input.u64()?, input.u64()?, input.u64()?];
    let access = match input.u32()? {
        0 => AccessMode::Off,
        1 => AccessMode::Lru,
        2 => AccessMode::Lfu,
        other => return Err(format!("access fields of kind {other}; expected 0, 1 or 2")),
    };
    if expires > entries {
        return Err(format!("{expires} of {entries} entries expire"));
    }
    Ok(Summary { hash_seed, entries, expires, unix_us, access_nanos, access })
}

/// Reads and checks a meta, whatever it is.
pub(crate) fn decode(meta: &[u8]) -> Result<Decoded, ImageError> {
    take_meta(meta).map_err(ImageError::Meta)
}

fn take_meta(meta: &[u8]) -> Result<Decoded, String> {
    let mut input = Input(meta);
    let summary = take_summary(&mut input)?;
    // No table can have more entries than the meta has bytes, so nothing below allocates more than a few times that.
    let most = meta.len();
    let slabs = input.count("slabs", most)?;
    let directory = input.count("directory entries", most / 4)?;
    let pieces = input.count("pieces", most / size_of::<Piece>())?;
    let stashed = input.count("stashed entries", most / 8)?;
    let segments = input.count("segments", (most / 32).min(SEGMENTS_MAX))?;
    let lists = input.count("free lists", (most / 12).min(LISTS * TTL_CLASSES))?;
    if input.u32()? != 0 {
        return Err(String::from("a reserved field is not zero"));
    }

    let mut is_there = Vec::with_capacity(slabs);
    for &byte in input.take(slabs)? {
        match byte {
            0 | 1 => is_there.push(byte == 1),
            other => return Err(format!("a slab is {other}; expected 0 or 1")),
        }
    }
    input.padding(slabs)?;
    let numbers = pods::<u32>(input.take(directory * 4)?);
    input.padding(directory * 4)?;
    let pieces = pods::<Piece>(input.take(pieces * size_of::<Piece>())?);
    let mut stash = Vec::with_capacity(stashed);
    for _ in 0..stashed {
        let (offset, access) = (input.u32()?, input.u32()?);
        let access = u16::try_from(access).map_err(|_| format!("an access field of {access:#x}"))?;
        stash.push((offset, access));
    }
    let index =
        IndexTables { entries: summary.entries, slabs: is_there, directory: numbers, pieces, stashed: stash };
    check_tables(&index)?;

    let slab_numbers = (0..slabs).filter(|&number| index.slabs[number]);
    let mut regions: Vec<RegionInfo> = slab_numbers
        .map(|number| RegionInfo { kind: RegionKind::Index, number: number as u32, bytes: SEGMENT_BYTES })
        .collect();
    let segments = take_segments(&mut input, segments, &mut regions)?;
    // Offset 0 stands for no entry, and no other number may lead out of what is there.
    if let Some((offset, _)) = index.stashed.iter().find(|(offset, _)| !is_slot(&segments, *offset)) {
        return Err(format!("a stashed entry at {offset:#x}, where no record can be"));
    }
    let lists = take_lists(&mut input, lists, &segments)?;
    if !input.0.is_empty() {
        return Err(format!("{} bytes behind its end", input.0.len()));
    }
    Ok(Decoded { summary, regions, index, segments, lists })
}

/// A table, copied to where it is aligned.
fn pods<T: Pod>(bytes: &[u8]) -> Vec<T> {
    let mut table = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut table).copy_from_slice(bytes);
    table
}

/// Whether a slot may begin at this offset.
fn is_slot(segments: &[Segment], offset: Offset) -> bool {
    let (number, unit) = ((offset / SEGMENT_UNITS) as usize, offset % SEGMENT_UNITS);
    unit >= FIRST_UNIT
        && segments.get(number).is_some_and(|segment| match segment.kind {
            Kind::Shared => true,
            Kind::Span(_) => unit == FIRST_UNIT,
            Kind::Empty | Kind::Continuation => false,
        })
}

fn take_segments(
    input: &mut Input<'_>,
    count: usize,
    regions: &mut Vec<RegionInfo>,
) -> Result<Vec<Segment>, String> {
    let mut segments = Vec::with_capacity(count);
    // Numbers that belong to the span before them.
    let mut inside = 0;
    for number in 0..count {
        let [kind, class, zero, zero_too] = input.array()?;
        let bytes = input.u32()? as usize;
        let [live, earliest, latest] = [input.u64()?, input.u64()?, input.u64()?];
        if zero | zero_too != 0 || usize::from(class) >= TTL_CLASSES {
            return Err(format!("segment {number} has TTL class {class}; expected 0 to {}", TTL_CLASSES - 1));
        }
        if (kind == 3) != (inside > 0) {
            return Err(format!("segment number {number} is of kind {kind}, {inside} are a span's"));
        }
        let right_bytes = match kind {
            1 => bytes == SEGMENT_BYTES,
            2 => bytes > 0 && bytes.is_multiple_of(PAGE_BYTES),
            _ => bytes == 0,
        };
        let capacity = bytes.saturating_sub(FIRST_UNIT as usize * UNIT) as u64;
        if !right_bytes || live > capacity || !live.is_multiple_of(UNIT as u64) {
            return Err(format!("segment {number} of kind {kind} has {bytes} bytes, {live} of them live"));
        }
        let (kind, region) = match kind {
            0 => (Kind::Empty, None),
            1 => (Kind::Shared, Some(RegionKind::Segment)),
            2 => {
                let numbers = bytes.div_ceil(SEGMENT_BYTES);
                inside = numbers;
                (Kind::Span(numbers as u32), Some(RegionKind::Span))
            }
            3 => (Kind::Continuation, None),
            other => return Err(format!("segment {number} is of kind {other}; expected 0 to 3")),
        };
        inside = inside.saturating_sub(1);
        regions.extend(region.map(|kind| RegionInfo { kind, number: number as u32, bytes }));
        segments.push(restored_segment(kind, class, live as usize, earliest, latest));
    }
    if inside > 0 {
        return Err(format!("the last span lacks {inside} of its numbers"));
    }
    Ok(segments)
}

fn take_lists(input: &mut Input<'_>, count: usize, segments: &[Segment]) -> Result<RestoredLists, String> {
    let mut lists = RestoredLists::new();
    let is_free = |offset: Offset, class: usize| {
        let segment = segments.get((offset / SEGMENT_UNITS) as usize);
        offset % SEGMENT_UNITS >= FIRST_UNIT
            && segment.is_some_and(|segment| segment.kind == Kind::Shared && segment.class as usize == class)
    };
    for class in 0..TTL_CLASSES {
        let words = [input.u32()?, input.u32()?, input.u32()?];
        let [segment, unit, units] = words;
        if words == NO_REGION {
            continue;
        }
        let fits = unit < SEGMENT_UNITS && units > 0 && units <= SEGMENT_UNITS - unit;
        let segment = segment as usize;
        let offset = if segment < SEGMENTS_MAX {
            segment as u32 * SEGMENT_UNITS + unit.min(SEGMENT_UNITS - 1)
        } else {
            0
        };
        if !fits || !is_free(offset, class) {
            return Err(format!("class {class} has {units} units open at {unit} of segment {segment}"));
        }
        lists.open[class] = Some(Region { segment, unit, units });
    }
    for _ in 0..count {
        let word = input.u32()?;
        let (class, list) = ((word & 0xffff) as usize, (word >> 16) as usize);
        let (head, tail) = (input.u32()?, input.u32()?);
        if class >= TTL_CLASSES || list >= LISTS || lists.heads[class][list] != 0 {
            return Err(format!("free list {list} of class {class}; expected one below {LISTS}, and once"));
        }
        if !is_free(head, class) || !is_free(tail, class) {
            return Err(format!("free list {list} of class {class} from {head:#x} to {tail:#x}"));
        }
        (lists.heads[class][list], lists.tails[class][list]) = (head, tail);
    }
    Ok(lists)
}
