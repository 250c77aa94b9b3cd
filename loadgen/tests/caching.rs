//! `loadgen caching` against a server that keeps caches true, and against ones that do not.

mod harness;
mod schema;

use harness::*;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Mutex;

/// A store that says it tracks, and tells nobody of anything. `old`: GETs answer with what was filled in.
fn liar(old: bool) -> Server {
    let map: Mutex<HashMap<Vec<u8>, Vec<u8>>> = Mutex::default();
    Server::start(move |_, request| {
        let mut map = map.lock().expect("no panic");
        match &request[0][..] {
            b"HELLO" => reply("%1\r\n$5\r\nproto\r\n:3\r\n"),
            b"CLIENT" => reply("+OK\r\n"),
            b"SET" => {
                if !old || !map.contains_key(&request[1]) {
                    map.insert(request[1].clone(), request[2].clone());
                }
                reply("+OK\r\n")
            }
            _ => match map.get(&request[1]) {
                Some(value) => {
                    Reaction::Reply([format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat())
                }
                None => reply("$-1\r\n"),
            },
        }
    })
}

fn caching(name: &str, words: &[&str]) -> (Ran, Value) {
    let folder = scratch(name);
    let (json, html) = (folder.join("report.json"), folder.join("report.html"));
    let paths = ["--json", json.to_str().expect("text"), "--html", html.to_str().expect("text")];
    let ran = run(&[&["caching"], words, &paths].concat());
    let text = std::fs::read(&json).unwrap_or_else(|_| panic!("no report: {}{}", ran.stdout, ran.stderr));
    let report: Value = serde_json::from_slice(&text).expect("valid JSON");
    schema::keeps_to("caching", &report);
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains("<svg") && !page.contains("<script"), "{page}");
    let _ = std::fs::remove_dir_all(folder);
    (ran, report)
}

fn count(cell: &Value, name: &str) -> u64 {
    cell[name].as_u64().unwrap_or_else(|| panic!("no {name}: {cell}"))
}

const GRID: [&str; 10] =
    ["--rounds", "1", "--duration", "400ms", "--warmup", "200ms", "--keys", "50", "--ratio", "1:100"];

#[test]
fn caches_are_kept_true_by_one_shard_and_by_several() {
    for (shards, threads) in [("1", "1"), ("3", "2")] {
        let server = millrace(&[("shards", shards)]);
        let target = format!("resp://{}", server.resp.expect("a port"));
        for tracking in ["reads", "bcast"] {
            let words =
                ["grid", "--target", &target, "--workers", "8", "--threads", threads, "--tracking", tracking];
            let (ran, report) = caching("grid", &[&words[..], &GRID].concat());
            let cells = report["cells"].as_array().expect("cells");
            assert_eq!(cells.len(), 2, "{}", ran.stderr);
            let [on, off] = [&cells[0], &cells[1]];
            assert_eq!((&on["cache"], &off["cache"]), (&true.into(), &false.into()));
            for cell in cells {
                assert_eq!(
                    (count(cell, "wrong"), count(cell, "errors"), count(cell, "nulls")),
                    (0, 0, 0),
                    "{cell}"
                );
                assert!(count(cell, "reads") > 0 && count(cell, "writes") > 0, "{cell}");
                let remote = count(&cell["remote_reads"], "samples");
                assert_eq!(count(cell, "reads"), count(cell, "hits") + remote, "{cell}");
            }
            assert!(count(on, "hits") > 0 && count(on, "invalidations") > 0, "{on}");
            assert_eq!(
                (count(off, "hits"), count(off, "invalidations"), count(off, "stale_reads")),
                (0, 0, 0)
            );
            assert!(ran.stdout.contains("reads with the cache over without"), "{}", ran.stdout);
        }
        server.stop();
        server.join().expect("it ends well");
    }
}

#[test]
fn the_delay_of_every_tracker_is_measured() {
    let server = millrace(&[("shards", "2")]);
    let target = format!("resp://{}", server.resp.expect("a port"));
    for tracking in ["reads", "bcast"] {
        let words = [
            "delay",
            "--target",
            &target,
            "--trackers",
            "1,20",
            "-n",
            "100",
            "--rounds",
            "1",
            "--tracking",
            tracking,
        ];
        let (ran, report) = caching("delay", &words);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        for (cell, trackers) in report["cells"].as_array().expect("cells").iter().zip([1, 20]) {
            assert_eq!((count(cell, "writes"), count(&cell["since_sent"], "samples")), (100, 100 * trackers));
            assert_eq!(
                (count(&cell["since_sent"], "negative"), count(&cell["last_told"], "samples")),
                (0, 100)
            );
            let p50 = |name: &str| cell[name]["p50_ns"].as_i64().expect("enough");
            assert!(p50("since_sent") > 0 && p50("since_acknowledged") < p50("since_sent"), "{cell}");
            assert!(count(cell, "stale_reads") <= count(cell, "cache_reads"), "{cell}");
        }
    }
    server.stop();
    server.join().expect("it ends well");
}

#[test]
fn a_server_that_tells_nobody_is_found_out() {
    let server = liar(false);
    let target = server.target();
    let (_, report) =
        caching("liar", &[&["grid", "--target", &target, "--workers", "4"][..], &GRID].concat());
    let on = &report["cells"][0];
    assert!(count(on, "stale_reads") > 0 && count(on, "invalidations") == 0, "{on}");
    assert!(on["stale_age"]["max_ns"].as_u64() > Some(1_000_000), "{on}");
    let words =
        ["delay", "--target", &target, "--trackers", "3", "-n", "5", "--rounds", "1", "--timeout", "500ms"];
    let (ran, report) = caching("liar-delay", &words);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("3 of 3 trackers were not told"), "{}", ran.stderr);
    assert!(report["failed"][0].as_str().expect("a reason").contains("not told"), "{report}");
}

#[test]
fn a_server_that_answers_with_what_was_overwritten_is_no_ground_to_measure_on() {
    let server = liar(true);
    let target = server.target();
    let (ran, report) =
        caching("old", &[&["grid", "--target", &target, "--workers", "4"][..], &GRID].concat());
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    let off = &report["cells"][1];
    assert!(count(off, "wrong") > 0 && off["verdict"] == "INVALID", "{off}");
    let rules: Vec<String> = rules(off);
    assert!(rules.contains(&"wrong_replies".to_string()), "{rules:?}");
}

#[test]
fn wrong_usage_and_servers_that_cannot_do_it_are_said() {
    for (words, expected) in [
        (&["caching"][..], "delay"),
        (&["caching", "grid", "--targets", "nonsense"], "millrace, redis"),
        (&["caching", "grid", "--target", "http://127.0.0.1:1"], "RESP"),
        (&["caching", "grid", "--ratio", "1:0"], "needs reads"),
        (&["caching", "grid", "--workers", "2", "--threads", "3"], "needs one"),
        (&["caching", "grid", "--workers", "20000", "--keys", "9000000"], "room for"),
        (&["caching", "delay", "--value-size", "3"], "value-size"),
    ] {
        let ran = run(words);
        assert_eq!(ran.code, Some(2), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{words:?}: {}", ran.stderr);
    }
    // It does not know CLIENT; nobody is there; it is no server of this kind.
    let no_tracking = Server::start(|_, request| match &request[0][..] {
        b"CLIENT" => reply("-ERR unknown command 'CLIENT'\r\n"),
        b"HELLO" => reply("%1\r\n+proto\r\n:3\r\n"),
        _ => reply("+OK\r\n"),
    });
    let mute =
        Server::start(|_, request| if request[0] == b"SET" { reply("+OK\r\n") } else { Reaction::Silence });
    let noise = Server::start(
        |_, request| if request[0] == b"SET" { reply("+OK\r\n") } else { reply("SSH-2.0\r\n") },
    );
    let absent = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    for (target, expected) in [
        (no_tracking.target(), "unknown command 'CLIENT'"),
        (mute.target(), "does not answer"),
        (noise.target(), "not RESP"),
        (format!("resp://{absent}"), "cannot fill"),
    ] {
        for what in [
            &["grid", "--workers", "2", "--duration", "200ms", "--warmup", "0s"][..],
            &["delay", "--trackers", "2", "-n", "5"],
        ] {
            let more = ["--target", &target, "--rounds", "1", "--timeout", "300ms"];
            let ran = run(&[&["caching"], what, &more].concat());
            assert_eq!(ran.code, Some(1), "{what:?}: {}", ran.stdout);
            assert!(ran.stderr.contains(expected), "{what:?}: {}", ran.stderr);
        }
    }
}
