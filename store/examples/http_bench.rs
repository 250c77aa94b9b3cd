//! What an HTTP request costs without a socket: nanoseconds per request through `Engine::handle_receive`,
//! alone and sixteen at a time. Run with `cargo run --release -p store --example http_bench`.

use std::hint::black_box;
use std::time::Instant;

use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer, Transport};
use store::time::{Clock, Nanos, Now};

const CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };
const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };

struct SystemClock(Instant);

impl Clock for SystemClock {
    fn monotonic(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}

fn main() {
    let clock = SystemClock(Instant::now());
    let mut engine =
        Engine::new(Config::default(), Seeds::default(), Box::new(store::arena::HeapSource::default()), NOW);
    let peer = Peer { transport: Transport::Http, ..Peer::default() };
    engine.handle_connect(CONNECTION, peer, NOW);
    let key = "key:0123456789ab";
    let value = "v".repeat(64);
    let put =
        format!("PUT /v1/keys/{key} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: 64\r\n\r\n{value}");
    exchange(&mut engine, put.as_bytes(), &clock);

    let bare = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
    let browser = format!(
        "GET /v1/keys/{key} HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n\r\n"
    );
    let cases = [
        ("GET of 64 bytes, Host only", bare(&format!("/v1/keys/{key}"))),
        ("GET of 64 bytes, a browser's fields", browser),
        ("GET of a missing key", bare("/v1/keys/missing")),
        ("GET /healthz", bare("/healthz")),
        ("PUT of 64 bytes", put),
        ("POST ?op=incr", "POST /v1/keys/n?op=incr HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n".to_owned()),
    ];
    println!("{:<40}{:>12}{:>16}", "ns per request", "alone", "16 pipelined");
    for (name, request) in &cases {
        let alone = measure(&mut engine, request.as_bytes(), &clock);
        let pipelined = measure(&mut engine, request.repeat(16).as_bytes(), &clock) / 16.0;
        println!("{name:<40}{alone:>12.0}{pipelined:>16.0}");
    }
}

/// The fastest of many short rounds: everything else on the machine only ever adds time.
fn measure(engine: &mut Engine, input: &[u8], clock: &SystemClock) -> f64 {
    const EXCHANGES: u32 = 200;
    (0..1000)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..EXCHANGES {
                exchange(engine, black_box(input), clock);
            }
            started.elapsed().as_nanos() as f64 / f64::from(EXCHANGES)
        })
        .fold(f64::INFINITY, f64::min)
}

fn exchange(engine: &mut Engine, input: &[u8], clock: &SystemClock) {
    engine.handle_receive(CONNECTION, input, NOW, clock);
    while engine.poll_action().is_some() {}
    if let Some(output) = engine.take_output(CONNECTION) {
        engine.handle_sent(CONNECTION, black_box(output), NOW, clock);
    }
}
