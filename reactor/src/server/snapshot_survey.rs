//! A look at a whole snapshot by all cores at once, ahead of a long replay.
//!
//! A page is checked when it is first used, by the shard that uses it: for a few thousand keys that is what a start in
//! milliseconds is made of. A tail of the log that changes keys all over the data would use nearly every page, one by one and
//! in any order. Then it is faster to go through the file from front to back, a region after the other for whichever thread is
//! free, and to have the index moved to memory of its own, which otherwise the kernel would do page by page as they change.
//!
//! What is found wrong here is left alone: the replay, or the warming, comes to that page and says what there is to say.

use crate::io::snapshot_map::populate;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};
use store::image::PAGE_BYTES;
use store::keyspace::Keyspace;

/// With fewer records than one for so many pages of the snapshot most pages will not be used.
const PAGES_A_RECORD: u64 = 4;

/// Whether so many records make it worth while, over keyspaces of so many bytes.
pub(super) fn is_worth_while(records: u64, bytes: u64) -> bool {
    records >= bytes / PAGE_BYTES as u64 / PAGES_A_RECORD
}

/// Has the pages of all regions checked by `check`, which is told the keyspace, the region, the page and its bytes.
pub(super) fn survey(keyspaces: &mut [Keyspace], check: impl Fn(usize, u32, u64, &[u8]) -> bool + Sync) {
    let regions: Vec<(usize, u32, &[u8])> = keyspaces
        .iter()
        .enumerate()
        .flat_map(|(shard, keyspace)| {
            keyspace.unchecked_regions().into_iter().map(move |(region, memory)| (shard, region, memory))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut right = Vec::new();
        while let Some(&(shard, region, memory)) = regions.get(next.fetch_add(1, Ordering::Relaxed)) {
            populate(memory);
            let mut pages = memory.chunks_exact(PAGE_BYTES).enumerate();
            if pages.all(|(page, bytes)| check(shard, region, page as u64, bytes)) {
                right.push((shard, region));
            }
        }
        right
    };
    let helpers = available_parallelism().map_or(1, usize::from).min(regions.len()).saturating_sub(1);
    let mut right = scope(|scope| {
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let mut right = work();
        helpers.into_iter().for_each(|helper| right.extend(helper.join().expect("checking does not panic")));
        right
    });
    right.sort_unstable();
    for (shard, keyspace) in keyspaces.iter_mut().enumerate() {
        let checked: Vec<u32> = right.iter().filter(|one| one.0 == shard).map(|one| one.1).collect();
        keyspace.note_checked(&checked);
    }
    scope(|scope| {
        keyspaces.iter_mut().for_each(|keyspace| {
            scope.spawn(|| keyspace.warm_index());
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_records_are_not_worth_a_look_at_everything() {
        let gigabyte = 1 << 30;
        assert!(!is_worth_while(50_000, gigabyte));
        assert!(is_worth_while(70_000, gigabyte));
        assert!(!is_worth_while(0, PAGE_BYTES as u64 * 4));
    }
}
