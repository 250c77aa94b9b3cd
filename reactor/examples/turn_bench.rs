//! How long the longest piece of work in a turn is, and what a key costs in memory, where a machine that is not
//! ours alone cannot blur it. Run with `cargo run --release -p reactor --example turn_bench -- [KEYS] [OVERWRITES] [ROUNDS]`.
//!
//! The loop measures its own turns (`INFO loop`), but on a virtual machine the wall clock also measures the
//! neighbours: a loop that only reads the clock sees gaps of milliseconds there, and this program says how long the
//! longest was. So the same batches of 64 SETs go through the real engine, on the real memory source, several times
//! over, with the same seed. What a batch costs by itself it costs every time: each batch counts with its shortest
//! time of all rounds, and the longest of those is the answer. A turn of the server ends 0.4 ms after it began, or with
//! the batch it then is in.

use reactor::clock::monotonic_ns;
use reactor::cpu;
use reactor::io::memory::MmapSource;
use std::fmt::Write;
use std::process::ExitCode;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::time::{Clock, Nanos, Now};

const CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };
/// Commands in a receive: what a client with a pipeline of 64 sends.
const BATCH: u64 = 64;
const FILL_BYTES: u64 = 64;
const KEY_BYTES: u64 = 16;
/// Overwrites are of this size to that, uniformly.
const SIZES: (u64, u64) = (32, 128);

struct Wall;

impl Clock for Wall {
    fn monotonic(&self) -> Nanos {
        Nanos(monotonic_ns())
    }
}

fn main() -> ExitCode {
    let mut numbers = [10_000_000, 10_000_000, 3];
    for (number, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
        match argument.replace('_', "").parse() {
            Ok(given) => *number = given,
            Err(_) => {
                eprintln!("expected three numbers (keys, overwrites, rounds), found {argument:?}");
                return ExitCode::from(2);
            }
        }
    }
    let [keys, overwrites, rounds] = numbers;
    let core = cpu::allowed_cores().into_iter().next();
    let helper = cpu::allowed_cores().into_iter().nth(1);
    println!(
        "{keys} keys of {KEY_BYTES} B, values of {FILL_BYTES} B; then {overwrites} random overwrites of {} to {} B",
        SIZES.0, SIZES.1
    );
    let mut shortest: Vec<u32> = Vec::new();
    for round in 1..=rounds.max(1) {
        // As in the server: the memory's helper is made off the core, the engine's thread is pinned to it.
        let memory = MmapSource::with_helper_on(helper);
        let serve = move || {
            if let Some(core) = core {
                cpu::pin_to(core).expect("a core of this process");
            }
            one_round(round, keys, overwrites, memory)
        };
        let times = std::thread::spawn(serve).join().expect("a round that does not panic");
        if shortest.is_empty() {
            shortest = times;
        } else {
            shortest.iter_mut().zip(&times).for_each(|(least, time)| *least = (*least).min(*time));
        }
    }
    let fill = (keys.div_ceil(BATCH)) as usize;
    for (what, batches) in [("fill", &shortest[..fill]), ("overwrite", &shortest[fill..])] {
        let mut sorted = batches.to_vec();
        sorted.sort_unstable();
        let Some(longest) = sorted.last() else { continue };
        let at = batches.iter().position(|time| time == longest).unwrap_or(0) as u64 * BATCH;
        println!(
            "{what}: longest batch {:.1} us (behind {at} commands), 99.99 % {:.1} us, median {:.1} us",
            f64::from(*longest) / 1e3,
            f64::from(sorted[sorted.len() * 9999 / 10_000]) / 1e3,
            f64::from(sorted[sorted.len() / 2]) / 1e3,
        );
    }
    println!(
        "longest gap of a loop that only reads the clock, 5 s: {:.1} us",
        longest_gap(5_000_000_000) as f64 / 1e3
    );
    ExitCode::SUCCESS
}

/// Nanoseconds of every batch.
fn one_round(round: u64, keys: u64, overwrites: u64, memory: MmapSource) -> Vec<u32> {
    let before = cpu::resident_bytes();
    let mut engine = Engine::new(Config::default(), Seeds::default(), Box::new(memory), now());
    engine.handle_connect(CONNECTION, Peer::default(), now());
    let mut times = Vec::with_capacity(((keys + overwrites) / BATCH + 2) as usize);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut input = String::new();
    let mut sizes = vec![FILL_BYTES as u8; keys as usize];
    for first in (0..keys).step_by(BATCH as usize) {
        input.clear();
        (first..keys.min(first + BATCH)).for_each(|key| push_set(&mut input, key, FILL_BYTES));
        times.push(turn(&mut engine, input.as_bytes()));
    }
    let per_key = |engine: &mut Engine, sizes: &[u8], when: &str| {
        let payload: u64 = sizes.iter().map(|&size| KEY_BYTES + u64::from(size)).sum();
        let resident =
            cpu::resident_bytes() - before - (sizes.len() + 4 * (keys + overwrites) as usize / 64) as u64;
        let stats = engine.shared().keyspace.stats();
        let held = (stats.arena_bytes + stats.index_bytes) as u64;
        println!(
            "round {round}, {when}: {} keys, resident {:.1} B a key over key and value, arena and index {:.1} B; {} live, {} dead",
            engine.shared().keyspace.len(),
            (resident as f64 - payload as f64) / keys as f64,
            (held as f64 - payload as f64) / keys as f64,
            stats.live_bytes,
            stats.dead_bytes,
        );
    };
    per_key(&mut engine, &sizes, "filled");
    for _ in (0..overwrites).step_by(BATCH as usize) {
        input.clear();
        for _ in 0..BATCH {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (key, size) = (random % keys, SIZES.0 + (random >> 40) % (SIZES.1 - SIZES.0 + 1));
            sizes[key as usize] = size as u8;
            push_set(&mut input, key, size);
        }
        times.push(turn(&mut engine, input.as_bytes()));
    }
    if overwrites > 0 {
        per_key(&mut engine, &sizes, "overwritten");
    }
    times
}

fn now() -> Now {
    Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(monotonic_ns()) }
}

fn push_set(input: &mut String, key: u64, size: u64) {
    const VALUE: &str = "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv";
    let value = &VALUE[..size as usize];
    // A String takes whatever is written.
    let _ = write!(input, "*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${size}\r\n{value}\r\n");
}

/// One receive, executed, with the background work behind it.
fn turn(engine: &mut Engine, input: &[u8]) -> u32 {
    let started = now();
    engine.handle_receive(CONNECTION, input, started, &Wall);
    engine.finish_turn(started);
    while engine.poll_action().is_some() {}
    let elapsed = monotonic_ns() - started.monotonic.0;
    if let Some(output) = engine.take_output(CONNECTION) {
        assert!(output.iter().all(|byte| b"+OK\r\n".contains(byte)), "{}", String::from_utf8_lossy(&output));
        engine.handle_sent(CONNECTION, output, started, &Wall);
    }
    elapsed.min(u64::from(u32::MAX)) as u32
}

fn longest_gap(span: u64) -> u64 {
    let begun = monotonic_ns();
    let (mut last, mut longest) = (begun, 0);
    while last - begun < span {
        let next = monotonic_ns();
        longest = longest.max(next - last);
        last = next;
    }
    longest
}
