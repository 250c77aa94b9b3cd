//! Redis is the oracle: random commands to redis-server 7.0.15 and to Millrace, replies equal byte for byte.
//!
//! By default 200,000 commands go to the server over {io_uring, epoll} × {1, 2, 4 shards}, in RESP2 and RESP3, and
//! some more to an engine in this process. `MILLRACE_SEED` replays a run, `MILLRACE_ORACLE_COMMANDS` makes it longer
//! or shorter, `MILLRACE_BIN` names another binary. redis-server must be on the `PATH`; without it these tests fail.

use std::cell::Cell;
use std::rc::Rc;
use tests::oracle::engine::InProcess;
use tests::oracle::exceptions::EXCEPTIONS;
use tests::oracle::target::{Link, Process, Received, Server, millrace_binary};
use tests::oracle::{Summary, ask, compare, tracking};
use tests::random;

/// Commands to the server in all, unless `MILLRACE_ORACLE_COMMANDS` says otherwise.
const COMMANDS: usize = 200_000;

/// The list of exceptions may only shrink: lower this number with it, and never raise it.
const EXCEPTIONS_MAX: usize = 20;

#[test]
fn the_list_of_exceptions_only_shrinks() {
    assert_eq!(
        EXCEPTIONS.len(),
        EXCEPTIONS_MAX,
        "lower EXCEPTIONS_MAX with the list; a new difference is a bug"
    );
    for exception in EXCEPTIONS {
        assert!(!exception.reason.is_empty(), "{} has no reason", exception.name);
    }
}

#[test]
fn the_server_answers_as_redis_does() {
    let binary = millrace_binary().unwrap_or_else(|error| panic!("{error}"));
    let seed = random::seed();
    // Every number of shards on both drivers, and both protocols with each number.
    let runs = [
        ("io_uring", "1", 2),
        ("io_uring", "2", 3),
        ("io_uring", "4", 2),
        ("epoll", "1", 3),
        ("epoll", "2", 2),
        ("epoll", "4", 3),
    ];
    let mut total = 0;
    for (at, (io, shards, resp)) in runs.into_iter().enumerate() {
        // RESP3 goes over the Unix socket, so that both kinds of socket are spoken to through both drivers.
        let arguments = ["--io", io, "--shards", shards, "--enable-debug-command", "yes"];
        let mut millrace =
            Process::start_millrace(&binary, &arguments, resp == 3).unwrap_or_else(|e| panic!("{e}"));
        let seed = seed.wrapping_add(at as u64);
        let summary = agree(&mut millrace, seed, resp, commands().div_ceil(runs.len()));
        total += summary.commands;
    }
    assert!(total >= commands(), "only {total} commands were compared");
}

#[test]
fn the_engine_answers_as_redis_does() {
    let seed = random::seed();
    for resp in [2, 3] {
        agree(&mut InProcess::new(seed), seed, resp, commands() / 10);
    }
}

/// Who is told of which change, and in what form, is the same as with Redis: with one shard and with several, at once
/// and when the log has the change.
#[test]
fn clients_that_track_are_told_what_redis_tells() {
    let binary = millrace_binary().unwrap_or_else(|error| panic!("{error}"));
    let seed = random::seed();
    let steps = commands() / 50;
    for (at, (shards, durability)) in [("1", "off"), ("4", "off"), ("3", "always")].into_iter().enumerate() {
        let seed = seed.wrapping_add(at as u64);
        println!("{shards} shards, durability {durability}: MILLRACE_SEED={seed}");
        let arguments = ["--shards", shards, "--durability", durability];
        let mut millrace =
            Process::start_millrace(&binary, &arguments, false).unwrap_or_else(|e| panic!("{e}"));
        let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
        let told = tracking::compare(&mut redis, &mut millrace, seed, steps, shards == "1")
            .unwrap_or_else(|e| panic!("{e}"));
        println!("{told:?}");
        assert!(told.keys * 8 > steps && told.broken > 0, "{told:?}: this compares nothing");
    }
    let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
    tracking::compare(&mut redis, &mut InProcess::new(seed), seed, steps * 2, true)
        .unwrap_or_else(|e| panic!("{e}"));
}

/// Every combination of the options of CLIENT TRACKING, right or wrong, behind every state: the same words.
#[test]
fn every_combination_of_tracking_options_is_answered_as_redis_does() {
    let seed = random::seed();
    let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
    let compared = tracking::compare_options(&mut redis, &mut InProcess::new(seed), seed, 300)
        .unwrap_or_else(|difference| panic!("MILLRACE_SEED={seed}: {difference}"));
    println!("{compared} replies are the same");
    assert!(compared > 50_000, "{compared} replies: this compares little");
}

/// Proves that what is sent and what is excepted leaves nothing to chance: two equal servers never differ.
#[test]
fn redis_answers_as_redis_does() {
    let seed = random::seed();
    for resp in [2, 3] {
        let mut other = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
        agree(&mut other, seed, resp, commands() / 20);
    }
}

/// Proves that a difference is found: one wrong byte, late in the run, in a reply that no exception covers.
#[test]
fn one_wrong_byte_is_found() {
    let seed = random::seed();
    let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
    let is_wrong = Rc::new(Cell::new(false));
    let mut wrong = Tampered { inner: InProcess::new(seed), is_wrong: Rc::clone(&is_wrong) };
    let mismatch = match compare(&mut redis, &mut wrong, seed, 2, 20_000) {
        Ok(_) => panic!("with MILLRACE_SEED={seed} a wrong byte went unnoticed"),
        Err(mismatch) => mismatch,
    };
    assert!(is_wrong.get(), "it found something else, with MILLRACE_SEED={seed}: {mismatch}");
    assert!(mismatch.millrace.contains("embstR"), "the report shows what was wrong: {mismatch}");
    assert!(mismatch.redis.contains("embstr"), "and what is right: {mismatch}");
}

/// INFO's hits and misses are excepted from the comparison because they are sums over all that went before; here each
/// command's own contribution is compared.
#[test]
fn every_command_counts_its_lookups_as_redis_does() {
    let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
    let mut links = [redis.connect(), InProcess::new(1).connect()];
    let commands = [
        "GET k",
        "MGET k m k",
        "STRLEN k",
        "GETRANGE k 0 1",
        "LCS k m",
        "GETEX k",
        "GETEX k PERSIST",
        "GETDEL k",
        "GETSET k v",
        "SET k v",
        "SET k v GET",
        "SET k v XX",
        "SETNX k v",
        "APPEND k v",
        "SETRANGE k 0 v",
        "INCR k",
        "INCRBYFLOAT k 1",
        "EXISTS k m",
        "TOUCH k m",
        "TYPE k",
        "TTL k",
        "PTTL k",
        "EXPIRETIME k",
        "PEXPIRETIME k",
        "EXPIRE k 100000",
        "PERSIST k",
        "RENAME k n",
        "RENAMENX k n",
        "COPY k n",
        "DEL k m",
        "UNLINK k",
        "MSET k v",
        "MSETNX k v",
        "OBJECT ENCODING k",
        "OBJECT REFCOUNT k",
        "OBJECT IDLETIME k",
        "OBJECT FREQ k",
        "KEYS *",
        "RANDOMKEY",
        "DBSIZE",
        "SCAN 0",
        "WATCH k",
        "MEMORY USAGE k",
        "DEBUG OBJECT k",
    ];
    for present in [true, false] {
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let [redis, millrace] = [0, 1].map(|at| {
                let link = &mut *links[at];
                ask(link, &["FLUSHALL"]);
                if present {
                    ask(link, &["SET", "k", "5"]);
                }
                ask(link, &["CONFIG", "RESETSTAT"]);
                ask(link, &words);
                let info = ask(link, &["INFO", "stats"]);
                let text = String::from_utf8_lossy(info.bytes().expect("INFO is a string")).into_owned();
                let line = |name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
                [line("keyspace_hits:"), line("keyspace_misses:")]
            });
            assert_eq!(millrace, redis, "{command} with k {}", if present { "present" } else { "absent" });
        }
    }
}

fn commands() -> usize {
    match std::env::var("MILLRACE_ORACLE_COMMANDS") {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("MILLRACE_ORACLE_COMMANDS={text} is not a number"))
        }
        Err(_) => COMMANDS,
    }
}

/// Compares a server with a fresh redis-server, says what was done, and fails with the difference.
fn agree(server: &mut dyn Server, seed: u64, resp: u8, commands: usize) -> Summary {
    let mut redis = Process::start_redis().unwrap_or_else(|error| panic!("{error}"));
    println!("{} in RESP{resp}: MILLRACE_SEED={seed}", server.name());
    let started = std::time::Instant::now();
    let summary = match compare(&mut redis, server, seed, resp, commands) {
        Ok(summary) => summary,
        Err(mismatch) => panic!("with MILLRACE_SEED={seed}:\n{mismatch}"),
    };
    let needed: Vec<String> = EXCEPTIONS
        .iter()
        .zip(&summary.exceptions)
        .filter(|(_, count)| **count > 0)
        .map(|(exception, count)| format!("{} ({count})", exception.name))
        .collect();
    println!(
        "{} commands, {} broken connections, {} full scans in {:.1} s; equal but for {}",
        summary.commands,
        summary.throwaways,
        summary.scans,
        started.elapsed().as_secs_f64(),
        needed.join(", ")
    );
    summary
}

/// A server that is wrong once.
struct Tampered {
    inner: InProcess,
    is_wrong: Rc<Cell<bool>>,
}

struct TamperedLink {
    inner: Box<dyn Link>,
    is_wrong: Rc<Cell<bool>>,
}

impl Server for Tampered {
    fn name(&self) -> &str {
        "a server that is wrong once"
    }

    fn connect(&mut self) -> Box<dyn Link> {
        Box::new(TamperedLink { inner: self.inner.connect(), is_wrong: Rc::clone(&self.is_wrong) })
    }
}

impl Link for TamperedLink {
    fn send(&mut self, bytes: &[u8]) {
        self.inner.send(bytes);
    }

    fn finish(&mut self) {
        self.inner.finish();
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Received {
        let start = into.len();
        let received = self.inner.receive(into);
        let reply = b"$6\r\nembstr\r\n";
        let found = into[start..].windows(reply.len()).position(|window| window == reply);
        if let Some(at) = found.filter(|_| !self.is_wrong.get()) {
            into[start + at + 9] = b'R';
            self.is_wrong.set(true);
        }
        received
    }
}
