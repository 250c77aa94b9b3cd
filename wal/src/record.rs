//! Records: how a shard hands them over, and how they stand inside a block.
//!
//! A record is opaque bytes: one command's effect, whatever number of keys and shards it touched, because one
//! record is there after a crash or it is not. A shard gathers the records of its turn in a [`Batch`] and
//! hands that to the owner of the log, which numbers them in order and without a gap. Inside a block each
//! record has a frame in front that says its length and its time.

use alloc::vec::Vec;

use crate::layout::{Field, is_dense};
use crate::lsn::Lsn;

/// Bytes of a record's frame.
pub const FRAME_BYTES: usize = 8;

/// The fields of a frame.
pub mod frame {
    use super::Field;

    /// Bytes of the payload, or of the part of it that stands in this block.
    pub const LENGTH: Field = Field::new("length", 0, 4);
    /// Microseconds after the block's `unix_us`.
    pub const DELAY: Field = Field::new("delay_us", 4, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[LENGTH, DELAY];
}

const _: () = assert!(is_dense(frame::FIELDS, FRAME_BYTES));

/// One record read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number.
    pub lsn: Lsn,
    /// When it was appended, in microseconds since 1970. Never earlier than the record before.
    pub unix_us: u64,
    /// What was appended.
    pub payload: &'a [u8],
}

/// Records of one shard's turn, in order. It is reused turn after turn: [`Batch::clear`] keeps the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Each payload behind its length, which makes a batch one piece of memory to hand from shard to shard.
    bytes: Vec<u8>,
    count: usize,
}

impl Batch {
    /// No records.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a record.
    pub fn push(&mut self, payload: &[u8]) {
        self.push_with(|bytes| bytes.extend_from_slice(payload));
    }

    /// Adds the record that `encode` appends to the bytes it is given. It must only append.
    pub fn push_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        encode(&mut self.bytes);
        let length = self.bytes.len().checked_sub(start + 4).expect("encode only appends");
        let length = u32::try_from(length).expect("a record below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all payloads and their frames: what the records take in blocks.
    pub fn framed_bytes(&self) -> usize {
        self.bytes.len() + self.count * (FRAME_BYTES - 4)
    }

    /// Bytes of the longest payload.
    pub fn longest(&self) -> usize {
        self.iter().map(<[u8]>::len).max().unwrap_or(0)
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// The payloads in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        core::iter::from_fn(move || {
            let (length, behind) = rest.split_first_chunk::<4>()?;
            let (payload, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
            rest = behind;
            Some(payload)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_what_went_in() {
        let mut batch = Batch::new();
        assert!(batch.is_empty() && batch.iter().next().is_none());
        let payloads: [&[u8]; 4] = [b"one", b"", b"three", &[7; 1000]];
        for payload in payloads {
            batch.push(payload);
        }
        assert!(batch.iter().eq(payloads));
        assert_eq!((batch.len(), batch.longest()), (4, 1000));
        assert_eq!(batch.framed_bytes(), 4 * FRAME_BYTES + 3 + 5 + 1000);
        batch.clear();
        assert_eq!(batch, Batch::new());
    }
}
