//! Blocks: what is written in one piece, and what is valid or not as a whole.
//!
//! A block is a header, framed records and zeros up to a multiple of 4 KiB. It is written once, so no sector
//! that holds an acknowledged record is ever written again. Both checksums start from the segment's random
//! id: bytes that an earlier life of a recycled file left behind cannot validate. The header has a checksum
//! of its own, so that it can be believed, and a stale one dismissed, without reading the rest.
//!
//! Memory for O_DIRECT must be aligned. A `Vec` of pages whose *type* is aligned is aligned in safe Rust: so
//! the block grows in the very memory that the kernel reads, without a copy at the edge (some 10 µs for the
//! largest block) and without a trait by which the edge would have to supply memory.

use alloc::vec::Vec;
use core::fmt;
use core::iter::{Peekable, once};

use bytemuck::{Pod, Zeroable};

use crate::checksum::Checksum;
use crate::layout::{Field, is_dense};
use crate::lsn::Lsn;
use crate::record::{FRAME_BYTES, frame};

/// Blocks begin and end on multiples of this: the largest sector in use, and the page of the page cache.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a block's header.
pub const BLOCK_HEADER_BYTES: usize = 64;
/// No valid block is longer; a reader needs no more memory at once than this and one record.
pub const BLOCK_BYTES_LIMIT: usize = 16 << 20;
/// The first four bytes of a block.
pub const BLOCK_MAGIC: [u8; 4] = *b"MRLB";

/// The fields of a block's header.
pub mod header {
    use super::Field;

    /// [`super::BLOCK_MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 4);
    /// Of the header's bytes from here to its end.
    pub const HEADER_CRC: Field = Field::new("header_crc32c", 4, 4);
    /// Of all bytes behind the header, padding included.
    pub const BODY_CRC: Field = Field::new("body_crc32c", 8, 4);
    /// Bytes of the block, header and padding included.
    pub const LENGTH: Field = Field::new("length", 12, 4);
    /// Where the block stands in the file: a block that a disk wrote elsewhere is not valid there.
    pub const OFFSET: Field = Field::new("offset", 16, 8);
    /// The LSN of the first frame, or of the next record if there is no frame.
    pub const FIRST_LSN: Field = Field::new("first_lsn", 24, 8);
    /// Everything up to this LSN was durable when the block was written.
    pub const DURABLE_LSN: Field = Field::new("durable_lsn", 32, 8);
    /// Time of the first frame, microseconds since 1970.
    pub const UNIX_US: Field = Field::new("unix_us", 40, 8);
    /// Number of frames.
    pub const COUNT: Field = Field::new("count", 48, 4);
    /// Bytes before the padding.
    pub const USED: Field = Field::new("used", 52, 4);
    /// The bits of [`super::flags`].
    pub const FLAGS: Field = Field::new("flags", 56, 4);
    /// So many pages of the file, counted from its start, were durable when the block was written.
    pub const DURABLE_PAGES: Field = Field::new("durable_pages", 60, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[
        MAGIC,
        HEADER_CRC,
        BODY_CRC,
        LENGTH,
        OFFSET,
        FIRST_LSN,
        DURABLE_LSN,
        UNIX_US,
        COUNT,
        USED,
        FLAGS,
        DURABLE_PAGES,
    ];
}

/// The bits of a block's flags.
pub mod flags {
    /// The first frame goes on with a record that began in the block before.
    pub const CONTINUED: u32 = 1;
    /// The last frame's record goes on in the next block.
    pub const CONTINUES: u32 = 2;
    /// The log was closed: everything is durable and nothing follows.
    pub const CLOSED: u32 = 4;
    /// The others are zero.
    pub const ALL: u32 = CONTINUED | CONTINUES | CLOSED;
}

const _: () = assert!(is_dense(header::FIELDS, BLOCK_HEADER_BYTES));
const _: () = assert!(BLOCK_BYTES_LIMIT.is_multiple_of(PAGE_BYTES) && BLOCK_HEADER_BYTES < PAGE_BYTES);

/// What a block's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// See [`header::BODY_CRC`].
    pub body_crc: u32,
    /// See [`header::LENGTH`].
    pub length: u32,
    /// See [`header::OFFSET`].
    pub offset: u64,
    /// See [`header::FIRST_LSN`].
    pub first_lsn: Lsn,
    /// See [`header::DURABLE_LSN`].
    pub durable_lsn: Lsn,
    /// See [`header::UNIX_US`].
    pub unix_us: u64,
    /// See [`header::COUNT`].
    pub count: u32,
    /// See [`header::USED`].
    pub used: u32,
    /// See [`header::FLAGS`].
    pub flags: u32,
    /// See [`header::DURABLE_PAGES`].
    pub durable_pages: u32,
}

impl BlockHeader {
    /// True if this bit of [`flags`] is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The first record that begins in this block, or after it.
    pub fn first_whole_lsn(&self) -> Lsn {
        self.first_lsn.plus(u64::from(self.has(flags::CONTINUED)))
    }

    /// The header at the start of `bytes`, if it is one that a writer of this segment wrote at `offset`.
    pub fn decode(bytes: &[u8], offset: u64, seed: u32, checksum: Checksum) -> Option<BlockHeader> {
        let bytes = bytes.get(..BLOCK_HEADER_BYTES)?;
        if header::MAGIC.get(bytes) != BLOCK_MAGIC
            || header::HEADER_CRC.u32(bytes) != checksum.continued(seed, &bytes[header::BODY_CRC.offset..])
        {
            return None;
        }
        let decoded = BlockHeader {
            body_crc: header::BODY_CRC.u32(bytes),
            length: header::LENGTH.u32(bytes),
            offset: header::OFFSET.u64(bytes),
            first_lsn: Lsn(header::FIRST_LSN.u64(bytes)),
            durable_lsn: Lsn(header::DURABLE_LSN.u64(bytes)),
            unix_us: header::UNIX_US.u64(bytes),
            count: header::COUNT.u32(bytes),
            used: header::USED.u32(bytes),
            flags: header::FLAGS.u32(bytes),
            durable_pages: header::DURABLE_PAGES.u32(bytes),
        };
        (decoded.offset == offset && decoded.is_sane()).then_some(decoded)
    }

    /// What every header that a writer makes has in common.
    fn is_sane(&self) -> bool {
        let (length, used, count) = (self.length as usize, self.used as usize, self.count as usize);
        length.is_multiple_of(PAGE_BYTES)
            && length <= BLOCK_BYTES_LIMIT
            && used >= BLOCK_HEADER_BYTES
            && used.next_multiple_of(PAGE_BYTES) == length
            // Every frame takes its eight bytes, so a count cannot exceed what is there.
            && count <= (used - BLOCK_HEADER_BYTES) / FRAME_BYTES
            && self.flags & !flags::ALL == 0
            // Without a frame there is nothing to continue, and all bytes are accounted for.
            && (count > 0 || (used == BLOCK_HEADER_BYTES && self.flags & !flags::CLOSED == 0))
            && self.first_lsn >= Lsn::FIRST
            && self.first_lsn.0.checked_add(u64::from(self.count)).is_some()
            && self.durable_lsn < self.first_lsn
            && self.durable_pages >= 1
            && self.durable_bytes() <= self.offset
    }

    /// Bytes of the file that were durable when the block was written.
    pub fn durable_bytes(&self) -> u64 {
        u64::from(self.durable_pages) * PAGE_BYTES as u64
    }

    fn encode(&self, bytes: &mut [u8], seed: u32, checksum: Checksum) {
        debug_assert!(self.is_sane(), "{self:?}");
        header::MAGIC.put(bytes, &BLOCK_MAGIC);
        header::BODY_CRC.put(bytes, &self.body_crc.to_le_bytes());
        header::LENGTH.put(bytes, &self.length.to_le_bytes());
        header::OFFSET.put(bytes, &self.offset.to_le_bytes());
        header::FIRST_LSN.put(bytes, &self.first_lsn.0.to_le_bytes());
        header::DURABLE_LSN.put(bytes, &self.durable_lsn.0.to_le_bytes());
        header::UNIX_US.put(bytes, &self.unix_us.to_le_bytes());
        header::COUNT.put(bytes, &self.count.to_le_bytes());
        header::USED.put(bytes, &self.used.to_le_bytes());
        header::FLAGS.put(bytes, &self.flags.to_le_bytes());
        header::DURABLE_PAGES.put(bytes, &self.durable_pages.to_le_bytes());
        let crc = checksum.continued(seed, &bytes[header::BODY_CRC.offset..BLOCK_HEADER_BYTES]);
        header::HEADER_CRC.put(bytes, &crc.to_le_bytes());
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Bytes on their way to a segment file, or to a snapshot. The memory is aligned to 4096 bytes and the length a multiple of it,
/// as O_DIRECT wants them. It travels with the operation and comes back with its completion.
#[derive(Clone)]
pub struct BlockBuffer {
    pages: Vec<Page>,
    used: usize,
}

impl BlockBuffer {
    /// An empty buffer with room for so many bytes, rounded up to a page. It never grows.
    pub fn with_capacity(bytes: usize) -> BlockBuffer {
        BlockBuffer { pages: alloc::vec![Page::zeroed(); bytes.div_ceil(PAGE_BYTES)], used: 0 }
    }

    /// Bytes there is room for.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Bytes appended so far, without padding.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Forgets what was appended; the memory stays.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    fn memory(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages)
    }

    /// Has all of the memory written anew by somebody who says how many bytes it is now; after an error it is empty.
    pub fn fill<E>(&mut self, write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        self.used = 0;
        self.used = write(self.memory())?.min(self.capacity());
        Ok(())
    }

    /// Appends bytes, for which there must be room.
    pub fn append(&mut self, bytes: &[u8]) {
        let start = self.used;
        self.memory()[start..start + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    /// What to write: everything appended, and zeros up to the next page.
    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.used.next_multiple_of(PAGE_BYTES)]
    }

    /// Zeros behind what was appended: the memory is reused, and no record may end up in another block's
    /// padding.
    pub fn pad(&mut self) -> &mut [u8] {
        let (used, length) = (self.used, self.used.next_multiple_of(PAGE_BYTES));
        let bytes = &mut self.memory()[..length];
        bytes[used..].fill(0);
        bytes
    }
}

impl fmt::Debug for BlockBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockBuffer({} of {} bytes)", self.used, self.capacity())
    }
}

/// A block that gathers records; its header is written when it is sent.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) buffer: BlockBuffer,
    pub(crate) first_lsn: Lsn,
    pub(crate) count: u32,
    pub(crate) flags: u32,
    pub(crate) unix_us: u64,
}

impl Block {
    /// An empty block whose first frame will be the record `first_lsn`.
    pub(crate) fn new(mut buffer: BlockBuffer, first_lsn: Lsn, flags: u32, unix_us: u64) -> Block {
        buffer.clear();
        buffer.append(&[0; BLOCK_HEADER_BYTES]);
        Block { buffer, first_lsn, count: 0, flags, unix_us }
    }

    pub(crate) fn push(&mut self, payload: &[u8], unix_us: u64) {
        let framed = self.push_fitting(&mut once(payload).peekable(), unix_us);
        assert_eq!(framed, FRAME_BYTES + payload.len(), "a record that does not fit");
    }

    /// Takes payloads for as long as the next one fits. Returns the bytes that took.
    pub(crate) fn push_fitting<'a>(
        &mut self,
        payloads: &mut Peekable<impl Iterator<Item = &'a [u8]>>,
        unix_us: u64,
    ) -> usize {
        // A block stays open for as long as a flush takes; should that be more than 71 minutes, time stands
        // still in it.
        let delay = u32::try_from(unix_us - self.unix_us).unwrap_or(u32::MAX);
        let begin = self.buffer.used;
        let mut rest = &mut self.buffer.memory()[begin..];
        let (mut taken, mut count) = (0, 0);
        while let Some(payload) = payloads.next_if(|payload| FRAME_BYTES + payload.len() <= rest.len()) {
            let (head, behind) = rest.split_at_mut(FRAME_BYTES);
            frame::LENGTH.put(head, &(payload.len() as u32).to_le_bytes());
            frame::DELAY.put(head, &delay.to_le_bytes());
            let (body, behind) = behind.split_at_mut(payload.len());
            body.copy_from_slice(payload);
            (rest, taken, count) = (behind, taken + FRAME_BYTES + payload.len(), count + 1);
        }
        self.buffer.used += taken;
        self.count += count;
        taken
    }

    /// Bytes it takes in a file.
    pub(crate) fn image_bytes(&self) -> usize {
        self.buffer.used().next_multiple_of(PAGE_BYTES)
    }

    /// The first record that begins in it, or after it.
    pub(crate) fn first_whole_lsn(&self) -> Lsn {
        self.first_lsn.plus(u64::from(self.flags & flags::CONTINUED != 0))
    }

    /// The last LSN that is complete once this block and all before it are.
    pub(crate) fn last_lsn(&self) -> Lsn {
        let complete = u64::from(self.count) - u64::from(self.flags & flags::CONTINUES != 0);
        self.first_lsn.plus(complete).previous()
    }

    /// Makes it what is written at `offset` of the segment whose checksums start from `seed`, when so much is
    /// durable.
    pub(crate) fn seal(
        &mut self,
        offset: u64,
        durable_lsn: Lsn,
        durable_bytes: u64,
        seed: u32,
        checksum: Checksum,
    ) {
        let header = BlockHeader {
            length: self.image_bytes() as u32,
            offset,
            first_lsn: self.first_lsn,
            durable_lsn,
            unix_us: self.unix_us,
            count: self.count,
            used: self.buffer.used() as u32,
            flags: self.flags,
            durable_pages: (durable_bytes / PAGE_BYTES as u64) as u32,
            body_crc: 0,
        };
        let bytes = self.buffer.pad();
        let body_crc = checksum.continued(seed, &bytes[BLOCK_HEADER_BYTES..]);
        BlockHeader { body_crc, ..header }.encode(bytes, seed, checksum);
    }
}
