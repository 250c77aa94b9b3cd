//! What an image costs: beginning it, its steps, SETs meanwhile; restoring, the first GET, warming.
//!
//!     GLIBC_TUNABLES=glibc.malloc.hugetlb=1 cargo run --release -p store --example image_bench -- [keys] [step KiB]
//!
//! Keys of 16 bytes, values of 64. A turn is sixteen SETs of random keys, and one step of the image if one is being taken.
//! Times of turns are those of the wall, so a busy machine shows in the worst ones; sums are CPU time.

use std::hint::black_box;
use std::time::Instant;

use store::arena::{HeapSource, SegmentSource};
use store::expiry::Expiry;
use store::image::PageCheck;
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::time::{Nanos, Now};
use store::value::Encoding;

const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };
const OPTIONS: KeyspaceOptions = KeyspaceOptions {
    hash_seed: 7,
    random_seed: 0,
    access: store::eviction::AccessMode::Lru,
    samples: 5,
    lfu_log_factor: 10,
    lfu_decay_minutes: 1,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(bound)) >> 64) as u64
    }
}

fn key_of(number: u64) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// Nanoseconds this thread has been on a core.
fn cpu_nanos() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    schedstat.split(' ').next().and_then(|text| text.parse().ok()).expect("a number first")
}

/// Reads the page as a checksum would, at about the speed of the CPU's CRC-32C.
struct Sum;

impl PageCheck for Sum {
    fn check(&self, _region: u32, _page: u32, bytes: &[u8]) -> Result<(), (u32, u32)> {
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight")));
        black_box(words.fold(0u64, |sum, word| sum.rotate_left(1) ^ word));
        Ok(())
    }
}

/// The times of turns, worst and typical.
#[derive(Default)]
struct Times(Vec<u64>);

impl Times {
    fn measure<T>(&mut self, turn: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = turn();
        self.0.push(start.elapsed().as_nanos() as u64);
        result
    }

    fn report(&mut self, name: &str) {
        self.0.sort_unstable();
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        println!(
            "{name:<34} {:>8} turns   median {:>7.1} us   99.9 % {:>8.1} us   worst {:>8.1} us",
            self.0.len(),
            at(0.5),
            at(0.999),
            at(1.0)
        );
    }
}

fn held(keyspace: &Keyspace) -> usize {
    let stats = keyspace.stats();
    stats.arena_bytes + stats.index_bytes + stats.image_bytes
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let keys = arguments.next().unwrap_or(1_000_000);
    let step = arguments.next().unwrap_or(64) as usize * 1024;
    let mut random = Random(42);
    let mut keyspace = Keyspace::new(OPTIONS, Box::new(HeapSource::default()));
    let set = |keyspace: &mut Keyspace, number: u64| {
        let key = key_of(number);
        let hash = keyspace.hash(&key);
        keyspace.set(&key, hash, &[b'v'; 64], Expiry::Never, Encoding::Auto, NOW).expect("memory");
    };
    (0..keys).for_each(|number| set(&mut keyspace, number));
    println!("{keys} keys of 16 bytes with values of 64, steps of {} KiB", step >> 10);

    let turns = 200_000;
    let mut usual = Times::default();
    let start = cpu_nanos();
    for _ in 0..turns {
        usual.measure(|| {
            (0..16).for_each(|_| set(&mut keyspace, random.below(keys)));
            keyspace.compact_some(NOW, 64 << 10);
        });
    }
    println!("SET without an image: {:.1} ns", (cpu_nanos() - start) / (16 * turns) as f64);
    usual.report("turns of 16 SETs, no image");

    for with_sets in [false, true] {
        let before = held(&keyspace);
        let start = Instant::now();
        let begin = keyspace.begin_image(NOW).expect("nothing in the way");
        let took = start.elapsed();
        println!("begin: {:.1} us, meta {} KiB", took.as_nanos() as f64 / 1000.0, begin.meta.len() >> 10);
        let mut regions: Vec<&'static mut [u8]> = Vec::new();
        let mut file = HeapSource::default();
        for region in &begin.regions {
            regions.push(file.allocate(region.bytes).expect("memory"));
        }
        let (mut steps, mut sets, mut most) = (Times::default(), Times::default(), 0);
        let mut set_nanos = 0.0;
        loop {
            let more = steps.measure(|| {
                keyspace.image_step(step, &mut |part| {
                    regions[part.region as usize][part.offset..][..part.bytes.len()]
                        .copy_from_slice(part.bytes);
                })
            });
            if !more {
                break;
            }
            if with_sets {
                let start = Instant::now();
                sets.measure(|| {
                    (0..16).for_each(|_| set(&mut keyspace, random.below(keys)));
                    keyspace.compact_some(NOW, 64 << 10);
                });
                set_nanos += start.elapsed().as_nanos() as f64;
                most = most.max(held(&keyspace));
            }
        }
        let progress = keyspace.image_progress().expect("an image");
        let mut ending = Times::default();
        ending.measure(|| keyspace.end_image());
        while ending.measure(|| keyspace.compact_some(NOW, 64 << 10)) {}
        steps.report("image_step");
        if with_sets {
            println!("SET while it is taken: {:.1} ns", set_nanos / (16 * sets.0.len()) as f64);
            sets.report("turns of 16 SETs and tidying");
            let over = most.saturating_sub(before) as f64;
            println!(
                "held over normal at most: {:.1} MiB, {:.2} %, of which index pages {} KiB",
                over / 1048576.0,
                over * 100.0 / before as f64,
                progress.early_bytes_max >> 10
            );
        }
        ending.report("end, and tidying up");
        if with_sets {
            continue;
        }

        let start = Instant::now();
        let restored = Keyspace::from_image(
            OPTIONS,
            Box::new(HeapSource::default()),
            &begin.meta,
            regions,
            Box::new(Sum),
            NOW,
        );
        let mut restored = restored.expect("an image as it was taken");
        let made = start.elapsed();
        let key = key_of(keys / 2);
        let hash = restored.hash(&key);
        assert!(restored.get(&key, hash, NOW).is_some());
        println!(
            "from_image: {:.2} ms, and the first GET {:.1} us",
            made.as_nanos() as f64 / 1e6,
            (start.elapsed() - made).as_nanos() as f64 / 1000.0
        );
        let (mut gets, mut news) = (Times::default(), Times::default());
        for _ in 0..20_000 {
            gets.measure(|| {
                let key = key_of(random.below(keys));
                let hash = restored.hash(&key);
                assert!(restored.get(&key, hash, NOW).is_some());
            });
        }
        gets.report("GET, most pages unchecked");
        (0..20_000).for_each(|number| news.measure(|| set(&mut restored, keys + number)));
        news.report("SET of new keys, the same");
        let mut warm = Times::default();
        let start = Instant::now();
        while warm.measure(|| restored.warm_step(64 << 10)) {}
        println!("warming: {:.1} ms", start.elapsed().as_nanos() as f64 / 1e6);
        warm.report("warm_step of 64 KiB");
        let mut tidy = Times::default();
        while tidy.measure(|| restored.compact_some(NOW, 64 << 10)) {}
        tidy.report("tidying up");
    }
}
