//! What can be configured about the log, and what cannot work.

use alloc::string::String;

use crate::block::{BLOCK_BYTES_LIMIT, BLOCK_HEADER_BYTES, PAGE_BYTES};
use crate::record::FRAME_BYTES;
use crate::segment::{FIRST_BLOCK_OFFSET, SEGMENT_BYTES_LIMIT};

/// Kept free for blocks that hold no records: the first of a run and the last.
pub(crate) const MARKS_BYTES: u64 = 2 * PAGE_BYTES as u64;

/// What can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Bytes of the segment that is created where there is none to write to and none to be recycled: nothing can be
    /// written before its zeros are. No more than `segment_bytes`, and no fewer than a segment may have.
    pub first_segment_bytes: u64,
    /// Bytes of the largest block. A longer record is spread over several.
    pub block_bytes_max: usize,
    /// Memory of records that are not durable yet; beyond it, [`Busy`](crate::group_commit::Refused::Busy).
    pub pending_bytes_max: usize,
    /// What may be appended after one look at [`admission`](crate::group_commit::GroupCommit::admission)
    /// without being refused.
    pub append_bytes_max: usize,
    /// Blocks being written at once.
    pub writes_in_flight_max: usize,
    /// Segments prepared ahead, and at most as many released ones kept to be recycled.
    pub spare_segments: usize,
    /// How a block becomes durable.
    pub write_mode: WriteMode,
    /// When.
    pub flush_policy: FlushPolicy,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            segment_bytes: 64 << 20,
            first_segment_bytes: 4 << 20,
            block_bytes_max: 256 << 10,
            pending_bytes_max: 64 << 20,
            append_bytes_max: 4 << 20,
            writes_in_flight_max: 1,
            spare_segments: 1,
            write_mode: WriteMode::DurableWrite,
            flush_policy: FlushPolicy::EveryBlock,
        }
    }
}

impl Settings {
    /// What is wrong with them, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        let page = PAGE_BYTES as u64;
        let block = self.block_bytes_max as u64;
        let wrong = if !block.is_multiple_of(page) || block == 0 || self.block_bytes_max > BLOCK_BYTES_LIMIT {
            alloc::format!("a block is 4096 to {BLOCK_BYTES_LIMIT} bytes, a multiple of 4096; found {block}")
        } else if !self.segment_bytes.is_multiple_of(page)
            || self.segment_bytes < self.segment_bytes_least()
            || self.segment_bytes > SEGMENT_BYTES_LIMIT
        {
            let least = self.segment_bytes_least();
            let found = self.segment_bytes;
            alloc::format!(
                "a segment is a multiple of 4096 bytes and at least {least} with blocks of {block}; found {found}"
            )
        } else if self.image_bytes_max(self.append_bytes_max) > self.pending_bytes_max as u64 {
            alloc::format!(
                "pending bytes must be at least {} to take {} at once; found {}",
                self.image_bytes_max(self.append_bytes_max),
                self.append_bytes_max,
                self.pending_bytes_max
            )
        } else if self.writes_in_flight_max == 0 || self.spare_segments == 0 {
            String::from("at least one write in flight and one spare segment are needed; found 0")
        } else {
            return Ok(());
        };
        Err(wrong)
    }

    fn segment_bytes_least(&self) -> u64 {
        FIRST_BLOCK_OFFSET + 2 * self.block_bytes_max as u64 + MARKS_BYTES
    }

    /// Bytes of the segment that is waited for at the start.
    pub(crate) fn first_bytes(&self) -> u64 {
        let pages =
            self.first_segment_bytes.max(self.segment_bytes_least()).next_multiple_of(PAGE_BYTES as u64);
        pages.min(self.segment_bytes)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.block_bytes_max - BLOCK_HEADER_BYTES
    }

    /// The most bytes of blocks that so many bytes of framed records can add. Two blocks in a row hold more
    /// than one block's capacity between them, or the second record would stand in the first block.
    pub(crate) fn image_bytes_max(&self, framed: usize) -> u64 {
        let blocks = 2 * (framed / self.capacity()) + 2;
        framed as u64 + (blocks * (BLOCK_HEADER_BYTES + FRAME_BYTES + PAGE_BYTES - 1)) as u64
    }
}

/// How a block becomes durable; which is faster is a matter of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// One write that returns when the data is durable (O_DIRECT with RWF_DSYNC).
    DurableWrite,
    /// A write, then fdatasync.
    WriteThenFlush,
}

/// When blocks become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// Each, at once: `--durability always`.
    EveryBlock,
    /// Blocks are written when they are full, or by
    /// [`request_write`](crate::group_commit::GroupCommit::request_write); all are flushed by
    /// [`request_flush`](crate::group_commit::GroupCommit::request_flush): `everysec`.
    OnRequest,
}
