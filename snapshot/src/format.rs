//! The layout of a snapshot: a header page, regions of whole pages, tables, a trailer page.
//!
//! Every byte of the file is under exactly one checksum: header and trailer have their own, the tables have
//! theirs in the trailer, and each page of a region has its own in the tables. All but the header's start from
//! the file's random id, so that a trailer or tables which an earlier file left on the disk are not valid
//! here. All numbers are little-endian.

use alloc::format;
use alloc::string::String;

use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;
use wal::layout::{Field, is_dense};
use wal::lsn::{Epoch, Lsn};

use crate::damage::{Damage, DamageKind};

/// The first bytes of every snapshot.
pub const MAGIC: [u8; 8] = *b"MILLRSNP";
/// The first bytes of the last page of every snapshot.
pub const TRAILER_MAGIC: [u8; 8] = *b"MILLREND";
/// The version that is written; readers know it and all before it.
pub const VERSION: u32 = 1;
/// Regions begin and end on multiples of this, and each such page has a checksum.
pub const PAGE: u64 = PAGE_BYTES as u64;
/// Where the first region begins.
pub const REGIONS_OFFSET: u64 = PAGE;
/// No file is longer.
pub const LENGTH_LIMIT: u64 = 1 << 62;

/// The fields of the header; zeros follow them up to [`REGIONS_OFFSET`].
pub mod header {
    use super::Field;

    /// [`super::MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// [`super::VERSION`].
    pub const VERSION: Field = Field::new("version", 8, 4);
    /// Of the 4096 bytes of the header without these four.
    pub const CRC: Field = Field::new("crc32c", 12, 4);
    /// Random; all other checksums start from it.
    pub const UID: Field = Field::new("uid", 16, 8);
    /// Bytes of the file.
    pub const LENGTH: Field = Field::new("length", 24, 8);
    /// The history its LSNs belong to.
    pub const EPOCH: Field = Field::new("epoch", 32, 8);
    /// The lowest LSN of a shard: what comes after it is not in every image.
    pub const LSN: Field = Field::new("lsn", 40, 8);
    /// The highest LSN of a shard: the images show nothing of what comes after it.
    pub const LSN_MAX: Field = Field::new("lsn_max", 48, 8);
    /// When it was begun, microseconds since 1970.
    pub const UNIX_US: Field = Field::new("unix_us", 56, 8);
    /// Number of shards.
    pub const SHARDS: Field = Field::new("shards", 64, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, VERSION, CRC, UID, LENGTH, EPOCH, LSN, LSN_MAX, UNIX_US, SHARDS];
    /// Bytes of all fields.
    pub const BYTES: usize = 68;
}

/// The fields of the trailer, the last page of the file; zeros follow them.
pub mod trailer {
    use super::Field;

    /// [`super::TRAILER_MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// Of the 4096 bytes of the trailer without these four.
    pub const CRC: Field = Field::new("crc32c", 8, 4);
    /// Of all bytes from `tables_offset` to the trailer.
    pub const TABLES_CRC: Field = Field::new("tables_crc32c", 12, 4);
    /// As in the header.
    pub const UID: Field = Field::new("uid", 16, 8);
    /// As in the header.
    pub const LENGTH: Field = Field::new("length", 24, 8);
    /// Where the tables begin.
    pub const TABLES_OFFSET: Field = Field::new("tables_offset", 32, 8);
    /// Bytes of the tables; zeros follow them up to the trailer.
    pub const TABLES_LENGTH: Field = Field::new("tables_length", 40, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, CRC, TABLES_CRC, UID, LENGTH, TABLES_OFFSET, TABLES_LENGTH];
    /// Bytes of all fields.
    pub const BYTES: usize = 48;
}

/// The tables: for each shard this head, a row for each of its regions, a checksum for each page of these, and
/// its meta bytes with zeros up to a multiple of [`ALIGNMENT`](tables::ALIGNMENT).
pub mod tables {
    use super::Field;

    /// All records up to this LSN are in the shard's image, and none after it.
    pub const LSN: Field = Field::new("lsn", 0, 8);
    /// Bytes of meta.
    pub const META_LENGTH: Field = Field::new("meta_length", 8, 8);
    /// Number of regions.
    pub const REGIONS: Field = Field::new("regions", 16, 8);
    /// Pages of all its regions.
    pub const PAGES: Field = Field::new("pages", 24, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[LSN, META_LENGTH, REGIONS, PAGES];
    /// Bytes of a shard's head.
    pub const HEAD_BYTES: usize = 32;
    /// Bytes of a page's checksum.
    pub const CHECKSUM_BYTES: usize = 4;
    /// Of each shard's tables.
    pub const ALIGNMENT: usize = 8;
}

/// A region, as a row of the tables.
pub mod region {
    use super::Field;

    /// What the keyspace uses it for.
    pub const KIND: Field = Field::new("kind", 0, 4);
    /// Its number among the regions of that kind.
    pub const NUMBER: Field = Field::new("number", 4, 4);
    /// Where it begins in the file.
    pub const OFFSET: Field = Field::new("offset", 8, 8);
    /// Its bytes.
    pub const LENGTH: Field = Field::new("length", 16, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[KIND, NUMBER, OFFSET, LENGTH];
    /// Bytes of a row.
    pub const BYTES: usize = 24;
}

const _: () = assert!(is_dense(header::FIELDS, header::BYTES) && header::BYTES <= PAGE_BYTES);
const _: () = assert!(is_dense(trailer::FIELDS, trailer::BYTES) && trailer::BYTES <= PAGE_BYTES);
const _: () = assert!(is_dense(tables::FIELDS, tables::HEAD_BYTES));
const _: () = assert!(is_dense(region::FIELDS, region::BYTES));
// What stands in the tables before the checksums keeps these aligned.
const _: () = assert!(tables::HEAD_BYTES.is_multiple_of(tables::ALIGNMENT));
const _: () = assert!(region::BYTES.is_multiple_of(tables::ALIGNMENT));
// A reader tells the version before it knows the rest, so these never move; as in the log's segments.
const _: () = assert!(header::CRC.offset == wal::segment::header::CRC.offset);

/// What a snapshot's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// See [`header::UID`].
    pub uid: u64,
    /// See [`header::LENGTH`].
    pub length: u64,
    /// See [`header::EPOCH`].
    pub epoch: Epoch,
    /// See [`header::LSN`].
    pub lsn: Lsn,
    /// See [`header::LSN_MAX`].
    pub lsn_max: Lsn,
    /// See [`header::UNIX_US`].
    pub unix_us: u64,
    /// See [`header::SHARDS`].
    pub shards: u32,
}

impl Header {
    /// From where all checksums but its own start.
    pub fn seed(&self, checksum: Checksum) -> u32 {
        checksum.of(&self.uid.to_le_bytes())
    }

    /// The first page of the file.
    pub fn encode(&self, checksum: Checksum) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        header::MAGIC.put(&mut bytes, &MAGIC);
        header::VERSION.put(&mut bytes, &VERSION.to_le_bytes());
        header::UID.put(&mut bytes, &self.uid.to_le_bytes());
        header::LENGTH.put(&mut bytes, &self.length.to_le_bytes());
        header::EPOCH.put(&mut bytes, &self.epoch.0.to_le_bytes());
        header::LSN.put(&mut bytes, &self.lsn.0.to_le_bytes());
        header::LSN_MAX.put(&mut bytes, &self.lsn_max.0.to_le_bytes());
        header::UNIX_US.put(&mut bytes, &self.unix_us.to_le_bytes());
        header::SHARDS.put(&mut bytes, &self.shards.to_le_bytes());
        let crc = crc_without(header::CRC, &bytes, 0, checksum);
        header::CRC.put(&mut bytes, &crc.to_le_bytes());
        bytes
    }

    /// Reads the first page of `file`.
    pub fn decode(file: &str, bytes: &[u8], checksum: Checksum) -> Result<Header, Damage> {
        let damage = |kind, offset: usize, expected, found| Damage {
            kind,
            file: file.into(),
            offset: offset as u64,
            expected,
            found,
        };
        let Some(bytes) = bytes.first_chunk::<PAGE_BYTES>() else {
            let expected = format!("a header of {PAGE_BYTES} bytes");
            return Err(damage(DamageKind::Length, bytes.len(), expected, "the end of the file".into()));
        };
        let magic = header::MAGIC.get(bytes);
        if magic != MAGIC {
            let (expected, found) = (quoted(&MAGIC), quoted(magic));
            return Err(damage(DamageKind::Header, header::MAGIC.offset, expected, found));
        }
        // Place and rule of the checksum stay the same in every version, so a flipped bit is not taken for a
        // version.
        let (stored, computed) = (header::CRC.u32(bytes), crc_without(header::CRC, bytes, 0, checksum));
        if stored != computed {
            let expected = format!("a header with the checksum {stored:#010x} that stands in it");
            return Err(damage(DamageKind::Header, 0, expected, format!("{computed:#010x}")));
        }
        let version = header::VERSION.u32(bytes);
        if version != VERSION {
            let expected = format!("version {VERSION} or earlier");
            return Err(damage(
                DamageKind::Version,
                header::VERSION.offset,
                expected,
                format!("version {version}"),
            ));
        }
        let decoded = Header {
            uid: header::UID.u64(bytes),
            length: header::LENGTH.u64(bytes),
            epoch: Epoch(header::EPOCH.u64(bytes)),
            lsn: Lsn(header::LSN.u64(bytes)),
            lsn_max: Lsn(header::LSN_MAX.u64(bytes)),
            unix_us: header::UNIX_US.u64(bytes),
            shards: header::SHARDS.u32(bytes),
        };
        // Header, tables and trailer are a page each at least.
        let sane = decoded.length.is_multiple_of(PAGE)
            && (3 * PAGE..=LENGTH_LIMIT).contains(&decoded.length)
            && decoded.epoch >= Epoch::FIRST
            && decoded.lsn <= decoded.lsn_max
            && decoded.shards >= 1;
        if !sane {
            let expected = "fields that a writer writes".into();
            return Err(damage(DamageKind::Inconsistent, 0, expected, format!("{decoded:?}")));
        }
        Ok(decoded)
    }
}

/// What a snapshot's trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// See [`trailer::TABLES_CRC`].
    pub tables_crc: u32,
    /// See [`trailer::TABLES_OFFSET`].
    pub tables_offset: u64,
    /// See [`trailer::TABLES_LENGTH`].
    pub tables_length: u64,
}

impl Trailer {
    /// The last page of the file that begins with `header`.
    pub fn encode(&self, header: &Header, checksum: Checksum) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        trailer::MAGIC.put(&mut bytes, &TRAILER_MAGIC);
        trailer::TABLES_CRC.put(&mut bytes, &self.tables_crc.to_le_bytes());
        trailer::UID.put(&mut bytes, &header.uid.to_le_bytes());
        trailer::LENGTH.put(&mut bytes, &header.length.to_le_bytes());
        trailer::TABLES_OFFSET.put(&mut bytes, &self.tables_offset.to_le_bytes());
        trailer::TABLES_LENGTH.put(&mut bytes, &self.tables_length.to_le_bytes());
        let crc = crc_without(trailer::CRC, &bytes, header.seed(checksum), checksum);
        trailer::CRC.put(&mut bytes, &crc.to_le_bytes());
        bytes
    }

    /// Reads the last page of `file`, which has the length its header says.
    pub fn decode(file: &str, header: &Header, bytes: &[u8], checksum: Checksum) -> Result<Trailer, Damage> {
        let at = header.length - PAGE;
        let damage = |kind, offset: usize, expected, found| Damage {
            kind,
            file: file.into(),
            offset: at + offset as u64,
            expected,
            found,
        };
        let Ok(bytes) = <&[u8; PAGE_BYTES]>::try_from(bytes) else {
            let (expected, found) = (format!("a trailer of {PAGE_BYTES} bytes"), format!("{}", bytes.len()));
            return Err(damage(DamageKind::Trailer, 0, expected, found));
        };
        let magic = trailer::MAGIC.get(bytes);
        if magic != TRAILER_MAGIC {
            let (expected, found) = (quoted(&TRAILER_MAGIC), quoted(magic));
            return Err(damage(DamageKind::Trailer, trailer::MAGIC.offset, expected, found));
        }
        let uid = trailer::UID.u64(bytes);
        if uid != header.uid {
            let expected = format!("the uid {:#018x} of the header", header.uid);
            return Err(damage(DamageKind::Trailer, trailer::UID.offset, expected, format!("{uid:#018x}")));
        }
        let computed = crc_without(trailer::CRC, bytes, header.seed(checksum), checksum);
        let stored = trailer::CRC.u32(bytes);
        if stored != computed {
            let expected = format!("a trailer with the checksum {stored:#010x} that stands in it");
            return Err(damage(DamageKind::Trailer, 0, expected, format!("{computed:#010x}")));
        }
        let decoded = Trailer {
            tables_crc: trailer::TABLES_CRC.u32(bytes),
            tables_offset: trailer::TABLES_OFFSET.u64(bytes),
            tables_length: trailer::TABLES_LENGTH.u64(bytes),
        };
        let length = trailer::LENGTH.u64(bytes);
        let padded = decoded.tables_length.checked_next_multiple_of(PAGE);
        let sane = length == header.length
            && decoded.tables_offset.is_multiple_of(PAGE)
            && decoded.tables_offset >= REGIONS_OFFSET
            && decoded.tables_length > 0
            && padded.and_then(|padded| padded.checked_add(decoded.tables_offset)) == Some(at);
        if !sane {
            let expected = format!("tables between the header and {at} in a file of {} bytes", header.length);
            let found = format!("{decoded:?} in a file of {length}");
            return Err(damage(DamageKind::Inconsistent, 0, expected, found));
        }
        Ok(decoded)
    }
}

/// The checksum of a page without the field that holds it, starting from `seed`.
fn crc_without(field: Field, bytes: &[u8; PAGE_BYTES], seed: u32, checksum: Checksum) -> u32 {
    let crc = checksum.continued(seed, &bytes[..field.offset]);
    checksum.continued(crc, &bytes[field.offset + field.size..])
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
