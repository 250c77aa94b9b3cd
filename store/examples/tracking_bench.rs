//! What client tracking costs in the core: nanoseconds per GET and SET, and bytes per tracked key.
//!
//!     cargo run --release -p store --example tracking_bench -- [keys] [seconds per case]
//!
//! GET by a client that does not track, and by one that does and has read every key already, alone or among others, in
//! turns and in both orders, so that a machine that changes its mind changes it for both; a turn is short, so that the
//! median is of turns that nobody interrupted. SET while nobody tracks, while somebody tracks keys that are not written,
//! while somebody wants to hear of every key, and of keys that were just read. No system call is made in the measured
//! part except reading the clock. Run it pinned (`taskset -c 0`) on a quiet machine.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::time::{Clock, Nanos, Now};

const DEPTH: usize = 16;
/// Commands of a turn: some hundred microseconds.
const TURN: usize = 2048;
/// Clients that have read every key, in the case of many.
const CROWD: u32 = 50;

struct WallClock(Instant);

impl Clock for WallClock {
    fn monotonic(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}

struct Bench {
    engine: Engine,
    clock: WallClock,
    random: u64,
    keys: u64,
}

impl Bench {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
        Now { unix_us: unix.as_micros() as u64, monotonic: self.clock.monotonic() }
    }

    fn connect(&mut self, slot: u32, opening: &str) -> ConnectionId {
        let connection = ConnectionId { slot, generation: 0 };
        let now = self.now();
        self.engine.handle_connect(connection, Peer::default(), now);
        self.say(connection, opening.as_bytes());
        connection
    }

    /// One receive, and everything that is to be sent, to whomever.
    fn say(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let now = self.now();
        self.engine.handle_receive(connection, bytes, now, &self.clock);
        while let Some(action) = self.engine.poll_action() {
            if let store::engine::Action::Flush(connection) = action
                && let Some(output) = self.engine.take_output(connection)
            {
                self.engine.handle_sent(connection, output, now, &self.clock);
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.keys
    }

    /// Pipelines on keys drawn at random, or on every key once.
    fn pipelines(&mut self, command: &str, every: bool) -> Vec<Vec<u8>> {
        let count = if every { self.keys as usize } else { TURN };
        let mut keys =
            (0..count).map(|at| if every { at as u64 } else { self.draw() }).collect::<Vec<_>>().into_iter();
        let mut pipelines = Vec::new();
        while keys.len() > 0 {
            let mut bytes = Vec::new();
            for key in keys.by_ref().take(DEPTH) {
                let value = if command == "SET" {
                    "$8\r\nvaluevalue\r\n".replace("valuevalue", "valueval")
                } else {
                    String::new()
                };
                let words = if command == "SET" { 3 } else { 2 };
                bytes.extend(
                    format!("*{words}\r\n$3\r\n{command}\r\n$16\r\nkey:{key:012}\r\n{value}").bytes(),
                );
            }
            pipelines.push(bytes);
        }
        pipelines
    }

    /// Nanoseconds per command.
    fn time(&mut self, connection: ConnectionId, pipelines: &[Vec<u8>]) -> f64 {
        let started = Instant::now();
        pipelines.iter().for_each(|bytes| self.say(connection, bytes));
        started.elapsed().as_nanos() as f64 / (pipelines.len() * DEPTH) as f64
    }
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// GET by the first client and by the second.
fn in_turns(bench: &mut Bench, case: &str, clients: (ConnectionId, ConnectionId), seconds: f64) {
    let (mut off, mut on) = (Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs_f64(2.0 * seconds);
    while Instant::now() < end {
        let pipelines = bench.pipelines("GET", false);
        // Who comes second finds the keys in the cache: so everybody does.
        bench.time(clients.1, &pipelines);
        off.push(bench.time(clients.0, &pipelines));
        on.push(bench.time(clients.1, &pipelines));
        on.push(bench.time(clients.1, &pipelines));
        off.push(bench.time(clients.0, &pipelines));
    }
    let (off, on) = (median(off), median(on));
    println!(
        "GET in turns, {case}: not tracked {off:.1}, tracked {on:.1} ({:+.1} %)",
        (on / off - 1.0) * 100.0
    );
}

fn main() {
    let argument = |at: usize, default: f64| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"))
    };
    let (keys, seconds) = (argument(1, 100_000.0) as u64, argument(2, 1.0));
    let clock = WallClock(Instant::now());
    let source = Box::new(HeapSource::with_limit(8 << 30));
    let seeds = Seeds { hash: 1, random: 2, run_id: [0; 20] };
    let start = Now { unix_us: 0, monotonic: clock.monotonic() };
    let engine = Engine::new(Config::default(), seeds, source, start);
    let mut bench = Bench { engine, clock, random: 88_172_645_463_325_252, keys };
    let plain = bench.connect(0, "PING\r\n");
    for bytes in bench.pipelines("SET", true) {
        bench.say(plain, &bytes);
        let now = bench.now();
        bench.engine.finish_turn(now);
    }
    println!("{keys} keys of 16 B; pipelines of {DEPTH}; nanoseconds per command, median of the rounds");
    let alone = |bench: &mut Bench, name: &str, command: &str| {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let mut rounds = Vec::new();
        while Instant::now() < end {
            let pipelines = bench.pipelines(command, false);
            rounds.push(bench.time(plain, &pipelines));
        }
        println!("{name}: {:.1}", median(rounds));
    };
    alone(&mut bench, "GET, nobody tracks", "GET");
    alone(&mut bench, "SET, nobody tracks", "SET");
    let tracker = bench.connect(1, "HELLO 3\r\nCLIENT TRACKING ON\r\n");
    bench.say(tracker, b"GET another\r\n");
    alone(&mut bench, "SET, somebody tracks another key", "SET");
    for bytes in bench.pipelines("GET", true) {
        bench.say(tracker, &bytes);
    }
    let table = bench.engine.shared().keyspace.tracked().expect("somebody tracks");
    println!("bytes per tracked key with one reader: {:.1}", table.bytes() as f64 / table.keys() as f64);
    in_turns(&mut bench, "one tracks", (plain, tracker), seconds);
    let mut crowd: Vec<ConnectionId> = Vec::new();
    for slot in 2..=CROWD {
        let another = bench.connect(slot, "HELLO 3\r\nCLIENT TRACKING ON\r\n");
        for bytes in bench.pipelines("GET", true) {
            bench.say(another, &bytes);
        }
        crowd.push(another);
    }
    in_turns(&mut bench, &format!("one of {CROWD} that track"), (plain, tracker), seconds);
    for another in crowd {
        bench.say(another, b"CLIENT TRACKING OFF\r\n");
    }
    for _ in 0..=u64::from(CROWD) * keys / 1000 {
        let now = bench.now();
        bench.engine.finish_turn(now);
    }
    let (mut first, mut told) = (Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        let (reads, writes) = (bench.pipelines("GET", true), bench.pipelines("SET", true));
        told.push(bench.time(plain, &writes));
        first.push(bench.time(tracker, &reads));
    }
    println!(
        "SET of a key that one client has read: {:.1}; its GET afterwards: {:.1}",
        median(told),
        median(first)
    );
    bench.say(tracker, b"CLIENT TRACKING OFF\r\nCLIENT TRACKING ON BCAST\r\n");
    alone(&mut bench, "SET, one client hears of every key", "SET");
}
