//! Nanoseconds per GET and SET through [`Engine::handle_receive`], at several pipeline depths.
//!
//!     cargo run --release -p store --example pipeline_bench -- [keys] [seconds per case]
//!
//! What is measured is everything the core does for a request that arrives in a receive buffer: parsing,
//! lookup, hashing, the keyspace, the reply, handing the output over and getting the buffer back. Keys are
//! drawn at random, so that at many keys the caches miss as they do in service. No system call is made in the
//! measured part except reading the clock. Run it pinned (`taskset -c 0`) on a quiet machine; each figure is
//! the best and the median of the rounds.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::time::{Clock, Nanos, Now};

struct WallClock(Instant);

impl Clock for WallClock {
    fn monotonic(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}

impl WallClock {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
        Now { unix_us: unix.as_micros() as u64, monotonic: self.monotonic() }
    }
}

/// A small generator, so that the example needs no dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (u128::from(self.0) * u128::from(bound)).wrapping_shr(64) as u64
    }
}

fn request(out: &mut Vec<u8>, is_set: bool, key: u64, value: &[u8]) {
    let key = format!("key:{key:012}");
    if is_set {
        out.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$16\r\n{key}\r\n${}\r\n", value.len()).as_bytes());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n$16\r\n{key}\r\n").as_bytes());
    }
}

fn main() {
    let argument = |at: usize, default: f64| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"))
    };
    let keys = argument(1, 100_000.0) as u64;
    let seconds = argument(2, 0.3);
    let clock = WallClock(Instant::now());
    let mut engine = Engine::new(
        Config::default(),
        Seeds { hash: 1, random: 2, run_id: [0; 20] },
        Box::new(HeapSource::with_limit(8 << 30)),
        clock.now(),
    );
    let connection = ConnectionId { slot: 0, generation: 0 };
    engine.handle_connect(connection, Peer::default(), clock.now());
    let mut random = Random(88_172_645_463_325_252);
    let value = [b'v'; 64];

    let receive = |engine: &mut Engine, bytes: &[u8]| {
        let now = clock.now();
        engine.handle_receive(connection, bytes, now, &clock);
        let mut sent = 0;
        while engine.poll_action().is_some() {}
        if let Some(output) = engine.take_output(connection) {
            sent = output.len();
            engine.handle_sent(connection, output, now, &clock);
        }
        sent
    };

    let mut batch = Vec::new();
    for key in 0..keys {
        request(&mut batch, true, key, &value);
        if batch.len() > 8192 || key + 1 == keys {
            receive(&mut engine, &batch);
            engine.finish_turn(clock.now());
            batch.clear();
        }
    }
    println!("{keys} keys of 16 B, values of 64 B; nanoseconds per command, best / median of the rounds");
    for is_set in [false, true] {
        for depth in [1usize, 16, 64] {
            // Requests are made beforehand: 64 different batches hold enough keys to miss the caches.
            let batches: Vec<Vec<u8>> = (0..(1 << 20) / (depth * 40))
                .map(|_| {
                    let mut bytes = Vec::new();
                    (0..depth).for_each(|_| request(&mut bytes, is_set, random.below(keys), &value));
                    bytes
                })
                .collect();
            let mut rounds = Vec::new();
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            while Instant::now() < end {
                let started = Instant::now();
                for bytes in &batches {
                    let sent = receive(&mut engine, bytes);
                    assert!(sent >= depth * 5, "a command was not answered");
                }
                rounds.push(started.elapsed().as_nanos() as f64 / (batches.len() * depth) as f64);
            }
            rounds.sort_by(f64::total_cmp);
            let name = if is_set { "SET" } else { "GET" };
            println!("{name} pipeline {depth:>2}: {:>6.1} / {:>6.1}", rounds[0], rounds[rounds.len() / 2]);
        }
    }
}
