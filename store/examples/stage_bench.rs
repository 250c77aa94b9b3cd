//! What timing requests by stage costs: the same GETs with and without it, in turn, many times.
//!
//!     cargo run --release -p store --example stage_bench -- [rounds]
//!
//! Each round measures every setting of `stage-sampling` for a few milliseconds on the same engine; a figure is the median
//! over the rounds, a difference the median of the differences to 0 (off) within a round, so that a machine whose other
//! programs come and go harms little. As in service, a turn is stamped when its replies are handed over.

use std::time::{Instant, SystemTime, UNIX_EPOCH};
use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::time::{Clock, Nanos, Now};

const SETTINGS: [u32; 6] = [0, 1024, 64, 32, 16, 1];
const KEYS: u64 = 10_000;
/// Commands in one measurement.
const COMMANDS: usize = 16_384;
const CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };

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

fn turn(engine: &mut Engine, bytes: &[u8], clock: &WallClock) {
    let now = clock.now();
    engine.handle_receive(CONNECTION, bytes, now, clock);
    engine.finish_turn(now);
    while engine.poll_action().is_some() {}
    let output = engine.take_output(CONNECTION).expect("a reply");
    let sampler = &mut engine.shared_mut().sampler;
    if sampler.has_unstamped() {
        sampler.handed(clock.monotonic());
    }
    engine.handle_sent(CONNECTION, output, now, clock);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(300, |text| text.parse().expect("a number of rounds"));
    let clock = WallClock(Instant::now());
    let source = Box::new(HeapSource::with_limit(1 << 30));
    let seeds = Seeds { hash: 1, random: 2, run_id: [0; 20] };
    let mut engine = Engine::new(Config::default(), seeds, source, clock.now());
    engine.handle_connect(CONNECTION, Peer::default(), clock.now());
    for key in 0..KEYS {
        turn(&mut engine, format!("SET key:{key:012} {:064}\r\n", key).as_bytes(), &clock);
    }
    for depth in [1usize, 64] {
        let batches: Vec<Vec<u8>> = (0..COMMANDS / depth)
            .map(|batch| {
                let key =
                    |at: usize| ((batch * depth + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
                let get = |at| format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{:012}\r\n", key(at)).into_bytes();
                (0..depth).flat_map(get).collect()
            })
            .collect();
        let mut figures = vec![Vec::new(); SETTINGS.len()];
        for _ in 0..rounds {
            for (at, setting) in SETTINGS.iter().enumerate() {
                let shared = engine.shared_mut();
                shared.config.stage_sampling = *setting;
                shared.settings_changed(clock.now());
                let began = Instant::now();
                batches.iter().for_each(|batch| turn(&mut engine, batch, &clock));
                figures[at].push(began.elapsed().as_nanos() as f64 / COMMANDS as f64);
            }
        }
        let off = figures[0].clone();
        for (setting, times) in SETTINGS.iter().zip(&mut figures) {
            let mut differences: Vec<f64> = times.iter().zip(&off).map(|(on, off)| on - off).collect();
            let (median_ns, difference) = (median(times), median(&mut differences));
            println!(
                "pipeline {depth:>2}, stage-sampling {setting:>4}: {median_ns:>6.1} ns a GET, {difference:>+6.2} ns"
            );
        }
    }
}
