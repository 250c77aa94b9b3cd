//! What the targets in `fuzz/` call: arbitrary bytes, read as a snapshot or as a Redis dump.
//!
//! The input says how to read and then describes the file in few bytes, as [`wal::fuzz::files`] has it. Half of
//! the inputs are read with a checksum that is always 0, since no fuzzer guesses a right one. Nothing may
//! panic; what is opened must be consistent, and its parts inside the file.

use alloc::string::ToString;
use alloc::vec::Vec;

use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;

use crate::format::REGIONS_OFFSET;
use crate::rdb::{RdbEntry, RdbError, RdbOptions, RdbReader, RdbSummary, Step};
use crate::view::SnapshotView;

/// Reads one input as a snapshot.
pub fn fuzz_snapshot_view(input: &[u8]) {
    let Some((&how, rest)) = input.split_first() else { return };
    let checksum = if how & 1 == 0 { Checksum::blind() } else { Checksum::portable() };
    let files = wal::fuzz::files(rest);
    let bytes: &[u8] = &files[0];
    let view = match SnapshotView::of_file("fuzzed", bytes, checksum) {
        Ok(view) => view,
        Err(damage) => return assert!(damage.to_string().contains("expected"), "{damage}"),
    };
    let header = *view.header();
    assert!(header.length == bytes.len() as u64 && view.shards() as u64 == u64::from(header.shards));
    let mut pages: Vec<u64> = Vec::new();
    for shard in 0..view.shards() {
        assert!((header.lsn..=header.lsn_max).contains(&view.lsn(shard)));
        assert!(view.meta(shard).len() < bytes.len());
        for (index, region) in view.regions(shard).iter().enumerate() {
            for page in 0..region.pages() {
                let at = region.offset + page * PAGE_BYTES as u64;
                pages.push(at);
                let page_bytes = &bytes[at as usize..][..PAGE_BYTES];
                if let Err(mismatch) = view.check_page(shard, index, page, page_bytes) {
                    let damage = view.page_damage(shard, index, page, mismatch);
                    assert_eq!(damage.offset, at, "{damage}");
                }
            }
        }
    }
    pages.sort_unstable();
    assert!(pages.windows(2).all(|pair| pair[0] < pair[1]), "a page belongs to two regions");
    assert!(pages.first().is_none_or(|&first| first == REGIONS_OFFSET));
}

/// Reads one input as a Redis dump, in chunks of the size that its first byte says and in one: nothing panics,
/// and the size of chunks does not matter.
pub fn fuzz_rdb_reader(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let database = (how & 1 == 1).then_some(0);
    let options = RdbOptions { database, string_bytes_max: 1 << 20 };
    let read = |chunk_bytes| {
        let mut entries = Vec::new();
        let end = read_rdb(options, bytes, chunk_bytes, |entry| entries.push(entry));
        (entries, end)
    };
    let (small, large) = (read(1 + usize::from(how >> 1)), read(bytes.len().max(1)));
    assert!(small == large, "chunks of {} bytes give something else", 1 + (how >> 1));
    assert_eq!(large.1.as_ref().map_or(large.0.len() as u64, |end| end.entries), large.0.len() as u64);
}

/// Reads a dump that is in memory, chunk by chunk.
pub fn read_rdb(
    options: RdbOptions,
    bytes: &[u8],
    chunk_bytes: usize,
    mut take: impl FnMut(RdbEntry),
) -> Result<RdbSummary, RdbError> {
    let mut reader = RdbReader::new(options);
    let mut chunks = bytes.chunks(chunk_bytes);
    loop {
        match reader.poll()? {
            Step::Entry(entry) => take(entry),
            Step::End(summary) => return Ok(summary),
            Step::NeedMore => match chunks.next() {
                Some(chunk) => reader.push(chunk),
                None => reader.finish(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_with_any_byte_changed_is_refused_whatever_the_chunks() {
        let golden = include_bytes!("../tests/golden/redis-7.0.15.rdb");
        let mut input = Vec::from([0]);
        input.extend_from_slice(golden);
        for how in 0..=u8::MAX {
            input[0] = how;
            fuzz_rdb_reader(&input);
        }
        let right = read_rdb(RdbOptions::default(), golden, 4096, |_| {}).unwrap();
        assert!(right.entries > 5 && right.has_checksum, "{right:?}");
        for at in 0..golden.len() {
            let change = 1 << (at % 8);
            input[1 + at] ^= change;
            input[0] = at as u8;
            fuzz_rdb_reader(&input);
            let read = read_rdb(RdbOptions::default(), &input[1..], 4096, |_| {});
            assert!(read.is_err(), "byte {at} changed, and read: {read:?}");
            input[1 + at] ^= change;
        }
        for length in 0..golden.len() {
            assert!(
                read_rdb(RdbOptions::default(), &golden[..length], 100, |_| {}).is_err(),
                "cut at {length}"
            );
        }
    }

    /// The target needs a nightly compiler and is not built by CI; its function and seeds are kept alive
    /// here.
    #[test]
    fn the_seed_corpus_passes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/snapshot_view");
        let mut seeds = 0;
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let seed = std::fs::read(entry.unwrap().path()).unwrap();
            fuzz_snapshot_view(&seed);
            // And with every byte changed, which is what a fuzzer begins with.
            for at in 0..seed.len() {
                for change in [1 << (at % 8), 0xff] {
                    let mut input = seed.clone();
                    input[at] ^= change;
                    fuzz_snapshot_view(&input);
                }
            }
            seeds += 1;
        }
        assert!(seeds >= 5, "only {seeds} seeds in {}", folder.display());
    }
}
