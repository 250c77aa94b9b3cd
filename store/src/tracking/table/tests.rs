//! The table against plain maps, and what a key costs.

use super::*;
use crate::session::ConnectionId;
use alloc::collections::BTreeSet;
use alloc::format;

fn target(id: u64) -> Target {
    Target { id, shard: 0, connection: ConnectionId { slot: id as u32, generation: 1 } }
}

/// As a keyspace would, but with collisions: the low bits are those that count.
fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, 5) & 0xffff_ffff_0000_0fff
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 29)) % bound as u64) as usize
    }
}

/// Every invariant, by walking everything.
fn check(table: &Table) {
    let mut pairs = 0;
    let mut chained = 0;
    for bucket in 0..table.buckets.len as u32 {
        let mut at = *table.buckets.at(bucket);
        while at != NONE {
            let entry = table.entries.at(at);
            assert_eq!(table.bucket(entry.hash), bucket);
            chained += 1;
            let readers: Vec<(u32, u32)> = match entry.reader {
                CROWD => table.crowds.at(entry.at).iter().collect(),
                reader => Vec::from([(reader, entry.at)]),
            };
            assert!(entry.reader != CROWD || readers.len() > 1);
            pairs += readers.len();
            for (reader, place) in readers {
                assert_eq!(table.readers[reader as usize].keys[place as usize], at);
            }
            at = entry.next;
        }
    }
    assert_eq!((chained, pairs), (table.entries.len, table.pairs));
    let crowds = (0..table.crowds.len as u32).map(|at| table.crowds.at(at).bytes());
    assert_eq!(table.crowd_bytes, crowds.sum::<usize>());
    assert_eq!(table.mask + 1, (table.buckets.len as u32).next_power_of_two());
    let listed: usize = table.readers.iter().map(|reader| reader.keys.len()).sum();
    assert_eq!(listed, pairs);
}

#[test]
fn it_is_a_map_from_keys_to_readers() {
    let seed = 0x1f2e_3d4c;
    let mut random = Random(seed);
    let mut known = 0;
    for run in 0..12 {
        let mut table = Table::new(usize::MAX);
        let mut model: BTreeMap<Vec<u8>, BTreeSet<u64>> = BTreeMap::new();
        let (keys, readers) = ([20, 300, 3000][run % 3], [1, 4, 60][run / 4]);
        for step in 0..20_000 {
            let key = format!("{:0>1$}", random.below(keys), 1 + random.below(2) * 30).into_bytes();
            let id = 1 + random.below(readers) as u64;
            match random.below(100) {
                0..=59 => {
                    // A reader that is known is told, and one that has just read is known.
                    table.turn_to(id);
                    let is_known = table.knows(&key, hash(&key), id);
                    let has_read = model.get(&key).is_some_and(|ids| ids.contains(&id));
                    assert_eq!(is_known, has_read, "seed {seed}, run {run}, step {step}");
                    known += usize::from(is_known);
                    table.register(&key, hash(&key), target(id));
                    assert!(table.knows(&key, hash(&key), id), "seed {seed}, run {run}, step {step}");
                    model.entry(key).or_default().insert(id);
                }
                60..=97 => {
                    table.touch(&key, hash(&key), Cause::Asked);
                    let wanted = model.remove(&key);
                    let (fired, cleared) = table.take_fired();
                    assert!(!cleared);
                    let told: Option<BTreeSet<u64>> =
                        fired.first().map(|fired| fired.targets.iter().map(|target| target.id).collect());
                    assert_eq!(told, wanted, "seed {seed}, run {run}, step {step}");
                }
                98 => {
                    table.forget(id);
                    model.values_mut().for_each(|ids| {
                        ids.remove(&id);
                    });
                    model.retain(|_, ids| !ids.is_empty());
                    while table.tidy(1000) {}
                }
                _ if random.below(50) == 0 => {
                    table.clear();
                    assert!(table.take_fired().1);
                    model.clear();
                }
                _ => {}
            }
            assert_eq!(table.keys(), model.len());
            if step % 500 == 0 {
                check(&table);
                assert_eq!(table.pairs(), model.values().map(BTreeSet::len).sum::<usize>());
            }
        }
        (1..=readers as u64).for_each(|id| table.forget(id));
        while table.tidy(100) {}
        check(&table);
        assert!(table.is_idle() && table.keys() == 0 && table.pairs() == 0);
        assert!(table.buckets.len <= BUCKETS_MIN + 1, "{} buckets are left", table.buckets.len);
    }
    assert!(known > 1000, "{known}");
}

/// The bound holds at every moment, and whoever is left out is told.
#[test]
fn beyond_the_bound_keys_fire() {
    let mut table = Table::new(1000);
    for number in 0..10_000 {
        let key = format!("key:{number}").into_bytes();
        table.register(&key, hash(&key), target(1 + number % 7));
        assert!(table.pairs() <= 1000);
    }
    let (fired, _) = table.take_fired();
    assert_eq!((fired.len(), table.evictions()), (9000, 9000));
    assert!(fired.iter().all(|fired| fired.cause == Cause::Full && fired.targets.len() == 1));
    assert!(fired.iter().all(|fired| *fired.key != *b"key:9999"), "what was just read stays");
    table.set_pairs_max(10);
    while table.tidy(100) {}
    assert_eq!(table.pairs(), 10);
    check(&table);
}

/// A reader of very many keys leaves: from then on nobody counts or hears it, and its pairs go in bounded steps.
#[test]
fn a_great_reader_leaves_in_steps() {
    let mut table = Table::new(usize::MAX);
    let key = |number: usize| format!("key:{number:012}").into_bytes();
    for number in 0..10_000 {
        table.register(&key(number), hash(&key(number)), target(1));
    }
    table.register(&key(0), hash(&key(0)), target(2));
    table.forget(1);
    assert_eq!(table.pairs(), 1);
    assert!(table.pairs > 8000, "not all of it at once");
    table.touch(&key(0), hash(&key(0)), Cause::Asked);
    table.touch(&key(1), hash(&key(1)), Cause::Asked);
    let (fired, _) = table.take_fired();
    assert_eq!((fired.len(), &fired[0].targets[..]), (1, &[target(2)][..]));
    let mut turns = 0;
    while table.tidy(1000) {
        turns += 1;
    }
    assert!((5..12).contains(&turns), "{turns}");
    assert_eq!((table.keys(), table.pairs), (0, 0));
}

/// What a pair costs where many have read the same keys.
#[test]
fn a_crowd_costs_what_is_promised() {
    for readers in [2, 3, 50, 57, 1000] {
        let mut table = Table::new(usize::MAX);
        for id in 0..readers {
            for number in 0..2000 {
                let key = format!("key:{number:012}").into_bytes();
                table.register(&key, xxhash_rust::xxh3::xxh3_64(&key), target(1 + id));
            }
        }
        let each = table.bytes() as f64 / table.pairs() as f64;
        println!("2000 keys of 16 bytes, {readers} readers: {each:.1} bytes a pair");
        assert!(each <= 64.0, "{readers} readers: {each:.1} bytes each");
        check(&table);
    }
}

/// The promise: at most 64 bytes for a tracked key of 16 bytes with one reader, its name included.
#[test]
fn a_tracked_key_costs_what_is_promised() {
    for count in [100_000usize, 131_072, 131_073, 200_000] {
        let mut table = Table::new(usize::MAX);
        for number in 0..count {
            let key = format!("key:{number:012}").into_bytes();
            table.register(&key, xxhash_rust::xxh3::xxh3_64(&key), target(1));
        }
        let each = table.bytes() as f64 / count as f64;
        println!("{count} keys of 16 bytes, one reader: {each:.1} bytes each");
        assert!(each <= 64.0, "{count} keys: {each:.1} bytes each");
    }
}
