//! What the keyspace promises about time and memory: expiry, eviction, access clocks, compaction, refusal.

use std::collections::{BTreeMap, BTreeSet};

use store::arena::{HeapSource, SEGMENT_BYTES};
use store::eviction::{AccessMode, EvictionPolicy};
use store::expiry::Expiry;
use store::keyspace::{Keyspace, KeyspaceOptions, StoreError};
use store::time::{Nanos, Now};
use store::value::Encoding;

const START_MS: u64 = 1_700_000_000_000;

fn at(ms: u64) -> Now {
    Now { unix_us: (START_MS + ms) * 1000, monotonic: Nanos(ms * 1_000_000) }
}

fn keyspace(options: KeyspaceOptions) -> Keyspace {
    Keyspace::new(options, Box::new(HeapSource::default()))
}

fn set(keyspace: &mut Keyspace, key: &str, value: &[u8], expiry: Expiry, now: Now) {
    let hash = keyspace.hash(key.as_bytes());
    keyspace.set(key.as_bytes(), hash, value, expiry, Encoding::Auto, now).unwrap();
}

fn has(keyspace: &mut Keyspace, key: &str, now: Now) -> bool {
    let hash = keyspace.hash(key.as_bytes());
    keyspace.peek(key.as_bytes(), hash, now).is_some()
}

fn get(keyspace: &mut Keyspace, key: &str, now: Now) -> Option<Vec<u8>> {
    let hash = keyspace.hash(key.as_bytes());
    keyspace.get(key.as_bytes(), hash, now).map(|entry| entry.value.to_vec())
}

fn remove(keyspace: &mut Keyspace, key: &str, now: Now) -> bool {
    let hash = keyspace.hash(key.as_bytes());
    keyspace.remove(key.as_bytes(), hash, now)
}

/// A mixing of numbers that has nothing to do with the store's.
fn scramble(n: u64) -> u64 {
    let mixed = (n ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x2545_f491_4f6c_dd1d);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x9fb2_1c65_1e98_df25) >> 7
}

#[test]
fn an_entry_lives_through_its_millisecond_and_no_longer() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    set(&mut keyspace, "k", b"v", Expiry::At(START_MS + 1000), at(0));
    assert!(has(&mut keyspace, "k", at(1000)));
    assert!(!has(&mut keyspace, "k", at(1001)));
    assert_eq!(keyspace.len(), 0, "a lookup removes what has expired");
    assert_eq!(keyspace.stats().expired, 1);
}

#[test]
fn active_expiry_follows_its_own_timetable_and_gives_the_memory_back() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..200_000u64 {
        set(&mut keyspace, &format!("key:{n}"), &[0; 100], Expiry::At(START_MS + 1000 + n % 20_000), at(0));
        if n % 100 == 0 {
            set(&mut keyspace, &format!("stay:{n}"), &[0; 100], Expiry::Never, at(0));
        }
    }
    let full = keyspace.stats().arena_bytes;
    let mut ms = 0;
    let mut turns = 0;
    while keyspace.expires_len() > 0 {
        let wait = keyspace.next_expiry_check(at(ms)).expect("something is to come");
        ms += wait.0 / 1_000_000;
        turns += 1;
        assert!(turns < 400_000, "{} left after {ms} ms", keyspace.expires_len());
        while keyspace.expire_some(at(ms), 256) {
            turns += 1;
        }
        while keyspace.compact_some(at(ms), 64 << 10) {}
        // Lag: no more than a sixteenth of what lives for twenty seconds may be overdue.
        let overdue = (0..200_000u64).filter(|n| 1000 + n % 20_000 < ms).count();
        let kept = keyspace.expires_len() - (200_000 - overdue).min(keyspace.expires_len());
        assert!(kept < 200_000 / 16, "{kept} entries are overdue at {ms} ms");
    }
    assert!(ms < 22_500, "all was over at 21 s, the last one went at {ms} ms");
    assert_eq!(keyspace.len(), 2000);
    assert_eq!(keyspace.stats().expired, 200_000);
    assert!(keyspace.stats().arena_bytes < full / 4, "{:?}", keyspace.stats());
    keyspace.check().unwrap();
}

#[test]
fn one_key_among_many_that_never_expire_goes_within_a_tenth_of_a_second() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..50_000 {
        set(&mut keyspace, &format!("stay:{n}"), &[0; 50], Expiry::Never, at(0));
    }
    set(&mut keyspace, "late", b"v", Expiry::At(START_MS + 60_000), at(0));
    set(&mut keyspace, "soon", b"v", Expiry::At(START_MS + 500), at(0));
    let wait = keyspace.next_expiry_check(at(0)).expect("an expiry is to come").0 / 1_000_000;
    assert_eq!(wait, 501);
    keyspace.expire_some(at(wait), 1000);
    assert_eq!((keyspace.expires_len(), keyspace.stats().expired), (1, 1));
    // Bringing an expiry forward brings the check forward.
    let hash = keyspace.hash(b"late");
    assert!(keyspace.set_expiry(b"late", hash, Some(START_MS + 700), at(510)).unwrap());
    let wait = keyspace.next_expiry_check(at(510)).expect("an expiry is to come").0 / 1_000_000;
    assert!((191..=300).contains(&wait), "{wait}");
    keyspace.expire_some(at(510 + wait), 1000);
    assert_eq!(keyspace.expires_len(), 0);
}

#[test]
fn an_expiry_brought_forward_behind_a_walk_is_not_forgotten() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..10_000u64 {
        set(
            &mut keyspace,
            &n.to_string(),
            b"v",
            Expiry::At(START_MS + if n == 9_999 { 10 } else { 25_000 }),
            at(0),
        );
    }
    // The walk passes the first half of the segment ...
    assert!(keyspace.expire_some(at(11), 5_000));
    // ... in which a key, where it lies, now expires long before all others.
    set(&mut keyspace, "3", b"w", Expiry::At(START_MS + 500), at(11));
    while keyspace.expire_some(at(11), 5_000) {}
    keyspace.check().unwrap();
    assert_eq!(keyspace.expires_len(), 9_999);
    keyspace.expire_some(at(501), 20_000);
    assert_eq!(keyspace.expires_len(), 9_998);
}

#[test]
fn a_walk_does_not_go_on_in_a_segment_that_was_given_up_and_taken_again() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    // Two full segments of one TTL class and the beginning of a third.
    let count = 2 * SEGMENT_BYTES as u64 / 88 + 100;
    for n in 0..count {
        let expires_at = START_MS + if n == 0 { 10 } else { 25_000 };
        set(&mut keyspace, &format!("{n:08}"), &[0; 68], Expiry::At(expires_at), at(0));
    }
    assert!(keyspace.expire_some(at(11), 5_000), "the walk stops in the middle of the first segment");
    assert!(keyspace.evacuate_segment(0));
    while keyspace.compact_some(at(11), 64 << 10) {}
    // The number is taken by a segment whose slots start elsewhere. Read as a record, what lies where the walk stopped
    // has expired and has a key of 256 MiB.
    let mut value = vec![0; 11];
    while value.len() < 158 {
        value.extend_from_slice(&[
            3, 0, 0, 0, 255, 255, 255, 15, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
    }
    value.truncate(158);
    for n in 0..40_000u64 {
        set(&mut keyspace, &format!("x{n:08}"), &value, Expiry::At(START_MS + 20_000), at(11));
    }
    while keyspace.expire_some(at(12), 1_000) {}
    keyspace.check().unwrap();
    assert_eq!(keyspace.expires_len() as u64, count - 1 + 40_000);
}

#[test]
fn what_was_used_since_it_was_sampled_is_not_evicted() {
    for policy in [EvictionPolicy::AllKeysLru, EvictionPolicy::AllKeysLfu] {
        let options = KeyspaceOptions { access: policy.access_mode(), ..KeyspaceOptions::default() };
        let mut keyspace = keyspace(options);
        for n in 0..1_000 {
            set(&mut keyspace, &format!("old:{n}"), b"v", Expiry::Never, at(0));
            set(&mut keyspace, &format!("new:{n}"), b"v", Expiry::Never, at(0));
        }
        // Fills the pool with keys that have not been used for five minutes ...
        for _ in 0..20 {
            keyspace.evict_one(policy, at(300_000)).expect("a key");
        }
        for n in 0..1_000 {
            get(&mut keyspace, &format!("new:{n}"), at(300_000));
        }
        // ... half of which are used now and the other half later and more often.
        for n in 0..1_000 {
            for _ in 0..200 {
                get(&mut keyspace, &format!("old:{n}"), at(360_000));
            }
        }
        let evicted: Vec<_> = (0..16).filter_map(|_| keyspace.evict_one(policy, at(361_000))).collect();
        let old = evicted.iter().filter(|key| key.starts_with(b"old")).count();
        assert!(old < 4, "{}: {old} of 16 had been used since they were sampled", policy.name());
    }
}

#[test]
fn idle_time_is_exact_for_nine_hours_and_never_starts_again() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..3000 {
        set(&mut keyspace, &format!("k{n}"), b"v", Expiry::Never, at(0));
    }
    let hash = keyspace.hash(b"k7");
    for hour in 1..60u64 {
        for tick in 0..360 {
            keyspace.expire_some(at((hour - 1) * 3_600_000 + tick * 10_000), 10);
        }
        let idle = keyspace.idle_seconds(b"k7", hash, at(hour * 3_600_000)).expect("a key");
        if hour <= 9 {
            assert_eq!(idle, hour * 3600);
        } else {
            assert!((32_400..65_536).contains(&idle), "{idle} seconds after {hour} hours");
        }
    }
    assert!(keyspace.touch(b"k7", hash, at(60 * 3_600_000)));
    assert_eq!(keyspace.idle_seconds(b"k7", hash, at(60 * 3_600_000 + 5000)), Some(5));
}

#[test]
fn the_frequency_counter_counts_as_redis_does() {
    let mut keyspace = keyspace(KeyspaceOptions { access: AccessMode::Lfu, ..KeyspaceOptions::default() });
    set(&mut keyspace, "k", b"v", Expiry::Never, at(0));
    let hash = keyspace.hash(b"k");
    assert_eq!(keyspace.frequency(b"k", hash, at(0)), Some(5), "a new key starts at five");
    // Redis' documentation: with factor 10, a hundred hits read as about 10, a thousand as about 18, and a hundred
    // thousand as about 142.
    for (hits, low, high) in [(100, 7, 13), (1000, 14, 24), (100_000, 120, 165)] {
        set(&mut keyspace, &hits.to_string(), b"v", Expiry::Never, at(0));
        for _ in 0..hits {
            get(&mut keyspace, &hits.to_string(), at(0));
        }
        let hash = keyspace.hash(hits.to_string().as_bytes());
        let counter = keyspace.frequency(hits.to_string().as_bytes(), hash, at(0)).expect("a key");
        assert!((low..=high).contains(&counter), "{hits} hits read as {counter}");
        // One less for every minute, and asking does not count.
        assert_eq!(keyspace.frequency(hits.to_string().as_bytes(), hash, at(180_000)), Some(counter - 3));
    }
    // The minutes' clock has eight bits; the sweep settles what is owed before it wraps.
    for tick in 0..3600 {
        keyspace.expire_some(at(tick * 10_000), 10);
    }
    let hash = keyspace.hash(b"100000");
    assert_eq!(keyspace.frequency(b"100000", hash, at(36_000_000)), Some(0));
}

/// Ten thousand keys, every other one with an expiry; those whose number is a multiple of five are read often and lately.
fn ready_for_eviction(policy: EvictionPolicy, seed: u64) -> Keyspace {
    let options =
        KeyspaceOptions { access: policy.access_mode(), random_seed: seed, ..KeyspaceOptions::default() };
    let mut keyspace = keyspace(options);
    for n in 0..10_000u64 {
        let expiry = if n % 2 == 0 {
            Expiry::At(START_MS + 1_000_000 + scramble(n) % 10_000_000)
        } else {
            Expiry::Never
        };
        set(&mut keyspace, &n.to_string(), &[0; 30], expiry, at(n / 10));
    }
    for round in 0..20 {
        for n in (0..10_000).step_by(5) {
            get(&mut keyspace, &n.to_string(), at(60_000 + round * 1000));
        }
    }
    keyspace
}

#[test]
fn each_policy_evicts_what_it_says() {
    for policy in EvictionPolicy::ALL {
        let mut keyspace = ready_for_eviction(policy, 1);
        let mut evicted = Vec::new();
        for _ in 0..2000 {
            let Some(key) = keyspace.evict_one(policy, at(90_000)) else { break };
            evicted.push(String::from_utf8(key).unwrap().parse::<u64>().unwrap());
        }
        keyspace.check().unwrap();
        let distinct: BTreeSet<u64> = evicted.iter().copied().collect();
        assert_eq!(distinct.len(), evicted.len());
        assert_eq!(keyspace.len(), 10_000 - evicted.len());
        assert_eq!(keyspace.stats().evicted as usize, evicted.len());
        if policy == EvictionPolicy::NoEviction {
            assert!(evicted.is_empty());
            continue;
        }
        assert_eq!(evicted.len(), 2000);
        let hot = evicted.iter().filter(|&&n| n % 5 == 0).count();
        match policy {
            EvictionPolicy::AllKeysRandom | EvictionPolicy::VolatileRandom => {
                assert!((250..550).contains(&hot), "{}: {hot} of 2000, 400 are fair", policy.name());
            }
            EvictionPolicy::VolatileTtl => {
                let expiry = |n: u64| scramble(n) % 10_000_000;
                let mut all: Vec<u64> = (0..10_000).step_by(2).map(expiry).collect();
                all.sort_unstable();
                // The 2,000 that expire first of 5,000, if sampling were perfect.
                let good = evicted.iter().filter(|&&n| expiry(n) < all[2500]).count();
                assert!(good > 1800, "{good} of 2000 were among the sooner half");
            }
            _ => assert!(hot < 20, "{}: {hot} of 2000 were in use", policy.name()),
        }
        if policy.name().starts_with("volatile") {
            assert!(evicted.iter().all(|n| n % 2 == 0), "{} took a key without expiry", policy.name());
        }
    }
}

#[test]
fn volatile_policies_end_when_nothing_is_volatile() {
    let mut keyspace = ready_for_eviction(EvictionPolicy::VolatileLru, 1);
    for policy in [EvictionPolicy::VolatileLru, EvictionPolicy::VolatileTtl, EvictionPolicy::VolatileRandom] {
        for _ in 0..1000 {
            assert!(keyspace.evict_one(policy, at(90_000)).is_some());
        }
    }
    while keyspace.evict_one(EvictionPolicy::VolatileLfu, at(90_000)).is_some() {}
    assert_eq!((keyspace.len(), keyspace.expires_len()), (5000, 0));
    while keyspace.evict_one(EvictionPolicy::AllKeysLru, at(90_000)).is_some() {}
    assert_eq!(keyspace.len(), 0);
    keyspace.check().unwrap();
}

#[test]
fn the_same_seed_evicts_the_same_keys() {
    let run = |seed| {
        let mut keyspace = ready_for_eviction(EvictionPolicy::AllKeysLfu, seed);
        let evicted: Vec<_> =
            (0..300).filter_map(|_| keyspace.evict_one(EvictionPolicy::AllKeysLfu, at(90_000))).collect();
        (evicted, keyspace.random_key(at(90_000)))
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn evicting_down_to_a_limit_keeps_memory_there() {
    let limit = 12 << 20;
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..400_000u64 {
        set(
            &mut keyspace,
            &n.to_string(),
            &vec![1; 20 + (scramble(n) % 300) as usize],
            Expiry::Never,
            at(n / 100),
        );
        while keyspace.used_bytes() > limit {
            assert!(keyspace.evict_one(EvictionPolicy::AllKeysLru, at(n / 100)).is_some());
        }
        keyspace.compact_some(at(n / 100), 4096);
    }
    let stats = keyspace.stats();
    assert!(stats.arena_bytes < limit + limit / 4 + 3 * SEGMENT_BYTES, "{stats:?}");
    keyspace.check().unwrap();
}

#[test]
fn random_overwrites_do_not_grow_the_arena() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    let keys = 100_000;
    let mut live = BTreeMap::new();
    for n in 0..keys {
        set(&mut keyspace, &n.to_string(), &[2; 64], Expiry::Never, at(0));
        live.insert(n, 64);
    }
    for n in 0..10 * keys {
        let key = scramble(n) % keys;
        let len = 32 + (scramble(n + 77) % 97) as usize;
        set(&mut keyspace, &key.to_string(), &vec![3; len], Expiry::Never, at(0));
        live.insert(key, len);
        if n % 16 == 0 {
            keyspace.compact_some(at(0), 16 << 10);
        }
    }
    keyspace.check().unwrap();
    for (key, len) in live {
        assert_eq!(get(&mut keyspace, &key.to_string(), at(0)).map(|value| value.len()), Some(len));
    }
    while keyspace.compact_some(at(0), 1 << 20) {}
    let stats = keyspace.stats();
    assert!(stats.dead_bytes <= (stats.arena_bytes / 10).max(4 << 20), "{stats:?}");
    keyspace.check().unwrap();
}

#[test]
fn compaction_reclaims_what_was_deleted_and_moves_the_rest() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    for n in 0..300_000u64 {
        set(&mut keyspace, &n.to_string(), &n.to_le_bytes().repeat(8), Expiry::Never, at(0));
    }
    let full = keyspace.stats().arena_bytes;
    for n in (0..300_000u64).filter(|n| n % 4 != 0) {
        assert!(remove(&mut keyspace, &n.to_string(), at(0)));
    }
    let mut calls = 0;
    while keyspace.compact_some(at(0), 32 << 10) {
        calls += 1;
    }
    assert!(calls > 100, "the work was done in small steps: {calls}");
    let stats = keyspace.stats();
    assert!(stats.arena_bytes < full / 2, "{stats:?}");
    keyspace.check().unwrap();
    for n in (0..300_000u64).step_by(4) {
        assert_eq!(get(&mut keyspace, &n.to_string(), at(0)), Some(n.to_le_bytes().repeat(8)));
    }
}

#[test]
fn appending_a_byte_to_a_large_value_does_not_copy_it_each_time() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    set(&mut keyspace, "k", &vec![b'x'; 8 << 20], Expiry::At(START_MS + 1_000_000), at(0));
    let hash = keyspace.hash(b"k");
    let mut moves = 0;
    let mut last = keyspace.stats().arena_bytes;
    for n in 0..100_000 {
        assert_eq!(keyspace.append(b"k", hash, b"y", at(0)), Ok((8 << 20) + n + 1));
        while keyspace.compact_some(at(0), 1 << 10) {}
        let held = keyspace.stats().arena_bytes;
        moves += u32::from(held != last);
        last = held;
    }
    assert!(moves <= 4, "{moves} copies of eight megabytes");
    let entry = keyspace.get(b"k", hash, at(0)).expect("a key");
    assert_eq!((entry.encoding, entry.expires_at), (Encoding::Raw, Some(START_MS + 1_000_000)));
    assert!(entry.value[8 << 20..].iter().all(|&byte| byte == b'y'));
    // EXPIRE and PERSIST do not copy it either.
    let held = keyspace.stats();
    assert!(keyspace.set_expiry(b"k", hash, None, at(0)).unwrap());
    assert_eq!(keyspace.evict_one(EvictionPolicy::VolatileTtl, at(0)), None);
    assert!(keyspace.set_expiry(b"k", hash, Some(START_MS + 5), at(0)).unwrap());
    assert_eq!(keyspace.stats(), held);
    keyspace.check().unwrap();
    keyspace.expire_some(at(6), 10);
    assert_eq!(keyspace.len(), 0);
    keyspace.check().unwrap();
}

#[test]
fn a_source_that_refuses_refuses_the_write_and_nothing_else() {
    let source = HeapSource::with_limit(4 * SEGMENT_BYTES);
    let mut keyspace = Keyspace::new(KeyspaceOptions::default(), Box::new(source));
    let mut written = 0u64;
    let refused = loop {
        let key = written.to_string();
        let hash = keyspace.hash(key.as_bytes());
        match keyspace.set(key.as_bytes(), hash, &[7; 100], Expiry::Never, Encoding::Auto, at(0)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, StoreError::OutOfSpace);
    assert_eq!(keyspace.len() as u64, written);
    keyspace.check().unwrap();
    for n in 0..written {
        assert_eq!(get(&mut keyspace, &n.to_string(), at(0)), Some(vec![7; 100]));
    }
    let hash = keyspace.hash(b"0");
    let too_long = keyspace.append(b"0", hash, &vec![0; 3 << 20], at(0));
    assert_eq!(too_long, Err(StoreError::OutOfSpace));
    assert_eq!(keyspace.write_range(b"0", hash, 1 << 30, b"x", at(0)), Err(StoreError::TooLarge));
    assert_eq!(get(&mut keyspace, "0", at(0)), Some(vec![7; 100]));
    // What is freed can be used at once.
    assert!(remove(&mut keyspace, "5", at(0)));
    set(&mut keyspace, "x", &[8; 100], Expiry::Never, at(0));
    keyspace.clear(at(0));
    keyspace.check().unwrap();
    assert!(keyspace.is_empty());
    while keyspace.compact_some(at(0), 1 << 20) {}
    set(&mut keyspace, "again", &vec![9; 3 << 20], Expiry::Never, at(0));
    keyspace.check().unwrap();
}

#[test]
fn flushing_touches_the_watches_of_keys_that_were_there() {
    let mut keyspace = keyspace(KeyspaceOptions::default());
    set(&mut keyspace, "there", b"v", Expiry::Never, at(0));
    set(&mut keyspace, "gone", b"v", Expiry::At(START_MS + 10), at(0));
    let there = keyspace.watch(b"there", at(20));
    let missing = keyspace.watch(b"missing", at(20));
    // It had expired when it was watched, so its removal changes nothing.
    let gone = keyspace.watch(b"gone", at(20));
    keyspace.expire_some(at(20), 100);
    keyspace.clear(at(20));
    assert!(!keyspace.is_unchanged(b"there", &there, at(20)));
    assert!(keyspace.is_unchanged(b"missing", &missing, at(20)));
    assert!(keyspace.is_unchanged(b"gone", &gone, at(20)));
    keyspace.unwatch(b"missing");
    set(&mut keyspace, "missing", b"v", Expiry::At(START_MS + 100), at(30));
    let token = keyspace.watch(b"missing", at(40));
    assert!(keyspace.is_unchanged(b"missing", &token, at(100)));
    assert!(!keyspace.is_unchanged(b"missing", &token, at(101)), "its time came after it was watched");
}

#[test]
fn policies_have_their_redis_names() {
    for policy in EvictionPolicy::ALL {
        assert_eq!(EvictionPolicy::parse(policy.name()), Some(policy));
        assert_eq!(EvictionPolicy::parse(&policy.name().to_uppercase()), Some(policy));
    }
    assert_eq!(EvictionPolicy::parse("allkeys"), None);
}
