//! Tests of the index against plain lists of hashes.

use super::*;
use crate::arena::HeapSource;
use crate::eviction::Rng;
use std::collections::HashSet;

/// Records that are nothing but a hash; offset n is record n - 1, and its key is the offset's bytes.
#[derive(Default)]
struct Hashes {
    hashes: Vec<u64>,
    keys: Vec<[u8; 4]>,
}

impl Hashes {
    fn add(&mut self, hash: u64) -> Offset {
        self.hashes.push(hash);
        let offset = self.hashes.len() as u32;
        self.keys.push(offset.to_le_bytes());
        offset
    }
}

impl Records for Hashes {
    fn hash_of(&self, offset: Offset) -> u64 {
        self.hashes[offset as usize - 1]
    }

    fn key_of(&self, offset: Offset) -> &[u8] {
        &self.keys[offset as usize - 1]
    }

    fn prefetch(&self, _offset: Offset) {}
}

fn insert(index: &mut Index, records: &Hashes, source: &mut HeapSource, offset: Offset) -> bool {
    loop {
        match index.insert(records.hash_of(offset), offset, offset as u16, records) {
            Ok(()) => return true,
            Err(InsertError::NeedsSlab) => index.add_slab(source).expect("memory"),
            Err(InsertError::StashFull | InsertError::Unread) => return false,
        }
    }
}

fn find(index: &Index, records: &Hashes, offset: Offset) -> Option<Place> {
    index.find_offset(records.hash_of(offset), records.key_of(offset), offset)
}

/// Inserts hashes made by `make`, finds and scans them all, removes them again; returns how many were stashed.
fn exercise(count: usize, mut make: impl FnMut(&mut Rng) -> u64) -> usize {
    let seed = std::env::var("MILLRACE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    eprintln!("MILLRACE_SEED={seed}");
    let mut rng = Rng::new(seed);
    let (mut source, mut records) = (HeapSource::default(), Hashes::default());
    let mut index = Index::new(&mut source).expect("memory");
    let mut present = Vec::new();
    for i in 0..count {
        let hash = make(&mut rng);
        let offset = records.add(hash);
        if insert(&mut index, &records, &mut source, offset) {
            present.push(offset);
        }
        if i % (count / 4 + 1) == 0 {
            index.check(&records).unwrap();
        }
    }
    index.check(&records).unwrap();
    let stashed = index.stashed();
    for &offset in &present {
        let place = find(&index, &records, offset).expect("an entry that was inserted");
        assert_eq!(index.access(place), offset as u16, "the access field follows its entry");
        assert!(index.is_current(place));
    }
    let (mut seen, mut cursor) = (HashSet::new(), 0);
    loop {
        cursor = index.scan(cursor, 10, usize::MAX, &mut |offset| {
            seen.insert(offset);
        });
        assert!(cursor < 1 << 53, "a cursor must survive a client's floating-point numbers");
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(seen.len(), present.len());
    let directory = index.directory.len();
    assert!(directory <= (index.pieces.len() + 1) * DIRECTORY_PER_PIECE);
    while !present.is_empty() {
        let offset = present.swap_remove(rng.below(present.len()));
        let place = find(&index, &records, offset).expect("an entry not yet removed");
        index.remove(place, records.hash_of(offset), records.key_of(offset), &records);
        assert_eq!(find(&index, &records, offset), None);
        if present.len() % (count / 4 + 1) == 0 {
            index.check(&records).unwrap();
        }
    }
    index.check(&records).unwrap();
    assert!(index.is_empty() && index.stashed() == 0);
    stashed
}

#[test]
fn ordinary_hashes_need_no_stash() {
    // A stash that is not empty makes every miss slower, so it must not happen by chance.
    assert_eq!(exercise(1_000_000, |rng| rng.next()), 0);
}

/// Recovery spent more on growing the index than on anything else: every entry was moved five times on the way.
#[test]
fn what_is_expected_is_moved_once_and_takes_no_more_memory() {
    const COUNT: usize = 300_000;
    let fill = |expected: usize| {
        let mut rng = Rng::new(5);
        let (mut source, mut records) = (HeapSource::default(), Hashes::default());
        let mut index = Index::new(&mut source).expect("memory");
        index.expect(expected);
        for _ in 0..COUNT {
            let offset = records.add(rng.next());
            assert!(insert(&mut index, &records, &mut source, offset));
        }
        index.check(&records).unwrap();
        assert_eq!(index.stashed(), 0);
        (index.growths + index.splits, index.used_bytes())
    };
    let (steps, bytes) = fill(0);
    let (steps_expected, bytes_expected) = fill(COUNT);
    assert!(steps_expected * 2 < steps, "{steps_expected} steps, and {steps} without knowing");
    assert!(bytes_expected < bytes + bytes / 16, "{bytes_expected} bytes, and {bytes} without knowing");
    // An expectation that is far too high, as where every record is of the same few keys, is bounded in memory.
    let (_, bytes_wrong) = fill(1000 * COUNT);
    assert!(bytes_wrong < 2 * bytes, "{bytes_wrong} bytes, and {bytes} without knowing");
}

#[test]
fn equal_hashes_go_to_the_stash_and_the_rest_is_unharmed() {
    // Two buckets hold eighteen of them.
    let stashed = exercise(3_000, |_| 0x0123_4567_89ab_cdef);
    assert!(stashed >= 3_000 - 2 * SLOTS, "{stashed}");
    let stashed = exercise(60_000, |rng| if rng.below(10) == 0 { 42 } else { rng.next() });
    assert!((5_000..7_000).contains(&stashed), "{stashed}");
}

#[test]
fn a_full_stash_refuses() {
    let mut inserted = 0;
    exercise(STASH_MAX + 1000, |_| {
        inserted += 1;
        7
    });
    let (mut source, mut records) = (HeapSource::default(), Hashes::default());
    let mut index = Index::new(&mut source).expect("memory");
    let accepted = (0..STASH_MAX + 100)
        .filter(|_| {
            let offset = records.add(7);
            insert(&mut index, &records, &mut source, offset)
        })
        .count();
    assert_eq!(accepted, STASH_MAX + 2 * SLOTS);
    // Others still find their place.
    let offset = records.add(8 << 40 | 99 << 20);
    assert!(insert(&mut index, &records, &mut source, offset));
}

#[test]
fn hashes_that_share_bits_are_bounded_in_memory() {
    // The directory cannot tell these apart; a piece that cannot split fills up, and then the stash does.
    exercise(5_000, |rng| rng.next() >> 24);
    // These all want the same bucket and have the same tag, but pieces can tell them apart.
    exercise(5_000, |rng| rng.next() << 40 | 5);
    // A few distinct hashes, many keys each.
    exercise(5_000, |rng| (rng.below(20) as u64) << 58 | 3);
}

#[test]
fn an_alternative_of_an_alternative_is_home() {
    for buckets in [64, 80, 96, 112] {
        for tag in 1..=255 {
            for bucket in 0..buckets {
                let other = alternative(bucket, tag, buckets);
                assert!(other < buckets);
                assert_eq!(alternative(other, tag, buckets), bucket);
            }
        }
    }
}

#[test]
fn tags_match_as_a_plain_loop_would() {
    let mut rng = Rng::new(3);
    for _ in 0..1000 {
        let mut bucket = Bucket::zeroed();
        for slot in 0..SLOTS {
            bucket.tags[slot] = rng.below(4) as u8;
            bucket.access[slot] = rng.next() as u16;
        }
        bucket.counts = rng.below(4) as u8;
        for tag in 0..4 {
            let plain =
                (0..SLOTS).filter(|&slot| bucket.tags[slot] == tag).map(|slot| 1 << slot).sum::<u32>();
            assert_eq!(bucket.matches(tag), plain);
        }
    }
}

#[test]
fn slabs_are_given_back_when_keys_go() {
    let (mut source, mut records) = (HeapSource::default(), Hashes::default());
    let mut index = Index::new(&mut source).expect("memory");
    let mut rng = Rng::new(5);
    for _ in 0..1_000_000 {
        let offset = records.add(rng.next());
        insert(&mut index, &records, &mut source, offset);
    }
    assert!(index.slabs.len() >= 4, "{} slabs", index.slabs.len());
    for offset in 1..=1_000_000 {
        let place = find(&index, &records, offset).expect("an entry");
        index.remove(place, records.hash_of(offset), records.key_of(offset), &records);
    }
    index.check(&records).unwrap();
    let kept = index.slabs.iter().filter(|slab| !slab.is_empty()).count();
    assert!(kept <= 2 && index.merges > 0, "{kept} slabs kept");
    while let Some(slab) = index.released_slab() {
        source.release(slab);
    }
    for offset in 1..=300_000 {
        insert(&mut index, &records, &mut source, offset);
    }
    index.check(&records).unwrap();
}

#[test]
fn a_scan_misses_nothing_that_stays_while_pieces_grow_and_join() {
    let seed = std::env::var("MILLRACE_SEED").map_or(11, |seed| seed.parse().expect("a number"));
    eprintln!("MILLRACE_SEED={seed}");
    let mut rng = Rng::new(seed);
    for round in 0..30 {
        let (mut source, mut records) = (HeapSource::default(), Hashes::default());
        let mut index = Index::new(&mut source).expect("memory");
        let mut stay = HashSet::new();
        let mut others = Vec::new();
        // First many, so that there is something to join, or few, so that there is much to split.
        for i in 0..if round % 2 == 0 { 20_000 } else { 500 } {
            // Some equal hashes, so that the stash takes part.
            let hash = if rng.below(50) == 0 { 42 } else { rng.next() };
            let offset = records.add(hash);
            assert!(insert(&mut index, &records, &mut source, offset));
            if i % 40 == 0 {
                stay.insert(offset);
            } else {
                others.push(offset)
            }
        }
        let (mut seen, mut cursor) = (HashSet::new(), 0);
        loop {
            cursor = index.scan(cursor, 1 + rng.below(50), usize::MAX, &mut |offset| {
                seen.insert(offset);
            });
            if cursor == 0 {
                break;
            }
            for _ in 0..rng.below(400) {
                if round % 2 == 0 && !others.is_empty() {
                    let offset = others.swap_remove(rng.below(others.len()));
                    let place = find(&index, &records, offset).expect("an entry");
                    index.remove(place, records.hash_of(offset), records.key_of(offset), &records);
                } else if round % 2 == 1 && index.len() < 40_000 {
                    let offset = records.add(rng.next());
                    insert(&mut index, &records, &mut source, offset);
                }
            }
        }
        let missed = stay.difference(&seen).count();
        assert_eq!(missed, 0, "round {round}");
        assert!(index.merges + index.splits > 0);
    }
}

#[test]
fn any_number_is_a_cursor() {
    let (mut source, mut records) = (HeapSource::default(), Hashes::default());
    let mut index = Index::new(&mut source).expect("memory");
    let mut rng = Rng::new(9);
    for _ in 0..5_000 {
        let offset = records.add(rng.next());
        insert(&mut index, &records, &mut source, offset);
    }
    for _ in 0..10_000 {
        let cursor = rng.next() >> rng.below(64);
        index.scan(cursor, 10, usize::MAX, &mut |_| {});
    }
    index.scan(u64::MAX, usize::MAX, usize::MAX, &mut |_| {});
}
