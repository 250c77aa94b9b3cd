//! What a keyspace operation costs, in nanoseconds and in bytes a key.
//!
//!     GLIBC_TUNABLES=glibc.malloc.hugetlb=1 cargo run --release -p store --example keyspace_bench -- [keys] [overwrites]
//!
//! Keys are 16 bytes and values 64; then every key is overwritten at random with values of 32 to 128 bytes. One thread,
//! CPU time (the machine may be shared), keys in random order; "batch 16" looks up sixteen keys at a time with prefetching, as a pipeline
//! does. The tunable makes the C library ask for huge pages, as the server's own segments do.

use std::hint::black_box;
use std::time::Instant;

use store::arena::HeapSource;
use store::eviction::AccessMode;
use store::expiry::Expiry;
use store::keyspace::{KeyHash, Keyspace, KeyspaceOptions};
use store::time::{Nanos, Now};
use store::value::Encoding;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// "key:" and twelve digits.
fn key_of(number: u64) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// Nanoseconds this thread has been on a core, which other load does not lengthen.
fn cpu_nanos() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    schedstat.split(' ').next().and_then(|text| text.parse().ok()).expect("a number first")
}

/// Runs `turn` for turns of sixteen operations; says the mean and the worst turn.
fn measure(name: &str, operations: u64, mut turn: impl FnMut(u64)) {
    let start = cpu_nanos();
    let (mut worst, mut last) = (0, Instant::now());
    let mut done = 0;
    while done < operations {
        turn(done);
        done += 16;
        let now = Instant::now();
        worst = worst.max((now - last).as_nanos());
        last = now;
    }
    let nanos = (cpu_nanos() - start) / done as f64;
    println!("{name:<34} {nanos:>8.1} ns/op   worst turn of 16: {:>7.1} us", worst as f64 / 1000.0);
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0
}

fn report(keyspace: &Keyspace, payload: f64, resident_before: f64) {
    let stats = keyspace.stats();
    let keys = keyspace.len() as f64;
    println!(
        "    bytes a key over {payload:.1}: held {:.2} (records {:.2} of which dead {:.2}, index {:.2}); resident {:.2}; \
         splits {}, moved {} MiB in {} segments",
        (stats.arena_bytes + stats.index_bytes) as f64 / keys - payload,
        stats.arena_bytes as f64 / keys - payload,
        stats.dead_bytes as f64 / keys,
        stats.index_bytes as f64 / keys,
        (resident_bytes() - resident_before) / keys - payload,
        stats.splits,
        stats.compacted_bytes >> 20,
        stats.compacted_segments,
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let keys = arguments.next().unwrap_or(1_000_000);
    let overwrites = arguments.next().unwrap_or(keys * 10);
    let reads = 2_000_000u64;
    let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };
    let mut random = Random(42);
    let value = [b'v'; 128];
    let resident = resident_bytes();
    let options = KeyspaceOptions { hash_seed: 7, access: AccessMode::Lru, ..KeyspaceOptions::default() };
    let mut keyspace = Keyspace::new(options, Box::new(HeapSource::default()));
    println!("{keys} keys of 16 bytes, values of 64");
    let set = |keyspace: &mut Keyspace, key: &[u8], hash: KeyHash, value: &[u8]| {
        keyspace.set(key, hash, value, Expiry::Never, Encoding::Auto, now).expect("memory");
    };

    measure("fill", keys, |done| {
        for number in done..(done + 16).min(keys) {
            let key = key_of(number);
            let hash = keyspace.hash(&key);
            set(&mut keyspace, &key, hash, &value[..64]);
        }
    });
    report(&keyspace, 80.0, resident);

    // Keys are made beforehand and read in order: making one costs as much as a lookup.
    let chosen: Vec<[u8; 16]> = (0..reads.next_multiple_of(16)).map(|_| key_of(random.below(keys))).collect();
    let missing: Vec<[u8; 16]> =
        (0..reads.next_multiple_of(16)).map(|_| key_of(keys + random.below(keys))).collect();
    let turn_of = |keys: &[[u8; 16]], done: u64| -> [[u8; 16]; 16] {
        keys[done as usize..done as usize + 16].try_into().expect("sixteen keys")
    };
    measure("(hashing)", reads, |done| {
        for key in turn_of(&chosen, done) {
            black_box(keyspace.hash(&key));
        }
    });
    for round in ["", "again"] {
        measure(&format!("GET {round}"), reads, |done| {
            for key in turn_of(&chosen, done) {
                let hash = keyspace.hash(&key);
                black_box(keyspace.get(&key, hash, now).expect("a key that was set").value[0]);
            }
        });
    }
    measure("GET of a missing key", reads, |done| {
        for key in turn_of(&missing, done) {
            let hash = keyspace.hash(&key);
            assert!(keyspace.get(&key, hash, now).is_none());
        }
    });
    let mut batch = [([0u8; 16], KeyHash(0)); 16];
    measure("GET, batch 16", reads, |done| {
        fill_batch(&mut batch, &keyspace, &turn_of(&chosen, done));
        for (key, hash) in &batch {
            black_box(keyspace.get(key, *hash, now).expect("a key that was set").value[0]);
        }
    });
    measure("SET in place", reads, |done| {
        for key in turn_of(&chosen, done) {
            let hash = keyspace.hash(&key);
            set(&mut keyspace, &key, hash, &value[..64]);
        }
    });
    measure("SET in place, batch 16", reads, |done| {
        fill_batch(&mut batch, &keyspace, &turn_of(&chosen, done));
        for (key, hash) in &batch {
            set(&mut keyspace, key, *hash, &value[..64]);
        }
    });
    for round in 0..2 {
        measure("SET of 32 to 128 bytes, batch 16", overwrites / 2, |_| {
            fill_batch(&mut batch, &keyspace, &core::array::from_fn(|_| key_of(random.below(keys))));
            for (key, hash) in &batch {
                let len = 32 + random.below(97) as usize;
                set(&mut keyspace, key, *hash, &value[..len]);
            }
            keyspace.compact_some(now, 16 << 10);
        });
        // Sizes 32 to 128 with equal chance; in the first round not every key has been overwritten yet.
        let unchanged = if round == 0 { (-(overwrites as f64 / 2.0) / keys as f64).exp() } else { 0.0 };
        report(&keyspace, 16.0 + 80.0 - 16.0 * unchanged, resident);
    }
    measure("GET, batch 16", reads, |done| {
        fill_batch(&mut batch, &keyspace, &turn_of(&chosen, done));
        for (key, hash) in &batch {
            black_box(keyspace.get(key, *hash, now).expect("a key that was set").value[0]);
        }
    });
    measure("DEL", keys, |done| {
        for number in done..(done + 16).min(keys) {
            let key = key_of(number);
            let hash = keyspace.hash(&key);
            assert!(keyspace.remove(&key, hash, now));
        }
        keyspace.compact_some(now, 16 << 10);
    });
    let stats = keyspace.stats();
    println!("    held: records {} KiB, index {} KiB", stats.arena_bytes >> 10, stats.index_bytes >> 10);
}

fn fill_batch(batch: &mut [([u8; 16], KeyHash); 16], keyspace: &Keyspace, keys: &[[u8; 16]; 16]) {
    for ((key, hash), chosen) in batch.iter_mut().zip(keys) {
        *key = *chosen;
        *hash = keyspace.hash(key);
        keyspace.prefetch_bucket(*hash);
    }
    for (_, hash) in batch.iter() {
        keyspace.prefetch_record(*hash);
    }
}
