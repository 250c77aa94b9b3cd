//! Segment files: their names, their header, and the id that tells one life of a file from the next.
//!
//! A segment is prepared under the name of a spare: zeros are written to its full length (or it is recycled
//! from a segment nobody needs), the header is written and flushed, and only then it is renamed to the name
//! of a segment and the directory flushed. So a file with that name always has its full length and a valid
//! header; anything else is damage, never an accident of timing.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::block::{BlockBuffer, PAGE_BYTES};
use crate::checksum::Checksum;
use crate::layout::{Field, is_dense};
use crate::lsn::{Epoch, Lsn};

/// The first bytes of every segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"MILLRWAL";
/// The version that is written; readers know it and all before it.
pub const VERSION: u32 = 1;
/// No segment is longer: a block counts pages in 32 bits.
pub const SEGMENT_BYTES_LIMIT: u64 = (u32::MAX as u64) * PAGE_BYTES as u64;
/// Where the first block begins.
pub const FIRST_BLOCK_OFFSET: u64 = PAGE_BYTES as u64;

/// The fields of a segment's header; zeros follow them up to [`FIRST_BLOCK_OFFSET`].
pub mod header {
    use super::Field;

    /// [`super::SEGMENT_MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// [`super::VERSION`].
    pub const VERSION: Field = Field::new("version", 8, 4);
    /// Of the 4096 bytes of the header without these four.
    pub const CRC: Field = Field::new("crc32c", 12, 4);
    /// Random; the checksums of the blocks start from it.
    pub const UID: Field = Field::new("uid", 16, 8);
    /// The number in the file's name.
    pub const SEQUENCE: Field = Field::new("sequence", 24, 8);
    /// Bytes of the file.
    pub const LENGTH: Field = Field::new("length", 32, 8);
    /// The history it belongs to.
    pub const EPOCH: Field = Field::new("epoch", 40, 8);
    /// The first LSN of that history.
    pub const EPOCH_FIRST_LSN: Field = Field::new("epoch_first_lsn", 48, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, VERSION, CRC, UID, SEQUENCE, LENGTH, EPOCH, EPOCH_FIRST_LSN];
    /// Bytes of all fields.
    pub const BYTES: usize = 56;
}

const _: () = assert!(is_dense(header::FIELDS, header::BYTES));

/// The number of a segment. Later segments have higher numbers, not necessarily the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Of a new log.
    pub const FIRST: Sequence = Sequence(1);

    /// The one after this.
    pub fn next(self) -> Sequence {
        Sequence(self.0.checked_add(1).expect("fewer than 2^64 segments"))
    }
}

/// A file of the log's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// A segment: prepared, and perhaps written to.
    Segment(Sequence),
    /// A segment in preparation; worthless after a crash.
    Spare(Sequence),
}

impl FileName {
    /// What a directory entry names, if it belongs to the log.
    pub fn parse(name: &str) -> Option<FileName> {
        let number = name.strip_prefix("log-")?;
        let (digits, spare) = match number.strip_suffix(".wal") {
            Some(digits) => (digits, false),
            None => (number.strip_suffix(".spare")?, true),
        };
        let lower_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16 && lower_hex)?;
        Some(if spare { FileName::Spare(Sequence(number)) } else { FileName::Segment(Sequence(number)) })
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileName::Segment(sequence) => write!(f, "log-{:016x}.wal", sequence.0),
            FileName::Spare(sequence) => write!(f, "log-{:016x}.spare", sequence.0),
        }
    }
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// See [`header::UID`].
    pub uid: u64,
    /// See [`header::SEQUENCE`].
    pub sequence: Sequence,
    /// See [`header::LENGTH`].
    pub length: u64,
    /// See [`header::EPOCH`].
    pub epoch: Epoch,
    /// See [`header::EPOCH_FIRST_LSN`].
    pub epoch_first_lsn: Lsn,
}

/// Why bytes are no segment header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidHeader {
    /// Fewer bytes than a header.
    Short(usize),
    /// Not [`SEGMENT_MAGIC`].
    Magic(Vec<u8>),
    /// The checksum does not match.
    Checksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Written by a later version.
    Version(u32),
    /// Checksummed, but not as any writer writes it.
    Nonsense(String),
}

impl SegmentHeader {
    /// From where the checksums of its blocks start.
    pub fn seed(&self, checksum: Checksum) -> u32 {
        checksum.of(&self.uid.to_le_bytes())
    }

    /// The first 4096 bytes of the file.
    pub fn encode(&self, checksum: Checksum) -> BlockBuffer {
        let mut bytes = [0; PAGE_BYTES];
        header::MAGIC.put(&mut bytes, &SEGMENT_MAGIC);
        header::VERSION.put(&mut bytes, &VERSION.to_le_bytes());
        header::UID.put(&mut bytes, &self.uid.to_le_bytes());
        header::SEQUENCE.put(&mut bytes, &self.sequence.0.to_le_bytes());
        header::LENGTH.put(&mut bytes, &self.length.to_le_bytes());
        header::EPOCH.put(&mut bytes, &self.epoch.0.to_le_bytes());
        header::EPOCH_FIRST_LSN.put(&mut bytes, &self.epoch_first_lsn.0.to_le_bytes());
        let crc = header_crc(&bytes, checksum);
        header::CRC.put(&mut bytes, &crc.to_le_bytes());
        let mut buffer = BlockBuffer::with_capacity(PAGE_BYTES);
        buffer.append(&bytes);
        buffer
    }

    /// Reads the first 4096 bytes of a file.
    pub fn decode(bytes: &[u8], checksum: Checksum) -> Result<SegmentHeader, InvalidHeader> {
        let Some(bytes) = bytes.first_chunk::<PAGE_BYTES>() else {
            return Err(InvalidHeader::Short(bytes.len()));
        };
        if header::MAGIC.get(bytes) != SEGMENT_MAGIC {
            return Err(InvalidHeader::Magic(header::MAGIC.get(bytes).to_vec()));
        }
        // Place and rule of the checksum stay the same in every version, so a flipped bit is not taken for a
        // version.
        let (stored, computed) = (header::CRC.u32(bytes), header_crc(bytes, checksum));
        if stored != computed {
            return Err(InvalidHeader::Checksum { stored, computed });
        }
        let version = header::VERSION.u32(bytes);
        if version != VERSION {
            return Err(InvalidHeader::Version(version));
        }
        let decoded = SegmentHeader {
            uid: header::UID.u64(bytes),
            sequence: Sequence(header::SEQUENCE.u64(bytes)),
            length: header::LENGTH.u64(bytes),
            epoch: Epoch(header::EPOCH.u64(bytes)),
            epoch_first_lsn: Lsn(header::EPOCH_FIRST_LSN.u64(bytes)),
        };
        let sane = decoded.length.is_multiple_of(PAGE_BYTES as u64)
            && decoded.length > FIRST_BLOCK_OFFSET
            && decoded.length <= SEGMENT_BYTES_LIMIT
            && decoded.epoch >= Epoch::FIRST
            && decoded.epoch_first_lsn >= Lsn::FIRST;
        if !sane {
            return Err(InvalidHeader::Nonsense(alloc::format!("{decoded:?}")));
        }
        Ok(decoded)
    }
}

fn header_crc(bytes: &[u8; PAGE_BYTES], checksum: Checksum) -> u32 {
    let crc = checksum.of(&bytes[..header::CRC.offset]);
    checksum.continued(crc, &bytes[header::UID.offset..])
}

/// The uid of the segment `sequence` in a run whose random seed is `seed`: SplitMix64's output function, a
/// bijection, so two segments of a run never share one.
pub(crate) fn uid(seed: u64, sequence: Sequence) -> u64 {
    let mut mixed = seed.wrapping_add(sequence.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in [
            FileName::Segment(Sequence(0)),
            FileName::Spare(Sequence(0xfeed)),
            FileName::Segment(Sequence(u64::MAX)),
        ] {
            assert_eq!(FileName::parse(&alloc::format!("{name}")), Some(name));
        }
        for foreign in [
            "log-1.wal",
            "log-00000000000000FF.wal",
            "log-+00000000000000f.wal",
            "log-0000000000000001",
            "snapshot-1",
            "",
        ] {
            assert_eq!(FileName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_refused() {
        let checksum = Checksum::portable();
        let header = SegmentHeader {
            uid: 77,
            sequence: Sequence(3),
            length: 1 << 20,
            epoch: Epoch(2),
            epoch_first_lsn: Lsn(9),
        };
        let bytes = header.encode(checksum).as_slice().to_vec();
        assert_eq!(SegmentHeader::decode(&bytes, checksum), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&flipped, checksum).is_err(), "bit {bit}");
        }
        assert_eq!(SegmentHeader::decode(&bytes[..4095], checksum), Err(InvalidHeader::Short(4095)));
    }
}
