//! Memory images where they can go wrong: flipped bits, mutated metas, no memory, and what an image costs while it is taken.
//! That an image is exact, whatever happens meanwhile, is `keyspace_model`'s to show.

use std::collections::BTreeMap;

use store::arena::{HeapSource, SEGMENT_BYTES};
use store::eviction::EvictionPolicy;
use store::expiry::Expiry;
use store::image::fuzz::{Memory, fuzz_image_meta};
use store::image::restore::LiveCursor;
use store::image::{Cause, ImageError, ImageRefusal, PAGE_BYTES, RegionKind, meta};
use store::keyspace::{Keyspace, KeyspaceOptions, StoreError};
use store::time::{Nanos, Now};
use store::value::Encoding;

mod taking;

use taking::{SharedSource, Sums, Taking, colliding_key, dispose, take};

const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };
const SEED: u64 = 99;

struct Random(u64);

impl Random {
    fn from_environment() -> Random {
        let seed = match std::env::var("MILLRACE_SEED") {
            Ok(text) => text.parse().expect("MILLRACE_SEED is a number"),
            Err(_) => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                since.expect("after 1970").as_nanos() as u64
            }
        };
        eprintln!("MILLRACE_SEED={seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn options() -> KeyspaceOptions {
    KeyspaceOptions { hash_seed: SEED, ..KeyspaceOptions::default() }
}

fn set(keyspace: &mut Keyspace, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), StoreError> {
    keyspace.set(key, keyspace.hash(key), value, expiry, Encoding::Auto, NOW)
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys of every kind: with an expiry, long, of one hash; and free slots of every kind.
fn filled(source: &SharedSource, random: &mut Random, count: usize) -> (Keyspace, Map) {
    let mut keyspace = Keyspace::new(options(), Box::new(source.clone()));
    let mut map = Map::new();
    for n in 0..count {
        let key = match n % 40 {
            0 => colliding_key(SEED, n as u64),
            _ => format!("key:{n}").into_bytes(),
        };
        let len = match n {
            7 => SEGMENT_BYTES / 2 + 100_000,
            _ if n % 100 == 3 => random.below(9_000),
            _ => random.below(120),
        };
        let value: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
        let expiry = if n % 3 == 0 { Expiry::At(NOW.unix_ms() + 20_000) } else { Expiry::Never };
        set(&mut keyspace, &key, &value, expiry).unwrap();
        map.insert(key, value);
    }
    for n in (0..count).step_by(5).filter(|n| n % 40 != 0) {
        let key = format!("key:{n}").into_bytes();
        assert!(keyspace.remove(&key, keyspace.hash(&key), NOW));
        map.remove(&key);
    }
    assert!(keyspace.stats().stashed > 0);
    (keyspace, map)
}

/// A flipped bit, wherever it is, is an error or damage, and until then everything is right; nothing is given out afterwards.
#[test]
fn a_flipped_bit_is_never_served() {
    let mut random = Random::from_environment();
    let source = SharedSource::default();
    let (mut keyspace, map) = filled(&source, &mut random, 4_000);
    let mut taking = take(&mut keyspace, NOW);
    let sums = taking.sums();
    let keys: Vec<&Vec<u8>> = map.keys().collect();
    // Most bytes are zeros that nobody reads: half of the flips are where there is something.
    let full: Vec<(usize, usize)> = (0..taking.regions.len())
        .flat_map(|region| {
            let pages = taking.regions[region].chunks(PAGE_BYTES).enumerate();
            let full = pages.filter(|(_, bytes)| bytes.iter().any(|&byte| byte != 0));
            full.map(move |(page, _)| (region, page)).collect::<Vec<_>>()
        })
        .collect();
    let (mut refused, mut by_operations, mut by_warming, mut by_checking) = (0, 0, 0, 0);
    for _ in 0..2_000 {
        let (region, page) = match random.below(2) {
            0 => full[random.below(full.len())],
            _ => {
                let region = random.below(taking.regions.len());
                (region, random.below(taking.regions[region].len() / PAGE_BYTES))
            }
        };
        let (byte, bit) = (page * PAGE_BYTES + random.below(PAGE_BYTES), 1 << random.below(8));
        taking.regions[region][byte] ^= bit;
        let restored = taking.restore_with(options(), &source, sums.clone(), NOW);
        taking.regions[region][byte] ^= bit;
        let mut keyspace = match restored {
            Ok(keyspace) => keyspace,
            Err(ImageError::Damaged(damage)) => {
                assert_eq!((damage.region as usize, damage.page as usize), (region, page));
                refused += 1;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        keyspace.keep_effects(true);
        let mut now_has = map.clone();
        let is_checked_first = random.below(4) == 0;
        while is_checked_first && keyspace.check_step(random.below(1 << 18)) {}
        assert!(keyspace.damage().is_some() || !is_checked_first, "all of it was looked at");
        for _ in 0..random.below(400) * usize::from(!is_checked_first) {
            operate(&mut keyspace, &mut now_has, &keys, &mut random);
            if keyspace.damage().is_some() {
                break;
            }
        }
        if is_checked_first {
            by_checking += 1;
        } else if keyspace.damage().is_some() {
            by_operations += 1;
        } else {
            by_warming += 1;
            while keyspace.warm_step(random.below(1 << 18)) {}
        }
        let damage = *keyspace.damage().expect("a page that was flipped");
        assert_eq!((damage.region as usize, damage.page as usize), (region, page));
        assert!(matches!(damage.cause, Cause::Checksum { .. }));
        assert!(!keyspace.take_effects(&mut Vec::new()), "what was done since may not be repeated");
        let key = keys[random.below(keys.len())];
        assert_eq!(keyspace.get(key, keyspace.hash(key), NOW), None);
        assert_eq!(set(&mut keyspace, b"new", b"value", Expiry::Never), Err(StoreError::Damaged));
        assert_eq!(keyspace.begin_image(NOW).unwrap_err(), ImageRefusal::Damaged);
        dispose(keyspace, NOW);
    }
    eprintln!(
        "{refused} refused, {by_operations} met by operations, {by_warming} by warming, {by_checking} by checking"
    );
    assert!(refused > 0 && by_operations > 100 && by_warming > 100 && by_checking > 100);
}

/// What came from another server is checked whole before it is served. It stays in the file for then, since moving a gibibyte
/// takes longer than checking it, and warming has only the moving left to do.
#[test]
fn an_image_is_checked_whole_without_being_moved() {
    let mut random = Random::from_environment();
    let source = SharedSource::default();
    let (mut keyspace, map) = filled(&source, &mut random, 4_000);
    let taking = take(&mut keyspace, NOW);
    let mut restored = taking.restore(options(), &source, NOW).unwrap();
    let total = restored.warm_progress().unwrap().total_bytes;
    let budget = PAGE_BYTES * (1 + random.below(40));
    let mut before = restored.warm_progress().unwrap().checked_bytes;
    while restored.check_step(budget) {
        let checked = restored.warm_progress().unwrap().checked_bytes;
        assert!(
            (before + 1..=before + budget as u64).contains(&checked),
            "{before}, then {checked} of {total}"
        );
        before = checked;
    }
    let progress = restored.warm_progress().unwrap();
    assert_eq!((progress.checked_bytes, progress.warmed_bytes, progress.kept_bytes), (total, 0, 0));
    assert!(!restored.check_step(budget), "there is nothing left to do");
    while restored.warm_step(1 << 18) {}
    assert_eq!(restored.warm_progress(), None);
    restored.check().unwrap();
    for (key, value) in &map {
        assert_eq!(restored.get(key, restored.hash(key), NOW).unwrap().value, value);
    }
}

/// One operation of any kind; whatever it says without damage must be right.
fn operate(keyspace: &mut Keyspace, map: &mut Map, keys: &[&Vec<u8>], random: &mut Random) {
    let key = keys[random.below(keys.len())].clone();
    let hash = keyspace.hash(&key);
    match random.below(12) {
        0 => {
            let value = vec![1; random.below(100)];
            if set(keyspace, &key, &value, Expiry::Keep).is_ok() {
                map.insert(key, value);
            }
        }
        1 => {
            let removed = keyspace.remove(&key, hash, NOW);
            assert!(removed == map.remove(&key).is_some() || keyspace.damage().is_some());
        }
        2 => {
            if keyspace.append(&key, hash, b"more", NOW).is_ok() {
                map.entry(key).or_default().extend_from_slice(b"more");
            }
        }
        3 => {
            let key = format!("new:{}", random.next()).into_bytes();
            if set(keyspace, &key, b"v", Expiry::Never).is_ok() {
                map.insert(key, b"v".to_vec());
            }
        }
        4 => {
            if let Some(key) = keyspace.random_key(NOW) {
                assert!(map.contains_key(&key));
            }
        }
        5 => {
            let policy = EvictionPolicy::ALL[random.below(8)];
            if let Some(key) = keyspace.evict_one(policy, NOW) {
                assert!(map.remove(&key).is_some());
            }
        }
        6 => {
            let cursor = random.next() >> 20;
            keyspace.scan(cursor, 20, NOW, &mut |key| assert!(map.contains_key(key)));
        }
        7 => {
            keyspace.for_each_live(LiveCursor::START, 1 + random.below(10_000), NOW, &mut |key, entry| {
                assert_eq!(&map[key], entry.value);
            });
        }
        8 => {
            let found = keyspace.set_expiry(&key, hash, Some(NOW.unix_ms() + 9_000), NOW).unwrap_or(false);
            assert!(found == map.contains_key(&key) || keyspace.damage().is_some());
        }
        9 => drop(keyspace.warm_step(random.below(1 << 17))),
        _ => {
            let found = keyspace.get(&key, hash, NOW).map(|entry| entry.value.to_vec());
            assert!(found.as_ref() == map.get(&key) || keyspace.damage().is_some());
        }
    }
}

/// Whatever happens to a meta, it is refused, or describes something that a keyspace can be made of.
#[test]
fn mutated_metas_are_refused_or_make_sense() {
    let mut random = Random::from_environment();
    let source = SharedSource::default();
    let mut metas = Vec::new();
    for count in [0, 50, 300, 4_000] {
        let (mut keyspace, _) = match count {
            0 => (Keyspace::new(options(), Box::new(source.clone())), Map::new()),
            50 => {
                let mut keyspace = Keyspace::new(options(), Box::new(source.clone()));
                set(&mut keyspace, b"key", b"value", Expiry::Never).unwrap();
                (keyspace, Map::new())
            }
            _ => filled(&source, &mut random, count.max(800)),
        };
        metas.push(take(&mut keyspace, NOW).begin.meta);
        dispose(keyspace, NOW);
    }
    let mut memory = Memory::new();
    let mut understood = 0;
    for round in 0..40_000 {
        let mut meta = metas[round % metas.len()].clone();
        fuzz_image_meta(&mut memory, if round < 4 { &meta } else { &[] });
        for _ in 0..1 + random.below(3) {
            let at = random.below(meta.len());
            match random.below(6) {
                0 => meta[at] ^= 1 << random.below(8),
                1 => meta[at] = random.next() as u8,
                2 => {
                    let word = [0, 1, u32::MAX, 0x8000_0000, random.next() as u32][random.below(5)];
                    let at = at.min(meta.len() - 4) & !3;
                    meta[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                3 => {
                    // Two words change places.
                    let (a, b) = (at.min(meta.len() - 4) & !3, random.below(meta.len() / 4) * 4);
                    let words: [[u8; 4]; 2] = [a, b].map(|at| meta[at..at + 4].try_into().unwrap());
                    meta[a..a + 4].copy_from_slice(&words[1]);
                    meta[b..b + 4].copy_from_slice(&words[0]);
                }
                4 if random.below(20) == 0 => meta.truncate(at.max(8)),
                _ if random.below(20) == 0 => meta.push(0),
                // The numbers at its beginning decide most.
                _ => {
                    let at = random.below(88.min(meta.len()));
                    meta[at] ^= 1 << random.below(8);
                }
            }
        }
        understood += u32::from(meta::summary(&meta).is_ok());
        fuzz_image_meta(&mut memory, &meta);
    }
    assert!(understood > 10_000, "most mutations are not in the first bytes: {understood}");
}

/// Seeds for the fuzzer: metas of an empty keyspace, of one with a key, and of one with every kind of table.
/// `UPDATE_GOLDEN=1 cargo test -p store --test image` writes them anew; a new version of the meta leaves the old ones behind.
#[test]
fn the_seeds_of_the_fuzzer_are_metas() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/image_meta");
    let (source, mut memory) = (SharedSource::default(), Memory::new());
    for (name, count) in [("v1-empty", 0), ("v1-one-key", 1), ("v1-every-table", 900)] {
        let (mut keyspace, _) = match count {
            0 | 1 => (Keyspace::new(options(), Box::new(source.clone())), Map::new()),
            _ => filled(&source, &mut Random(7), count),
        };
        if count == 1 {
            set(&mut keyspace, b"key", b"value", Expiry::Never).unwrap();
        }
        let seed = take(&mut keyspace, NOW).begin.meta;
        dispose(keyspace, NOW);
        let path = folder.join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &seed).unwrap();
        }
        assert!(std::fs::read(&path).is_ok_and(|kept| kept == seed), "{} is not up to date", path.display());
        // And with every byte changed, which is what a fuzzer begins with.
        for at in 0..seed.len() {
            for change in [0, 1 << (at % 8), 0xff] {
                let mut input = seed.clone();
                input[at] ^= change;
                fuzz_image_meta(&mut memory, &input);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let source = SharedSource::default();
    let (mut keyspace, _) = filled(&source, &mut Random(1), 1_000);
    let mut taking = take(&mut keyspace, NOW);
    let said = |taking: &Taking, options| match taking.restore(options, &source, NOW) {
        Ok(_) => panic!("an image that is wrong"),
        Err(error) => error.to_string(),
    };
    let other = KeyspaceOptions { hash_seed: 1, ..options() };
    assert!(said(&taking, other).contains("its hash seed is 0x63; expected 0x1"), "{}", said(&taking, other));
    let last = taking.regions.pop().unwrap();
    let count = taking.regions.len();
    let text = said(&taking, options());
    assert!(text.contains(&format!("{count} regions; expected {}", count + 1)), "{text}");
    taking.regions.push(last[..PAGE_BYTES].to_vec());
    let text = said(&taking, options());
    assert!(text.contains("has 4096 bytes at") && text.contains("; expected "), "{text}");
    taking.begin.meta.truncate(60);
    assert!(said(&taking, options()).contains("expected 4 more"), "{}", said(&taking, options()));
    taking.begin.meta[7] = 2;
    let text = said(&taking, options());
    assert!(text.contains("it begins with MRIMAGE\\x02; expected MRIMAGE\\x01"), "{text}");
    assert!(RegionKind::from_code(0).is_none());
    for kind in [RegionKind::Index, RegionKind::Segment, RegionKind::Span] {
        assert_eq!(RegionKind::from_code(kind.code()), Some(kind));
    }
}

/// Each number of a small meta that cannot be, and what is said of it.
#[test]
fn every_table_of_a_meta_is_held_against_the_others() {
    let source = SharedSource::default();
    let mut keyspace = Keyspace::new(options(), Box::new(source.clone()));
    set(&mut keyspace, b"key", b"value", Expiry::Never).unwrap();
    set(&mut keyspace, b"gone", b"value", Expiry::Never).unwrap();
    assert!(keyspace.remove(b"gone", keyspace.hash(b"gone"), NOW));
    let mut taking = take(&mut keyspace, NOW);
    let right = taking.begin.meta.clone();
    // One slab, one directory entry, one piece, one segment, one list: so these are where the tables begin.
    let (slabs, directory, piece, segment, open, list) = (80, 88, 96, 128, 160, 232);
    assert_eq!(right.len(), list + 12);
    let first_chunk = right[piece];
    for (at, byte, expected) in [
        (16, 2, "1 entries in pieces and stash; expected 2"),
        (24, 9, "9 of 1 entries expire"),
        (48, 3, "access fields of kind 3; expected 0, 1 or 2"),
        (76, 1, "a reserved field is not zero"),
        (slabs, 0, "expected 1 to"),
        (slabs + 1, 1, "padding is not zero"),
        (directory, 1, "entry 0 of the directory is piece 1; expected one below 1"),
        (piece + 4, first_chunk, "expected one of a slab that is there, and nobody else's"),
        (piece + 2, 1, "expected one of a slab that is there, and nobody else's"),
        (piece + 29, 9, "piece 0 has 2305 entries; expected up to 576"),
        (piece + 30, 8, "piece 0 has 8 chunks; expected 4 to 7"),
        (piece + 30, 3, "piece 0 has 3 chunks; expected 4 to 7"),
        (piece + 31, 1, "piece 0 has depth 1; expected at most 0"),
        (segment, 3, "segment number 0 is of kind 3, 0 are a span's"),
        (segment, 9, "segment 0 of kind 9 has 2097152 bytes"),
        (segment + 1, 6, "segment 0 has TTL class 6; expected 0 to 5"),
        (segment + 5, 1, "segment 0 of kind 1 has 2097408 bytes"),
        (segment + 8, 1, "1 of them live"),
        (segment + 11, 1, "of them live"),
        (open + 11, 1, "class 0 has"),
        (open, 1, "class 0 has"),
        (open + 12, 1, "class 1 has"),
        (list, 1, "free list"),
        (list + 3, 9, "expected one below"),
        (list + 6, 9, "free list"),
        (list + 8, 0, "free list"),
    ] {
        taking.begin.meta = right.clone();
        taking.begin.meta[at] = byte;
        let found = taking.restore(options(), &source, NOW).err().map(|error| error.to_string());
        assert!(found.as_ref().is_some_and(|text| text.contains(expected)), "byte {at} is {byte}: {found:?}");
    }
    taking.begin.meta = right;
    taking.restore(options(), &source, NOW).unwrap().check().unwrap();
}

/// A restored keyspace looks at pages only when it needs them, and first.
#[test]
fn a_lookup_after_a_restart_touches_few_pages() {
    let source = SharedSource::default();
    let (mut keyspace, map) = filled(&source, &mut Random(1), 4_000);
    let taking = take(&mut keyspace, NOW);
    // Nothing in the image is right, and nobody minds but who looks (the stash apart, which is read at the start).
    let wrong = Sums(taking.sums().0.iter().map(|sums| sums.iter().map(|sum| !sum).collect()).collect());
    assert!(matches!(
        taking.restore_with(options(), &source, wrong, NOW).err(),
        Some(ImageError::Damaged(_))
    ));
    let mut restored = taking.restore(options(), &source, NOW).unwrap();
    let at_start = restored.warm_progress().unwrap().checked_bytes;
    let key = b"key:1".to_vec();
    let found = restored.get(&key, restored.hash(&key), NOW).unwrap().value.to_vec();
    assert_eq!(found, map[&key]);
    let looked_at = restored.warm_progress().unwrap().checked_bytes - at_start;
    assert!((1..=8 * PAGE_BYTES as u64).contains(&looked_at), "{looked_at} bytes for one lookup");
}

/// Where there is no memory to move to, a keyspace stays where it is.
#[test]
fn without_memory_a_keyspace_stays_in_the_file() {
    let source = SharedSource::default();
    let (mut keyspace, map) = filled(&source, &mut Random(1), 2_000);
    let taking = take(&mut keyspace, NOW);
    let poor = SharedSource::default();
    let regions = taking.regions.iter().map(|bytes| {
        let region = store::arena::SegmentSource::allocate(&mut poor.clone(), bytes.len()).unwrap();
        region.copy_from_slice(bytes);
        region
    });
    let regions = regions.collect();
    let nothing = Box::new(HeapSource::with_limit(0));
    let checks = Box::new(taking.sums());
    let mut restored =
        Keyspace::from_image(options(), nothing, &taking.begin.meta, regions, checks, NOW).unwrap();
    assert_eq!(restored.begin_image(NOW).unwrap_err(), ImageRefusal::Warming);
    let mut kept = 0;
    while restored.warm_step(1 << 20) {
        kept = restored.warm_progress().map_or(kept, |progress| progress.kept_bytes);
    }
    assert!(kept > 0 && restored.warm_progress().is_none());
    while restored.compact_some(NOW, 1 << 20) {}
    restored.check().unwrap();
    for (key, value) in &map {
        assert_eq!(restored.get(key, restored.hash(key), NOW).unwrap().value, value);
    }
    // The free slots of the image are there, and a second image can be taken of the first.
    for n in 0..100 {
        set(&mut restored, format!("new:{n}").as_bytes(), &[0; 40], Expiry::Never).unwrap();
    }
    let again = take(&mut restored, NOW);
    again.restore(options(), &source, NOW).unwrap().check().unwrap();
}

/// The idle time of a key goes on over a restart.
#[test]
fn keys_age_while_the_server_is_down() {
    let source = SharedSource::default();
    let mut keyspace = Keyspace::new(options(), Box::new(source.clone()));
    set(&mut keyspace, b"key", b"value", Expiry::Never).unwrap();
    let later = |s: u64| Now {
        unix_us: NOW.unix_us + s * 1_000_000,
        monotonic: Nanos(NOW.monotonic.0 + s * 1_000_000_000),
    };
    let taking = take(&mut keyspace, later(60));
    // The machine was down for an hour, and its monotonic clock begins anew.
    let restarted = Now { monotonic: Nanos(3), ..later(3660) };
    let mut restored = taking.restore(options(), &source, restarted).unwrap();
    let hash = restored.hash(b"key");
    assert_eq!(restored.idle_seconds(b"key", hash, restarted), Some(3660));
}

/// FLUSHALL while an image is taken: the image has what was there, and the memory goes back as it is copied.
#[test]
fn a_keyspace_that_is_cleared_meanwhile_is_in_the_image() {
    let source = SharedSource::default();
    let (mut keyspace, map) = filled(&source, &mut Random(2), 3_000);
    for steps in [0, 1, 40, 600] {
        let mut taking = Taking::new(keyspace.begin_image(NOW).unwrap());
        for _ in 0..steps {
            keyspace.image_step(PAGE_BYTES, &mut |part| taking.put(part));
        }
        keyspace.clear(NOW);
        assert_eq!(keyspace.len(), 0);
        for n in 0..500 {
            set(&mut keyspace, format!("after:{n}").as_bytes(), b"v", Expiry::Never).unwrap();
        }
        keyspace.clear(NOW);
        for (key, value) in &map {
            let is_volatile = key.ends_with(b"7");
            let expiry = if is_volatile { Expiry::At(NOW.unix_ms() + 5_000) } else { Expiry::Never };
            set(&mut keyspace, key, value, expiry).unwrap();
        }
        keyspace.check().unwrap();
        while keyspace.image_step(64 << 10, &mut |part| taking.put(part)) {}
        assert!(taking.is_whole());
        keyspace.end_image();
        while keyspace.compact_some(NOW, 1 << 20) {}
        keyspace.check().unwrap();
        assert_eq!(keyspace.stats().image_bytes, 0);
        let mut restored = taking.restore(options(), &source, NOW).unwrap();
        restored.check().unwrap();
        assert_eq!(restored.len(), map.len());
        for (key, value) in &map {
            assert_eq!(restored.get(key, restored.hash(key), NOW).unwrap().value, value);
        }
        dispose(restored, NOW);
    }
}

/// What an image costs in memory while keys are overwritten at random: less than a tenth of the data, with steps that copy ten
/// times as much as is written.
#[test]
fn an_image_under_random_overwrites_holds_little() {
    const KEYS: usize = 1_000_000;
    let mut random = Random::from_environment();
    let mut keyspace = Keyspace::new(options(), Box::new(SharedSource::default()));
    let overwrite = |keyspace: &mut Keyspace, random: &mut Random, len: usize| {
        let key = format!("key:{:012}", random.below(KEYS)).into_bytes();
        set(keyspace, &key, &[7; 128][..len], Expiry::Never).unwrap();
    };
    for n in 0..KEYS {
        set(&mut keyspace, format!("key:{n:012}").as_bytes(), &[0; 64], Expiry::Never).unwrap();
    }
    for (writes_per_step, mixed) in [(16, false), (64, false), (64, true)] {
        for _ in 0..if mixed { 2 * KEYS } else { 0 } {
            let len = 32 + 8 * random.below(9);
            overwrite(&mut keyspace, &mut random, len);
            keyspace.compact_some(NOW, 4096);
        }
        while keyspace.compact_some(NOW, 1 << 20) {}
        let held = |keyspace: &Keyspace| {
            let stats = keyspace.stats();
            stats.arena_bytes + stats.index_bytes + stats.image_bytes
        };
        let before = held(&keyspace);
        let begin = keyspace.begin_image(NOW).unwrap();
        let (mut most, mut early, mut written) = (0, 0, 0);
        while keyspace.image_step(64 << 10, &mut |_| {}) {
            for _ in 0..writes_per_step {
                let len = if mixed { 32 + 8 * random.below(9) } else { 64 };
                overwrite(&mut keyspace, &mut random, len);
                written += len + 24;
            }
            keyspace.compact_some(NOW, 64 << 10);
            most = most.max(held(&keyspace).saturating_sub(before));
            early = keyspace.image_progress().unwrap().early_bytes_max;
        }
        let total: usize = begin.regions.iter().map(|region| region.bytes).sum();
        eprintln!(
            "{writes_per_step} writes a step, mixed {mixed}: {:.1} % of {} MiB overwritten, at most {:.2} % more held, \
             of which pages copied early {} KiB",
            written as f64 * 100.0 / total as f64,
            total >> 20,
            most as f64 * 100.0 / before as f64,
            early >> 10
        );
        let index = begin.regions.iter().filter(|region| region.kind == RegionKind::Index).count();
        assert!(early <= index * SEGMENT_BYTES, "no more pages wait than there are");
        assert!(most * 10 <= before, "{most} bytes over {before}");
        keyspace.end_image();
        let mut turns = 0;
        while keyspace.compact_some(NOW, 64 << 10) {
            turns += 1;
            assert!(turns < 100_000, "tidying ends");
        }
        keyspace.check().unwrap();
    }
}
