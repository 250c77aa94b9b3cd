//! The program against servers with known behaviour: delays, stalls, lies, deaths.
//!
//! The servers live in this file, so that what a run must report is known and not measured. Sleeps in them are
//! the delays under test, never synchronisation.

mod harness;
mod schema;

use harness::*;
use serde_json::Value;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Stalls for `stall` at every request whose number is a multiple of `every`, all connections together.
fn stalling(every: u64, stall: Duration) -> Server {
    let gate = Mutex::new(());
    Server::start(move |number, _| {
        let _one_at_a_time = gate.lock().expect("no panic");
        if number % every == every - 1 {
            thread::sleep(stall);
        }
        reply("$2\r\nok\r\n")
    })
}

#[test]
fn a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    let stall = Duration::from_millis(400);
    let server = stalling(1_500, stall);
    let flags = ["--ratio", "0:1", "--warmup", "0s", "--duration", "2s", "--connections", "4"];
    let open_flags = [&flags[..], &["--loop", "open", "--rate", "1000"]].concat();
    let (_, open) = measure("stall-open", &server.target(), &open_flags);
    // One stall in 2,000 requests: 400 of them were meant to be sent during it, 20 %.
    let p90 = percentile_ms(&open["response_time"], 0.9);
    assert!(p90 > 100.0, "p90 of the response time is {p90} ms: the stall is hidden\n{open}");

    let server = stalling(1_500, stall);
    let (_, closed) = measure(
        "stall-closed",
        &server.target(),
        &[&flags[..], &["-n", "2000"]].concat()[..]
            .iter()
            .copied()
            .filter(|flag| !["--duration", "2s"].contains(flag))
            .collect::<Vec<_>>(),
    );
    assert!(closed["response_time"].is_null());
    // The same stall holds up at most one request of each connection: 4 in 2,000.
    let p99 = percentile_ms(&closed["service_time"], 0.99);
    assert!(p99 < p90, "p99 of the closed loop is {p99} ms, p90 of the open one {p90} ms");
    let longest = closed["service_time"]["max_ns"].as_u64().expect("a maximum") as f64 / 1e6;
    assert!(longest >= 400.0, "the stall itself lasted longer than {longest} ms");
}

#[test]
fn a_known_delay_is_reported() {
    let delay = Duration::from_millis(30);
    let server = Server::start(move |_, _| {
        thread::sleep(delay);
        reply("$2\r\nok\r\n")
    });
    let flags = ["--ratio", "0:1", "--warmup", "0s", "--duration", "1s", "--connections", "8"];
    let (ran, closed) = measure("delay", &server.target(), &flags);
    let p50 = percentile_ms(&closed["service_time"], 0.5);
    assert!((30.0..60.0).contains(&p50), "p50 is {p50} ms");
    assert_eq!(closed["loop"]["kind"], "closed");
    assert!(ran.stdout.contains("closed loop") && ran.stdout.contains("service time"), "{}", ran.stdout);
    assert!(!ran.stderr.contains("measuring"), "no progress bar where there is no terminal: {}", ran.stderr);
}

#[test]
fn a_rate_out_of_reach_is_invalid_and_its_backlog_is_counted() {
    // 5 ms each on 2 connections: 400/s at most.
    let server = Server::start(|_, _| {
        thread::sleep(Duration::from_millis(5));
        reply("$2\r\nok\r\n")
    });
    let flags = [
        "--ratio",
        "0:1",
        "--warmup",
        "0s",
        "--duration",
        "1s",
        "--drain",
        "100ms",
        "--connections",
        "2",
        "--loop",
        "open",
        "--rate",
        "2000",
        "--arrival",
        "constant",
    ];
    let (ran, run) = measure("overload", &server.target(), &flags);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert_eq!(run["verdict"], "INVALID");
    assert!(rules(&run).contains(&"rate_not_reached".to_string()), "{run}");
    let count = |name: &str| run["counts"][name].as_u64().expect("a count");
    // Nothing is dropped: every request offered was answered, or is counted as unanswered with a lower bound.
    assert!((1_990..=2_000).contains(&count("offered")), "{run}");
    assert_eq!(count("answered") + count("unanswered"), count("offered"), "{run}");
    assert_eq!(run["response_time"]["samples"].as_u64(), Some(count("offered")));
    assert!(count("unanswered") > 1_000);
}

#[test]
fn a_number_of_requests_is_kept_exactly() {
    for (pipeline, connections) in [("1", "3"), ("7", "4")] {
        let server = Server::start(store());
        let flags = ["-n", "1001", "--warmup", "0s", "--pipeline", pipeline, "-c", connections];
        let (_, run) = measure("exact", &server.target(), &flags);
        assert_eq!(server.requests.load(Ordering::SeqCst), 1_001);
        assert_eq!((&run["counts"]["completed"], &run["counts"]["answered"]), (&1_001.into(), &1_001.into()));
    }
    let server = Server::start(store());
    let flags = ["-n", "501", "--warmup", "0s", "--loop", "open", "--rate", "5000", "-c", "3"];
    let (_, run) = measure("exact-open", &server.target(), &flags);
    assert_eq!(server.requests.load(Ordering::SeqCst), 501);
    assert_eq!(run["counts"]["answered"], 501);
}

#[test]
fn a_prefill_leaves_no_misses_and_values_can_be_verified() {
    let server = Server::start(store());
    let flags =
        ["-n", "3000", "--warmup", "0s", "-r", "500", "-d", "20", "-c", "4", "--verify", "--ratio", "1:3"];
    let (_, run) = measure("prefill", &server.target(), &[&flags[..], &["--prefill"]].concat());
    assert_eq!((&run["counts"]["misses"], &run["counts"]["wrong"]), (&0.into(), &0.into()));
    assert!(run["counts"]["checked"].as_u64() > Some(0), "{run}");
    // Without it nearly everything is missed, and that is said.
    let server = Server::start(store());
    let (_, run) = measure("misses", &server.target(), &[&flags[..10], &["--ratio", "0:1"]].concat());
    assert_eq!(run["counts"]["misses"], 3_000);
    assert!(rules(&run).contains(&"misses".to_string()));
}

#[test]
fn keys_of_many_sizes_are_filled_and_found() {
    for size in ["14-40", "etc"] {
        let server = Server::start(store());
        let flags = [
            "-n",
            "3000",
            "--warmup",
            "0s",
            "-r",
            "500",
            "-c",
            "4",
            "--verify",
            "--ratio",
            "1:3",
            "--prefill",
        ];
        let (_, run) = measure("key-sizes", &server.target(), &[&flags[..], &["--key-size", size]].concat());
        assert_eq!((&run["counts"]["misses"], &run["counts"]["wrong"]), (&0.into(), &0.into()), "{run}");
        assert_eq!(run["workload"]["key_sizes"], size);
    }
}

#[test]
fn wrong_answers_are_found() {
    let server = Server::start(|_, request| match &request[0][..] {
        b"SET" => reply("+OK\r\n"),
        _ => reply("$4\r\nlies\r\n"),
    });
    let flags = ["-n", "3000", "--warmup", "0s", "-c", "2", "-d", "4", "--verify", "--prefill", "-r", "10"];
    let (ran, run) = measure("lies", &server.target(), &flags);
    assert_eq!((ran.code, &run["verdict"]), (Some(1), &"INVALID".into()));
    assert!(rules(&run).contains(&"wrong_replies".to_string()));
}

#[test]
fn pushes_between_replies_are_not_replies() {
    let server = Server::start(|number, request| match &request[0][..] {
        b"HELLO" => reply("%1\r\n$6\r\nserver\r\n$4\r\ntest\r\n"),
        _ if number % 3 == 0 => reply(">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n$2\r\nok\r\n"),
        _ => reply("$2\r\nok\r\n"),
    });
    let flags = ["--resp", "3", "-n", "900", "--warmup", "0s", "-c", "1", "--ratio", "0:1"];
    let (_, run) = measure("pushes", &server.target(), &flags);
    assert_eq!((&run["counts"]["completed"], &run["counts"]["errors"]), (&900.into(), &0.into()));
    assert_eq!(run["counts"]["pushes"], 300);
}

#[test]
fn unix_sockets_are_driven() {
    let folder = scratch("unix");
    let path = folder.join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || {
                let reader = stream.try_clone().expect("a descriptor");
                serve(reader, stream, &|_, _| reply("$2\r\nok\r\n"), &AtomicU64::new(0))
            });
        }
    });
    let target = format!("unix://{}", path.display());
    for io in ["io_uring", "epoll"] {
        let flags = ["-n", "500", "--warmup", "0s", "--ratio", "0:1", "-c", "5", "--io", io];
        let (_, run) = measure("unix-run", &target, &flags);
        assert_eq!(run["counts"]["answered"], 500);
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn http_is_driven_with_bodies_and_statuses() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (puts, seen) = channel();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let puts = puts.clone();
            thread::spawn(move || serve_http(stream.try_clone().ok()?, stream, &puts));
        }
    });
    http_is_driven(&format!("http://{address}"), &seen);
}

#[test]
fn http_is_driven_over_a_unix_socket() {
    let folder = scratch("http-unix");
    let path = folder.join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (puts, seen) = channel();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let puts = puts.clone();
            thread::spawn(move || serve_http(stream.try_clone().ok()?, stream, &puts));
        }
    });
    http_is_driven(&format!("http+unix://{}", path.display()), &seen);
    let _ = std::fs::remove_dir_all(folder);
}

fn http_is_driven(target: &str, seen: &Receiver<usize>) {
    let flags = ["-n", "600", "--warmup", "0s", "--ratio", "1:2", "-c", "3", "-d", "10", "--pipeline", "4"];
    let (_, run) = measure("http", target, &flags);
    assert_eq!(run["target"], target);
    let count = |name: &str| run["counts"][name].as_u64().expect("a count");
    assert_eq!((count("answered"), count("errors")), (600, 0), "{run}");
    // Each PUT had a body of ten bytes; a third of all requests were PUTs, to within a cycle a connection.
    let bodies: Vec<usize> = seen.try_iter().collect();
    assert!(bodies.iter().all(|length| *length == 10));
    assert!((190..=210).contains(&bodies.len()), "{}", bodies.len());
    assert!((190..=410).contains(&count("misses")), "every GET is a 404 here: {run}");
}

fn serve_http(reader: impl Read, mut writer: impl Write, puts: &Sender<usize>) -> Option<()> {
    let mut reader = BufReader::new(reader);
    loop {
        let first = read_line(&mut reader)?;
        let mut length = 0;
        loop {
            let line = read_line(&mut reader)?;
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if first.starts_with("PUT /v1/keys/key:") {
            puts.send(length).ok()?;
            writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()?;
        } else {
            writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").ok()?;
        }
    }
}

#[test]
fn the_servers_stages_stand_beside_the_clients_figures() {
    // It times every fourth batch. Its log is off, its stages are not.
    let server = millrace(&[("stage-sampling", "4")]);
    let (resp, http) = (server.resp.expect("a RESP port"), server.http.expect("an HTTP port"));
    let folder = scratch("stages");
    let page = folder.join("report.html");
    let page_path = page.to_str().expect("a text path");
    let flags = ["--connections", "4", "--keys", "100", "--warmup", "200ms", "-n", "8000"];
    for target in [format!("resp://{resp}"), format!("http://{http}")] {
        // A prefill that is much more than the run's writes: it must not be in the figures.
        let more = ["--prefill", "--keys", "5000", "--ratio", "1:9", "--html", page_path];
        let flags = [&["--connections", "4", "--warmup", "200ms", "-n", "8000"][..], &more].concat();
        let (ran, run) = measure("stages-run", &target, &flags);
        assert!(run["stages_absent"].is_null(), "{run}");
        // What the server says of itself is in the terminal's report, in the JSON and on the page, and so is that it does not.
        let html = std::fs::read_to_string(&page).expect("a page");
        if target.starts_with("resp") {
            let version = run["server_version"].as_str().expect("RESP tells");
            assert!(version.contains(concat!("millrace_version ", env!("CARGO_PKG_VERSION"))), "{version}");
            assert!(ran.stdout.contains(&format!("  server          {version}\n")), "{}", ran.stdout);
            assert!(html.contains(version) && html.contains("<tr><td>stage-sampling</td><td>4</td></tr>"));
        } else {
            assert!(run["server_version"].is_null(), "{run}");
            assert!(ran.stdout.contains("  server          not told\n"), "{}", ran.stdout);
            assert!(html.contains("Version: not told. Configuration: not told."));
        }
        let kinds = run["stages"]["kinds"].as_array().expect("kinds");
        let names: Vec<&str> = kinds.iter().map(|kind| kind["kind"].as_str().expect("text")).collect();
        assert_eq!(names, ["read", "write"]);
        let samples = |at: usize| kinds[at]["samples"].as_u64().expect("a count") as f64;
        let share = samples(1) / (samples(0) + samples(1));
        assert!((0.05..0.2).contains(&share), "a tenth writes, and {share} of what was timed");
        for kind in kinds {
            let stages = kind["stages"].as_array().expect("stages");
            assert_eq!(stages.len(), store::stages::STAGES.len());
            let mean = |stage: &Value| stage["mean_ns"].as_f64().expect("a mean");
            let (sum, total) = (stages.iter().map(mean).sum::<f64>(), mean(&kind["total"]));
            // Prometheus shows nanoseconds, but binary fractions of seconds.
            assert!(total > 0.0 && (sum / total - 1.0).abs() < 1e-3, "{sum} and {total}");
            assert!(total < run["service_time"]["max_ns"].as_f64().expect("a maximum"), "{kind}");
        }
        for expected in ["server stages", "read execute", "write send", "of it outside"] {
            assert!(ran.stdout.contains(expected), "{expected} in {}", ran.stdout);
        }
        let html = std::fs::read_to_string(&page).expect("a page");
        assert!(html.contains("read: execute") && html.contains("stages by percentile"), "{html}");
    }
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
    // Another server has none, and that is said and no failure.
    let other = Server::start(store());
    let (ran, run) = measure("stages-none", &other.target(), &flags);
    assert!(run["stages"].is_null(), "{run}");
    assert!(run["stages_absent"].as_str().expect("a reason").contains("no Millrace"), "{run}");
    assert!(ran.stdout.contains("server stages   the target has no figures by stage"), "{}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
}

#[test]
fn a_target_that_refuses_fails_with_advice() {
    // A port that was free a moment ago.
    let address =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    for target in [format!("resp://{address}"), "unix:///nowhere/at/all".to_string()] {
        let ran = run(&["run", "--target", &target, "--duration", "1s"]);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("cannot connect") && ran.stderr.contains("running"), "{}", ran.stderr);
    }
}

#[test]
fn garbage_is_shown() {
    for (bytes, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", "not RESP"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "not RESP"),
        ("$5\r\nhello!!", "not followed by CRLF"),
        ("+OK\r\n+OK\r\n", "more than were asked for"),
    ] {
        let server = Server::start(move |_, _| reply(bytes));
        let ran = run(&["run", "--target", &server.target(), "--duration", "5s", "-c", "2"]);
        assert_eq!(ran.code, Some(1), "{bytes:?}");
        assert!(ran.stderr.contains(expected), "{bytes:?}: {}", ran.stderr);
    }
}

#[test]
fn silence_ends_after_the_timeout() {
    let server = Server::start(|_, _| Reaction::Silence);
    for flags in [&["-n", "10"][..], &["--prefill"], &["--resp", "3"]] {
        let began = Instant::now();
        let ran =
            run(&[&["run", "--target", &server.target(), "--timeout", "300ms", "-c", "2"], flags].concat());
        assert_eq!(ran.code, Some(1), "{flags:?}");
        assert!(ran.stderr.contains("does not answer"), "{flags:?}: {}", ran.stderr);
        assert!(began.elapsed() < Duration::from_secs(10), "{flags:?}");
    }
    // With a time limit shorter than the time-out the run ends in time, and says that nothing came.
    let flags = ["--duration", "300ms", "--warmup", "0s", "--drain", "100ms", "-c", "2"];
    let (ran, run) = measure("silence", &server.target(), &flags);
    assert_eq!((ran.code, &run["verdict"]), (Some(1), &"INVALID".into()));
    assert_eq!(rules(&run)[0], "no_replies");
    assert_eq!(run["counts"]["unanswered"], 2);
    assert!(run["service_time"]["min_ns"].as_u64() >= Some(300_000_000), "lower bounds: {run}");
}

#[test]
fn a_server_that_dies_leaves_what_was_measured() {
    let server =
        Server::start(|number, _| if number < 2_000 { reply("$2\r\nok\r\n") } else { Reaction::Die });
    let flags = ["--duration", "20s", "--warmup", "0s", "--ratio", "0:1", "-c", "1"];
    let began = Instant::now();
    let (ran, run) = measure("death", &server.target(), &flags);
    assert!(began.elapsed() < Duration::from_secs(15), "it does not wait for the end of the run");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("cannot connect"), "{}", ran.stderr);
    assert_eq!(run["counts"]["completed"], 2_000);
    // The one that was fatal, and what was sent on a connection that the dying server's backlog still took.
    assert!(run["counts"]["lost"].as_u64() >= Some(1), "{run}");
    assert!(run["incomplete"].is_string() && run["service_time"]["samples"].as_u64() >= Some(2_000));
}

#[test]
fn connections_that_close_are_opened_again() {
    let server = Server::start(|number, _| match number % 100 {
        99 => Reaction::Last(b"$2\r\nok\r\n".to_vec()),
        _ => reply("$2\r\nok\r\n"),
    });
    let flags = ["-n", "2000", "--warmup", "0s", "--ratio", "0:1", "-c", "1"];
    let (ran, run) = measure("reopen", &server.target(), &flags);
    // A request sent before the close is noticed is lost, and one less is served.
    assert!((15..=20).contains(&run["counts"]["reconnects"].as_u64().expect("a count")), "{run}");
    let answered = run["counts"]["answered"].as_u64().expect("a count");
    let lost = run["counts"]["lost"].as_u64().expect("a count");
    assert_eq!(answered + lost, 2_000, "{}", ran.stdout);
}

#[test]
fn error_replies_are_counted_and_the_first_is_shown() {
    let server = Server::start(|_, _| reply("-NOAUTH Authentication required.\r\n"));
    let (ran, run) = measure("errors", &server.target(), &["-n", "200", "--warmup", "0s", "-c", "2"]);
    assert_eq!((ran.code, &run["counts"]["errors"]), (Some(1), &200.into()));
    assert!(ran.stdout.contains("NOAUTH Authentication required."), "{}", ran.stdout);
    // In handshake and prefill there is no point in going on.
    for flag in [&["--prefill"][..], &["--resp", "3"]] {
        let ran = run_with(&server, flag);
        assert_eq!(ran.code, Some(1));
        assert!(ran.stderr.contains("NOAUTH"), "{}", ran.stderr);
    }
}

fn run_with(server: &Server, flags: &[&str]) -> Ran {
    run(&[&["run", "--target", &server.target(), "-n", "10", "-r", "100"], flags].concat())
}

#[test]
fn ctrl_c_writes_what_was_measured() {
    let (tell, told) = channel();
    let server = Server::start(move |number, _| {
        if number == 1_000 {
            tell.send(()).expect("the test waits");
        }
        reply("$2\r\nok\r\n")
    });
    let folder = scratch("interrupt");
    let json = folder.join("report.json");
    let target = server.target();
    let flags =
        ["run", "--target", &target, "--duration", "600s", "--warmup", "0s", "--ratio", "0:1", "--json"];
    let mut command = loadgen(&flags);
    command.arg(&json).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child: Child = command.spawn().expect("the program starts");
    told.recv_timeout(Duration::from_secs(60)).expect("a thousand requests");
    let status =
        Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status().expect("a shell");
    assert!(status.success());
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("interrupted"), "{}", ran.stderr);
    let report = read_json(&json);
    let run = &report["runs"][0];
    assert!(run["incomplete"].is_string() && run["counts"]["completed"].as_u64() >= Some(900), "{run}");
    assert!(run["window_s"].as_f64() < Some(599.0));
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for flags in [
        &["run"][..],
        &["run", "--target", "nonsense"],
        &["run", "--target", "resp://127.0.0.1:1", "--loop", "open"],
        &["run", "--target", "resp://127.0.0.1:1", "--rate", "5"],
        &["run", "--target", "resp://127.0.0.1:1", "--pin", "99999"],
        &["run", "--target", "resp://127.0.0.1:1", "--server-pid", "4294967295"],
        &["run", "--target", "resp://127.0.0.1:1", "--no-such-flag"],
        &["compare", "--cases", "/no/such/file.toml"],
        &["compare", "--targets", "no-such-target"],
        &["no-such-command"],
    ] {
        let ran = run(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("error:"), "{flags:?}: {}", ran.stderr);
    }
    assert_eq!(run(&["--help"]).code, Some(0));
}

#[test]
fn a_report_that_cannot_be_written_is_a_failure() {
    let server = Server::start(store());
    let target = server.target();
    let flags = ["run", "--target", &target, "-n", "10", "--warmup", "0s", "--json"];
    // No such place: that is known before the load begins, and said then.
    let ran = run(&[&flags[..], &["/proc/no/such/place"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("cannot write /proc/no/such/place"), "{}", ran.stderr);
    assert_eq!(server.requests.load(Ordering::SeqCst), 0, "nothing was measured for a report that cannot be");
    // A disk without room is found when there is something to write.
    let ran = run(&[&flags[..], &["/dev/full"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("cannot write /dev/full") && ran.stderr.contains("space"), "{}", ran.stderr);
    assert!(ran.stdout.contains("verdict"), "the table was printed all the same");
}

#[test]
fn compare_alternates_starts_fresh_and_writes_both_reports() {
    let folder = scratch("compare");
    let cases = format!(
        "title = \"a test\"\nsubject = \"one\"\nrounds = 3\nduration-s = 0.15\nwarmup-s = 0.05\nconnections = 4\n\
         repeats-if-noisy = 0\n{}{}[[target]]\nname = \"absent\"\ncommand = [\"no-such-program-anywhere\"]\n\
         [[case]]\nname = \"GET\"\ntargets = [\"one\", \"two\", \"absent\"]\ngets = 1\nkeys = 100\n\
         goals = [{{ against = \"two\", cpu-ratio-max = 100.0 }}]\n",
        target_entry("one"),
        target_entry("two")
    );
    let file = folder.join("cases.toml");
    std::fs::write(&file, cases).expect("a file");
    let results = folder.join("results");
    let mut command = loadgen(&["compare", "--cases"]);
    let ran = ran(command.arg(&file).arg("--results").arg(&results).output().expect("the program starts"));
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("Missing: absent: no program \"no-such-program-anywhere\" in PATH"),
        "{}",
        ran.stdout
    );
    let written = only_folder(&results);
    let markdown = std::fs::read_to_string(written.join("report.md")).expect("a table");
    assert!(
        markdown.contains("| one | loadgen, closed loop | 3 |") && markdown.contains("(met)"),
        "{markdown}"
    );
    let page = std::fs::read_to_string(written.join("report.html")).expect("a page");
    for expected in
        ["Server CPU per request", "paired by round", "driven by", "mitigations", "Missing: absent"]
    {
        assert!(page.contains(expected), "{expected} in {page}");
    }
    assert!(page.matches("<svg").count() >= 3 && !page.contains("<script"), "{page}");
    let json = read_json(&written.join("report.json"));
    schema::keeps_to("comparison", &json);
    let order: Vec<(u64, &str)> = json["measurements"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["round"].as_u64().expect("a number"), one["target"].as_str().expect("text")))
        .collect();
    assert_eq!(order, [(1, "one"), (1, "two"), (2, "two"), (2, "one"), (3, "one"), (3, "two")]);
    let rows = json["cases"][0]["rows"].as_array().expect("a list");
    assert!(rows[0]["cpu_ratio"].is_null() && rows[1]["cpu_ratio"]["median"].is_number(), "{json}");
    assert!(rows.iter().all(|row| row["server_us_per_request"]["median"].as_f64() > Some(0.0)));
    let _ = std::fs::remove_dir_all(folder);
}
