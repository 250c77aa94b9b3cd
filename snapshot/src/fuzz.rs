//! What the targets in `fuzz/` call: arbitrary bytes, read as a snapshot.
//!
//! The input says how to read and then describes the file in few bytes, as [`wal::fuzz::files`] has it. Half of
//! the inputs are read with a checksum that is always 0, since no fuzzer guesses a right one. Nothing may
//! panic; what is opened must be consistent, and its parts inside the file.

use alloc::string::ToString;
use alloc::vec::Vec;

use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;

use crate::format::REGIONS_OFFSET;
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

#[cfg(test)]
mod tests {
    use super::*;

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
