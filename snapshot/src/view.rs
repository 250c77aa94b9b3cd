//! Reading a snapshot: what is believed of it, and when.
//!
//! The file may hold anything. [`Envelope::open`] looks at its first and last page and says where the tables
//! are; [`SnapshotView::open`] looks at these. From then on what a view says is what a writer wrote: only the
//! pages of the regions are not checked yet, and whoever is about to use one asks [`SnapshotView::check_page`].
//! So a start costs what the tables cost, some thousandth of the file.
//!
//! No length or count in the file makes anything be allocated that is not backed by as many bytes in it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;
use wal::lsn::Lsn;

use crate::damage::{Damage, DamageKind, PageMismatch};
use crate::format::{Header, PAGE, REGIONS_OFFSET, Trailer, region, tables};
use crate::names::{FileName, SnapshotId};

/// The first and the last page of a snapshot, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    file: String,
    header: Header,
    trailer: Trailer,
}

impl Envelope {
    /// Looks at the first and the last 4096 bytes of a file that has `length`. Shorter ones are given as they
    /// are. If the file is called as a snapshot is, it must be that one.
    pub fn open(
        file: &str,
        length: u64,
        first: &[u8],
        last: &[u8],
        checksum: Checksum,
    ) -> Result<Envelope, Damage> {
        let header = Header::decode(file, first, checksum)?;
        if header.length != length {
            return Err(Damage {
                kind: DamageKind::Length,
                file: file.into(),
                offset: header.length.min(length),
                expected: format!("a file of {} bytes", header.length),
                found: format!("{length}"),
            });
        }
        let id = SnapshotId { epoch: header.epoch, lsn: header.lsn };
        let name = file.rsplit('/').next().and_then(FileName::parse);
        if let Some(FileName::Snapshot(named) | FileName::Temporary(named)) = name
            && named != id
        {
            return Err(Damage {
                kind: DamageKind::Name,
                file: file.into(),
                offset: 0,
                expected: String::from("the snapshot that the name says"),
                found: format!("{}", FileName::Snapshot(id)),
            });
        }
        let trailer = Trailer::decode(file, &header, last, checksum)?;
        Ok(Envelope { file: file.into(), header, trailer })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the tables are in the file, with the zeros behind them: inside the file for certain.
    pub fn tables(&self) -> Range<u64> {
        self.trailer.tables_offset..self.header.length - PAGE
    }
}

/// A region in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the keyspace uses it for.
    pub kind: u32,
    /// Its number among the regions of that kind; no other of its shard has both.
    pub number: u32,
    /// Where it begins in the file: a page that no other region has.
    pub offset: u64,
    /// Its bytes, whole pages.
    pub length: u64,
    /// Where the checksum of its first page stands in the tables.
    checksums_at: usize,
}

impl Region {
    /// Where it is in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }

    /// Number of its pages.
    pub fn pages(&self) -> u64 {
        self.length / PAGE
    }
}

#[derive(Clone, Debug)]
struct Shard {
    lsn: Lsn,
    meta: Range<usize>,
    regions: Vec<Region>,
}

/// A snapshot whose header, tables and trailer are right. `B` holds the bytes of the tables: borrowed from a
/// mapping of the file, or read from it.
#[derive(Clone, Debug)]
pub struct SnapshotView<B> {
    envelope: Envelope,
    checksum: Checksum,
    seed: u32,
    tables: B,
    shards: Vec<Shard>,
}

impl<'a> SnapshotView<&'a [u8]> {
    /// Opens a file that is in memory as a whole.
    pub fn of_file(file: &str, bytes: &'a [u8], checksum: Checksum) -> Result<Self, Damage> {
        let first = &bytes[..bytes.len().min(PAGE_BYTES)];
        let last = &bytes[bytes.len().saturating_sub(PAGE_BYTES)..];
        let envelope = Envelope::open(file, bytes.len() as u64, first, last, checksum)?;
        let tables = envelope.tables();
        SnapshotView::open(envelope, &bytes[tables.start as usize..tables.end as usize], checksum)
    }
}

impl<B: AsRef<[u8]>> SnapshotView<B> {
    /// Looks at the tables: the bytes of the file at [`Envelope::tables`].
    pub fn open(envelope: Envelope, tables: B, checksum: Checksum) -> Result<SnapshotView<B>, Damage> {
        let seed = envelope.header.seed(checksum);
        let bytes = tables.as_ref();
        let Range { start, end } = envelope.tables();
        let damage = |kind, offset: usize, expected, found| Damage {
            kind,
            file: envelope.file.clone(),
            offset: start + offset as u64,
            expected,
            found,
        };
        if bytes.len() as u64 != end - start {
            let (expected, found) = (format!("tables of {} bytes", end - start), format!("{}", bytes.len()));
            return Err(damage(DamageKind::Length, 0, expected, found));
        }
        let (stored, computed) = (envelope.trailer.tables_crc, checksum.continued(seed, bytes));
        if stored != computed {
            let expected = format!("tables with the checksum {stored:#010x} that the trailer says");
            return Err(damage(DamageKind::Tables, 0, expected, format!("{computed:#010x}")));
        }
        // It fits into what is there, so it fits into usize.
        let used = &bytes[..envelope.trailer.tables_length as usize];
        let shards = parse(used, &envelope).map_err(|Nonsense { at, expected, found }| {
            damage(DamageKind::Inconsistent, at, expected.into(), found)
        })?;
        Ok(SnapshotView { envelope, checksum, seed, tables, shards })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.envelope.header
    }

    /// Where the tables are in the file.
    pub fn tables(&self) -> Range<u64> {
        self.envelope.tables()
    }

    /// Number of shards; never 0.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// All records up to this LSN are in the shard's image, and none after it.
    pub fn lsn(&self, shard: usize) -> Lsn {
        self.shards[shard].lsn
    }

    /// What the keyspace knows of a shard beside its regions.
    pub fn meta(&self, shard: usize) -> &[u8] {
        &self.tables.as_ref()[self.shards[shard].meta.clone()]
    }

    /// A shard's regions, in the order of its plan.
    pub fn regions(&self, shard: usize) -> &[Region] {
        &self.shards[shard].regions
    }

    /// Whether these are the 4096 bytes of that page of a region. To be asked before any of them is used.
    ///
    /// Panics if there is no such shard, region or page, or if it is not 4096 bytes: none of that comes from
    /// the file.
    pub fn check_page(
        &self,
        shard: usize,
        region: usize,
        page: u64,
        bytes: &[u8],
    ) -> Result<(), PageMismatch> {
        let region = &self.shards[shard].regions[region];
        assert!(page < region.pages() && bytes.len() == PAGE_BYTES, "page {page} of {region:?}");
        let at = region.checksums_at + page as usize * tables::CHECKSUM_BYTES;
        let stored = &self.tables.as_ref()[at..at + tables::CHECKSUM_BYTES];
        let expected = u32::from_le_bytes(stored.try_into().expect("four bytes"));
        let found = self.checksum.continued(self.seed, bytes);
        if expected == found { Ok(()) } else { Err(PageMismatch { expected, found }) }
    }

    /// A page that failed its check, in words.
    pub fn page_damage(&self, shard: usize, region: usize, page: u64, mismatch: PageMismatch) -> Damage {
        let place = &self.shards[shard].regions[region];
        Damage {
            kind: DamageKind::Page,
            file: self.envelope.file.clone(),
            offset: place.offset + page * PAGE,
            expected: format!(
                "a page with the checksum {:#010x} (shard {shard}, region {region} of kind {} number {}, page {page})",
                mismatch.expected, place.kind, place.number
            ),
            found: format!("{:#010x}", mismatch.found),
        }
    }
}

/// Tables that no writer writes.
struct Nonsense {
    at: usize,
    expected: &'static str,
    found: String,
}

fn parse(bytes: &[u8], envelope: &Envelope) -> Result<Vec<Shard>, Nonsense> {
    let Envelope { header, trailer, .. } = envelope;
    let nonsense = |at, expected, found| Err(Nonsense { at, expected, found });
    let mut shards: Vec<Shard> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(head) = bytes[at..].first_chunk::<{ tables::HEAD_BYTES }>() else {
            return nonsense(at, "the head of a shard", format!("{} bytes", bytes.len() - at));
        };
        let (regions, pages) = (tables::REGIONS.u64(head), tables::PAGES.u64(head));
        let meta_length = tables::META_LENGTH.u64(head);
        let rows_at = at + tables::HEAD_BYTES;
        // Counts are taken by the bytes they claim, so no more is allocated than is there.
        let end_of = |from: usize, count: u64, size: usize| {
            let bytes_left = (bytes.len() - from) as u64;
            (count <= bytes_left / size as u64).then(|| from + count as usize * size)
        };
        let ends = end_of(rows_at, regions, region::BYTES).and_then(|checksums_at| {
            let meta_at = end_of(checksums_at, pages, tables::CHECKSUM_BYTES)?;
            Some((checksums_at, meta_at, end_of(meta_at, meta_length, 1)?))
        });
        let Some((checksums_at, meta_at, meta_end)) = ends else {
            return nonsense(at, "regions, pages and meta that fit into the tables", format!("{head:?}"));
        };
        let shard = Shard {
            lsn: Lsn(tables::LSN.u64(head)),
            meta: meta_at..meta_end,
            regions: parse_regions(&bytes[rows_at..checksums_at], checksums_at, pages, trailer)
                .map_err(|nonsense| Nonsense { at: rows_at + nonsense.at, ..nonsense })?,
        };
        shards.push(shard);
        at = meta_end.next_multiple_of(tables::ALIGNMENT);
    }
    if at != bytes.len() || shards.len() as u64 != u64::from(header.shards) {
        let found = format!("{} shards in {} bytes", shards.len(), bytes.len());
        return nonsense(at.min(bytes.len()), "as many shards as the header says, and nothing else", found);
    }
    let lsns = shards.iter().map(|shard| shard.lsn);
    if lsns.clone().min() != Some(header.lsn) || lsns.max() != Some(header.lsn_max) {
        return nonsense(0, "the lowest and highest LSN that the header says", format!("{header:?}"));
    }
    covers(&shards, trailer.tables_offset)?;
    Ok(shards)
}

fn parse_regions(
    rows: &[u8],
    mut checksums_at: usize,
    pages: u64,
    trailer: &Trailer,
) -> Result<Vec<Region>, Nonsense> {
    let mut regions = Vec::with_capacity(rows.len() / region::BYTES);
    let mut pages_left = pages;
    for (index, row) in rows.chunks_exact(region::BYTES).enumerate() {
        let decoded = Region {
            kind: region::KIND.u32(row),
            number: region::NUMBER.u32(row),
            offset: region::OFFSET.u64(row),
            length: region::LENGTH.u64(row),
            checksums_at,
        };
        let sane = decoded.offset.is_multiple_of(PAGE)
            && decoded.length.is_multiple_of(PAGE)
            && decoded.length > 0
            && decoded.offset >= REGIONS_OFFSET
            && decoded.offset.checked_add(decoded.length).is_some_and(|end| end <= trailer.tables_offset)
            && decoded.pages() <= pages_left;
        if !sane {
            let (at, found) = (index * region::BYTES, format!("{decoded:?}"));
            return Err(Nonsense {
                at,
                expected: "a region of pages before the tables, with checksums",
                found,
            });
        }
        pages_left -= decoded.pages();
        checksums_at += decoded.pages() as usize * tables::CHECKSUM_BYTES;
        regions.push(decoded);
    }
    if pages_left > 0 {
        let expected = "as many checksums as the regions have pages";
        return Err(Nonsense { at: 0, expected, found: format!("{pages_left} more") });
    }
    let mut names: Vec<(u32, u32)> = regions.iter().map(|region| (region.kind, region.number)).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let found = format!("kind {} number {} twice", pair[0].0, pair[0].1);
        return Err(Nonsense { at: 0, expected: "regions of different kinds or numbers", found });
    }
    Ok(regions)
}

/// The regions fill the file from the header to the tables, and no byte belongs to two.
fn covers(shards: &[Shard], tables_offset: u64) -> Result<(), Nonsense> {
    let mut ranges: Vec<Range<u64>> =
        shards.iter().flat_map(|shard| shard.regions.iter().map(Region::range)).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut end = REGIONS_OFFSET;
    for range in ranges.into_iter().chain(core::iter::once(tables_offset..tables_offset)) {
        if range.start != end {
            let found = format!("one ends at {end}, the next begins at {}", range.start);
            return Err(Nonsense { at: 0, expected: "regions without gap and overlap", found });
        }
        end = range.end;
    }
    Ok(())
}
