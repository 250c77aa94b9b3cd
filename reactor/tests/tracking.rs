//! Client tracking over real sockets and several shards: who was shown a write is not answered before the invalidation,
//! a tracker that never reads costs nobody else, and a million keys of one client meet the table's bound.

#[allow(dead_code, reason = "each suite uses its part")]
mod harness;

use harness::{Client, Random, Server, seed};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One test for each driver.
macro_rules! on_both_drivers {
    ($($name:ident),* $(,)?) => {
        mod io_uring { $(#[test] fn $name() { super::$name("io_uring"); })* }
        mod epoll { $(#[test] fn $name() { super::$name("epoll"); })* }
    };
}

on_both_drivers!(
    no_acknowledgement_overtakes_an_invalidation,
    a_tracker_that_never_reads_is_cut_and_others_are_told,
    a_million_keys_of_one_client_meet_the_bound,
);

const SHARDS: usize = 3;
const KEYS: usize = 24;

/// A client that takes what it is sent up to the answer to PING, and leaves what is behind it for the next time.
struct Talker {
    client: Client<TcpStream>,
    rest: Vec<u8>,
}

impl Talker {
    fn new(client: Client<TcpStream>) -> Talker {
        Talker { client, rest: Vec::new() }
    }

    /// A RESP3 client that tracks.
    fn tracking(server: &Server, options: &str) -> Talker {
        let mut talker = Talker::new(server.client());
        let answer = talker.say(&format!("HELLO 3\r\nCLIENT TRACKING ON {options}\r\n"));
        assert!(answer.ends_with(b"+OK\r\n"), "{}", answer.escape_ascii());
        talker
    }

    /// What comes until these lines and a PING behind them are answered.
    fn say(&mut self, lines: &str) -> Vec<u8> {
        const PONG: &[u8] = b"+PONG\r\n";
        self.client.send(format!("{lines}PING\r\n").as_bytes());
        let mut from = 0;
        loop {
            if let Some(at) = self.rest[from..].windows(PONG.len()).position(|window| window == PONG) {
                let behind = self.rest.split_off(from + at + PONG.len());
                let mut answer = std::mem::replace(&mut self.rest, behind);
                answer.truncate(from + at);
                return answer;
            }
            from = self.rest.len().saturating_sub(PONG.len());
            let mut chunk = [0; 16384];
            let length = self.client.stream.read(&mut chunk).expect("an answer");
            assert!(length > 0, "closed after {}", self.rest.escape_ascii());
            self.rest.extend_from_slice(&chunk[..length]);
        }
    }
}

/// Says so when it goes, however that comes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many invalidations there are; what is counted is whole.
fn invalidations(bytes: &[u8]) -> usize {
    bytes.windows(10).filter(|window| window == b"invalidate").count()
}

fn told(key: &str) -> Vec<u8> {
    format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len()).into_bytes()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A write is acknowledged to whoever made it, or shown to somebody who reads: whatever a tracker sends from then on, on
/// whichever shard it and they are, is answered behind the invalidation. Others keep the shards busy meanwhile, so that
/// turns are long and threads are interrupted anywhere.
fn no_acknowledgement_overtakes_an_invalidation(io: &str) {
    let seed = seed();
    println!("SEED={seed}");
    let mut random = Random(seed);
    for (durability, rounds) in [("off", 1500), ("everysec", 700), ("always", 700)] {
        let shards = SHARDS.to_string();
        let server = Server::start(io, &["--shards", &shards, "--durability", durability]);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = End(&is_over);
            for _ in 0..2 {
                let mut busy = Talker::new(server.client());
                let is_over = &is_over;
                scope.spawn(move || {
                    let batch: String =
                        (0..40).map(|at| format!("SET other:{at} 1\r\nGET other:{at}\r\n")).collect();
                    while !is_over.load(Ordering::Relaxed) {
                        busy.say(&batch);
                    }
                });
            }
            let mut trackers: Vec<_> = (0..6)
                .map(|at| Talker::tracking(&server, if at < 4 { "" } else { "BCAST PREFIX key:" }))
                .collect();
            let mut others: Vec<_> = (0..5).map(|_| Talker::new(server.client())).collect();
            let mut draw = |below: usize| (random.next() % below as u64) as usize;
            for round in 0..rounds {
                let (one, two) = (draw(KEYS), draw(KEYS));
                let keys = [format!("key:{one}"), format!("key:{two}")];
                let at = draw(trackers.len());
                let tracker = &mut trackers[at];
                tracker.say(&format!("MGET {} {}\r\n", keys[0], keys[1]));
                let (writer, reader) = (draw(others.len()), draw(others.len()));
                let write = match draw(3) {
                    0 => format!("MSET {} v{round} {} v{round}\r\n", keys[0], keys[1]),
                    1 => format!("MULTI\r\nSET {} v{round}\r\nSET {} v{round}\r\nEXEC\r\n", keys[0], keys[1]),
                    _ => format!("SET {} v{round}\r\nSET {} v{round}\r\n", keys[0], keys[1]),
                };
                if writer != reader && draw(2) == 0 {
                    // It is seen before its writer has looked.
                    others[writer].client.send(write.as_bytes());
                    let shown = format!("v{round}\r\n").into_bytes();
                    let ask = [format!("GET {}\r\n", keys[1]), format!("MGET {} {}\r\n", keys[0], keys[1])];
                    loop {
                        let answer = others[reader].say(&ask[draw(2)]);
                        // Of two writes the second is the last.
                        let count =
                            answer.windows(shown.len()).filter(|window| *window == &shown[..]).count();
                        if count > 0 && contains(&answer, b"*2") == (count == 2) {
                            break;
                        }
                    }
                    let answer = tracker.say("");
                    // Seen alone, the second says nothing of the first.
                    assert!(
                        contains(&answer, &told(&keys[1])),
                        "{durability}, round {round}: {}",
                        answer.escape_ascii()
                    );
                    others[writer].say("");
                } else {
                    others[writer].say(&write);
                    let answer = tracker.say("");
                    for key in &keys {
                        assert!(
                            contains(&answer, &told(key)),
                            "{durability}, round {round}: {write} was acknowledged, and {}",
                            answer.escape_ascii()
                        );
                    }
                }
            }
        });
        server.stop();
    }
}

/// One tracker of every key reads nothing: it is cut at its bound, another hears of each change in time, and writers do not
/// notice.
fn a_tracker_that_never_reads_is_cut_and_others_are_told(io: &str) {
    const BATCHES: usize = 300;
    const WRITES: usize = 100;
    let server = Server::start(io, &["--shards", "2", "--output-buffer-max", "256kb"]);
    let mut deaf = Talker::tracking(&server, "BCAST");
    let mut other = Talker::tracking(&server, "BCAST");
    let mut writer = Talker::new(server.client());
    // Some 20 MB of invalidations: more than the bound and what the kernel takes for a socket that nobody reads, in batches
    // that the one who reads can follow.
    let long = "x".repeat(600);
    for batch in 0..BATCHES {
        let writes: String = (0..WRITES).map(|at| format!("SET key:{batch}:{at}:{long} 1\r\n")).collect();
        writer.say(&writes);
        assert_eq!(invalidations(&other.say("")), WRITES, "batch {batch}");
    }
    let mut asker = server.client();
    assert_eq!(asker.info("client_output_buffer_limit_disconnections"), 1);
    assert_eq!(asker.info("tracking_clients"), 1);
    // What the kernel has taken is read, then comes the end.
    let mut taken = 0;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match deaf.client.stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => taken += length,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(taken < BATCHES * WRITES * long.len(), "it was cut");
    server.stop();
}

/// A table for 100,000 pairs, and one client that reads a million keys: the bound holds, each key that leaves the table is
/// told, and what is told is not kept.
fn a_million_keys_of_one_client_meet_the_bound(io: &str) {
    const BOUND: u64 = 100_000;
    let server = Server::start(io, &["--shards", "2", "--tracking-table-max-pairs", "100000"]);
    let mut reader = Talker::tracking(&server, "");
    let mut asker = server.client();
    let begun = Instant::now();
    let mut pushes = 0;
    for batch in 0..1000 {
        let reads: String = (0..1000).map(|at| format!("GET key:{}\r\n", batch * 1000 + at)).collect();
        pushes += invalidations(&reader.say(&reads)) as u64;
        if batch % 100 == 99 {
            let pairs = asker.info("tracking_total_items");
            assert!(pairs <= BOUND + 2, "{pairs} pairs");
            let bytes = asker.info("tracking_bytes");
            assert!(bytes <= 64 * BOUND, "{bytes} bytes");
        }
    }
    pushes += invalidations(&reader.say("")) as u64;
    let (pairs, evicted) = (asker.info("tracking_total_items"), asker.info("tracking_evictions"));
    assert_eq!((pairs + evicted, pushes), (1_000_000, evicted));
    reader.say("CLIENT TRACKING OFF\r\n");
    // It forgets a bounded amount in a turn.
    while asker.info("tracking_bytes") > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the table is not given back");
    }
    server.stop();
}
