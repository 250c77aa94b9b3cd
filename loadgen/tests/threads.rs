//! Several threads of one generator: together they are one run.

mod harness;

use harness::*;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn several_threads_make_one_run() {
    let server = Server::start(store());
    let closed =
        ["--threads", "3", "-c", "7", "-n", "4001", "--warmup", "0s", "--prefill", "-r", "300", "-d", "8"];
    let (ran, run) = measure("threads", &server.target(), &closed);
    assert_eq!(
        server.requests.load(Ordering::SeqCst),
        4_001 + 300,
        "filled once, and asked as often as said"
    );
    let count = |name: &str| run["counts"][name].as_u64().expect("a count");
    assert_eq!((count("answered"), count("misses"), count("errors")), (4_001, 0, 0), "{run}");
    assert_eq!(run["service_time"]["samples"], 4_001);
    assert!(ran.stdout.contains("3 generator threads"), "{}", ran.stdout);
    let intervals = run["intervals"].as_array().expect("intervals");
    let completed: u64 = intervals.iter().map(|one| one["completed"].as_u64().expect("a count")).sum();
    assert_eq!(completed, 4_001, "{intervals:?}");
    let cpu = |name: &str| run["cpu"][name].as_f64().expect("a share");
    assert!(cpu("generator_busiest_share") <= cpu("generator_share"), "{run}");
}

#[test]
fn an_open_loop_offers_the_same_whatever_the_number_of_threads() {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let server = Server::start({
        let seen = Arc::clone(&seen);
        move |_, request| {
            seen.lock().expect("no panic").insert(request[1].clone());
            reply("$2\r\nok\r\n")
        }
    });
    let flags = [
        "-c",
        "4",
        "--loop",
        "open",
        "--rate",
        "2000",
        "--ratio",
        "0:1",
        "--warmup",
        "0s",
        "--duration",
        "1s",
    ];
    let offered = |threads: &str| {
        let (_, run) =
            measure("threads-open", &server.target(), &[&flags[..], &["--threads", threads]].concat());
        let count = |name: &str| run["counts"][name].as_u64().expect("a count");
        assert_eq!(count("answered") + count("unanswered"), count("offered"), "{run}");
        assert_eq!(run["response_time"]["samples"].as_u64(), Some(count("offered")));
        count("offered")
    };
    let alone = offered("1");
    seen.lock().expect("no panic").clear();
    assert_eq!(offered("4"), alone, "the arrivals are those of the seed");
    // Threads that drew the same keys would ask for a quarter as many.
    let keys = seen.lock().expect("no panic").len() as u64;
    assert!(keys > alone * 9 / 10, "{keys} different keys in {alone} requests of a hundred thousand keys");
}

/// A server that is slow until it is warm: what it did before then is in nobody's figures, however many threads ask.
#[test]
fn a_warm_up_that_is_tested_lasts_until_the_server_is_warm() {
    let cold = Duration::from_secs(4);
    for threads in ["1", "2"] {
        let begun = OnceLock::new();
        let server = Server::start(move |_, _| {
            let left = cold.saturating_sub(begun.get_or_init(Instant::now).elapsed());
            thread::sleep(Duration::from_millis(2) + left / 100);
            reply("$2\r\nok\r\n")
        });
        let flags =
            ["-c", "4", "--ratio", "0:1", "--warmup", "auto", "--duration", "1s", "--threads", threads];
        let (ran, run) = measure("threads-warm-up", &server.target(), &flags);
        let warmup_s = run["warmup_s"].as_f64().expect("a time");
        assert!(warmup_s > 3.5, "{warmup_s} s: {run}");
        assert_eq!(run["warmup_settled"], warmup_s < 30.0, "{run}");
        assert!(ran.stdout.contains("warm-up"), "{}", ran.stdout);
        let window_s = run["window_s"].as_f64().expect("a time");
        assert!((0.99..2.0).contains(&window_s), "both threads measured at the same time: {window_s} s");
    }
    let server = Server::start(store());
    let (_, run) = measure("threads-warm-up-fixed", &server.target(), &["--warmup", "100ms", "-n", "100"]);
    assert_eq!((run["warmup_s"].as_f64(), run["warmup_settled"].is_null()), (Some(0.1), true));
    let ran = harness::run(&["run", "--target", &server.target(), "--warmup", "soon"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("or auto"), "{}", ran.stderr);
}

#[test]
fn one_thread_that_fails_ends_all() {
    let server = Server::start(|number, _| if number < 500 { reply("$2\r\nok\r\n") } else { Reaction::Die });
    let flags = ["--threads", "3", "-c", "3", "--ratio", "0:1", "--warmup", "0s", "--duration", "120s"];
    let began = Instant::now();
    let (ran, run) = measure("threads-death", &server.target(), &flags);
    assert_eq!(ran.code, Some(1));
    assert!(run["incomplete"].is_string() && run["service_time"]["samples"].as_u64() >= Some(500), "{run}");
    assert!(began.elapsed().as_secs() < 100, "the others did not go on");
    // Before the load begins, too.
    let refusing = Server::start(|_, _| reply("-NOAUTH no\r\n"));
    let ran = run_prefill(&refusing);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("NOAUTH"), "{}", ran.stderr);
}

fn run_prefill(server: &Server) -> Ran {
    run(&["run", "--target", &server.target(), "--threads", "2", "-c", "2", "--prefill", "-r", "100"])
}

#[test]
fn threads_without_connections_or_cores_are_wrong_usage() {
    for (flags, expected) in [
        (&["--threads", "3", "-c", "2"][..], "--connections is 2"),
        (&["--threads", "2", "--pin", "0"], "name one for each"),
        (&["--threads", "0"], "--threads"),
    ] {
        let ran = run(&[&["run", "--target", "resp://127.0.0.1:1"], flags].concat());
        assert_eq!(ran.code, Some(2), "{flags:?}");
        assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
    }
}
